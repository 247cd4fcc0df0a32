"""`bonerecon register-ct`: where the bone of a CT lies in the world of a frontal and a lateral X-ray."""

import json
import time
from dataclasses import asdict, dataclass, fields

import numpy as np

from BiplanarReconLib.overlays import write_picture
from BiplanarReconLib.registration.pictures import overlay
from BiplanarReconLib.registration.registration import METHOD, CtRegistrar
from BiplanarReconLib.xrayarguments import VIEWS, add_xray_arguments
from BoneReconstructionLib.dicomgeometry import check_image
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.radiographs import read_radiograph
from BoneReconstructionLib.transformfiles import read_transform, write_transform
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import Volume, read_mask, read_volume, resample
from BoneReconstructionLib.xraygeometry import angle_between, calibration_note, check_views
from BoneReconstructionLib.xraygeometryfiles import read_geometry

STAGES = {"reading the files": 3, "finding the bone": 2, "fitting the pose": 5, "writing": 1}
TRANSFORM = "ct-to-xrays.tfm"
FILES = (TRANSFORM, *(f"{view}-edges.png" for view in VIEWS), RESULT)


@dataclass(frozen=True)
class RegistrationRequest:
    """What to register; the fields are the arguments of `bonerecon register-ct`.

    Attributes:
        ct: file of the CT, HU.
        ap, lateral: X-ray files.
        ap_geometry, lateral_geometry: their geometry files, both in one frame.
        segmentation: masks of the bone, each FILE[:LABEL|SEGMENT], together; empty: all bone of the CT.
        start: transform file from the CT to the geometries' frame; None: the CT's axes as they are, the bone's centre
            where the central rays meet.
        relation, bone: how the X-rays' values depend on the beam, and whether bone is bright or dark, as
            `radiographs.read_radiograph` takes them; None: as the files say.
    """

    ct: str
    ap: str
    ap_geometry: str
    lateral: str
    lateral_geometry: str
    segmentation: tuple = ()
    start: str | None = None
    relation: str | None = None
    bone: str | None = None


def register_ct(request, folder, report=lambda stage, fraction: None):
    """Register the CT of a request and write its files into an empty folder.

    Args:
        request: `RegistrationRequest`.
        folder: where go: ct-to-xrays.tfm, which moves the CT into the frame of the geometries; ap-edges.png and
            lateral-edges.png, the X-rays with the edges of the moved bone's projection; result.json.
        report: called with (stage, fraction done).

    Returns:
        The contents of result.json.

    Raises:
        InputError: a file cannot be read, the views cannot be used, or the bone is not found in the X-rays.
    """
    began = time.perf_counter()
    geometries = [read_geometry(path) for path in (request.ap_geometry, request.lateral_geometry)]
    check_views(*geometries)
    start = None if request.start is None else read_transform(request.start)
    radiographs = [read_radiograph(path, request.relation, request.bone) for path in (request.ap, request.lateral)]
    for radiograph, geometry in zip(radiographs, geometries, strict=True):
        check_image(radiograph, geometry)
    report("reading the files", 0.3)
    ct = read_volume(request.ct)
    registrar = CtRegistrar(ct, _mask(request.segmentation, ct))
    report("reading the files", 1.0)
    found = registrar.register(radiographs, geometries, start, report)
    report("writing", 0.0)
    write_transform(folder / TRANSFORM, found.pose)
    for view, radiograph, geometry in zip(VIEWS, radiographs, geometries, strict=True):
        projection, pixel_mm = registrar.projection(geometry, found.pose)
        write_picture(folder / f"{view}-edges.png", overlay(radiograph, geometry, projection, pixel_mm))
    result = {
        "version": VERSION,
        "not_for_clinical_use": True,
        "method": METHOD,
        "inputs": asdict(request),
        "ct_to_xrays_ras": np.round(found.pose, 6).tolist(),
        "frame": "RAS of the patient" if geometries[0].anatomical else "of the calibration, as the geometries have it",
        "moved_mm": round(found.moved[0], 2),
        "turned_deg": round(found.moved[1], 2),
        "correlation": dict(zip(VIEWS, (round(value, 3) for value in found.correlations), strict=True)),
        "residual_mm": dict(zip(VIEWS, (round(value, 2) for value in found.residuals_mm), strict=True)),
        "shown": dict(zip(VIEWS, (round(value, 2) for value in found.shown), strict=True)),
        "xray_steps": dict(zip(VIEWS, ([*one.steps] for one in radiographs), strict=True)),
        "angle_between_views_deg": round(angle_between(*geometries), 1),
        "engine": registrar.engine,
        "warnings": sorted({calibration_note(geometry) for geometry in geometries} - {""}) + [*found.warnings],
        "registration_seconds": round(found.seconds, 2),
        "seconds": round(time.perf_counter() - began, 2),
    }
    (folder / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def _mask(names, ct):
    """The masks of these names together, on the CT's grid; None without any."""
    if not names:
        return None
    masks = [resample(read_mask(name), ct.shape, ct.ijk_to_ras, "antialiased") for name in names]
    return Volume(np.logical_or.reduce([mask.array for mask in masks]), ct.ijk_to_ras)


def add_arguments(parser):
    """Declare the arguments of `bonerecon register-ct`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT in HU (.nrrd, .nii, .nii.gz, .mha)")
    parser.add_argument(
        "--segmentation",
        nargs="+",
        default=(),
        metavar="FILE[:LABEL|SEGMENT]",
        help="the bone that is registered, several together (default: all bone of the CT)",
    )
    add_xray_arguments(parser)
    parser.add_argument(
        "--start",
        metavar="FILE",
        help="transform from the CT to the X-rays' frame, right to 25 mm and 20 degrees (default: the CT's axes as they "
        "are, the bone where the central rays meet)",
    )


def run(arguments):
    """Run `bonerecon register-ct`."""
    values = {one.name: getattr(arguments, one.name) for one in fields(RegistrationRequest)}
    request = RegistrationRequest(**values | {"segmentation": tuple(arguments.segmentation)})
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = register_ct(request, folder, progress.report)
    for warning in result["warnings"]:
        print(f"Warning: {warning}")
