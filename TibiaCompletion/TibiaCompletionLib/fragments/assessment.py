"""What a surgeon wants to know of fragments at any pose: how far they have to go, and step and gap in the joint.

All of it is told in the axes of the target (see `target.Target`) and as if the leg was a right one, so that a patient
and the mirror image read the same.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.frames import transform_points
from TibiaCompletionLib.fragments.bodies import overlap
from TibiaCompletionLib.fragments.fitting import AGREEMENT

# A fragment's vertex is on the joint where it is that close to the target's joint at the planned place.
JOINT_MM = 3.0
# Step is read where the neighbour's joint surface begins that near; gap from broken faces this far below the joint
# whose neighbour's face lies that near.
LINE_MM, FACE_DEPTH_MM, FACES_MM = 5.0, (1.0, 7.0), 8.0
# Fewer places than that along the fracture line say nothing.
FEWEST = 5
PERCENTILE = 95


@dataclass(frozen=True)
class Figure:
    """A column of the table of fragments.

    Attributes:
        title: its heading.
        unit: "mm" or "degrees".
        text: what it says, with its sign.
    """

    title: str
    unit: str
    text: str


FIGURES = {
    "valgus_deg": Figure(
        "Valgus", "degrees", "about the anterior axis; positive turns the distal end laterally, negative is varus"
    ),
    "flexion_deg": Figure(
        "Flexion", "degrees", "about the lateral axis; positive turns the distal end backwards, negative is extension"
    ),
    "external_rotation_deg": Figure(
        "External rotation", "degrees", "torsion about the long axis; positive turns the front outwards"
    ),
    "lateral_mm": Figure("Lateral", "mm", "translation of the fragment's middle; negative is medial"),
    "anterior_mm": Figure("Anterior", "mm", "translation of the fragment's middle; negative is posterior"),
    "proximal_mm": Figure("Proximal", "mm", "translation of the fragment's middle; negative is distal"),
    "step_mm": Figure(
        "Step",
        "mm",
        "height of the joint surface over the neighbour's across the fracture line, along the normal of the target's "
        "joint, 95th percentile; empty where no fracture line crosses a joint",
    ),
    "gap_mm": Figure(
        "Gap",
        "mm",
        "distance of the broken faces just below the joint, at right angles to the neighbour's face, 95th percentile; "
        "empty where no fracture line crosses a joint",
    ),
    "overlap_mm": Figure("Overlap", "mm", "how deep the fragment and another reach into each other"),
}


@dataclass(frozen=True, eq=False)
class FragmentFigures:
    """One fragment at one pose.

    Rotation is the rotation vector of the motion from the CT to the pose, about the target's axes; translation is that
    of the fragment's middle. Each says what has to be done to the fragment, not how it lies.

    Attributes:
        values: {name of `FIGURES`: float}; NaN where there is none.
        step: (n,) height of each of the fragment's vertices on the joint over the target's joint surface, mm, positive
            where the fragment stands out of the bone; NaN elsewhere.
        gap: (n,) distance of the vertices of the broken faces below the joint from the neighbour's face, mm, negative
            where they overlap; NaN elsewhere.
    """

    values: dict
    step: np.ndarray
    gap: np.ndarray


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Vertices of a fragment and, for each, a point of a neighbour across the fracture.

    Attributes:
        vertex: (m,) of the fragment.
        neighbour: (m,) which fragment is across.
        partner: (m,) its vertex.
    """

    vertex: np.ndarray
    neighbour: np.ndarray
    partner: np.ndarray


