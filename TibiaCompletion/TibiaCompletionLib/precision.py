"""Where networks compute in half precision: trained on a GPU, in their convolutions, never in geometry or losses."""

import torch


def half_on_gpu(device):
    """Context in which convolutions run in bfloat16 while they are trained on a GPU.

    Elsewhere nothing changes: results must be the same on CPU and GPU.

    Args:
        device: torch.device of the images.
    """
    trained_on_gpu = device.type == "cuda" and torch.is_grad_enabled()
    return torch.autocast(device.type, torch.bfloat16, enabled=trained_on_gpu)
