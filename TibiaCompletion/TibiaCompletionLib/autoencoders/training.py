"""The losses of the autoencoders: equations 3 and 5 of the masked tibia completion paper.

The paper subtracts the KL term in both; as its encoder is to come close to the prior, it is added here. Equation 5
compares visible voxels alone, so that nothing teaches the decoder what belongs into the gap: `TARGETS` offers that, as
printed, and the loss on the whole bone. Its code is drawn from the masked image throughout: the whole one, from which
the paper's first term draws it, is what a patient does not have.
"""

import torch

from TibiaCompletionLib.imagelosses import kl_divergence, mean_squared_error

TARGETS = ("visible", "whole")
KL_WEIGHT = 1e-2
# The paper's "quantizer weight", from the first step to the end of the first tenth of the training.
QUANTIZER_WEIGHT = (0.5, 1.0)
BALANCE_WEIGHT = 1e-3
# Codewords change owners during this first share of the training only, then the codebook settles.
REVIVAL_SHARE = 0.8


def masked_input(images, hidden):
    """(input, visible) of an autoencoder: the images with zero where they are hidden, and what is visible, or None."""
    return (images, None) if hidden is None else (images * ~hidden, ~hidden)


def vae_loss(vae, images, hidden, target, generator):
    """Equation 3, or 5 where something is hidden.

    Squared error and divergence are summed over an image, as the evidence lower bound has them, then both divided by
    its number of voxels.

    Args:
        vae: `network.Vae`.
        images: (N, 1, K, J, I) tensor of aligned images with values in [0, 1].
        hidden: None, or (N, 1, K, J, I) bool tensor.
        target: "visible", equation 5 as printed, or "whole".
        generator: torch.Generator on the images' device.

    Returns:
        (loss, {name: value to log}).
    """
    shown, visible = masked_input(images, hidden)
    mean, log_variance = vae.encode(shown)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    decoded = vae.decode(mean + (0.5 * log_variance).exp() * noise)
    error = mean_squared_error(decoded, images, visible if target == "visible" else None)
    divergence = kl_divergence(mean, log_variance).mean()
    loss = error + KL_WEIGHT * divergence / images[0].numel()
    return loss, {"squared_error": error.detach(), "divergence_nats": divergence.detach()}


def vqvae_loss(vqvae, images, hidden, target, generator, done):
    """The VQ-VAE's loss: squared error, commitment to the codewords, and balance of their use.

    Args:
        vqvae: `network.VqVae`, in training mode.
        images, hidden, target, generator: as for `vae_loss`.
        done: share of the training that is done, 0 to 1.

    Returns:
        (loss, {name: value to log}).
    """
    shown, visible = masked_input(images, hidden)
    codes, commitment, vectors = vqvae.quantized(shown)
    error = mean_squared_error(vqvae.decode(codes), images, visible if target == "visible" else None)
    imbalance = vqvae.imbalance(vectors)
    revived = vqvae.revive(vectors, generator) if done < REVIVAL_SHARE else 0
    first, last = QUANTIZER_WEIGHT
    weight = first + (last - first) * min(10 * done, 1.0)
    loss = error + weight * commitment + BALANCE_WEIGHT * imbalance
    return loss, {"squared_error": error.detach(), "imbalance_nats": imbalance.detach(), "revived": revived}
