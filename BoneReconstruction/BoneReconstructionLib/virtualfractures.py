"""Virtual fractures of a tibia: two to four fragments cut by rough surfaces and moved by clinical amounts.

The truth is kept: the healthy bone, each fragment's rigid motion, the fracture surfaces, the bone that was lost. What
is drawn lives in the bone's frame, a right bone found by the shape prior, so that a mirrored bone breaks as the mirror
image. Everything random comes from one seed. numpy and SciPy only, but for the meshes of `displaced_surfaces`.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.fracturecuts import NoiseField, noise_field
from BoneReconstructionLib.fracturekinds import KINDS, FractureRanges, Planner
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, start
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import Surface, largest_component, transformed
from BoneReconstructionLib.volumes import Volume, bounding_box

DISTANCE_SPACING_MM = 3.0
POINT_SPACING_MM = 1.5
SECTION_HALF_MM = 3.0
SMALLEST_SHARE = 0.02  # of the bone, for every fragment
LARGEST_CRUMB = 0.02  # of a fragment, for all that is not connected with it
DRAWS = 40
CONTACT_DEPTH_MM = 0.7
CONTACT_POINTS = 5000
CONTACT_REACH_MM = 35.0
SHRINKING = 0.75
SHRINKINGS = 10
# Of each fragment; two of them may move against each other by twice as much.
UNDISPLACED_MM = 0.3
UNDISPLACED_DEGREES = 0.08
SMOOTH_EXPONENT = 1.6
CRUMBLING_LEVEL = 0.5
SURFACE_SPACING_MM = 1.0
RANGES = FractureRanges()


@dataclass(frozen=True, eq=False)
class Fracture:
    """A fracture and its truth. Fragments are numbered by falling volume.

    Attributes:
        kind: one of `KINDS`.
        side: "left" or "right".
        seed: where it came from.
        surface: the healthy bone, RAS mm.
        motions: (k, 4, 4) rigid, from the healthy place to the displaced place, RAS mm; the first is the identity.
        volumes_mm3: (k,) approximate volume of each fragment.
        line_points: (m, 3) points of the fracture surfaces in the healthy bone, about 1.5 mm apart and up to as much
            beyond its surface, RAS mm.
        line_fragments: (m, 2) the fragments on both sides of each.
        right_from_ras: (4, 4) from RAS to the bone's frame: right bone, +x lateral, +y anterior, +z proximal, mm.
        cuts: what takes off the fragments, one after the other.
        cut_fragments: the fragment that each cut takes off, and last the rest.
        crushing: (fragment, cut) of those that are driven into their neighbours.
        hairline_mm: thickness of bone lost along all of the fracture.
        crushed_mm: how deep bone crumbled away in places.
        mask_margin_mm: how far the coarse mask reaches beyond the lines.
        noise: where bone crumbled away, and how steady the hand was that painted the mask.
    """

    kind: str
    side: str
    seed: int
    surface: Surface
    motions: np.ndarray
    volumes_mm3: np.ndarray
    line_points: np.ndarray
    line_fragments: np.ndarray
    right_from_ras: np.ndarray
    cuts: tuple
    cut_fragments: tuple
    crushing: tuple
    hairline_mm: float
    crushed_mm: float
    mask_margin_mm: float
    noise: NoiseField

    def fragment_of(self, points):
        """The fragment 0 to k-1 at (n, 3) RAS points of the healthy bone, -1 where the bone was lost.

        The bone's surface is not asked: points beside the bone get the fragment that they would belong to.
        """
        fragment, depth = self.fragment_and_depth(points)
        return np.where(depth > 0, fragment, -1)

    def fragment_and_depth(self, points):
        """The nearest fragment (n,), and how deep (n, 3) RAS points lie below its broken surface, mm.

        The depth is approximate, and negative where the bone was lost.
        """
        local = transform_points(self.right_from_ras, np.asarray(points, dtype=float))
        fragment, depth = _classify(self.cuts, self.cut_fragments, local)
        depth = depth - self.hairline_mm / 2
        if self.crushed_mm > 0:
            crumbled = np.flatnonzero(depth < self.crushed_mm)
            depth[crumbled] -= self.crushed_mm * np.clip(self.noise(local[crumbled]) - CRUMBLING_LEVEL, 0, 1)
        for crusher, cut in self.crushing:
            back = self.right_from_ras @ np.linalg.inv(self.motions[crusher])
            for other in np.setdiff1d(np.unique(fragment), [crusher]):
                chosen = np.flatnonzero(fragment == other)
                matrix = back @ self.motions[other] @ np.linalg.inv(self.right_from_ras)
                depth[chosen] = np.minimum(depth[chosen], -cut(transform_points(matrix, local[chosen])))
        return fragment, depth

    def distance_to_lines(self, points):
        """Distance in mm of (n, 3) RAS points to the nearest fracture surface of the healthy bone, within 1 mm."""
        return self._line_tree.query(points)[0]

    def mask_at(self, points):
        """Whether (n, 3) RAS points of the healthy bone lie in the coarse mask, `mask_margin_mm` around the lines."""
        points = np.asarray(points, dtype=float)
        return self._painted(points, self._line_tree) | (self.fragment_of(points) < 0)

    @cached_property
    def _line_tree(self):
        return cKDTree(self.line_points)

    @cached_property
    def _fragment_trees(self):
        """For each fragment, its own broken surface."""
        return [
            cKDTree(self.line_points[(self.line_fragments == fragment).any(1)]) for fragment in range(len(self.motions))
        ]

    def _painted(self, points, tree):
        low, high = tree.mins - self.mask_margin_mm - 1, tree.maxes + self.mask_margin_mm + 1
        near = np.flatnonzero(((points > low) & (points < high)).all(1))
        painted = np.zeros(len(points), dtype=bool)
        distance = tree.query(points[near], distance_upper_bound=self.mask_margin_mm + 1)[0]
        wobble = np.clip(self.noise(transform_points(self.right_from_ras, points[near])), -1, 1)
        painted[near] = distance < self.mask_margin_mm + wobble
        return painted


class _Bone:
    """A right bone in its own frame: signed distances on grids, sections.

    Attributes:
        right_from_ras: (4, 4), mirrors left bones.
        low, high: ends along z, mm.
        points: (m, 3) grid points inside and just outside, mm; index: (m, 3) their places in the grid.
        depth: (m,) mm below the surface, negative outside.
    """

    def __init__(self, surface, side):
        mirror = side_to_right(side)
        right = transformed(surface, mirror)
        pose = start(load_prior(TIBIA_PRIOR, "tibia"), VisibleSurface.whole(right))
        rigid = pose.copy()
        rigid[:3, :3] /= np.cbrt(np.linalg.det(pose[:3, :3]))
        self.right_from_ras = np.linalg.inv(rigid) @ mirror
        own = transformed(surface, self.right_from_ras)
        lower, upper = own.vertices.min(0), own.vertices.max(0)
        self.low, self.high = float(lower[2]), float(upper[2])

        self.origin = lower - 2 * DISTANCE_SPACING_MM
        counts = np.ceil((upper - self.origin) / DISTANCE_SPACING_MM).astype(int) + 3
        nodes = np.indices(counts).reshape(3, -1).T
        distance = SurfaceLocator(own).signed(self.origin + DISTANCE_SPACING_MM * nodes).reshape(counts)
        self.shape = tuple(((counts - 1) * DISTANCE_SPACING_MM / POINT_SPACING_MM).astype(int) + 1)
        index = np.indices(self.shape).reshape(3, -1)
        fine = ndimage.map_coordinates(distance, index * (POINT_SPACING_MM / DISTANCE_SPACING_MM), order=1)
        kept = np.flatnonzero(fine < 2 * POINT_SPACING_MM)
        self.index, self.depth = index[:, kept].T, -fine[kept]
        self.points = self.origin + POINT_SPACING_MM * self.index
        self.inside = self.depth > 0

    def section(self, height):
        """(centre (3,), (2,) widths along x and y) of the cross-section at a height, mm."""
        points = self.points[self.inside & (np.abs(self.points[:, 2] - height) < SECTION_HALF_MM)]
        middle = (points.min(0) + points.max(0)) / 2
        return np.array([*middle[:2], height]), np.ptp(points[:, :2], axis=0) + POINT_SPACING_MM

    def reach(self, origin, direction, half_length):
        """How far the bone reaches from a point in a horizontal direction within half a length above and below, mm."""
        near = self.inside & (np.abs(self.points[:, 2] - origin[2]) < half_length)
        return float(((self.points[near] - origin) @ direction).max())

    def surface_height(self, x, y):
        """Height of the plateau around a place, mm."""
        beside = np.linalg.norm(self.points[:, :2] - [x, y], axis=1) < 2 * SECTION_HALF_MM
        column = self.points[self.inside & beside]
        places, top = np.unique(column[:, :2], axis=0, return_inverse=True)
        heights = np.full(len(places), -np.inf)
        np.maximum.at(heights, top.ravel(), column[:, 2])
        return float(np.median(heights))

    def filled(self, values, outside):
        """Values (m,) of `points` as a grid."""
        grid = np.full(self.shape, outside, dtype=np.float32)
        grid[tuple(self.index.T)] = values
        return grid


@lru_cache(maxsize=4)
def _bone(surface, side):
    return _Bone(surface, side)


def _classify(cuts, names, points):
    """What cuts that follow each other make of (n, 3) points: (name (n,), distance to the nearest cut (n,) in mm)."""
    name = np.full(len(points), names[-1])
    margin = np.full(len(points), np.inf)
    left = np.arange(len(points))
    for cut, taken in zip(cuts, names[:-1], strict=True):
        value = cut(points[left])
        margin[left] = np.minimum(margin[left], np.abs(value))
        name[left[value > 0]] = taken
        left = left[value <= 0]
    return name, margin


def draw_fracture(surface, side, kind=None, seed=0, displaced=True, ranges=RANGES):
    """Break a tibia.

    Args:
        surface: the healthy bone, whole and closed, RAS mm.
        side: "left" or "right".
        kind: one of `KINDS`; None draws one.
        seed: of everything random.
        displaced: False leaves hairlines of at most 1 mm and motions below 1 mm and 1 degree.
        ranges: what varies.

    Returns:
        Fracture.

    Raises:
        InputError: the kind is unknown, or the bone cannot be broken this way.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"There is no fracture of kind {kind}; choose one of {', '.join(KINDS)}.")
    bone = _bone(surface, side)
    kind = list(KINDS)[np.random.default_rng(seed).integers(len(KINDS))] if kind is None else kind
    generator = np.random.default_rng([seed, list(KINDS).index(kind)])
    for _ in range(DRAWS):
        pieces = Planner(bone, generator, ranges).plan(kind)
        cuts = tuple(piece.cut for piece in pieces[:-1])
        label, margin = _classify(cuts, range(len(pieces)), bone.points)
        if not _sound(bone, label, len(pieces)):
            continue
        hairline = generator.uniform(*ranges.hairline_mm)
        lines, sides = _lines(bone, cuts, label)
        if displaced:
            motions = _placed(bone, pieces, label, margin - hairline / 2, lines, sides)
        else:
            motions = _barely_moved(generator, len(pieces), lines)
        if motions is not None:
            break
    else:
        raise InputError(f"This bone cannot be broken as {kind}; choose a whole adult tibia.")

    crushed = generator.uniform(*ranges.crushed_mm) if displaced else 0.0
    volumes = np.bincount(label[bone.inside], minlength=len(pieces)) * POINT_SPACING_MM**3
    order = np.argsort(-volumes, kind="stable")
    fragment = np.argsort(order)
    ras_from_right = np.linalg.inv(bone.right_from_ras)
    motions = ras_from_right @ np.linalg.inv(motions[order[0]]) @ motions[order] @ bone.right_from_ras
    motions[0] = np.eye(4)
    return Fracture(
        kind,
        side,
        seed,
        surface,
        motions,
        volumes[order],
        transform_points(ras_from_right, lines),
        fragment[sides],
        bone.right_from_ras,
        cuts,
        tuple(int(number) for number in fragment),
        tuple((int(fragment[n]), piece.cut) for n, piece in enumerate(pieces) if piece.crushes and displaced),
        hairline,
        crushed,
        generator.uniform(ranges.mask_margin_mm[0] + 1, ranges.mask_margin_mm[1] - 1),
        noise_field(generator, SMOOTH_EXPONENT),
    )


