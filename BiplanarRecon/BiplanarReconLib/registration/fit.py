"""Fit of a bone's pose to two X-rays: Levenberg-Marquardt with finite differences over its projections."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

# The X-ray is compared where the bone's image is, and so far around it, mm.
AROUND_MM = 4.0
# Parameters are mm at the bone's radius; differences are taken over so many pixels.
DIFFERENCE_PIXELS = 0.3
DAMPING, EASED, TIGHTENED, TRIES = 1e-2, 0.2, 6.0, 3
# Steps shorter than this end the fit, pixels.
STILL_PIXELS = 0.03


@dataclass(frozen=True, eq=False)
class Fitted:
    """A bone's pose after a fit.

    Attributes:
        pose: (4, 4) from the CT to the world.
        correlations: of the band-passed X-rays with the bone's, per view, around the bone where the X-ray is seen.
        score: their mean, less what of the bone's image lies where nothing is seen; for comparing poses.
    """

    pose: np.ndarray
    correlations: tuple
    score: float


def fit(projector, bone, views, pose, steps):
    """Move a bone to where its projections agree best with both X-rays.

    Per view, the residuals are those of regressing the X-ray on the bone's image: the X-ray's unit does not matter,
    and a view's share of the sum is one minus the square of its correlation.

    Args:
        projector: `Projector` of the bone.
        bone: `Bone`.
        views: two `View`s.
        pose: (4, 4) from the CT to the world, to start from.
        steps: at most; each has derivatives of its own and is two moves.

    Returns:
        Fitted.
    """
    windows = [_Window(view, projector, pose) for view in views]
    pixel_mm = views[0].pixel_mm
    step_mm, damping = DIFFERENCE_PIXELS * pixel_mm, DAMPING

    def seen(one):
        return [window.image(projector, one) for window in windows]

    def moved(move):
        return bone.turned(pose, move[:3] / bone.radius_mm, move[3:])

    def step(images, changes, tries):
        """(pose, images, length in mm) of the first of some damped steps that gains, or None."""
        nonlocal damping
        normal, gradient = np.zeros((6, 6)), np.zeros(6)
        for window, image, change in zip(windows, images, changes, strict=True):
            residual, jacobian = window.linearised(image, change)
            normal += jacobian @ jacobian.T
            gradient += jacobian @ residual
        for _ in range(tries):
            move = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), gradient)
            trial = moved(move)
            there = seen(trial)
            if _misfit(windows, there) < _misfit(windows, images):
                damping *= EASED
                return trial, there, float(np.abs(move).max())
            damping *= TIGHTENED
        return None

    images = seen(pose)
    for _ in range(steps):
        changed = [seen(moved(move)) for move in step_mm * np.eye(6)]
        changes = [
            (np.stack(others) - image) / step_mm
            for image, others in zip(images, zip(*changed, strict=True), strict=True)
        ]
        taken = step(images, changes, TRIES)
        if taken is None:
            break
        pose, images, length = taken
        # The derivatives, which cost most, serve for a second step.
        if length > STILL_PIXELS * pixel_mm and (taken := step(images, changes, 1)) is not None:
            pose, images, length = taken
        if length < STILL_PIXELS * pixel_mm:
            break
    correlations = tuple(window.correlation(image) for window, image in zip(windows, images, strict=True))
    shown = [window.shown(projector, pose) for window in windows]
    return Fitted(pose, correlations, float(np.mean(np.multiply(correlations, shown))))


def _misfit(windows, images):
    """Sum of the squares of both views' residuals; an image of the wrong sign agrees with nothing."""
    pairs = zip(windows, images, strict=True)
    return sum(1 - max(window.correlation(image), 0.0) ** 2 for window, image in pairs)


class _Window:
    """The part of a view in which the bone is compared; it stays while the bone moves."""

    def __init__(self, view, projector, pose):
        self._view = view
        shown = projector(view.geometry, pose) > 0
        around = binary_dilation(shown, iterations=max(round(AROUND_MM / view.pixel_mm), 1))
        self._place = np.nonzero((around & view.valid).ravel())[0]
        seen = view.observed.ravel()[self._place]
        self._seen = seen / max(float(np.linalg.norm(seen)), 1e-12)

    def image(self, projector, pose):
        """(n,) the bone's band-passed image in the window."""
        return self._view.band_pass(projector(self._view.geometry, pose)).ravel()[self._place]

    def shown(self, projector, pose):
        """How much of the bone's image lies where the X-ray is seen, as a share of its norm."""
        image = self._view.band_pass(projector(self._view.geometry, pose))
        return float(np.linalg.norm(image[self._view.valid]) / max(float(np.linalg.norm(image)), 1e-12))

    def correlation(self, image):
        """With the X-ray."""
        return float(self._seen @ image / max(float(np.linalg.norm(image)), 1e-12))

    def linearised(self, image, changes):
        """Residuals (n,) of an image (n,), and their derivatives where it has the derivatives `changes` (6, n)."""
        square = max(float(image @ image), 1e-12)
        gain = max(float(self._seen @ image) / square, 0.0)
        # The gain follows the image (variable projection, Kaufman's approximation).
        return self._seen - gain * image, -gain * (changes - np.outer(changes @ image / square, image))
