"""The losses of the registration methods: equations 1, 2 and 4 of the masked tibia completion paper."""

import torch

from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.registration.network import PARAMETERS, affine_matrix, averaged, random_similarities, sample

# Equations 1 and 2 leave open where and how large the prototype is, down to a grid that it has left: the mean
# parameters of a batch are therefore held at zero.
GAUGE_WEIGHT = 0.1
# D-SSIM of images that are mostly empty rewards small bones, down to none: sizes and shears have their price.
SIZE_WEIGHT = 0.01
# Weight of the parameters in equation 4; the paper gives none.
PARAMETER_WEIGHT = 1.0
# Share of the paper's ranges by which raw images, which lie as they were scanned, are moved while the STN is trained.
AUGMENTATION = 0.5
# The refined LocNet learns from poses within a share of the paper's ranges, small ones as often as large ones: asked
# again about what it has aligned itself, it meets nothing else. The share is the square of a number drawn uniformly.
SMALLEST_SHARE = 0.04
# Each masked image is moved this often in a batch, because masking costs more than moving.
POSES = 8
# An error counts relative to how far the bone was away, which makes every answer halve what is left, down to this, mm.
NEAR_MM = 3.0


def direct_loss(registration, images, chosen, grid, coarse):
    """Equation 1 on a batch.

    Args:
        registration: `DirectRegistration`.
        images: (N, 1, K, J, I) tensor of the batch, bone alone, values in [0, 1].
        chosen: (N,) which of the registration's images they are.
        grid: `StandardGrid` of the images, see `network.averaged`.
        coarse: that of the prototype.

    Returns:
        (loss, {name: value to log}).
    """
    parameters = registration.parameters_of_images[chosen]
    aligned = sample(images, affine_matrix(parameters), grid, coarse)
    return _prototype_loss(registration.prototype, aligned, parameters)


def stn_loss(registration, images, grid, coarse, generator):
    """Equation 2 on a batch of raw images, each moved a little more.

    Args:
        registration: `PrototypeRegistration`.
        images: (N, 1, K, J, I) tensor, bone alone, values in [0, 1].
        grid: `StandardGrid` of the images, see `network.averaged`.
        coarse: that of LocNet and prototype.
        generator: torch.Generator on the images' device.

    Returns:
        (loss, {name: value to log}).
    """
    away = affine_matrix(random_similarities(len(images), generator, AUGMENTATION))
    parameters = registration.locnet(sample(images, away, grid, coarse))
    # Both at once: sampled twice, the image would be blurred twice.
    aligned = sample(images, away @ affine_matrix(parameters), grid, coarse)
    return _prototype_loss(registration.prototype, aligned, parameters)


def _prototype_loss(prototype, aligned, parameters):
    likeness = d_ssim(aligned, prototype).mean()
    gauge = (parameters.mean(0) ** 2).sum()
    loss = likeness + GAUGE_WEIGHT * gauge + SIZE_WEIGHT * _deformation(parameters).mean()
    return loss, {"d_ssim": likeness.detach(), "gauge": gauge.detach()}


def _deformation(parameters):
    """(N,) squares of the parameters that change a bone's size and form, see `network.UNITS`."""
    return (parameters[:, 6:] ** 2).sum(1)


def masked_stn_loss(locnet, aligned, hidden, grid, coarse, generator):
    """Equation 4 on a batch: aligned images, masked, are moved away and the LocNet is asked for the way back.

    Args:
        locnet: `LocNet`.
        aligned: (N, 1, K, J, I) tensor of aligned images with values in [0, 1].
        hidden: (N, 1, K, J, I) bool tensor.
        grid: `StandardGrid` of both.
        coarse: that of the LocNet.
        generator: torch.Generator on the images' device.

    Returns:
        (loss, {name: value to log}).
    """
    wanted = random_similarities(len(aligned), generator)
    away = torch.linalg.inv(affine_matrix(wanted))
    shown, between = averaged(aligned * ~hidden, grid, coarse)
    found = locnet(sample(shown, away, between, coarse))
    back = sample(shown, away @ affine_matrix(found), between, coarse)
    still = torch.eye(4, device=shown.device).expand_as(away)
    likeness = d_ssim(back, sample(shown, still, between, coarse)).mean()
    error = ((found - wanted) ** 2).sum(1).mean()
    return likeness + PARAMETER_WEIGHT * error, {"d_ssim": likeness.detach(), "parameters": error.detach()}


def displacement_loss(locnet, points, aligned, hidden, grid, coarse, generator):
    """Beside equation 4: how far the LocNet puts points of the mean bone from where they belong.

    Millimetres on the bone weigh angles, shifts and sizes against each other as they matter, and need no image of the
    registered bone.

    Args:
        locnet: `LocNet`.
        points: (V, 3) tensor of the mean bone's points, mm.
        aligned, hidden, grid, coarse, generator: as for `masked_stn_loss`.

    Returns:
        (loss, {name: value to log}).
    """
    shown, between = averaged(aligned * ~hidden, grid, coarse)
    shown = shown.repeat_interleave(POSES, 0)
    drawn = torch.rand((len(shown), 1), generator=generator, device=generator.device)
    share = (SMALLEST_SHARE**0.5 + (1 - SMALLEST_SHARE**0.5) * drawn) ** 2
    wanted = affine_matrix(random_similarities(len(shown), generator, share))
    moved = sample(shown, torch.linalg.inv(wanted), between, coarse)
    goal = displaced(points, wanted)
    left = torch.linalg.norm(displaced(points, affine_matrix(locnet(moved))) - goal, dim=2).mean(1)
    away = torch.linalg.norm(goal - points, dim=2).mean(1)
    return (left / (away + NEAR_MM)).mean(), {"left_mm": left.detach().mean()}


def displaced(points, matrix):
    """(N, V, 3) places to which (N, 4, 4) matrices take (V, 3) points, mm."""
    return points @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]


def register_directly(prototype, images, grid, coarse, steps, learning_rate):
    """Registers images that were not trained on to a fixed prototype, each by gradient descent of its own.

    Args:
        prototype: (1, 1, K, J, I) tensor.
        images: (N, 1, K, J, I) tensor.
        grid: `StandardGrid` of the images, see `network.averaged`.
        coarse: that of the prototype.
        steps: of the descent.
        learning_rate: in units of the parameters.

    Returns:
        (N, 12) tensor of parameters.
    """
    parameters = torch.zeros((len(images), PARAMETERS), device=images.device, requires_grad=True)
    optimiser = torch.optim.AdamW([parameters], learning_rate, weight_decay=0.0)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            unlike = d_ssim(sample(images, affine_matrix(parameters), grid, coarse), prototype.detach())
            (unlike + SIZE_WEIGHT * _deformation(parameters)).sum().backward()
            optimiser.step()
    return parameters.detach()
