"""Reducing a fracture: each fragment onto the predicted bone, then all of them together."""

from dataclasses import dataclass

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.surfaces import Surface, transformed, volume_mm3
from TibiaCompletionLib.fragments.bodies import Body
from TibiaCompletionLib.fragments.clearance import cleared
from TibiaCompletionLib.fragments.fitting import misfit, place
from TibiaCompletionLib.fragments.joint import joined
from TibiaCompletionLib.fragments.target import Target

# Share of the largest fragment that must be explained by the target.
UNLIKE = 0.6
COMPARED_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Reduction:
    """Fragments and their places on a target.

    Attributes:
        target: `Target`.
        bodies: list of `Body`, each fragment where it lies in the CT, in the target's axes.
        poses: (k, 4, 4) rigid motions in the target's axes that bring the fragments to their places.
    """

    target: Target
    bodies: list[Body]
    poses: np.ndarray

    @classmethod
    def at(cls, target, surfaces, motions):
        """A reduction that is already known.

        Args:
            target: `Target`.
            surfaces: closed surfaces of the fragments where they lie in the CT, RAS mm.
            motions: (k, 4, 4) rigid motions in RAS, mm.
        """
        bodies = [Body(transformed(surface, target.axes_from_ras)) for surface in surfaces]
        return cls(target, bodies, np.array([target.motion_from_ras(motion) for motion in motions]))

    @property
    def motions(self):
        """(k, 4, 4) the motions in RAS, mm."""
        return np.array([self.target.motion_in_ras(pose) for pose in self.poses])

    @property
    def surfaces(self) -> list[Surface]:
        """The fragments where they lie in the CT, RAS mm."""
        back = np.linalg.inv(self.target.axes_from_ras)
        return [transformed(body.surface, back) for body in self.bodies]


def reduce(target, surfaces, motions=(), edges=None, amounts=None, intervals=None, report=lambda fraction: None):
    """Bring fragments to their places.

    The largest goes to the target alone, the others in falling order of volume to the target and beside those that
    are in their places; then all but the largest settle together, see `joint`, and none is left in another, see
    `clearance`.

    Args:
        target: `Target`.
        surfaces: closed surfaces of the fragments where they lie in the CT, RAS mm, from `splitting.fragment_surface`.
        motions: (4, 4) rigid motions in RAS, mm, that may have brought one or other of them nearly to its place, as
            `shapecompletion.Completion` knows of the visible pieces.
        edges: list of `FragmentEdges` of the surfaces in the CT, from `edges.fragment_edges`; None: the surfaces are
            exact.
        amounts: list of the fragments' bone in the CT, from `amounts.bone_amounts`; None: not known.
        intervals: {measurement: half width of its 95 % interval} of the target, see `joint.joined`; None: not known.
        report: called with the fraction done.

    Returns:
        Reduction, fragments in the order given.

    Raises:
        InputError: the largest fragment is no part of the target.
    """
    axes, unknown = target.axes_from_ras, [None] * len(surfaces)
    bodies = [
        Body(transformed(surface, axes), edge and edge.transformed(axes), bone and bone.transformed(axes))
        for surface, edge, bone in zip(surfaces, edges or unknown, amounts or unknown, strict=True)
    ]
    order = np.argsort([-volume_mm3(body.surface) for body in bodies], kind="stable")
    ordered = [bodies[number] for number in order]
    given = [np.eye(4), *(target.motion_from_ras(motion) for motion in motions)]
    poses = []
    for done, body in enumerate(ordered):
        report(done / (len(bodies) + 1))
        poses.append(place(target.bone, list(zip(ordered, poses)), body, [*given, *poses]))
        if done == 0 and misfit(target.bone, [], body, body.spread(COMPARED_POINTS), poses[0][None]) > UNLIKE:
            raise InputError(
                "The largest fragment does not fit the completed tibia: name the completion that was predicted from "
                "this CT, and fragments of the same bone."
            )
    poses = cleared(ordered, joined(target.bone, ordered, poses, intervals or {}))
    report(1.0)
    return Reduction(target, bodies, np.array([poses[rank] for rank in np.argsort(order)]))
