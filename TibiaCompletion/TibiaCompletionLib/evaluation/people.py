"""The real legs that are measured on: bone surfaces of people whom no model has seen."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, start
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, transformed

NEIGHBOURS = ("fibula", "femur", "talus")
SIDES = {"L": "left", "R": "right"}


@dataclass(frozen=True, eq=False)
class Leg:
    """One leg in the frame in which its person was scanned, RAS mm.

    Attributes:
        subject: who.
        side: "left" or "right".
        tibia: closed surface.
        neighbours: {bone: closed surface} in place, of `NEIGHBOURS` as far as they are there.
        other_tibia: the other leg's tibia, as it lies, or None.
        origin: (3,) a point on the tibia's long axis, at its lowest point.
        axes: (3, 3) rows: lateral, anterior and proximal unit vectors of the tibia (lateral is the patient's left in a
            left leg).
        length: extent of the tibia along the proximal axis, mm.
        scale: size relative to the person.
    """

    subject: str
    side: str
    tibia: Surface
    neighbours: dict[str, Surface]
    other_tibia: Surface | None
    origin: np.ndarray
    axes: np.ndarray
    length: float
    scale: float = 1.0

    @property
    def name(self):
        """Subject and side as in the file's name."""
        return f"{self.subject}_{self.side[0].upper()}"

    def places(self, points):
        """Coordinates (n, 3) of RAS points along `axes` from `origin`, mm: the last is the height above the ankle."""
        return (points - self.origin) @ self.axes.T

    def scaled_to(self, length):
        """A copy whose tibia has this length in mm, with neighbours, without the other leg."""
        factor = length / self.length
        return replace(
            self,
            tibia=_scaled(self.tibia, factor),
            neighbours={bone: _scaled(surface, factor) for bone, surface in self.neighbours.items()},
            other_tibia=None,
            origin=self.origin * factor,
            length=length,
            scale=factor * self.scale,
        )


def leg_names(folder):
    """(subject, side) of every tibia in a folder: tibia/<subject>_<L|R>.ply.

    Raises:
        InputError: there is none.
    """
    names = [path.stem for path in sorted((Path(folder) / "tibia").glob("*.ply"))]
    legs = [(name[:-2], SIDES[name[-1]]) for name in names if name[-2:] in ("_L", "_R")]
    if not legs:
        raise InputError(f"{folder} holds no tibia/<subject>_<L|R>.ply: name a folder of bone surfaces.")
    return legs


def has_neighbours(folder, subject, side):
    """Whether a folder holds any of `NEIGHBOURS` for a leg."""
    return any(_path(folder, bone, subject, side).exists() for bone in NEIGHBOURS)


def read_leg(folder, subject, side):
    """Read a leg; files without a coordinate system are LPS (a person stored as RAS is only turned by half a turn).

    The anatomical axes come from laying the mean tibia on the whole bone.

    Raises:
        InputError: a file cannot be read.
    """
    tibia = read_surface(_path(folder, "tibia", subject, side))
    neighbours = {bone: _path(folder, bone, subject, side) for bone in NEIGHBOURS}
    other = _path(folder, "tibia", subject, "left" if side == "right" else "right")
    mirror = side_to_right(side)
    right = transformed(tibia, mirror)
    matrix = start(load_prior(TIBIA_PRIOR, "tibia"), VisibleSurface.whole(right))
    linear = (mirror @ matrix)[:3, :3]
    axes = (linear / np.linalg.norm(linear, axis=0)).T
    origin = transform_points(mirror, matrix[None, :3, 3])[0]
    heights = (tibia.vertices - origin) @ axes[2]
    return Leg(
        subject,
        side,
        tibia,
        {bone: read_surface(path) for bone, path in neighbours.items() if path.exists()},
        read_surface(other) if other.exists() else None,
        origin + heights.min() * axes[2],
        axes,
        float(np.ptp(heights)),
    )


def _path(folder, bone, subject, side):
    return Path(folder) / bone / f"{subject}_{side[0].upper()}.ply"


def _scaled(surface, factor):
    return Surface(surface.vertices * factor, surface.faces)
