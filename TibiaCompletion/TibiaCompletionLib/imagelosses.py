"""Differentiable image figures in torch, the same as `imagemetrics` computes in numpy."""

import torch
from torch.nn import functional

from BoneReconstructionLib.imagemetrics import SSIM_CONSTANTS, SSIM_SIGMA


def d_ssim(a, b, window=7):
    """Structural dissimilarity (1 - SSIM) / 2 of each pair of images with values in [0, 1].

    Args:
        a: (N, 1, K, J, I) tensor.
        b: (N or 1, 1, K, J, I) tensor.
        window: odd number of voxels along each side, at most the smallest side.

    Returns:
        (N,) tensor, from 0 (equal) to 1.
    """
    a, b = torch.broadcast_tensors(a.float(), b.float())
    moments = torch.cat([a, b, a * a, b * b, a * b], 1)
    mean_a, mean_b, square_a, square_b, product = _weighted(moments, window).unbind(1)
    c1, c2 = (constant**2 for constant in SSIM_CONSTANTS)
    similarity = (2 * mean_a * mean_b + c1) * (2 * (product - mean_a * mean_b) + c2)
    similarity = similarity / (mean_a**2 + mean_b**2 + c1)
    similarity = similarity / (square_a - mean_a**2 + square_b - mean_b**2 + c2)
    return (1 - similarity.flatten(1).mean(1)) / 2


def _weighted(images, window):
    """Gaussian-weighted mean over each window that lies inside, channel by channel."""
    half = window // 2
    steps = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (steps / SSIM_SIGMA) ** 2)
    weights = weights / weights.sum()
    for axis in (2, 3, 4):
        # A banded matrix product; convolutions of single channels are many times slower.
        inside = images.shape[axis] - 2 * half
        band = functional.pad(weights.expand(inside, window), (0, inside)).flatten()[: inside * (inside + 2 * half)]
        band = band.view(inside, inside + 2 * half)
        images = torch.tensordot(images, band, ([axis], [1])).movedim(-1, axis)
    return images


def mean_squared_error(a, b, visible=None):
    """Mean squared error over all voxels of all images, or over the visible ones alone.

    Args:
        a: (N, 1, K, J, I) tensor.
        b: the same shape.
        visible: None, or (N, 1, K, J, I) bool tensor.
    """
    squared = (a.float() - b.float()) ** 2
    return squared.mean() if visible is None else (squared * visible).sum() / visible.sum().clamp(min=1)


def kl_divergence(mean, log_variance):
    """Divergence of N(mean, exp(log_variance)) from N(0, I), summed over each sample: (N,) nats, never negative."""
    terms = mean**2 + log_variance.exp() - 1 - log_variance
    return 0.5 * terms.float().flatten(1).sum(1)
