"""Rigid alignment of asymmetric and symmetric shapes, with and without a region."""

import numpy as np
import pytest
from phantoms import solid_mask, sphere_surface
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.alignment import align_rigid, rigid_from_points, turned_about
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.surfaces import Surface, joined, transformed
from BoneReconstructionLib.volumes import Volume

MIRROR = np.diag([-1.0, 1, 1, 1])


def bone(stretch=1.0):
    """A bent, lopsided, bone-like rod of 200 mm: no rotation and no mirroring maps it onto itself."""
    ball = sphere_surface(1.0, (0, 0, 0), subdivisions=4)
    x, y, z = ball.vertices.T
    width = 11 + 14 * np.abs(z) ** 3 + 5 * z
    vertices = np.column_stack(
        [x * width * (1 + 0.3 * z) + 9 * np.exp(-(((z - 0.7) / 0.2) ** 2)) * (x > 0) * x + 10 * z**2,
         y * width * 0.75 + 8 * np.maximum(z, 0) ** 2 * np.maximum(y, 0),
         100 * z * stretch]
    )
    return Surface(vertices, ball.faces)


def pose(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def test_many_turns_at_once_are_those_made_one_by_one():
    turns, centres, shifts = np.random.default_rng(1).normal(size=(3, 6, 3)) * np.array([1.0, 50.0, 20.0])[:, None, None]
    singly = [turned_about(*one) for one in zip(turns, centres, shifts, strict=True)]
    np.testing.assert_allclose(turned_about(turns, centres, shifts), singly, atol=1e-12)
    np.testing.assert_allclose(singly[0] @ [*centres[0], 1], [*centres[0] + shifts[0], 1], atol=1e-12)


def test_corresponding_points_give_back_the_motion_between_them():
    points = np.random.default_rng(0).normal(size=(20, 3)) * 30
    truth = pose((130, -40, 75), (10, -200, 33))
    found = rigid_from_points(points, points @ truth[:3, :3].T + truth[:3, 3])
    np.testing.assert_allclose(found, truth, atol=1e-9)


def test_corresponding_points_are_never_mirrored():
    points = np.random.default_rng(0).normal(size=(20, 3)) * 30
    assert np.linalg.det(rigid_from_points(points, points * [-1, 1, 1])[:3, :3]) == pytest.approx(1)


def test_flat_point_sets_are_aligned_without_mirroring():
    points = np.column_stack([np.random.default_rng(0).normal(size=(9, 2)) * 30, np.zeros(9)])
    truth = pose((130, -40, 75), (10, -200, 33))
    found = rigid_from_points(points, points @ truth[:3, :3].T + truth[:3, 3])
    np.testing.assert_allclose(found, truth, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_points_on_one_line_are_refused(count):
    points = np.arange(count)[:, None] * np.array([1.0, 2, 3])
    with pytest.raises(InputError):
        rigid_from_points(points, points)


def test_different_numbers_of_points_are_refused():
    with pytest.raises(InputError):
        rigid_from_points(np.eye(3), np.ones((4, 3)))


@pytest.mark.parametrize("degrees, shift", [((3, 2, -4), (2, 1, -3)), ((170, 20, 95), (300, -200, 80))])
def test_a_bone_finds_back_from_near_and_far(degrees, shift):
    truth = pose(degrees, shift)
    found = align_rigid(bone(), transformed(bone(), truth))
    np.testing.assert_allclose(found.fixed_from_moving, truth, atol=5e-3)
    assert found.rms_mm < 0.01
    assert found.points_used > 5000


def test_a_longer_bone_is_moved_and_not_scaled():
    found = align_rigid(bone(1.05), bone())
    rotation = found.fixed_from_moving[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_a_displaced_lump_does_not_pull_the_rest():
    truth = pose((10, -5, 20), (15, 8, -12))
    lump = sphere_surface(6.0, (22.0, 12.0, 40.0), subdivisions=3)
    found = align_rigid(bone(), transformed(joined((bone(), lump)), truth))
    np.testing.assert_allclose(found.fixed_from_moving, truth, atol=0.05)


def bent(surface, degrees):
    """The upper half turned about x, as after a fracture in the middle."""
    turned = surface.vertices @ Rotation.from_euler("x", degrees, degrees=True).as_matrix().T
    upper = np.clip(surface.vertices[:, 2:] / 10, 0, 1)
    return Surface((1 - upper) * surface.vertices + upper * turned, surface.faces)


@pytest.mark.parametrize("as_mask", [False, True])
def test_only_the_region_counts(as_mask):
    truth = pose((4, -3, 6), (5, 8, -4))
    fixed = transformed(bent(bone(), 12), truth)
    back = np.linalg.inv(truth)
    if as_mask:
        grid = np.diag([2.0, 2, 2, 1])
        grid[:3, 3] = -130
        k, j, i = np.indices((130, 130, 130))
        ras = np.stack([i, j, k], axis=-1) * 2.0 - 130
        region = Volume((ras @ back[2, :3] + back[2, 3]) < -5, grid)
    else:
        def region(points):
            return points @ back[2, :3] + back[2, 3] < -5

    np.testing.assert_allclose(align_rigid(bone(), fixed, region).fixed_from_moving, truth, atol=0.02)


def test_a_region_beside_the_bone_is_refused():
    with pytest.raises(InputError, match="region"):
        align_rigid(bone(), bone(), lambda points: points[:, 0] > 1000)
    with pytest.raises(InputError, match="region"):
        align_rigid(bone(), bone(), solid_mask(np.eye(4)))


@pytest.mark.parametrize("degrees", [(0, 0, 0), (160, 30, -70)])
def test_a_left_and_a_right_bone_are_refused(degrees):
    with pytest.raises(InputError, match="left and a right"):
        align_rigid(transformed(bone(), MIRROR), transformed(bone(1.03), pose(degrees, (40, 0, 9))))


def test_two_different_bones_of_one_side_are_accepted():
    align_rigid(bone(), transformed(bone(1.06), pose((0, 30, 200), (40, 0, 9))))


def test_symmetric_shapes_are_not_taken_for_left_and_right():
    align_rigid(sphere_surface(), sphere_surface(21.0))
    ball = sphere_surface(1.0, (0, 0, 0))
    egg = Surface(ball.vertices * [10, 20, 60], ball.faces)
    align_rigid(egg, transformed(egg, MIRROR @ pose((10, 20, 30), (5, 5, 5))))
