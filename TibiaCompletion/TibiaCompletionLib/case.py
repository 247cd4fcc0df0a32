"""One fractured tibia: what is visible of it, checked, and brought to the right side."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, side_to_right, transform_points
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.shapefitting import VisibleSurface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.threads import together
from BoneReconstructionLib.volumes import Volume, bounding_box, crop

SHORTEST_VISIBLE_MM = 80.0
# Bone nearer than this to the mask or to the scan's end is not trusted: its label was cut or smoothed there.
MARGIN_VOXELS = 2
# The mask may leave out the broken bone's label, but it has to touch the bone.
REACH_MM = 5.0
BOX_MARGIN_MM = 15.0
# Cross-sections that are cut are at least this large, and a few millimetres further inside hardly larger; a bone that
# just fits into its volume widens fast from where it touches it.
SMALLEST_CUT_MM2, INSIDE_MM, LEAST_SHARE = 150.0, 3.0, 0.6
NEIGHBOURS = ("fibula", "femur", "talus")
SMALLEST_PIECE = 0.01
PIECES_MARGIN = 3


@dataclass(frozen=True, eq=False)
class TibiaCase:
    """The input of every completion method.

    Attributes:
        tibia: bool volume of the segmented bone, cropped to it with a margin; RAS.
        fracture: bool volume on the same grid, True where nothing may be believed.
        read_ct: returns the CT in HU on the same grid, read once; only what looks at intensities calls it.
        surface: surface of the segmented bone, RAS mm.
        trusted: (n,) bool, vertices of `surface` that are visible healthy bone.
        piece: (n,) int, which visible piece each vertex belongs to; 0 is the one that fixes the pose.
        piece_volumes_ml: volume of each piece.
        neighbours: {"fibula", "femur" or "talus": (surface, trusted)} of bones that say where the joints are.
        other_tibia: the other leg's healthy tibia, closed, as it lies in its own scan, RAS mm, where it is known.
    """

    tibia: Volume
    fracture: Volume
    read_ct: Callable[[], Volume]
    surface: Surface
    trusted: np.ndarray
    piece: np.ndarray
    piece_volumes_ml: tuple[float, ...]
    neighbours: dict[str, tuple[Surface, np.ndarray]] = field(default_factory=dict)
    other_tibia: Surface | None = None

    def neighbour(self, bone, side):
        """A visible neighbouring bone as one of the right leg, or None where it is not given."""
        if bone not in self.neighbours:
            return None
        surface, trusted = self.neighbours[bone]
        return VisibleSurface(transformed(surface, side_to_right(side)), trusted)

    def visible(self, side):
        """The visible bone as a right one, if it is of `side` ("left" or "right")."""
        return self._visible[side]

    @cached_property
    def _visible(self):
        """What `visible` returns, by side: it is asked for often and remembers its normals and search trees."""
        right = {side: transformed(self.surface, side_to_right(side)) for side in SIDES}
        return {side: VisibleSurface(surface, self.trusted, self.piece) for side, surface in right.items()}


def make_case(tibia, fracture, read_ct, fixed_piece=1, neighbours=None, whole=False):
    """Check masks that share the CT's geometry and prepare them.

    Args:
        tibia: bool volume of the segmented tibia, RAS.
        fracture: bool volume of the coarse fracture mask on the same grid.
        read_ct: see `TibiaCase`; it is given the lower and upper voxel of the crop, k j i.
        fixed_piece: number of the visible piece that fixes the pose, counted from the largest, 1.
        neighbours: {bone of `NEIGHBOURS`: its bool volume on the same grid}.
        whole: the bone is known not to be broken; the fracture mask may be empty then.

    Returns:
        TibiaCase.

    Raises:
        InputError: empty tibia or mask; mask beside the tibia or over all of it; too little visible bone; no such
            piece.
    """
    masked = fracture.array.any()
    if not masked and not whole:
        raise InputError("The fracture mask is empty: draw it coarsely over the broken bone.")
    if not tibia.array.any():
        raise InputError("The tibia segment is empty: segment the tibia first.")
    tibia = _without_specks(tibia)
    lower, upper, at_border = _box(tibia)
    tibia, fracture = crop(tibia, lower, upper), crop(fracture, lower, upper)

    visible = tibia.array & ~fracture.array
    if not visible.any():
        raise InputError("The fracture mask covers the whole tibia: leave healthy bone outside it.")
    near = _grown(fracture.array, 2 * MARGIN_VOXELS + 1)
    reach = tuple(2 * np.ceil(REACH_MM / tibia.spacing[::-1]).astype(int) + 1)
    if masked and not (near & tibia.array).any() and not (_grown(fracture.array, reach) & tibia.array).any():
        raise InputError("The fracture mask lies beside the tibia: draw it over the broken part of this bone.")

    surface, pieces = together([lambda: mask_surface(tibia), lambda: _Pieces.of(visible)])
    volumes = [float(size * np.prod(tibia.spacing) / 1000) for size in pieces.sizes]
    index = _voxels(surface, tibia)
    if not 1 <= fixed_piece <= len(volumes):
        raise InputError(
            f"There is no visible piece {fixed_piece}: the mask leaves {len(volumes)}, counted from the largest."
        )
    order = [fixed_piece, *(number for number in range(1, len(volumes) + 1) if number != fixed_piece)]
    found = pieces.around(index)
    trusted = ~_with_border(near, at_border)[index] & (found > 0)
    piece = np.argsort([0, *order])[np.maximum(found, 1)] - 1
    axis = np.linalg.svd(surface.vertices - surface.vertices.mean(0), full_matrices=False)[2][0]
    check_visible_length(surface.vertices[trusted], axis)

    @cache
    def cropped_ct():
        ct = read_ct(lower, upper)
        return Volume(ct.array.copy(), ct.ijk_to_ras)  # a view would keep the whole CT in the memory

    return TibiaCase(
        tibia,
        fracture,
        cropped_ct,
        surface,
        trusted,
        piece,
        tuple(volumes[number - 1] for number in order),
        {bone: _visible_neighbour(mask) for bone, mask in (neighbours or {}).items() if mask.array.any()},
    )


def beyond_cuts(mask, shape_kji, ijk_to_ras):
    """Find where a mask says nothing because its own volume ends inside the bone.

    Args:
        mask: bool volume as it was read.
        shape_kji, ijk_to_ras: the CT's grid.

    Returns:
        (K, J, I) bool on the CT's grid: voxels beyond a face of the mask's volume that cuts through the bone.
    """
    beyond = np.zeros(shape_kji, dtype=bool)
    to_mask = mask.ras_to_ijk @ ijk_to_ras
    spacing = mask.spacing[::-1]
    for axis in range(3):
        voxel_mm2, inside = np.prod(spacing) / spacing[axis], int(np.ceil(INSIDE_MM / spacing[axis]))
        layers = np.moveaxis(mask.array, axis, 0)
        cut = []
        for layer, within in ((layers[0], layers[:inside][-1]), (layers[-1], layers[-inside:][0])):
            area = np.count_nonzero(layer)
            cut.append(area * voxel_mm2 > SMALLEST_CUT_MM2 and area > LEAST_SHARE * np.count_nonzero(within))
        if not any(cut):
            continue
        i, j, k, shift = to_mask[2 - axis]
        place = sum(step * index for step, index in zip((k, j, i), np.ogrid[tuple(map(slice, shape_kji))])) + shift
        beyond |= (cut[0] & (place < -0.5)) | (cut[1] & (place > mask.shape[axis] - 0.5))
    return beyond


def _box(mask):
    """Lower and upper voxel (k j i) of a mask with a margin, and which of each end at the volume's border."""
    lower, upper = bounding_box(mask.array)
    margin = np.ceil(BOX_MARGIN_MM / mask.spacing[::-1]).astype(int)
    lower, upper = np.maximum(lower - margin, 0), np.minimum(upper + margin, mask.shape)
    return lower, upper, (lower == 0, upper == np.array(mask.shape))


