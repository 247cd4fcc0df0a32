"""Where in a CT tibiae could lie: the mean leg of either side tried along every long bone of a coarse copy.

Bones in contact are one object to a threshold, so that nothing is made of whole objects. Shafts are what stays alike
from slice to slice; along each of them tibia and fibula of the mean leg, right and left, are slid, turned and scaled
over the distances to the nearest bone edge, and the best places are improved by closest points with normals.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from BoneReconstructionLib.frames import SIDES, rotation_about, side_to_right, similarity_from_points, transform_points
from BoneReconstructionLib.meshing import isosurface
from BoneReconstructionLib.shapefitting import spread_over
from BoneReconstructionLib.surfaces import Surface, vertex_normals
from BoneReconstructionLib.volumes import Volume

COARSE_MM = 2.0
MOST_COARSE_VOXELS = 12_000_000
# In 2 mm voxels: above contrast-filled soft tissue, below a millimetre of cortex on osteoporotic trabeculae.
BONE_HU = 200.0
# Shafts: root mean square radius of a cross-section, how far its middle moves and its radius changes in a slice.
SHAFT_RADIUS_MM = (6.0, 26.0)
SHAFT_DRIFT, SHAFT_GROWTH = 1.2, 1.3
SHORTEST_SHAFT_MM = 30.0
SAME_LINE_MM, SAME_LINE_DEGREES = 9.0, 12.0
MOST_SHAFTS = 14
# The search: steps and what counts as near.
SHIFT_MM, TURNS, SCALES = 10.0, 16, (0.85, 0.95, 1.05, 1.15)
FIELD_MM, NEAR_MM = 4.0, 4.5
OUTSIDE_MM = 8.0
SEARCH_POINTS = 300
KEPT_PER_SHAFT, UNLIKE_MM = 14, 12.0
# Improvement by closest points; a normal turned by a right angle counts as this far away.
NORMAL_MM = 8.0
MATCH_MM = 5.0
# All poses of a shaft go the first steps, the best the others; correspondences are held looser in the first.
FIRST_STEPS, LAST_STEPS, KEPT_OF_SHAFT = (20.0, 15.0, 11.0, 8.5, 6.5), (6.0, 5.0, 4.0, 3.5, 3.0, 3.0, 3.0, 3.0), 6
IMPROVED_POINTS = 350
SCALE_LIMITS = (0.78, 1.28)
LEAST_SEEN = 0.2


@dataclass(frozen=True, eq=False)
class BoneEdges:
    """Bone surfaces of a coarse copy of the CT, endosteal ones and those of every other dense thing included.

    Attributes:
        coarse: (K, J, I) float32 mean HU of about `COARSE_MM` wide voxels.
        points: (n, 3) RAS mm.
        faces: (m, 3) triangles of the points.
        normals: (n, 3) unit vectors towards lower HU.
    """

    coarse: Volume
    points: np.ndarray
    faces: np.ndarray
    normals: np.ndarray

    def inside(self, points, margin_mm=0.0):
        """(n,) bool: which RAS points lie in the scan, this far from its ends."""
        index = transform_points(self.coarse.ras_to_ijk, points)
        margin = margin_mm / self.coarse.spacing
        return ((index > margin) & (index < np.array(self.coarse.shape[::-1]) - 1 - margin)).all(1)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A pose of the mean leg.

    Attributes:
        side: "left" or "right".
        matrix: (4, 4) similarity from the standard frame to RAS turned to the right side (see `frames`).
        score: -1 to 1, how well the mean leg's surface is found; what lies outside the scan counts as 0.
        centre: (3,) RAS of the mean tibia's middle.
    """

    side: str
    matrix: np.ndarray
    score: float
    centre: np.ndarray


def coarse_copy(ct):
    """Mean of blocks of voxels of about `COARSE_MM`, wider where the CT is large; float32."""
    wanted = max(COARSE_MM, np.cbrt(ct.array.size * np.prod(ct.spacing) / MOST_COARSE_VOXELS))
    factors = np.maximum(np.rint(wanted / ct.spacing[::-1]), 1).astype(int)
    factors = np.minimum(factors, ct.shape)
    counts = np.array(ct.shape) // factors
    coarse = np.empty(counts, dtype=np.float32)
    used = ct.array[:, : counts[1] * factors[1], : counts[2] * factors[2]]
    for k in range(counts[0]):
        block = used[k * factors[0] : (k + 1) * factors[0]].astype(np.float32).mean(0)
        coarse[k] = block.reshape(counts[1], factors[1], counts[2], factors[2]).mean((1, 3))
    matrix = ct.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ ((factors[::-1] - 1) / 2)
    matrix[:3, :3] *= factors[::-1]
    return Volume(coarse, matrix)


