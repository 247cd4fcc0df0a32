"""The bundled STN finds a bone at the same place on CPU and GPU, and on the CPU by either of torch's convolutions."""

from functools import cache

import numpy as np
import pytest
import torch
from tibiae import pose, tibia_prior

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.surfaces import Surface, transformed
from TibiaCompletionLib.networkmodels import find_network, grid_of, load_network
from TibiaCompletionLib.precision import chosen_device
from TibiaCompletionLib.registration.inference import REFINED_ID, located
from TibiaCompletionLib.registration.network import averaged
from TibiaCompletionLib.standardgrid import STANDARD_GRID
from TibiaCompletionLib.trainingdata import on_grid

AGREEMENT_MM = 0.05
POSES = (((4, -3, 6), (7.0, -6.0, 8.0), 1.04), ((-8, 5, -12), (-9.0, 4.0, -3.0), 0.95))


@cache
def images():
    """(N, 1, K, J, I) of the mean bone at some poses, one half hidden in the second, and their grid."""
    grid = grid_of(find_network(REFINED_ID).card["network"]["images_grid"])
    bone = Surface(tibia_prior().mean, tibia_prior().faces)
    shown = []
    for one in POSES:
        mask = voxelize(transformed(bone, pose(*one)), STANDARD_GRID.shape_kji, STANDARD_GRID.ijk_to_standard).array
        shown.append(on_grid(torch.from_numpy(mask.astype(np.float32))[None, None], grid))
    shown[1][:, :, shown[1].shape[2] // 2 :] = 0
    return torch.cat(shown), grid


def bones(device):
    """(N, n, 3) mean bone where the LocNet finds it, mm."""
    model = find_network(REFINED_ID)
    settings = model.card["network"]
    shown, grid = images()
    locnet_grid = grid_of(settings["grid"])
    coarse, between = averaged(shown.to(device), grid, locnet_grid)
    network = load_network(model, device)
    found = located(getattr(network, "locnet", network), coarse, between, locnet_grid, settings["times"])
    return np.array([transform_points(matrix, tibia_prior().mean) for matrix in found.double().cpu().numpy()])


def furthest(first, second):
    return np.linalg.norm(first - second, axis=2).max()


def test_either_convolution_of_the_cpu_agrees():
    """They round differently, as a GPU does."""
    usual = bones("cpu")
    with torch.backends.mkldnn.flags(enabled=False):
        plain = bones("cpu")
    assert furthest(usual, plain) < AGREEMENT_MM
    assert furthest(usual[:1], usual[1:]) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
def test_cpu_and_gpu_agree():
    assert furthest(bones("cpu"), bones(chosen_device("cuda"))) < AGREEMENT_MM