class Assessment:
    """Fragments of a planned reduction, whose figures are asked for again and again while one is moved.

    What lies across which fracture is settled once, at the planned places; from then on steps and gaps follow from the
    poses alone.

    Args:
        reduction: `reduction.Reduction`.
    """

    def __init__(self, reduction):
        self._target, self._bodies, self._planned = reduction.target, reduction.bodies, np.array(reduction.poses)
        self._middles = [body.surface.vertices.mean(0) for body in self._bodies]
        self._places = [transform_points(p, b.surface.vertices) for p, b in zip(self._planned, self._bodies)]
        self._looks = [b.normals @ p[:3, :3].T for p, b in zip(self._planned, self._bodies)]
        self._heights, self._upwards, self._joints, faces = [], [], [], []
        for places, looks in zip(self._places, self._looks):
            height, upward = self._target.bone.nearest(places)
            joint = self._target.joint[self._target.bone.tree.query(places)[1]]
            agree = (looks * upward).sum(1) > AGREEMENT
            self._heights.append(height)
            self._upwards.append(upward)
            self._joints.append(np.flatnonzero(joint & agree & (np.abs(height) < JOINT_MM)))
            low, high = FACE_DEPTH_MM
            faces.append(np.flatnonzero(joint & ~agree & (height < -low) & (height > -high)))
        everything = [np.arange(len(places)) for places in self._places]
        self._lines = self._across(self._joints, self._joints, LINE_MM, 1)
        self._faces = self._across(faces, everything, FACES_MM, -1)
        self._poses = np.full(self._planned.shape, np.nan)
        self._depths = np.zeros((len(self._bodies), len(self._bodies)))

    def _across(self, own, others, reach_mm, alike):
        """`_Pairs` of each fragment: its vertices `own` with the nearest of `others` of another fragment.

        Args:
            own, others: for each fragment, indices of vertices.
            reach_mm: how near these must be at the planned places.
            alike: 1 or -1, whether the two look the same way or against each other.
        """
        pairs = []
        for number, index in enumerate(own):
            best = np.full(len(index), reach_mm)
            neighbour, partner = np.full(len(index), -1), np.zeros(len(index), dtype=int)
            for other, theirs in enumerate(others):
                if other == number or len(theirs) == 0 or len(index) == 0:
                    continue
                distance, nearest = cKDTree(self._places[other][theirs]).query(self._places[number][index])
                look = (self._looks[number][index] * self._looks[other][theirs][nearest]).sum(1)
                closer = (distance < best) & (alike * look > AGREEMENT)
                best[closer], neighbour[closer], partner[closer] = distance[closer], other, theirs[nearest][closer]
            found = neighbour >= 0
            pairs.append(_Pairs(index[found], neighbour[found], partner[found]))
        return pairs

    def figures(self, motions):
        """The figures of all fragments at other places.

        Args:
            motions: (k, 4, 4) rigid motions of the fragments from where they lie in the CT, RAS mm.

        Returns:
            list of FragmentFigures.
        """
        poses = np.array([self._target.motion_from_ras(motion) for motion in motions])
        overlaps = self._overlaps(poses)
        return [self._figures(number, poses, overlaps[number].max()) for number in range(len(poses))]

    def _figures(self, number, poses, deepest):
        turn = np.degrees(Rotation.from_matrix(poses[number][:3, :3]).as_rotvec())
        middle = self._middles[number]
        shift = transform_points(poses[number], middle[None])[0] - middle
        gap = self._gaps(number, poses)
        told = (*-turn[[1, 0, 2]], *shift, self._line_step(number, poses), _extreme(gap[np.isfinite(gap)]), deepest)
        values = dict(zip(FIGURES, map(float, told), strict=True))
        return FragmentFigures(values, self._steps(number, poses), gap)

    def _overlaps(self, poses):
        """(k, k) how deep fragments reach into each other, mm; what has not moved is remembered."""
        moved = [not np.array_equal(pose, before) for pose, before in zip(poses, self._poses)]
        self._poses = poses
        for a, b in combinations(range(len(poses)), 2):
            if moved[a] or moved[b]:
                depth = overlap(self._bodies[a], poses[a], self._bodies[b], poses[b])
                self._depths[a, b] = self._depths[b, a] = depth
        return self._depths

    def _moved(self, number, vertex, poses):
        """(m, 3) how far vertices of a fragment are from their planned places."""
        points = self._bodies[number].surface.vertices[vertex]
        return transform_points(poses[number], points) - self._places[number][vertex]

    def _steps(self, number, poses):
        step, joint = np.full(len(self._places[number]), np.nan), self._joints[number]
        moved = self._moved(number, joint, poses)
        step[joint] = self._heights[number][joint] + (moved * self._upwards[number][joint]).sum(1)
        return step

    def _line_step(self, number, poses):
        pairs = self._lines[number]
        upward = self._upwards[number][pairs.vertex]
        height = self._heights[number][pairs.vertex] + (self._moved(number, pairs.vertex, poses) * upward).sum(1)
        for other in np.unique(pairs.neighbour):
            chosen = pairs.neighbour == other
            partner = pairs.partner[chosen]
            moved = self._moved(other, partner, poses)
            height[chosen] -= self._heights[other][partner] + (moved * upward[chosen]).sum(1)
        return _extreme(np.abs(height))

    def _gaps(self, number, poses):
        pairs, gap = self._faces[number], np.full(len(self._places[number]), np.nan)
        for other in np.unique(pairs.neighbour):
            chosen = pairs.neighbour == other
            vertex, partner = pairs.vertex[chosen], pairs.partner[chosen]
            points = transform_points(poses[number], self._bodies[number].surface.vertices[vertex])
            across = transform_points(poses[other], self._bodies[other].surface.vertices[partner])
            outward = self._bodies[other].normals[partner] @ poses[other][:3, :3].T
            gap[vertex] = ((points - across) * outward).sum(1)
        return gap


def _extreme(values):
    return float(np.percentile(values, PERCENTILE)) if len(values) >= FEWEST else float("nan")