def bone_edges(coarse):
    """`BoneEdges` of a coarse copy."""
    surface = isosurface(coarse, BONE_HU)
    return BoneEdges(coarse, surface.vertices, surface.faces, vertex_normals(surface))


def shafts(coarse):
    """Long bones' shafts: list of ((3,) middle, (3,) unit direction, length), RAS mm, longest first.

    A shaft is a chain of cross-sections in neighbouring slices, alike in place and size; slices are cut along each of
    the volume's axes.
    """
    bone = coarse.array > BONE_HU
    place = np.nonzero(bone)
    found = []
    for axis in range(3):
        across = np.ones((3, 3, 3), dtype=bool)
        sheet = np.moveaxis(across, axis, 0)
        sheet[0] = sheet[2] = False
        labels, count = ndimage.label(bone, across)
        if count:
            found += _chains(labels[place], place, count, axis, coarse)
    found.sort(key=lambda line: -line[2])
    distinct = []
    for line in found:
        if not any(_same_line(line, other) for other in distinct):
            distinct.append(line)
    return distinct[:MOST_SHAFTS]


def _chains(label, place, count, axis, coarse):
    """Lines of the chains of cross-sections of slices across one axis (0 k, 1 j, 2 i)."""
    index = np.stack(place[::-1], 1)
    points = transform_points(coarse.ijk_to_ras, index)
    size = np.bincount(label, minlength=count + 1)[1:]
    middles = np.stack([np.bincount(label, points[:, c], count + 1)[1:] for c in range(3)], 1) / size[:, None]
    away = ((points - middles[label - 1]) ** 2).sum(1)
    radius = np.sqrt(np.bincount(label, away, count + 1)[1:] / size)
    slices = np.zeros(count, dtype=int)
    slices[label - 1] = place[axis]
    usable = np.flatnonzero((radius > SHAFT_RADIUS_MM[0]) & (radius < SHAFT_RADIUS_MM[1]))
    if len(usable) < 2:
        return []
    middles, radius, slices = middles[usable], radius[usable], slices[usable]
    thickness = coarse.spacing[2 - axis]
    reach = thickness * np.hypot(1.0, SHAFT_DRIFT)
    pairs = cKDTree(middles).query_pairs(reach, output_type="ndarray")
    first, second = pairs.T
    alike = (np.abs(slices[first] - slices[second]) == 1) & (
        np.abs(np.log(radius[first] / radius[second])) < np.log(SHAFT_GROWTH)
    )
    first, second = first[alike], second[alike]
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(usable),) * 2)
    number, chain = connected_components(links, directed=False)
    lines = []
    lengths = np.bincount(chain, minlength=number) * thickness
    for which in np.flatnonzero(lengths >= SHORTEST_SHAFT_MM):
        own = middles[chain == which]
        centre = own.mean(0)
        direction = np.linalg.svd(own - centre, full_matrices=False)[2][0]
        lines.append((centre, direction, float(np.ptp((own - centre) @ direction))))
    return [line for line in lines if line[2] >= SHORTEST_SHAFT_MM]


def _same_line(line, other):
    middle, direction, _ = line
    away = middle - other[0]
    along = away @ other[1]
    parallel = abs(direction @ other[1]) > np.cos(np.radians(SAME_LINE_DEGREES))
    return parallel and np.linalg.norm(away - along * other[1]) < SAME_LINE_MM and abs(along) < other[2] / 2 + 20


class MeanLeg:
    """The mean leg's points that are tried out.

    Args:
        prior: of tibia and fibula, see `shapeprior.load_leg_prior`.
    """

    def __init__(self, prior):
        self.normals = vertex_normals(Surface(prior.mean, prior.faces))
        self.mean = prior.mean
        tibia = prior.mean[prior.part == 0]
        self.middle = tibia.mean(0)
        height = (tibia[:, 2] - tibia[:, 2].min()) / np.ptp(tibia[:, 2])
        self.low, self.high = tibia[:, 2].min(), tibia[:, 2].max()
        shaft = tibia[(height > 0.25) & (height < 0.75)]
        levels = np.digitize(shaft[:, 2], np.linspace(shaft[:, 2].min(), shaft[:, 2].max(), 20))
        middles = np.array([shaft[levels == level].mean(0) for level in range(1, 20)])
        self.shaft_middle = middles.mean(0)
        axis = np.linalg.svd(middles - self.shaft_middle, full_matrices=False)[2][0]
        self.shaft_axis = axis * np.sign(axis[2])

    def chosen(self, count):
        """Indices of about `count` vertices spread over both bones."""
        return spread_over(len(self.mean), count)


