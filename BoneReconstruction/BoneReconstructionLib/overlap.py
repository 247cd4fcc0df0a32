"""Overlap of two masks on the same grid, as the papers define it."""

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import Volume


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice similarity coefficient 2 |a and b| / (|a| + |b|), from 0 (apart) to 1 (equal).

    Args:
        a: bool, any shape.
        b: bool, of the same shape.

    Raises:
        InputError: the shapes differ, the arrays are not bool, or both masks are empty.
    """
    both, sum_ = _counts(a, b)
    return 2 * both / sum_


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard index |a and b| / |a or b|, from 0 (apart) to 1 (equal).

    Args:
        a: bool, any shape.
        b: bool, of the same shape.

    Raises:
        InputError: the shapes differ, the arrays are not bool, or both masks are empty.
    """
    both, sum_ = _counts(a, b)
    return both / (sum_ - both)


def volume_ml(mask: Volume) -> float:
    """Volume of a mask's voxels in millilitres.

    Args:
        mask: a volume of bool.
    """
    voxel_mm3 = abs(np.linalg.det(mask.ijk_to_ras[:3, :3]))
    return float(np.count_nonzero(mask.array) * voxel_mm3 / 1000)


def _counts(a, b):
    if a.dtype != bool or b.dtype != bool:
        raise InputError("Overlap is measured between masks of true and false; choose one label of each.")
    if a.shape != b.shape:
        raise InputError(f"The masks have {a.shape} and {b.shape} voxels; resample one to the other's grid first.")
    sum_ = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    if sum_ == 0:
        raise InputError("Both masks are empty, so that their overlap is undefined; choose others.")
    return int(np.count_nonzero(a & b)), sum_
