"""Sizes and angles of a tibia in correspondence with the prior's template, and what has been published of them.

Landmarks are sets of template vertices, found once on the mean bone, so that a measurement is a short formula of
vertices; it works on many bones at once. All measurements are read in the axes of the bone itself:

- Mechanical axis: from the centre of the plateau, halfway between the centres of its medial and lateral half, to the
  centre of the plafond (Paley, Principles of Deformity Correction, Springer 2002, chapter 1).
- Lateral: along the posterior tangent of the plateau, which touches both condyles at their backmost places (Strecker
  1997), made perpendicular to the mechanical axis. Anterior is perpendicular to both.
- Coronal plane: mechanical axis and lateral; sagittal plane: mechanical axis and anterior; transverse plane: lateral
  and anterior.
- Coronal plane of the ankle: mechanical axis and the line from the medial malleolus to the fibular notch, which is what
  a mortise view shows; the torsion turns it against the coronal plane.
"""

from dataclasses import dataclass, replace

import numpy as np

from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.markups import Markup, angle_degrees
from BoneReconstructionLib.surfaces import Surface, vertex_normals


@dataclass(frozen=True)
class Published:
    """A published human range.

    Attributes:
        mean, sd: of adults of both sexes, in `unit`.
        unit: "mm" or "degrees".
        source: the reference.
    """

    mean: float
    sd: float
    unit: str
    source: str


@dataclass(frozen=True)
class Definition:
    """What one measurement is.

    Attributes:
        title: its name in words.
        text: how it is read from the bone.
        source: where it is defined so.
        published: what it is in people.
        colour: of its markups; red, green and blue, 0 to 1.
    """

    title: str
    text: str
    source: str
    published: Published
    colour: tuple[float, float, float]

    @property
    def unit(self):
        """ "mm" or "degrees"."""
        return self.published.unit


_ULM = "Strecker et al., J Bone Joint Surg Br 79-B(6):1019-1023, 1997"
_PALEY = "Paley, Principles of Deformity Correction, Springer 2002, chapter 1"
_FITTED_PLANE = (
    "A real 3D measurement technique for the tibial slope, BMC Musculoskelet Disord 2020, s12891-020-03657-9"
)
_PLATEAU = (
    "Correlation of Anthropometric Measurements of Proximal Tibia in Iranian Knees with Size of Current Tibial "
    "Implants, Arch Bone Jt Surg, MRI of 132 adult knees"
)
_SLOPE = "Weinberg et al., Am J Sports Med 45(1):106-113, 2017, 1090 tibiae"
DEFINITIONS = {
    "length": Definition(
        "Length",
        "Length of the mechanical axis, from the centre of the plateau to the centre of the plafond.",
        _ULM,
        Published(369.0, 28.0, "mm", f"{_ULM} (given as mean +/- 2 SD), 513 tibiae"),
        (0.95, 0.75, 0.10),
    ),
    "mpta": Definition(
        "Medial proximal tibial angle (MPTA)",
        "Medial angle in the coronal plane between the mechanical axis and the tangent of the plateaus, which joins the "
        "centres of their joint surfaces; below 90 degrees in varus.",
        _PALEY,
        Published(
            85.6,
            2.4,
            "degrees",
            "Micicoi et al., Knee Surg Sports Traumatol Arthrosc 2020, s00167-020-06030-4, 758 CTs",
        ),
        (0.90, 0.25, 0.20),
    ),
    "ldta": Definition(
        "Lateral distal tibial angle (LDTA)",
        "Lateral angle in the coronal plane of the ankle between the mechanical axis and the tangent of the plafond, "
        "which lies in the plane fitted to the middle of its joint surface; below 90 degrees in valgus.",
        _PALEY,
        Published(
            87.9,
            2.2,
            "degrees",
            "Measurement of the medial distal tibial angle, Foot Ankle Int 32(3):288-293, 2011, mortise views of 48 "
            "healthy legs (given as the medial angle)",
        ),
        (0.55, 0.35, 0.85),
    ),
    "medial_slope": Definition(
        "Medial posterior slope",
        "Angle in the sagittal plane between the perpendicular of the mechanical axis and the plane fitted to the joint "
        "surface of the medial plateau from its anterior to its posterior border; positive where the back is lower.",
        _FITTED_PLANE,
        Published(6.9, 3.7, "degrees", _SLOPE),
        (0.20, 0.65, 0.30),
    ),
    "lateral_slope": Definition(
        "Lateral posterior slope",
        "Angle in the sagittal plane between the perpendicular of the mechanical axis and the plane fitted to the joint "
        "surface of the lateral plateau from its anterior to its posterior border; positive where the back is lower.",
        _FITTED_PLANE,
        Published(4.7, 3.6, "degrees", _SLOPE),
        (0.10, 0.70, 0.70),
    ),
    "torsion": Definition(
        "Torsion",
        "Angle in the transverse plane from the posterior tangent of the plateau to the line from the medial malleolus "
        "to the fibular notch; positive where the foot is turned outwards.",
        _ULM,
        Published(34.9, 7.95, "degrees", f"{_ULM} (given as mean +/- 2 SD), 504 tibiae"),
        (0.20, 0.45, 0.95),
    ),
    "plateau_width": Definition(
        "Width of the plateau",
        "Extent of the tibial head along the posterior tangent of the plateau.",
        _PLATEAU,
        Published(73.36, 6.86, "mm", _PLATEAU),
        (0.90, 0.50, 0.10),
    ),
    "plateau_depth": Definition(
        "Depth of the plateau",
        "Anteroposterior extent of the tibial head above the tuberosity.",
        _PLATEAU,
        Published(46.53, 4.05, "mm", _PLATEAU),
        (0.60, 0.40, 0.20),
    ),
}
# What random people out of the prior are made to differ by as real ones do, see `priorsampling`.
PUBLISHED = {
    name: DEFINITIONS[name].published
    for name in ("length", "plateau_width", "plateau_depth", "medial_slope", "torsion")
}
# Half the length of the lines that are drawn along a tangent and of the planes' shorter sides, mm; planes along the
# bone reach this much beyond its joint surfaces.
TANGENT_MM, ANKLE_TANGENT_MM, PLANE_MM, BEYOND_MM = 25.0, 20.0, 50.0, 20.0
# The posterior tangent touches this many vertices of those that may be backmost.
TOUCHED, TOUCHABLE = 25, 100
# Cosine between the joint surface and the plane fitted to it where a plateau ends, and where it still counts fully.
BORDER, WITHIN = 0.7, 0.9
ROUNDS = 6


