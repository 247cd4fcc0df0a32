"""Cross-sections of the shaft continued across a gap, as a second opinion on what the shape prior says there.

Between two visible ends the outline of a shaft changes smoothly from one to the other: for each direction from the
bone's axis a cubic spline runs along the height through the radii that are seen. Across a short gap that is the better
guess, across a long one the prior is; their errors are nearly independent, so the weighted mean of both beats either.
"""

from dataclasses import replace

import numpy as np
from scipy.interpolate import CubicSpline, LinearNDInterpolator, RegularGridInterpolator
from scipy.ndimage import gaussian_filter1d

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import Surface

# Where along the bone, 0 to 1, a ray from the axis meets the surface once and outlines change smoothly.
SHAFT = (0.08, 0.9)
ANGLES = 72
HEIGHT_STEP_MM = 2.0
# Radii are averaged over this height before the spline runs through them: it follows the bone, not its noise.
KNOT_MM = 8.0
# The length of a gap across which spline and prior count alike, and how fast the spline, whose error grows with a high
# power of the length, counts less across longer ones. On training people the spline alone is best up to 100 mm where
# bones are smooth; the prior alone is best from 60 mm on in three sharper ones, which the spline's knots follow too far.
EQUAL_GAP_MM = 60.0
STEEPNESS = 4
# What the spline says of neighbouring directions is averaged, or every small dent beside the gap would become a groove.
SMOOTHING_DEGREES = 20.0
SEEN_MM = 2.0


def continued(fitted, visible):
    """Draw the unseen shaft of a completed bone towards the continuation of its visible cross-sections.

    Args:
        fitted: a `ShapeFit` of the tibia, with its residual.
        visible: the `VisibleSurface` that it was fitted to.

    Returns:
        ShapeFit with another surface; seen vertices and those of the ends stay.
    """
    local = transform_points(np.linalg.inv(fitted.matrix), fitted.surface.vertices)
    reduced = visible.reduced(fitted.motions)
    distance, nearest = reduced.tree.query(fitted.surface.vertices)
    seen = reduced.trusted[nearest] & (distance < SEEN_MM)

    low, high = local[:, 2].min(), local[:, 2].max()
    shaft = (local[:, 2] - low) / (high - low)
    shaft = np.flatnonzero((shaft > SHAFT[0] - 0.03) & (shaft < SHAFT[1] + 0.03))
    height = local[shaft, 2]
    axis = np.polynomial.polynomial.polyfit(height, local[shaft, :2], 1)
    offset = local[shaft, :2] - axis[0] - height[:, None] * axis[1]
    angle, radius = np.arctan2(offset[:, 1], offset[:, 0]), np.hypot(*offset.T)

    angles = (np.arange(ANGLES) + 0.5) * 2 * np.pi / ANGLES - np.pi
    heights = np.arange(low + SHAFT[0] * (high - low), low + SHAFT[1] * (high - low), HEIGHT_STEP_MM)
    outline, known = _on_grid(angle, height, np.stack([radius, seen[shaft]], 1), angles, heights)
    correction = np.zeros_like(outline)
    for column in range(ANGLES):
        correction[:, column] = _corrections(heights, outline[:, column], known[:, column] > 0.5)

    correction = gaussian_filter1d(correction, SMOOTHING_DEGREES / 360 * ANGLES, axis=1, mode="wrap")
    around = np.concatenate([angles[-1:] - 2 * np.pi, angles, angles[:1] + 2 * np.pi])
    wrapped = np.concatenate([correction[:, -1:], correction, correction[:, :1]], 1)
    change = RegularGridInterpolator((heights, around), wrapped, bounds_error=False, fill_value=0.0)
    moved = local.copy()
    moved[shaft, :2] += (~seen[shaft] * change(np.stack([height, angle], 1)) / radius)[:, None] * offset
    return replace(fitted, surface=Surface(transform_points(fitted.matrix, moved), fitted.surface.faces))


def _on_grid(angle, height, values, angles, heights):
    """Columns of values (n, 2) at scattered (angle, height), each as a grid (heights, angles)."""
    scale = 20.0  # a typical radius, mm: neighbours on the surface are neighbours in the plane
    turns = (-2 * np.pi, 0.0, 2 * np.pi)
    near = [np.abs(angle + turn) < 1.2 * np.pi for turn in turns]
    places = [np.stack([scale * (angle + turn), height], 1)[kept] for turn, kept in zip(turns, near)]
    found = LinearNDInterpolator(np.concatenate(places), np.concatenate([values[kept] for kept in near]))
    grid = found(np.stack(np.meshgrid(scale * angles, heights), -1))
    return grid[..., 0], grid[..., 1]


def _corrections(heights, radius, known):
    """What to add to the radii (heights,) of one direction where they are not seen, mm."""
    correction = np.zeros_like(radius)
    edges = np.flatnonzero(np.diff(known.astype(int)))
    known = known & np.isfinite(radius)
    group = np.floor((heights[known] - heights[0]) / KNOT_MM).astype(int)
    _, index = np.unique(group, return_inverse=True)
    count = np.bincount(index)
    if len(count) < 3:
        return correction
    spline = CubicSpline(
        np.bincount(index, heights[known]) / count, np.bincount(index, radius[known]) / count, bc_type="natural"
    )
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        gap = slice(first + 1, last + 1)
        if known[gap].any() or not (known[first] and known[last + 1]):
            continue
        share = 1 / (1 + ((heights[last + 1] - heights[first]) / EQUAL_GAP_MM) ** STEEPNESS)
        correction[gap] = share * (spline(heights[gap]) - radius[gap])
    return correction
