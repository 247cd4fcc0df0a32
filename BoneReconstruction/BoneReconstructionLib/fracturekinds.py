"""The nine kinds of virtual tibia fracture: where each cuts the bone and how its fragments want to move.

A plan is a list of `Piece`: each but the last is cut off what the pieces before it left over, the last is the rest.
Everything is drawn in the bone's frame (right bone, +x lateral, +y anterior, +z proximal, mm).
"""

from dataclasses import dataclass

import numpy as np

from BoneReconstructionLib.fracturecuts import Bowl, Plane, Spiral, Wedge, noise_field
from BoneReconstructionLib.frames import rotation_about

UP, LATERAL, ANTERIOR = np.array([0.0, 0, 1]), np.array([1.0, 0, 0]), np.array([0.0, 1, 0])
# What ligaments let a fragment stand away, beyond what it was meant to.
SHAFT_DISTRACTION_MM = 4.0
JOINT_PLAY_MM = 3.0
# A shaft that shortens squeezes its wedge out.
WEDGE_PLAY_MM = 12.0


@dataclass(frozen=True)
class FractureRanges:
    """What varies between virtual fractures: (lowest, highest), drawn uniformly.

    Wanted displacements; contact between rough surfaces stops a fragment earlier, so that shortening is mostly far
    below its highest value. In 450 closed fractures of the distal third it was 4.4 mm with a standard deviation of
    4.5 mm, 25 mm at most (Sarmiento and Latta, Clin Orthop 428:261-271, 2004); more than 10 degrees of angulation,
    10 degrees of rotation or 50 % of displacement are common reasons to operate. Wedge fragments of shaft fractures
    stood 17 to 21 mm away, turned by 9 degrees (An et al., J Korean Fract Soc 25:46-51, 2012). The lateral plateau is
    depressed by 10.8 mm over 22 % of the whole plateau (Zhai et al., Int Orthop 37:911-917, 2013).

    Attributes:
        shaft_translation_mm: sideways, at the fracture.
        shaft_shortening_mm: how far the muscles would pull the shaft together.
        shaft_angulation_degrees, shaft_rotation_degrees: of the distal part against the proximal one, either way.
        wedge_displacement_mm, wedge_tilt_degrees: of the butterfly fragment, away from the shaft.
        articular_step_mm: along the fracture at a joint.
        articular_gap_mm: across the fracture at a joint.
        articular_tilt_degrees: of fragments at a joint.
        depression_mm: how far a plateau is pressed in.
        roughness_mm: standard deviation of the fracture surfaces' height.
        hairline_mm: thickness of bone lost along all of a fracture.
        crushed_mm: depth of the places where bone has crumbled away from a displaced fracture.
        mask_margin_mm: how far beyond the fracture lines a surgeon paints.
    """

    shaft_translation_mm: tuple[float, float] = (2.0, 15.0)
    shaft_shortening_mm: tuple[float, float] = (0.0, 20.0)
    shaft_angulation_degrees: tuple[float, float] = (1.0, 15.0)
    shaft_rotation_degrees: tuple[float, float] = (0.0, 20.0)
    wedge_displacement_mm: tuple[float, float] = (4.0, 18.0)
    wedge_tilt_degrees: tuple[float, float] = (2.0, 15.0)
    articular_step_mm: tuple[float, float] = (2.0, 10.0)
    articular_gap_mm: tuple[float, float] = (0.5, 5.0)
    articular_tilt_degrees: tuple[float, float] = (1.0, 12.0)
    depression_mm: tuple[float, float] = (5.0, 14.0)
    roughness_mm: tuple[float, float] = (0.6, 1.4)
    hairline_mm: tuple[float, float] = (0.3, 1.0)
    crushed_mm: tuple[float, float] = (1.0, 5.0)
    mask_margin_mm: tuple[float, float] = (5.0, 10.0)


