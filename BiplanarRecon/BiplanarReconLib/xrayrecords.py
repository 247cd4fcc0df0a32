"""What the scene keeps about an X-ray beside its image: a machine's values, where each is from, what was confirmed.

It lies as JSON in an attribute of the X-ray's volume node, so that it is saved with the scene and found again. The
geometry is always made of these values anew: an X-ray with impossible values has none, and says why.
"""

import json
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from BoneReconstructionLib.dicomgeometry import check_image, dicom_values, stated_view
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.radiographs import Radiograph
from BoneReconstructionLib.xraygeometry import (
    ASSUMED,
    FRONTAL_VIEWS,
    LATERAL_VIEWS,
    PRESETS,
    VIEWS,
    CArm,
    calibration_note,
    check_views,
    common_point,
    from_carm,
    preset_view,
    to_carm,
)

ATTRIBUTE = "BiplanarRecon.Xray"
FRONTAL, LATERAL = "frontal", "lateral"
VIEWS_OF = {FRONTAL: FRONTAL_VIEWS, LATERAL: LATERAL_VIEWS}
MISSING, TYPED = "missing", "typed"
# Where a value of the machine is from, by the value's name; the last is none of `xraygeometry.VALUES`.
ORIGIN_OF = {
    "source_detector_mm": "source_detector",
    "source_isocentre_mm": "source_isocentre",
    "spacing_uv": "spacing",
    "shape": "shape",
    "primary_deg": "angles",
    "secondary_deg": "angles",
    "roll_deg": "angles",
    "mirrored": "angles",
    "offset_uv": "offset",
    "isocentre": "isocentre",
}
_PAIRS = ("spacing_uv", "shape", "isocentre", "offset_uv")
# The beam of a view runs along this axis of the patient, this way (RAS).
_BEAMS = {"AP": (1, -1), "PA": (1, 1), "left lateral": (0, -1), "right lateral": (0, 1)}


@dataclass(frozen=True)
class XrayRecord:
    """What is known of an X-ray.

    Attributes:
        values: of the machine; None where nothing is stated.
        origins: where they are from, by the names of `ORIGIN_OF`.
        anatomical: as `XrayGeometry.anatomical`.
        spacing_uv: (2,) mm that the file states, or None.
        steps: what was done to the image's values, in words.
        tags: DICOM attributes that say something about view and geometry; empty for other files.
        stated_side: "left", "right" or None, as the tags say.
        view: one of `VIEWS` as the user has confirmed it, or "".
        side: "left" or "right" as the user has confirmed it, or "".
    """

    values: CArm
    origins: dict
    anatomical: bool = True
    spacing_uv: tuple | None = None
    steps: tuple = ()
    tags: dict = field(default_factory=dict)
    stated_side: str | None = None
    view: str = ""
    side: str = ""

    @property
    def geometry(self):
        """The `XrayGeometry`.

        Raises:
            InputError: a value is missing, impossible, or contradicts another, the image or the confirmed view.
        """
        geometry = from_carm(self.values, self.origins, self.anatomical)
        check_image(self._pixels(), geometry)
        if self.view and self.anatomical:
            axis, way = _BEAMS[self.view]
            if way * geometry.beam[axis] <= 0:
                raise InputError(
                    f"The angles are not those of the view {self.view} that you chose: check the primary angle "
                    f"({self.values.primary_deg:g} degrees) and the view."
                )
        return geometry

    @property
    def reason(self):
        """Why the X-ray has no geometry, as a sentence; empty where it has one."""
        try:
            self.geometry  # noqa: B018 - it is asked for its refusal
        except InputError as error:
            return str(error)
        return ""

    @property
    def stated_view(self):
        """One of `VIEWS`, as the DICOM tags say, or None."""
        return stated_view(self._pixels()) if self.tags else None

    def changed(self, name, value):
        """The record with one value typed in."""
        origins = self.origins | {ORIGIN_OF[name]: TYPED}
        return replace(self, values=replace(self.values, **{name: value}), origins=origins)

    def seen_as(self, view):
        """The record with its view confirmed; angles that nothing but a view has told follow it.

        Args:
            view: one of `VIEWS`, or "" to take the confirmation back.
        """
        values, origins = self.values, dict(self.origins)
        told = origins["angles"]
        if view and (told.startswith((MISSING, ASSUMED, "preset"))):
            values = replace(values, primary_deg=VIEWS[view][0], secondary_deg=VIEWS[view][1])
            if not told.startswith("preset"):
                origins["angles"] = f"{ASSUMED} from the view {view}"
        return replace(self, view=view, values=values, origins=origins)

    def from_dicom(self):
        """The record with what the DICOM tags say.

        Raises:
            InputError: the file was none, or Patient Orientation contradicts the view.
        """
        if not self.tags:
            raise InputError("The X-ray's file has no DICOM tags: read a geometry file, take a preset or type it in.")
        values, origins = dicom_values(self._pixels(), self.view or None)
        return replace(self, values=values, origins=_named(origins), anatomical=True)

    def from_preset(self, name):
        """The record with the distances and the detector of a preset, seen in the confirmed view.

        Raises:
            InputError: the view is not confirmed.
        """
        if not self.view:
            raise InputError("Choose the view first: a preset does not know from where the X-ray was taken.")
        preset = PRESETS[name]
        values = to_carm(preset_view(name, self.view, self.values.isocentre), self.values.isocentre)
        origin = f"preset {name}"
        origins = _named(dict.fromkeys(("source_detector", "source_isocentre", "angles", "offset"), origin))
        spacing = self.spacing_uv
        origins["spacing"] = "the image's file"
        if spacing is None:
            same = self.values.shape == preset.shape
            spacing = preset.spacing_uv if same else None
            origins["spacing"] = origin if same else f"{MISSING}: the preset's detector has other pixels"
        values = replace(values, spacing_uv=spacing, shape=self.values.shape)
        return replace(self, values=values, origins=origins, anatomical=True)

    def from_geometry(self, geometry, told_by, other=None):
        """The record with a whole geometry.

        Args:
            geometry: `XrayGeometry`.
            told_by: what has told it, for the user.
            other: that of the other view or None; the isocentre is where both meet, else a point on the beam. The
                distance from the source is read there, and no projection depends on it.
        """
        values = to_carm(geometry, _isocentre(geometry, other))
        # What is assumed or of a calibration's nominal plane says so at its begin, to others as well.
        origins = {
            name: origin if origin.startswith((ASSUMED, "calibration")) else f"{told_by} ({origin})"
            for name, origin in geometry.origins.items()
        }
        origins["isocentre"] = "where both beams meet" if other is not None else "a point on the beam"
        return replace(self, values=values, origins=_named(origins), anatomical=geometry.anatomical)

    def _pixels(self):
        """The X-ray without its values."""
        nothing, seen = (np.broadcast_to(value, self.values.shape) for value in (np.float32(0), True))
        return Radiograph(nothing, seen, self.spacing_uv, self.stated_side, self.tags)