def _sound(bone, label, count):
    """Whether each of `count` pieces is large enough and hangs together."""
    inside = np.flatnonzero(bone.inside)
    for piece in range(count):
        chosen = inside[label[inside] == piece]
        if len(chosen) < SMALLEST_SHARE * len(inside):
            return False
        grid = np.zeros(bone.shape, dtype=bool)
        grid[tuple(bone.index[chosen].T)] = True
        sizes = np.bincount(ndimage.label(grid)[0].ravel())[1:]
        if sizes.max() < (1 - LARGEST_CRUMB) * len(chosen):
            return False
    return True


def _lines(bone, cuts, label):
    """Points of the fracture surfaces: (m, 3) in the bone's frame, and the (m, 2) pieces on both sides."""
    grid, inside = bone.filled(label, -1).astype(np.int64), bone.filled(bone.inside, 0) > 0
    found = []
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        here = tuple(slice(0, size - s) for size, s in zip(grid.shape, step))
        there = tuple(slice(s, None) for s in step)
        meet = (grid[here] != grid[there]) & (grid[here] >= 0) & (grid[there] >= 0)
        corner = np.argwhere(meet & (inside[here] | inside[there]))
        found.append(np.stack([corner, corner + step], 1))
    ends = bone.origin + POINT_SPACING_MM * np.concatenate(found)
    near, far = ends[:, 0], ends[:, 1]
    names = range(len(cuts) + 1)
    own = _classify(cuts, names, near)[0]
    for _ in range(5):
        middle = (near + far) / 2
        same = (_classify(cuts, names, middle)[0] == own)[:, None]
        near, far = np.where(same, middle, near), np.where(same, far, middle)
    return (near + far) / 2, np.column_stack([own, _classify(cuts, names, far)[0]])