def _with_border(hidden, at_border):
    """The voxels of a crop that are hidden, and those at the scan's end (`at_border`: lower, upper) or nearly so."""
    hidden = hidden.copy()
    for axis in range(3):
        edge = np.moveaxis(hidden, axis, 0)
        if at_border[0][axis]:
            edge[:MARGIN_VOXELS] = True
        if at_border[1][axis]:
            edge[-MARGIN_VOXELS:] = True
    return hidden


def _grown(mask, size):
    """A bool array dilated by a box of `size` voxels, one number or three."""
    if not mask.any():
        return mask.copy()
    lower, upper = bounding_box(mask)
    reach = np.broadcast_to(size, 3) // 2
    box = tuple(slice(max(low - by, 0), high + by) for low, high, by in zip(lower, upper, reach))
    grown = np.zeros(mask.shape, dtype=bool)
    grown[box] = ndimage.maximum_filter(mask[box].view(np.uint8), size)
    return grown


def _voxels(surface, volume):
    """Index (k, j, i arrays) of the voxel that each vertex lies in."""
    index = np.rint(transform_points(volume.ras_to_ijk, surface.vertices)).astype(int)[:, ::-1]
    return tuple(np.clip(index, 0, np.array(volume.shape) - 1).T)


def _visible_neighbour(mask):
    """(surface, trusted) of a neighbouring bone; the fracture mask is the tibia's and hides nothing of it."""
    mask = _without_specks(mask)
    lower, upper, at_border = _box(mask)
    bone = crop(mask, lower, upper)
    surface = mask_surface(bone)
    return surface, ~_with_border(np.zeros(bone.shape, dtype=bool), at_border)[_voxels(surface, bone)]


