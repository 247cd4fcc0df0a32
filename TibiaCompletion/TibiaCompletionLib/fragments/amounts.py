"""How much bone each fragment has in a CT, however it was segmented: neither blur nor a rough mask makes bone."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.volumes import bounding_box, crop, resample

# Bone is what is brighter than soft tissue by more than the noise, up to so far beside the fragments' masks.
SOFT_HU, LEAST_HU, SKIRT_MM = 60.0, 150.0, 2.5
# Voxels are taken together in blocks of about this size.
BLOCK_MM = 1.4


@dataclass(frozen=True, eq=False)
class BoneAmounts:
    """A fragment's bone.

    Attributes:
        points: (n, 3) where there is some, mm; none where a fragment is as dark as soft tissue.
        amounts: (n,) how much, HU * mm^3 above soft tissue.
    """

    points: np.ndarray
    amounts: np.ndarray

    def transformed(self, matrix):
        """The same in another frame."""
        return BoneAmounts(transform_points(matrix, self.points), self.amounts)


def bone_amounts(masks, ct):
    """The bone of each fragment in a CT, that beside its mask included.

    Args:
        masks: bool volumes of the fragments, of any grid.
        ct: volume in HU.

    Returns:
        list of BoneAmounts, RAS, one for each fragment.
    """
    corners = [_corners(mask, ct) for mask in masks]
    margin = np.ceil(SKIRT_MM / ct.spacing[::-1]).astype(int) + 1
    lower = np.min([low for low, _ in corners], 0) - margin
    ct = crop(ct, lower, np.max([high for _, high in corners], 0) + margin)
    labels = np.zeros(ct.shape, dtype=np.uint8)
    for number, mask in enumerate(masks, start=1):
        labels[resample(mask, ct.shape, ct.ijk_to_ras, "nearest").array] = number
    hu = np.asarray(ct.array, dtype=np.float32) - SOFT_HU
    bone = np.argwhere(hu > LEAST_HU)
    owner = labels[tuple(bone.T)]
    beside = np.flatnonzero(owner == 0)
    rim = np.argwhere((labels > 0) & ~ndimage.binary_erosion(labels > 0))
    spacing = ct.spacing[::-1]
    distance, nearest = cKDTree(rim * spacing).query(bone[beside] * spacing, distance_upper_bound=SKIRT_MM)
    near = np.isfinite(distance)
    owner[beside[near]] = labels[tuple(rim[nearest[near]].T)]
    amount = hu[tuple(bone.T)] * np.prod(ct.spacing)
    return [_in_blocks(bone[owner == number], amount[owner == number], ct) for number in range(1, len(masks) + 1)]


def _corners(mask, ct):
    """Lowest and highest k, j, i of a mask's box in a CT."""
    lower, upper = bounding_box(mask.array)
    box = np.array(np.meshgrid(*zip(lower - 0.5, upper - 0.5, strict=True))).reshape(3, -1).T
    place = transform_points(ct.ras_to_ijk @ mask.ijk_to_ras, box[:, ::-1])[:, ::-1]
    return np.floor(place.min(0)).astype(int), np.ceil(place.max(0)).astype(int) + 1


def _in_blocks(kji, amount, ct):
    """`BoneAmounts` of blocks of voxels (n, 3): their centres of mass, RAS, and sums."""
    block = np.maximum(np.rint(BLOCK_MM / ct.spacing[::-1]), 1).astype(int)
    shape = np.array(ct.shape) // block + 1
    number = np.ravel_multi_index(tuple((kji // block).T), shape)
    total = np.bincount(number, amount)
    filled = np.flatnonzero(total)
    middle = np.stack([np.bincount(number, amount * axis)[filled] / total[filled] for axis in kji.T[::-1]], 1)
    return BoneAmounts(transform_points(ct.ijk_to_ras, middle), total[filled])