@dataclass(frozen=True, eq=False)
class Measurement:
    """One measurement of one bone.

    Attributes:
        name: a key of `DEFINITIONS`.
        value: in the definition's unit; the same for a left bone as for its mirror image.
        markups: the lines, angle and plane that it was read from, in the frame of the bone's vertices.
        width: half width of the value's 95 % interval; None: it is not known.
    """

    name: str
    value: float
    markups: tuple[Markup, ...]
    width: float | None = None

    @property
    def definition(self):
        """The `Definition` of what was measured."""
        return DEFINITIONS[self.name]

    @property
    def text(self):
        """Title, value, interval and unit in one line."""
        interval = "" if self.width is None else f" +/- {self.width:.1f}"
        return f"{self.definition.title}: {self.value:.1f}{interval} {self.definition.unit}"

    def transformed(self, matrix):
        """The same with its markups moved by a (4, 4) rigid motion or mirroring."""
        return replace(self, markups=tuple(markup.transformed(matrix) for markup in self.markups))


@dataclass(frozen=True, eq=False)
class TibiaAxes:
    """The axes of a right tibia, see the top of this file.

    Attributes:
        plateau, plafond: (3,) the ends of the mechanical axis, mm.
        lateral, anterior, proximal: (3,) unit vectors at right angles to each other.
        condyles: (2, 3) where the posterior tangent touches the medial and the lateral condyle, mm.
    """

    plateau: np.ndarray
    plafond: np.ndarray
    lateral: np.ndarray
    anterior: np.ndarray
    proximal: np.ndarray
    condyles: np.ndarray

    def across(self, direction):
        """Unit vector along the part of a direction (3,) that is perpendicular to the mechanical axis."""
        level = direction - (direction @ self.proximal) * self.proximal
        return level / np.linalg.norm(level)


