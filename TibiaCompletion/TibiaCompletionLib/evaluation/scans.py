"""Scans of real legs: an oblique grid around the bone and the CT that the training's plain renderer would make of it.

The plain renderer is that of the virtual patients, in numpy and without what may be switched off in them: cortical
shell, inside, muscle all around, blur and white noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import rotation_about, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume, resample

# Distances are known up to this far from the surface and cut off beyond.
REACH_MM = 12.0
FIELD_SPACING_MM = 1.5
SIDE_MARGIN_MM = 18.0
END_MARGIN_MM = 35.0
TILT_DEGREES = (4.0, 9.0)
SPACING_MM = (0.7, 0.7, 1.0)

# Of the ranges of the training's virtual patients (`virtualpatients.PatientRanges`); torch is not needed here.
TRAINED_RANGES = {
    "shaft_cortex_mm": (3.5, 5.5),
    "end_cortex_mm": (0.9, 1.6),
    "cortical_hu": (1150.0, 1600.0),
    "cancellous_hu": (120.0, 320.0),
    "marrow_hu": (-80.0, 20.0),
    "soft_tissue_hu": (30.0, 70.0),
    "blur_mm": (0.4, 0.7),
    "noise_hu": (10.0, 30.0),
}


@dataclass(frozen=True, eq=False)
class Scan:
    """A healthy leg's CT in the making, which fractures can still be cut into.

    Attributes:
        tibia: bool volume, the true bone.
        neighbours: {bone: bool volume} on the same grid.
        distance: (K, J, I) float32, signed distance to the tibia in mm, positive outside, cut off at `REACH_MM`.
        sharp: (K, J, I) float32 HU before the scanner's blur and noise.
        soft_tissue_hu: what takes the place of bone that is gone.
        scanned: makes an image in HU of a sharp one: blur and noise.
        segmented: makes the tibia's input mask of (true mask (K, J, I) bool, function that returns the CT
            (K, J, I) HU).
    """

    tibia: Volume
    neighbours: dict[str, Volume]
    distance: np.ndarray
    sharp: np.ndarray
    soft_tissue_hu: float
    scanned: Callable[[np.ndarray], np.ndarray]
    segmented: Callable[[np.ndarray, Callable[[], np.ndarray]], np.ndarray]


class DistanceField:
    """Signed distance of a closed surface on a coarse grid in its own frame, exact there and linear between.

    Args:
        surface: closed, RAS mm.
        lower: (3,) corner of the box, RAS, beyond which nothing is asked.
        upper: (3,) its other corner.
    """

    def __init__(self, surface, lower=-np.inf, upper=np.inf):
        low = np.maximum(surface.vertices.min(0) - REACH_MM - FIELD_SPACING_MM, lower)
        high = np.minimum(surface.vertices.max(0) + REACH_MM + FIELD_SPACING_MM, upper)
        shape = tuple(np.maximum(np.ceil((high - low) / FIELD_SPACING_MM), 1).astype(int)[::-1] + 1)
        matrix = np.diag([FIELD_SPACING_MM] * 3 + [1.0])
        matrix[:3, 3] = low
        inside = voxelize(surface, shape, matrix).array
        rough = np.full(shape, REACH_MM, dtype=np.float32)
        if inside.any():
            rough = ndimage.distance_transform_edt(~inside, FIELD_SPACING_MM).astype(np.float32)
            rough -= ndimage.distance_transform_edt(inside, FIELD_SPACING_MM).astype(np.float32)
        near = np.abs(rough) < REACH_MM + 2 * FIELD_SPACING_MM
        points = transform_points(matrix, np.argwhere(near)[:, ::-1])
        if len(points):
            rough[near] = SurfaceLocator(surface).signed(points)
        self.volume = Volume(np.clip(rough, -REACH_MM, REACH_MM), matrix)

    def on_grid(self, shape_kji, ijk_to_ras):
        """(K, J, I) float32 distances at a grid's voxel centres, mm."""
        return resample(self.volume, shape_kji, ijk_to_ras, "linear", REACH_MM).array

    def at(self, points):
        """(n,) float32 distances at RAS points, mm."""
        index = transform_points(self.volume.ras_to_ijk, points)[:, ::-1].T
        return ndimage.map_coordinates(self.volume.array, index, order=1, mode="constant", cval=REACH_MM)


@dataclass(frozen=True, eq=False)
class LongBone:
    """A bone to be rendered.

    Attributes:
        surface: closed, RAS mm.
        field: its `DistanceField`.
        low: (3,) its distal end on the long axis.
        along: (3,) vector along the axis, divided by the squared length, so that (p - low) @ along runs from 0 to 1.
    """

    surface: Surface
    field: DistanceField
    low: np.ndarray
    along: np.ndarray

    def heights(self, points):
        """(n,) place of RAS points along the bone, 0 distal to 1 proximal."""
        return (points - self.low) @ self.along


