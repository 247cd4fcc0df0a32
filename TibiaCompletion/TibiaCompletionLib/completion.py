"""`bonerecon complete-tibia`: from the CT of a fractured tibia to the predicted healthy bone in its coordinates.

The CT itself is read only by methods that look at its intensities; its geometry is that of every output. What a
method does is one function: it is given a `TibiaCase`, the side and a starting pose, and returns a `Completion`.
"""

import csv
import importlib
import json
import math
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from BoneReconstructionLib.comparison import read_bone
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, side_to_right
from BoneReconstructionLib.jobs import OutputFolder, Progress
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_areas, volume_mm3
from BoneReconstructionLib.tibiameasurements import DEFINITIONS, TibiaLandmarks
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import (
    check_memory,
    crop,
    read_geometry,
    read_mask,
    read_volume,
    resample,
    write_volume,
)
from TibiaCompletionLib.case import NEIGHBOURS, beyond_cuts, check_visible_length, make_case
from TibiaCompletionLib.confidence import joint_warnings
from TibiaCompletionLib.measuring import GEOMETRY, MARKUPS, TABLE, write_measurements
from TibiaCompletionLib.plausibility import (
    check_other_tibia,
    leak_warnings,
    leaks,
    metal_warnings,
    unusual_warnings,
)
from TibiaCompletionLib.scanend import beyond_scan_mm, cut_at_scan_end
from TibiaCompletionLib.sidedness import detect_side, named_side


@dataclass(frozen=True)
class Method:
    """A way to complete a tibia.

    Attributes:
        title: its name in the panel.
        description: one sentence, the panel's tooltip.
        function: "module:function" with the signature (case, side, matrix, report) -> Completion.
    """

    title: str
    description: str
    function: str


METHODS = {
    "shape-prior": Method(
        "Shape prior",
        "Fits the learned shape prior to the visible bone and continues its cross-sections across the gap.",
        "TibiaCompletionLib.shapecompletion:complete_by_prior",
    ),
    "prototype": Method(
        "Prototype",
        "Registers the mean tibia to the visible bone by rotation, translation and size alone: the paper's baseline.",
        "TibiaCompletionLib.shapecompletion:complete_by_prototype",
    ),
    "stn-masked": Method(
        "Mask-robust STN",
        "Lays the mean tibia on the visible bone by the paper's mask-robust spatial transformer, refined on its voxels.",
        "TibiaCompletionLib.registration.inference:complete_by_refined_stn",
    ),
}
DEFAULT_METHOD = "shape-prior"
STAGES = {"reading": 4, "finding the pose": 2, "completing": 8, "writing": 3}
DISTANCE_ARRAY = "DistanceToVisibleBone_mm"
SIGMA_ARRAY = "StandardDeviation_mm"
SIGN = "positive: the predicted bone lies outside the visible bone"
UNCERTAIN = {"length": 5.0, "torsion": 8.0}  # half widths of a 95 % interval, mm and degrees, from which on to warn
BEYOND_SCAN_MM = 1.0  # a bone that reaches less beyond the scan is not worth a word
WORKING_BYTES_PER_VOXEL = 10  # masks on the CT's grid, their copies and the labelmap that is written
SETTINGS = ("side", "method", "fixed_piece", "beyond_scan", "accept_side")
FILES = ("tibia.nii.gz", "tibia.ply", "tibia.vtp", "distances.csv", TABLE, GEOMETRY, MARKUPS, "result.json")


@dataclass(frozen=True)
class CompletionRequest:
    """What to complete and how; written into result.json so that a run can be repeated.

    Attributes:
        ct: volume file.
        tibia: FILE[:LABEL|SEGMENT] of the segmented tibia.
        fracture: FILE[:LABEL|SEGMENT] of the coarse fracture mask.
        side: "left", "right" or "auto".
        method: a key of `METHODS`.
        fixed_piece: number of the visible piece that fixes the pose, counted from the largest, 1.
        fibula, femur, talus: FILE[:LABEL|SEGMENT] of neighbouring bones, which say where the joints are; optional.
        other_tibia: surface file or FILE[:LABEL|SEGMENT] of the other leg's healthy tibia, as it lies; optional.
        beyond_scan: whether the mesh goes on where the scan ends.
        accept_side: the user has confirmed a given side that the shape contradicts.
    """

    ct: str
    tibia: str
    fracture: str
    side: str = "auto"
    method: str = DEFAULT_METHOD
    fixed_piece: int = 1
    fibula: str | None = None
    femur: str | None = None
    talus: str | None = None
    other_tibia: str | None = None
    beyond_scan: bool = False
    accept_side: bool = False


