"""All fragments together: broken faces against each other, outer cortex on the predicted bone, and little inside
anything else.

A predicted bone is not known everywhere equally well. Where the first fragment shows it, it is; away from there its
length, its torsion and, less so, its axis are estimates. So each fragment's part of the prediction may give way, as far
as predictions err: where broken faces fit, they decide.
"""

from functools import partial
from itertools import permutations

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.shapefitting import spread_over
from BoneReconstructionLib.threads import together
from TibiaCompletionLib.fragments.bodies import inverse, near
from TibiaCompletionLib.fragments.columns import ColumnBalance
from TibiaCompletionLib.fragments.edges import SPARSE_TRUST, STEP_TRUST
from TibiaCompletionLib.fragments.fitting import FIT_POINTS, lever, robust, rows_on_bone, rows_on_neighbour
from TibiaCompletionLib.fragments.shell import ShellBalance

# Standard deviations of the distances in each step, mm; the first lets faces find each other across a gap.
JOINT_MM = (6.0, 5.0, 4.0, 4.0, 3.0, 3.0, 2.5, 2.0, 2.0, 1.5, 1.5, 1.2, 1.2, 1.0, 1.0, 0.8, 0.8, 0.7, 0.7)
# All fragments have been laid on the bone already, which gives way as a whole: no point of it is far off.
BONE_MM = 1.0
FACE_POINTS = 1000
# How far predictions err in what the first fragment does not show: along x, y, z, mm, and about them, degrees; less,
# but not less than the floor, where a fragment's surface lies nearer to the first one's than the reach. Where the
# prediction itself tells its torsion's error, this counts, and its length's, which may all lie in one gap of a shaft.
# Fragments on the same side of the first share so much of the errors.
PREDICTION_MM, PREDICTION_DEGREES = (0.7, 0.7, 4.0), (0.7, 0.7, 2.0)
FLOOR, REACH_MM = 0.35, 100.0
SHARED = np.array([0.0, 0.0, 0.9, 0.0, 0.0, 0.9])
# Faces farther apart than predictions err and this much are not taken to have been one.
FACE_REACH_MM, FACE_REACH_SD = 1.5, 2.5
# Neighbouring points of cortex share their errors. Broken faces have lost bone and are badly segmented where they lie
# close in the CT, so that all of two faces, however large and however far apart, tell 1 / mm^2 as much as this.
INDEPENDENT_SHARE = 0.05
FACE_INFORMATION = 2.0
# Fewer dense edges than that show no face, nor does a smaller share of steps; fewer edges that fit than that tell less.
MOSTLY_SHOWN, FEWEST_DENSE, LEAST_MATCHED = 0.5, 30, 5.0
# Columns of bone across a break: what all have lost; how far those err, mm, that miss more and those that lie in each
# other, of which there is none in truth while bone may have crumbled away. All of a break's tell as much as their mean
# errs, 0.7 mm on virtual people, and more beside broken faces in a rough segmentation, which err by millimetres all the
# same way; fewer columns than that tell less.
LOST_MM, MISSING_SD_MM, DOUBLE_SD_MM = 0.3, 1.5, 3.0
COLUMN_INFORMATION, ROUGH_COLUMN_INFORMATION, FEWEST_COLUMNS = 2.0, 30.0, 8.0
# The shell beside a fragment is asked once the fragment is nearly there, and for its shift alone: bone that crumbled
# away on one side would turn it. What is missing may have crumbled away, but nothing is there twice, so that this tells
# more; both err by so much of what is usual. Where columns tell what is missing, only what is surely there twice counts.
SHELL_FROM_MM, SHELL_INFORMATION, TWICE_WORTH = 2.5, 3.0, 4.0
SHELL_MISSING_SD, SHELL_TWICE_SD, SURELY_TWICE = 0.5, 1.0, 0.25
# What no row holds stays where it was laid, along and about the bone less than across it: standard deviations.
STEADY_MM, STEADY_DEGREES = (4.0, 4.0, 10.0), (7.5, 7.5, 19.0)
# How deep fragments may end up inside each other, rounds of parting them, how hard they are parted.
ALLOWED_MM, PARTING_ROUNDS, PARTING_MM, PARTING_POINTS = 0.5, 8, 0.05, 200
# What lies deeper than that is more and more likely a leak of the segmentation, and pushes less.
LEAK_MM = 2.0
# Farther than that they are not pushed: then what overlaps is the segmentation's, not the bone's. Columns of bone tell
# better than a rough segmentation how far fragments of the shaft lie apart.
MOST_PARTED_MM, COLUMNS_PARTED_MM = 8.0, 1.0


