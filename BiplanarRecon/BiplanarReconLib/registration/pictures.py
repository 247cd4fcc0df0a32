"""Pictures that show where a registered CT's bone lies: the edges of its projection drawn on the X-rays."""

import numpy as np
from scipy.ndimage import gaussian_gradient_magnitude, gaussian_laplace

from BiplanarReconLib.overlays import picture

COLOR = (255, 170, 60)
# Edges are those of the projection smoothed so much, at the bone, and steeper than this share of the steepest.
SMOOTH_MM, LEAST_SLOPE, STEEPEST_PERCENTILE = 0.8, 0.2, 99.0


def overlay(radiograph, geometry, projection, pixel_mm):
    """An X-ray with the edges of a bone's projection.

    Args:
        radiograph: `Radiograph`.
        geometry: its `XrayGeometry`.
        projection: (rows, columns) of the bone in that view.
        pixel_mm: size of a pixel at the bone.

    Returns:
        (rows, columns, 3) uint8, bone bright.
    """
    image = picture(radiograph, geometry, {})
    image[edges(projection, SMOOTH_MM / pixel_mm) & radiograph.seen] = COLOR
    return image


def edges(projection, sigma):
    """(rows, columns) bool: where the slope of an image, smoothed by `sigma` pixels, is steep and steepest.

    Marr and Hildreth, Proc R Soc Lond B 207, 1980: the zero crossings of the Laplacian of a Gaussian.
    """
    slope = gaussian_gradient_magnitude(projection, sigma)
    inside = gaussian_laplace(projection, sigma) < 0
    crossing = np.zeros(inside.shape, dtype=bool)
    crossing[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    crossing[1:] |= inside[1:] != inside[:-1]
    shown = slope[projection > 0]
    return crossing & (slope > LEAST_SLOPE * np.percentile(shown, STEEPEST_PERCENTILE)) if shown.size else crossing