def predict(case, side="auto", method=DEFAULT_METHOD, report=lambda stage, fraction: None, accept_side=False):
    """Check the bone, find the side and run a method, without files.

    Args:
        case: a `TibiaCase`.
        side: "left", "right" or "auto".
        method: a key of `METHODS`.
        report: called with (stage, fraction).
        accept_side: keep a given side that the shape contradicts.

    Returns:
        (side, Completion, warnings). The completion is of the whole bone, whatever the scan shows.

    Raises:
        InputError: the bone is no adult tibia or not alone in its segment; the side cannot be told or contradicts the
            shape; too little bone is visible; weights missing or altered.
    """
    report("finding the pose", 0.0)
    side, found, warnings = detect_side(case, side, accept_side)
    # Of a short piece the longest extent may be its width; the pose tells which way the bone runs.
    axis = found.start[:3, 2] / np.linalg.norm(found.start[:3, 2])
    check_visible_length(case.visible(side).surface.vertices[case.trusted], axis)
    if case.other_tibia is not None:
        check_other_tibia(case.other_tibia, side)
    if not warnings:  # a bone of the other side is unlike, and beside it every ridge would be a leak
        warnings += unusual_warnings(found)
        leaked = leaks(case, side, found.surface, found.motions)
        warnings += leak_warnings(leaked)
        if leaked.vertices.any():
            case = replace(case, trusted=case.trusted & ~leaked.vertices)
    module, function = METHODS[method].function.split(":")
    completion = getattr(importlib.import_module(module), function)(
        case, side, found.start, lambda fraction: report("completing", fraction)
    )
    return side, replace(completion, trusted=case.trusted), [*warnings, *completion.warnings]