def joined(bone, bodies, poses, intervals):
    """Let fragments that are nearly in their places find them together; the first stays.

    Args:
        bone: `Body` of the healthy bone.
        bodies: list of `Body`, the largest first.
        poses: list of (4, 4), from `fitting.place`.
        intervals: {"length": mm, "torsion": degrees} half widths of the prediction's 95 % intervals, where known.

    Returns:
        list of (4, 4).
    """
    if len(bodies) == 1:
        return list(poses)
    state = _State(bone, bodies, poses, intervals)
    for sd in JOINT_MM:
        state.step(sd)
    fitted, most, best = list(state.centres), state.most_parted_mm(), list(state.poses)
    inside, least = state.inside()
    for _ in range(PARTING_ROUNDS - 1):
        if not inside:
            break
        state.step(JOINT_MM[-1], inside)
        if (np.linalg.norm(np.subtract(state.centres, fitted), axis=1) > most).any():
            break
        inside, depth = state.inside()
        if depth < least:
            best, least = list(state.poses), depth
    return best


class _State:
    """Poses of the fragments, and how far their parts of the prediction give way."""

    def __init__(self, bone, bodies, poses, intervals):
        self.bone, self.bodies, self.poses = bone, bodies, list(poses)
        self.chosen = [body.spread(FIT_POINTS) for body in bodies]
        self.errors = self._expected_errors(intervals)
        self.beside = self._beside()
        self.faces = self._facing()
        self.slips = [np.eye(4) for _ in bodies]
        self.centres = [self._points(n, chosen).mean(0) for n, chosen in enumerate(self.chosen)]
        self.laid, self.laid_centres = list(poses), list(self.centres)
        self.precisions = self._precisions()
        self.columns = self.shell = None
        if all(body.bone is not None for body in bodies):
            amounts = [body.bone for body in bodies]
            self.columns, self.shell = ColumnBalance(bone.surface, amounts), ShellBalance(bone, amounts)
        self.pivots = []
        for number, centre in enumerate(self.centres):
            own = [self._points(a, index) for (a, *_), index in self.faces.items() if a == number]
            self.pivots.append(np.concatenate(own).mean(0) if own else centre)

    def _points(self, number, index):
        return transform_points(self.poses[number], self.bodies[number].edges.points[index])

    def _faces(self, number, index):
        return transform_points(self.poses[number], self.bodies[number].edges.faces[index])

    def _normals(self, number, index):
        return self.bodies[number].normals[index] @ self.poses[number][:3, :3].T

    def _expected_errors(self, intervals):
        """(k, 6) standard deviations, mm and radians, of each fragment's part of the prediction."""
        first = cKDTree(self._points(0, slice(None)))
        far = [first.query(self._points(n, chosen))[0].mean() for n, chosen in enumerate(self.chosen)]
        errors = np.tile(np.concatenate([PREDICTION_MM, np.radians(PREDICTION_DEGREES)]), (len(far), 1))
        if "torsion" in intervals:
            errors[:, 5] = np.radians(intervals["torsion"]) / 2
        errors *= np.clip(FLOOR + np.array(far) / REACH_MM, 0, 1)[:, None]
        if "length" in intervals:
            errors[:, 2] = intervals["length"] / 2
        return errors

    def _precisions(self):
        """(6, k, k) inverse covariances of these errors, one for each kind."""
        above = np.sign([centre[2] - self.centres[0][2] for centre in self.centres])
        same_side = (above[:, None] == above) & ~np.eye(len(above), dtype=bool)
        correlation = np.eye(len(above)) + SHARED[:, None, None] * same_side
        return np.linalg.inv(correlation * self.errors.T[:, :, None] * self.errors.T[:, None])

    def _beside(self):
        """{(fragment, neighbour): vertices of the fragment beside the neighbour}."""
        beside = {}
        for a, b in permutations(range(len(self.bodies)), 2):
            reach = FACE_REACH_MM + FACE_REACH_SD * max(self.errors[a, :3].max(), self.errors[b, :3].max())
            beside[a, b] = near(self.bodies[a], self.poses[a], self.bodies[b], self.poses[b], reach)[0]
        return beside

    def _facing(self):
        """{(fragment, neighbour, trust): vertices of the fragment beside the neighbour, trusted so much at least}.

        Where both show dense edges to each other, these alone decide; else steps do, where both show mostly such.
        """
        trusts = {pair: self.bodies[pair[0]].edges.trust[index] for pair, index in self.beside.items()}
        dense = {pair: np.count_nonzero(trust == 1) for pair, trust in trusts.items()}
        mostly = {pair: np.mean(trust >= STEP_TRUST) > MOSTLY_SHOWN for pair, trust in trusts.items() if len(trust)}
        faces = {}
        for (a, b), index in self.beside.items():
            least = SPARSE_TRUST
            if min(dense[a, b], dense[b, a]) >= FEWEST_DENSE:
                least = 1.0
            elif mostly.get((a, b)) and mostly.get((b, a)):
                least = STEP_TRUST
            index = index[trusts[a, b] >= least]
            if len(index):
                faces[a, b, least] = index[spread_over(len(index), FACE_POINTS)]
        return faces

    def most_parted_mm(self):
        """(k,) how far each fragment may be pushed out of others, mm."""
        most = np.full(len(self.bodies), MOST_PARTED_MM)
        for columns in self.columns.breaks(self.poses) if self.columns else ():
            if not self._exact(columns):
                most[[columns.lower, columns.upper]] = COLUMNS_PARTED_MM
        return most

    def _exact(self, columns):
        return self.bodies[columns.lower].exact and self.bodies[columns.upper].exact

    def inside(self):
        """({(fragment, neighbour): vertices too deep in the neighbour}, sum of these pairs' mean depths, mm)."""
        found, total = {}, 0.0
        for (a, b), index in self.beside.items():
            if not len(index):
                continue
            index = index[spread_over(len(index), FACE_POINTS)]
            points = transform_points(inverse(self.poses[b]), self._faces(a, index))
            depth = -self.bodies[b].face_locator.signed(points)
            deepest = np.argsort(-depth)[:PARTING_POINTS]
            if depth[deepest[0]] > ALLOWED_MM:
                found[a, b] = index[deepest]
                total += np.maximum(depth[deepest], 0).mean()
        return found, total

    def step(self, sd, inside=None):
        """One Gauss-Newton step; `inside` as `inside` returns it: these are pushed out."""
        breaks = self.columns.breaks(self.poses) if self.columns else []
        tasks = [partial(self._bone_rows, number, sd) for number in range(len(self.bodies))]
        tasks += [partial(self._face_rows, *key, index, sd) for key, index in self.faces.items()]
        tasks += [partial(self._column_rows, columns, sd) for columns in breaks]
        if self.shell and sd <= SHELL_FROM_MM:
            in_columns = {number for columns in breaks for number in (columns.lower, columns.upper)}
            tasks += [partial(self._shell_rows, n, n in in_columns) for n in range(1, len(self.bodies))]
        tasks += [partial(self._parting_rows, *key, index) for key, index in (inside or {}).items()]
        size = 12 * len(self.bodies)
        normal, right = np.zeros((size, size)), np.zeros(size)
        for blocks, residual, weight in filter(None, together(tasks)):
            columns = np.concatenate([np.arange(first, first + 6) for first, _ in blocks])
            jacobian = np.concatenate([block for _, block in blocks], 1)
            normal[np.ix_(columns, columns)] += (jacobian * weight[:, None]).T @ jacobian
            right[columns] -= jacobian.T @ (weight * residual)
        slipped = np.array([_away(slip, pivot) for slip, pivot in zip(self.slips, self.pivots, strict=True)])
        for axis, precision in enumerate(self.precisions):
            columns = np.arange(6 + axis, size, 12)
            normal[np.ix_(columns, columns)] += precision
            right[columns] -= precision @ slipped[:, axis]
        steady = np.concatenate([STEADY_MM, np.radians(STEADY_DEGREES)]) ** -2.0
        for number, (pose, laid, centre) in enumerate(zip(self.poses, self.laid, self.laid_centres, strict=True)):
            columns = np.arange(12 * number, 12 * number + 6)
            normal[columns, columns] += steady
            right[columns] -= steady * _away(pose @ inverse(laid), centre)
        free = slice(12, size)  # the first fragment stays
        change = np.concatenate([np.zeros(12), np.linalg.solve(normal[free, free], right[free])]).reshape(-1, 4, 3)
        for number, (shift, turn, slip, twist) in enumerate(change):
            self.poses[number] = turned_about(turn, self.centres[number], shift) @ self.poses[number]
            self.slips[number] = turned_about(twist, self.pivots[number], slip) @ self.slips[number]
            self.centres[number] = self.centres[number] + shift

    # Rows: [(first unknown, (n, 6) how the residuals change with it and the next)], residuals (n,), weights (n,). Those
    # of a fragment are its shift and turn from 12 * number on, and those of its part of the prediction.

    def _bone_rows(self, number, sd):
        chosen, slip = self.chosen[number], self.slips[number]
        points, back = self._points(number, chosen), inverse(slip)
        here, normals = transform_points(back, points), self._normals(number, chosen) @ back[:3, :3].T
        outward, residual, weight = rows_on_bone(self.bone, here, normals, min(sd, BONE_MM))
        directions = outward @ slip[:3, :3].T
        moves = lever(points, self.centres[number], directions)
        slips = -lever(points, self.pivots[number], directions)
        return [(12 * number, moves), (12 * number + 6, slips)], residual, INDEPENDENT_SHARE * weight

    def _between(self, a, b, points, directions):
        """Blocks of residuals that grow as a fragment goes along directions away from another."""
        blocks = [(12 * a, lever(points, self.centres[a], directions))]
        return [*blocks, (12 * b, -lever(points, self.centres[b], directions))]

    def _face_rows(self, a, b, trust, index, sd):
        points = self._faces(a, index)
        directions, residual, weight = rows_on_neighbour(
            self.bodies[b], self.poses[b], points, self._normals(a, index), trust, sd
        )
        information = trust * FACE_INFORMATION * weight / max(weight.sum(), LEAST_MATCHED / sd**2)
        return self._between(a, b, points, directions), residual, information

    def _column_rows(self, columns, sd):
        residual = columns.missing_mm - LOST_MM
        expected = np.where(residual > 0, MISSING_SD_MM, DOUBLE_SD_MM) * max(sd, 1.0)
        weight = robust(residual, expected)
        # Where bone crumbled away on one side, its columns would tilt a fragment: only how far it has to go is asked.
        gap = weight @ residual / max(weight.sum(), 1e-12)
        place, up = columns.places.mean(0, keepdims=True), np.array([[0.0, 0.0, 1.0]])
        information = COLUMN_INFORMATION if self._exact(columns) else ROUGH_COLUMN_INFORMATION
        information *= min(1.0, weight.sum() / FEWEST_COLUMNS)
        return self._between(columns.upper, columns.lower, place, up), np.array([gap]), np.array([information])

    def _shell_rows(self, number, in_columns):
        shell = self.shell.beside(number, self.poses, self.slips[number])
        if shell is None:
            return None
        residual = shell.excess + LOST_MM / 2 * np.linalg.norm(shell.slopes, axis=2).sum(0)
        if in_columns:
            residual = np.maximum(residual - SURELY_TWICE, 0)
        twice = residual > 0
        weight = robust(residual, np.where(twice, SHELL_TWICE_SD, SHELL_MISSING_SD))
        weight *= np.where(twice, TWICE_WORTH, 1.0) * SHELL_INFORMATION / max((shell.slopes[number] ** 2).sum(), 1.0)
        unturned = np.zeros_like(shell.places)
        blocks = [(12 * n, np.concatenate([-slopes, unturned], 1)) for n, slopes in enumerate(shell.slopes)]
        return blocks, residual, weight

    def _parting_rows(self, a, b, index):
        points = self._faces(a, index)
        distance, outward = self.bodies[b].way_out(transform_points(inverse(self.poses[b]), points))
        residual = np.minimum(distance + ALLOWED_MM / 2, 0)
        weight = 1 / (PARTING_MM**2 * (1 + (residual / LEAK_MM) ** 2))
        return self._between(a, b, points, outward @ self.poses[b][:3, :3].T), residual, weight


def _away(motion, pivot):
    """(6,) shift of a pivot, mm, and turn, radians, by a rigid motion."""
    shift = transform_points(motion, pivot[None])[0] - pivot
    return np.concatenate([shift, Rotation.from_matrix(motion[:3, :3]).as_rotvec()])
