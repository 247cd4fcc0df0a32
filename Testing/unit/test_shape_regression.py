"""The network with the shape prior inside: what it is shown, what it is to find, and what becomes of its answer."""

from functools import cache

import numpy as np
import pytest
import torch
from phantoms import frame
from tibiae import leg, random_tibiae, tibia_prior
from virtualpeople import patients

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.modelzoo import MODELS_VARIABLE
from BoneReconstructionLib.surfaces import Surface, transformed
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.networkmodels import build, grid_settings, save_network, virtual_people
from TibiaCompletionLib.registration.network import affine_matrix
from TibiaCompletionLib.shaperegression.inference import case_masks, complete_by_regression
from TibiaCompletionLib.shaperegression.network import PriorVertices
from TibiaCompletionLib.shaperegression.training import (
    STEPS_A_PERSON,
    PeoplePool,
    _spread,
    random_input,
    shape_loss,
)
from TibiaCompletionLib.standardgrid import STANDARD_GRID
from TibiaCompletionLib.trainingloop import seeded

GRID = STANDARD_GRID.coarser(4)
BOTH = torch.arange(2)
RANK = tibia_prior().vertex_basis.shape[1]
SETTINGS = {
    "kind": "shape",
    "grid": grid_settings(GRID),
    "widths": [4, 4, 8, 8],
    "modes": len(tibia_prior().modes),
    "kernels": RANK,
}


@cache
def vertices():
    return PriorVertices(tibia_prior(), "cpu")


@cache
def pool():
    return PeoplePool(patients(), GRID, 2, vertices())


def regressor():
    return seeded(lambda: build(SETTINGS), 0, "shape")


def values_at(mask, places):
    """Values of a (K, J, I) array at the voxels nearest to (n, 3) places of the grid."""
    grid = GRID if mask.shape == GRID.shape_kji else pool().grid
    index = np.rint(transform_points(np.linalg.inv(grid.ijk_to_standard), places)).astype(int)
    return mask[tuple(np.clip(index[:, ::-1], 0, np.array(mask.shape) - 1).T)]


def test_weights_become_the_vertices_of_the_prior():
    generator = np.random.default_rng(1)
    modes, kernels = generator.normal(size=len(tibia_prior().modes)), generator.normal(size=(RANK, 3))
    matrix = affine_matrix(torch.tensor([[0.2, -0.1, 0.3, 0.4, 0.1, -0.2, *[0.5] * 3, 0, 0, 0]]))
    tensors = (torch.as_tensor(a, dtype=torch.float32)[None] for a in (modes, kernels))
    wanted = transform_points(matrix[0].numpy(), tibia_prior().shape(modes, kernels))[vertices().index]
    np.testing.assert_allclose(vertices()(matrix, *tensors)[0].numpy(), wanted, atol=0.01)


def test_a_new_network_answers_with_the_mean_bone():
    answer = regressor()(torch.rand(2, 3, *GRID.shape_kji))
    np.testing.assert_allclose(vertices()(*answer)[1].detach(), tibia_prior().mean[vertices().index], atol=1e-3)


def test_the_pool_replaces_one_person_every_few_steps_and_follows_from_the_step():
    step = 5 * STEPS_A_PERSON
    masks, places = pool().at(step, BOTH)
    again = PeoplePool(pool().patients, GRID, 2, vertices())
    np.testing.assert_array_equal(again.at(step + STEPS_A_PERSON - 1, BOTH[1:])[1], places[1:])
    assert again.generation[0] == -1  # nobody is rendered who is not asked for
    later = pool().at(step + STEPS_A_PERSON, BOTH)[1]
    assert [torch.equal(a, b) for a, b in zip(places, later, strict=True)].count(False) == 1
    for mask, place in zip(masks[:, 0].numpy(), places.numpy(), strict=True):
        centre = place.mean(0)
        inner = centre + 0.8 * (place - centre) * (1, 1, 0.9)
        outer = centre + (place - centre) * (1.5, 1.5, 1.03)
        assert values_at(mask, inner).mean() > values_at(mask, outer).mean() + 0.3
        assert 0.2 < np.mean(mask[(mask > 0) & (mask < 1)]) < 0.8  # voxels that the bone fills in part


def test_what_is_hidden_is_not_shown_and_vertices_move_with_the_image():
    masks, places = pool().at(5, BOTH)
    masks, places = (torch.cat([tensor] * 8) for tensor in (masks, places))
    shown, moved, hidden = random_input(masks, places, pool().grid, GRID, torch.Generator().manual_seed(3))
    assert shown.shape == (16, 3, *GRID.shape_kji) and hidden.shape == moved.shape[:2]
    assert (shown[:, 0] * shown[:, 2]).max() == 0
    kinds = hidden.float().mean(1)
    assert (kinds == 0).any() and (kinds > 0.1).any()
    assert (shown[:, 1].flatten(1).amax(1) == 0).any() and (shown[:, 1].flatten(1).amax(1) > 0).any()
    for image, place, unseen in zip(shown.numpy(), moved.numpy(), hidden.numpy(), strict=True):
        inward = place - 3.0 * (place - place.mean(0)) / np.linalg.norm(place - place.mean(0), axis=1, keepdims=True)
        inside = (values_at(image[0], inward) > 0)[~unseen]
        assert inside.mean() > 0.6
        assert not unseen.any() or values_at(image[2], place)[unseen].mean() > 0.99


