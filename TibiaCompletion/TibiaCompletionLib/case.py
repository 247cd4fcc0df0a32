"""One fractured tibia: what is visible of it, checked, and brought to the right side."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.shapefitting import VisibleSurface
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.volumes import Volume, bounding_box, crop

SHORTEST_VISIBLE_MM = 80.0
# Bone nearer than this to the mask or to the scan's end is not trusted: its label was cut or smoothed there.
MARGIN_VOXELS = 2
# The mask may leave out the broken bone's label, but it has to touch the bone.
REACH_MM = 5.0
BOX_MARGIN_MM = 15.0
SMALLEST_PIECE = 0.01


@dataclass(frozen=True, eq=False)
class TibiaCase:
    """The input of every completion method.

    Attributes:
        tibia: bool volume of the segmented bone, cropped to it with a margin; RAS.
        fracture: bool volume on the same grid, True where nothing may be believed.
        read_ct: returns the CT in HU on the same grid; only methods that look at intensities call it.
        surface: surface of the segmented bone, RAS mm.
        trusted: (n,) bool, vertices of `surface` that are visible healthy bone.
    """

    tibia: Volume
    fracture: Volume
    read_ct: Callable[[], Volume]
    surface: object
    trusted: np.ndarray

    def visible(self, side):
        """The visible bone as a right one, if it is of `side` ("left" or "right")."""
        return VisibleSurface(transformed(self.surface, side_to_right(side)), self.trusted)


def make_case(tibia, fracture, read_ct):
    """Check masks that share the CT's geometry and prepare them.

    Args:
        tibia: bool volume of the segmented tibia, RAS.
        fracture: bool volume of the coarse fracture mask on the same grid.
        read_ct: see `TibiaCase`; it is given the lower and upper voxel of the crop, k j i.

    Returns:
        TibiaCase.

    Raises:
        InputError: empty tibia or mask; mask beside the tibia or over all of it; too little visible bone.
    """
    if not fracture.array.any():
        raise InputError("The fracture mask is empty: draw it coarsely over the broken bone.")
    if not tibia.array.any():
        raise InputError("The tibia segment is empty: segment the tibia first.")
    spacing = tibia.spacing
    lower, upper = bounding_box(tibia.array)
    margin = np.ceil(BOX_MARGIN_MM / spacing[::-1]).astype(int)
    lower, upper = np.maximum(lower - margin, 0), np.minimum(upper + margin, tibia.shape)
    at_border = [lower == 0, upper == np.array(tibia.shape)]
    tibia, fracture = crop(tibia, lower, upper), crop(fracture, lower, upper)
    tibia = Volume(_without_specks(tibia.array), tibia.ijk_to_ras)

    visible = tibia.array & ~fracture.array
    if not visible.any():
        raise InputError("The fracture mask covers the whole tibia: leave healthy bone outside it.")
    reach = tuple(2 * np.ceil(REACH_MM / spacing[::-1]).astype(int) + 1)
    if not (ndimage.maximum_filter(fracture.array.view(np.uint8), reach) & tibia.array).any():
        raise InputError("The fracture mask lies beside the tibia: draw it over the broken part of this bone.")

    surface = mask_surface(tibia)
    hidden = ndimage.maximum_filter(fracture.array.view(np.uint8), 2 * MARGIN_VOXELS + 1).astype(bool)
    for axis in range(3):
        edge = np.moveaxis(hidden, axis, 0)
        if at_border[0][axis]:
            edge[:MARGIN_VOXELS] = True
        if at_border[1][axis]:
            edge[-MARGIN_VOXELS:] = True
    index = np.rint(transform_points(np.linalg.inv(tibia.ijk_to_ras), surface.vertices)).astype(int)[:, ::-1]
    index = np.clip(index, 0, np.array(hidden.shape) - 1)
    trusted = ~hidden[tuple(index.T)]
    length = visible_length_mm(surface.vertices[trusted])
    if length < SHORTEST_VISIBLE_MM:
        raise InputError(
            f"Only {length:.0f} mm of healthy tibia is visible outside the mask and {SHORTEST_VISIBLE_MM:.0f} mm is "
            "needed: make the mask smaller or use a scan that shows more of the bone."
        )
    return TibiaCase(tibia, fracture, lambda: read_ct(lower, upper), surface, trusted)


def visible_length_mm(points):
    """How many millimetres along the long axis of (n, 3) surface points carry bone, gaps not counted."""
    if len(points) < 100:
        return 0.0
    axis = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
    return float(len(np.unique(np.floor(points @ axis / 2.0)))) * 2.0


def _without_specks(mask):
    """Drop components smaller than a hundredth of the largest; thresholding leaves such specks."""
    labels, count = ndimage.label(mask)
    if count == 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= SMALLEST_PIECE * sizes.max())[labels]
