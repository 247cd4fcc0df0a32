"""The other leg as what is expected of the broken one."""

import numpy as np
import pytest
from tibiae import random_tibiae, tibia_prior, unseen_tibia

from BoneReconstructionLib.distances import closest_points, surface_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.shapefitting import fit, with_residual, without_band
from BoneReconstructionLib.shapeprior import load_leg_prior, load_prior
from BoneReconstructionLib.surfaces import Surface, transformed
from TibiaCompletionLib.otherleg import expecting, fit_other_leg
from TibiaCompletionLib.plausibility import check_other_tibia

POSE = np.array([[0.96, -0.28, 0, -80.0], [0.28, 0.96, 0, 15.0], [0, 0, 1, -500.0], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def left_leg():
    """An unseen tibia, mirrored, somewhere in its scan."""
    return transformed(transformed(unseen_tibia(), POSE), side_to_right("left"))


@pytest.fixture(scope="module")
def other(left_leg):
    return fit_other_leg(tibia_prior(), left_leg, "right")


def test_the_other_legs_bone_is_described_in_the_standard_frame(other, left_leg):
    described = Surface(other.vertices, tibia_prior().faces)
    assert surface_distances(described, unseen_tibia()).assd < 2.0  # but for a little turn and shift
    size = np.ptp(other.vertices[:, 2]) / np.ptp(unseen_tibia().vertices[:, 2])
    assert size == pytest.approx(1.0, abs=0.01)


def test_a_bone_of_the_same_side_is_refused(left_leg):
    with pytest.raises(InputError, match="is a left one.*name the right tibia"):
        check_other_tibia(left_leg, "left")
    check_other_tibia(left_leg, "right")


def test_a_part_of_a_tibia_and_another_bone_are_refused(left_leg):
    height = unseen_tibia().vertices[:, 2]
    part = without_band(left_leg, height, -np.inf, height.max() - 170).surface
    fibula = load_prior("tibia-prior", "fibula")
    for bone in (part, transformed(Surface(fibula.mean, fibula.faces), side_to_right("left"))):
        with pytest.raises(InputError, match="not a whole tibia: name the whole tibia"):
            check_other_tibia(bone, "right")


def test_the_prior_is_centred_on_the_other_leg_and_narrower(other):
    prior = tibia_prior()
    expected = expecting(prior, other)
    np.testing.assert_array_equal(expected.mean, other.vertices)
    assert np.abs(expected.modes).max() < 0.7 * np.abs(prior.modes).max()
    assert expected.log_scale_sd < prior.log_scale_sd / 5
    assert [kernel.sd for kernel in expected.kernels] < [kernel.sd for kernel in prior.kernels]


def test_the_fibula_comes_along(other):
    leg = expecting(load_leg_prior("tibia-prior"), other)
    tibia, fibula = (leg.mean[leg.part == part] for part in (0, 1))
    np.testing.assert_array_equal(tibia, other.vertices)
    apart = closest_points(fibula, Surface(tibia, tibia_prior().faces))[1]
    assert 0 < apart.min() < 12 and fibula[:, 0].mean() > tibia[:, 0].mean()


def test_a_masked_end_is_completed_better_with_the_other_leg(other):
    """The broken leg is the other one's twin but for a little growth: its end is no longer a guess."""
    prior = tibia_prior()
    truth = Surface(1.006 * unseen_tibia().vertices, prior.faces)
    height = truth.vertices[:, 2]
    end = height.max() - 40.0
    visible = without_band(truth, height, end, np.inf)
    errors = {}
    for name, expected, begin in (
        ("alone", prior, np.eye(4)),
        ("with the other leg", expecting(prior, other), np.eye(4)),
    ):
        completed = with_residual(expected, fit(expected, visible, begin), visible).surface
        errors[name] = closest_points(truth.vertices[height > end], completed)[1].mean()
    assert errors["with the other leg"] < 0.5 * errors["alone"]
    assert errors["with the other leg"] < 0.7


def test_visible_bone_overrules_the_other_leg(other):
    """A stranger's leg as the other one: where the bone is seen, that is what it looks like."""
    stranger = Surface(random_tibiae(23, 1)[0], tibia_prior().faces)
    height = stranger.vertices[:, 2]
    visible = without_band(stranger, height, -30.0, 30.0)
    expected = expecting(tibia_prior(), other)
    completed = with_residual(expected, fit(expected, visible, np.eye(4)), visible).surface
    seen = np.abs(height) > 45
    assert closest_points(stranger.vertices[seen], completed)[1].mean() < 0.35
