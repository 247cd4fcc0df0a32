"""How far a bone's projected outline lies from where the X-ray shows it: the reprojection residual in mm."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter, map_coordinates

from BiplanarReconLib.fitting.kneefit import bone_image
from BiplanarReconLib.fitting.shadows import beyond_the_cut
from BoneReconstructionLib.meshthickness import thickness_image

# Profiles across the outline: half length and step, and the shifts that are tried, mm.
HALF_MM, STEP_MM, SHIFT_MM = 4.0, 0.25, 4.0
# A profile shows the outline where it correlates with the model's at least so well.
SHOWN = 0.7
HELD_MM = 1.5


@dataclass(frozen=True)
class Residual:
    """One bone's outline in one view.

    Attributes:
        rms_mm: root mean square of the outline's shifts across itself, at the isocentre; NaN where none is shown.
        shown: share of the outline that the X-ray shows clearly enough to tell.
        held: share of the outline that the X-ray shows within `HELD_MM`.
    """

    rms_mm: float
    shown: float
    held: float


def residual(view, state, bone):
    """The outline's residual of one bone.

    Args:
        view: a `shadows.View`, fine.
        state: `kneefit.KneeState`.
        bone: its name.

    Returns:
        Residual.
    """
    own = bone_image(view, state, bone)
    rest = view.observed - sum(bone_image(view, state, name) for name in state.bones if name != bone)
    thickness = thickness_image(state.bones[bone].surface, view.geometry)
    rim = (thickness > 0) & ~binary_erosion(thickness > 0, border_value=1)
    rim &= view.valid & ~beyond_the_cut(view, state.bones[bone])
    place = np.argwhere(rim)
    if not len(place):
        return Residual(float("nan"), 0.0, 0.0)
    slope = np.stack(np.gradient(gaussian_filter((thickness > 0).astype(float), 1.5)), -1)[rim]
    across = slope / (np.linalg.norm(slope, axis=1, keepdims=True) + 1e-9) / view.pixel_mm  # pixels per mm, inwards
    reach = np.arange(-HALF_MM - SHIFT_MM, HALF_MM + SHIFT_MM + 1e-6, STEP_MM)
    points = place[:, None] + reach[:, None] * across[:, None]
    expected, seen = (
        map_coordinates(image, points.reshape(-1, 2).T, order=1, mode="nearest").reshape(points.shape[:2])
        for image in (own, rest)
    )
    window, shifts = round(2 * HALF_MM / STEP_MM) + 1, round(2 * SHIFT_MM / STEP_MM) + 1
    middle = round(SHIFT_MM / STEP_MM)
    model = _normalised(expected[:, middle : middle + window])
    agreement = np.stack([(model * _normalised(seen[:, k : k + window])).sum(1) for k in range(shifts)], 1)
    best, shift = agreement.max(1), (agreement.argmax(1) - middle) * STEP_MM
    shown = best > SHOWN
    rms = float(np.sqrt(np.mean(shift[shown] ** 2))) if shown.any() else float("nan")
    return Residual(rms, float(shown.mean()), float((shown & (np.abs(shift) <= HELD_MM)).mean()))


def _normalised(profiles):
    centred = profiles - profiles.mean(1, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9)
