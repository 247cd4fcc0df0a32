"""What DICOM tags say about an X-ray's geometry, as a machine's values that the user completes and confirms."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.radiographs import Radiograph, detector_spacing
from BoneReconstructionLib.xraygeometry import ASSUMED, VIEWS, CArm, XrayGeometry, from_carm, to_carm

SPACING_TOLERANCE = 0.01  # between two statements of one pixel spacing; 1 % is 4 mm over a tibia

# Defined terms of View Position, and the words that makers write for knees. Mediolateral: the beam enters medially.
_VIEW_POSITIONS = {"AP": "AP", "PA": "PA", "LL": "left lateral", "RL": "right lateral"}
_MEDIOLATERAL, _LATEROMEDIAL = ("ML", "LAT", "LATERAL", "MEDIOLATERAL"), ("LM", "LATEROMEDIAL")

# Patient Orientation's letters as directions in RAS; of two letters the first weighs most.
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}


def stated_view(radiograph: Radiograph) -> str | None:
    """One of `VIEWS` by the tags View Position and laterality; None where they do not say. The user confirms it."""
    position = radiograph.tags.get("ViewPosition", "").upper()
    if position in _VIEW_POSITIONS:
        return _VIEW_POSITIONS[position]
    if radiograph.side and position in _MEDIOLATERAL:
        return f"{radiograph.side} lateral"
    if radiograph.side and position in _LATEROMEDIAL:
        return "right lateral" if radiograph.side == "left" else "left lateral"
    return None


def dicom_values(radiograph: Radiograph, view: str | None = None) -> tuple[CArm, dict[str, str]]:
    """A machine's values by DICOM tags.

    Args:
        radiograph: read from DICOM.
        view: one of `VIEWS`, as the user has confirmed it; as `stated_view` when None.

    Returns:
        The values, those that no tag gives being None (`from_carm` refuses them one by one), and the label of each for
        `XrayGeometry.origins`.

    Raises:
        InputError: there is no such view, or Patient Orientation contradicts the view.
    """
    tags = radiograph.tags
    origins = {"shape": "the image"}
    spacing, origins["spacing"] = detector_spacing(tags)
    to_detector, origins["source_detector"] = _number(tags, "DistanceSourceToDetector")
    to_patient, origins["source_isocentre"] = _number(tags, "DistanceSourceToPatient")
    primary, _ = _number(tags, "PositionerPrimaryAngle")
    secondary, _ = _number(tags, "PositionerSecondaryAngle")
    if tags.get("PositionerType", "CARM") == "CARM" and primary is not None and secondary is not None:
        origins["angles"] = "DICOM PositionerPrimaryAngle and PositionerSecondaryAngle"
    else:
        view = view or stated_view(radiograph)
        if view is not None and view not in VIEWS:
            raise InputError(f"There is no view {view}: choose one of {', '.join(VIEWS)}.")
        primary, secondary = VIEWS[view] if view else (None, None)
        origins["angles"] = f"{ASSUMED} from the view {view}" if view else "missing"
    # No tag tells how the patient lay to the central ray.
    origins["offset"] = f"{ASSUMED} centred"
    values = CArm(to_detector, to_patient, spacing, radiograph.shape, primary, secondary)
    if "PatientOrientation" in tags and primary is not None:
        turned = _orientation(tags["PatientOrientation"], primary, secondary)
        values = replace(values, **turned)
        origins["angles"] += "; DICOM PatientOrientation"
    return values, origins


def check_image(radiograph: Radiograph, geometry: XrayGeometry) -> None:
    """Refuses a geometry that is not of the image it is given for.

    Args:
        radiograph: the image.
        geometry: read from a file, a preset or typed.

    Raises:
        InputError: the image has another size, or its file states another pixel spacing.
    """
    if radiograph.shape != geometry.shape:
        raise InputError(
            f"The X-ray has {radiograph.shape[1]} x {radiograph.shape[0]} pixels, its geometry {geometry.shape[1]} x "
            f"{geometry.shape[0]}: give the geometry of this very image."
        )
    stated = radiograph.spacing_uv
    # A calibration's plane is nominal, and with it the spacing.
    if stated is None or geometry.origins.get("spacing", "").startswith("calibration"):
        return
    if np.abs(np.array(stated) / geometry.spacing_uv - 1).max() > SPACING_TOLERANCE:
        raise InputError(
            f"The X-ray's file states pixels of {stated[0]:g} x {stated[1]:g} mm at the detector, its geometry "
            f"{geometry.spacing_uv[0]:g} x {geometry.spacing_uv[1]:g}: check which is right."
        )


def _number(tags: Mapping[str, str], name: str) -> tuple[float | None, str]:
    try:
        return float(tags[name]), f"DICOM {name}"
    except (KeyError, ValueError):
        return None, "missing"


def _orientation(text: str, primary: float, secondary: float) -> dict:
    """Roll and mirroring of an image whose rows and columns run as Patient Orientation says."""
    parts = text.upper().split("\\")
    if len(parts) != 2 or not all(part and set(part) <= _DIRECTIONS.keys() for part in parts):
        return {}
    along = [sum(np.array(_DIRECTIONS[letter]) / 4**n for n, letter in enumerate(part)) for part in parts]
    nominal = from_carm(CArm(1000, 500, (1, 1), (2, 2), primary, secondary))
    # Rows and columns lie in the detector's plane, exactly; the letters say only which way.
    u, v = (vector - (vector @ nominal.normal) * nominal.normal for vector in along)
    if min(np.linalg.norm(u) / np.linalg.norm(along[0]), np.linalg.norm(v) / np.linalg.norm(along[1])) < 0.7:
        raise InputError(
            f"The DICOM tag Patient Orientation ({text}) contradicts the view: its rows or columns would run along the "
            "beam; check the view."
        )
    quarter = {}
    for name, vector in (("u", u), ("v", v)):
        components = np.array([vector @ nominal.u, vector @ nominal.v])
        largest = np.abs(components).argmax()
        quarter[name] = np.sign(components[largest]) * (nominal.u, nominal.v)[largest]
    geometry = XrayGeometry(nominal.source, nominal.detector_centre, quarter["u"], quarter["v"], (1, 1), (2, 2))
    read = to_carm(geometry, np.zeros(3))
    return {"roll_deg": round(read.roll_deg, 9), "mirrored": read.mirrored}
