"""How far a completed tibia may be off: a standard deviation in mm for each vertex, along the surface's normal.

Three things add up: what the fit leaves open (its Gaussian posterior, carried to the surface linearly), what neither
modes nor kernels of the prior can say, and what the measured surface is wrong by. Beside visible bone the residual
takes the first two away. Their weights were chosen on training people, each completed by a prior of the others, whom
`bonerecon evaluate confidence` measures them on, beside the likeliest ones.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial import cKDTree

from BoneReconstructionLib.shapefitting import spread_over
from BoneReconstructionLib.surfaces import vertex_normals
from BoneReconstructionLib.threads import in_blocks, together

# Above this a joint surface cannot be reduced by the prediction: steps of 2 mm are operated on.
JOINT_LIMIT_MM = 1.0
JOINTS = {
    "plateau": ("medial_plateau", "lateral_plateau"),
    "pilon": ("plafond",),
}


@dataclass(frozen=True)
class Calibration:
    """Weights of what adds up to the variance of a vertex.

    Attributes:
        posterior: factor of the posterior's standard deviation, which takes correspondences and prior for exact, where
            visible bone lies on one side only.
        posterior_between: that factor between visible bone above and below.
        unexplained_mm: standard deviation of what the prior cannot say, far from visible bone.
        reach_mm: distance from visible bone over which the residual loses its grip.
        measured_mm: standard deviation of the visible surface.
    """

    posterior: float
    posterior_between: float
    unexplained_mm: float
    reach_mm: float
    measured_mm: float

    def deviations(self, posterior_mm, away_mm, between):
        """(n,) standard deviations, mm, of vertices.

        Args:
            posterior_mm: (n,) from `posterior_deviations`.
            away_mm: (n,) from `away_from_visible`.
            between: (n,) bool from `between_visible`.
        """
        loose = 1 - np.exp(-((away_mm / self.reach_mm) ** 2))
        factor = np.where(between, self.posterior_between, self.posterior)
        unseen = (factor * posterior_mm) ** 2 + self.unexplained_mm**2
        return np.sqrt(loose * unseen + self.measured_mm**2)


# Chosen by hand near the likeliest: six gaps in sharp shafts cannot tell posterior_between and unexplained_mm apart, and
# with these the mean deviation is about the RMS error in shafts and at ends alike.
CALIBRATION = Calibration(posterior=1.75, posterior_between=0.8, unexplained_mm=0.4, reach_mm=8.0, measured_mm=0.2)
# Visible bone counts as above or below a vertex within 45 degrees of the bone's axis; so many of its points are asked.
STEEP, VISIBLE_POINTS = np.sqrt(0.5), 300
BLOCK = 2000  # vertices whose deviations one thread works out at a time


def deviations(prior, fitted, surface, visible):
    """Standard deviation of each vertex of a completed tibia along its normal, mm.

    Args:
        prior: the `ShapePrior` of the last fit; its first part is the tibia.
        fitted: that fit, a `ShapeFit`.
        surface: the completed tibia, in the template's order, right side, mm.
        visible: the tibia's `VisibleSurface` that it was completed from.

    Returns:
        (n,) mm.
    """
    posterior, away, between = together(
        [
            lambda: posterior_deviations(prior, fitted, surface),
            lambda: away_from_visible(fitted, surface, visible),
            lambda: between_visible(fitted, surface, visible),
        ]
    )
    return CALIBRATION.deviations(posterior, away, between)


def posterior_deviations(prior, fitted, surface):
    """Standard deviation of each vertex along its normal by the fit's posterior alone, mm; see `deviations`."""
    count, modes, kernels = len(surface.vertices), len(prior.modes), prior.vertex_basis.shape[1]
    normals, linear = vertex_normals(surface), fitted.matrix[:3, :3]
    arm, local = surface.vertices - fitted.matrix[:3, 3], normals @ linear
    jacobian = np.zeros((len(fitted.precision), count))
    jacobian[:3] = normals.T
    jacobian[3:6] = np.cross(arm, normals).T
    jacobian[6] = (normals * arm).sum(1)
    jacobian[7 : 7 + modes] = np.einsum("rnc,nc->rn", prior.modes[:, :count], local, optimize=True)
    for axis in range(3):
        first = 7 + modes + axis * kernels
        jacobian[first : first + kernels] = (prior.vertex_basis[:count] * local[:, axis, None]).T
    lower = np.linalg.cholesky(fitted.precision)
    variances = in_blocks(
        lambda block: (solve_triangular(lower, jacobian[:, block], lower=True) ** 2).sum(0), count, BLOCK
    )
    return np.sqrt(np.concatenate(variances))


def away_from_visible(fitted, surface, visible):
    """(n,) distance of each vertex to the nearest trusted vertex of the visible bone, mm; see `deviations`."""
    shown = visible.reduced(fitted.motions)
    return cKDTree(shown.surface.vertices[shown.trusted]).query(surface.vertices)[0]


def between_visible(fitted, surface, visible):
    """(n,) bool, vertices that have visible bone both above and below them along the bone; see `deviations`."""
    shown = visible.reduced(fitted.motions)
    points = shown.surface.vertices[shown.trusted]
    centre, axis = points.mean(0), fitted.matrix[:3, 2] / np.linalg.norm(fitted.matrix[:3, 2])
    points = (points[spread_over(len(points), VISIBLE_POINTS)] - centre).astype(np.float32)
    vertices, axis = (surface.vertices - centre).astype(np.float32), axis.astype(np.float32)

    def between(block):
        own = vertices[block]
        squared = (points**2).sum(1) + (own**2).sum(1)[:, None] - 2 * own @ points.T
        rise = points @ axis - (own @ axis)[:, None]
        steep = rise**2 > STEEP**2 * squared
        return (steep & (rise > 0)).any(1) & (steep & (rise < 0)).any(1)

    return np.concatenate(in_blocks(between, len(vertices), BLOCK))


def joint_warnings(sigma, landmarks):
    """Sentences about joint surfaces that are too uncertain to be reduced to.

    Args:
        sigma: (n,) mm, from `deviations`.
        landmarks: `TibiaLandmarks` of the prior.
    """
    sentences = []
    for joint, names in JOINTS.items():
        vertices = np.concatenate([getattr(landmarks, name) for name in names])
        uncertain = float(np.sqrt(np.mean(sigma[vertices] ** 2)))
        if uncertain > JOINT_LIMIT_MM:
            sentences.append(
                f"The joint surface of the {joint} is known to +/- {uncertain:.1f} mm only (one standard deviation): "
                "it is no target for articular reduction."
            )
    return sentences
