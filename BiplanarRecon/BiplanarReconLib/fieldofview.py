"""What both X-rays show: the part of space that both beams cross, and bones cut off where it ends."""

import numpy as np

from BoneReconstructionLib.meshing import cut_to, voxelize
from BoneReconstructionLib.volumes import Volume

LABEL_SPACING_MM = 0.5


def in_both(points, geometries):
    """(n,) bool: which of (n, 3) RAS points lie in every view's frustum."""
    return np.all([geometry.contains(points) for geometry in geometries], axis=0)


def cut_to_views(surface, geometries):
    """Cut a bone off where an X-ray ends and close it with flat caps.

    Args:
        surface: closed, RAS mm.
        geometries: `XrayGeometry`s.

    Returns:
        Surface, empty where no part of the bone lies in all views.
    """
    return cut_to(surface, [side for geometry in geometries for side in geometry.sides()])


def labelmap(surfaces):
    """Bones as labels of one volume.

    Args:
        surfaces: closed surfaces, RAS mm, one at least not empty.

    Returns:
        `Volume` of uint8: n inside the n-th surface, counted from 1; where bones overlap the later one.
    """
    vertices = np.concatenate([surface.vertices for surface in surfaces])
    low, high = vertices.min(0) - LABEL_SPACING_MM, vertices.max(0) + LABEL_SPACING_MM
    matrix = np.diag([LABEL_SPACING_MM] * 3 + [1.0])
    matrix[:3, 3] = low
    labels = np.zeros(np.ceil((high - low) / LABEL_SPACING_MM).astype(int)[::-1] + 1, dtype=np.uint8)
    for number, surface in enumerate(surfaces, start=1):
        labels[voxelize(surface, labels.shape, matrix).array] = number
    return Volume(labels, matrix)
