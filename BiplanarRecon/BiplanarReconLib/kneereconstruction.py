"""`bonerecon reconstruct-knee`: the bones of a knee in 3D out of a frontal and a lateral X-ray."""

import json
import time
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from scipy.spatial import cKDTree

from BiplanarReconLib.fieldofview import cut_to_views, in_both, labelmap
from BiplanarReconLib.fitting.kneemodel import BONES, MODEL
from BiplanarReconLib.fitting.landmarks import LANDMARKS, Landmark
from BiplanarReconLib.fitting.reconstruction import METHOD, reconstruct
from BiplanarReconLib.overlays import outline, picture, write_picture
from BiplanarReconLib.xrayarguments import VIEWS, add_xray_arguments
from BoneReconstructionLib.dicomgeometry import check_image
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.radiographs import read_radiograph
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import transformed, volume_mm3
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import write_volume
from BoneReconstructionLib.xraygeometry import angle_between, calibration_note, check_views
from BoneReconstructionLib.xraygeometryfiles import read_geometry

STAGES = {"reading the X-rays": 1, "finding the knee": 4, "moving the knee": 5, "fitting the bones": 6, "writing": 2}
LABELMAP, OUTLINES = "bones.nii.gz", "outlines.json"
FILES = (
    *(f"{bone}{ending}" for bone in BONES for ending in (".ply", ".vtp")),
    *(f"{view}-outlines.png" for view in VIEWS),
    LABELMAP,
    OUTLINES,
    RESULT,
)
SIGMA_ARRAY = "StandardDeviation_mm"
AUTO = "auto"
# Less of a bone than this between the views is not worth a file, mL.
LEAST_ML = 0.5
# From here on a bone's outlines do not lie where the X-rays show them, mm.
FAR_MM = 1.5


@dataclass(frozen=True)
class KneeRequest:
    """What to reconstruct; the fields are the arguments of `bonerecon reconstruct-knee`.

    Attributes:
        ap, lateral: X-ray files.
        ap_geometry, lateral_geometry: their geometry files, both in one frame.
        side: "left", "right" or "auto".
        patient_axes: for geometries in the frame of a calibration object: which of its axes point to the patient's
            right, front and head, for instance "-y,x,z".
        landmarks: (view of `VIEWS`, name of `landmarks.LANDMARKS`, column, row), in both X-rays, or none.
        relation, bone: how the X-rays' values depend on the beam, and whether bone is bright or dark, as
            `radiographs.read_radiograph` takes them; None: as the files say.
    """

    ap: str
    ap_geometry: str
    lateral: str
    lateral_geometry: str
    side: str = AUTO
    patient_axes: str | None = None
    landmarks: tuple[tuple[str, str, float, float], ...] = ()
    relation: str | None = None
    bone: str | None = None


