"""Completion as in the masked tibia completion paper: registration by the STN, then an autoencoder, then a surface."""

import numpy as np
import torch

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.surfaces import largest_component, transformed
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.networkmodels import grid_of, load_network
from TibiaCompletionLib.registration.inference import MODEL_ID as REGISTRATION_ID
from TibiaCompletionLib.registration.inference import TIMES, register, visible_image
from TibiaCompletionLib.shapecompletion import Completion
from TibiaCompletionLib.trainingdata import SURFACE_LEVEL

DRAWS = 8


def complete_by_vae(case, side, matrix, report):
    """The paper's recipe with the mask-robust VAE, trained on the whole bone; see `complete`."""
    return complete(case, side, matrix, report, "tibia-vae-masked-whole")


def complete_by_vqvae(case, side, matrix, report):
    """The paper's recipe with the mask-robust VQ-VAE, trained on the whole bone; see `complete`."""
    return complete(case, side, matrix, report, "tibia-vqvae-masked-whole")


def complete(case, side, matrix, report, model_id):
    """Register the visible bone by the mask-robust STN, reconstruct its image and bring the surface back.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity, which the STN refines.
        report: called with the fraction done.
        model_id: of the autoencoder.

    Returns:
        Completion.

    Raises:
        InputError: a model is not there, or the reconstructed image shows no bone.
        ModuleNotFoundError: MONAI is missing.
    """
    model, registration = find_model(model_id), find_model(REGISTRATION_ID)
    autoencoder, locnet = load_network(model), load_network(registration)
    grid, locnet_grid = (grid_of(one.card["network"]["grid"]) for one in (model, registration))
    report(0.2)
    image, _ = visible_image(case, side, matrix, grid)
    aligned, found = register(locnet, image, grid, locnet_grid, TIMES)
    report(0.5)
    decoded = reconstructed(autoencoder, aligned)
    report(0.9)
    right_from_standard = matrix @ found[0].numpy()
    surface = transformed(image_surface(decoded[0, 0].numpy(), grid), right_from_standard)
    visible = case.visible(side)
    distance = SurfaceLocator(surface).closest(visible.surface.vertices[visible.trusted])[1]
    used = {"id": model.id, "version": model.card["version"], "sha256": model.card["sha256"]}
    report(1.0)
    return Completion(surface, right_from_standard, used, float(np.sqrt(np.mean(distance**2))))


@torch.inference_mode()
def reconstructed(autoencoder, images):
    """Images (N, 1, K, J, I) that a `network.Vae` or `VqVae` makes of aligned ones."""
    return autoencoder(images.to(memory_format=torch.channels_last_3d))


def image_surface(image, grid):
    """Closed surface of the bone in an image, in the standard frame, mm.

    Args:
        image: (K, J, I) array with values in [0, 1].
        grid: `StandardGrid`.

    Raises:
        InputError: nothing in the image is as bright as bone.
    """
    from BoneReconstructionLib.meshing import isosurface  # the table is also made where vtk is missing

    if image.max() <= SURFACE_LEVEL:
        raise InputError("The network shows no bone for this input: check the masks, or choose another method.")
    padded = np.pad(image, 1)
    matrix = grid.ijk_to_standard
    matrix[:3, 3] -= grid.spacing_ijk
    return largest_component(isosurface(Volume(padded, matrix), SURFACE_LEVEL))


@torch.inference_mode()
def deviations_mm(vae, aligned, surface, grid, seed=0):
    """Standard deviation of the surface over several decodings, along its normal, at each vertex.

    A decoding's surface lies (level - value) / slope away from a vertex, by the image's value and slope there.

    Args:
        vae: `network.Vae`.
        aligned: (1, 1, K, J, I) image that is decoded.
        surface: of the mean decoding, standard frame, mm.
        grid: `StandardGrid`.
        seed: of the draws.

    Returns:
        (n,) mm.
    """
    from scipy.ndimage import map_coordinates

    mean, log_variance = vae.encode(aligned)
    generator = torch.Generator(aligned.device).manual_seed(seed)
    place = transform_points(np.linalg.inv(grid.ijk_to_standard), surface.vertices)[:, ::-1].T
    slope = np.gradient(vae.decode(mean)[0, 0].cpu().numpy(), *grid.spacing_ijk[::-1])
    slope = np.linalg.norm([map_coordinates(part, place, order=1, mode="nearest") for part in slope], axis=0)
    values = []
    for _ in range(DRAWS):
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        decoded = vae.decode(mean + (0.5 * log_variance).exp() * noise)[0, 0].cpu().numpy()
        values.append(map_coordinates(decoded, place, order=1, mode="nearest"))
    return np.std(values, axis=0, ddof=1) / np.maximum(slope, 1e-3)
