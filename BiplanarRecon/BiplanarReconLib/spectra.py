"""Correlations of one X-ray with the image of bones at all shifts, by a few fast Fourier transforms."""

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates

# Shifts that leave less of the bones' image than this inside the X-ray do not count.
LEAST_INSIDE = 0.3


class Spectra:
    """One X-ray, ready to be correlated with images at all shifts."""

    def __init__(self, view):
        self.view = view
        self._shape = [fft.next_fast_len(2 * size, real=True) for size in view.geometry.shape]
        image = np.where(view.valid, view.observed, 0).astype(np.float32)
        valid = view.valid.astype(np.float32)
        self._image, self._square, self._valid = (fft.rfft2(one, self._shape) for one in (image, image**2, valid))

    def correlations(self, projection, shifts, order=1):
        """(n,) normalised correlations of a bone's projection, moved by (n, 2) shifts (rows, columns), with the X-ray."""
        image = self.view.band_pass(projection)
        inside = (projection > 0).astype(np.float32)
        image = image * inside
        own, place = (np.conj(fft.rfft2(one, self._shape)) for one in (image, inside))
        both, theirs, area = (
            fft.irfft2(one, self._shape) for one in (self._image * own, self._square * place, self._valid * place)
        )
        # By all of the bone's image, so that it does not pay to leave the X-ray.
        norm = np.sqrt(np.maximum(theirs, 0)) * np.linalg.norm(image)
        known = area > LEAST_INSIDE * max(inside.sum(), 1)
        score = np.where(known, both / np.maximum(norm, 1e-6 * norm.max() + 1e-12), 0.0)
        return map_coordinates(score, shifts.T, order=order, mode="grid-wrap")


def best_shift(view, projection, reach_mm, step_mm):
    """How far the image of bones by itself would have to be shifted to agree best with an X-ray.

    Args:
        view: `shadows.View`.
        projection: (rows, columns) of the bones, not band-passed.
        reach_mm: of the shifts that are tried, in all directions, at the isocentre.
        step_mm: between them.

    Returns:
        mm at the isocentre.
    """
    steps = np.arange(-reach_mm, reach_mm + 1e-6, step_mm)
    shifts = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    shifts = shifts[np.linalg.norm(shifts, axis=1) <= reach_mm]
    score = Spectra(view).correlations(projection, shifts / view.pixel_mm, order=3)
    return float(np.linalg.norm(shifts[int(np.argmax(score))]))
