"""A random tibia broken in three, for the tests of its reduction."""

from functools import cache

import numpy as np
from tibiae import pose, random_tibiae, tibia_prior

from BoneReconstructionLib.frames import MIRROR
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.virtualfractures import displaced_surfaces, draw_fracture
from TibiaCompletionLib.fragments.reduction import reduce
from TibiaCompletionLib.fragments.target import make_target

SEED = 3
PLACE = pose((8, -5, 20), (95.0, 20.0, -600.0))


@cache
def healthy(side="right"):
    """The tibia as it lies, RAS mm; the left one is the mirror image."""
    bone = transformed(Surface(random_tibiae(7, 1)[0], tibia_prior().faces), PLACE)
    return bone if side == "right" else transformed(bone, MIRROR)


@cache
def fracture(kind):
    """The right tibia's fracture."""
    return draw_fracture(healthy(), "right", kind, SEED)


@cache
def fragments(kind, side="right"):
    """Surfaces of the displaced fragments, RAS mm; those of the left tibia are the mirror images."""
    if side == "left":
        return [transformed(surface, MIRROR) for surface in fragments(kind)]
    return displaced_surfaces(healthy(), fracture(kind))


@cache
def target(side="right"):
    mirror = np.eye(4) if side == "right" else MIRROR
    return make_target(healthy(side), side, np.linalg.inv(PLACE) @ mirror)


@cache
def reduction(kind, side="right"):
    return reduce(target(side), fragments(kind, side))
