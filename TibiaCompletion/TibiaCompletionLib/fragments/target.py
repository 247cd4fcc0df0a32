"""The bone that fragments are brought to, in the axes in which a surgeon tells how far they have to go."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.shapefitting import VisibleSurface, fit
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks
from TibiaCompletionLib.fragments.bodies import Body
from TibiaCompletionLib.tibiasegment import articular_surface


@dataclass(frozen=True, eq=False)
class Target:
    """A healthy tibia in the surgeon's axes, as a right one.

    The origin is the centre of the plafond; +x is lateral, +y anterior, +z proximal, as `tibiameasurements` defines
    them. A left bone is mirrored, so that all that is said in these axes is the same for a patient and for the mirror
    image.

    Attributes:
        axes_from_ras: (4, 4) rigid, mirroring for a left bone.
        bone: `Body` in these axes, mm.
        joint: (n,) bool, its vertices on a joint's surface: plateaus and eminence, plafond, malleolus' inner face.
    """

    axes_from_ras: np.ndarray
    bone: Body
    joint: np.ndarray

    @classmethod
    def at(cls, axes_from_ras, surface, joint):
        """A target whose axes and joints are known; the surface in RAS, mm."""
        return cls(np.asarray(axes_from_ras), Body(transformed(surface, axes_from_ras)), np.asarray(joint, dtype=bool))

    @property
    def surface(self):
        """The bone in RAS, mm."""
        return transformed(self.bone.surface, np.linalg.inv(self.axes_from_ras))

    def motion_in_ras(self, motion):
        """A (4, 4) rigid motion in these axes as one in RAS."""
        return np.linalg.inv(self.axes_from_ras) @ motion @ self.axes_from_ras

    def motion_from_ras(self, motion):
        """A (4, 4) rigid motion in RAS as one in these axes."""
        return self.axes_from_ras @ motion @ np.linalg.inv(self.axes_from_ras)


def make_target(surface, side, ras_to_standard):
    """Find the axes and joints of a completed tibia.

    Args:
        surface: the whole bone, or as much as a scan shows of it, RAS mm.
        side: "left" or "right".
        ras_to_standard: (4, 4) to the standard frame, mirroring for a left bone, as in complete-tibia's result.json.

    Returns:
        Target.
    """
    mirror = side_to_right(side)
    prior, right = load_prior(TIBIA_PRIOR, "tibia"), transformed(surface, mirror)
    # A bone that a scan does not end is the prior's own mesh.
    if np.array_equal(right.faces, prior.faces):
        fitted = right.vertices
    else:
        begin = mirror @ np.linalg.inv(ras_to_standard)
        fitted = fit(prior, VisibleSurface.whole(right), begin).surface.vertices
    axes = TibiaLandmarks(prior.mean, prior.faces).axes(fitted)
    matrix = np.eye(4)
    matrix[:3, :3] = [axes.lateral, axes.anterior, axes.proximal]
    matrix[:3, 3] = -matrix[:3, :3] @ axes.plafond
    joint = articular_surface(prior.mean, prior.faces)[cKDTree(fitted).query(right.vertices)[1]]
    return Target.at(matrix @ mirror, surface, joint)
