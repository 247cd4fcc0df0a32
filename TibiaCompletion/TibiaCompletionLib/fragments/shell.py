"""The bone's shell across breaks: what of it is missing beside a fragment, or is there twice.

A piece of a joint has no columns of cortex all around, and its broken faces are often as dark as muscle. But where its
shell ends its neighbours' begins. So the bone found along a normal of the target, all fragments' together, is as much
as within the fragments around, less where some has crumbled away: nothing is there twice.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from BoneReconstructionLib.frames import transform_points
from TibiaCompletionLib.fragments.bodies import inverse

# Bone is spread out by so much and looked for in such depths along the target's normals, outwards: as far as the
# target may err.
SMOOTHING_MM, GRID_MM = 1.5, 1.0
DEPTHS_MM = np.arange(-5.0, 4.1, 1.5)
# The target's places near a break: so near the fragment, and so near another one.
OWN_MM, OTHER_MM = 6.0, 15.0
# A place lies within a fragment where nearly all is its; the median of that many places within tells what is usual.
WITHIN, NEIGHBOURS = 0.98, 30
# Less than that share of a median place's bone is none; less than that share of what is usual is none of a fragment.
LEAST, SEEN = 0.3, 0.02
# Where less than that is left, bone is missing even if all of it is one fragment's.
MISSING = 0.8
FEWEST, DIFFERENCE_MM = 10, 0.5


@dataclass(frozen=True, eq=False)
class Shell:
    """The shell across a fragment's breaks.

    Attributes:
        places: (n, 3) on the target, mm.
        excess: (n,) bone there, relative to what is usual around, less 1: -1 where there is none, 1 where it is twice.
        slopes: (k, n, 3) how each fragment's share of it grows along the target, 1 / mm.
    """

    places: np.ndarray
    excess: np.ndarray
    slopes: np.ndarray


class ShellBalance:
    """How much of a bone's shell there is where fragments that move meet.

    Args:
        bone: `Body` of the healthy bone.
        amounts: `BoneAmounts` of the fragments in the same frame.
    """

    def __init__(self, bone, amounts):
        self._places, self._normals = bone.surface.vertices, bone.normals
        self._fields = [_Field(amount.points, amount.amounts) for amount in amounts]

    def beside(self, number, poses, slip):
        """The shell where a fragment meets others.

        Args:
            number: the fragment's.
            poses: (4, 4) rigid of all fragments.
            slip: (4, 4) rigid, how the fragment's part of the target gives way.

        Returns:
            Shell; None where the fragment meets none.
        """
        places = transform_points(slip, self._places)
        near = np.flatnonzero(self._fields[number].near(poses[number], places, OWN_MM))
        others = [other for other in range(len(poses)) if other != number]
        meets = np.any([self._fields[other].near(poses[other], places[near], OTHER_MM) for other in others], 0)
        near = near[meets]
        if len(near) < NEIGHBOURS:
            return None
        places, normals = places[near], self._normals[near] @ slip[:3, :3].T
        shares = np.array([field.along(pose, places, normals) for field, pose in zip(self._fields, poses, strict=True)])
        whole = shares.sum(0)
        within = (shares.max(0) > WITHIN * whole) & (whole > LEAST * np.median(whole))
        if np.count_nonzero(within) < NEIGHBOURS:
            return None
        usual = np.median(whole[within][cKDTree(places[within]).query(places, NEIGHBOURS)[1]], 1)
        open_ = (shares[number] < WITHIN * whole) | (whole < MISSING * usual)
        chosen = np.flatnonzero((shares[number] > SEEN * usual) & open_)
        if len(chosen) < FEWEST:
            return None
        places, normals, usual = places[chosen], normals[chosen], usual[chosen]
        slopes = np.zeros((len(poses), len(chosen), 3))
        for way in _tangents(normals):
            ahead, behind = places + DIFFERENCE_MM * way, places - DIFFERENCE_MM * way
            for slope, field, pose in zip(slopes, self._fields, poses, strict=True):
                change = field.along(pose, ahead, normals) - field.along(pose, behind, normals)
                slope += (change / (2 * DIFFERENCE_MM * usual))[:, None] * way
        return Shell(places, whole[chosen] / usual - 1, slopes)


class _Field:
    """A fragment's bone, spread out on a grid in the frame in which it is given."""

    def __init__(self, points, amounts):
        self._points = points
        margin = 4 * SMOOTHING_MM
        low, high = (points.min(0), points.max(0)) if len(points) else np.zeros((2, 3))
        self._low = low - margin
        place = (points - self._low) / GRID_MM
        below = np.floor(place).astype(int)
        shape = np.ceil((high - low + 2 * margin) / GRID_MM).astype(int) + 2
        grid = np.zeros(np.prod(shape))
        for corner in np.ndindex(2, 2, 2):
            part = np.where(corner, place - below, 1 - place + below).prod(1) * amounts
            grid += np.bincount(np.ravel_multi_index(tuple((below + corner).T), shape), part, len(grid))
        grid = grid.reshape(shape).astype(np.float32)
        self._grid = ndimage.gaussian_filter(grid, SMOOTHING_MM / GRID_MM, mode="constant", truncate=3)

    @cached_property
    def _tree(self):
        return cKDTree(self._points)

    def near(self, pose, places, reach_mm):
        """(n,) whether the fragment at its pose has bone within reach of places (n, 3)."""
        local = transform_points(inverse(pose), places)
        near = ((local > self._tree.mins - reach_mm) & (local < self._tree.maxes + reach_mm)).all(1)
        near[near] = np.isfinite(self._tree.query(local[near], distance_upper_bound=reach_mm)[0])
        return near

    def along(self, pose, places, normals):
        """(n,) bone of the fragment at its pose along the normals (n, 3) of places (n, 3)."""
        points = (places[:, None] + DEPTHS_MM[:, None] * normals[:, None]).reshape(-1, 3)
        index = (transform_points(inverse(pose), points) - self._low) / GRID_MM
        if (index.max(0) < 0).any() or (index.min(0) > np.array(self._grid.shape) - 1).any():
            return np.zeros(len(places))  # this fragment lies elsewhere
        return ndimage.map_coordinates(self._grid, index.T, order=1).reshape(len(places), -1).sum(1)


def _tangents(normals):
    """Two unit vectors (n, 3) across each normal (n, 3)."""
    beside = np.where(np.abs(normals[:, :1]) < 0.6, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    first = np.cross(normals, beside)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return first, np.cross(normals, first)