def _rigid(rotation, pivot, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = pivot - rotation @ pivot + shift
    return matrix


def _barely_moved(generator, count, lines):
    """(count, 4, 4) motions of fragments that hold together, about the fracture's middle."""
    motions = []
    for _ in range(count):
        axis, shift = generator.standard_normal((2, 3))
        angle = np.radians(generator.uniform(0, UNDISPLACED_DEGREES))
        rotation = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        shift *= generator.uniform(0, UNDISPLACED_MM) / np.linalg.norm(shift)
        motions.append(_rigid(rotation, lines.mean(0), shift))
    return np.array(motions)


def _placed(bone, pieces, label, margin, lines, sides):
    """(k, 4, 4) motions of the pieces in the bone's frame; None if one finds no place.

    Each piece is turned and shifted as wanted, set off against its direction of approach and brought back until it
    meets a piece already placed or has travelled as far as it would. Where contact holds it too far away, shift and
    turn are made smaller.
    """
    solid = [
        bone.filled(np.where(label == piece, np.minimum(bone.depth, margin), -np.abs(margin)), -3.0)
        for piece in range(len(pieces))
    ]
    motions = [None] * len(pieces)
    waiting = list(range(len(pieces)))[::-1]
    while waiting:
        number = next(n for n in waiting if pieces[n].parent is None or motions[pieces[n].parent] is not None)
        waiting.remove(number)
        piece = pieces[number]
        if piece.parent is None:
            motions[number] = np.eye(4)
            continue
        near = bone.points[bone.inside & (label == number) & (margin < CONTACT_REACH_MM)]
        points = near[np.linspace(0, len(near) - 1, min(len(near), CONTACT_POINTS)).astype(int)]
        pivot = lines[(sides == number).any(1)].mean(0)
        placed = [(solid[n], np.linalg.inv(motion)) for n, motion in enumerate(motions) if motion is not None]
        touches = partial(_touches, bone, [] if piece.crushes else placed, motions[piece.parent], points)
        place = _resting_place(piece, pivot, touches)
        if place is None:
            return None
        motions[number] = motions[piece.parent] @ place
    return np.array(motions)


def _touches(bone, placed, parent_motion, points, motion):
    """Whether (n, 3) points of a piece, moved against its parent, lie inside a piece already placed.

    Args:
        bone: `_Bone`.
        placed: list of (depth on the bone's grid, (4, 4) inverse motion) of the pieces in their places.
        parent_motion: (4, 4) of the parent.
        points: (n, 3) in the bone's frame.
        motion: (4, 4) against the parent.
    """
    moved = transform_points(parent_motion @ motion, points)
    for depth, back in placed:
        place = (transform_points(back, moved) - bone.origin) / POINT_SPACING_MM
        if ndimage.map_coordinates(depth, place.T, order=1, cval=-3.0).max() > CONTACT_DEPTH_MM:
            return True
    return False


def _resting_place(piece, pivot, touches):
    """(4, 4) motion of a piece against its parent (see `_placed`), or None."""
    turn = Rotation.from_matrix(piece.turn).as_rotvec()
    for size in SHRINKING ** np.arange(SHRINKINGS):
        rotation = Rotation.from_rotvec(size * turn).as_matrix()
        reached = []
        for shift in piece.shifts:
            base = _rigid(rotation, pivot, size * shift)
            reached.append((_travel(piece, base, touches), base))
        travel, base = max(reached, key=lambda pair: pair[0])
        if travel >= piece.travel_mm - piece.play_mm:
            return _advanced(base, piece.approach, travel)
    return None


def _advanced(motion, direction, distance):
    moved = motion.copy()
    moved[:3, 3] += distance * direction
    return moved


def _travel(piece, base, touches):
    """How far along its approach a piece comes, mm, from 20 mm beyond its play."""
    steps = np.arange(piece.travel_mm - piece.play_mm - 20.0, piece.travel_mm, 1.0).tolist() + [piece.travel_mm]
    for free, blocked in pairwise(steps):
        if touches(_advanced(base, piece.approach, blocked)):
            for _ in range(4):
                middle = (free + blocked) / 2
                if touches(_advanced(base, piece.approach, middle)):
                    blocked = middle
                else:
                    free = middle
            return free
    return piece.travel_mm


def _voxel_points(lower, upper, ijk_to_ras):
    """(n, 3) RAS centres of the voxels of a half-open [k, j, i] box, in C order."""
    kji = np.indices(np.subtract(upper, lower)).reshape(3, -1).T + lower
    return transform_points(ijk_to_ras, _ijk(kji))


def _ijk(kji):
    """(n, 3) voxel indices turned round, as contiguous numbers that matrices multiply fast."""
    return np.ascontiguousarray(kji[:, ::-1], dtype=float)


def _box(points, ijk_to_ras, shape, margin_mm=0.0):
    """Half-open [k, j, i] box of a grid around (n, 3) RAS points; None where it lies outside."""
    margin = margin_mm / np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    place = transform_points(np.linalg.inv(ijk_to_ras), points)
    lower = np.maximum(np.floor(place.min(0) - margin), 0).astype(int)[::-1]
    upper = np.minimum(np.ceil(place.max(0) + margin).astype(int)[::-1] + 1, shape)
    return None if (lower >= upper).any() else (lower, upper)


class _Mover:
    """Where the voxels of a displaced scan come from.

    Args:
        bone: (K, J, I) bool, the healthy bone.
        ijk_to_ras: frame of both scans.
        fracture: Fracture.
    """

    def __init__(self, bone, ijk_to_ras, fracture):
        self._fracture, self._ijk_to_ras, self._shape = fracture, ijk_to_ras, np.array(bone.shape)
        lower, upper = bounding_box(bone)
        lower, upper = np.maximum(lower - 2, 0), np.minimum(upper + 2, bone.shape)
        around = ndimage.binary_dilation(bone[tuple(map(slice, lower, upper))], np.ones((3, 3, 3)), iterations=2)
        self._voxels = _ijk(np.argwhere(around) + lower)
        self._fragments = fracture.fragment_and_depth(transform_points(ijk_to_ras, self._voxels))[0]

    def fragment(self, number):
        """A fragment's displaced voxels and some around them.

        Returns:
            ((n,) flat indices into the grid, (3, n) their places [k, j, i] in the healthy scan, (n,) their depth in mm
            below the broken surface, negative for other fragments' and lost bone).
        """
        to_healthy = np.linalg.inv(self._fracture.motions[number])
        forth = np.linalg.inv(to_healthy @ self._ijk_to_ras) @ self._ijk_to_ras
        moved = np.rint(transform_points(forth, self._voxels[self._fragments == number])).astype(np.int64)[:, ::-1]
        moved = moved[((moved >= 0) & (moved < self._shape)).all(1)]
        if len(moved) == 0:
            return np.zeros(0, dtype=np.int64), np.zeros((3, 0)), np.zeros(0)
        lower, upper = np.maximum(moved.min(0) - 1, 0), np.minimum(moved.max(0) + 2, self._shape)
        reached = np.zeros(upper - lower, dtype=bool)
        reached[tuple((moved - lower).T)] = True
        # Rounding leaves holes of one voxel where the fragment is turned.
        target = np.argwhere(ndimage.binary_dilation(reached, np.ones((3, 3, 3)))) + lower
        origin = transform_points(to_healthy @ self._ijk_to_ras, _ijk(target))
        place = transform_points(np.linalg.inv(self._ijk_to_ras), origin).T[::-1]
        fragment, depth = self._fracture.fragment_and_depth(origin)
        index = np.ravel_multi_index(tuple(target.T), self._shape)
        return index, place, np.where(fragment == number, depth, -np.abs(depth))


def displaced_labels(healthy: Volume, fracture: Fracture) -> tuple[Volume, Volume]:
    """Segment the displaced fragments.

    Args:
        healthy: bool, the healthy bone; the bone that moves out of its grid is cut off.
        fracture: the fracture.

    Returns:
        (labels, mask) on the same grid: uint8, 0 outside and 1 to k for the fragments at their displaced places, the
        larger fragment where two overlap; bool, the coarse mask over all broken surfaces and the gaps between.
    """
    labels = np.zeros(healthy.shape, dtype=np.uint8)
    mask = np.zeros(healthy.shape, dtype=bool)
    bone = healthy.array.astype(np.float32)
    mover = _Mover(healthy.array.astype(bool), healthy.ijk_to_ras, fracture)
    for number in range(len(fracture.motions))[::-1]:
        index, place, depth = mover.fragment(number)
        own = (ndimage.map_coordinates(bone, place, order=1) >= 0.5) & (depth > 0)
        labels.ravel()[index[own]] = number + 1
        motion, tree = fracture.motions[number], fracture._fragment_trees[number]
        reach = fracture.mask_margin_mm + 2
        box = _box(transform_points(motion, tree.data), healthy.ijk_to_ras, healthy.shape, reach)
        if box is not None:
            points = transform_points(np.linalg.inv(motion), _voxel_points(*box, healthy.ijk_to_ras))
            part = tuple(map(slice, *box))
            mask[part] |= fracture._painted(points, tree).reshape(mask[part].shape)
    return Volume(labels, healthy.ijk_to_ras), Volume(mask, healthy.ijk_to_ras)


def fracture_ct(hu: Volume, healthy: Volume, fracture: Fracture, soft_tissue_hu: float) -> Volume:
    """Move the CT's intensities with the fragments.

    The healthy bone gives way to soft tissue with the scan's own noise. Then each fragment, with the rim of one voxel
    that the scanner blurs around it, is resampled linearly at its displaced place; broken edges fade over one voxel.
    Bone is painted after all rims and larger fragments after smaller ones, so that they win where two overlap. Other
    bones that a fragment is pushed into give way, too.

    Args:
        hu: CT of the healthy bone.
        healthy: bool, the healthy bone on the same grid.
        fracture: the fracture.
        soft_tissue_hu: what fills the gaps.

    Returns:
        float32 HU on the same grid.
    """
    bone = healthy.array.astype(bool)
    rim = ndimage.binary_dilation(bone, np.ones((3, 3, 3))).astype(np.float32)
    source = hu.array.astype(np.float32)
    around = ndimage.binary_dilation(rim, iterations=4) & (rim == 0)
    noise = 1.4826 * np.median(np.abs(np.diff(source, axis=2)[around[:, :, 1:]])) / np.sqrt(2)
    generator = np.random.default_rng([fracture.seed, len(KINDS)])
    result = source.copy()
    vacated = rim > 0
    result[vacated] = soft_tissue_hu + noise * generator.standard_normal(np.count_nonzero(vacated))
    mover = _Mover(bone, healthy.ijk_to_ras, fracture)
    ramp = float(hu.spacing.min())
    moved = [mover.fragment(number) for number in range(len(fracture.motions))]
    for carried in (rim, bone.astype(np.float32)):
        for index, place, depth in moved[::-1]:
            share = np.clip(0.5 + depth / ramp, 0, 1) * ndimage.map_coordinates(carried, place, order=1)
            value = ndimage.map_coordinates(source, place, order=1, mode="nearest")
            result.ravel()[index] += share * (value - result.ravel()[index])
    return Volume(result, hu.ijk_to_ras)


def displaced_surfaces(surface: Surface, fracture: Fracture) -> list[Surface]:
    """The fragments at their displaced places.

    Args:
        surface: the healthy bone, closed, RAS mm.
        fracture: a fracture of it.

    Returns:
        k closed surfaces, RAS mm, without crumbs.
    """
    from BoneReconstructionLib.meshing import isosurface, voxelize

    grid = np.eye(4)
    grid[:3, :3] *= SURFACE_SPACING_MM
    grid[:3, 3] = surface.vertices.min(0) - 3 * SURFACE_SPACING_MM
    shape = tuple(int(n) for n in np.ceil(np.ptp(surface.vertices, axis=0) / SURFACE_SPACING_MM)[::-1] + 7)
    inside = voxelize(surface, shape, grid).array
    edge = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
    kji = np.argwhere(inside | edge)
    points = transform_points(grid, _ijk(kji))
    below = np.full(len(kji), 3.0)
    near = edge[tuple(kji.T)]
    below[near] = -SurfaceLocator(surface).signed(points[near])
    fragment, depth = fracture.fragment_and_depth(points)
    pieces = []
    for number, motion in enumerate(fracture.motions):
        field = np.full(shape, -2.0, dtype=np.float32)
        field[tuple(kji.T)] = np.minimum(below, np.where(fragment == number, depth, -np.abs(depth)))
        pieces.append(transformed(largest_component(isosurface(Volume(field, grid), 0.0)), motion))
    return pieces
