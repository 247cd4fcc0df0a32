"""Registers the visible bone of a case by the mask-robust STN."""

import numpy as np
import torch
from torch.nn import functional

from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.imagemetrics import windowed
from BoneReconstructionLib.volumes import Volume, resample
from TibiaCompletionLib.registration.network import affine_matrix, sample

MODEL_ID = "tibia-stn-masked"
# What is nearly aligned already is registered more precisely.
TIMES = 2


def visible_image(case, side, matrix, grid):
    """The paper's masked image of a case, on the standard grid placed by a similarity.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) similarity from the standard frame to the right-sided data.
        grid: `StandardGrid`.

    Returns:
        (image, hidden): (1, 1, K, J, I) float32 tensor in [0, 1], zero outside the visible bone, and the bool tensor
        of what is masked or outside the case's box.
    """
    ijk_to_ras = side_to_right(side) @ matrix @ grid.ijk_to_standard
    ct = case.read_ct()
    bone = Volume(windowed(ct.array) * (case.tibia.array & ~case.fracture.array), ct.ijk_to_ras)
    image = resample(bone, grid.shape_kji, ijk_to_ras)
    hidden = resample(Volume(case.fracture.array.astype(np.float32), ct.ijk_to_ras), grid.shape_kji, ijk_to_ras, fill=1)
    return torch.from_numpy(image.array)[None, None], torch.from_numpy(hidden.array > 0.5)[None, None]


@torch.inference_mode()
def register(locnet, images, grid, locnet_grid, times=1):
    """Align images by a LocNet, asked once as in the paper or again about what it has aligned itself.

    Args:
        locnet: `LocNet`.
        images: (N, 1, K, J, I) tensor with values in [0, 1].
        grid: `StandardGrid` of the images.
        locnet_grid: `StandardGrid` that the LocNet sees, a whole number of times coarser.
        times: how often it is asked.

    Returns:
        (aligned images, (N, 4, 4) float64 tensor of the matrices that take standard points to the images' points, mm).
    """
    factor = grid.shape_kji[0] // locnet_grid.shape_kji[0]
    images = images.float()
    aligned, matrix = images, torch.eye(4, device=images.device).expand(len(images), 4, 4)
    for _ in range(times):
        matrix = matrix @ affine_matrix(locnet(functional.avg_pool3d(aligned, factor)))
        aligned = sample(images, matrix, grid)
    return aligned, matrix.double()