def long_bones(leg, shape_kji, ijk_to_ras):
    """{bone: `LongBone`} of a leg's tibia and neighbours, of what lies near a grid."""
    corners = np.array(np.meshgrid(*([-0.5, size - 0.5] for size in shape_kji[::-1]))).reshape(3, -1).T
    corners = transform_points(ijk_to_ras, corners)
    bones = {}
    for name, surface in {"tibia": leg.tibia, **leg.neighbours}.items():
        centre = surface.vertices.mean(0)
        axis = np.linalg.svd(surface.vertices - centre, full_matrices=False)[2][0]
        axis = axis * np.sign(axis @ leg.axes[2])
        heights = (surface.vertices - centre) @ axis
        field = DistanceField(surface, corners.min(0) - REACH_MM, corners.max(0) + REACH_MM)
        bones[name] = LongBone(surface, field, centre + heights.min() * axis, axis / np.ptp(heights))
    return bones


def oblique_grid(leg, spacing_mm, generator, flipped="ij"):
    """A scanner's grid, turned against the leg, that holds the tibia with a margin.

    Args:
        leg: the `Leg`.
        spacing_mm: (3,) along i, j, k.
        generator: numpy.random.Generator of tilt and turn.
        flipped: axes of "ijk" that run against R, A or S.

    Returns:
        ((K, J, I), (4, 4) ijk_to_ras).
    """
    azimuth = generator.uniform(0, 2 * np.pi)
    tilt = rotation_about(
        (np.cos(azimuth), np.sin(azimuth), 0.0), np.radians(generator.uniform(*TILT_DEGREES))
    )
    frame = tilt @ rotation_about((0.0, 0.0, 1.0), np.radians(generator.uniform(-25, 25)))
    frame = leg.axes.T * [np.sign(np.linalg.det(leg.axes)), 1, 1] @ frame
    frame = frame * [-1.0 if axis in flipped else 1.0 for axis in "ijk"]
    local = leg.tibia.vertices @ frame
    margin = np.array([SIDE_MARGIN_MM, SIDE_MARGIN_MM, END_MARGIN_MM])
    low, high = local.min(0) - margin, local.max(0) + margin
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, :3] = frame * spacing_mm
    ijk_to_ras[:3, 3] = frame @ low
    return tuple(np.ceil((high - low) / spacing_mm).astype(int)[::-1]), ijk_to_ras


def bone_hu(tissue, distance, height):
    """HU inside a bone as the virtual patients have it.

    Args:
        tissue: {name of `TRAINED_RANGES`: value}.
        distance: (n,) signed distance in mm, negative inside.
        height: (n,) place along the bone, 0 to 1.
    """
    shaft = np.clip((height - 0.06) / 0.2, 0, 1) * np.clip((0.93 - height) / 0.22, 0, 1)
    shaft = shaft * shaft * (3 - 2 * shaft)
    thickness = tissue["end_cortex_mm"] + (tissue["shaft_cortex_mm"] - tissue["end_cortex_mm"]) * shaft
    cortex = tissue["cortical_hu"] * (0.7 + 0.3 * shaft)
    inside = tissue["cancellous_hu"] + (tissue["marrow_hu"] - tissue["cancellous_hu"]) * shaft
    depth = np.clip((-distance - thickness) / 1.0 + 0.5, 0, 1)
    return cortex + depth * (inside - cortex)


def trained_scan(leg, seed, grid=None):
    """Scan a leg as the training's virtual patients are scanned; the segmentation is the true bone.

    Args:
        leg: the `Leg`.
        seed: integers, of grid, tissue and noise.
        grid: ((K, J, I), (4, 4) ijk_to_ras); None for an oblique one around the tibia.
    """
    generator = np.random.default_rng(seed)
    shape, ijk_to_ras = oblique_grid(leg, np.array(SPACING_MM), generator) if grid is None else grid
    spacing = np.array(SPACING_MM) if grid is None else np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    tissue = {name: float(generator.uniform(*limits)) for name, limits in TRAINED_RANGES.items()}
    sharp = np.full(shape, tissue["soft_tissue_hu"], dtype=np.float32)
    masks = {}
    for name, bone in long_bones(leg, shape, ijk_to_ras).items():
        masks[name] = voxelize(bone.surface, shape, ijk_to_ras)
        distance = bone.field.on_grid(shape, ijk_to_ras)
        if name == "tibia":
            to_tibia = distance
        place = np.nonzero(distance < spacing.min())
        points = transform_points(ijk_to_ras, np.stack(place[::-1], 1))
        share = np.clip(0.5 - distance[place] / spacing.min(), 0, 1)
        sharp[place] += share * (bone_hu(tissue, distance[place], bone.heights(points)) - sharp[place])

    def scanned(image):
        blurred = ndimage.gaussian_filter(image, (tissue["blur_mm"] / spacing)[::-1], mode="nearest", truncate=3.0)
        noise = np.random.default_rng([*seed, 1]).standard_normal(image.shape, dtype=np.float32)
        return blurred + np.float32(tissue["noise_hu"]) * noise

    tibia = masks.pop("tibia")
    return Scan(
        tibia, masks, to_tibia, sharp, tissue["soft_tissue_hu"], scanned, lambda mask, read_ct: mask
    )
