"""The standard frame: mirroring is its own inverse, and no similarity ever mirrors."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tibiae import pose

from BoneReconstructionLib.frames import (
    MIRROR,
    rotation_about,
    side_to_right,
    similarity_from_points,
    transform_each,
    transform_points,
)

POINTS = np.random.default_rng(3).normal(size=(60, 3)) * (30, 20, 150)


def test_mirroring_exchanges_left_and_right_of_the_patient_and_is_its_own_inverse():
    np.testing.assert_array_equal(transform_points(MIRROR, [[7.0, 8.0, 9.0]]), [[-7, 8, 9]])
    np.testing.assert_array_equal(MIRROR @ MIRROR, np.eye(4))
    np.testing.assert_array_equal(side_to_right("left"), MIRROR)
    np.testing.assert_array_equal(side_to_right("right"), np.eye(4))


def test_changing_the_matrix_of_a_side_does_not_change_the_mirror():
    side_to_right("left")[:] = 0
    np.testing.assert_array_equal(side_to_right("left"), np.diag([-1, 1, 1, 1]))


@pytest.mark.parametrize("word", ["auto", "Left", "", None])
def test_any_other_word_for_a_side_is_an_error(word):
    with pytest.raises(ValueError, match="'left' or 'right'"):
        side_to_right(word)


def test_points_are_moved_as_columns():
    matrix = pose((10, 20, 30), (1, 2, 3), 1.5)
    expected = (matrix @ np.column_stack([POINTS, np.ones(len(POINTS))]).T).T[:, :3]
    np.testing.assert_allclose(transform_points(matrix, POINTS), expected, atol=1e-12)


def test_each_point_is_moved_by_its_own_matrix():
    matrices = np.array([pose((10, 20, 30), (1, 2, 3), 1.5), pose((-70, 5, 8), (-9, 40, 2)), MIRROR])
    singly = [transform_points(matrix, point[None])[0] for matrix, point in zip(matrices, POINTS)]
    np.testing.assert_allclose(transform_each(matrices, POINTS[:3]), singly, atol=1e-12)


def test_a_rotation_about_an_axis_is_that_of_scipy():
    axis = np.array([0.6, 0.64, 0.48])
    for angle in (-2.5, 0.0, 0.3, np.pi):
        np.testing.assert_allclose(
            rotation_about(axis, angle), Rotation.from_rotvec(angle * axis).as_matrix(), atol=1e-12
        )


@pytest.mark.parametrize("scale", [0.82, 1.0, 1.2])
def test_a_similarity_is_found_again_from_its_points(scale):
    truth = pose((170, -40, 65), (30, -200, 900), scale)
    found = similarity_from_points(POINTS, transform_points(truth, POINTS))
    np.testing.assert_allclose(found, truth, atol=1e-9)


def test_without_scale_the_motion_is_rigid():
    target = transform_points(pose((10, 20, 30), (5, 6, 7), 1.3), POINTS)
    found = similarity_from_points(POINTS, target, scaled=False)
    np.testing.assert_allclose(found[:3, :3], pose((10, 20, 30))[:3, :3], atol=1e-9)
    np.testing.assert_allclose(transform_points(found, POINTS).mean(0), target.mean(0))


def test_points_of_no_weight_do_not_count():
    truth = pose((10, 20, 30), (5, 6, 7), 1.1)
    target = transform_points(truth, POINTS)
    target[:10] += 100
    weights = np.where(np.arange(len(POINTS)) < 10, 0.0, 2.0)
    np.testing.assert_allclose(similarity_from_points(POINTS, target, weights), truth, atol=1e-9)


@pytest.mark.parametrize("scaled", [True, False])
def test_many_similarities_at_once_are_those_found_one_by_one(scaled):
    sources = np.random.default_rng(4).normal(size=(5, 60, 3)) * (30, 20, 150)
    target = transform_points(pose((10, 20, 30), (5, 6, 7), 1.1), POINTS)
    weights = np.random.default_rng(5).uniform(size=(5, 60))
    found = similarity_from_points(sources, target, weights, scaled)
    singly = [similarity_from_points(*one, scaled) for one in zip(sources, [target] * 5, weights, strict=True)]
    np.testing.assert_allclose(found, singly, atol=1e-9)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_mirrored_target_is_answered_by_a_rotation(scaled):
    mirrored = transform_points(pose((30, 40, 50), (1, 2, 3)) @ MIRROR, POINTS)
    found = similarity_from_points(POINTS, mirrored, scaled=scaled)
    scale = np.cbrt(np.linalg.det(found[:3, :3]))
    assert scale > 0
    np.testing.assert_allclose(found[:3, :3].T @ found[:3, :3], scale**2 * np.eye(3), atol=1e-9)


def test_no_rotation_and_scale_beats_the_one_found():
    """Least squares with noise: small changes of the result, mirrored targets included, only make it worse."""
    generator = np.random.default_rng(4)
    for mirror in (np.eye(4), MIRROR):
        target = transform_points(pose((30, 40, 50), (1, 2, 3), 1.1) @ mirror, POINTS) + generator.normal(size=(60, 3))
        found = similarity_from_points(POINTS, target)
        error = ((transform_points(found, POINTS) - target) ** 2).sum()
        for _ in range(40):
            nearby = found @ pose(generator.normal(size=3), generator.normal(size=3), 1 + 0.01 * generator.normal())
            assert ((transform_points(nearby, POINTS) - target) ** 2).sum() > error