def complete_tibia(request, folder, report):
    """Complete a tibia and write its files into an empty folder.

    Args:
        request: a `CompletionRequest`.
        folder: where tibia.nii.gz (labelmap, the CT's geometry), tibia.ply (LPS mm), tibia.vtp (with the distance to
            the visible bone, NaN where it is masked or cut, and the standard deviation of the prediction), distances.csv,
            the files of `measuring.write_measurements` and result.json go.
        report: called with (stage, fraction).

    Returns:
        The contents of result.json.

    Raises:
        InputError: anything that is wrong with the input, before any work.
    """
    began = time.perf_counter()
    report("reading", 0.0)
    shape, ijk_to_ras = read_geometry(request.ct)
    check_memory(WORKING_BYTES_PER_VOXEL * math.prod(shape), Path(request.ct).name)
    if request.other_tibia and request.method != DEFAULT_METHOD:
        raise InputError(f"Only the method {DEFAULT_METHOD} takes the other leg: choose it, or leave the other leg out.")
    other_tibia = read_bone(request.other_tibia) if request.other_tibia else None
    segmented = read_mask(request.tibia)
    tibia = _in_ct(segmented, "tibia", shape, ijk_to_ras)
    unsegmented = beyond_cuts(segmented, shape, ijk_to_ras)
    del segmented
    report("reading", 0.4)
    fracture = _in_ct(read_mask(request.fracture), "fracture mask", shape, ijk_to_ras)
    if fracture.array.any():
        fracture = replace(fracture, array=fracture.array | unsegmented)
    report("reading", 0.8)
    given = {bone: getattr(request, bone) for bone in NEIGHBOURS if getattr(request, bone)}
    neighbours = {bone: _in_ct(read_mask(name), bone, shape, ijk_to_ras) for bone, name in given.items()}
    case = make_case(
        tibia,
        fracture,
        lambda lower, upper: crop(read_volume(request.ct), lower, upper),
        request.fixed_piece,
        neighbours,
    )
    if other_tibia is not None:
        case = replace(case, other_tibia=other_tibia)
        given["other_tibia"] = request.other_tibia
    hidden = fracture.array
    warnings = metal_warnings(case)
    given_side = named_side(request.tibia) or "auto" if request.side == "auto" else request.side
    side, completion, notes = predict(case, given_side, request.method, report, request.accept_side)
    warnings += notes
    predicted = whole = transformed(completion.surface, side_to_right(side))
    beyond = beyond_scan_mm(predicted.vertices, shape, ijk_to_ras)
    capped = np.zeros(len(beyond), dtype=bool)
    ends_at_scan = bool(beyond.max() > 0 and not request.beyond_scan)
    if beyond.max() > BEYOND_SCAN_MM:
        warnings.append(scan_end_warning(beyond.max(), request.beyond_scan))
    sigma = completion.sigma_mm
    if ends_at_scan:
        completion = without_unseen_ends(completion, beyond > 0)
        predicted, capped = cut_at_scan_end(whole, shape, ijk_to_ras)
        if sigma is not None:
            sigma = sigma[cKDTree(whole.vertices).query(predicted.vertices)[1]]
    warnings += cautions(case, completion, ends_at_scan & (beyond > 0))
    report("writing", 0.0)
    labelmap = voxelize(predicted, shape, ijk_to_ras)
    write_volume(folder / "tibia.nii.gz", labelmap)
    report("writing", 0.6)
    visible = visible_in_place(case, completion, side)
    distance = distance_to_visible(transformed(predicted, side_to_right(side)), visible, completion.trusted)
    distance[capped] = np.nan
    write_surface(folder / "tibia.ply", predicted)
    arrays = {DISTANCE_ARRAY: distance} | ({} if sigma is None else {SIGMA_ARRAY: sigma})
    write_surface(folder / "tibia.vtp", predicted, arrays)
    if completion.measured:
        prior = load_prior(TIBIA_PRIOR, "tibia")
        landmarks = TibiaLandmarks(prior.mean, prior.faces)
        write_measurements(folder, side, landmarks.measurements(whole.vertices, side, completion.intervals))
    metrics = measure(predicted, distance, capped, sigma)
    if completion.motions is None:
        overlap = dice(labelmap.array & ~hidden, tibia.array & ~hidden)
        metrics["dice_visible"] = (overlap, "1", "Dice of predicted and segmented tibia outside the fracture mask")
    for name, (value, width) in completion.measured.items():
        unit = DEFINITIONS[name].unit
        metrics[name] = (value, unit, f"of the predicted tibia; 95 % interval +/- {width:.2g} {unit}")
    with open(folder / "distances.csv", "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("metric", "value", "unit", "definition"))
        rows.writerows(
            (name.replace("_", " "), f"{value:.4g}", unit, text) for name, (value, unit, text) in metrics.items()
        )
    result = {
        "version": VERSION,
        "inputs": {"ct": request.ct, "tibia": request.tibia, "fracture": request.fracture} | given,
        "settings": {key: value for key, value in asdict(request).items() if key in SETTINGS},
        "side": side,
        "method": request.method,
        "model": completion.model,
        "ras_to_standard": (np.linalg.inv(completion.matrix) @ side_to_right(side)).tolist(),
        "metrics": {name: {"value": value, "unit": unit} for name, (value, unit, _) in metrics.items()},
        "distance_sign": SIGN,
        "ends_at_scan": ends_at_scan,
        "displaced": completion.motions is not None,
        "pieces": piece_records(case, completion, side),
        "intervals_95": completion.intervals,
        "warnings": warnings,
        "seconds": round(time.perf_counter() - began, 2),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def _in_ct(mask, what, shape_kji, ijk_to_ras):
    """A mask on the CT's grid; refused where it lies beside it, since it then is of another scan."""
    placed = resample(mask, shape_kji, ijk_to_ras, "antialiased")
    if mask.array.any() and not placed.array.any():
        raise InputError(f"The {what} lies outside the CT: name the CT that it was segmented in.")
    return placed


def scan_end_warning(beyond_mm, beyond_scan):
    """Sentence about a predicted bone that reaches `beyond_mm` past the scan's end."""
    if beyond_scan:
        return (
            f"The mesh goes on up to {beyond_mm:.0f} mm beyond the scan, where nothing was seen of the bone; the "
            "labelmap ends where the scan ends."
        )
    return (
        f"The predicted bone reaches up to {beyond_mm:.0f} mm beyond the scan: mesh and labelmap end where the scan "
        "ends, and --beyond-scan keeps the mesh whole."
    )


def without_unseen_ends(completion, beyond):
    """The completion without measurements of a joint end that lies beyond the scan.

    Args:
        completion: `Completion`.
        beyond: (n,) bool, its vertices that lie beyond the scan.
    """
    if not completion.measured:
        return completion
    tibia = load_prior(TIBIA_PRIOR, "tibia")
    landmarks = TibiaLandmarks(tibia.mean, tibia.faces)
    seen = all(np.mean(beyond[vertices]) < 0.5 for vertices in vars(landmarks).values())
    return completion if seen else replace(completion, measured={})


def cautions(case, completion, left_out):
    """Sentences about what the visible bone leaves open.

    Args:
        case: a `TibiaCase`.
        completion: its `Completion`.
        left_out: (n,) bool, vertices of the whole bone that are not part of the result.
    """
    sentences = []
    if completion.motions is not None:
        sentences.append(
            f"The {len(case.piece_volumes_ml)} visible pieces are displaced against each other; the first was taken "
            "to lie where it belongs and the others were moved to their places."
        )
    for name, width in completion.intervals.items():
        if width > UNCERTAIN.get(name, np.inf):
            unit = DEFINITIONS[name].unit
            sentences.append(f"The {name} of the bone is not shown by what is visible: +/- {width:.0f} {unit} (95 %).")
    if completion.sigma_mm is not None:
        tibia = load_prior(TIBIA_PRIOR, "tibia")
        sigma = np.where(left_out, 0.0, completion.sigma_mm)
        sentences += joint_warnings(sigma, TibiaLandmarks(tibia.mean, tibia.faces))
    return sentences


def visible_in_place(case, completion, side):
    """The visible bone, a `VisibleSurface` as of a right leg, with its pieces brought to their places."""
    shown = case.visible(side)
    return shown if completion.motions is None else shown.reduced(completion.motions)


def piece_records(case, completion, side):
    """For result.json: volume of each visible piece and the rigid motion, RAS mm, that brings it to its place."""
    mirror = side_to_right(side)
    motions = (
        np.tile(np.eye(4), (len(case.piece_volumes_ml), 1, 1)) if completion.motions is None else completion.motions
    )
    return [
        {"volume_ml": round(volume, 2), "motion_ras": (mirror @ motion @ mirror).tolist()}
        for volume, motion in zip(case.piece_volumes_ml, motions)
    ]


def distance_to_visible(predicted, visible, trusted):
    """Signed distance of each predicted vertex to the visible bone, mm, positive outside it; NaN where it is masked.

    Args:
        predicted: the predicted bone as of a right leg, mm.
        visible: `VisibleSurface` of the visible bone, its pieces in their places.
        trusted: (n,) bool, its vertices that are neither masked nor cut.
    """
    _, distance, face = visible.locator.closest_signed(predicted.vertices)
    return np.where(trusted[visible.surface.faces[face]].all(1), distance, np.nan)


def measure(predicted, distance, capped, sigma=None):
    """Figures of one prediction: {name: (value, unit, definition)}.

    Args:
        predicted: the predicted bone, mm.
        distance: (n,) as by `distance_to_visible`.
        capped: (n,) bool, vertices where the bone was cut off at the scan's end; the caps are no bone's surface.
        sigma: (n,) standard deviation of each vertex, mm; None where the method knows none.
    """
    seen = np.isfinite(distance)
    apart = np.abs(distance[seen])
    weight = vertex_areas(Surface(predicted.vertices, predicted.faces[~capped[predicted.faces].all(1)]))
    shown = weight[seen] / weight[seen].sum()
    unseen = weight * ~seen
    deviation = {}
    if sigma is not None and unseen.any():
        deviation["unseen_deviation"] = (
            float(np.sqrt(unseen @ sigma**2 / unseen.sum())),
            "mm",
            "standard deviation of the predicted surface along its normals where no visible bone supports it, RMS",
        )
    return deviation | {
        "mean_distance": (
            float(shown @ apart),
            "mm",
            "mean distance of the predicted surface to the visible bone, point to triangle, outside the mask",
        ),
        "signed_mean_distance": (float(shown @ distance[seen]), "mm", f"the same with sign; {SIGN}"),
        "p95_distance": (float(np.percentile(apart, 95)), "mm", "95th percentile of the distance"),
        "unseen_share": (
            float(100 * (1 - weight[seen].sum() / weight.sum())),
            "%",
            "share of the predicted surface that no visible bone supports",
        ),
        "volume": (volume_mm3(predicted) / 1000, "mL", "volume of the predicted tibia, as far as the mesh shows it"),
    }


def add_arguments(parser):
    """Declare the arguments of `bonerecon complete-tibia`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT volume (.nrrd, .nii, .nii.gz, .mha)")
    name = "FILE[:LABEL|SEGMENT]"
    parser.add_argument("--tibia", required=True, metavar=name, help="labelmap or segmentation of the tibia")
    parser.add_argument("--fracture", required=True, metavar=name, help="coarse mask over the fracture")
    for bone in NEIGHBOURS:
        parser.add_argument(f"--{bone}", metavar=name, help=f"the {bone} of the same leg, to tell where the joint is")
    parser.add_argument(
        "--other-tibia",
        metavar="FILE[:LABEL|SEGMENT]",
        help="surface, labelmap or segmentation of the other leg's healthy tibia, as it lies, to take after it",
    )
    parser.add_argument("--side", choices=(*SIDES, "auto"), default="auto", help="side of the leg (default: by shape)")
    parser.add_argument(
        "--accept-side", action="store_true", help="keep a given side although the shape is that of the other"
    )
    parser.add_argument("--method", choices=tuple(METHODS), default=DEFAULT_METHOD)
    parser.add_argument(
        "--fixed-piece",
        type=int,
        default=1,
        metavar="N",
        help="the visible piece that lies where it belongs, counted from the largest (default: 1)",
    )
    parser.add_argument(
        "--beyond-scan", action="store_true", help="predict past the scan's end (default: the mesh ends there, too)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")


def run(arguments):
    """Run `bonerecon complete-tibia`."""
    request = CompletionRequest(**{field.name: getattr(arguments, field.name) for field in fields(CompletionRequest)})
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = complete_tibia(request, folder, progress.report)
    for warning in result["warnings"]:
        print(f"Warning: {warning}")