class TibiaLandmarks:
    """Vertex sets of the template that stand for anatomical places of a right tibia in the standard frame.

    Args:
        mean: (n, 3) vertices of the prior's mean tibia.
        faces: (m, 3).
    """

    def __init__(self, mean, faces):
        normals = vertex_normals(Surface(mean, faces))
        x, _, z = mean.T
        top, bottom = z.max(), z.min()
        self.head = np.flatnonzero(z > top - 17)
        head = mean[self.head]
        middle = (head.min(0) + head.max(0)) / 2
        width = np.ptp(head[:, 0])
        joint = (normals[:, 2] > 0.8) & (z > top - 16)

        def plateau(sign):
            centre = middle[:2] + [sign * 0.27 * width, 0]
            return np.flatnonzero(joint & (np.linalg.norm(mean[:, :2] - centre, axis=1) < 0.14 * width))

        def profile(sign):
            """From before the anterior to behind the posterior border of the joint surface, beside the tibial spines."""
            beside = np.abs(x - middle[0] - sign * 0.33 * width) < 0.08 * width
            return np.flatnonzero(beside & (normals[:, 2] > 0.3) & (z > top - 18))

        def posterior(sign):
            half = self.head[(sign * (head[:, 0] - middle[0]) > 0.1 * width) & (head[:, 2] < top - 7)]
            return half[np.argsort(mean[half, 1])[:TOUCHABLE]]

        self.medial_plateau, self.lateral_plateau = plateau(-1), plateau(1)
        self.medial_profile, self.lateral_profile = profile(-1), profile(1)
        profiles = np.concatenate([self.medial_profile, self.lateral_profile])
        self.profile_faces = faces[np.isin(faces, profiles).any(1)]
        self.medial_posterior, self.lateral_posterior = posterior(-1), posterior(1)
        self.plafond = np.flatnonzero((normals[:, 2] < -0.85) & (z < bottom + 25) & (z > bottom + 6))
        self.malleolus = np.flatnonzero(z < bottom + 8)
        # The fibular notch looks backwards and outwards, between the two tubercles above the plafond.
        outwards = np.array([np.cos(np.radians(40)), -np.sin(np.radians(40)), 0])
        self.notch = np.flatnonzero((z > bottom + 12) & (z < bottom + 24) & (normals @ outwards > 0.87) & (x > 0))
        # Beside the middle the plafond turns into the malleolus and into its anterior and posterior lips.
        ankle = self.axes(mean).across(mean[self.notch].mean(0) - mean[self.malleolus].mean(0))
        level = mean[self.plafond] - mean[self.plafond].mean(0)
        beside, before = level @ ankle, level @ np.cross([0.0, 0.0, 1.0], ankle)
        self.plafond_middle = self.plafond[(np.abs(beside) < 11) & (np.abs(before) < 10)]

    def axes(self, tibia):
        """`TibiaAxes` of a right tibia, (n, 3) vertices in correspondence with the template, any pose, mm."""
        plateau = (tibia[self.medial_plateau].mean(0) + tibia[self.lateral_plateau].mean(0)) / 2
        plafond = tibia[self.plafond].mean(0)
        proximal = (plateau - plafond) / np.linalg.norm(plateau - plafond)
        medial, lateral = tibia[self.medial_posterior], tibia[self.lateral_posterior]
        touched = medial, lateral
        for _ in range(ROUNDS):
            tangent = touched[1].mean(0) - touched[0].mean(0)
            across = tangent - (tangent @ proximal) * proximal
            across /= np.linalg.norm(across)
            anterior = np.cross(proximal, across)
            touched = [half[np.argsort(half @ anterior)[:TOUCHED]] for half in (medial, lateral)]
        return TibiaAxes(plateau, plafond, across, anterior, proximal, np.array([half.mean(0) for half in touched]))

    def measure(self, tibia):
        """Values of one tibia.

        Args:
            tibia: (n, 3) vertices of a right tibia in correspondence with the template, any pose, mm.

        Returns:
            {name of `DEFINITIONS`: value}.
        """
        return {name: measurement.value for name, measurement in self.measurements(tibia).items()}

    def measurements(self, tibia, side="right", widths=None):
        """Measure one tibia and tell from which lines, angles and planes the values were read.

        Args:
            tibia: (n, 3) vertices of a tibia in correspondence with the template, any pose, mm; a left one as it lies
                in the patient, not mirrored.
            side: "left" or "right".
            widths: {name: half width of its 95 % interval}, from `shapeposterior.intervals`, where they are known.

        Returns:
            {name of `DEFINITIONS`: `Measurement`}, its markups in the frame of the vertices.
        """
        mirror = side_to_right(side)
        bone = transform_points(mirror, tibia)
        axes = self.axes(bone)
        normals = vertex_normals(Surface(bone, self.profile_faces))
        found = (
            self._length(axes),
            self._mpta(bone, axes),
            self._ldta(bone, axes),
            self._slope("medial_slope", bone, normals, self.medial_profile, axes),
            self._slope("lateral_slope", bone, normals, self.lateral_profile, axes),
            self._torsion(bone, axes),
            self._extent("plateau_width", bone[self.head], axes.lateral),
            self._extent("plateau_depth", bone[self.head], axes.anterior),
        )
        known = widths or {}
        return {one.name: replace(one.transformed(mirror), width=known.get(one.name)) for one in found}

    @staticmethod
    def _length(axes):
        line = np.array([axes.plateau, axes.plafond])
        value = float(np.linalg.norm(line[0] - line[1]))
        return _measurement("length", value, line=("Mechanical axis of the tibia", line))

    def _mpta(self, bone, axes):
        medial, lateral = bone[self.medial_plateau].mean(0), bone[self.lateral_plateau].mean(0)
        middle, half = (medial + lateral) / 2, (lateral - medial) / 2
        seen = half - (half @ axes.anterior) * axes.anterior
        angle = np.array([middle - 1.5 * seen, middle, axes.plafond])
        return _measurement(
            "mpta",
            angle_degrees(angle),
            line=("Tangent of the plateaus", np.array([middle - 1.8 * half, middle + 1.8 * half])),
            angle=angle,
            plane=("Coronal plane", _along(axes, axes.lateral)),
        )

    def _ldta(self, bone, axes):
        ankle = axes.across(bone[self.notch].mean(0) - bone[self.malleolus].mean(0))
        middle = bone[self.plafond_middle]
        forward = np.cross(axes.proximal, ankle)
        rise, _ = _rises(middle, np.ones(len(middle)), ankle, forward, axes.proximal)
        tangent = ANKLE_TANGENT_MM * (ankle + rise * axes.proximal)
        angle = np.array([axes.plafond + tangent, axes.plafond, axes.plateau])
        return _measurement(
            "ldta",
            angle_degrees(angle),
            line=("Tangent of the plafond", np.array([axes.plafond - tangent, axes.plafond + tangent])),
            angle=angle,
            plane=("Coronal plane of the ankle", _along(axes, ankle)),
        )

    @staticmethod
    def _slope(name, bone, normals, profile, axes):
        # What belongs to the joint surface is told by the way it looks, not by the vertices: beside a border, or on a
        # convex plateau, a millimetre along the surface makes a degree.
        normals = normals[profile]
        facing = axes.proximal
        for _ in range(ROUNDS):
            weight = np.clip((np.abs(normals @ facing) - BORDER) / (WITHIN - BORDER), 0, 1)
            aside, rise = _rises(bone[profile], weight, axes.lateral, axes.anterior, axes.proximal)
            facing = axes.proximal - aside * axes.lateral - rise * axes.anterior
            facing /= np.linalg.norm(facing)
        centre = weight @ bone[profile] / weight.sum()
        back = -TANGENT_MM * (axes.anterior + rise * axes.proximal)
        beside = ((centre - axes.plateau) @ axes.lateral) * axes.lateral
        half = name.partition("_")[0]
        return _measurement(
            name,
            float(np.degrees(np.arctan(rise))),
            line=(f"Tangent of the {half} plateau", np.array([centre - back, centre + back])),
            angle=np.array([centre + back, centre, centre - TANGENT_MM * axes.anterior]),
            plane=(f"Sagittal plane of the {half} plateau", _along(axes, axes.anterior) + beside),
        )

    def _torsion(self, bone, axes):
        ankle = np.array([bone[self.malleolus].mean(0), bone[self.notch].mean(0)])
        turned = axes.across(ankle[1] - ankle[0])
        centre = axes.plafond
        return _measurement(
            "torsion",
            float(np.degrees(np.arctan2(-(turned @ axes.anterior), turned @ axes.lateral))),
            line=("Posterior tangent of the plateau", axes.condyles),
            second_line=("Malleolus to fibular notch", ankle),
            angle=np.array([centre + PLANE_MM * axes.lateral, centre, centre + PLANE_MM * turned]),
            plane=("Transverse plane", centre + PLANE_MM * np.array([0 * axes.lateral, axes.lateral, axes.anterior])),
        )

    @staticmethod
    def _extent(name, head, direction):
        along, centre = head @ direction, head.mean(0)
        line = centre + (np.array([along.min(), along.max()]) - centre @ direction)[:, None] * direction
        return _measurement(name, float(np.ptp(along)), line=(DEFINITIONS[name].title, line))


def _rises(points, weight, first, second, up):
    """How much the plane fitted to weighted points (n, 3) rises along `up` per mm along two level directions."""
    centred = points - weight @ points / weight.sum()
    level = np.stack([centred @ first, centred @ second], 1)
    root = np.sqrt(weight)
    return np.linalg.lstsq(root[:, None] * level, root * (centred @ up), rcond=None)[0]


def _along(axes, direction):
    """Corners (3, 3), as of a `Markup`, of a plane through the mechanical axis and a direction perpendicular to it."""
    half = np.linalg.norm(axes.plateau - axes.plafond) / 2 + BEYOND_MM
    steps = np.array([0 * direction, PLANE_MM * direction, half * axes.proximal])
    return (axes.plateau + axes.plafond) / 2 + steps


def _measurement(name, value, line, second_line=None, angle=None, plane=None):
    """A `Measurement` with those markups, given as (name, points), that it has."""
    drawn = (
        ("line", line),
        ("line", second_line),
        ("angle", None if angle is None else (DEFINITIONS[name].title, angle)),
        ("plane", plane),
    )
    colour = DEFINITIONS[name].colour
    return Measurement(name, value, tuple(Markup(what[0], kind, what[1], colour) for kind, what in drawn if what))
