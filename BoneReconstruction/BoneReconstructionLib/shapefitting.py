"""Fitting a shape prior to what is visible of a bone: pose, size, modes and smooth residuals together.

The fit minimises, over a similarity and the prior's coefficients, robustly weighted point-to-plane distances between
the model and the visible surface in both directions plus the coefficients' negative log prior (maximum a posteriori,
Gauss-Newton with correspondences renewed in each step). What the modes and kernels leave over on the visible surface
is then carried on by a Gaussian process with short, elongated correlation, which makes the cross-sections continuous
where visible bone ends.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import rotation_about, similarity_from_points, transform_each, transform_points
from BoneReconstructionLib.shapeprior import compact_smoothing
from BoneReconstructionLib.surfaces import Surface, vertex_normals
from BoneReconstructionLib.threads import together

# Standard deviations of the distance between model and data, mm, from the first step of a fit to its last.
FIT_NOISE_MM = (3.0, 2.0, 1.2, 0.8, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3)
# What is left over is carried far along the shaft first, then what still is left, not as far.
RESIDUAL_SUPPORTS_MM = ((18.0, 18.0, 45.0), (8.0, 8.0, 10.0))
RESIDUAL_NOISE = 0.3
MINIMUM_NORMAL_AGREEMENT = 0.6
# Farther apart than this many standard deviations points are more and more likely not each other's.
OUTLIER_SD = 3.0
START_POINTS = 400
CLEARLY_WORSE = 1.15
# Starting poses that are improved, told apart by this much, and tried with the modes in a short, coarse fit, unless the
# mean bone lies this much further away than in the best of them: the modes never made up for more than 1.3.
TRIED = 5
NOT_TRIED = 1.5
SAME_POSE_MM, SAME_POSE_TURN = 5.0, 0.1
TRIAL_NOISE_MM = (3.0, 2.0, 1.5, 1.0, 1.0)
TRIAL_POINTS = 1000
CONTACT_REACH_MM = 3.0
ROWS_FOR_A_MOTION = 50
CONTACT_RANGE_MM = 25.0
# Neighbouring points share their errors; counted as independent they would overrule the prior where bone is unseen.
INDEPENDENT_SHARE = 0.05
# How far clinical fractures displace a piece: standard deviations of each component of its motion.
MOTION_SD_MM = 12.0
MOTION_SD_DEGREES = 10.0
SCALE_RANGE = (0.75, 1.3)
PARTIAL_SCALE_RANGE = (0.9, 1.1)
FIT_POINTS = 4000
RESIDUAL_POINTS = (3000, 12000)


@dataclass(frozen=True, eq=False)
class VisibleSurface:
    """What is seen of a bone, brought to the right side: a surface of which only some vertices can be trusted.

    Attributes:
        surface: triangles, mm; a right bone.
        trusted: (n,) bool, False at vertices that border on a mask or on the scan's end and where bone was cut.
        piece: (n,) int, the rigid piece that each vertex belongs to; piece 0 lies where it belongs. None: one piece.
        part: (n,) int, the prior's part that each vertex shows. None: the prior has one part.
    """

    surface: Surface
    trusted: np.ndarray
    piece: np.ndarray | None = None
    part: np.ndarray | None = None

    @classmethod
    def whole(cls, surface):
        """All of a bone's surface, in one piece."""
        return cls(surface, np.ones(len(surface.vertices), dtype=bool))

    @property
    def pieces(self):
        """Number of rigid pieces."""
        return 1 if self.piece is None else int(self.piece.max()) + 1

    @cached_property
    def normals(self):
        """(n, 3) outward unit normals."""
        return vertex_normals(self.surface)

    @cached_property
    def tree(self):
        """kd-tree of the vertices, in which parts are out of each other's reach."""
        return _tree(_apart(self.surface.vertices, self.part))

    @cached_property
    def locator(self):
        """`SurfaceLocator` of the surface."""
        return SurfaceLocator(self.surface)

    @cached_property
    def _piece_trees(self):
        """(piece, indices of its vertices, their kd-tree as `tree`) of each piece seen."""
        points = _apart(self.surface.vertices, self.part)
        own = [(piece, np.flatnonzero(self.piece == piece)) for piece in np.unique(self.piece)]
        return [(piece, index, _tree(points[index])) for piece, index in own]

    def nearest(self, points, motions):
        """Index (m,) of the vertex nearest to each point once each piece has moved.

        Args:
            points: (m, 3), or (m, 4) as by `_apart`.
            motions: (p, 4, 4) rigid motions, mm.
        """
        if (motions == np.eye(4)).all():
            return self.tree.query(points)[1]
        # Points are brought to where the pieces lie, whose trees are built once; far from a piece its tree is slow, so
        # that the piece whose box is nearest is asked first, and others only where theirs is nearer than what was found.
        back, boxes = [], []
        for piece, _, tree in self._piece_trees:
            moved = transform_points(np.linalg.inv(motions[piece]), points[:, :3])
            back.append(np.column_stack([moved, points[:, 3:]]))
            boxes.append(np.linalg.norm(back[-1] - np.clip(back[-1], tree.mins, tree.maxes), axis=1))
        found, best = np.zeros(len(points), dtype=np.int64), np.full(len(points), np.inf)
        for rank in np.argsort(boxes, axis=0):
            for number, (_, index, tree) in enumerate(self._piece_trees):
                asked = np.flatnonzero((rank == number) & (boxes[number] < best))
                distance, place = tree.query(back[number][asked])
                closer = distance < best[asked]
                found[asked[closer]], best[asked[closer]] = index[place[closer]], distance[closer]
        return found

    def placed(self, motions, index):
        """Vertices and normals (m, 3) of some vertices, mm, once each piece has moved."""
        points, normals = self.surface.vertices[index], self.normals[index]
        if (motions == np.eye(4)).all():
            return points, normals
        turned = motions[self.piece[index]]
        return transform_each(turned, points), np.einsum("nab,nb->na", turned[:, :3, :3], normals)

    def reduced(self, motions):
        """The same with each piece moved by its (4, 4) rigid motion of (p, 4, 4), mm."""
        if (motions == np.eye(4)).all():
            return self
        vertices = self.surface.vertices.copy()
        for piece in range(1, self.pieces):
            own = self.piece == piece
            vertices[own] = transform_points(motions[piece], vertices[own])
        return replace(self, surface=Surface(vertices, self.surface.faces))


