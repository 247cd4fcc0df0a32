"""Rigid alignment of bones: from corresponding points, and of whole surfaces by iterated closest points."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import similarity_from_points
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume

Region = Volume | Callable[[np.ndarray], np.ndarray]

_COARSE = 500, 20, 0.02  # points of each surface, steps, and the movement in mm that ends them
_FINE = 5000, 50, 0.001
_SMALLEST_REGION = 100
_MIRROR_GAIN = 0.8
_FLIPS = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def turned_about(turn, centre, shift):
    """(4, 4) rigid motion: turned about a centre (3,) by a rotation vector (3,), radians, then shifted (3,), mm.

    Many at once: (n, 4, 4) of (n, 3) turns, centres and shifts.
    """
    rotation = Rotation.from_rotvec(turn).as_matrix()
    matrix = np.zeros((*rotation.shape[:-2], 4, 4))
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = centre + shift - (rotation @ np.asarray(centre)[..., None])[..., 0]
    matrix[..., 3, 3] = 1.0
    return matrix


@dataclass(frozen=True, eq=False)
class RigidAlignment:
    """A rotation and translation, never a scaling or mirroring.

    Attributes:
        fixed_from_moving: (4, 4) maps the moving surface's points into the fixed surface's frame, mm.
        rms_mm: root mean square of the point-to-triangle distances of the pairs that the alignment rests on.
        points_used: number of those pairs; pairs more than three robust standard deviations apart are left out.
    """

    fixed_from_moving: np.ndarray
    rms_mm: float
    points_used: int


def rigid_from_points(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Best rotation and translation from corresponding points (Kabsch 1976), never a mirroring.

    Args:
        source: (n, 3) mm, at least three points that are not on one line.
        target: (n, 3) mm, in the same order.

    Returns:
        (4, 4) target_from_source.

    Raises:
        InputError: the numbers of points differ, or are too few or on one line.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise InputError("A rigid alignment needs equally many points of three coordinates on both sides.")
    spreads = [np.linalg.svd(points - points.mean(axis=0), compute_uv=False) for points in (source, target)]
    if len(source) < 3 or any(spread[1] <= 1e-9 * spread[0] for spread in spreads):
        raise InputError("A rigid alignment needs at least three points that are not on one line.")
    return similarity_from_points(source, target, scaled=False)


def align_rigid(moving: Surface, fixed: Surface, region: Region | None = None) -> RigidAlignment:
    """Moves one surface onto another by robust point-to-plane iterated closest points.

    Starts from the poses as they are and from the four ways to lay the principal axes on each other, and keeps the
    best. Pairs more than three robust standard deviations apart do not count, so that a part may differ or be missing.

    Args:
        moving: surface to be moved.
        fixed: surface that stays.
        region: which points of the fixed surface count in the end: a mask, or a function from points (n, 3) in RAS mm
            to bool (n,); all when None. The whole surfaces find the pose from which the region is fitted.

    Raises:
        InputError: one bone is left and the other right; hardly any of the fixed surface lies in the region; a
            surface has no triangles.
    """
    pair = _Pair(moving, fixed)
    chosen = None if region is None else pair.in_region(region)
    pose = pair.best([np.eye(4), *pair.axis_poses(np.eye(4))], _COARSE)
    _refuse_mirrored(pair, pose)
    if chosen is None:
        return pair.result(pair.fit(pose, _FINE))
    pair.restrict(chosen)
    return pair.result(pair.best([pose, np.eye(4)], _FINE))


class _Side:
    """One surface with what finds closest points on it and evenly spread points, in random order, with normals."""

    def __init__(self, surface, count, seed):
        a, b, c = (surface.vertices[surface.faces[:, corner]] for corner in range(3))
        vectors = np.cross(b - a, c - a)
        areas = np.linalg.norm(vectors, axis=1)
        self.locator = SurfaceLocator(surface)
        self.normals = vectors / np.where(areas > 0, areas, 1)[:, None]
        random = np.random.default_rng(seed)
        face = random.choice(len(areas), count, p=areas / areas.sum())
        u, v = random.random((2, count, 1))
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        self.points = a[face] + u * (b - a)[face] + v * (c - a)[face]

    def axes(self):
        centre = self.points.mean(axis=0)
        return centre, np.linalg.eigh(np.cov((self.points - centre).T))[1]


class _Pair:
    """A moving and a fixed surface; a pose is the (4, 4) matrix fixed_from_moving, which may mirror."""

    def __init__(self, moving, fixed):
        self._moving, self._fixed = _Side(moving, _FINE[0], 1), _Side(fixed, _FINE[0], 2)
        self._from_moving, self._from_fixed = self._moving.points, self._fixed.points

    def in_region(self, region):
        """Which of the fixed surface's points lie in the region."""
        chosen = _in_region(self._fixed.points, region)
        if np.count_nonzero(chosen) < _SMALLEST_REGION:
            raise InputError("The region holds hardly any of the second bone's surface; choose one that covers more.")
        return chosen

    def restrict(self, chosen):
        """Lets only these of the fixed surface's points count from now on."""
        self._from_moving, self._from_fixed = self._moving.points[:0], self._fixed.points[chosen]

    def axis_poses(self, before):
        """The four poses that lay the principal axes of the moving surface, once `before` moved it, on the fixed's."""
        from_centre, from_axes = self._moving.axes()
        to_centre, to_axes = self._fixed.axes()
        from_centre, from_axes = before[:3, :3] @ from_centre + before[:3, 3], before[:3, :3] @ from_axes
        proper = to_axes * [1, 1, np.linalg.det(to_axes) * np.linalg.det(from_axes)]
        for flip in _FLIPS:
            rotation = (proper * flip) @ from_axes.T
            yield _matrix(rotation, to_centre - rotation @ from_centre) @ before

    def best(self, starts, effort):
        return min((self.fit(start, effort) for start in starts), key=self.misfit)

    def misfit(self, pose):
        """Mean distance in mm between the surfaces, from evenly spread points of both."""
        moved, feet, _ = self._pairs(pose, _FINE[0])
        return np.linalg.norm(moved - feet, axis=1).mean()

    def fit(self, pose, effort):
        count, steps, still = effort
        size = np.linalg.norm(np.ptp(self._fixed.points, axis=0))
        for _ in range(steps):
            moved, feet, normals = self._pairs(pose, count)
            kept = _close(np.linalg.norm(moved - feet, axis=1))
            step, moved_by = _step(moved[kept], feet[kept], normals[kept], size)
            pose = step @ pose
            if moved_by < still:
                break
        return pose

    def result(self, pose):
        moved, feet, _ = self._pairs(pose, _FINE[0])
        distances = np.linalg.norm(moved - feet, axis=1)
        used = distances[_close(distances)]
        return RigidAlignment(pose, float(np.sqrt(np.mean(used**2))), len(used))

    def _pairs(self, pose, count):
        """Moved points, the fixed surface's points they belong to, and the normals there, each (n, 3)."""
        rotation, shift = pose[:3, :3], pose[:3, 3]
        moved = self._from_moving[:count] @ rotation.T + shift
        feet, _, faces = self._fixed.locator.closest(moved)
        targets = self._from_fixed[:count]
        sources, _, source_faces = self._moving.locator.closest((targets - shift) @ rotation)
        normals = self._moving.normals[source_faces] @ rotation.T
        return (
            np.concatenate([moved, sources @ rotation.T + shift]),
            np.concatenate([feet, targets]),
            np.concatenate([self._fixed.normals[faces], normals]),
        )


