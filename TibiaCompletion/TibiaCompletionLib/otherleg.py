"""The other leg's healthy tibia as what is expected of the broken one.

The two legs of a person are alike but not equal. The prior is centred on the other leg's bone, mirrored, and spreads
around it as far as two legs differ instead of as far as people do; then the patient's own visible bone decides.
"""

from dataclasses import dataclass, replace

import numpy as np

from BoneReconstructionLib.frames import SIDES, side_to_right, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, fit, start, with_residual
from BoneReconstructionLib.surfaces import transformed

# How far the legs of one person differ, as a share of how far people do: in the empirical modes and the smooth
# deviations (lengths within 3 mm and torsions within 5 degrees in most people), and in size.
LEG_SHARE = 0.5
LEG_LOG_SCALE_SD = 0.01


@dataclass(frozen=True, eq=False)
class OtherLeg:
    """The other leg's tibia fitted by the prior.

    Attributes:
        scale: its size relative to the mean bone.
        mode_weights: (r,) standard deviations along the prior's modes.
        vertices: (n, 3) in correspondence with the prior's, standard frame, mm, at its own size.
    """

    scale: float
    mode_weights: np.ndarray
    vertices: np.ndarray


def fit_other_leg(prior, surface, side):
    """Fit the prior to the other leg's whole tibia.

    Args:
        prior: the tibia's shape prior.
        surface: closed surface of the whole bone, RAS mm, as it lies in its own scan; see
            `plausibility.check_other_tibia`.
        side: of the broken leg, "left" or "right".

    Returns:
        OtherLeg.
    """
    other_side = next(name for name in SIDES if name != side)
    bone = transformed(surface, side_to_right(other_side))
    visible = VisibleSurface.whole(bone)
    matrix = start(prior, visible)
    fitted = fit(prior, visible, matrix)
    vertices = with_residual(prior, fitted, visible).surface.vertices
    scale = float(np.cbrt(np.linalg.det(fitted.matrix[:3, :3])))
    local = scale * transform_points(np.linalg.inv(fitted.matrix), vertices)
    return OtherLeg(scale, fitted.mode_weights, local)


def expecting(prior, other):
    """The prior centred on the other leg, narrowed to what two legs differ by; its size 1 is the other leg's.

    Args:
        prior: the tibia's prior, or that of tibia and fibula, of which the tibia comes first.
        other: `OtherLeg`, fitted by the tibia's prior.

    Returns:
        ShapePrior.
    """
    shared, count = len(other.mode_weights), len(other.vertices)
    mean = other.scale * (prior.mean + np.tensordot(other.mode_weights, prior.modes[:shared], 1))
    mean[:count] = other.vertices
    modes = other.scale * prior.modes
    modes[:shared] *= LEG_SHARE
    kernels = tuple(replace(kernel, sd=LEG_SHARE * other.scale * kernel.sd) for kernel in prior.kernels)
    return replace(prior, mean=mean, modes=modes, kernels=kernels, log_scale_sd=LEG_LOG_SCALE_SD)
