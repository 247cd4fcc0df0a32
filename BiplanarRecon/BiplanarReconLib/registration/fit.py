"""Fit of a bone's pose to two X-rays: Levenberg-Marquardt over its projections."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation

from BoneReconstructionLib.frames import transform_points

# The X-ray is compared where the bone's image is, and so far around it, mm.
AROUND_MM = 4.0
# Parameters are mm at the bone's radius; differences are taken over so many pixels.
DIFFERENCE_PIXELS = 0.3
DAMPING, EASED, TIGHTENED, TRIES = 1e-2, 0.2, 6.0, 3
# Steps shorter than this end the fit, pixels.
STILL_PIXELS = 0.03
# Columns that are multiplied at a time: for more, BLAS would wake threads that wait longer than they work.
PRODUCT = 4096


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
        views: two `views.RegistrationView`s.
        pose: (4, 4) from the CT to the world, to start from.
        steps: at most; each has derivatives of its own and is two moves.

    Returns:
        Fitted.
    """
    images = [_Image(projector, view, pose) for view in views]
    windows = [_Window(view, image) for view, image in zip(views, images, strict=True)]
    pixel_mm = views[0].pixel_mm
    step_mm, damping = DIFFERENCE_PIXELS * pixel_mm, DAMPING

    def step(changes, tries):
        """(pose, images, length in mm) of the first of some damped steps that gains, or None."""
        nonlocal damping
        normal, gradient = np.zeros((6, 6)), np.zeros(6)
        for window, image, change in zip(windows, images, changes, strict=True):
            square, slope = window.normal_equations(image, change)
            normal += square
            gradient += slope
        for _ in range(tries):
            move = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), gradient)
            trial = bone.turned(pose, move[:3] / bone.radius_mm, move[3:])
            there = [_Image(projector, view, trial) for view in views]
            if _misfit(windows, there) < _misfit(windows, images):
                damping *= EASED
                return trial, there, float(np.abs(move).max())
            damping *= TIGHTENED
        return None

    for _ in range(steps):
        changes = [
            window.changes(image, projector, bone, pose, step_mm)
            for window, image in zip(windows, images, strict=True)
        ]
        taken = step(changes, TRIES)
        if taken is None:
            break
        pose, images, length = taken
        # The derivatives, which cost most, serve for a second step.
        if length > STILL_PIXELS * pixel_mm and (taken := step(changes, 1)) is not None:
            pose, images, length = taken
        if length < STILL_PIXELS * pixel_mm:
            break
    correlations = tuple(window.correlation(image) for window, image in zip(windows, images, strict=True))
    shown = [window.shown(image) for window, image in zip(windows, images, strict=True)]
    return Fitted(pose, correlations, float(np.mean(np.multiply(correlations, shown))))


def _misfit(windows, images):
    """Sum of the squares of both views' residuals; an image of the wrong sign agrees with nothing."""
    pairs = zip(windows, images, strict=True)
    return sum(1 - max(window.correlation(image), 0.0) ** 2 for window, image in pairs)


@dataclass(frozen=True, eq=False)
class _Changes:
    """Derivatives of an image in a window: `parts` (6, n), their `products` (6, 6) with each other, and the `shares`
    (6, 6) of the parts in the derivative by each parameter."""

    parts: np.ndarray
    products: np.ndarray
    shares: np.ndarray


class _Image:
    """A bone's image in a view: `raw`, and `passed` by the view's band-pass."""

    def __init__(self, projector, view, pose):
        self.raw = projector(view.geometry, pose)
        self.passed = view.band_pass(self.raw)


class _Window:
    """The part of a view in which the bone is compared; it stays while the bone moves."""

    def __init__(self, view, image):
        self._view = view
        around = binary_dilation(image.raw > 0, iterations=max(round(AROUND_MM / view.pixel_mm), 1))
        self._place = np.nonzero((around & view.valid).ravel())[0]
        seen = view.observed.ravel()[self._place]
        self._seen = seen / max(float(np.linalg.norm(seen)), 1e-12)

    def shown(self, image):
        """How much of the bone's image lies where the X-ray is seen, as a share of its norm."""
        norm = float(np.linalg.norm(image.passed))
        return float(np.linalg.norm(image.passed[self._view.valid]) / max(norm, 1e-12))

    def correlation(self, image):
        """With the X-ray."""
        inside = self._inside(image.passed)
        return float(self._seen @ inside / max(float(np.linalg.norm(inside)), 1e-12))

    def changes(self, image, projector, bone, pose, step_mm):
        """`_Changes` of the band-passed image in the window with a move of the bone."""

        def turned(rotation_vector):
            return projector(self._view.geometry, bone.turned(pose, rotation_vector, np.zeros(3)))

        centre = transform_points(pose, bone.centre[None])[0]
        parts, shares = self._view.motion.changes(image.raw, turned, centre, bone.radius_mm, step_mm)
        parts = self._inside(self._view.band_pass(parts))
        blocks = np.split(parts, range(PRODUCT, parts.shape[1], PRODUCT), axis=1)
        return _Changes(parts, sum(block @ block.T for block in blocks), shares)

    def normal_equations(self, image, changes):
        """J J' (6, 6) and J r (6,) of the residuals r of an image, whose derivatives by the parameters are J (6, n)."""
        inside = self._inside(image.passed)
        square, along = max(float(inside @ inside), 1e-12), changes.parts @ inside
        gain = max(float(self._seen @ inside) / square, 0.0)
        # The gain follows the image (variable projection, Kaufman's approximation): r = seen - gain image has no part
        # along the image, nor has J = -gain (changes - their part along the image).
        products = gain**2 * (changes.products - np.outer(along, along) / square)
        slopes = -gain * (changes.parts @ self._seen - gain * along)
        return changes.shares @ products @ changes.shares.T, changes.shares @ slopes

    def _inside(self, images):
        """(…, n) values of images (…, rows, columns) in the window."""
        return images.reshape(*images.shape[:-2], -1)[..., self._place]
