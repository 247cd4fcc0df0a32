"""Columns of bone across a break: what is missing between two fragments, or is there twice, at given places.

Where a broken face lies is hidden by a CT's blur and by a rough segmentation, but neither makes bone nor takes any
away. So a column of bone along the shaft, a sector of its cross-sections, holds as much across a break as the intact
bone above and below tells, less what has crumbled away: that is little in most columns, and it is never negative.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.frames import transform_points

SECTORS, STEP_MM, SMOOTHING_MM = 24, 1.0, 1.0
# Heights at which the bone's middle is known, and half the slices that tell it.
MIDDLE_STEP_MM, MIDDLE_HALF_MM = 5.0, 4.0
# A fragment owns a column where nearly all of it is its, and there is about as much as further along the column.
OWNED, FILLED, FURTHER_MM = 0.9, 0.5, 41.0
# So much of the column on both sides of a break belongs to it, and so much beyond tells what would be there.
BREAK_MM, BESIDE_MM = 8.0, 10.0
SHORTEST_MM = 6.0
# A fragment that owns less than this share of the columns is not all around: what is missing beside it may be its fault.
ALL_AROUND = 0.75


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a break between two fragments.

    Attributes:
        lower, upper: numbers of the fragments below and above the break.
        places: (n, 3) where each column is broken, mm.
        missing_mm: (n,) length of the column that is missing; negative where bone lies in bone.
    """

    lower: int
    upper: int
    places: np.ndarray
    missing_mm: np.ndarray


class ColumnBalance:
    """What is missing in the columns of a bone whose fragments move.

    Args:
        bone: Surface of the healthy bone, +z along it, mm.
        amounts: `BoneAmounts` of the fragments in the same frame.
    """

    def __init__(self, bone, amounts):
        self._amounts = amounts
        heights = bone.vertices[:, 2]
        self._low, high = heights.min() - BREAK_MM, heights.max() + BREAK_MM
        self._count = int((high - self._low) / STEP_MM) + 1
        levels = np.arange(heights.min() + MIDDLE_HALF_MM, heights.max(), MIDDLE_STEP_MM)
        rings = [bone.vertices[np.abs(heights - level) < MIDDLE_HALF_MM, :2] for level in levels]
        filled = [number for number, ring in enumerate(rings) if len(ring)]
        self._heights = levels[filled]
        self._middles = np.array([(rings[number].min(0) + rings[number].max(0)) / 2 for number in filled])

    def breaks(self, poses):
        """The breaks between fragments at their poses.

        Args:
            poses: (4, 4) rigid for each fragment.

        Returns:
            list of Columns.
        """
        profiles, x, y = self._profiles(poses)
        wholes = profiles.sum(0)
        runs = [_runs(profiles[:, sector], wholes[sector]) for sector in range(SECTORS)]
        columns = [sum(any(run[0] == number for run in own) for own in runs) for number in range(len(poses))]
        around = [count >= ALL_AROUND * SECTORS for count in columns]
        found = {}
        for sector, whole in enumerate(wholes):
            for lower, upper, first, last in _breaks(runs[sector]):
                if not (around[lower] and around[upper]):
                    continue
                missing = _missing(whole, first, last)
                if missing is not None:
                    own = slice(first, last + 1)
                    mass = whole[own].sum()
                    middle = self._low + STEP_MM * (first + last) / 2
                    place = (x[sector, own].sum() / mass, y[sector, own].sum() / mass, middle)
                    found.setdefault((lower, upper), []).append((place, missing))
        return [
            Columns(lower, upper, np.array([place for place, _ in columns]), np.array([gap for _, gap in columns]))
            for (lower, upper), columns in found.items()
        ]

    def _profiles(self, poses):
        """((fragments, sectors, heights) amounts, (sectors, heights) amounts times x, and times y)."""
        size = SECTORS * self._count
        profiles = np.zeros((len(poses), size))
        x, y = np.zeros(size), np.zeros(size)
        for number, (bone, pose) in enumerate(zip(self._amounts, poses, strict=True)):
            points, amount = transform_points(pose, bone.points), bone.amounts
            away = [points[:, k] - np.interp(points[:, 2], self._heights, self._middles[:, k]) for k in (0, 1)]
            sector = np.floor((np.arctan2(away[1], away[0]) / (2 * np.pi) + 0.5) * SECTORS).astype(int) % SECTORS
            height = (points[:, 2] - self._low) / STEP_MM
            below = np.floor(height).astype(int)
            for level, share in ((below, 1 - height + below), (below + 1, height - below)):
                kept = (level >= 0) & (level < self._count)
                index, part = (sector * self._count + level)[kept], (amount * share)[kept]
                profiles[number] += np.bincount(index, part, size)
                x += np.bincount(index, part * points[kept, 0], size)
                y += np.bincount(index, part * points[kept, 1], size)
        shape = (SECTORS, self._count)
        profiles = ndimage.gaussian_filter1d(profiles.reshape(-1, *shape), SMOOTHING_MM / STEP_MM, axis=2)
        return profiles, x.reshape(shape), y.reshape(shape)


def _runs(column, whole):
    """What of one column each fragment owns: [fragment, first height, last height], upwards.

    Args:
        column: (fragments, heights) amounts.
        whole: (heights,) their sum.
    """
    usual = ndimage.percentile_filter(whole, 80, size=int(FURTHER_MM / STEP_MM))
    owned = (column.max(0) > OWNED * whole) & (whole > FILLED * usual)
    owner = np.where(owned, column.argmax(0), -1)
    ends = np.flatnonzero(np.diff(owner)) + 1
    runs = []
    for first, last in zip(np.r_[0, ends], np.r_[ends, len(owner)] - 1, strict=True):
        if owner[first] < 0 or (last - first + 1) * STEP_MM < SHORTEST_MM:
            continue
        if runs and runs[-1][0] == owner[first]:
            runs[-1][2] = int(last)
        else:
            runs.append([int(owner[first]), int(first), int(last)])
    return runs


def _breaks(runs):
    """Yields (lower, upper, first, last) of one column's runs: two fragments, and the heights between what they own."""
    margin = int((BREAK_MM + BESIDE_MM) / STEP_MM)
    for (lower, start, first), (upper, last, end) in zip(runs, runs[1:]):
        if first - margin >= start and last + margin <= end:
            yield lower, upper, first, last


def _missing(whole, first, last):
    """Length of a column that is missing about the heights `first` to `last`, mm; None where there is no column."""
    reach, beside = int(BREAK_MM / STEP_MM), int(BESIDE_MM / STEP_MM)
    inside = np.arange(first - reach, last + reach + 1)
    outside = np.r_[inside[0] - np.arange(beside, 0, -1), inside[-1] + np.arange(1, beside + 1)]
    slope, level = np.polyfit(outside - inside.mean(), whole[outside], 1)
    expected = level + slope * (inside - inside.mean())
    if level <= 0:
        return None
    return float((expected - whole[inside]).sum() / level * STEP_MM)
