"""Fitting a shape prior to what is visible of a bone: pose, size, modes and smooth residuals together.

The fit minimises, over a similarity and the prior's coefficients, robustly weighted point-to-plane distances between
the model and the visible surface in both directions plus the coefficients' negative log prior (maximum a posteriori,
Gauss-Newton with correspondences renewed in each step). What the modes and kernels leave over on the visible surface
is then carried on by a Gaussian process with short, elongated correlation, which makes the cross-sections continuous
where visible bone ends.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from BoneReconstructionLib.distances import closest_points
from BoneReconstructionLib.frames import rotation_about, similarity_from_points, transform_points
from BoneReconstructionLib.shapeprior import compact_smoothing
from BoneReconstructionLib.surfaces import Surface, vertex_normals

# Standard deviations of the distance between model and data, mm, from the first step of a fit to its last.
FIT_NOISE_MM = (3.0, 2.0, 1.2, 0.8, 0.6, 0.5, 0.4, 0.3, 0.3, 0.3)
RESIDUAL_SUPPORT_MM = (18.0, 18.0, 45.0)
RESIDUAL_NOISE = 0.3
MINIMUM_NORMAL_AGREEMENT = 0.6
START_POINTS = 400
# Neighbouring points share their errors; counted as independent they would overrule the prior where bone is unseen.
INDEPENDENT_SHARE = 0.05
SCALE_RANGE = (0.75, 1.3)
PARTIAL_SCALE_RANGE = (0.9, 1.1)
MODEL_POINTS = 4000
RESIDUAL_POINTS = 5000
DATA_POINTS = 4000


@dataclass(frozen=True, eq=False)
class VisibleSurface:
    """What is seen of a bone, brought to the right side: a surface of which only some vertices can be trusted.

    Attributes:
        surface: triangles, mm; a right bone.
        trusted: (n,) bool, False at vertices that border on a mask or on the scan's end and where bone was cut.
    """

    surface: Surface
    trusted: np.ndarray


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
        surface: the fitted bone in the data's frame, mm.
        rms_mm: robust root mean square of the last step's distances.
    """

    matrix: np.ndarray
    mode_weights: np.ndarray
    kernel_weights: np.ndarray
    surface: Surface
    rms_mm: float


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
        one end of a bone whose size it hardly shows, which therefore stays near the mean's.
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
            placements += [(top, high, 1.0, PARTIAL_SCALE_RANGE), (bottom, low, 1.0, PARTIAL_SCALE_RANGE)]
        for place, standard_place, scale, limits in placements:
            for angle in np.arange(8) * np.pi / 4:
                matrix = np.eye(4)
                matrix[:3, :3] = scale * frame @ rotation_about((0, 0, 1), angle)
                here = [*prior.mean[:, :2].mean(0), standard_place]
                matrix[:3, 3] = centre + place * z - matrix[:3, :3] @ here
                poses.append((matrix, limits))
    return poses


def start(prior, visible):
    """Find the pose by trying `starting_poses` with the mean bone, size free.

    Returns:
        (matrix, distance): the best (4, 4) similarity data_from_standard and its mean distance in mm.
    """
    points = visible.surface.vertices[visible.trusted]
    normals = vertex_normals(visible.surface)[visible.trusted]
    chosen = spread_over(len(points), START_POINTS)
    points, normals = points[chosen], normals[chosen]
    tree = cKDTree(prior.mean)
    mean_normals = vertex_normals(Surface(prior.mean, prior.faces))

    def improve(matrix, limits, steps):
        for step in range(steps):
            rotation = matrix[:3, :3]
            scale = np.cbrt(np.linalg.det(rotation))
            local = transform_points(np.linalg.inv(matrix), points)
            distance, nearest = tree.query(local)
            agree = (mean_normals[nearest] * (normals @ rotation / scale)).sum(1)
            weight = np.where(agree > 0.3, 1.0, 0.05) / (1 + (distance / max(30.0 / 2**step, 3.0)) ** 2)
            matrix = similarity_from_points(prior.mean[nearest], points, weight)
            wanted = np.clip(np.cbrt(np.linalg.det(matrix[:3, :3])), *limits)
            centre = weight @ points / weight.sum()
            shrink = wanted / np.cbrt(np.linalg.det(matrix[:3, :3]))
            matrix[:3, 3] = centre + shrink * (matrix[:3, 3] - centre)
            matrix[:3, :3] *= shrink
        # Disagreeing normals count as far away, or a bone turned by half a turn would pass.
        return matrix, float(np.mean(np.minimum(scale * distance, 10.0) + 5.0 * (agree < 0.3))), limits

    def distance_of(result):
        return result[1]

    tried = sorted((improve(matrix, limits, 6) for matrix, limits in starting_poses(prior, points)), key=distance_of)
    matrix, distance, _ = min((improve(matrix, limits, 15) for matrix, _, limits in tried[:4]), key=distance_of)
    return matrix, distance


