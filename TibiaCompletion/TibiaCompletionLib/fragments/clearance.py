"""The last step of a reduction: fragments that still lie in each other are shifted apart, as little as that takes.

The fit of the fragments does not know where their segmentation leaks; it may leave a fragment's surface in another's.
No plan may show that. A turn would follow the leaks, so that fragments are only shifted here: their shifts, squared and
weighed by volume, are the least by which no vertex lies deeper in another fragment than is allowed (least distance
programming, Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23). A leak that sticks in another
fragment like a tongue has no way out that is short for all of its vertices, so that each may give in a little.
"""

from itertools import permutations

import numpy as np
from scipy.optimize import nnls

from BoneReconstructionLib.shapefitting import spread_over
from BoneReconstructionLib.surfaces import volume_mm3
from TibiaCompletionLib.fragments.bodies import deep_vertices

# How deep a vertex may lie in another fragment, mm; those deeper than the goal are asked out, so that few rounds do.
ALLOWED_MM, GOAL_MM = 0.95, 0.8
ROUNDS, POINTS = 24, 60
# A vertex that gives in by this much costs what a shift by a millimetre does. No fragment goes farther than the step in
# one round, because then vertices may have other ways out.
SLACK, LARGEST_STEP_MM = 0.3, 0.5
# Fragments that need more than that do not lie in each other for their segmentation's sake.
MOST_MM = 5.0


def cleared(bodies, poses):
    """Shift fragments until none lies in another.

    Args:
        bodies: list of `Body`; the first stays.
        poses: list of (4, 4) rigid.

    Returns:
        list of (4, 4); as given where that would take more than `MOST_MM` or does not succeed.
    """
    volumes = np.array([volume_mm3(body.surface) for body in bodies])
    ease = np.repeat(np.sqrt(volumes[1:].sum() / volumes[1:]), 3)
    shifted = [pose.copy() for pose in poses]
    for _ in range(ROUNDS):
        rows, wanted, deepest = _constraints(bodies, shifted)
        if deepest <= ALLOWED_MM:
            return shifted
        shifts = (ease * _least_shift(rows * ease, wanted)).reshape(-1, 3)
        shifts *= min(1.0, LARGEST_STEP_MM / np.linalg.norm(shifts, axis=1).max())
        for pose, shift in zip(shifted[1:], shifts, strict=True):
            pose[:3, 3] += shift
        if max(np.linalg.norm((new - old)[:3, 3]) for new, old in zip(shifted, poses, strict=True)) > MOST_MM:
            break
    return list(poses)


def _constraints(bodies, poses):
    """(rows (m, 3 * (k - 1)), (m,) mm that their products with the shifts have to reach, depth of the deepest vertex)."""
    rows, wanted, deepest = [], [], 0.0
    for a, b in permutations(range(len(bodies)), 2):
        depth, outward = deep_vertices(bodies[a], poses[a], bodies[b], poses[b], GOAL_MM)
        if not len(depth):
            continue
        deepest = max(deepest, depth.max())
        order = np.argsort(-depth)
        order = order[spread_over(len(order), POINTS)]
        block = np.zeros((len(order), len(bodies), 3))
        block[:, a], block[:, b] = outward[order], -outward[order]
        rows.append(block[:, 1:].reshape(len(order), -1))
        wanted.append(depth[order] - GOAL_MM)
    unknowns = 3 * (len(bodies) - 1)
    return np.concatenate([np.zeros((0, unknowns)), *rows]), np.concatenate([np.zeros(0), *wanted]), deepest


def _least_shift(rows, wanted):
    """The shortest x with rows @ x >= wanted, to within the slack."""
    system = np.vstack([rows.T, SLACK * np.eye(len(rows)), wanted])
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    residual = system @ nnls(system, goal)[0] - goal
    return -residual[: rows.shape[1]] / residual[-1]
