"""The shape prior: its mean, modes and kernels, the smoothing of scattered values, and loading it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tibiae import landmarks, tibia_prior

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.shapeprior import Kernel, ShapePrior, compact_smoothing, farthest_points, load_prior
from BoneReconstructionLib.surfaces import Surface, is_closed, vertex_areas, volume_mm3

RADIUS = np.array([18.0, 18.0, 45.0])


@pytest.fixture(scope="module")
def prior():
    return tibia_prior()


def no_weights(prior):
    return np.zeros(len(prior.modes)), np.zeros((prior.vertex_basis.shape[1], 3))


def test_without_weights_the_shape_is_the_mean(prior):
    np.testing.assert_array_equal(prior.shape(*no_weights(prior)), prior.mean)


def test_a_weight_of_one_is_one_standard_deviation_of_its_mode_or_kernel(prior):
    modes, kernels = no_weights(prior)
    modes[2], kernels[4, 1] = -2.0, 3.0
    moved = prior.shape(modes, kernels) - prior.mean
    expected = -2.0 * prior.modes[2]
    expected[:, 1] += 3.0 * prior.vertex_basis[:, 4]
    np.testing.assert_allclose(moved, expected, atol=1e-9)


@pytest.mark.parametrize("bone", ["tibia", "fibula"])
def test_the_mean_bones_are_closed_and_look_outward(bone):
    prior = load_prior("tibia-prior", bone)
    mean = Surface(prior.mean, prior.faces)
    assert is_closed(mean) and volume_mm3(mean) > 0
    assert prior.modes.shape == (len(prior.modes), len(prior.mean), 3)


def test_the_mean_tibia_stands_in_the_standard_frame(prior):
    weights = vertex_areas(Surface(prior.mean, prior.faces))
    np.testing.assert_allclose(weights @ prior.mean / weights.sum(), 0, atol=1.0)
    places = landmarks()
    lateral, medial = prior.mean[places.lateral_plateau].mean(0), prior.mean[places.medial_plateau].mean(0)
    assert lateral[0] - medial[0] > 25
    assert lateral[2] - prior.mean[places.plafond].mean(0)[2] > 250
    # The tuberosity, the most anterior place below the plateau, is in front.
    below = np.abs(prior.mean[:, 2] - (prior.mean[:, 2].max() - 45)) < 10
    assert prior.mean[below, 1].max() > np.abs(prior.mean[below, 1].min())


def test_the_fibula_stands_beside_the_tibia_laterally_and_behind(prior):
    fibula = load_prior("tibia-prior", "fibula").mean
    middle = np.abs(fibula[:, 2]) < 40
    assert fibula[middle, 0].mean() > prior.mean[np.abs(prior.mean[:, 2]) < 40, 0].mean() + 15
    assert fibula[:, 2].max() < prior.mean[:, 2].max() and fibula[:, 2].min() < prior.mean[:, 2].min()


def test_a_kernel_falls_to_the_square_root_of_e_at_its_length():
    kernel = Kernel(2.0, (10.0, 20.0, 40.0))
    places = np.array([[0, 0, 0], [10, 0, 0], [0, 20, 0], [0, 0, 40.0]])
    np.testing.assert_allclose(kernel(places[:1], places)[0], 4 * np.exp([0, -0.5, -0.5, -0.5]))


def test_the_kernel_basis_reproduces_the_covariance(prior):
    places = prior.mean[:: len(prior.mean) // 150] + 0.4
    basis = prior.kernel_basis(places)
    variance = sum(kernel.sd**2 for kernel in prior.kernels)
    np.testing.assert_allclose(basis @ basis.T, prior.covariance(places, places), atol=0.03 * variance)
    assert basis.shape[1] < 200


def test_a_prior_without_kernels_has_an_empty_basis(prior):
    rigid = replace(prior, kernels=())
    assert rigid.vertex_basis.shape == (len(prior.mean), 0)
    np.testing.assert_array_equal(rigid.shape(np.zeros(len(prior.modes)), np.zeros((0, 3))), prior.mean)


def test_a_small_bone_has_as_many_nodes_as_vertices():
    points = np.random.default_rng(0).normal(size=(40, 3)) * 20
    tiny = ShapePrior(points, np.zeros((0, 3), int), np.zeros((0, 40, 3)), (Kernel(1.0, (9.0, 9.0, 9.0)),), 0.1)
    assert len(tiny.kernel_nodes) == 40


def test_farthest_points_spread_evenly():
    line = np.column_stack([np.arange(101.0), np.zeros((101, 2))])
    assert sorted(farthest_points(line, 5)) == [0, 25, 50, 75, 100]


# ---- compact smoothing ----


def test_smoothing_goes_through_values_without_noise():
    generator = np.random.default_rng(1)
    points = generator.uniform(-60, 60, (150, 3))
    values = np.sin(points[:, 0] / 9) + points[:, 2] / 50
    np.testing.assert_allclose(compact_smoothing(points, values, points, RADIUS, 1e-3), values, atol=2e-3)


def test_smoothing_shrinks_values_as_the_noise_says():
    found = compact_smoothing(np.zeros((1, 3)), np.array([2.0]), np.zeros((1, 3)), RADIUS, 0.5)
    assert found[0] == pytest.approx(2.0 / 1.25)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_smoothing_fades_to_zero_one_radius_away_along_each_axis(axis):
    steps = np.linspace(0, 1.3, 14)
    places = np.zeros((14, 3))
    places[:, axis] = RADIUS[axis] * steps
    found = compact_smoothing(np.zeros((1, 3)), np.array([1.0]), places, RADIUS, 1e-3)
    assert (np.diff(found) <= 0).all() and found[4] > 0.1
    assert np.abs(found[steps >= 1]).max() < 1e-9


def test_points_at_the_same_place_count_as_repeated_measurements():
    places = np.array([[0.0, 0, 0], [0, 0, 0], [300, 0, 0]])
    found = compact_smoothing(places, np.array([1.0, 3.0, 5.0]), places, RADIUS, 0.3)
    # Two measurements of noise variance 0.09 and mean 2: the posterior is 2 * 2 / (2 + 0.09).
    np.testing.assert_allclose(found, [4 / 2.09, 4 / 2.09, 5 / 1.09], rtol=1e-3)


# ---- loading ----


@pytest.fixture
def other_models(tmp_path, monkeypatch):
    """A models folder with a copy of the prior, which comes before the bundled one."""
    shutil.copytree(find_model("tibia-prior").folder, tmp_path / "tibia-prior")
    monkeypatch.setenv("BONERECON_MODELS", str(tmp_path))
    return tmp_path / "tibia-prior"


def test_a_folder_of_models_comes_before_the_bundled_ones(other_models):
    card = json.loads((other_models / "model.json").read_text("utf-8"))
    card["version"], card["bones"]["tibia"]["log_scale_sd"] = "9.9", 0.5
    (other_models / "model.json").write_text(json.dumps(card), "utf-8")
    loaded = load_prior("tibia-prior", "tibia")
    assert (loaded.card["version"], loaded.log_scale_sd) == ("9.9", 0.5)


def test_missing_weights_are_refused(other_models):
    (other_models / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="missing"):
        load_prior("tibia-prior", "tibia")


def test_weights_altered_by_a_byte_are_refused(other_models):
    data = bytearray((other_models / "weights.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (other_models / "weights.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="altered"):
        load_prior("tibia-prior", "tibia")
