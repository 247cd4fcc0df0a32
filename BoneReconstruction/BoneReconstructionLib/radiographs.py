"""X-ray images: files read into line integrals of attenuation, in one way that is told to the user.

1. The values are the file's, after DICOM's modality rescaling.
2. How they depend on the beam: "line integrals" (our own NRRD files say so), "linear" (proportional to what the
   detector received) or "log" (proportional to its logarithm, or processed for display, which comes closest to that).
   DICOM's Pixel Intensity Relationship tells (LIN; LOG and DISP); computed radiography without it is "log", and so is
   an image without tags, unless the caller knows better.
3. Polarity, whether bone is bright or dark: DICOM's Pixel Intensity Relationship Sign; without it angiography and
   fluoroscopy (XA, RF) are dark, and other radiographs as they are displayed, bone bright, which in MONOCHROME1 means
   low values. Images without tags are bright unless the caller knows better.
4. Range. linear: p = -ln(I / I0), I0 being the `AIR_PERCENTILE` of the values: exact where the image shows some
   unattenuated beam, else low by a constant. log: p runs linearly from 0 at the brightest `AIR_PERCENTILE` to
   `DENSEST` at the darkest: right up to a factor and a constant. Methods must not rely on more than the image has.
5. Collimated parts, where next to nothing arrives along the image's border behind the step of a blade's edge, or which
   a shutter has blanked, are marked as not seen. A thick body is dark without such a step and stays.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES

PICTURE_SUFFIXES = (".png", ".tif", ".tiff", ".nrrd")
DICOM_MODALITIES = ("CR", "DX", "XA", "RF")
RELATIONS = ("line integrals", "linear", "log")
BONE = ("bright", "dark")

AIR_PERCENTILE = 0.5  # of the pixels are thought brighter than unattenuated beam: noise, and defects of the detector
DENSEST = 4.5  # line integral through the densest part of a knee at 70 kV: 110 mm of muscle and 35 mm of bone
COLLIMATED = 6.5  # line integral from which nothing can be seen: 0.15 %, zero in an 8-bit image
# Half-lit border of a collimated part: at most this share of the image's width, and denser than this percentile of what
# lies further inside.
RIM_WIDTH, RIM_PERCENTILE = 0.03, 99.0
# A blade's edge: the line integrals rise by so much within that width, after a mean over so many pixels against noise.
# So much of a dark part's edge inside the image must be such a step.
STEP, SPECKLE, LEAST_STEPPED = 2.5, 5, 0.5
LEAST_SIDE, LEAST_LEVELS, LEAST_CORRELATION = 64, 24, 0.5

_VALUES_KEY = "bonerecon_values"
_TIFF_FULL = 65535  # unattenuated beam, `write_radiograph`

_TAGS = {
    "Modality": "0008|0060",
    "SOPClassUID": "0008|0016",
    "PresentationIntentType": "0008|0068",
    "BodyPartExamined": "0018|0015",
    "ViewPosition": "0018|5101",
    "PatientPosition": "0018|5100",
    "PatientOrientation": "0020|0020",
    "Laterality": "0020|0060",
    "ImageLaterality": "0020|0062",
    "PhotometricInterpretation": "0028|0004",
    "PixelIntensityRelationship": "0028|1040",
    "PixelIntensityRelationshipSign": "0028|1041",
    "ImagerPixelSpacing": "0018|1164",
    "PixelSpacing": "0028|0030",
    "PixelSpacingCalibrationType": "0028|0a02",
    "NominalScannedPixelSpacing": "0018|2010",
    "EstimatedRadiographicMagnificationFactor": "0018|1114",
    "DistanceSourceToDetector": "0018|1110",
    "DistanceSourceToPatient": "0018|1111",
    "PositionerType": "0018|1508",
    "PositionerPrimaryAngle": "0018|1510",
    "PositionerSecondaryAngle": "0018|1511",
    "BitsStored": "0028|0101",
    "RescaleIntercept": "0028|1052",
    "RescaleSlope": "0028|1053",
}


@dataclass(frozen=True, eq=False)
class Radiograph:
    """An X-ray image as the methods see it.

    Attributes:
        line_integrals: (rows, columns) float32, attenuation along each ray; 0 is the unattenuated beam.
        seen: (rows, columns) bool, False where the collimator kept the beam away.
        spacing_uv: (2,) pixel size in mm along a row and along a column, as the file states it; None if it does not.
        side: "left", "right" or None, what the tags say; to be confirmed by the user.
        tags: DICOM attributes by keyword, as text; empty for other files.
        steps: what was done to the values, in words for the user.
        absolute: whether the line integrals are right up to a constant; otherwise up to a factor as well.
    """

    line_integrals: np.ndarray
    seen: np.ndarray
    spacing_uv: tuple[float, float] | None = None
    side: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    absolute: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.line_integrals.shape


def read_radiograph(path: str | os.PathLike, relation: str | None = None, bone: str | None = None) -> Radiograph:
    """Reads an X-ray image.

    Args:
        path: a .png, .tif, .tiff or .nrrd file; any other is read as DICOM (CR, DX, XA or RF, one image).
        relation: one of `RELATIONS`, how the values depend on the beam; as the file says when None.
        bone: "bright" or "dark"; as the file says when None.

    Raises:
        InputError: the file is missing, damaged or of another kind, has several frames or colours, or shows nothing
            like an X-ray.
    """
    path = Path(path)
    values, full, spacing, tags, stated = _read(path)
    try:
        _check_values(values)
        relation, relation_from = _choose(relation, stated["relation"], "log", RELATIONS)
        bone, bone_from = _choose(bone, stated["bone"], "bright", BONE)
        line_integrals, range_step = _to_line_integrals(values.astype(np.float64), full, relation, bone)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    seen = ~_collimated(line_integrals, values)
    steps = (
        f"values are {relation} ({relation_from})",
        *((f"bone is {bone} ({bone_from})",) if relation != "line integrals" else ()),
        range_step,
        *((f"{100 * (1 - seen.mean()):.0f} % of the image is collimated",) if not seen.all() else ()),
    )
    return Radiograph(
        line_integrals.astype(np.float32), seen, spacing, _side(tags), tags, steps, absolute=relation != "log"
    )


def write_radiograph(path: str | os.PathLike, radiograph: Radiograph) -> None:
    """Writes an X-ray image, under a temporary name first.

    Args:
        path: .nrrd for the line integrals as float32, or .tif for what a detector would have measured: 16 bit, linear,
            bone dark, 65535 the unattenuated beam.
        radiograph: with its spacing, which only .nrrd keeps.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    import SimpleITK as sitk

    path = Path(path)
    if path.suffix == ".nrrd":
        image = sitk.GetImageFromArray(radiograph.line_integrals.astype(np.float32))
        image.SetMetaData(_VALUES_KEY, "line integrals")
        if radiograph.spacing_uv is not None:
            image.SetSpacing([float(spacing) for spacing in radiograph.spacing_uv])
    elif path.suffix == ".tif":
        received = np.rint(_TIFF_FULL * np.exp(-np.maximum(radiograph.line_integrals, 0)))
        image = sitk.GetImageFromArray(received.astype(np.uint16))
    else:
        raise InputError(f"{path.name} has neither of the endings .nrrd and .tif: choose one of these.")
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        sitk.WriteImage(image, str(temporary), useCompression=True)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{path} cannot be written: check that its folder exists, is writable and not full."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path):
    """An image's values [row, column], the highest that its type can hold, its spacing or None, its DICOM tags, and
    {"relation", "bone"} as the file states them or None."""
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(f"{path} does not exist or is a folder: name an X-ray image file.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    dicom = path.suffix.lower() not in PICTURE_SUFFIXES
    if dicom:
        reader.SetImageIO("GDCMImageIO")
    try:
        image = reader.Execute()
    except RuntimeError as error:
        kind = "a DICOM image" if dicom else "an image"
        raise InputError(f"{path.name} cannot be read as {kind}: it is damaged or in another format.") from error
    size = image.GetSize()
    if any(extent > 1 for extent in size[2:]):
        raise InputError(f"{path.name} has {math.prod(size[2:])} frames or slices: export one X-ray image.")
    values = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    values = values.reshape(size[1], size[0], components)
    if components > 1 and not all((values[..., 0] == values[..., n]).all() for n in range(1, min(components, 3))):
        raise InputError(f"{path.name} is a coloured picture, no X-ray: choose another file.")
    values = values[..., 0]
    full = float(np.iinfo(values.dtype).max if values.dtype.kind in "iu" else values.max())
    keys = set(image.GetMetaDataKeys())
    if not dicom:
        ours = image.GetMetaData(_VALUES_KEY) if _VALUES_KEY in keys else None
        stated = path.suffix.lower() == ".nrrd" and image.GetSpacing()[:2] != (1.0, 1.0)
        return values, full, image.GetSpacing()[:2] if stated else None, {}, {"relation": ours, "bone": None}
    tags = {name: image.GetMetaData(key).strip() for name, key in _TAGS.items() if key in keys}
    tags = {name: text for name, text in tags.items() if text}
    modality = tags.get("Modality", "none")
    if modality not in DICOM_MODALITIES:
        raise InputError(
            f"{path.name} is a DICOM image of modality {modality}: X-rays are {', '.join(DICOM_MODALITIES)}."
        )
    slope, intercept = float(tags.get("RescaleSlope", 1)), float(tags.get("RescaleIntercept", 0))
    full = slope * (2 ** int(tags.get("BitsStored", 16)) - 1) + intercept
    if tags.get("PhotometricInterpretation") == "MONOCHROME1":
        # ITK inverts these to show them; what the tags say of the beam holds for the values as they are stored.
        values = full + intercept - values.astype(np.float64)
    return values, full, detector_spacing(tags)[0], tags, _stated_by_dicom(tags)


def _stated_by_dicom(tags: Mapping[str, str]) -> dict[str, str]:
    relation = {"LIN": "linear", "LOG": "log", "DISP": "log"}.get(tags.get("PixelIntensityRelationship", ""), "log")
    sign = tags.get("PixelIntensityRelationshipSign", "")
    if sign:
        bone = "dark" if int(sign) > 0 else "bright"
    elif tags["Modality"] in ("XA", "RF"):
        bone = "dark"
    else:
        bone = "dark" if tags.get("PhotometricInterpretation") == "MONOCHROME1" else "bright"
    return {"relation": relation, "bone": bone}


def detector_spacing(tags: Mapping[str, str]) -> tuple[tuple[float, float] | None, str]:
    """Pixel spacing at the detector by DICOM tags.

    Args:
        tags: `Radiograph.tags`.

    Returns:
        ((mm along a row, mm along a column) or None, where it is from).
    """
    at_detector = _numbers(tags, "ImagerPixelSpacing", 2)
    if at_detector:
        return at_detector[::-1], "DICOM ImagerPixelSpacing"
    scanned = _numbers(tags, "NominalScannedPixelSpacing", 2)
    if scanned:
        return scanned[::-1], "DICOM NominalScannedPixelSpacing, of the film"
    calibrated = _numbers(tags, "PixelSpacing", 2)
    if not calibrated:
        return None, "missing"
    factor = _numbers(tags, "EstimatedRadiographicMagnificationFactor", 1)
    distances = _numbers(tags, "DistanceSourceToDetector", 1), _numbers(tags, "DistanceSourceToPatient", 1)
    if "PixelSpacingCalibrationType" in tags and not factor and all(distances):
        factor = (distances[0][0] / distances[1][0],)
    if "PixelSpacingCalibrationType" in tags and factor:
        spacing = calibrated[1] * factor[0], calibrated[0] * factor[0]
        return spacing, "DICOM PixelSpacing at the patient, magnified to the detector"
    return calibrated[::-1], "assumed at the detector, DICOM PixelSpacing"


def _numbers(tags: Mapping[str, str], name: str, count: int) -> tuple[float, ...] | None:
    """The positive numbers of a tag; None where it is missing or says nothing."""
    try:
        numbers = tuple(float(part) for part in tags.get(name, "").split("\\"))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(n > 0 and math.isfinite(n) for n in numbers) else None


def _side(tags: Mapping[str, str]) -> str | None:
    letter = tags.get("ImageLaterality") or tags.get("Laterality") or ""
    return {side[0].upper(): side for side in SIDES}.get(letter)


def _choose(typed: str | None, stated: str | None, default: str, allowed: tuple[str, ...]) -> tuple[str, str]:
    chosen = typed or stated or default
    if chosen not in allowed:
        raise InputError(f"An X-ray's values cannot be {chosen}: choose {' or '.join(allowed)}.")
    return chosen, "as chosen" if typed else "as the file says" if stated else "assumed"


def _check_values(values: np.ndarray) -> None:
    """Refuses what can be no X-ray: too small, of few grey levels, or noise."""
    rows, columns = values.shape
    if min(rows, columns) < LEAST_SIDE:
        raise InputError(f"The image has {columns} x {rows} pixels: an X-ray of at least {LEAST_SIDE} is needed.")
    if not np.isfinite(values).all():
        raise InputError("The image holds values that are not numbers: export it again.")
    levels = len(np.unique(values))
    if levels < LEAST_LEVELS:
        raise InputError(f"The image has {levels} grey levels, an X-ray has many: choose the X-ray itself, not a mask.")
    sample = values.astype(np.float64)
    sample -= sample.mean()
    neighbours = (sample[:, 1:] * sample[:, :-1]).mean() / (sample**2).mean()
    if neighbours < LEAST_CORRELATION:
        raise InputError("The image is noise, neighbouring pixels have nothing in common: choose an X-ray.")


def _to_line_integrals(values: np.ndarray, full: float, relation: str, bone: str) -> tuple[np.ndarray, str]:
    if relation == "line integrals":
        return values, "taken as they are"
    if relation == "linear":
        received = np.maximum(values if bone == "dark" else full - values, 0)
        air = np.percentile(received, 100 - AIR_PERCENTILE)
        if air <= 0:
            raise InputError("The image is all dark, nothing has reached the detector: choose another X-ray.")
        # Half a grey level is the least that can be told from nothing.
        steps = np.unique(received)
        floor = max(np.diff(steps).min() / 2, air * math.exp(-2 * COLLIMATED))
        line_integrals = -np.log(np.maximum(received, floor) / air)
        return np.maximum(line_integrals, 0), f"p = -ln(I / I0), I0 = the {100 - AIR_PERCENTILE:g}th percentile"
    dense = values if bone == "bright" else -values
    air, densest = np.percentile(dense, (AIR_PERCENTILE, 100 - AIR_PERCENTILE))
    if densest <= air:
        raise InputError("The image is the same nearly everywhere: choose another X-ray.")
    scaled = (dense - air) * (DENSEST / (densest - air))
    return np.maximum(scaled, 0), f"scaled so that the densest part is p = {DENSEST:g}, the unattenuated beam 0"


def _collimated(line_integrals: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: parts along the border where nothing arrived, or that a shutter has blanked.

    A thick body lets as little through as a blade does, but only a blade's edge is a step.
    """
    rim = max(int(RIM_WIDTH * values.shape[1]), 1)
    densest = line_integrals >= line_integrals.max()
    # A shutter blanks many pixels to one value; the densest pixel of a knee is single.
    blank = densest if densest.mean() > 0.01 else np.zeros_like(densest)
    dark = line_integrals >= COLLIMATED
    if dark.any():
        dark &= _behind_blades(line_integrals, dark, rim)
    collimated = np.isin(*_along_border(dark | blank))
    if not collimated.any():
        return collimated
    near = ndimage.distance_transform_cdt(~collimated, "chessboard") <= rim
    if near.all():
        return collimated
    return collimated | (near & (line_integrals > np.percentile(line_integrals[~near], RIM_PERCENTILE)))


def _behind_blades(line_integrals: np.ndarray, dark: np.ndarray, rim: int) -> np.ndarray:
    """(rows, columns) bool: without the dark parts along the border that no step bounds inside the image.

    A strip of a blade that is narrower than its step has no part beyond it.
    """
    smooth = ndimage.uniform_filter(line_integrals, SPECKLE)
    stepped = ndimage.maximum_filter(smooth, rim + SPECKLE) - ndimage.minimum_filter(smooth, rim + SPECKLE) > STEP
    labels, along = _along_border(dark & ~stepped)
    beside = np.where(labels == 0, ndimage.maximum_filter(labels, 3), 0)
    edge, steps = (np.bincount(part.ravel(), minlength=labels.max() + 1) for part in (beside, beside * stepped))
    blades = steps > LEAST_STEPPED * edge
    behind, bodies = (
        ndimage.maximum_filter(np.isin(labels, along[blades[along] == kind]), 2 * rim + 1) for kind in (True, False)
    )
    return behind | (stepped & ~bodies)


def _along_border(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows, columns) of a mask's connected parts, and which of them touch the image's border."""
    labels = ndimage.label(mask)[0]
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return labels, border[border > 0]
