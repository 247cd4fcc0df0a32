"""The shell across a break: an egg with a piece broken out, and what of its cortex is missing or there twice."""

import numpy as np
import pytest
from phantoms import frame, grid_around, voxel_centres
from scipy import ndimage

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.fragments.amounts import BoneAmounts, bone_amounts
from TibiaCompletionLib.fragments.bodies import Body
from TibiaCompletionLib.fragments.edges import SPARSE_TRUST, FragmentEdges
from TibiaCompletionLib.fragments.joint import joined
from TibiaCompletionLib.fragments.shell import ShellBalance
from TibiaCompletionLib.fragments.splitting import fragment_surface

HALF_AXES, CORTEX_MM, THICK_MM, TOO_DEEP_MM = np.array([26.0, 34.0, 45.0]), 2.5, 9.0, 2.0
MIDDLE, RADII = np.array([24.0, 6.0, 12.0]), np.array([11.0, 15.0])  # of the piece, along z and across it
SPACING = (0.8, 0.9, 1.1)
# The piece has gone out of the egg and is turned. Asymmetric in every axis.
AWAY = turned_about(np.radians([14.0, -9.0, 21.0]), MIDDLE, np.array([16.0, -5.0, 7.0]))


def depth(points):
    """How deep (..., 3) points lie below the egg's surface, mm, nearly."""
    size = np.linalg.norm(points / HALF_AXES, axis=-1)
    return (1 - size) * np.linalg.norm(points, axis=-1) / np.maximum(size, 1e-9)


def is_piece(points, margin_mm=0.0):
    """Whether (..., 3) points belong to the piece, which is larger all around by a margin."""
    away, radii = points - MIDDLE, RADII + np.asarray(margin_mm)[..., None]
    return (points[..., 0] > 0) & (np.hypot(away[..., 2] / radii[..., 0], away[..., 1] / radii[..., 1]) < 1)


@pytest.fixture(scope="module", params=["", "i"])
def egg(request):
    """(`Body` of the whole egg, list of `Body` of rest and piece with their bone), on an oblique grid, both hands."""
    egg_from_ras = np.linalg.inv(frame((1.0, 1.0, 1.0), (5, 8, -30)))
    corners = np.array(np.meshgrid([-34.0, 54], [-48.0, 42], [-53.0, 53])).reshape(3, -1).T
    corners = transform_points(np.linalg.inv(egg_from_ras), corners)
    shape, ijk_to_ras = grid_around(corners, frame(SPACING, flipped_axes=request.param))
    points = transform_points(egg_from_ras, voxel_centres(shape, ijk_to_ras).reshape(-1, 3)).reshape(*shape, 3)
    home = transform_points(np.linalg.inv(AWAY), points.reshape(-1, 3)).reshape(points.shape)
    at_place, at_home = depth(points), depth(home)
    parts = [(at_place > 0) & ~is_piece(points), (at_home > 0) & (at_home < THICK_MM) & is_piece(home)]
    image = np.full(shape, 60.0)
    for part, inside in zip(parts, (at_place, at_home), strict=True):
        image[part] = np.where(inside[part] < CORTEX_MM, 1200.0, 70.0)
    # As dark as muscle, the broken faces below the cortex are segmented too deep.
    parts[0] &= ~is_piece(points, TOO_DEEP_MM * (at_place > CORTEX_MM))
    parts[1] &= is_piece(home, -TOO_DEEP_MM * (at_home > CORTEX_MM))
    image = ndimage.gaussian_filter(image, 0.8 / np.array(SPACING)[::-1])
    ct = Volume(image.astype(np.float32), ijk_to_ras)
    masks = [Volume(part, ijk_to_ras) for part in parts]
    bone = Body(transformed(fragment_surface(Volume(at_place > 0, ijk_to_ras)), egg_from_ras))
    bodies = []
    for mask, amounts in zip(masks, bone_amounts(masks, ct), strict=True):
        surface = transformed(fragment_surface(mask), egg_from_ras)
        dark = FragmentEdges(surface.vertices, surface.vertices, np.full(len(surface.vertices), SPARSE_TRUST))
        bodies.append(Body(surface, dark, amounts.transformed(egg_from_ras)))
    return bone, bodies


@pytest.fixture(scope="module")
def balance(egg):
    bone, bodies = egg
    return ShellBalance(bone, [body.bone for body in bodies])


def poses(shift=(0.0, 0.0, 0.0)):
    home = np.linalg.inv(AWAY)
    home[:3, 3] += shift
    return [np.eye(4), home]


def test_at_home_nothing_is_missing_and_nothing_is_there_twice(balance):
    shell = balance.beside(1, poses(), np.eye(4))
    around = (shell.places - MIDDLE)[:, 1:] / RADII[::-1]
    assert np.abs(np.linalg.norm(around, axis=1) - 1).max() < 0.6
    assert abs(np.median(shell.excess)) < 0.06 and np.percentile(np.abs(shell.excess), 90) < 0.2


def test_a_piece_pushed_aside_is_there_twice_before_it_and_missing_behind_it(balance):
    shift = np.array([0.0, 4.0, 0.0])
    shell = balance.beside(1, poses(shift), np.eye(4))
    before, after = is_piece(shell.places), is_piece(shell.places - shift)
    middle = np.abs((shell.places - MIDDLE)[:, 2]) < 5
    assert np.median(shell.excess[middle & after & ~before]) > 0.35
    assert np.median(shell.excess[middle & before & ~after]) < -0.35


@pytest.mark.parametrize("shift", [(0.0, 0.8, 0.0), (0.0, -0.5, 0.7), (0.0, 0.0, -1.0)])
def test_the_slopes_tell_the_way_back(balance, shift):
    shell = balance.beside(1, poses(shift), np.eye(4))
    found = np.linalg.lstsq(-shell.slopes[1], -shell.excess, rcond=0.02)[0]
    assert found[1:] == pytest.approx(-np.array(shift)[1:], abs=0.3)


def test_the_shell_moves_with_the_target(balance):
    slip = turned_about(np.radians([4.0, -7.0, 3.0]), MIDDLE, np.array([2.0, -3.0, 5.0]))
    moved = balance.beside(1, [slip @ pose for pose in poses((0.0, 1.0, 0.5))], slip)
    still = balance.beside(1, poses((0.0, 1.0, 0.5)), np.eye(4))
    assert moved.places == pytest.approx(transform_points(slip, still.places), abs=1e-6)
    assert moved.excess == pytest.approx(still.excess, abs=1e-3)
    # Their finite differences go along other ways.
    assert moved.slopes == pytest.approx(still.slopes @ slip[:3, :3].T, abs=0.01)


def test_a_piece_far_from_all_others_meets_none(balance):
    assert balance.beside(1, poses((90.0, 0.0, 0.0)), np.eye(4)) is None


def test_a_piece_without_bone_in_the_ct_meets_none(egg):
    bone, (rest, _) = egg
    balance = ShellBalance(bone, [rest.bone, BoneAmounts(np.zeros((0, 3)), np.zeros(0))])
    assert balance.beside(1, poses(), np.eye(4)) is None and balance.beside(0, poses(), np.eye(4)) is None


def test_a_piece_with_dark_faces_finds_its_hole_by_the_shell_alone(egg):
    bone, bodies = egg

    def left_mm(bodies):
        found = joined(bone, bodies, poses((-1.0, 3.0, -2.0)), {})
        return np.linalg.norm(transform_points(found[1] @ AWAY, MIDDLE[None])[0] - MIDDLE)

    assert left_mm(bodies) < 0.7
    assert left_mm([Body(body.surface, body.edges) for body in bodies]) > 2.0
