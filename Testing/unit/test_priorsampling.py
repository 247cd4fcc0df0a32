"""Random people: as different from each other as real ones, and the same for the same seed."""

import numpy as np
import pytest
from tibiae import landmarks, random_tibiae, tibia_prior

from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights, sampling_transform
from BoneReconstructionLib.tibiameasurements import PUBLISHED


@pytest.fixture(scope="module")
def measured():
    """{measurement: (300,) of random tibiae}."""
    people = [landmarks().measure(tibia) for tibia in random_tibiae(2024, 300)]
    return {name: np.array([person[name] for person in people]) for name in PUBLISHED}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_random_tibiae_spread_as_published(measured, name):
    assert 0.8 < measured[name].std(ddof=1) / PUBLISHED[name].sd < 1.2


def test_random_tibiae_are_of_human_size(measured):
    for name, values in measured.items():
        assert abs(values.mean() - PUBLISHED[name].mean) < 2 * PUBLISHED[name].sd, name


def test_long_tibiae_are_wide_ones(measured):
    assert np.corrcoef(measured["length"], measured["plateau_width"])[0, 1] > 0.5


def test_random_people_are_those_of_their_seed():
    np.testing.assert_array_equal(random_tibiae(5, 2), random_tibiae(5, 2))
    assert np.abs(random_tibiae(5, 1) - random_tibiae(6, 1)).max() > 3


def test_weights_have_the_shapes_and_the_stretch_asked_for():
    stretch = np.diag([2.0, 1.0, 0.0])
    log_scale, modes, kernels = random_weights(np.random.default_rng(0), 4000, 2, 3, stretch)
    assert (log_scale.shape, modes.shape, kernels.shape) == ((4000,), (4000, 2), (4000, 3, 3))
    assert log_scale.std() == pytest.approx(2.0, rel=0.05)
    assert modes[:, 0].std() == pytest.approx(1.0, rel=0.05) and not modes[:, 1].any()
    assert kernels.std() == pytest.approx(1.0, rel=0.05)


def transform_of_a_case(seed=1, weights=9, measurements=3):
    generator = np.random.default_rng(seed)
    gradient = generator.normal(size=(measurements, weights)) * [[3.0], [1.0], [0.5]]
    rough = generator.normal(size=(measurements, measurements)) * 0.2
    leftover = rough @ rough.T
    published = np.array([6.0, 2.5, 1.6])
    return gradient, leftover, published, sampling_transform(gradient, leftover, published)


def test_the_stretch_gives_measurements_their_published_spread_and_keeps_their_correlation():
    gradient, leftover, published, stretch = transform_of_a_case()
    reached = gradient @ stretch @ stretch.T @ gradient.T + leftover
    np.testing.assert_allclose(np.sqrt(np.diag(reached)), published, rtol=1e-6)
    before = gradient @ gradient.T + leftover
    spread = np.sqrt(np.diag(before))
    np.testing.assert_allclose(
        reached / np.outer(published, published), before / np.outer(spread, spread), rtol=1e-6, atol=1e-9
    )


def test_the_stretch_leaves_directions_alone_that_no_measurement_sees():
    gradient, _, _, stretch = transform_of_a_case()
    unseen = np.linalg.svd(gradient)[2][3:]
    np.testing.assert_allclose(unseen @ stretch, unseen, atol=1e-9)
    np.testing.assert_allclose(stretch @ unseen.T, unseen.T, atol=1e-9)


def test_a_spread_that_is_right_already_is_not_changed():
    gradient, leftover, _, _ = transform_of_a_case()
    spread = np.sqrt(np.diag(gradient @ gradient.T + leftover))
    np.testing.assert_allclose(sampling_transform(gradient, leftover, spread), np.eye(9), atol=1e-9)


def test_the_bundled_stretch_fits_the_bundled_modes():
    size = 1 + len(tibia_prior().modes)
    assert find_model("tibia-prior").tensors()["sampling"].shape == (size, size)
