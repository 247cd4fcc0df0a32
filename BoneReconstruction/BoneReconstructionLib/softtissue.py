"""The soft tissue of virtual legs: muscle with septa of fat, fat under the skin, skin, and air around it.

The outline is a stack of ellipses about tibia and fibula, given for the mean tibia (standard frame, right, mm) and
warped with it, joined smoothly with what covers the bones.
"""

import numpy as np
import torch
from torch.nn import functional

AIR_HU = -1000.0
# Muscle compartment of a usual right leg: height in the mean tibia's frame (mm), centre x, y and half widths in x, y.
# Girths with fat and skin: ankle about 22 cm, calf 38 cm (ANSUR II: Gordon et al., NATICK/TR-15/007, 2014).
OUTLINE = np.array(
    [
        (-300.0, 2, 35, 20, 60),
        (-262.0, 2, 25, 30, 72),
        (-232.0, 1, 3, 29, 46),
        (-205.0, 1, -9, 27, 36),
        (-170.0, 2, -14, 24, 32),
        (-120.0, 3, -16, 26, 33),
        (-60.0, 4, -20, 32, 38),
        (0.0, 4, -24, 40, 45),
        (50.0, 4, -26, 44, 49),
        (100.0, 2, -24, 43, 49),
        (150.0, 0, -17, 44, 49),
        (200.0, 0, -12, 48, 53),
        (320.0, 0, -10, 60, 66),
    ]
)
SOLE_MM = -283.0
# Muscle or tendon over bone, and how widely the bones' cover blends into the outline.
COVER_MM, BLEND_MM = 1.0, 8.0
# Fat under the skin of the shin, relative to that of the calf.
SHIN_FAT = 0.4
SEPTUM_CORRELATION_MM = (11.0, 11.0, 60.0)
OUTLINE_CORRELATION_MM = (22.0, 22.0, 45.0)


def muscle_depth(source, size, outline=OUTLINE):
    """How deep points lie in the usual muscles of a limb.

    Args:
        source: (n, 3) tensor of points in the mean bone's space, mm.
        size: width of the muscles relative to the usual.
        outline: rows of height, centre and half widths as in `OUTLINE`.

    Returns:
        (depth below the muscles' surface (n,) in mm, how far behind the axis (n,), relative to the half width).
    """
    heights, *columns = (torch.as_tensor(c, dtype=source.dtype, device=source.device) for c in outline.T)
    x, y, z = source.T
    above = torch.searchsorted(heights, z.contiguous()).clamp(1, len(heights) - 1)
    share = ((z - heights[above - 1]) / (heights[above] - heights[above - 1])).clamp(0, 1)
    centre_x, centre_y, width, depth = (c[above - 1] + share * (c[above] - c[above - 1]) for c in columns)
    a, b = (x - centre_x) / (width * size), (y - centre_y) / (depth * size)
    level = torch.sqrt(a * a + b * b + 1e-12)
    slope = torch.sqrt((a / width) ** 2 + (b / depth) ** 2 + 1e-12) / size
    return level * (1 - level) / slope, -b


def soft_tissue(tissue, muscle, behind, bone_distance, septa):
    """Where the layers of soft tissue are, as fields that can be interpolated between the points.

    Args:
        tissue: {field of `PatientRanges`: value}.
        muscle: (n,) tensor, depth below the surface of the muscles before they cover the bones, mm.
        behind: (n,) how far behind the limb's axis, relative to its half width.
        bone_distance: (n,) distance to the nearest bone, mm, positive outside.
        septa: (n,) values of the field whose zeros are septa.

    Returns:
        (3, n): depth below the surface of the muscles in mm; depth below the skin in mm; distance from the nearest
        septum in mm, with a sign.
    """
    muscle = joined(muscle, COVER_MM - bone_distance)
    fat = tissue["fat_mm"] * (SHIN_FAT + (1 - SHIN_FAT) * torch.sigmoid(behind * 3))
    # Septa end at the bones, so that lost bone gives way to muscle.
    septum = septa + 4 * torch.clamp(1 - bone_distance / 6, 0, 1)
    return torch.stack([muscle, muscle + fat + tissue["skin_mm"], septum * SEPTUM_CORRELATION_MM[0]])


def joined(first, second, blend=BLEND_MM):
    """The greater of two depths, rounded where they differ by less than `blend` mm."""
    overlap = torch.clamp(blend - (first - second).abs(), 0)
    return torch.maximum(first, second) + overlap * overlap / (4 * blend)


def soft_tissue_hu(tissue, fields, shape_kji, ramp):
    """HU of the soft tissue and the air around it.

    Args:
        tissue: {field of `PatientRanges`: value}.
        fields: (3, k, j, i) of `soft_tissue` at the centres of blocks of voxels.
        shape_kji: (K, J, I) voxels of all blocks.
        ramp: width of the step between two tissues, mm.

    Returns:
        (K, J, I) tensor.
    """
    muscle, skin, septum = functional.interpolate(fields[None] / ramp, shape_kji, mode="trilinear")[0]
    half_septum = tissue["septum_mm"] / 2 / ramp
    share = septum.abs_().add_(0.5 - half_septum) if half_septum > 0 else torch.ones_like(septum)
    share = torch.minimum(share, muscle.add_(0.5)).clamp_(0, 1)
    hu = share.mul_(tissue["soft_tissue_hu"] - tissue["fat_hu"]).add_(tissue["fat_hu"] - tissue["skin_hu"])
    hu *= (skin + (0.5 - tissue["skin_mm"] / ramp)).clamp_(0, 1)
    hu += tissue["skin_hu"] - AIR_HU
    hu *= skin.add_(0.5).clamp_(0, 1)
    return hu.add_(AIR_HU)
