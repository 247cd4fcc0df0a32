"""How far a completed tibia may be off: the posterior on the surface, its calibration, what is said about joints."""

from functools import cache

import numpy as np
import pytest
from tibiae import landmarks, random_tibiae, tibia_prior

from BoneReconstructionLib.shapefitting import VisibleSurface, fit, with_residual
from BoneReconstructionLib.surfaces import Surface, vertex_normals
from TibiaCompletionLib.confidence import (
    CALIBRATION,
    JOINT_LIMIT_MM,
    Calibration,
    away_from_visible,
    between_visible,
    deviations,
    joint_warnings,
    posterior_deviations,
)
from TibiaCompletionLib.evaluation.confidence import Errors, calibrated, coverage, table, widened, with_edges

LOW, HIGH = -30.0, 30.0


@cache
def completed(gap=(LOW, HIGH)):
    """(truth, visible, fitted, surface) of a random tibia that lacks a part."""
    truth = Surface(random_tibiae(5, 1)[0], tibia_prior().faces)
    height = truth.vertices[:, 2]
    visible = VisibleSurface(truth, (height < gap[0]) | (height > gap[1]))
    fitted = fit(tibia_prior(), visible, np.eye(4))
    return truth, visible, fitted, with_residual(tibia_prior(), fitted, visible).surface


def test_the_posterior_on_the_surface_is_that_of_bones_drawn_from_it():
    """Drawn pose and weights, small enough to be linear, move vertices by as much along their normals."""
    _, _, fitted, _ = completed()
    prior, small = tibia_prior(), 1e-2
    modes, kernels = len(prior.modes), prior.vertex_basis.shape[1]
    lower = np.linalg.cholesky(fitted.precision)
    noise = np.random.default_rng(0).standard_normal((len(lower), 400))
    draws = small * np.linalg.solve(lower.T, noise).T
    normals, linear = vertex_normals(fitted.surface), fitted.matrix[:3, :3]
    centre, moved = fitted.matrix[:3, 3], []
    for draw in draws:
        weights = draw[7 + modes : 7 + modes + 3 * kernels].reshape(3, kernels).T
        shape = prior.shape(fitted.mode_weights + draw[7 : 7 + modes], fitted.kernel_weights + weights)
        turned = shape @ linear.T
        turned = np.exp(draw[6]) * (turned + np.cross(draw[3:6], turned)) + centre + draw[:3]
        moved.append(((turned - fitted.surface.vertices) * normals).sum(1))
    found = posterior_deviations(prior, fitted, fitted.surface)
    drawn = np.std(moved, axis=0) / small
    assert np.median(np.abs(drawn / found - 1)) < 0.06


def test_what_is_seen_is_as_sure_as_the_measurement_and_what_is_hidden_is_not():
    _, visible, fitted, surface = completed((90.0, 999.0))
    sigma = deviations(tibia_prior(), fitted, surface, visible)
    height = surface.vertices[:, 2]
    np.testing.assert_allclose(sigma[height < 80], CALIBRATION.measured_mm, rtol=0.1)
    assert sigma[height > 120].min() > 2 * CALIBRATION.measured_mm
    assert sigma[height > 150].mean() > sigma[(height > 95) & (height < 110)].mean()


def test_distances_to_what_is_seen_are_zero_on_it():
    _, visible, fitted, surface = completed()
    away, height = away_from_visible(fitted, surface, visible), surface.vertices[:, 2]
    assert np.median(away[(height < LOW) | (height > HIGH)]) < 1.0
    assert 20 < away.max() < 45


def test_a_gap_in_the_shaft_lies_between_visible_bone_and_a_hidden_end_does_not():
    _, visible, fitted, surface = completed()
    height = surface.vertices[:, 2]
    assert between_visible(fitted, surface, visible)[(height > LOW + 5) & (height < HIGH - 5)].mean() > 0.98
    _, visible, fitted, surface = completed((90.0, 999.0))
    assert not between_visible(fitted, surface, visible)[surface.vertices[:, 2] > 100].any()


def test_errors_within_one_and_two_deviations_are_counted():
    error, sigma = np.array([0.5, -0.5, 1.5, -2.5]), np.ones(4)
    one, two, ratio = coverage(error, sigma)
    assert (one, two) == (50, 75)
    assert ratio == pytest.approx(1 / np.sqrt((0.25 + 0.25 + 2.25 + 6.25) / 4))


@cache
def synthetic(cases=12):
    """`Errors` that are normal with known constants."""
    truth, generator = Calibration(1.7, 0.9, 0.4, 12.0, 0.15), np.random.default_rng(3)
    found = []
    for number in range(cases):
        posterior, away = generator.uniform(0.1, 1.0, 1500), generator.uniform(0, 40, 1500)
        between = np.full(1500, number % 2 == 1)
        error = truth.deviations(posterior, away, between) * generator.standard_normal(1500)
        found.append(Errors("shaft 60 mm" if number % 2 else "plateau 40 mm", error, posterior, away, between))
    return truth, found


def test_calibration_finds_the_constants_behind_the_errors_and_covers_new_ones():
    truth, errors = synthetic()
    found = calibrated(errors[:8])
    np.testing.assert_allclose(
        [found.posterior, found.posterior_between, found.unexplained_mm, found.reach_mm, found.measured_mm],
        [truth.posterior, truth.posterior_between, truth.unexplained_mm, truth.reach_mm, truth.measured_mm],
        rtol=0.15,
    )
    new = errors[8:]
    one, two, ratio = coverage(
        np.concatenate([case.error for case in new]), np.concatenate([case.sigma(found) for case in new])
    )
    assert one == pytest.approx(68.3, abs=2) and two == pytest.approx(95.4, abs=1.5) and 0.8 < ratio < 1.3
    assert with_edges(found).measured_mm > found.measured_mm
    narrow = [case.sigma(found) / 1.5 for case in new]
    wide = widened(Calibration(1.0, 1.0, 1.0, 5.0, 1.0), new, narrow)
    assert wide.posterior == wide.unexplained_mm == wide.measured_mm == pytest.approx(1.5, abs=0.08)
    assert wide.reach_mm == 5.0
    text = table(new, [case.sigma(found) for case in new])
    assert "shaft 60 mm" in text and "all" in text


def test_uncertain_joint_surfaces_are_no_target_for_reduction():
    sigma = np.full(len(tibia_prior().mean), 0.5)
    assert joint_warnings(sigma, landmarks()) == []
    sigma[landmarks().plafond] = JOINT_LIMIT_MM + 0.4
    (sentence,) = joint_warnings(sigma, landmarks())
    assert "pilon" in sentence and "1.4 mm" in sentence and "no target for articular reduction" in sentence
    sigma[landmarks().lateral_plateau] = 2.0
    assert len(joint_warnings(sigma, landmarks())) == 2
