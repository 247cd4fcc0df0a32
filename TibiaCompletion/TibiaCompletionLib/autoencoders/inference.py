"""Completion as in the masked tibia completion paper: registration by the STN, then an autoencoder, then a surface."""

import numpy as np
import torch

from BoneReconstructionLib.frames import transform_points
from TibiaCompletionLib.networkmodels import find_network, grid_of, load_network
from TibiaCompletionLib.registration.inference import (
    MASKED_ID,
    completed,
    hidden_voxels,
    image_surface,
    register,
    visible_image,
)
from TibiaCompletionLib.registration.network import sample

DRAWS = 8


def complete_by_vae(case, side, matrix, report):
    """The paper's recipe with the mask-robust VAE, trained on the whole bone; see `complete`."""
    return complete(case, side, matrix, report, "tibia-vae-masked-whole")


def complete_by_vqvae(case, side, matrix, report):
    """The paper's recipe with the mask-robust VQ-VAE, trained on the whole bone; see `complete`."""
    return complete(case, side, matrix, report, "tibia-vqvae-masked-whole")


def complete_by_pca32(case, side, matrix, report):
    """The paper's recipe with 32 principal components, found by what is visible; see `complete`."""
    return complete(case, side, matrix, report, "tibia-pca-stn", 32)


def complete_by_pca16(case, side, matrix, report):
    """The paper's recipe with 16 principal components, found by what is visible; see `complete`."""
    return complete(case, side, matrix, report, "tibia-pca-stn", 16)


def complete(case, side, matrix, report, model_id, rank=None):
    """Register the visible bone by the mask-robust STN, reconstruct its image and bring the surface back.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity, which the STN refines.
        report: called with the fraction done.
        model_id: of the autoencoder.
        rank: number of principal components, where it is made of those.

    Returns:
        Completion.

    Raises:
        InputError: a model is not there or of another training, or the reconstructed image shows no bone.
        ModuleNotFoundError: MONAI is missing.
    """
    model, registration = find_network(model_id), find_network(MASKED_ID)
    autoencoder, locnet = load_network(model), load_network(registration)
    grid, locnet_grid = (grid_of(one.card["network"]["grid"]) for one in (model, registration))
    report(0.2)
    image = visible_image(case, side, matrix, grid)
    aligned, found = register(locnet, image, grid, locnet_grid, registration.card["network"]["times"])
    report(0.5)
    if rank is None:
        decoded = reconstructed(autoencoder, aligned)
    else:
        hidden = sample(hidden_voxels(case, side, matrix, grid).float(), found.float(), grid) > 0.5
        decoded = autoencoder.truncated(rank).reconstructed(aligned, ~hidden)
    report(0.9)
    return completed(case, side, image_surface(decoded[0, 0].numpy(), grid), matrix @ found[0].numpy(), model, report)


@torch.inference_mode()
def reconstructed(autoencoder, images):
    """Images (N, 1, K, J, I) that a `network.Vae` or `VqVae` makes of aligned ones."""
    return autoencoder(images.to(memory_format=torch.channels_last_3d))


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