def _close(distances):
    # Three standard deviations of a normal distribution, of which the median of the absolute values tells.
    return distances <= 3 * 1.4826 * np.median(distances) + 1e-9


def _step(moved, feet, normals, size):
    """The small rigid motion (4, 4) that best closes the gaps along the normals, and how far it moves anything, mm."""
    centre = moved.mean(axis=0)
    arms = moved - centre
    columns = np.column_stack([np.cross(arms, normals) / size, normals])
    gaps = np.einsum("ij,ij->i", feet - moved, normals)
    # What slides along the surface without a gap, as every turn of a sphere does, stays as it is.
    solution = np.linalg.lstsq(columns, gaps, rcond=1e-3)[0]
    turn, shift = solution[:3] / size, solution[3:]
    angle = np.linalg.norm(turn)
    turn *= min(1, 0.3 / max(angle, 1e-12))
    rotation = Rotation.from_rotvec(turn).as_matrix()
    return _matrix(rotation, centre + shift - rotation @ centre), np.linalg.norm(shift) + angle * size


def _in_region(points, region):
    if not isinstance(region, Volume):
        return np.asarray(region(points), bool)
    ijk = np.rint(points @ region.ras_to_ijk[:3, :3].T + region.ras_to_ijk[:3, 3]).astype(int)
    within = ((ijk >= 0) & (ijk < region.array.shape[::-1])).all(axis=1)
    chosen = np.zeros(len(points), bool)
    chosen[within] = region.array[tuple(ijk[within, ::-1].T)]
    return chosen


def _refuse_mirrored(pair, pose):
    """Refuses a pair whose mirror image fits clearly better, by which a left and a right bone give themselves away.

    Among real tibiae of different people the mirror image's mean distance is 0.3-0.75 of the bone's own for a left
    and a right one and 1.4-2.0 for two of one side; two tali come to 0.3-0.9 and 1.15-2, two fibulae or patellae,
    being nearly symmetric, to 0.6-1.2 and 0.87-1.25: these pass unless the case is clear.
    """
    mirrored = pair.best(pair.axis_poses(np.diag([-1.0, 1, 1, 1])), _COARSE)
    if pair.misfit(mirrored) < _MIRROR_GAIN * pair.misfit(pose):
        raise InputError("The two bones look like a left and a right bone; mirror one of them first.")


def _matrix(rotation, shift):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift
    return matrix
