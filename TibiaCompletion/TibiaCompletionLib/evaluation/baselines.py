"""What every method has to beat: cross-sections interpolated across the gap, and the other leg mirrored."""

import numpy as np
from scipy import ndimage
from scipy.interpolate import CubicSpline

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.shapefitting import VisibleSurface, start
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, bounding_box, crop
from TibiaCompletionLib.evaluation.registration import laid_on

ANGLES = 72
HEIGHT_STEP_MM, RADIUS_STEP_MM = 1.0, 0.5
LARGEST_RADIUS_MM = 60.0
# Cross-sections are averaged over this height before the spline runs through them: it follows the bone, not its noise.
KNOT_MM = 8.0
MIRROR_POINTS = 3000


def interpolate(case):
    """Interpolate the bone's cross-sections across the masked region.

    Around a straight axis through the visible bone, the radius r(angle, height) of the outermost bone is known where
    no mask lies on the ray. For each angle a cubic spline runs along the height through the known radii; beyond the
    last one, where an end is masked, the cross-section goes on unchanged to the end of the mask, as no radius says
    where the bone ends. Bone outside the mask is kept as it is.

    Args:
        case: `cases.Case`.

    Returns:
        Surface, RAS mm.
    """
    if not case.mask.array.any():
        return mask_surface(case.tibia)
    lower, upper = bounding_box(case.tibia.array | case.mask.array)
    tibia, mask = crop(case.tibia, lower - 2, upper + 2), crop(case.mask, lower - 2, upper + 2)
    visible = tibia.array & ~mask.array
    points = transform_points(tibia.ijk_to_ras, np.argwhere(visible)[:: max(1, visible.sum() // 20000), ::-1])
    centre = points.mean(0)
    axis = np.linalg.svd(points - centre, full_matrices=False)[2][0]
    frame = np.stack([*np.linalg.svd(axis[None])[2][1:], axis])

    voxels = np.argwhere(mask.array)
    places = (transform_points(tibia.ijk_to_ras, voxels[:, ::-1]) - centre) @ frame.T
    heights = np.concatenate([(points - centre) @ axis, places[:, 2]])
    height = np.arange(heights.min(), heights.max() + HEIGHT_STEP_MM, HEIGHT_STEP_MM)
    radius, known = _radii(visible, mask.array, tibia, centre, frame, height)
    filled = np.stack([_filled(height, r, k) for r, k in zip(radius.T, known.T, strict=True)], 1)

    angle = np.arctan2(places[:, 1], places[:, 0]) / (2 * np.pi) * ANGLES
    row = (places[:, 2] - height[0]) / HEIGHT_STEP_MM
    wrapped = np.concatenate([filled, filled[:, :1]], 1)
    limit = ndimage.map_coordinates(wrapped, [row, angle % ANGLES], order=1, mode="nearest")
    bone = visible.copy()
    bone[tuple(voxels.T)] = np.hypot(places[:, 0], places[:, 1]) < limit
    return mask_surface(Volume(bone, tibia.ijk_to_ras))


def mirror(case):
    """Mirror the other leg's tibia and register it rigidly on what is visible.

    The pose is searched with the mean tibia, as for every method, on both bones; robust point-to-plane steps from the
    visible bone to the mirrored one follow.

    Args:
        case: `cases.Case`.

    Returns:
        Surface, RAS mm.

    Raises:
        InputError: the case has no other leg.
    """
    if case.other_tibia is None:
        raise InputError("There is no other leg to mirror.")
    prior = load_prior(TIBIA_PRIOR, "tibia")
    to_right = side_to_right(case.key.side)
    from_other = side_to_right("left" if case.key.side == "right" else "right")
    visible = case.completion_input.visible(case.key.side)
    other = transformed(case.other_tibia, from_other)
    here = start(prior, visible)
    there = start(prior, VisibleSurface.whole(other))
    # Both similarities come with a size; what takes one bone to the other does not.
    motion = here @ np.linalg.inv(there)
    size = np.cbrt(np.linalg.det(motion[:3, :3]))
    middle = visible.surface.vertices[visible.trusted].mean(0)
    motion[:3, 3] = middle + (motion[:3, 3] - middle) / size
    motion[:3, :3] /= size
    moved = transformed(other, motion)
    trusted = visible.surface.vertices[visible.trusted]
    trusted = trusted[np.linspace(0, len(trusted) - 1, min(MIRROR_POINTS, len(trusted))).astype(int)]
    onto = laid_on(trusted, moved, SurfaceLocator(moved))
    placed = transform_points(np.linalg.inv(onto), moved.vertices)
    return transformed(Surface(placed, moved.faces), to_right)


def _radii(visible, mask, volume, centre, frame, height):
    """Radius (heights, angles) of the outermost bone on each ray from the axis, mm, and whether no mask is near it."""
    radius = np.arange(0, LARGEST_RADIUS_MM, RADIUS_STEP_MM)
    angle = np.arange(ANGLES) * 2 * np.pi / ANGLES
    bone = ndimage.gaussian_filter(visible.astype(np.float32), 0.7)
    mask = mask.astype(np.float32)
    found = np.zeros((len(height), ANGLES))
    known = np.zeros((len(height), ANGLES), dtype=bool)
    for column, turn in enumerate(angle):
        ray = radius[:, None] * (np.cos(turn) * frame[0] + np.sin(turn) * frame[1])
        points = (centre + height[:, None] * frame[2])[:, None] + ray
        place = transform_points(volume.ras_to_ijk, points.reshape(-1, 3))[:, ::-1].T
        value = ndimage.map_coordinates(bone, place, order=1).reshape(len(height), -1)
        hidden = ndimage.map_coordinates(mask, place, order=1, mode="nearest").reshape(len(height), -1) > 0
        last = value.shape[1] - 1 - np.argmax(value[:, ::-1] > 0.5, axis=1)
        some = (value > 0.5).any(1)
        inner = value[np.arange(len(height)), last]
        outer = value[np.arange(len(height)), np.minimum(last + 1, len(radius) - 1)]
        share = np.clip((inner - 0.5) / np.maximum(inner - outer, 1e-6), 0, 1)
        found[:, column] = radius[last] + RADIUS_STEP_MM * share
        known[:, column] = some & ~hidden.any(1)
    return found, known


def _filled(height, radius, known):
    """Radii (heights,) with the unknown ones from a cubic spline through the known, averaged over `KNOT_MM`."""
    if not known.any():
        return np.zeros_like(radius)
    group = np.floor((height[known] - height[0]) / KNOT_MM).astype(int)
    _, index = np.unique(group, return_inverse=True)
    count = np.bincount(index)
    knots = np.bincount(index, height[known]) / count
    values = np.bincount(index, radius[known]) / count
    if len(knots) < 3:
        return np.where(known, radius, values.mean())
    spline = CubicSpline(knots, values, bc_type="natural")
    return np.where(known, radius, np.maximum(spline(np.clip(height, knots[0], knots[-1])), 0))
