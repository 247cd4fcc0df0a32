"""On which device and how exactly networks compute: in half precision only where they are trained on a GPU."""

import torch

from BoneReconstructionLib.errors import InputError


def chosen_device(name):
    """A device that can be used, with full precision in its convolutions and products: CPU and GPU have to agree.

    Args:
        name: torch device, or "auto": a GPU where there is one.

    Returns:
        The device's name.

    Raises:
        InputError: torch knows no such device, or it is a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"torch knows no device {name!r}: name cpu, cuda or cuda:<number>.") from error
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"torch finds no GPU {name} here: use --device cpu, or a torch that was built for it.")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    elif device.type != "cpu":
        raise InputError(f"The device {name!r} is not supported: name cpu, cuda or cuda:<number>.")
    return name


def half_on_gpu(device):
    """Context in which convolutions run in bfloat16 while they are trained on a GPU.

    Elsewhere nothing changes: results must be the same on CPU and GPU.

    Args:
        device: torch.device of the images.
    """
    trained_on_gpu = device.type == "cuda" and torch.is_grad_enabled()
    return torch.autocast(device.type, torch.bfloat16, enabled=trained_on_gpu)