@dataclass(frozen=True, eq=False)
class JointContact:
    """A neighbouring bone across a joint, which tells where the joint surface is when it is not seen itself.

    Attributes:
        vertices: (k,) model vertices of the joint surface.
        opposite: (n, 3) points of the neighbour's surface, data frame, mm.
        outward: +1 where the neighbour lies proximally of the model, -1 where it lies distally.
        gap_mm: distance of the two bones along the model's axis where they are closest, which cartilage fills.
        gap_sd_mm: how much that distance varies between people.
    """

    vertices: np.ndarray
    opposite: np.ndarray
    outward: int
    gap_mm: float
    gap_sd_mm: float


def both(first, second):
    """Two visible surfaces as one that shows part 0 and part 1 of a prior; the pieces are those of the first."""
    count = len(first.surface.vertices)
    surface = Surface(
        np.concatenate([first.surface.vertices, second.surface.vertices]),
        np.concatenate([first.surface.faces, second.surface.faces + count]),
    )
    piece = np.zeros(count, dtype=int) if first.piece is None else first.piece
    more = len(second.surface.vertices)
    return VisibleSurface(
        surface,
        np.concatenate([first.trusted, second.trusted]),
        np.concatenate([piece, np.zeros(more, dtype=int)]),
        np.repeat([0, 1], [count, more]),
    )


def without_band(surface, height, low, high, margin_mm=1.0):
    """Hide a band of a surface, as a mask across the bone would.

    Args:
        surface: the whole bone.
        height: (n,) position of each vertex along the bone, mm.
        low, high: ends of the band, mm.
        margin_mm: how far beside the band nothing is trusted.

    Returns:
        VisibleSurface of the triangles outside the band.
    """
    shown = (height < low) | (height > high)
    index = np.cumsum(shown) - 1
    faces = index[surface.faces[shown[surface.faces].all(1)]]
    trusted = (height < low - margin_mm) | (height > high + margin_mm)
    return VisibleSurface(Surface(surface.vertices[shown], faces), trusted[shown])