def visible_length_mm(points, axis):
    """How many millimetres along the unit vector `axis` (n, 3) surface points carry bone, gaps not counted."""
    return len(np.unique(np.floor(points @ axis / 2.0))) * 2.0 if len(points) > 100 else 0.0


def check_visible_length(points, axis):
    """Refuse a case that shows too little bone along its long axis; gaps do not count.

    Args:
        points: (n, 3) trusted vertices, mm.
        axis: (3,) unit vector along the bone.

    Raises:
        InputError: less than `SHORTEST_VISIBLE_MM`.
    """
    length = visible_length_mm(points, axis)
    if length < SHORTEST_VISIBLE_MM:
        raise InputError(
            f"Only {length:.0f} mm of healthy tibia is visible outside the mask and {SHORTEST_VISIBLE_MM:.0f} mm is "
            "needed: make the mask smaller or use a scan that shows more of the bone."
        )


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Connected pieces of visible bone, numbered from the largest, 1; specks are left out.

    Attributes:
        numbers: (K, J, I) uint8 number of each voxel's piece, 0 for none, in a box around the visible bone with a margin
            of `PIECES_MARGIN` voxels.
        sizes: voxels of each piece.
        lower: (3,) index k j i of that box's first voxel.
    """

    numbers: np.ndarray
    sizes: np.ndarray
    lower: np.ndarray

    @classmethod
    def of(cls, visible):
        lower, upper = (np.array(corner) for corner in bounding_box(visible))
        box = np.pad(visible[tuple(map(slice, lower, upper))], PIECES_MARGIN)
        return cls(*_components(box, diagonal=True), lower - PIECES_MARGIN)

    def around(self, index):
        """Number (n,) of the piece in a voxel (k, j, i arrays) or beside it; a surface runs between bone and others."""
        shape = self.numbers.shape
        # Voxels outside the box stay outside the bone: the margin is wider than what is looked at.
        inside = [np.clip(place - low, 1, size - 2) for place, low, size in zip(index, self.lower, shape, strict=True)]
        flat, centre = self.numbers.ravel(), np.ravel_multi_index(inside, shape)
        steps = np.ravel_multi_index(np.indices((3, 3, 3)).reshape(3, -1), shape)
        steps -= np.ravel_multi_index((1, 1, 1), shape)
        return np.max([flat[centre + step] for step in steps], axis=0)


def _components(mask, diagonal):
    """Number the connected parts of a bool array, with `diagonal` across edges and corners, too; specks are left out.

    Returns:
        (uint8 array of numbers from the largest, 1; 0 outside them; voxels of each).
    """
    import SimpleITK as sitk

    image = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.view(np.uint8)), diagonal)
    labels = sitk.GetArrayViewFromImage(image)
    sizes = np.bincount(labels[mask])
    order = np.argsort(sizes)[::-1]
    order = order[sizes[order] >= SMALLEST_PIECE * sizes.max()]
    number = np.zeros(len(sizes), dtype=np.uint8)
    number[order] = np.arange(1, len(order) + 1)
    return number[labels], sizes[order]


def _without_specks(mask):
    """Drop components smaller than a hundredth of the largest; thresholding leaves such specks."""
    box = tuple(slice(low, high) for low, high in zip(*bounding_box(mask.array), strict=True))
    numbers, sizes = _components(np.ascontiguousarray(mask.array[box]), diagonal=False)
    if sizes.sum() == np.count_nonzero(mask.array):
        return mask
    kept = np.zeros_like(mask.array)
    kept[box] = numbers > 0
    return Volume(kept, mask.ijk_to_ras)
