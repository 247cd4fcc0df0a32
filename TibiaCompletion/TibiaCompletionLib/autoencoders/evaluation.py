"""How well an autoencoder reconstructs registered images of people whom no training has seen."""

import torch

from TibiaCompletionLib.autoencoders.inference import reconstructed
from TibiaCompletionLib.autoencoders.pca import Pca
from TibiaCompletionLib.imagelosses import d_ssim


@torch.no_grad()
def reconstruction_figures(network, images, hidden=None):
    """Mean figures of reconstructions against the images themselves, whole.

    Args:
        network: `Vae`, `VqVae` or `Pca`.
        images: (N, 1, K, J, I) registered images with values in [0, 1].
        hidden: None, or (N, 1, K, J, I) bool tensor of what the network is not shown.

    Returns:
        {"d_ssim_7", "rmse"}: as of `imagemetrics`, 0 to 1.
    """
    found = []
    for number, image in enumerate(images.float().split(1)):
        shown = image if hidden is None else image * ~hidden[number : number + 1]
        if isinstance(network, Pca):
            again = network.reconstructed(shown).clamp(0, 1)
        else:
            again = reconstructed(network, shown)
        found.append((float(d_ssim(again, image)), float(((again - image) ** 2).mean().sqrt())))
    d_ssims, errors = zip(*found, strict=True)
    return {"d_ssim_7": round(sum(d_ssims) / len(found), 5), "rmse": round(sum(errors) / len(found), 5)}