@dataclass(frozen=True, eq=False)
class ShapeFit:
    """A fitted prior.

    Attributes:
        matrix: (4, 4) similarity from the standard frame to the data's frame.
        mode_weights: (r,) standard deviations.
        kernel_weights: (q, 3) standard deviations.
        motions: (p, 4, 4) rigid motions, mm, that bring each visible piece to its place; the first is the identity.
        surface: the fitted bone in the data's frame, mm.
        rms_mm: robust root mean square of the last step's distances.
        cost: the robust negative log posterior before the last step up to a constant, for comparing fits of the same
            data: a point that lies far off or looks elsewhere costs most, though it no longer pulls.
        precision: (d, d) inverse posterior covariance of (pose 6, log-scale, modes, kernels by coordinate, motions).
    """

    matrix: np.ndarray
    mode_weights: np.ndarray
    kernel_weights: np.ndarray
    motions: np.ndarray
    surface: Surface = None
    rms_mm: float = np.inf
    cost: float = np.inf
    precision: np.ndarray = None


def spread_over(count, wanted):
    """Indices of about `wanted` of `count` vertices; meshes store neighbours together, so strides spread evenly."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(np.int64)


def starting_poses(prior, points):
    """Similarities worth trying when nothing is known of the pose: the bone's long axis, turned and shifted.

    Args:
        prior: the shape prior.
        points: (n, 3) points of the visible bone, mm.

    Returns:
        list of ((4, 4) matrix data_from_standard, (lowest, highest) scale). The bone may be whole and of any size, or
        one end or the middle of a bone whose size it hardly shows, which therefore stays near the mean's.
    """
    centre = points.mean(0)
    axis = np.linalg.svd(points - centre, full_matrices=False)[2][0]
    along = (points - centre) @ axis
    low, high = prior.mean[:, 2].min(), prior.mean[:, 2].max()
    seen, length = np.ptp(along), high - low
    poses = []
    for direction in (1.0, -1.0):
        z = direction * axis
        x = np.cross([0.0, 1.0, 0.0] if abs(z[1]) < 0.9 else [1.0, 0.0, 0.0], z)
        x /= np.linalg.norm(x)
        frame = np.stack([x, np.cross(z, x), z], 1)
        bottom, top = (direction * along).min(), (direction * along).max()
        placements = []
        if seen > SCALE_RANGE[0] * length:
            placements.append(((bottom + top) / 2, (low + high) / 2, min(seen / length, SCALE_RANGE[1]), SCALE_RANGE))
        if seen < 0.9 * length:
            partial = ((top, high), (bottom, low), ((bottom + top) / 2, (low + high) / 2))
            placements += [(place, standard_place, 1.0, PARTIAL_SCALE_RANGE) for place, standard_place in partial]
        for place, standard_place, scale, limits in placements:
            for angle in np.arange(8) * np.pi / 4:
                matrix = np.eye(4)
                matrix[:3, :3] = scale * frame @ rotation_about((0, 0, 1), angle)
                here = [*prior.mean[:, :2].mean(0), standard_place]
                matrix[:3, 3] = centre + place * z - matrix[:3, :3] @ here
                poses.append((matrix, limits))
    return poses


def start(prior, visible):
    """The pose that `search` finds: a (4, 4) similarity data_from_standard to begin a fit with."""
    return search(prior, visible)[0].matrix


def search(prior, visible):
    """Find the pose by trying `starting_poses` with the mean bone, size free, and the best of them with the modes.

    The data's frame is RAS: where the shape alone does not tell proximal from distal, proximal is towards the head.

    Args:
        prior: the shape prior.
        visible: the visible bone, right side; its pieces are taken as they lie.

    Returns:
        (`ShapeFit` of the prior without its kernels, mean distance in mm of the visible bone to it).
    """
    chosen = np.flatnonzero(visible.trusted)
    chosen = chosen[spread_over(len(chosen), START_POINTS)]
    points, normals = visible.surface.vertices[chosen], visible.normals[chosen]
    tree = _tree(prior.mean)
    mean_normals = vertex_normals(Surface(prior.mean, prior.faces))

    def improve(matrices, limits, steps):
        """[(matrix, mean distance, limits)] of (p, 4, 4) poses with (p, 2) limits of their scale, all at once."""
        for step in range(steps):
            linear = matrices[:, :3, :3]
            scale = np.cbrt(np.linalg.det(linear))[:, None]
            local = (points - matrices[:, None, :3, 3]) @ np.linalg.inv(linear).swapaxes(1, 2)
            distance, nearest = tree.query(local)
            agree = (mean_normals[nearest] * (normals @ linear)).sum(2) / scale
            weight = np.where(agree > 0.3, 1.0, 0.05) / (1 + (distance / max(30.0 / 2**step, 3.0)) ** 2)
            matrices = similarity_from_points(prior.mean[nearest], points, weight)
            size = np.cbrt(np.linalg.det(matrices[:, :3, :3]))
            shrink = np.clip(size, *limits.T) / size
            centre = weight @ points / weight.sum(1, keepdims=True)
            matrices[:, :3, 3] = centre + shrink[:, None] * (matrices[:, :3, 3] - centre)
            matrices[:, :3, :3] *= shrink[:, None, None]
        return list(zip(matrices, mean_distance(scale * distance, agree), limits))

    def mean_distance(distance, agree):
        # Disagreeing normals count as far away, or a bone turned by half a turn would pass.
        return np.mean(np.minimum(distance, 10.0) + 5.0 * (agree < 0.3), axis=-1)

    def distance_of(result):
        return result[1]

    def tried_with_modes(matrix):
        """(fit, mean distance) once the modes were fitted, too: another pose cannot be made to fit by them."""
        fitted = fit(flexible, visible, matrix, noise_mm=TRIAL_NOISE_MM, points=TRIAL_POINTS)
        distance, nearest = _tree(fitted.surface.vertices).query(points)
        agree = (vertex_normals(fitted.surface)[nearest] * normals).sum(1)
        return fitted, mean_distance(distance, agree)

    flexible = replace(prior, kernels=())

    def improved(upwards):
        """The distinct poses that the best of those one way up lead to, as by `improve`."""
        poses = [pose for pose in starting_poses(prior, points) if (pose[0][2, 2] > 0) == upwards]
        tried = sorted(improve(*map(np.array, zip(*poses)), 6), key=distance_of)[:TRIED]
        matrices, _, limits = map(np.array, zip(*tried))
        return _distinct(improve(matrices, limits, 15))

    found = [(upwards, pose) for upwards in (True, False) for pose in improved(upwards)]
    worth = NOT_TRIED * min(distance_of(pose) for _, pose in found)
    found = [(upwards, matrix) for upwards, (matrix, distance, _) in found if distance < worth]
    fits = together(lambda matrix=matrix: tried_with_modes(matrix) for _, matrix in found)
    upright, headlong = (
        min((fitted for fitted, (up, _) in zip(fits, found) if up == upwards), key=distance_of, default=None)
        for upwards in (True, False)
    )
    if upright is None or headlong is None:
        return upright or headlong
    # A shaft without its ends fits nearly as well upside down: then the patient's head tells.
    return upright if upright[1] < CLEARLY_WORSE * headlong[1] else headlong


def _distinct(results):
    """Of (matrix, distance, limits), the nearest first, those that are not nearly the same pose as one before."""
    kept = []
    for result in sorted(results, key=lambda one: one[1]):
        shift = [np.linalg.norm(result[0][:3, 3] - other[0][:3, 3]) for other in kept]
        turn = [np.abs(result[0][:3, :3] - other[0][:3, :3]).max() for other in kept]
        if all(s > SAME_POSE_MM or t > SAME_POSE_TURN for s, t in zip(shift, turn, strict=True)):
            kept.append(result)
    return kept


def unfitted(prior, matrix, motions):
    """The mean bone at a pose, (4, 4) data_from_standard, with (p, 4, 4) motions of the visible pieces: a `ShapeFit`."""
    kernels = np.zeros((prior.vertex_basis.shape[1], 3))
    return ShapeFit(matrix, np.zeros(len(prior.modes)), kernels, motions)


def fit(
    prior,
    visible,
    begin,
    displaced=False,
    contacts=(),
    noise_mm=FIT_NOISE_MM,
    points=FIT_POINTS,
    report=lambda fraction: None,
):
    """Fit pose, size, modes and kernels to the visible surface, and where pieces are displaced their motions too.

    Args:
        prior: the shape prior.
        visible: the visible bone, right side.
        begin: (4, 4) starting similarity data_from_standard, from `start`, or a `ShapeFit` of the same prior and
            pieces to go on from.
        displaced: whether each piece beside the first has a rigid motion of its own; otherwise they lie as they should.
        contacts: `JointContact`s with neighbouring bones.
        noise_mm: standard deviation of the data in each Gauss-Newton step; its length is the number of steps.
        points: how many model points and as many data points are used.
        report: called with the fraction done.

    Returns:
        ShapeFit, without the residual (see `with_residual`).
    """
    model_points = spread_over(len(prior.mean), points)
    data_points = np.flatnonzero(visible.trusted)
    data_points = data_points[spread_over(len(data_points), points)]
    free = np.arange(1, visible.pieces) if displaced else np.arange(0)
    current = begin
    if not isinstance(begin, ShapeFit):
        current = unfitted(prior, begin, np.tile(np.eye(4), (visible.pieces, 1, 1)))
    for step, noise in enumerate(noise_mm):
        shape = prior.shape(current.mode_weights, current.kernel_weights)
        surface = Surface(transform_points(current.matrix, shape), prior.faces)
        normals = vertex_normals(surface)
        model = _apart(surface.vertices, prior.part)
        nearest = visible.nearest(model[model_points], current.motions)
        kept = visible.trusted[nearest]
        target = np.concatenate([nearest[kept], data_points])
        data, data_normals = visible.placed(current.motions, target)
        asked = np.count_nonzero(kept)
        nearest_vertex = _tree(model).query(_apart(data[asked:], visible.part, data_points))[1]
        vertex = np.concatenate([model_points[kept], nearest_vertex])
        # The plane's normal is the data's where the model asks and the model's where the data ask.
        plane = np.concatenate([data_normals[:asked], normals[nearest_vertex]])
        agree = (normals[vertex] * data_normals).sum(1)
        residual = (plane * (data - surface.vertices[vertex])).sum(1)
        agree, reach = agree > MINIMUM_NORMAL_AGREEMENT, OUTLIER_SD * noise
        near = np.where(agree, 1 / (1 + (residual / reach) ** 2), 0.0)
        weight = near**2
        rows = _Rows(vertex, plane, surface.vertices[vertex], data, residual, weight / noise**2)
        axis = current.matrix[:3, 2] / np.linalg.norm(current.matrix[:3, 2])
        rows = rows.extended(_contact_rows(contact, surface, axis, noise) for contact in contacts)
        in_contact = np.zeros(len(rows.vertex) - len(target), dtype=bool)
        shares = [(piece, np.concatenate([visible.piece[target] == piece, in_contact])) for piece in free]
        moving = [(piece, own) for piece, own in shares if np.count_nonzero(own) >= ROWS_FOR_A_MOTION]
        # What is lost costs as much as the loss ever grows to. Only the data's rows are the same in every fit; they stand
        # for both directions.
        loss = np.where(agree, near * (residual / noise) ** 2, OUTLIER_SD**2)[-len(data_points) :].sum()
        loss += 0.5 * (rows.weight * rows.residual**2)[len(target) :].sum()
        current = _gauss_newton_step(prior, current, rows, moving, INDEPENDENT_SHARE * float(loss))
        scale = (weight * residual**2).sum() / max(weight.sum(), 1e-9)
        current = replace(current, rms_mm=float(np.sqrt(scale)))
        report((step + 1) / len(noise_mm))
    shape = prior.shape(current.mode_weights, current.kernel_weights)
    return replace(current, surface=Surface(transform_points(current.matrix, shape), prior.faces))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Correspondences of one step, one a row: model vertex, plane normal, model and data point, residual, weight."""

    vertex: np.ndarray
    plane: np.ndarray
    model: np.ndarray
    data: np.ndarray
    residual: np.ndarray
    weight: np.ndarray

    def extended(self, others):
        """These rows followed by those of others."""
        return _Rows(*(np.concatenate(columns) for columns in zip(*(vars(rows).values() for rows in (self, *others)))))


