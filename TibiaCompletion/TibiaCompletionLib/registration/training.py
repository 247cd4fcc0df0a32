"""The losses of the registration methods: equations 1, 2 and 4 of the masked tibia completion paper."""

import torch

from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.registration.network import PARAMETERS, affine_matrix, random_similarities, sample

# Equations 1 and 2 leave open where and how large the prototype is, down to a grid that it has left: the mean
# parameters of a batch are therefore held at zero.
GAUGE_WEIGHT = 0.1
# D-SSIM of images that are mostly empty rewards small bones, down to none: sizes and shears have their price.
SIZE_WEIGHT = 0.01
# Weight of the parameters in equation 4; the paper gives none.
PARAMETER_WEIGHT = 1.0
# Share of the paper's ranges by which raw images, which lie as they were scanned, are moved while the STN is trained.
AUGMENTATION = 0.5


def direct_loss(registration, images, chosen, grid):
    """Equation 1 on a batch.

    Args:
        registration: `DirectRegistration`.
        images: (N, 1, K, J, I) tensor of the batch, bone alone, values in [0, 1].
        chosen: (N,) which of the registration's images they are.
        grid: `StandardGrid`.

    Returns:
        (loss, {name: value to log}).
    """
    parameters = registration.parameters_of_images[chosen]
    return _prototype_loss(registration.prototype, images, parameters, grid)


def stn_loss(registration, images, grid, generator):
    """Equation 2 on a batch of raw images, each moved a little more.

    Args:
        registration: `PrototypeRegistration`.
        images: (N, 1, K, J, I) tensor, bone alone, values in [0, 1].
        grid: `StandardGrid`.
        generator: torch.Generator on the images' device.

    Returns:
        (loss, {name: value to log}).
    """
    moved = sample(images, affine_matrix(random_similarities(len(images), generator, AUGMENTATION)), grid)
    return _prototype_loss(registration.prototype, moved, registration.locnet(moved), grid)


def _prototype_loss(prototype, images, parameters, grid):
    likeness = d_ssim(sample(images, affine_matrix(parameters), grid), prototype).mean()
    gauge = (parameters.mean(0) ** 2).sum()
    loss = likeness + GAUGE_WEIGHT * gauge + SIZE_WEIGHT * _deformation(parameters).mean()
    return loss, {"d_ssim": likeness.detach(), "gauge": gauge.detach()}


def _deformation(parameters):
    """(N,) squares of the parameters that change a bone's size and form, see `network.UNITS`."""
    return (parameters[:, 6:] ** 2).sum(1)


def masked_stn_loss(locnet, aligned, hidden, grid, generator):
    """Equation 4 on a batch: aligned images, masked, are moved away and the LocNet is asked for the way back.

    Args:
        locnet: `LocNet`.
        aligned: (N, 1, K, J, I) tensor of aligned images with values in [0, 1].
        hidden: (N, 1, K, J, I) bool tensor.
        grid: `StandardGrid`.
        generator: torch.Generator on the images' device.

    Returns:
        (loss, {name: value to log}).
    """
    wanted = random_similarities(len(aligned), generator)
    matrix = affine_matrix(wanted)
    shown = aligned * ~hidden
    moved = sample(shown, torch.linalg.inv(matrix), grid)
    found = locnet(moved)
    likeness = d_ssim(sample(moved, affine_matrix(found), grid), shown).mean()
    error = ((found - wanted) ** 2).sum(1).mean()
    return likeness + PARAMETER_WEIGHT * error, {"d_ssim": likeness.detach(), "parameters": error.detach()}


def register_directly(prototype, images, grid, steps, learning_rate):
    """Registers images that were not trained on to a fixed prototype, each by gradient descent of its own.

    Args:
        prototype: (1, 1, K, J, I) tensor.
        images: (N, 1, K, J, I) tensor.
        grid: `StandardGrid`.
        steps: of the descent.
        learning_rate: in units of the parameters.

    Returns:
        (N, 12) tensor of parameters.
    """
    parameters = torch.zeros((len(images), PARAMETERS), device=images.device, requires_grad=True)
    optimiser = torch.optim.AdamW([parameters], learning_rate, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        unlike = d_ssim(sample(images, affine_matrix(parameters), grid), prototype.detach())
        (unlike + SIZE_WEIGHT * _deformation(parameters)).sum().backward()
        optimiser.step()
    return parameters.detach()
