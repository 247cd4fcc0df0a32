"""Completion by the shape regressor, refined on the visible bone."""

import numpy as np
import torch

from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, both, fit, spread_over, with_residual
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume, resample
from TibiaCompletionLib.networkmodels import find_network, grid_of, load_network
from TibiaCompletionLib.shapecompletion import Completion
from TibiaCompletionLib.standardgrid import STANDARD_GRID
from TibiaCompletionLib.trainingdata import on_grid

MODEL_ID = "tibia-shape"
# So few predicted vertices stand in for the hidden bone that they weigh as much as the network's error allows.
PREDICTED_POINTS = 60


def complete_by_regression(case, side, matrix, report):
    """Predict the prior's pose and weights by the network, then fit them to the visible bone.

    In the fit a few vertices of the prediction stand for the hidden bone; what is left over on the visible bone is
    carried on smoothly, as in the classical completion.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity.
        report: called with the fraction done.

    Returns:
        Completion.

    Raises:
        InputError: the model is missing or altered.
    """
    prior, model = load_prior(TIBIA_PRIOR, "tibia"), find_network(MODEL_ID)
    regressor, grid = load_network(model), grid_of(model.card["network"]["grid"])
    report(0.2)
    masks = case_masks(case, side, matrix, grid)
    with torch.inference_mode():
        pose, modes, kernels = (found[0].numpy().astype(float) for found in regressor(masks[None]))
    report(0.4)
    place = matrix @ pose
    predicted = transform_points(place, prior.shape(modes, kernels))
    shown = case.visible(side)
    index = transform_points(np.linalg.inv(matrix @ grid.ijk_to_standard), predicted)
    hidden = _looked_up(masks[2].numpy() > 0.5, index)
    visible = shown if not hidden.any() else _with_prediction(shown, Surface(predicted, prior.faces), hidden)
    fitted = fit(prior, visible, place, report=lambda fraction: report(0.4 + 0.5 * fraction))
    completed = with_residual(prior, fitted, shown)
    card = model.card
    used = {"id": card["id"], "version": card["version"], "sha256": card["sha256"]}
    return Completion(completed.surface, completed.matrix, used, completed.rms_mm)


def case_masks(case, side, matrix, grid):
    """(3, K, J, I) float32 tensor of what a case shows, on the standard grid placed by a similarity, or a coarser one.

    The channels are the visible tibia, its neighbours and what is hidden: masked, or beyond an end of the scan that
    cuts the bone.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) similarity from the standard frame to the right-sided data.
        grid: `StandardGrid`.
    """
    from BoneReconstructionLib.meshing import voxelize

    ijk_to_ras = side_to_right(side) @ matrix @ STANDARD_GRID.ijk_to_standard
    box, shape = case.tibia.ijk_to_ras, STANDARD_GRID.shape_kji
    seen = Volume((case.tibia.array & ~case.fracture.array).astype(np.float32), box)
    masked = Volume(case.fracture.array.astype(np.float32), box)
    neighbours = np.zeros(shape, dtype=bool)
    for surface, _ in case.neighbours.values():
        neighbours |= voxelize(surface, shape, ijk_to_ras).array
    masks = [resample(seen, shape, ijk_to_ras).array, neighbours, resample(masked, shape, ijk_to_ras).array]
    tibia, neighbours, hidden = on_grid(torch.from_numpy(np.stack(masks).astype(np.float32)), grid)
    beyond = _beyond_scan(case.tibia, grid.shape_kji, side_to_right(side) @ matrix @ grid.ijk_to_standard)
    hidden = (hidden > 0.5) | torch.from_numpy(beyond)
    return torch.stack([tibia * ~hidden, neighbours, hidden.float()])


def _beyond_scan(tibia, shape_kji, ijk_to_ras):
    """(K, J, I) bool: voxels of a grid beyond a face of the case's box that cuts the bone."""
    k, j, i = np.ogrid[: shape_kji[0], : shape_kji[1], : shape_kji[2]]
    to_box = tibia.ras_to_ijk @ ijk_to_ras
    beyond = np.zeros(shape_kji, dtype=bool)
    for axis in range(3):
        faces = np.moveaxis(tibia.array, axis, 0)
        place = to_box[2 - axis, 0] * i + to_box[2 - axis, 1] * j + to_box[2 - axis, 2] * k + to_box[2 - axis, 3]
        if faces[0].any():
            beyond |= place < 0
        if faces[-1].any():
            beyond |= place > len(faces) - 1
    return beyond


def _looked_up(mask, index):
    """(n,) bool: values of a (K, J, I) mask at (n, 3) indices i, j, k; False outside."""
    index = np.rint(index).astype(int)[:, ::-1]
    inside = ((index >= 0) & (index < mask.shape)).all(1)
    found = np.zeros(len(index), dtype=bool)
    found[inside] = mask[tuple(index[inside].T)]
    return found


def _with_prediction(shown, predicted, hidden):
    """The visible surface and, as untrusted but for a few vertices, the predicted one."""
    trusted = np.zeros(len(hidden), dtype=bool)
    chosen = np.flatnonzero(hidden)
    trusted[chosen[spread_over(len(chosen), PREDICTED_POINTS)]] = True
    joined = both(shown, VisibleSurface(predicted, trusted))
    return VisibleSurface(joined.surface, joined.trusted, joined.piece)