def _apart(points, part, index=slice(None)):
    """Points with a fourth coordinate that keeps parts, part[index], out of each other's reach in a kd-tree."""
    return points if part is None else np.column_stack([points, 1e4 * part[index]])


def _tree(points):
    """A kd-tree that is quickly built: most are asked no more often than they have points."""
    # Leaves of 24 are built and asked a tenth faster than SciPy's of 16.
    return cKDTree(points, leafsize=24, balanced_tree=False, compact_nodes=False)


def _contact_rows(contact, surface, axis, noise):
    """Rows that hold the closest spot of a joint surface at the cartilage's distance from the neighbour."""
    model, opposite = surface.vertices[contact.vertices], contact.opposite
    frame = np.linalg.svd(axis[None])[2][1:].T  # spans the plane across the axis
    height = contact.outward * opposite @ axis
    above = cKDTree(opposite @ frame).query_ball_point(model @ frame, CONTACT_REACH_MM)
    # Along the axis a joint surface that has sunk into its neighbour still knows the way out.
    distance = np.array([height[near].min() if near else np.inf for near in above]) - contact.outward * model @ axis
    closest = np.argsort(distance)[: max(5, len(distance) // 8)]
    # A neighbour further away than that is not at the joint, as when the scan cuts its end off.
    closest = closest[np.abs(distance[closest] - contact.gap_mm) < CONTACT_RANGE_MM]
    # Together the rows count as one observation; the first steps of a fit leave everything looser.
    sd = np.hypot(contact.gap_sd_mm, noise)
    weight = np.full(len(closest), 1 / (max(len(closest), 1) * INDEPENDENT_SHARE * sd**2))
    plane = np.tile(axis, (len(closest), 1))
    residual = contact.outward * (distance[closest] - contact.gap_mm)
    goal = model[closest] + residual[:, None] * plane
    return _Rows(contact.vertices[closest], plane, model[closest], goal, residual, weight)


def _gauss_newton_step(prior, current, rows, moving, misfit):
    """One step of the linearised problem; the priors of scale, coefficients and motions are part of it.

    Args:
        prior: the shape prior.
        current: where the step starts.
        rows: the correspondences.
        moving: (piece, (rows,) bool of the rows that it takes part in) of each piece whose motion is unknown.
        misfit: negative log likelihood where the step starts.
    """
    modes, plane = len(prior.modes), rows.plane
    kernels = prior.vertex_basis.shape[1]
    linear = current.matrix[:3, :3]
    local_plane = plane @ linear  # the plane's normal seen from the standard frame, times the scale
    arm = rows.model - current.matrix[:3, 3]
    shape_end = 7 + modes + 3 * kernels
    jacobian = np.zeros((len(plane), shape_end + 6 * len(moving)), dtype=np.float32)
    jacobian[:, :3] = plane
    jacobian[:, 3:6] = np.cross(arm, plane)
    jacobian[:, 6] = (plane * arm).sum(1)
    modes_by_vertex, basis = prior.single_precision
    at_rows, local_plane = np.take(basis, rows.vertex, axis=0), local_plane.astype(np.float32)
    np.einsum("ncr,nc->nr", modes_by_vertex[rows.vertex], local_plane, out=jacobian[:, 7 : 7 + modes])
    for axis in range(3):
        first = 7 + modes + axis * kernels
        np.multiply(at_rows, local_plane[:, axis, None], out=jacobian[:, first : first + kernels])
    centres, motion_state = [], []
    for number, (piece, own) in enumerate(moving):
        # Moving the data is the same as moving the model the other way.
        centre = rows.data[own].mean(0)
        first = shape_end + 6 * number
        jacobian[own, first : first + 3] = -plane[own]
        jacobian[own, first + 3 : first + 6] = -np.cross(rows.data[own] - centre, plane[own])
        centres.append(centre)
        motion_state += [_shift_of(current.motions[piece], centre), _turn_of(current.motions[piece])]
    weight = INDEPENDENT_SHARE * rows.weight.astype(np.float32)
    weighted = jacobian * np.sqrt(weight)[:, None]
    normal = (weighted.T @ weighted).astype(float)  # of one array numpy makes half the product, and threads may go on
    right = jacobian.T @ (weight * rows.residual.astype(np.float32))
    log_scale = np.log(np.cbrt(np.linalg.det(linear)))
    motion_precision = np.tile(np.repeat([MOTION_SD_MM, np.radians(MOTION_SD_DEGREES)], 3) ** -2.0, len(moving))
    precision = np.concatenate(
        [np.full(6, 1e-6), [prior.log_scale_sd**-2], np.ones(modes + 3 * kernels), motion_precision]
    )
    coefficients = [np.zeros(6), [log_scale], current.mode_weights, current.kernel_weights.T.ravel()]
    state = np.concatenate(coefficients + motion_state)
    normal[np.diag_indices_from(normal)] += precision
    change = np.linalg.solve(normal, right - precision * state)
    matrix = current.matrix.copy()
    matrix[:3, :3] = np.exp(change[6]) * Rotation.from_rotvec(change[3:6]).as_matrix() @ linear
    matrix[:3, 3] += change[:3]
    motions = current.motions.copy()
    for number, (piece, _) in enumerate(moving):
        shift, turn = change[shape_end + 6 * number :][:6].reshape(2, 3)
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
        step[:3, 3] = centres[number] + shift - step[:3, :3] @ centres[number]
        motions[piece] = step @ motions[piece]
    return replace(
        current,
        matrix=matrix,
        mode_weights=current.mode_weights + change[7 : 7 + modes],
        kernel_weights=current.kernel_weights + change[7 + modes : shape_end].reshape(3, kernels).T,
        motions=motions,
        cost=misfit + 0.5 * float(precision @ state**2),
        precision=normal,
    )


def _turn_of(motion):
    """Rotation vector (3,) of a rigid motion, radians."""
    return Rotation.from_matrix(motion[:3, :3]).as_rotvec()


def _shift_of(motion, centre):
    """Translation (3,) of a rigid motion at the point that it has brought to `centre`, mm."""
    return centre - transform_points(np.linalg.inv(motion), centre[None])[0]


def with_residual(prior, fitted, visible, supports_mm=RESIDUAL_SUPPORTS_MM):
    """Move the fitted bone onto the visible surface and carry what was left over smoothly into the unseen part.

    Distances from the fitted vertices to the visible surface along the vertex normals are the data of Gaussian
    processes on the mean bone, the first elongated along the shaft, whose posterior means displace all vertices along
    their normals.

    Args:
        prior: the shape prior.
        fitted: its `ShapeFit`.
        visible: the visible bone that it was fitted to.
        supports_mm: how far along x, y, z each process carries its data, mm.

    Returns:
        ShapeFit with another surface.
    """
    surface, reduced = fitted.surface, visible.reduced(fitted.motions)
    for support, count in zip(supports_mm, RESIDUAL_POINTS):
        normals = vertex_normals(surface)
        found, distance, face = reduced.locator.closest(surface.vertices)
        corners = reduced.surface.faces[face]
        agree = (normals * reduced.normals[corners].mean(1)).sum(1)
        usable = visible.trusted[corners].all(1) & (agree > MINIMUM_NORMAL_AGREEMENT) & (distance < 4.0)
        offset = (normals * (found - surface.vertices)).sum(1)
        usable = np.flatnonzero(usable)
        usable = usable[spread_over(len(usable), count)]
        carried = compact_smoothing(prior.mean[usable], offset[usable], prior.mean, np.asarray(support), RESIDUAL_NOISE)
        surface = Surface(surface.vertices + carried[:, None] * normals, surface.faces)
    return replace(fitted, surface=surface)