def reconstruct_knee(request, folder, report=lambda stage, fraction: None):
    """Reconstruct the knee of two X-ray files and write its files into an empty folder.

    Args:
        request: `KneeRequest`.
        folder: where, in the frame of the geometries, go: of each bone <bone>.ply and <bone>.vtp (LPS mm, the latter
            with each vertex' standard deviation), cut off where an X-ray ends; bones.nii.gz, a labelmap with 1 femur,
            2 tibia, 3 fibula, 4 patella; ap-outlines.png and lateral-outlines.png; outlines.json, the outlines'
            pixel positions (column, row); result.json.
        report: called with (stage, fraction done).

    Returns:
        The contents of result.json.

    Raises:
        InputError: a file cannot be read, the views cannot be used or do not show a knee.
    """
    began = time.perf_counter()
    radiographs = [read_radiograph(path, request.relation, request.bone) for path in (request.ap, request.lateral)]
    geometries = [read_geometry(path) for path in (request.ap_geometry, request.lateral_geometry)]
    for radiograph, geometry in zip(radiographs, geometries, strict=True):
        check_image(radiograph, geometry)
    turn = _patient_from_world(geometries, request.patient_axes)
    patient = [replace(geometry.moved(turn), anatomical=True) for geometry in geometries]
    check_views(*patient)
    side = _side(request.side, radiographs)
    landmarks = [Landmark(VIEWS.index(view), name, (column, row)) for view, name, column, row in request.landmarks]
    report("reading the X-rays", 1.0)
    images, seen = [one.line_integrals for one in radiographs], [one.seen for one in radiographs]
    knee = reconstruct(images, seen, patient, side, landmarks, report)
    report("writing", 0.0)
    whole = {bone: transformed(surface, np.linalg.inv(turn)) for bone, surface in knee.surfaces.items()}
    cut = {bone: cut_to_views(surface, geometries) for bone, surface in whole.items()}
    bones, warnings = {}, _cautions(geometries, side, knee)
    for bone in BONES:
        if volume_mm3(cut[bone]) < 1000 * LEAST_ML:
            warnings.append(f"The {bone} lies outside the field that both X-rays show: it is left out.")
            continue
        bones[bone] = _figures(bone, knee, in_both(whole[bone].vertices, geometries)) | {
            "label": BONES.index(bone) + 1,
            "volume_ml": round(volume_mm3(cut[bone]) / 1000, 2),
        }
        warnings += _bone_cautions(bone, bones[bone])
        deviation = knee.deviation_mm[bone][cKDTree(whole[bone].vertices).query(cut[bone].vertices)[1]]
        write_surface(folder / f"{bone}.ply", cut[bone])
        write_surface(folder / f"{bone}.vtp", cut[bone], {SIGMA_ARRAY: deviation})
    write_volume(folder / LABELMAP, labelmap([cut[bone] for bone in BONES]))
    report("writing", 0.5)
    lines = {}
    for view, radiograph, geometry in zip(VIEWS, radiographs, geometries, strict=True):
        shown = {bone: whole[bone] for bone in bones}
        write_picture(folder / f"{view}-outlines.png", picture(radiograph, geometry, shown))
        lines[view] = {
            bone: [np.round(line, 1).tolist() for line in outline(surface, geometry)] for bone, surface in shown.items()
        }
    (folder / OUTLINES).write_text(json.dumps(lines), encoding="utf-8")
    result = {
        "version": VERSION,
        "not_for_clinical_use": True,
        "predicted": "every surface is predicted from two projections",
        "method": METHOD,
        "model": MODEL,
        "inputs": asdict(request),
        "side": knee.side,
        "frame": "RAS of the patient" if geometries[0].anatomical else "of the calibration, as the geometries have it",
        "units": "mm",
        "xray_steps": dict(zip(VIEWS, ([*one.steps] for one in radiographs), strict=True)),
        "angle_between_views_deg": round(angle_between(*geometries), 1),
        "correlation": round(knee.correlation, 3),
        "bones": bones,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - began, 2),
    }
    (folder / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def _patient_from_world(geometries, axes):
    """(4, 4) rotation from the geometries' frame to the patient's RAS."""
    turn = np.eye(4)
    if geometries[0].anatomical:
        if axes is not None:
            raise InputError("The geometry is in the patient's frame already: leave the patient's axes out.")
        return turn
    if axes is None:
        raise InputError(
            "The geometry is in the frame of a calibration object: give --patient-axes, which of its axes point to the "
            "patient's right, front and head, for instance --patient-axes=-y,x,z."
        )
    rows = {sign + name: value * np.eye(3)[k] for k, name in enumerate("xyz") for sign, value in _SIGNS.items()}
    words = axes.replace(" ", "").lower().split(",")
    if len(words) == 3 and all(word in rows for word in words):
        turn[:3, :3] = [rows[word] for word in words]
    if len(words) != 3 or not np.isclose(np.linalg.det(turn), 1) or not all(word in rows for word in words):
        raise InputError(
            f"The patient's axes {axes} are not three axes at right angles, right-handed: give those to the right, to "
            "the front and to the head, for instance -y,x,z."
        )
    return turn


_SIGNS = {"": 1.0, "+": 1.0, "-": -1.0}


def _side(asked, radiographs):
    """The side that was asked for or that both X-rays' tags state; None: to be found."""
    stated = {radiograph.side for radiograph in radiographs if radiograph.side}
    if len(stated) > 1:
        raise InputError("One X-ray is tagged as of a left knee and the other as of a right one: give two of one knee.")
    if asked == AUTO:
        return stated.pop() if stated else None
    if stated and asked not in stated:
        raise InputError(f"The X-rays are tagged as of a {stated.pop()} knee, not a {asked} one: check the side.")
    return asked


def _figures(bone, knee, inside):
    """What result.json says of a bone's fit."""
    deviation = knee.deviation_mm[bone][inside]
    return {
        "residual_mm": dict(zip(VIEWS, (_rounded(one.rms_mm) for one in knee.residuals[bone]), strict=True)),
        "outline_shown": dict(zip(VIEWS, (round(one.shown, 2) for one in knee.residuals[bone]), strict=True)),
        "deviation_mm": _rounded(float(np.sqrt(np.mean(deviation**2)))) if len(deviation) else None,
        "end_in_both_views": round(knee.seen[bone], 2),
    }


def _cautions(geometries, side, knee):
    """Sentences about the X-rays as a whole."""
    sentences = sorted({calibration_note(geometry) for geometry in geometries} - {""})
    if side is None:
        sentences.append(f"The side was not given; the X-rays agree better with a {knee.side} knee: check it.")
    return sentences


def _bone_cautions(bone, figures):
    sentences = []
    if figures["end_in_both_views"] < 1:
        share = 100 * figures["end_in_both_views"]
        sentences.append(f"Both X-rays show {share:.0f} % of the {bone}'s end at the knee: the rest is guessed.")
    far = {view: value for view, value in figures["residual_mm"].items() if value is None or value > FAR_MM}
    for view, value in far.items():
        if value is None:
            sentences.append(f"The {view.upper() if view == 'ap' else view} X-ray does not show the {bone}'s outline.")
        else:
            sentences.append(f"The {bone}'s outline is off by {value:.1f} mm in the {view} X-ray: check it by eye.")
    return sentences


def _rounded(value):
    """Two decimals, None where there is no value, as JSON has no NaN."""
    return round(value, 2) if np.isfinite(value) else None


def add_arguments(parser):
    """Declare the arguments of `bonerecon reconstruct-knee`."""
    add_xray_arguments(parser)
    parser.add_argument(
        "--side", choices=(*SIDES, AUTO), default=AUTO, help="of the knee (default: as tagged, else what fits better)"
    )
    parser.add_argument(
        "--patient-axes",
        metavar="R,A,S",
        help="axes of a calibration's frame that point to the patient's right, front and head, for instance -y,x,z",
    )
    parser.add_argument(
        "--landmark",
        nargs=4,
        action="append",
        default=[],
        metavar=("VIEW", "NAME", "COLUMN", "ROW"),
        help=f"where a landmark is seen ({' or '.join(VIEWS)}; {', '.join(LANDMARKS)}), one or more in each X-ray, to "
        "start from where the search without them fails",
    )


def _landmark(view, name, column, row):
    """A landmark's words on the command line as a request has them."""
    try:
        pixel = float(column), float(row)
    except ValueError:
        pixel = ()
    if view not in VIEWS or not np.isfinite(pixel).all() or not pixel:
        raise InputError(
            f"--landmark {view} {name} {column} {row} is not understood: give {' or '.join(VIEWS)}, the landmark's name, "
            "its column and its row."
        )
    return view, name, *pixel


def run(arguments):
    """Run `bonerecon reconstruct-knee`."""
    given = {one.name: getattr(arguments, one.name) for one in fields(KneeRequest) if one.name != "landmarks"}
    request = KneeRequest(**given, landmarks=tuple(_landmark(*words) for words in arguments.landmark))
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = reconstruct_knee(request, folder, progress.report)
    for warning in result["warnings"]:
        print(f"Warning: {warning}")