def test_a_mask_is_spread_by_the_reach_along_each_axis():
    image = torch.rand((2, 1, 6, 7, 8), generator=torch.Generator().manual_seed(2))
    wanted = torch.nn.functional.max_pool3d(image, (3, 5, 7), 1, (1, 2, 3))
    torch.testing.assert_close(_spread(image, (1, 2, 3)), wanted)


def test_the_loss_is_the_distance_in_millimetres():
    mean = vertices().mean[None]
    masks, hidden = torch.zeros(1, 3, *GRID.shape_kji), torch.zeros(1, len(vertices().index), dtype=torch.bool)
    loss, values = shape_loss(regressor(), vertices(), masks, mean + torch.tensor([0.0, 3.0, 4.0]), hidden)
    assert float(values["distance_mm"]) == pytest.approx(5.0, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(5.0 - 0.25, rel=1e-3)  # Huber: the distance less half the bend
    hidden[:, 0] = True
    twice, _ = shape_loss(regressor(), vertices(), masks, mean + torch.tensor([0.0, 3.0, 4.0]), hidden)
    assert float(twice.detach()) == pytest.approx(2 * (5.0 - 0.25), rel=1e-3)


def test_twenty_steps_lower_the_loss():
    network = regressor()
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
    masks, places = pool().at(5, BOTH)
    losses = []
    for _ in range(20):
        given = random_input(masks, places, pool().grid, GRID, torch.Generator().manual_seed(3))
        loss, _ = shape_loss(network, vertices(), *given)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# ---- completion ----

AXES = frame((1.6, 1.8, 2.5), (4, -9, 12), "j")


def case_of(one):
    def read_ct(lower, upper):
        raise AssertionError("the CT is not read")

    return make_case(one.tibia, one.gap, read_ct)


def start_of(one):
    """The similarity that lays the mean bone on the true one, a little off."""
    off = affine_matrix(torch.tensor([[0.1, -0.1, 0.2, 0.1, -0.1, 0.1, *[0.0] * 6]]))[0].numpy()
    return side_to_right(one.side) @ one.ras_from_standard @ off


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_case_is_seen_on_the_grid_as_a_right_bone(side):
    one = leg(side, AXES, surface=Surface(random_tibiae(2, 1)[0], tibia_prior().faces))
    matrix = side_to_right(side) @ one.ras_from_standard
    masks = case_masks(case_of(one), side, matrix, GRID).numpy()
    right = transform_points(np.linalg.inv(one.ras_from_standard), one.truth.vertices)
    shaft_middle = np.abs(right[:, 2]) < 20
    inward = right - 4.0 * (right - right.mean(0)) / np.linalg.norm(right - right.mean(0), axis=1, keepdims=True)
    away = np.abs(right[:, 2]) > 45
    assert values_at(masks[2], right)[shaft_middle].mean() > 0.95 and values_at(masks[2], right)[away].mean() == 0
    assert values_at(masks[0], inward)[away].mean() > 0.55 and values_at(masks[0], inward)[shaft_middle].max() == 0


def test_what_lies_beyond_the_scan_is_hidden():
    one = leg("right", AXES, gap_mm=(-20.0, 10.0), shown_mm=(-120.0, 200.0), margin_mm=0.0)
    masks = case_masks(case_of(one), "right", one.ras_from_standard, GRID).numpy()
    right = transform_points(np.linalg.inv(one.ras_from_standard), one.truth.vertices)
    assert values_at(masks[2], right)[right[:, 2] < -140].mean() > 0.95
    assert values_at(masks[2], right)[(right[:, 2] > -80) & (right[:, 2] < -40)].mean() < 0.05


def test_a_bone_is_completed_on_its_own_side(tmp_path, monkeypatch):
    """Even an untrained network starts at the mean bone; the fit to what is visible does the rest."""
    save_network(tmp_path / "tibia-shape", regressor(), SETTINGS, {"people": 1}, virtual_people(1), {})
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    one = leg("left", AXES)
    done = []
    completion = complete_by_regression(case_of(one), "left", start_of(one), done.append)
    predicted = transformed(completion.surface, side_to_right("left"))
    apart = SurfaceLocator(predicted).closest(one.truth.vertices)[1]
    assert apart.mean() < 0.6 and completion.model["id"] == "tibia-shape"
    assert done == sorted(done)
