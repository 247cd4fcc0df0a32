"""A shape prior: the mean bone, its empirical modes and smooth Gaussian-process kernels for what the modes cannot say.

Points of a bone are x = mean + modes @ a + u, where a ~ N(0, I) and u is a zero-mean Gaussian process whose covariance
is the sum of the kernels, the same for each coordinate (Luethi et al., "Gaussian process morphable models", IEEE TPAMI
40(8), 2018). Size is a separate log-normal scale, so that bones smaller or larger than the training people are reached
without bending the shape.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from BoneReconstructionLib import modelzoo
from BoneReconstructionLib.threads import in_blocks

TIBIA_PRIOR = "tibia-prior"  # the bundled model of tibia and fibula
KERNEL_NODES = 300
BLOCK = 2000  # points whose covariances one thread evaluates at a time
CG_TOLERANCE = 1e-4
FIBULA_SHIFT_SD_MM = (2.0, 2.0, 3.0)
FIBULA_LENGTH_SD = 0.012
FIBULA_TURN_SD_DEGREES = (0.7, 0.7, 4.0)
# Torsion of the tibia spreads by 8 degrees between people (see `tibiameasurements.PUBLISHED`), by 6 in modes and
# kernels together.
FURTHER_TORSION_SD_DEGREES = 5.2


@dataclass(frozen=True)
class Kernel:
    """A squared-exponential covariance k(x, y) = sd^2 exp(-|(x - y) / length|^2 / 2) of one displacement component.

    Attributes:
        sd: standard deviation, mm.
        length: correlation lengths along x, y, z of the standard frame, mm.
    """

    sd: float
    length: tuple[float, float, float]

    def __call__(self, x, y):
        """Covariance of (n, 3) and (m, 3) points, (n, m), mm^2."""
        x, y = np.asarray(x) / self.length, np.asarray(y) / self.length
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        return self.sd**2 * np.exp(-0.5 * np.maximum(squared, 0))


@dataclass(frozen=True, eq=False)
class ShapePrior:
    """The prior of one bone in the standard frame (see `frames`), right side, mm.

    Attributes:
        mean: (n, 3) vertices of the mean bone.
        faces: (m, 3) vertex indices, counter-clockwise seen from outside.
        modes: (r, n, 3) displacements in mm for one standard deviation of each empirical mode.
        kernels: covariances of what the modes leave open.
        log_scale_sd: standard deviation of the logarithm of the size.
        card: the model card it came with; empty while training.
        part: (n,) int, which bone each vertex belongs to, where the prior is of several; None: one bone.
    """

    mean: np.ndarray
    faces: np.ndarray
    modes: np.ndarray
    kernels: tuple[Kernel, ...]
    log_scale_sd: float
    card: dict = field(default_factory=dict)
    part: np.ndarray | None = None

    @cached_property
    def kernel_nodes(self):
        """(KERNEL_NODES, 3) evenly spread points of the mean bone that carry the kernels' low-rank form."""
        return self.mean[farthest_points(self.mean, min(KERNEL_NODES, len(self.mean)))]

    @cached_property
    def _nystroem(self):
        """(nodes, q) factor W with k(x, y) ~ k(x, nodes) W W^T k(nodes, y), eigenvalues below 1e-4 of the trace cut."""
        values, vectors = np.linalg.eigh(self.covariance(self.kernel_nodes, self.kernel_nodes))
        order = np.argsort(values)[::-1]
        values, vectors = values[order], vectors[:, order]
        kept = np.searchsorted(np.cumsum(values) / values.sum(), 0.999) + 1
        return vectors[:, :kept] / np.sqrt(values[:kept])

    def covariance(self, x, y):
        """Summed kernel covariance of one displacement component between (n, 3) and (m, 3) points, (n, m) in mm^2."""
        return sum(kernel(x, y) for kernel in self.kernels)

    def kernel_basis(self, points):
        """Evaluate the kernels' low-rank basis at (n, 3) points: (n, q), mm for one standard deviation of each."""
        if not self.kernels:
            return np.zeros((len(points), 0))
        nodes, factor = self.kernel_nodes, self._nystroem
        blocks = in_blocks(lambda block: self.covariance(points[block], nodes) @ factor, len(points), BLOCK)
        return np.concatenate(blocks)

    @cached_property
    def vertex_basis(self):
        """`kernel_basis` at the mean bone's vertices, (n, q), mm."""
        return self.kernel_basis(self.mean)

    @cached_property
    def single_precision(self):
        """(modes as (n, 3, r), `vertex_basis`) in float32, a vertex after the other, as a fit's Jacobian takes them."""
        return np.ascontiguousarray(self.modes.transpose(1, 2, 0), np.float32), self.vertex_basis.astype(np.float32)

    def shape(self, mode_weights, kernel_weights):
        """Vertices in the standard frame at scale 1.

        Args:
            mode_weights: (r,) standard deviations along the empirical modes.
            kernel_weights: (q, 3) standard deviations along the kernel basis, one column per coordinate.

        Returns:
            (n, 3) mm.
        """
        return self.mean + np.tensordot(mode_weights, self.modes, 1) + self.vertex_basis @ kernel_weights


