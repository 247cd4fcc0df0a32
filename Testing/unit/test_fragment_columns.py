"""Columns of bone across a break: a broken tube whose pieces lie apart in the CT, and how much of it is missing where."""

import numpy as np
import pytest
from phantoms import frame, grid_around, voxel_centres
from scipy import ndimage

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.fragments.amounts import bone_amounts
from TibiaCompletionLib.fragments.columns import ColumnBalance

LENGTH_MM, OUTER_MM, INNER_MM, BREAK_MM = 160.0, 13.0, 8.0, 70.0
CORTEX_HU, MARROW_HU, MUSCLE_HU, BLUR_MM, NOISE_HU = 1300.0, -60.0, 60.0, 0.8, 30.0
SPACING = (0.8, 0.9, 1.2)
# The upper part has gone sideways, up and is turned about the tube; the lower stays. Asymmetric in every axis.
AWAY = np.array([5.0, -9.0, 11.0])
CRUMBLED_MM = 6.0


def cut_height(points):
    """Height of the oblique break at (..., 3) points of the tube, z along it."""
    return BREAK_MM + 0.5 * points[..., 0] - 0.3 * points[..., 1]


def solid(points, part):
    """Whether the tube's lower (0) or upper (1) part is at points, where it belongs; a corner of the lower has crumbled."""
    beyond = points[..., 2] - cut_height(points)
    crumbled = CRUMBLED_MM * ((points[..., 0] > 0) & (points[..., 1] > 0))
    inside = (np.hypot(points[..., 0], points[..., 1]) < OUTER_MM) & (points[..., 2] > 0) & (points[..., 2] < LENGTH_MM)
    return inside & ((beyond < -crumbled) if part == 0 else (beyond > 0))


def moved():
    motion = np.eye(4)
    angle = np.radians(20)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:3, 3] = AWAY
    return motion


@pytest.fixture(scope="module", params=["", "i"])
def broken(request):
    """(CT, rough masks of both parts, (4, 4) tube from RAS) on an oblique grid, right- and left-handed."""
    tube_from_ras = np.linalg.inv(frame((1.0, 1.0, 1.0), (5, 8, -30)))
    corners = np.array(np.meshgrid([-30.0, 30], [-30.0, 30], [-8.0, LENGTH_MM + 20])).reshape(3, -1).T
    corners = transform_points(np.linalg.inv(tube_from_ras), corners)
    shape, ijk_to_ras = grid_around(corners, frame(SPACING, flipped_axes=request.param))
    points = transform_points(tube_from_ras, voxel_centres(shape, ijk_to_ras).reshape(-1, 3)).reshape(*shape, 3)
    image, masks = np.full(shape, MUSCLE_HU), []
    for part, motion in enumerate((np.eye(4), moved())):
        home = transform_points(np.linalg.inv(motion), points.reshape(-1, 3)).reshape(points.shape)
        own = solid(home, part)
        image[own] = np.where(np.hypot(home[own][:, 0], home[own][:, 1]) > INNER_MM, CORTEX_HU, MARROW_HU)
        masks.append(own)
    image = ndimage.gaussian_filter(image, BLUR_MM / np.array(SPACING)[::-1])
    image += np.random.default_rng(3).normal(0, NOISE_HU, shape)
    # The masks are a voxel too large on one side and too small on the other.
    masks[0] = np.where(points[..., 0] > 0, ndimage.binary_dilation(masks[0]), ndimage.binary_erosion(masks[0]))
    masks[1] &= ~masks[0]
    return Volume(image.astype(np.float32), ijk_to_ras), [Volume(mask, ijk_to_ras) for mask in masks], tube_from_ras


def balance_of(ct, masks, tube_from_ras):
    """The `ColumnBalance` of parts in a CT, in the tube's frame."""
    amounts = [bone.transformed(tube_from_ras) for bone in bone_amounts(masks, ct)]
    angle, height = (grid.ravel() for grid in np.meshgrid(np.arange(0, 2 * np.pi, 0.2), np.arange(0, LENGTH_MM + 1, 2)))
    vertices = np.stack([OUTER_MM * np.cos(angle), OUTER_MM * np.sin(angle), height], 1)
    return ColumnBalance(Surface(vertices, np.zeros((0, 3), dtype=int)), amounts)


@pytest.fixture(scope="module")
def balance(broken):
    return balance_of(*broken)


def missing(balance, shift=0.0):
    """{whether each column is of the crumbled corner: what it misses} with the upper part home but for a shift along z."""
    home = np.linalg.inv(moved())
    home[2, 3] += shift
    (columns,) = balance.breaks([np.eye(4), home])
    assert (columns.lower, columns.upper) == (0, 1)
    assert np.abs(columns.places[:, 2] - cut_height(columns.places)).max() < 6
    x, y = columns.places[:, :2].T
    corner, clear = (x > 3) & (y > 3), (x < -3) | (y < -3)
    assert corner.sum() >= 3 and clear.sum() >= 12
    return {True: columns.missing_mm[corner], False: columns.missing_mm[clear]}


def test_nothing_is_missing_at_home_but_what_has_crumbled(balance):
    found = missing(balance)
    assert abs(np.median(found[False])) < 0.3 and np.percentile(np.abs(found[False]), 80) < 1.4
    assert np.median(found[True]) == pytest.approx(CRUMBLED_MM, abs=1.2)


@pytest.mark.parametrize("shift", [-4.0, -1.5, 2.0, 5.0])
def test_what_is_drawn_apart_misses_as_much_and_what_is_pushed_together_is_there_twice(balance, shift):
    assert np.median(missing(balance, shift)[False] - missing(balance)[False]) == pytest.approx(shift, abs=0.4)


def test_all_bone_counts_once(broken):
    ct, masks, _ = broken
    total = sum(bone.amounts.sum() for bone in bone_amounts(masks, ct))
    bright = ct.array - MUSCLE_HU
    near = ndimage.binary_dilation(masks[0].array | masks[1].array, iterations=2)
    assert total == pytest.approx(bright[near & (bright > 150)].sum() * np.prod(ct.spacing), rel=0.02)


def test_a_piece_that_is_not_all_around_is_not_asked(broken):
    ct, (lower, upper), tube_from_ras = broken
    points = transform_points(tube_from_ras, voxel_centres(lower.shape, lower.ijk_to_ras).reshape(-1, 3))
    side = (points[:, 0] < 0).reshape(lower.shape) & (points[:, 2] > 35).reshape(lower.shape)
    masks = [Volume(lower.array & ~side, lower.ijk_to_ras), upper, Volume(lower.array & side, lower.ijk_to_ras)]
    (columns,) = balance_of(ct, masks, tube_from_ras).breaks([np.eye(4), np.linalg.inv(moved()), np.eye(4)])
    assert (columns.lower, columns.upper) == (0, 1)
    assert (columns.places[:, 0] > -4).all()
