"""Where a CT's bone may lie: turned in many ways, and shifted to where it agrees best with both X-rays.

In a view, a shift of the bone hardly does more than shift its image: the normalised correlations of one image with an
X-ray at all shifts are a few fast Fourier transforms, and a shift in space is looked up in those of both views.
"""

import itertools
from functools import partial

import numpy as np

from BiplanarReconLib.spectra import Spectra
from BoneReconstructionLib.threads import together

# About each axis of the world; those within the reach are tried.
TURNS_DEGREES, REACH_DEGREES = (-20.0, -10.0, 0.0, 10.0, 20.0), 20.5
REACH_MM, STEP_MM = 32.0, 4.0


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
