"""The geometry of an X-ray: where the source was, and where each pixel of the detector.

One object per view holds it as the projection needs it: source, detector centre and axes in RAS mm, pixel spacing at
the detector, image size. Distances, C-arm angles and presets are ways to make one and to read one (`CArm`).

Pixels are counted from 0 at the centre of the first one: a pixel position is (column, row), the column along u, the
row along v. Images are arrays [row, column]. A line of sight runs from the source through a pixel and on without end:
what lies behind the detector's plane is projected too, so that a plane put inside a CT's air changes nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from BoneReconstructionLib.errors import InputError

FORMAT, FORMAT_VERSION = "bonerecon-xray-geometry", 1

# What a geometry's `origins` can label.
VALUES = ("spacing", "shape", "source_detector", "source_isocentre", "angles", "offset")
ASSUMED = "assumed"

# Refused beyond these: no X-ray of a patient is made so, and a slip of unit (cm, m) or of a zero falls outside.
SOURCE_DETECTOR_MM = (300.0, 5000.0)
SPACING_MM = (0.01, 50.0)
LARGEST_SIDE = 20_000
STEEPEST_DEGREES = 60.0  # between the central ray and the detector's normal

# Between the central rays of two views. Outside, depth is hardly seen (issue of every biplanar paper).
ANGLE_BETWEEN_DEGREES = (30.0, 150.0)

_AXIS_TOLERANCE = 1e-3  # of lengths and right angles, as rounding in a text file may cause

# Beam from the source, RAS, as DICOM's positioner angles (primary, secondary) of the detector. A left lateral has the
# left side at the detector: the beam runs from right to left, SSR-KD's "RL".
VIEWS = {"AP": (180.0, 0.0), "PA": (0.0, 0.0), "left lateral": (90.0, 0.0), "right lateral": (-90.0, 0.0)}
FRONTAL_VIEWS, LATERAL_VIEWS = ("AP", "PA"), ("left lateral", "right lateral")


@dataclass(frozen=True)
class Preset:
    """Distances and detector of a kind of machine.

    Attributes:
        source_detector_mm: from source to detector.
        source_isocentre_mm: from source to isocentre, of frontal and of lateral views.
        spacing_uv: (2,) mm at the detector, along u and along v.
        shape: (rows, columns).
        source: where the values are from.
    """

    source_detector_mm: float
    source_isocentre_mm: tuple[float, float]
    spacing_uv: tuple[float, float]
    shape: tuple[int, int]
    source: str


PRESETS = {
    "ssr-kd": Preset(2000.0, (1000.0, 1000.0), (0.575, 0.575), (512, 512), "SSR-KD's published code"),
    # The paper gives 422x640 pixels without a spacing; 0.5 mm shows its 127 mm wide femur volumes with a margin.
    "atlas": Preset(1000.0, (925.0, 925.0), (0.5, 0.5), (640, 422), "Van Houtte et al. 2022, Generating DRR"),
    # RadGS-Reg gives 976x976 pixels and the focal length; 0.305 mm is a 30 cm flat panel, the isocentre that of such
    # C-arms.
    "c-arm": Preset(1124.0, (700.0, 700.0), (0.305, 0.305), (976, 976), "RadGS-Reg, in-house data set"),
    # 1764 detectors of 0.254 mm in a slot that scans downwards, here binned by two and seen as one cone beam.
    "eos": Preset(1300.0, (987.0, 918.0), (0.508, 0.508), (882, 882), "EOS-like, frontal and lateral source distances"),
}


@dataclass(frozen=True, eq=False)
class XrayGeometry:
    """One view.

    Attributes:
        source: (3,) focal spot, RAS mm.
        detector_centre: (3,) centre of the image area, RAS mm.
        u: (3,) unit vector along a row of pixels, towards higher columns.
        v: (3,) unit vector along a column of pixels, towards higher rows; at right angles to u.
        spacing_uv: (2,) pixel size in mm at the detector, along u and along v.
        shape: (rows, columns).
        origins: where values came from, {one of `VALUES`: for instance "DICOM ImagerPixelSpacing", "preset ssr-kd",
            "typed", "assumed"}.
        anatomical: whether the world's axes are the patient's right, anterior and superior; False in the frame of a
            calibration object.

    Raises:
        InputError: a value is missing, not finite or impossible.
    """

    source: np.ndarray
    detector_centre: np.ndarray
    u: np.ndarray
    v: np.ndarray
    spacing_uv: np.ndarray
    shape: tuple[int, int]
    origins: Mapping[str, str] = field(default_factory=dict)
    anatomical: bool = True

    def __post_init__(self):
        for name, count in (("source", 3), ("detector_centre", 3), ("u", 3), ("v", 3), ("spacing_uv", 2)):
            object.__setattr__(self, name, _vector(getattr(self, name), count, name))
        object.__setattr__(self, "shape", _shape(self.shape))
        object.__setattr__(self, "origins", dict(self.origins))
        if not all(SPACING_MM[0] <= spacing <= SPACING_MM[1] for spacing in self.spacing_uv):
            raise InputError(
                f"The pixel spacing {self.spacing_uv[0]:g} x {self.spacing_uv[1]:g} mm is impossible: give the pixels' "
                f"size at the detector in mm, {SPACING_MM[0]:g} to {SPACING_MM[1]:g}."
            )
        lengths = np.linalg.norm(self.u), np.linalg.norm(self.v)
        if max(abs(length - 1) for length in lengths) > _AXIS_TOLERANCE or abs(self.u @ self.v) > _AXIS_TOLERANCE:
            raise InputError("The detector's axes are not two unit vectors at right angles: check the geometry.")
        # Exactly at right angles from here on, so that projecting and its inverse agree.
        u = self.u / lengths[0]
        v = self.v - (self.v @ u) * u
        object.__setattr__(self, "u", u)
        object.__setattr__(self, "v", v / np.linalg.norm(v))
        low, high = SOURCE_DETECTOR_MM
        if not low <= self.source_detector_mm <= high:
            raise InputError(
                f"The source is {self.source_detector_mm:.0f} mm from the detector: {low:.0f} to {high:.0f} mm are "
                "possible; check the distance and its unit."
            )
        if self.beam @ self.normal < math.cos(math.radians(STEEPEST_DEGREES)):
            raise InputError(
                f"The central ray meets the detector more than {STEEPEST_DEGREES:.0f} degrees from the right angle: "
                "check the detector's position and axes."
            )

    @cached_property
    def normal(self) -> np.ndarray:
        """(3,) unit vector at right angles to the detector, away from the source."""
        normal = np.cross(self.u, self.v)
        return normal * np.sign(normal @ (self.detector_centre - self.source))

    @property
    def beam(self) -> np.ndarray:
        """(3,) unit vector from the source to the detector's centre."""
        vector = self.detector_centre - self.source
        return vector / np.linalg.norm(vector)

    @cached_property
    def mirrored(self) -> bool:
        """Whether the image shows the patient as seen from the detector; otherwise as seen from the source."""
        return bool(np.cross(self.u, self.v) @ self.normal < 0)

    @cached_property
    def source_detector_mm(self) -> float:
        """Distance from the source to the detector's plane (SDD, SID)."""
        return float(abs(np.cross(self.u, self.v) @ (self.detector_centre - self.source)))

    @cached_property
    def principal_point(self) -> np.ndarray:
        """(2,) pixel position (column, row) of the foot of the source on the detector's plane."""
        return self._pixels_on_plane(self.source[None])[0]

    @property
    def assumed(self) -> tuple[str, ...]:
        """Which of `VALUES` nothing has measured: such a view is not calibrated."""
        return tuple(value for value in VALUES if self.origins.get(value, "").startswith(ASSUMED))

    @property
    def pixel_to_ras(self) -> np.ndarray:
        """(4, 4) matrix from (column, row, mm beyond the detector, 1) to RAS."""
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = (
            self.u * self.spacing_uv[0],
            self.v * self.spacing_uv[1],
            self.normal,
        )
        matrix[:3, 3] = self.detector_centre - matrix[:3, :2] @ self._middle
        return matrix

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 4) projection matrix: (column * w, row * w, w) of (R, A, S, 1), w being the depth in mm.

        The depth is the distance from the source along the detector's normal.
        """
        column, row = self.principal_point
        per_mm = self.source_detector_mm / self.spacing_uv
        rotation = np.stack(
            [per_mm[0] * self.u + column * self.normal, per_mm[1] * self.v + row * self.normal, self.normal]
        )
        return np.column_stack([rotation, -rotation @ self.source])

    @property
    def _middle(self) -> np.ndarray:
        """(2,) pixel position of the image's centre."""
        return np.array([self.shape[1] - 1, self.shape[0] - 1]) / 2

    def _pixels_on_plane(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) pixel positions of (n, 3) points dropped onto the detector's plane."""
        offsets = np.asarray(points, dtype=float) - self.detector_centre
        return np.stack([offsets @ self.u, offsets @ self.v], axis=-1) / self.spacing_uv + self._middle

    def depths(self, points: np.ndarray) -> np.ndarray:
        """(n,) distances in mm of (n, 3) points from the source along the detector's normal; negative behind it."""
        return (np.asarray(points, dtype=float) - self.source) @ self.normal

    def project(self, points: np.ndarray) -> np.ndarray:
        """Where points appear in the image.

        Args:
            points: (n, 3) RAS mm.

        Returns:
            (n, 2) pixel positions (column, row), inside the image or not; nan for points not in front of the source.
        """
        matrix = self.matrix
        homogeneous = (matrix[:, :3] @ np.asarray(points, dtype=float).T).T + matrix[:, 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        pixels[homogeneous[:, 2] <= 0] = np.nan
        return pixels

    def pixel_positions(self, pixels: np.ndarray) -> np.ndarray:
        """(n, 3) RAS positions on the detector of (n, 2) pixel positions (column, row)."""
        offsets = (np.asarray(pixels, dtype=float) - self._middle) * self.spacing_uv
        return self.detector_centre + offsets[:, :1] * self.u + offsets[:, 1:] * self.v

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(n,) bool: whether (n, 3) RAS points lie in the frustum of the source and the image area."""
        pixels = self.project(points)
        low, high = -0.5, np.array(self.shape[::-1]) - 0.5
        return ((pixels >= low) & (pixels <= high)).all(axis=1)

    def sides(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The four sides of that frustum: (point on it, unit normal inwards), RAS."""
        rows, columns = self.shape
        corners = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)]) - 0.5
        rays = self.pixel_positions(corners) - self.source
        sides = []
        for ray, following in zip(rays, np.roll(rays, -1, axis=0), strict=True):
            normal = np.cross(ray, following)
            normal *= np.sign(normal @ rays.sum(axis=0)) / np.linalg.norm(normal)
            sides.append((self.source, normal))
        return sides

    def resized(self, shape: tuple[int, int]) -> "XrayGeometry":
        """The same detector area cut into other pixels, (rows, columns)."""
        rows, columns = _shape(shape)
        spacing = self.spacing_uv * np.array(self.shape[::-1]) / (columns, rows)
        return replace(self, spacing_uv=spacing, shape=(rows, columns))

    def moved(self, matrix: np.ndarray) -> "XrayGeometry":
        """Source and detector moved together by a rigid (4, 4) matrix in the world."""
        matrix = np.asarray(matrix, dtype=float)
        turn, shift = matrix[:3, :3], matrix[:3, 3]
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-6) or np.linalg.det(turn) < 0:
            raise ValueError("an X-ray's geometry is moved by rigid motions only")
        return replace(
            self,
            source=turn @ self.source + shift,
            detector_centre=turn @ self.detector_centre + shift,
            u=turn @ self.u,
            v=turn @ self.v,
        )

    def to_json(self) -> dict:
        """The geometry as JSON holds it; `from_json` makes it again."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "frame": "RAS mm of the patient" if self.anatomical else "right-handed mm of the calibration",
            "source": self.source.tolist(),
            "detector_centre": self.detector_centre.tolist(),
            "u": self.u.tolist(),
            "v": self.v.tolist(),
            "spacing_uv_mm": self.spacing_uv.tolist(),
            "shape_rows_columns": list(self.shape),
            "anatomical": self.anatomical,
            "origins": dict(self.origins),
        }


def from_json(values: object) -> XrayGeometry:
    """The geometry that `XrayGeometry.to_json` has written.

    Args:
        values: what the JSON text says.

    Raises:
        InputError: it is something else, of a later version, incomplete or impossible.
    """
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f'This is no X-ray geometry: its "format" is not "{FORMAT}".')
    if values.get("version") != FORMAT_VERSION:
        raise InputError(f"The X-ray geometry has version {values.get('version')}, {FORMAT_VERSION} is known: update.")
    keys = ("source", "detector_centre", "u", "v", "spacing_uv_mm", "shape_rows_columns", "anatomical")
    missing = [key for key in keys if key not in values]
    if missing:
        raise InputError(f"The X-ray geometry lacks {', '.join(missing)}: write the file again.")
    origins = values.get("origins", {})
    if not isinstance(origins, dict) or not all(isinstance(label, str) for label in origins.values()):
        raise InputError("The X-ray geometry's origins are not texts: write the file again.")
    if not isinstance(values["anatomical"], bool):
        raise InputError('The X-ray geometry\'s "anatomical" is neither true nor false: write the file again.')
    return XrayGeometry(*(values[key] for key in keys[:6]), origins, values["anatomical"])


@dataclass(frozen=True)
class CArm:
    """A view as one reads it off a machine; every angle in degrees, every length in mm.

    The angles are DICOM's positioner angles and say where the detector is, seen from the isocentre of a patient in
    RAS: (0, 0) anterior, which makes a PA image.

    Attributes:
        source_detector_mm: from the source to the detector, at right angles to it.
        source_isocentre_mm: from the source to the isocentre; less than to the detector.
        spacing_uv: (2,) pixel size at the detector, along u and v.
        shape: (rows, columns).
        primary_deg: positive towards the patient's left (LAO), -180 to 180.
        secondary_deg: positive towards the head (cranial), -90 to 90.
        roll_deg: the detector turned in its plane, positive clockwise in the image, so that what it shows turns
            counter-clockwise; 0 has the patient's feet at the bottom.
        isocentre: (3,) RAS.
        offset_uv: (2,) from the foot of the source to the detector's centre, along u and v.
        mirrored: the image shows the patient as seen from the detector instead of the source.
    """

    source_detector_mm: float
    source_isocentre_mm: float
    spacing_uv: tuple[float, float]
    shape: tuple[int, int]
    primary_deg: float = 0.0
    secondary_deg: float = 0.0
    roll_deg: float = 0.0
    isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    offset_uv: tuple[float, float] = (0.0, 0.0)
    mirrored: bool = False


def from_carm(values: CArm, origins: Mapping[str, str] | None = None, anatomical: bool = True) -> XrayGeometry:
    """The geometry that a machine's values describe.

    Args:
        values: of the machine.
        origins: as `XrayGeometry.origins`.
        anatomical: as `XrayGeometry.anatomical`.

    Raises:
        InputError: a value is missing, contradicts another or is impossible.
    """
    numbers = {
        "source to detector": values.source_detector_mm,
        "source to isocentre": values.source_isocentre_mm,
        "primary angle": values.primary_deg,
        "secondary angle": values.secondary_deg,
        "detector's roll": values.roll_deg,
    }
    for name, value in numbers.items():
        if not _is_number(value):
            raise InputError(f"The value {name} is missing or no number: give it.")
    if not 0 < values.source_isocentre_mm < values.source_detector_mm:
        raise InputError(
            f"The source is {values.source_isocentre_mm:g} mm from the isocentre and {values.source_detector_mm:g} mm "
            "from the detector: the isocentre must lie between the two; check the distances."
        )
    if abs(values.primary_deg) > 180 or abs(values.secondary_deg) > 90 or abs(values.roll_deg) > 180:
        raise InputError(
            f"The angles {values.primary_deg:g} (primary), {values.secondary_deg:g} (secondary) and "
            f"{values.roll_deg:g} degrees (roll) are impossible: they go to 180, 90 and 180 degrees either way."
        )
    isocentre = _vector(values.isocentre, 3, "isocentre")
    offset = _vector(values.offset_uv, 2, "offset")
    normal, u, v = _carm_axes(values.primary_deg, values.secondary_deg)
    turn = math.radians(values.roll_deg)
    u, v = math.cos(turn) * u + math.sin(turn) * v, math.cos(turn) * v - math.sin(turn) * u
    if values.mirrored:
        u = -u
    source = isocentre - values.source_isocentre_mm * normal
    centre = source + values.source_detector_mm * normal + offset[0] * u + offset[1] * v
    return XrayGeometry(source, centre, u, v, values.spacing_uv, values.shape, origins or {}, anatomical)


def to_carm(geometry: XrayGeometry, isocentre: np.ndarray) -> CArm:
    """Reads a geometry as a machine's values; `from_carm` makes the same geometry again.

    Args:
        geometry: of one view.
        isocentre: (3,) RAS; the point of the detector's normal through the source that lies nearest is taken.
    """
    normal = geometry.normal
    depth = float(geometry.depths(np.asarray(isocentre, dtype=float)[None])[0])
    secondary = math.degrees(math.asin(np.clip(normal[2], -1, 1)))
    primary = math.degrees(math.atan2(-normal[0], normal[1])) if abs(normal[2]) < 1 - 1e-12 else 0.0
    _, u, v = _carm_axes(primary, secondary)
    seen = -geometry.u if geometry.mirrored else geometry.u
    offset = geometry.detector_centre - geometry.source
    return CArm(
        source_detector_mm=geometry.source_detector_mm,
        source_isocentre_mm=depth,
        spacing_uv=tuple(geometry.spacing_uv.tolist()),
        shape=geometry.shape,
        primary_deg=primary,
        secondary_deg=secondary,
        roll_deg=math.degrees(math.atan2(seen @ v, seen @ u)),
        isocentre=tuple((geometry.source + depth * normal).tolist()),
        offset_uv=(float(offset @ geometry.u), float(offset @ geometry.v)),
        mirrored=geometry.mirrored,
    )


def preset_view(name: str, view: str, isocentre: np.ndarray = (0, 0, 0), turn_deg: float = 0.0) -> XrayGeometry:
    """A standard view by a known kind of machine.

    Args:
        name: one of `PRESETS`.
        view: one of `VIEWS`.
        isocentre: (3,) RAS mm, in the middle of what is to be seen.
        turn_deg: detector and source turned about the body's long axis, positive towards the patient's left as far as
            the detector is concerned.

    Raises:
        InputError: there is no such preset or view.
    """
    if name not in PRESETS:
        raise InputError(f"There is no preset {name}: choose one of {', '.join(PRESETS)}.")
    if view not in VIEWS:
        raise InputError(f"There is no view {view}: choose one of {', '.join(VIEWS)}.")
    preset = PRESETS[name]
    primary, secondary = VIEWS[view]
    values = CArm(
        preset.source_detector_mm,
        preset.source_isocentre_mm[view in LATERAL_VIEWS],
        preset.spacing_uv,
        preset.shape,
        (primary + turn_deg + 180) % 360 - 180,
        secondary,
        isocentre=tuple(float(value) for value in isocentre),
    )
    return from_carm(values, dict.fromkeys(VALUES, f"preset {name}"))


def angle_between(first: XrayGeometry, second: XrayGeometry) -> float:
    """Degrees between the central rays of two views, 0 (the same) to 180 (from opposite sides)."""
    return math.degrees(math.acos(np.clip(first.beam @ second.beam, -1, 1)))


def common_point(first: XrayGeometry, second: XrayGeometry) -> np.ndarray:
    """(3,) RAS point that lies nearest to the central rays of two views that are not parallel: their isocentre."""
    across = [np.eye(3) - np.outer(view.beam, view.beam) for view in (first, second)]
    return np.linalg.solve(sum(across), across[0] @ first.source + across[1] @ second.source)


def check_views(frontal: XrayGeometry, lateral: XrayGeometry) -> None:
    """Refuses two views from which nothing can be reconstructed in 3D.

    Args:
        frontal: what is said to be the AP or PA view.
        lateral: what is said to be the lateral view.

    Raises:
        InputError: the views are nearly parallel or opposite, do not show the same place, are swapped, or are given in
            different frames.
    """
    low, high = ANGLE_BETWEEN_DEGREES
    angle = angle_between(frontal, lateral)
    if not low <= angle <= high:
        kind = "nearly parallel" if angle < low else "nearly opposite"
        raise InputError(
            f"The two views are {angle:.0f} degrees apart, {kind}: views {low:.0f} to {high:.0f} degrees apart are "
            "needed; check the angles or take another X-ray."
        )
    if frontal.anatomical != lateral.anatomical:
        raise InputError(
            "One view's geometry is in the patient's frame and the other's in that of a calibration: give both from "
            "the same source."
        )
    point = common_point(frontal, lateral)[None]
    if not (frontal.contains(point)[0] and lateral.contains(point)[0]):
        raise InputError("The two views do not look at the same place: check distances, angles and positions.")
    if frontal.anatomical and abs(lateral.beam[1]) > abs(frontal.beam[1]) + _AXIS_TOLERANCE:
        raise InputError("The frontal and the lateral view are swapped, by their beams: exchange the two X-rays.")


def calibration_note(geometry: XrayGeometry) -> str:
    """One sentence for the user about what nobody has measured; empty for a calibrated view."""
    if not geometry.assumed:
        return ""
    words = ", ".join(value.replace("_", " to ") for value in geometry.assumed)
    return f"This X-ray is not calibrated, its {words} are assumed: sizes and positions will be off."


def _carm_axes(primary_deg: float, secondary_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal, u and v (each (3,), RAS) of a detector at these angles: u to the right as the source sees it, v down."""
    primary, secondary = math.radians(primary_deg), math.radians(secondary_deg)
    level = np.array([-math.sin(primary), math.cos(primary), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    normal = math.cos(secondary) * level + math.sin(secondary) * up
    v = math.sin(secondary) * level - math.cos(secondary) * up
    return normal, np.cross(v, normal), v


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _vector(values: object, count: int, name: str) -> np.ndarray:
    try:
        vector = np.array(values, dtype=float)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if vector.shape != (count,) or not np.isfinite(vector).all():
        words = {"spacing_uv": "pixel spacing at the detector"}
        raise InputError(f"The {words.get(name, name.replace('_', ' '))} is missing or not {count} numbers: give it.")
    return vector


def _shape(values: object) -> tuple[int, int]:
    sizes = tuple(values) if isinstance(values, (tuple, list, np.ndarray)) else ()
    if len(sizes) != 2 or not all(
        _is_number(size) and size == int(size) and 2 <= size <= LARGEST_SIDE for size in sizes
    ):
        raise InputError(f"The image size is not two whole numbers from 2 to {LARGEST_SIDE} (rows, columns): give it.")
    return int(sizes[0]), int(sizes[1])
