"""Geometries of X-rays in files: our JSON, and the calibration texts of XMALab and Autoscoper (MayaCam 2.0)."""

import json
import os
import re
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.tensorfiles import write_atomically
from BoneReconstructionLib.xraygeometry import VALUES, XrayGeometry, from_json

# A calibration gives directions, not where the detector was: the plane is put this far beyond the origin of the
# calibration object, as Autoscoper does, and the pixel spacing follows. No projection depends on it.
NOMINAL_DETECTOR = 1.5  # times the distance from the source to the origin

_MAYACAM_1_VALUES = 15


def read_geometry(path: str | os.PathLike, shape: tuple[int, int] | None = None) -> XrayGeometry:
    """Reads one view's geometry.

    Args:
        path: a .json file of ours, or a MayaCam 2.0 text as XMALab exports it and Autoscoper reads it.
        shape: (rows, columns) of the image that it is for; not compared when None.

    Returns:
        The geometry. That of a calibration text is in the frame of the calibration object, which is not the patient's
        (`anatomical` is False).

    Raises:
        InputError: the file is missing, of another kind, incomplete or impossible, or is for an image of another size.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as an X-ray geometry: name a .json file or a MayaCam text.") from error
    try:
        geometry = _parse(text)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    if shape is not None and tuple(shape) != geometry.shape:
        rows, columns = geometry.shape
        raise InputError(
            f"{path.name} is for an image of {columns} x {rows} pixels, the X-ray has {shape[1]} x {shape[0]}: take the "
            "X-ray as it was calibrated, neither cropped nor resized."
        )
    return geometry


def write_geometry(path: str | os.PathLike, geometry: XrayGeometry) -> None:
    """Writes a geometry as JSON, under a temporary name first.

    Raises:
        InputError: the file cannot be written.
    """
    write_atomically(path, (json.dumps(geometry.to_json(), indent=1) + "\n").encode())


def _parse(text: str) -> XrayGeometry:
    if text.lstrip().startswith("{"):
        try:
            return from_json(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError("The file is no valid JSON: write it again.") from error
    if text.lstrip().lower().startswith("image size"):
        return _from_mayacam(text)
    if len(re.findall(r"[^\s,]+", text)) == _MAYACAM_1_VALUES:
        raise InputError("This is a MayaCam 1.0 file: export the calibration as MayaCam 2.0 from XMALab.")
    raise InputError("This is neither an X-ray geometry in JSON nor a MayaCam 2.0 text: choose another file.")


def _from_mayacam(text: str) -> XrayGeometry:
    """The geometry of a MayaCam 2.0 text: OpenCV's pinhole camera, pixel = K (R X + t), rows downwards."""
    sections = {}
    for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        title, *lines = part.strip().split("\n")
        try:
            sections[title.strip().lower()] = np.array([[float(n) for n in line.split(",")] for line in lines])
        except ValueError as error:
            raise InputError(f"The calibration's part '{title}' is not made of numbers: export it again.") from error
    shapes = {"image size": (1, 2), "camera matrix": (3, 3), "rotation": (3, 3), "translation": (3, 1)}
    for title, shape in shapes.items():
        if title not in sections or sections[title].shape != shape:
            raise InputError(f"The calibration lacks its {title} of {shape[0]} x {shape[1]} numbers: export it again.")
    camera, rotation, translation = sections["camera matrix"], sections["rotation"], sections["translation"][:, 0]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise InputError("The calibration's rotation is none (its rows are not at right angles): calibrate again.")
    focal = np.diag(camera)[:2]
    if (focal <= 0).any() or not np.allclose(camera[2], (0, 0, 1)) or abs(camera[0, 1]) > 1e-3 * focal[0]:
        raise InputError("The calibration's camera matrix is none of a pinhole camera without skew: calibrate again.")
    source = -rotation.T @ translation
    distance = NOMINAL_DETECTOR * float(np.linalg.norm(translation))
    spacing = distance / focal
    columns, rows = sections["image size"][0]
    from_foot = (np.array([columns - 1, rows - 1]) / 2 - camera[:2, 2]) * spacing
    u, v, normal = rotation
    centre = source + distance * normal + from_foot[0] * u + from_foot[1] * v
    origins = dict.fromkeys(VALUES, "calibration")
    origins["source_detector"] = "nominal plane; the calibration fixes the directions, which it leaves unchanged"
    origins["spacing"] = "calibration, on the nominal plane"
    return XrayGeometry(source, centre, u, v, spacing, (rows, columns), origins, anatomical=False)