def farthest_points(points, count):
    """Indices of `count` points spread evenly over (n, 3) points by farthest-point sampling, started at the first."""
    chosen = np.zeros(count, dtype=np.int64)
    distance, columns = np.full(len(points), np.inf), np.ascontiguousarray(points.T)  # much faster than rows of three
    for k in range(1, count):
        squares = [(column - column[chosen[k - 1]]) ** 2 for column in columns]
        distance = np.minimum(distance, sum(squares[1:], squares[0]))
        chosen[k] = np.argmax(distance)
    return chosen


def compact_smoothing(points, values, at, radius, noise):
    """Posterior mean of a compactly supported Gaussian process: scattered scalars carried to other points.

    The covariance is Wendland's C2 function of unit variance and support `radius`, so that the system is sparse and
    values fade to zero one radius away from the data.

    Args:
        points: (n, 3) places of the data, mm.
        values: (n,) data.
        at: (m, 3) places to predict at, mm.
        radius: (3,) support along x, y, z, mm.
        noise: standard deviation of the data relative to that of the process.

    Returns:
        (m,) predictions.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import cg

    points, at = points / radius, at / radius
    tree = cKDTree(points)

    def covariances(places):
        """(i, j, covariance) of places and data within each other's reach."""
        near = cKDTree(places).sparse_distance_matrix(tree, 1.0, output_type="ndarray")
        distance = near["v"].astype(np.float32)
        squared = (1 - distance) ** 2  # numpy multiplies for squares alone, other powers take ten times as long
        return near["i"], near["j"], squared * squared * (4 * distance + 1)

    row, column, covariance = covariances(points)
    covariance[row == column] += noise**2
    own = coo_array((covariance, (row, column)), shape=(len(points), len(points)))
    own.has_canonical_format = True  # every pair is found once, which need not be checked
    weights, failed = cg(own.tocsr(), values.astype(np.float32), rtol=CG_TOLERANCE, maxiter=500)
    if failed:
        raise ArithmeticError("The smoothing of the residual did not converge.")

    def carried(block):
        row, column, covariance = covariances(at[block])
        return np.bincount(row, covariance * weights[column], len(at[block]))

    return np.concatenate(in_blocks(carried, len(at), BLOCK))  # all pairs at once are hundreds of megabytes


def load_prior(model_id, bone):
    """Load a bone's prior out of a checked model folder.

    Args:
        model_id: e.g. `TIBIA_PRIOR`.
        bone: "tibia" or "fibula".

    Raises:
        InputError: weights missing or altered.
    """
    model = modelzoo.find_model(model_id)
    tensors = model.tensors()
    settings = model.card["bones"][bone]
    return ShapePrior(
        mean=tensors[f"{bone}.mean"].astype(float),
        faces=tensors[f"{bone}.faces"].astype(np.int64),
        modes=tensors[f"{bone}.modes"].astype(float),
        kernels=tuple(Kernel(k["sd"], tuple(k["length"])) for k in settings["kernels"]),
        log_scale_sd=settings["log_scale_sd"],
        card=model.card,
    )


def with_torsion(prior):
    """The prior with a further mode, the first, that twists the leg evenly about the tibia's long axis.

    Two dozen people twist less than people at large; without the mode a tibia of unseen torsion is taken for theirs.
    """
    tibia = prior.mean if prior.part is None else prior.mean[prior.part == 0]
    low, high = tibia[:, 2].min(), tibia[:, 2].max()
    angle = np.radians(FURTHER_TORSION_SD_DEGREES) * ((prior.mean[:, 2] - low) / (high - low) - 0.5)
    centre = [*tibia[:, :2].mean(0), 0.0]
    twist = angle[:, None] * np.cross([0.0, 0.0, 1.0], prior.mean - centre)
    return replace(prior, modes=np.concatenate([twist[None], prior.modes]))


def load_leg_prior(model_id=TIBIA_PRIOR):
    """Load tibia and fibula as one prior of two parts, 0 and 1, whose modes they share.

    Further modes move the fibula rigidly beside the tibia and lengthen it, because how the two lie is known of few
    people, and two dozen people's modes tie the lengths closer than nature does.

    Raises:
        InputError: weights missing or altered.
    """
    tibia, fibula = load_prior(model_id, "tibia"), load_prior(model_id, "fibula")
    arm = fibula.mean - fibula.mean.mean(0)
    shifts = [np.broadcast_to(shift, arm.shape) for shift in np.diag(FIBULA_SHIFT_SD_MM)]
    turns = [np.cross(turn, arm) for turn in np.diag(np.radians(FIBULA_TURN_SD_DEGREES))]
    placement = np.array([*shifts, *turns, FIBULA_LENGTH_SD * arm * [0, 0, 1]])
    still = np.zeros((len(placement), *tibia.mean.shape))
    return replace(
        tibia,
        mean=np.concatenate([tibia.mean, fibula.mean]),
        faces=np.concatenate([tibia.faces, fibula.faces + len(tibia.mean)]),
        modes=np.concatenate([np.concatenate([tibia.modes, fibula.modes], 1), np.concatenate([still, placement], 1)]),
        part=np.repeat([0, 1], [len(tibia.mean), len(fibula.mean)]),
    )
