"""The mask-robust STN refined on what is visible: known poses come back, on both sides, whatever the mask hides."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from phantoms import frame
from tibiae import leg, pose, tibia_prior

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.modelzoo import MODELS_VARIABLE
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import crop
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.networkmodels import build, grid_settings, save_network, virtual_people
from TibiaCompletionLib.registration.evaluation import ShownBone, registration_errors
from TibiaCompletionLib.registration.inference import (
    complete_by_masked_stn,
    complete_by_refined_stn,
    complete_by_stn,
    complete_directly,
)
from TibiaCompletionLib.registration.refinement import GRID, refined
from TibiaCompletionLib.standardgrid import STANDARD_GRID
from TibiaCompletionLib.trainingdata import on_grid

AXES = frame((1.6, 1.8, 2.5), (4, -9, 12), "j")
SETTINGS = {
    "kind": "locnet",
    "grid": grid_settings(STANDARD_GRID.coarser(8)),
    "images_grid": grid_settings(STANDARD_GRID.coarser(4)),
    "widths": [4, 4],
    "repeated": 1,
    "times": 3,
}


@cache
def mean_bone():
    return Surface(tibia_prior().mean, tibia_prior().faces)


@cache
def occupied():
    array = voxelize(mean_bone(), STANDARD_GRID.shape_kji, STANDARD_GRID.ijk_to_standard).array
    return on_grid(torch.from_numpy(array.astype(np.float32))[None, None], GRID)


def moved_bone(matrix):
    """(1, 1, K, J, I) occupancy of the mean bone where a matrix takes it."""
    array = voxelize(transformed(mean_bone(), matrix), STANDARD_GRID.shape_kji, STANDARD_GRID.ijk_to_standard).array
    return on_grid(torch.from_numpy(array.astype(np.float32))[None, None], GRID)


def hidden_between(low, high):
    heights = GRID.ijk_to_standard[2, 3] + GRID.spacing_ijk[2] * torch.arange(GRID.shape_kji[0])
    hidden = (heights > low) & (heights < high)
    return hidden[None, None, :, None, None].expand(1, 1, *GRID.shape_kji).float()


def rms(matrix, wanted):
    points = tibia_prior().mean
    return np.sqrt(((transform_points(matrix, points) - transform_points(wanted, points)) ** 2).sum(1).mean())


@pytest.mark.parametrize("gap", [(900.0, 901.0), (-60.0, 0.0), (80.0, 400.0)])
def test_a_known_pose_comes_back_whatever_is_hidden(gap):
    wanted = pose((4, -3, 6), (7.0, -6.0, 8.0), 1.04)
    hidden = hidden_between(*gap)
    found = refined(np.eye(4), occupied(), moved_bone(wanted) * (1 - hidden), hidden)
    assert rms(np.eye(4), wanted) > 12
    assert rms(found, wanted) < (0.3 if gap[1] > 400 or gap[1] < 10 else 0.8)


def test_a_sheared_answer_is_made_a_similarity():
    wanted = pose((2, -2, 3), (3.0, -3.0, 4.0), 1.02)
    sheared = wanted @ np.array([[1.02, 0.03, 0.0, 1.0], [0, 0.99, -0.02, 0], [0, 0, 1.01, 2.0], [0, 0, 0, 1.0]])
    found = refined(sheared, occupied(), moved_bone(wanted), hidden_between(900.0, 901.0))
    gram = found[:3, :3].T @ found[:3, :3]
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(3), atol=1e-6)
    assert rms(found, wanted) < 0.3


def test_what_is_hidden_is_not_taken_for_missing_bone():
    """The same gap, not told to be one, drags the bone away."""
    wanted = pose((2, -2, 3), (3.0, -3.0, 4.0), 1.02)
    hidden = hidden_between(80.0, 400.0)
    shown = moved_bone(wanted) * (1 - hidden)
    told, not_told = (refined(np.eye(4), occupied(), shown, mask) for mask in (hidden, 0 * hidden))
    assert rms(told, wanted) < 0.8 and rms(not_told, wanted) > 2


def model_folder(folder, prior_sha256):
    """An untrained LocNet, which answers with the identity, as the refined model."""
    network = build(SETTINGS)
    save_network(
        folder / "tibia-stn-refined", network, SETTINGS, {"people": 1}, virtual_people(1), {"tibia-prior": prior_sha256}
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bone_is_completed_on_its_own_side(side, tmp_path, monkeypatch):
    model_folder(tmp_path, tibia_prior().card["sha256"])
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    one = leg(side, AXES, surface=mean_bone())
    case = make_case(one.tibia, one.gap, lambda lower, upper: crop(one.ct, lower, upper))
    start = side_to_right(side) @ one.ras_from_standard @ pose((3, -4, 5), (5.0, 4.0, -6.0), 0.97)
    done = []
    completion = complete_by_refined_stn(case, side, start, done.append)
    predicted = transformed(completion.surface, side_to_right(side))
    assert np.linalg.norm(predicted.vertices - one.truth.vertices, axis=1).mean() < 0.4
    assert completion.model["id"] == "tibia-stn-refined" and completion.rms_mm < 1.0
    assert done == sorted(done) and done[-1] == 1.0


@pytest.mark.parametrize(
    "model_id, kind, complete",
    [
        ("tibia-stn-masked", "locnet", complete_by_masked_stn),
        ("tibia-stn", "stn", complete_by_stn),
        ("tibia-direct", "direct", complete_directly),
    ],
)
def test_the_papers_registrations_lay_their_prototype_where_they_find_the_bone(
    model_id, kind, complete, tmp_path, monkeypatch
):
    """An untrained LocNet leaves the prototype where the start has put it; the descent, which needs none, moves it."""
    settings = SETTINGS | {"kind": kind, "grid": grid_settings(GRID.coarser(4)), "prototype_grid": grid_settings(GRID)}
    for name in {"tibia-stn", model_id}:
        own = settings | ({"images": 1} if kind == "direct" else {}) | ({"kind": "stn"} if name == "tibia-stn" else {})
        network = build(own)
        if name != "tibia-stn-masked":
            with torch.no_grad():
                network.prototype.copy_(0.5 * occupied())
        save_network(tmp_path / name, network, own, {"people": 1}, virtual_people(1), {})
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    one = leg("left", AXES, surface=mean_bone())
    case = make_case(one.tibia, one.gap, lambda lower, upper: crop(one.ct, lower, upper))
    off = pose(translation=(6.0, 0.0, 0.0))
    start = side_to_right("left") @ one.ras_from_standard @ off
    completion = complete(case, "left", start, lambda fraction: None)
    assert completion.model["id"] == model_id
    moved = transform_points(np.linalg.inv(side_to_right("left") @ one.ras_from_standard), completion.surface.vertices)
    away = np.mean(moved[:, 0]) - np.mean(tibia_prior().mean[:, 0])
    assert abs(away) < 3.5 if kind == "direct" else away == pytest.approx(6.0, abs=1.5)
    np.testing.assert_allclose(np.ptp(moved, axis=0), np.ptp(tibia_prior().mean, axis=0), atol=12)


def test_a_model_of_another_prior_is_refused(tmp_path, monkeypatch):
    model_folder(tmp_path, "0" * 64)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    assert json.loads((tmp_path / "tibia-stn-refined" / "model.json").read_text())["trained_with"]
    with pytest.raises(InputError, match="was trained with another tibia-prior"):
        complete_by_refined_stn(None, "left", np.eye(4), lambda fraction: None)


def test_errors_are_measured_on_the_patient_in_millimetres():
    """A registration that leaves the bone 3 mm aside of its place in the patient's frame is just that wrong."""

    def locate(scan, begin):
        return np.linalg.inv(begin) @ pose(translation=(0.0, 3.0, 0.0))

    scans = {"whole": ShownBone(None, None, None)}
    errors, seconds = registration_errors(locate, scans, tibia_prior().mean, 4)["whole"]
    np.testing.assert_allclose(errors, 3.0)
    assert len(seconds) == 4
