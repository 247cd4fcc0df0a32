"""Where the scan ends: what of a predicted bone lies beyond it, and the bone cut off there."""

import numpy as np

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.meshing import cut_off
from BoneReconstructionLib.surfaces import Surface

ON_PLANE_MM = 1e-3


def beyond_scan_mm(points, shape_kji, ijk_to_ras):
    """How far points lie beyond the scan's nearest side that they have passed, by the edges of its voxels.

    Args:
        points: (n, 3) RAS, mm.
        shape_kji: number of the scan's voxels.
        ijk_to_ras: (4, 4) frame of the scan.

    Returns:
        (n,) mm; negative inside, where it is the distance to the nearest side.
    """
    ijk = transform_points(np.linalg.inv(ijk_to_ras), points)
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    return (np.maximum(-0.5 - ijk, ijk - (np.array(shape_kji[::-1]) - 0.5)) * spacing).max(1)


def cut_at_scan_end(surface, shape_kji, ijk_to_ras):
    """Cut a bone off at the six sides of the scan and close it with flat caps.

    Args:
        surface: closed, RAS, mm.
        shape_kji: number of the scan's voxels.
        ijk_to_ras: (4, 4) frame of the scan.

    Returns:
        (Surface, (n,) bool of its vertices that lie on a cap).
    """
    low, high = transform_points(ijk_to_ras, [np.full(3, -0.5), np.array(shape_kji[::-1]) - 0.5])
    # Near the origin single precision does no harm.
    centre = (low + high) / 2
    axes = (ijk_to_ras[:3, :3] / np.linalg.norm(ijk_to_ras[:3, :3], axis=0)).T
    cut = Surface(surface.vertices - centre, surface.faces)
    for corner, sign in ((low - centre, 1), (high - centre, -1)):
        for axis in axes:
            if ((cut.vertices - corner) @ axis * sign > 0).all():
                continue
            cut = cut_off(cut, corner, sign * axis)
    cut = Surface(cut.vertices + centre, cut.faces)
    return cut, beyond_scan_mm(cut.vertices, shape_kji, ijk_to_ras) > -ON_PLANE_MM
