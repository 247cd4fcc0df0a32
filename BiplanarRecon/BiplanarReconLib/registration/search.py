"""Where a CT's bone may lie: turned in many ways, and shifted to where it agrees best with both X-rays.

In a view, a shift of the bone hardly does more than shift its image: the normalised correlations of one image with an
X-ray at all shifts are a few fast Fourier transforms, and a shift in space is looked up in those of both views.
"""

import itertools
from functools import partial

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates

from BoneReconstructionLib.threads import together

# About each axis of the world; those within the reach are tried.
TURNS_DEGREES, REACH_DEGREES = (-20.0, -10.0, 0.0, 10.0, 20.0), 20.5
REACH_MM, STEP_MM = 32.0, 4.0
# Shifts that leave less of a bone's image than this inside the X-ray do not count.
LEAST_INSIDE = 0.3


def places(projector, bone, views, start):
    """Poses of a bone around a start, the best first.

    Args:
        projector: `Projector` of the bone, a coarse one.
        bone: `Bone`.
        views: two coarse `View`s.
        start: (4, 4) from the CT to the world.

    Returns:
        list of (correlation, (4, 4) pose), one for each turn.
    """
    seen = [Spectra(view) for view in views]
    steps = np.arange(-REACH_MM, REACH_MM + 1e-6, STEP_MM)
    shifts = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    middle = start[:3, :3] @ bone.centre + start[:3, 3]
    moved = [(view.geometry.project(middle + shifts) - view.geometry.project(middle[None]))[:, ::-1] for view in views]

    def best_of(turn):
        pose = bone.turned(start, np.radians(turn), np.zeros(3))
        score = sum(
            one.correlations(projector(one.view.geometry, pose), shift) for one, shift in zip(seen, moved, strict=True)
        )
        best = int(np.argmax(score))
        return float(score[best]) / len(views), bone.turned(pose, np.zeros(3), shifts[best])

    turns = [turn for turn in itertools.product(TURNS_DEGREES, repeat=3) if np.linalg.norm(turn) <= REACH_DEGREES]
    found = together(partial(best_of, turn) for turn in turns)
    return sorted(found, key=lambda pair: -pair[0])


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