def fit(prior, visible, matrix, noise_mm=FIT_NOISE_MM, report=lambda fraction: None):
    """Fit pose, size, modes and kernels to the visible surface.

    Args:
        prior: the shape prior.
        visible: the visible bone, right side.
        matrix: (4, 4) starting similarity data_from_standard, from `start`.
        noise_mm: standard deviation of the data in each Gauss-Newton step; its length is the number of steps.
        report: called with the fraction done.

    Returns:
        ShapeFit, without the residual (see `with_residual`).
    """
    modes = len(prior.modes)
    basis = prior.vertex_basis
    model_points = spread_over(len(prior.mean), MODEL_POINTS)
    data_points = np.flatnonzero(visible.trusted)
    data_points = data_points[spread_over(len(data_points), DATA_POINTS)]
    data, data_normals = visible.surface.vertices, vertex_normals(visible.surface)
    data_tree = cKDTree(data)
    mode_weights, kernel_weights = np.zeros(modes), np.zeros((basis.shape[1], 3))
    current = ShapeFit(matrix, mode_weights, kernel_weights, None, np.inf)

    for step, noise in enumerate(noise_mm):
        shape = prior.shape(current.mode_weights, current.kernel_weights)
        surface = Surface(transform_points(current.matrix, shape), prior.faces)
        normals = vertex_normals(surface)
        nearest = data_tree.query(surface.vertices[model_points])[1]
        kept = visible.trusted[nearest]
        nearest_vertex = cKDTree(surface.vertices).query(data[data_points])[1]
        vertex = np.concatenate([model_points[kept], nearest_vertex])
        target = np.concatenate([nearest[kept], data_points])
        # The plane's normal is the data's where the model asks and the model's where the data ask.
        plane = np.concatenate([data_normals[nearest[kept]], normals[nearest_vertex]])
        agree = (normals[vertex] * data_normals[target]).sum(1)
        residual = (plane * (data[target] - surface.vertices[vertex])).sum(1)
        weight = np.where(agree > MINIMUM_NORMAL_AGREEMENT, 1.0, 0.0) / (1 + (residual / (3 * noise)) ** 2) ** 2
        current = _gauss_newton_step(prior, basis, current, shape, surface, vertex, plane, residual, weight / noise**2)
        scale = (weight * residual**2).sum() / max(weight.sum(), 1e-9)
        current = replace(current, rms_mm=float(np.sqrt(scale)))
        report((step + 1) / len(noise_mm))
    shape = prior.shape(current.mode_weights, current.kernel_weights)
    return replace(current, surface=Surface(transform_points(current.matrix, shape), prior.faces))


def _gauss_newton_step(prior, basis, current, shape, surface, vertex, plane, residual, weight):
    """One step of the linearised problem; the scale's prior and the coefficients' prior are part of it."""
    modes, kernels = len(prior.modes), basis.shape[1]
    linear = current.matrix[:3, :3]
    local_plane = plane @ linear  # the plane's normal seen from the standard frame, times the scale
    arm = surface.vertices[vertex] - current.matrix[:3, 3]
    jacobian = np.empty((len(vertex), 7 + modes + 3 * kernels), dtype=np.float32)
    jacobian[:, :3] = plane
    jacobian[:, 3:6] = np.cross(arm, plane)
    jacobian[:, 6] = (plane * arm).sum(1)
    jacobian[:, 7 : 7 + modes] = np.einsum("rnc,nc->nr", prior.modes[:, vertex], local_plane, optimize=True)
    for axis in range(3):
        first = 7 + modes + axis * kernels
        jacobian[:, first : first + kernels] = basis[vertex] * local_plane[:, axis, None]
    weight = INDEPENDENT_SHARE * weight.astype(np.float32)
    normal = (jacobian * weight[:, None]).T @ jacobian
    right = jacobian.T @ (weight * residual.astype(np.float32))
    log_scale = np.log(np.cbrt(np.linalg.det(linear)))
    precision = np.ones(len(normal))
    precision[:6] = 1e-6
    precision[6] = 1 / prior.log_scale_sd**2
    state = np.concatenate([np.zeros(6), [log_scale], current.mode_weights, current.kernel_weights.T.ravel()])
    normal = normal.astype(float)
    normal[np.diag_indices_from(normal)] += precision
    change = np.linalg.solve(normal, right - precision * state)
    angle = np.linalg.norm(change[3:6])
    turn = rotation_about(change[3:6] / angle, angle) if angle > 1e-12 else np.eye(3)
    matrix = current.matrix.copy()
    matrix[:3, :3] = np.exp(change[6]) * turn @ linear
    matrix[:3, 3] += change[:3]
    return replace(
        current,
        matrix=matrix,
        mode_weights=current.mode_weights + change[7 : 7 + modes],
        kernel_weights=current.kernel_weights + change[7 + modes :].reshape(3, kernels).T,
    )


def with_residual(prior, fitted, visible):
    """Move the fitted bone onto the visible surface and carry what was left over smoothly into the unseen part.

    Distances from the fitted vertices to the visible surface along the vertex normals are the data of a Gaussian
    process on the mean bone, elongated along the shaft, whose posterior mean displaces all vertices along their
    normals.

    Returns:
        ShapeFit with another surface.
    """
    surface = fitted.surface
    normals = vertex_normals(surface)
    found, distance, face = closest_points(surface.vertices, visible.surface)
    data_normals = vertex_normals(visible.surface)
    corners = visible.surface.faces[face]
    agree = (normals * data_normals[corners].mean(1)).sum(1)
    usable = visible.trusted[corners].all(1) & (agree > MINIMUM_NORMAL_AGREEMENT) & (distance < 4.0)
    offset = (normals * (found - surface.vertices)).sum(1)
    usable = np.flatnonzero(usable)
    usable = usable[spread_over(len(usable), RESIDUAL_POINTS)]
    carried = compact_smoothing(
        prior.mean[usable], offset[usable], prior.mean, np.asarray(RESIDUAL_SUPPORT_MM), RESIDUAL_NOISE
    )
    moved = Surface(surface.vertices + carried[:, None] * normals, surface.faces)
    return replace(fitted, surface=moved)