@dataclass(frozen=True, eq=False)
class Piece:
    """A fragment before it is placed.

    Attributes:
        cut: what takes it off; None for the last piece.
        parent: index of the piece that it moves against; None for the one that stays.
        shifts: candidates (m, 3) for its translation, mm; the one that contact hinders least is taken.
        turn: (3, 3) rotation about the middle of its fracture surface.
        approach: (3,) unit vector along which soft tissue presses it home.
        travel_mm: how far beyond its shifted place it would go along `approach`; negative: it stays short of it.
        play_mm: how far short of its wanted place contact may hold it; beyond, shift and turn are made smaller.
        crushes: whether it is driven into the other pieces, which then lose the bone there.
    """

    cut: object
    parent: int | None = None
    shifts: np.ndarray | None = None
    turn: np.ndarray | None = None
    approach: np.ndarray | None = None
    travel_mm: float = 0.0
    play_mm: float = 0.0
    crushes: bool = False


class Planner:
    """Draws plans for one bone.

    Args:
        bone: a bone in its frame with `low`, `high`, `section`, `reach` and `surface_height`.
        generator: numpy random generator.
        ranges: FractureRanges.
    """

    def __init__(self, bone, generator, ranges):
        self._bone, self._generator, self._ranges = bone, generator, ranges

    def plan(self, kind):
        """Draw the pieces of a fracture of one of `KINDS`."""
        return KINDS[kind](self)

    def _draw(self, low, high):
        return float(self._generator.uniform(low, high))

    def _within(self, limits):
        return float(self._generator.uniform(*limits))

    def _sign(self):
        return int(self._generator.choice((-1, 1)))

    def _height(self, share):
        return self._bone.low + share * (self._bone.high - self._bone.low)

    def _horizontal(self, angle=None):
        angle = self._draw(0, 2 * np.pi) if angle is None else angle
        return np.array([np.cos(angle), np.sin(angle), 0.0])

    def _plane(self, origin, normal):
        noise = noise_field(self._generator)
        return Plane(origin, normal / np.linalg.norm(normal), self._within(self._ranges.roughness_mm), noise)

    def _shaft_plane(self, origin, tilt_degrees, direction=None):
        """Plane across the shaft, tilted; what is distal is taken off."""
        tilt = np.radians(tilt_degrees)
        side = self._horizontal() if direction is None else direction
        return self._plane(origin, np.sin(tilt) * side - np.cos(tilt) * UP)

    def _turn(self, axis, degrees):
        return rotation_about(axis, np.radians(degrees))

    def _distal_piece(self, cut, parent, directions=None):
        """A shaft's distal part: shifted sideways, angulated, rotated and pulled up until it meets the rest."""
        ranges = self._ranges
        shift = self._within(ranges.shaft_translation_mm)
        directions = [self._horizontal() for _ in range(3)] if directions is None else directions
        turn = self._turn(self._horizontal(), self._within(ranges.shaft_angulation_degrees)) @ self._turn(
            UP, self._sign() * self._within(ranges.shaft_rotation_degrees)
        )
        travel = self._within(ranges.shaft_shortening_mm)
        return Piece(cut, parent, shift * np.array(directions), turn, UP, travel, travel + SHAFT_DISTRACTION_MM)

    def _joint_piece(self, cut, parent, normal, along, gap_mm):
        """A fragment of a joint slid along its fracture surface and standing away from it.

        Args:
            cut, parent: as in `Piece`.
            normal: (3,) from the parent to the piece.
            along: (3,) unit direction of the step.
            gap_mm: distance across.
        """
        turn = self._turn(self._horizontal(), self._within(self._ranges.articular_tilt_degrees))
        shift = self._within(self._ranges.articular_step_mm) * along
        return Piece(cut, parent, shift[None], turn, -normal, -gap_mm, JOINT_PLAY_MM)

    def transverse(self):
        """Across the shaft, tilted by less than 30 degrees (AO 42-A3)."""
        origin, _ = self._bone.section(self._height(self._draw(0.3, 0.7)))
        return [self._distal_piece(self._shaft_plane(origin, self._draw(2, 18)), 1), Piece(None)]

    def oblique(self):
        """Across the shaft, tilted by more than 30 degrees (AO 42-A2)."""
        origin, _ = self._bone.section(self._height(self._draw(0.3, 0.65)))
        return [self._distal_piece(self._shaft_plane(origin, self._draw(38, 60)), 1), Piece(None)]

    def spiral(self):
        """Around the shaft, mostly where the middle third meets the distal one (AO 42-A1)."""
        height, length = self._height(self._draw(0.27, 0.45)), self._draw(60, 100)
        inward, hand = self._horizontal(), self._sign()
        origin, _ = self._bone.section(height)
        origin = origin - (3 + self._bone.reach(origin, -inward, length / 2)) * inward
        roughness = self._within(self._ranges.roughness_mm)
        cut = Spiral(origin, inward, length, hand, roughness, noise_field(self._generator))
        opening = hand * np.cross(UP, inward)
        return [self._distal_piece(cut, 1, [self._yawed(opening, 50) for _ in range(2)]), Piece(None)]

    def butterfly(self):
        """A transverse fracture with a wedge bent out of one side (AO 42-B2)."""
        ranges = self._ranges
        centre, extent = self._bone.section(self._height(self._draw(0.33, 0.62)))
        side = self._horizontal()
        radius = float(np.abs(side[:2]) @ extent) / 2
        apex = centre - self._draw(0.0, 0.35) * radius * side
        depth = (centre - apex) @ side + radius
        upper, lower = self._draw(28, 45) / depth, self._draw(28, 45) / depth
        wedge = Wedge((self._plane(apex, upper * side - UP), self._plane(apex, lower * side + UP)))
        distal = self._shaft_plane(apex, self._draw(2, 25))
        turn = self._turn(self._horizontal(), self._within(ranges.wedge_tilt_degrees))
        away, slip = self._within(ranges.wedge_displacement_mm), self._draw(-8, 8)
        loose = Piece(wedge, 2, slip * UP[None], turn, -side, -away, WEDGE_PLAY_MM)
        return [loose, self._distal_piece(distal, 2), Piece(None)]

    def segmental(self):
        """Two fractures of the shaft with a whole segment between them (AO 42-C2)."""
        lower = self._draw(0.26, 0.38)
        upper = lower + self._draw(0.2, 0.33)
        distal = self._shaft_plane(self._bone.section(self._height(lower))[0], self._draw(3, 40))
        segment = self._shaft_plane(self._bone.section(self._height(upper))[0], self._draw(3, 40))
        return [self._distal_piece(distal, 1), self._distal_piece(segment, 2), Piece(None)]

    def _plateau_plane(self, side, share):
        """A plane down from the plateau and out through one condyle's cortex (side 1 lateral, -1 medial)."""
        centre, extent = self._bone.section(self._bone.high - 14)
        origin = centre + [side * share * extent[0], 0, 0]
        origin[2] = self._bone.high - 3
        tilt, yaw = np.radians(self._draw(7, 16)), np.radians(self._draw(-25, 25))
        normal = np.array([side * np.cos(tilt) * np.cos(yaw), np.cos(tilt) * np.sin(yaw), np.sin(tilt)])
        down = normal * normal[2] - UP
        return self._plane(origin, normal), down / np.linalg.norm(down)

    def plateau_split(self):
        """One condyle sheared off, mostly the lateral one (Schatzker I and IV, AO 41-B1)."""
        side = 1 if self._draw(0, 1) < 0.75 else -1
        cut, down = self._plateau_plane(side, self._draw(0.1, 0.22))
        return [self._joint_piece(cut, 1, cut.normal, down, self._within(self._ranges.articular_gap_mm)), Piece(None)]

    def _depressed(self, parent):
        """A bowl of the lateral plateau driven into the bone below it."""
        ranges = self._ranges
        centre, extent = self._bone.section(self._bone.high - 14)
        place = centre[:2] + [self._draw(0.2, 0.27) * extent[0], self._draw(-0.12, 0.12) * extent[1]]
        semiaxes = extent[0] * np.array([self._draw(0.17, 0.22), self._draw(0.18, 0.23), self._draw(0.19, 0.26)])
        middle = np.array([*place, self._bone.surface_height(*place) + 1])
        bowl = Bowl(middle, semiaxes, self._within(ranges.roughness_mm), noise_field(self._generator))
        turn = self._turn(self._horizontal(), self._within(ranges.articular_tilt_degrees))
        return Piece(bowl, parent, -self._within(ranges.depression_mm) * UP[None], turn, -UP, crushes=True)

    def plateau_depression(self):
        """A part of the lateral plateau driven in (Schatzker III, AO 41-B2)."""
        return [self._depressed(1), Piece(None)]

    def plateau_split_depression(self):
        """The lateral condyle sheared off beside a part of the plateau that is driven in (Schatzker II, AO 41-B3)."""
        cut, down = self._plateau_plane(1, self._draw(0.17, 0.26))
        wedge = self._joint_piece(cut, 2, cut.normal, down, self._within(self._ranges.articular_gap_mm))
        return [self._depressed(2), wedge, Piece(None)]

    def _ankle_wedge(self, parent, outward, share, tilt_degrees):
        """A wedge of the ankle with part of the joint, pushed up and out along a plane by the talus."""
        centre, extent = self._bone.section(self._bone.low + 18)
        origin = centre + share * float(np.abs(outward[:2]) @ extent) * outward
        origin[2] = self._bone.low + 12
        tilt = np.radians(tilt_degrees)
        normal = np.cos(tilt) * outward - np.sin(tilt) * UP
        up = UP + normal * np.sin(tilt)
        gap = self._within(self._ranges.articular_gap_mm)
        return self._joint_piece(self._plane(origin, normal), parent, normal, up / np.linalg.norm(up), gap)

    def _yawed(self, direction, degrees):
        return self._turn(UP, self._draw(-degrees, degrees)) @ direction

    def pilon(self):
        """The ankle's joint surface in parts (AO 43-B and C): posterior, anterior or medial, two to four fragments.

        In 126 pilon fractures an anterior and a posterior fragment were each present in 89 %, a medial one in 74 %,
        with 28, 40 and 29 % of the joint's area (Topliss et al., J Bone Joint Surg Br 87:692-697, 2005).
        """
        count = int(self._generator.integers(2, 5))
        posterior, anterior, medial = (self._yawed(side, 20) for side in (-ANTERIOR, ANTERIOR, -LATERAL))
        if count == 2:
            side = posterior if self._draw(0, 1) < 0.6 else anterior
            return [self._ankle_wedge(1, side, self._draw(-0.05, 0.15), self._draw(14, 25)), Piece(None)]
        if count == 3:
            second, share = (anterior, 0.15) if self._draw(0, 1) < 0.5 else (medial, 0.2)
            return [
                self._ankle_wedge(2, posterior, self._draw(0.0, 0.15), self._draw(14, 25)),
                self._ankle_wedge(2, second, self._draw(share - 0.05, share + 0.05), self._draw(14, 25)),
                Piece(None),
            ]
        return self._complete_pilon(posterior, medial)

    def _complete_pilon(self, posterior, medial):
        """No part of the joint is left on the shaft."""
        ranges = self._ranges
        height = self._draw(42, 60)
        shaft = self._shaft_plane(self._bone.section(self._bone.low + height)[0], self._draw(3, 20))
        shaft = Plane(shaft.origin, -shaft.normal, shaft.roughness_mm, shaft.noise)
        centre, extent = self._bone.section(self._bone.low + 18)
        back = self._plane(centre + self._draw(0.02, 0.12) * extent[1] * posterior, posterior)
        inside = self._plane(centre + self._draw(0.08, 0.16) * extent[0] * medial, medial)

        def splayed(cut, outward):
            # The talus drives the parts of the joint away from each other, less so their tips.
            turn = self._turn(np.cross(outward, UP), self._draw(-0.3, 1) * self._within(ranges.articular_tilt_degrees))
            shift = (1 + self._within(ranges.articular_gap_mm)) * outward
            step = self._within(ranges.articular_step_mm)
            return Piece(cut, 0, shift[None], turn, UP, step, step + SHAFT_DISTRACTION_MM)

        # Each leaves those that are placed before it, or their rough sides would interlock.
        away = medial - 0.6 * posterior
        front = self._yawed(ANTERIOR + 0.7 * LATERAL, 10)
        return [
            Piece(shaft),
            splayed(back, posterior),
            splayed(inside, away / np.linalg.norm(away)),
            splayed(None, front / np.linalg.norm(front)),
        ]


KINDS = {
    "transverse": Planner.transverse,
    "oblique": Planner.oblique,
    "spiral": Planner.spiral,
    "butterfly": Planner.butterfly,
    "segmental": Planner.segmental,
    "plateau-split": Planner.plateau_split,
    "plateau-depression": Planner.plateau_depression,
    "plateau-split-depression": Planner.plateau_split_depression,
    "pilon": Planner.pilon,
}