def record_of(radiograph):
    """What an X-ray's file says about it.

    Args:
        radiograph: `Radiograph`.

    Returns:
        `XrayRecord`, nothing of it confirmed.
    """
    values = CArm(None, None, radiograph.spacing_uv, radiograph.shape, None, None)
    origins = dict.fromkeys(("source_detector", "source_isocentre", "spacing", "angles"), MISSING)
    if radiograph.spacing_uv is not None:
        origins["spacing"] = "the image's file"
    origins["offset"] = f"{ASSUMED} centred"
    record = XrayRecord(
        values, _named(origins), True, radiograph.spacing_uv, tuple(radiograph.steps), dict(radiograph.tags),
        radiograph.side,
    )  # fmt: skip
    try:
        return record.from_dicom() if record.tags else record
    except InputError:  # the user is told as soon as the view is chosen
        return record


def to_json(record):
    """The text that `from_json` reads."""
    return json.dumps(asdict(record))


def from_json(text):
    """The `XrayRecord` that `to_json` has written."""
    content = json.loads(text)
    values = content["values"]
    values |= {name: None if values[name] is None else tuple(values[name]) for name in _PAIRS}
    spacing = content["spacing_uv"]
    content |= {"values": CArm(**values), "steps": tuple(content["steps"])}
    return XrayRecord(**content | {"spacing_uv": None if spacing is None else tuple(spacing)})


def reason_not_to_reconstruct(frontal, lateral, axes=""):
    """Why two X-rays cannot be used, as a sentence, or "".

    Args:
        frontal, lateral: `XrayRecord` or None.
        axes: the patient's axes in a calibration's frame.
    """
    for record, name in ((frontal, FRONTAL), (lateral, LATERAL)):
        if record is None:
            return f"Load or select the {name} X-ray."
        if record.view not in VIEWS_OF[name]:
            return f"Say whether the {name} X-ray is {' or '.join(VIEWS_OF[name])}: look at its marker."
    if not frontal.side or frontal.side != lateral.side:
        return "Say whether it is a left or a right knee: look at the markers on the X-rays."
    for record in (frontal, lateral):
        if record.stated_side and record.stated_side != record.side:
            return f"An X-ray is tagged as of a {record.stated_side} knee, not a {record.side} one: check the side."
    for record, name in ((frontal, "Frontal"), (lateral, "Lateral")):
        if record.reason:
            return f"{name} X-ray: {record.reason}"
    try:
        check_views(frontal.geometry, lateral.geometry)
    except InputError as error:
        return str(error)
    if not frontal.anatomical and not axes.strip():
        return (
            "The geometry is in the frame of a calibration object: give which of its axes point to the patient's "
            "right, front and head, for instance -y,x,z."
        )
    return ""


def cautions(records):
    """Sentences about what nobody has measured, to be read before the work.

    Args:
        records: {"frontal" or "lateral": `XrayRecord`} with a geometry.
    """
    notes = {name: calibration_note(record.geometry) for name, record in records.items()}
    return [f"{name.capitalize()}: {note}" for name, note in notes.items() if note]


def _named(origins):
    return {"isocentre": "the frame's origin unless typed", "shape": "the image"} | dict(origins)


def _isocentre(geometry, other):
    """A point before the detector at which to read the distance from the source."""
    half = geometry.source + 0.5 * geometry.source_detector_mm * geometry.normal
    candidates = [np.zeros(3)]
    if other is not None and np.linalg.norm(np.cross(geometry.beam, other.beam)) > 0.1:
        candidates.insert(0, common_point(geometry, other))
    inside = [point for point in candidates if geometry.contains(point[None])[0]]
    near = [point for point in inside if geometry.depths(point[None])[0] < 0.99 * geometry.source_detector_mm]
    return near[0] if near else half