def slide_along(shaft, leg, field):
    """Try the mean leg along a shaft.

    Args:
        shaft: (middle, direction, length).
        leg: `MeanLeg`.
        field: `EdgeField`.

    Returns:
        The `KEPT_PER_SHAFT` best `Candidate`s that are unlike each other, of all sides and directions.
    """
    middle, direction, _ = shaft
    chosen = leg.chosen(SEARCH_POINTS)
    points, outside = leg.mean[chosen], leg.mean[chosen] + OUTSIDE_MM * leg.normals[chosen]
    reach = field.reach(middle, direction) + [leg.low * 1.1, leg.high * 1.1]
    shifts = np.arange(reach[0], reach[1], SHIFT_MM)
    found = []
    for side in SIDES:
        mirror = side_to_right(side)
        for sign in (1.0, -1.0):
            towards = mirror[:3, :3] @ (sign * direction)
            upright = _rotation_onto(leg.shaft_axis, towards)
            for turn in range(TURNS):
                rotation = upright @ rotation_about(leg.shaft_axis, 2 * np.pi * turn / TURNS)
                for scale in SCALES:
                    matrix = np.eye(4)
                    matrix[:3, :3] = scale * rotation
                    matrix[:3, 3] = transform_points(mirror, middle[None])[0] - matrix[:3, :3] @ leg.shaft_middle
                    placed = mirror @ matrix
                    scores = field.scores(
                        transform_points(placed, points), transform_points(placed, outside), direction, shifts
                    )
                    best = int(np.argmax(scores))
                    moved = matrix.copy()
                    moved[:3, 3] += mirror[:3, :3] @ (shifts[best] * direction)
                    found.append(Candidate(side, moved, float(scores[best]), _centre(side, moved, leg)))
    found.sort(key=lambda candidate: -candidate.score)
    distinct, places = [], []
    for candidate in found:
        if len(distinct) == KEPT_PER_SHAFT or candidate.score <= 0:
            break
        place = transform_points(candidate.matrix, leg.mean[:: len(leg.mean) // 20])
        if not any(
            candidate.side == other.side and np.linalg.norm(place - known, axis=1).mean() < UNLIKE_MM
            for other, known in zip(distinct, places)
        ):
            distinct.append(candidate)
            places.append(place)
    return distinct


def _centre(side, matrix, leg):
    return transform_points(side_to_right(side) @ matrix, leg.middle[None])[0]


def _rotation_onto(source, target):
    """Rotation (3, 3) that takes one unit vector to another."""
    axis = np.cross(source, target)
    sine, cosine = np.linalg.norm(axis), source @ target
    if sine < 1e-9:
        axis = np.cross(source, [1.0, 0.0, 0.0])
        return np.eye(3) if cosine > 0 else rotation_about(axis / np.linalg.norm(axis), np.pi)
    return rotation_about(axis / sine, np.arctan2(sine, cosine))


class EdgeField:
    """How near bone edges are, on a grid of `FIELD_MM` along RAS, for thousands of poses.

    Args:
        edges: `BoneEdges`.
    """

    def __init__(self, edges):
        corners = np.array(np.meshgrid(*([0, size - 1] for size in edges.coarse.shape[::-1]))).reshape(3, -1).T
        corners = transform_points(edges.coarse.ijk_to_ras, corners)
        self.low = corners.min(0)
        shape = np.ceil(np.ptp(corners, axis=0) / FIELD_MM).astype(int)[::-1] + 1
        near = np.ones(shape, dtype=bool)
        near[tuple(np.rint((edges.points - self.low) / FIELD_MM).astype(int)[:, ::-1].T)] = False
        distance = ndimage.distance_transform_edt(near, FIELD_MM)
        gain = 1 - np.minimum(distance / NEAR_MM, 2.0)
        grid = self.low + FIELD_MM * np.indices(shape)[::-1].reshape(3, -1).T
        self.scanned = edges.inside(grid).reshape(shape)
        gain[~self.scanned] = 0
        index = np.rint(transform_points(edges.coarse.ras_to_ijk, grid)).astype(int)[:, ::-1]
        index = np.clip(index, 0, np.array(edges.coarse.shape) - 1)
        bone = (edges.coarse.array[tuple(index.T)] > BONE_HU).reshape(shape) & self.scanned
        # One cell around the field takes everything outside.
        self.gain = np.pad(gain, 1).astype(np.float32)
        self.bone = np.pad(bone, 1).astype(np.float32)
        self.corners = corners

    def reach(self, middle, direction):
        """Where the scan begins and ends along a line, (2,) mm from its middle."""
        along = (self.corners - middle) @ direction
        return np.array([along.min(), along.max()])

    def scores(self, points, outside, direction, shifts):
        """(s,) scores of a surface (n, 3) moved by each shift along a direction; `outside` are points beside it."""
        on = self._looked_up(self.gain, points, direction, shifts)
        beside = self._looked_up(self.bone, outside, direction, shifts)
        return on - beside

    def _looked_up(self, values, points, direction, shifts):
        start = ((points - self.low) / FIELD_MM)[None] + 1.5
        index = (start + (shifts[:, None] * direction / FIELD_MM)[:, None]).astype(np.int32)
        flat = np.zeros(index.shape[:2], dtype=np.int64)
        for axis, size in enumerate(values.shape):
            flat = flat * size + np.clip(index[..., 2 - axis], 0, size - 1)
        return values.ravel()[flat].mean(1)


def best_poses(shaft, leg, field, edges, tree):
    """Poses of the mean leg along a shaft that fit best: list of at most `KEPT_OF_SHAFT` `Candidate`s.

    Args:
        shaft: (middle, direction, length).
        leg: `MeanLeg`.
        field: `EdgeField`.
        edges: `BoneEdges`.
        tree: from `edge_tree`.
    """
    tried = [_improved(candidate, leg, edges, tree, FIRST_STEPS) for candidate in slide_along(shaft, leg, field)]
    tried.sort(key=lambda candidate: -candidate.score)
    return [_improved(candidate, leg, edges, tree, LAST_STEPS) for candidate in tried[:KEPT_OF_SHAFT]]


def _improved(candidate, leg, edges, tree, widths):
    """Move, turn and scale the mean leg onto the closest edges that look the same way.

    Args:
        candidate: `Candidate`.
        leg: `MeanLeg`.
        edges: `BoneEdges`.
        tree: from `edge_tree`.
        widths: distance in mm at which a point begins to count less, for each step.

    Returns:
        Candidate with another score: 1 where every point has an edge, less one where none has; outside the scan 0.
    """
    chosen = leg.chosen(IMPROVED_POINTS)
    points, normals = leg.mean[chosen], leg.normals[chosen]
    mirror = side_to_right(candidate.side)
    matrix = candidate.matrix
    for width in (*widths, None):
        placed = mirror @ matrix
        here = transform_points(placed, points)
        turned = normals @ placed[:3, :3].T / np.cbrt(abs(np.linalg.det(placed[:3, :3])))
        distance, nearest = tree.query(np.concatenate([here, NORMAL_MM * turned], 1))
        seen = edges.inside(here)
        if width is None or seen.mean() < LEAST_SEEN:
            break
        weight = seen / (1 + (distance / width) ** 2) ** 2
        goal = transform_points(mirror, edges.points[nearest])
        updated = similarity_from_points(points, goal, weight)
        scale = np.cbrt(np.linalg.det(updated[:3, :3]))
        held = np.clip(scale, *SCALE_LIMITS) / scale
        centre = weight @ goal / weight.sum()
        updated[:3, 3] = centre + held * (updated[:3, 3] - centre)
        updated[:3, :3] *= held
        matrix = updated
    score = float((seen * (1 - np.minimum(distance / MATCH_MM, 2.0))).mean()) if seen.mean() >= LEAST_SEEN else -1.0
    return Candidate(candidate.side, matrix, score, _centre(candidate.side, matrix, leg))


def edge_tree(edges):
    """kd-tree of a bone edge's place and direction at once, for `evidence`."""
    return cKDTree(np.concatenate([edges.points, NORMAL_MM * edges.normals], 1))


def evidence(points, normals, edges, tree):
    """How well a surface is found among bone edges.

    Args:
        points: (n, 3) RAS mm.
        normals: (n, 3) unit vectors outwards.
        edges: `BoneEdges`.
        tree: from `edge_tree`.

    Returns:
        ((n,) 1 where there is an edge of that direction to -1 where there is none near, (n,) bool in the scan).
    """
    distance = tree.query(np.concatenate([points, NORMAL_MM * normals], 1))[0]
    return 1 - np.minimum(distance / MATCH_MM, 2.0), edges.inside(points)
