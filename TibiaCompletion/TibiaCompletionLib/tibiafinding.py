"""`bonerecon find-tibia`: the tibiae in a CT, found and segmented where no segment is given.

The leg prior, tibia with fibula, of either side is laid along every long bone of the scan; the best fits say where
tibiae are and of which side. The segment is made of the CT's voxels and is a proposal: to be looked at and corrected
before it is used.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, side_to_right, transform_points
from BoneReconstructionLib.jobs import OutputFolder, Progress
from BoneReconstructionLib.shapefitting import ShapeFit, spread_over
from BoneReconstructionLib.shapeprior import load_leg_prior
from BoneReconstructionLib.surfaces import transformed, vertex_normals
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import Volume, check_memory, read_geometry, read_volume, write_volume
from TibiaCompletionLib.tibiafit import fit_coarsely, fit_finely, surroundings
from TibiaCompletionLib.tibiasearch import (
    BONE_HU,
    EdgeField,
    MeanLeg,
    best_poses,
    bone_edges,
    coarse_copy,
    edge_tree,
    evidence,
    shafts,
)
from TibiaCompletionLib.tibiasegment import segment

LABELS = {"right": 1, "left": 2}
STAGES = {"reading": 3, "searching": 4, "fitting": 6, "segmenting": 6, "writing": 2}
FILES = ("tibiae.nii.gz", "result.json")
# Legs closer than that are one.
ONE_PLACE_MM = 60.0
# A place is fitted when its best pose reaches this score, absolute and of the best of all; from so many poses.
LEAST_SCORE, LEAST_OF_BEST, POSES_PER_SIDE, SAME_POSE_MM = 0.06, 0.3, 2, 3.0
EVIDENCE_POINTS = 2000
# A tibia is there from this evidence on, see `tibiasearch.evidence`, and this much of its length in the scan.
LEAST_EVIDENCE, LEAST_LENGTH_MM = 0.5, 80.0
# No further pose is tried after one that fits so well.
GOOD_EVIDENCE = 0.64
# What legs of the wrong side or in a wrong place reach.
CHANCE = 0.4
# How much the other side's evidence must be behind for the side to be sure.
CLEAR_LEAD = 0.06
BYTES_PER_VOXEL = 25
ADVICE = "The segment is a proposal: look at it and correct it before it is used."


@dataclass(frozen=True, eq=False)
class FoundTibia:
    """A tibia in a CT.

    Attributes:
        side: "left" or "right".
        mask: bool volume on the CT's grid, the solid bone without a fracture's gaps.
        seen_share: share of the bone's surface that the CT shows.
        rms_mm: robust root mean square distance of the prior's shape from the CT's edges.
        matrix: (4, 4) similarity from the standard frame to RAS turned to the right side (see `frames`).
    """

    side: str
    mask: Volume
    seen_share: float
    rms_mm: float
    matrix: np.ndarray


@dataclass(frozen=True, eq=False)
class _Hypothesis:
    """A leg of one side fitted at one place.

    Attributes:
        side: "left" or "right".
        fitted: `ShapeFit` of tibia and fibula.
        evidence: mean of `tibiasearch.evidence` over what lies in the scan.
        score: the same above `CHANCE`, what lies outside the scan counting as 0.
        centre: (3,) RAS, middle of the tibia in the scan.
        length_mm: how much of the tibia lies in the scan.
    """

    side: str
    fitted: ShapeFit
    evidence: float
    score: float
    centre: np.ndarray
    length_mm: float


def find_tibiae(ct, side="auto", report=lambda stage, fraction: None):
    """Find the tibiae in a CT and segment them.

    Args:
        ct: `Volume`, HU, RAS; any grid.
        side: "left", "right" or "auto" for every one that is there.
        report: called with (stage, fraction).

    Returns:
        list of FoundTibia, the right one first.

    Raises:
        InputError: there is no tibia, none of the side asked for, its side cannot be told, or the values are not HU.
    """
    report("searching", 0.0)
    _check_hounsfield(ct.array)
    prior = _leg_prior()
    coarse = coarse_copy(ct)
    edges = bone_edges(coarse)
    if len(edges.points) == 0:
        raise InputError("The CT shows no bone: choose a scan of the lower leg in Hounsfield units.")
    tree = edge_tree(edges)
    places = _places(prior, coarse, edges, tree, lambda fraction: report("searching", fraction))
    # The people's modes alone tell sides and places apart, in a fraction of the time.
    modes_only, hypotheses = replace(prior, kernels=()), []
    for number, place in enumerate(places):
        report("fitting", number / len(places))
        hypotheses.append(_fits(modes_only, place, edges, tree))
    chosen = _of_side(_told_apart(hypotheses), side)
    found = []
    for number, hypothesis in enumerate(chosen):
        report("segmenting", number / len(chosen))
        found.append(_segmented(prior, hypothesis, ct, edges, tree))
    report("segmenting", 1.0)
    return sorted(found, key=lambda tibia: LABELS[tibia.side])


@lru_cache(maxsize=1)
def _leg_prior():
    return load_leg_prior()  # its kernels' basis takes a second


def _check_hounsfield(array):
    """Refuse values that cannot be HU: nothing as dense as bone, or nothing as light as soft tissue."""
    sample = array[:: max(1, array.shape[0] // 64), ::4, ::4]
    lowest, highest = np.percentile(sample, (10, 99.9))
    if not np.isfinite(lowest + highest):
        raise InputError("The CT holds values that are not numbers: export it again.")
    if highest < BONE_HU or lowest > BONE_HU:
        raise InputError(
            f"The CT's values, {lowest:.0f} to {highest:.0f}, are not Hounsfield units of a leg: convert them, or "
            "choose a CT of the lower leg."
        )


def _places(prior, coarse, edges, tree, report):
    """Poses worth fitting, those of one place together: list of lists of `Candidate`."""
    leg, field = MeanLeg(prior), EdgeField(edges)
    candidates = []
    lines = shafts(coarse)
    for number, shaft in enumerate(lines):
        candidates += best_poses(shaft, leg, field, edges, tree)
        report((number + 1) / len(lines))
    candidates.sort(key=lambda candidate: -candidate.score)
    places = []
    for candidate in candidates:
        if candidate.score < max(LEAST_SCORE, LEAST_OF_BEST * candidates[0].score):
            break
        for place in places:
            if np.linalg.norm(place[0].centre - candidate.centre) < ONE_PLACE_MM:
                place.append(candidate)
                break
        else:
            places.append([candidate])
    return places


def _fits(prior, place, edges, tree):
    """{side: best `_Hypothesis`} of the poses of one place."""
    chosen = spread_over(len(prior.mean), EVIDENCE_POINTS)
    best = {}
    for side in SIDES:
        tried = []
        for candidate in place:
            points = transform_points(candidate.matrix, prior.mean[chosen[::20]])
            known = any(np.linalg.norm(points - other, axis=1).mean() < SAME_POSE_MM for other in tried)
            done = len(tried) == POSES_PER_SIDE or (side in best and best[side].evidence > GOOD_EVIDENCE)
            if candidate.side != side or known or done:
                continue
            tried.append(points)
            fitted = fit_coarsely(prior, candidate, edges)
            if fitted is None:
                continue
            surface = transformed(fitted.surface, side_to_right(side))
            found, scanned = evidence(surface.vertices[chosen], vertex_normals(surface)[chosen], edges, tree)
            score = float(((found - CHANCE) * scanned).mean())
            if side not in best or score > best[side].score:
                own = surface.vertices[chosen][scanned & (prior.part[chosen] == 0)]
                if len(own):
                    axis = fitted.matrix[:3, 2] / np.linalg.norm(fitted.matrix[:3, 2])
                    length = float(np.ptp(own @ side_to_right(side)[:3, :3] @ axis))
                    mean = float(found[scanned].mean())
                    best[side] = _Hypothesis(side, fitted, mean, score, own.mean(0), length)
    return best


def _told_apart(places):
    """Which legs are there: [{side: `_Hypothesis`}] of at most two places, the more certain first."""
    best = [(max(place.values(), key=lambda hypothesis: hypothesis.score), place) for place in places if place]
    best.sort(key=lambda pair: -pair[0].score)
    legs = []
    for hypothesis, place in best:
        enough = hypothesis.evidence > LEAST_EVIDENCE and hypothesis.length_mm > LEAST_LENGTH_MM
        apart = all(np.linalg.norm(hypothesis.centre - other.centre) > ONE_PLACE_MM for other, _ in legs)
        if enough and apart:
            legs.append((hypothesis, place))
    return [place for _, place in legs[:2]]


def _of_side(places, side):
    """The `_Hypothesis` of each leg, each of its side, that was asked for.

    Raises:
        InputError: no leg, none of that side, or a single one whose side cannot be told.
    """
    if not places:
        raise InputError(
            "No tibia was found in the CT: choose a scan in Hounsfield units that shows at least "
            f"{LEAST_LENGTH_MM:.0f} mm of one, or segment it by hand."
        )
    if len(places) == 2:
        chosen = _pair(*places)
    else:
        (place,) = places
        better = max(place.values(), key=lambda hypothesis: hypothesis.score)
        other = place.get("left" if better.side == "right" else "right")
        if other is not None and other.evidence > better.evidence - CLEAR_LEAD:
            if side == "auto":
                raise InputError("The side of the tibia cannot be told from the CT: choose left or right.")
            better = place[side]
        chosen = [better]
    found = [hypothesis for hypothesis in chosen if side in ("auto", hypothesis.side)]
    if not found:
        raise InputError(f"The CT shows no {side} tibia but a {chosen[0].side} one: choose the other side or scan.")
    return found


def _pair(first, second):
    """Two legs are a right and a left one; where their shapes leave it open, the right one lies at the right."""
    choices = []
    for one, other in (("right", "left"), ("left", "right")):
        if one in first and other in second:
            ordered = (first[one].centre[0] > second[other].centre[0]) == (one == "right")
            evidence_of_both = first[one].evidence + second[other].evidence
            choices.append((evidence_of_both + CLEAR_LEAD * ordered, [first[one], second[other]]))
    if not choices:
        # Shape says the same side twice beyond doubt; the weaker is something else.
        return [max(first.values(), key=lambda hypothesis: hypothesis.score)]
    return max(choices, key=lambda choice: choice[0])[1]


def _segmented(prior, hypothesis, ct, edges, tree):
    """`FoundTibia` of a hypothesis."""
    surface = transformed(hypothesis.fitted.surface, side_to_right(hypothesis.side))
    box = surroundings(ct, surface.vertices)
    leg = fit_finely(prior, hypothesis.side, hypothesis.fitted, box)
    mask = np.zeros(ct.shape, dtype=bool)
    lower = np.rint(transform_points(ct.ras_to_ijk, box.ijk_to_ras[None, :3, 3]))[0, ::-1].astype(int)
    mask[tuple(slice(a, a + n) for a, n in zip(lower, box.shape, strict=True))] = segment(prior, leg, box, edges, tree)
    seen = leg.seen[prior.part == 0].mean()
    return FoundTibia(hypothesis.side, Volume(mask, ct.ijk_to_ras), float(seen), leg.rms_mm, leg.matrix)


def write_found(ct_file, side, folder, report):
    """Find the tibiae in a CT file and write tibiae.nii.gz and result.json into an empty folder.

    Args:
        ct_file: volume file, HU.
        side: "left", "right" or "auto".
        folder: where the files go.
        report: called with (stage, fraction).

    Returns:
        The contents of result.json.

    Raises:
        InputError: as `find_tibiae`, or the file cannot be read.
    """
    began = time.perf_counter()
    report("reading", 0.0)
    shape, _ = read_geometry(ct_file)
    check_memory(BYTES_PER_VOXEL * math.prod(shape), Path(ct_file).name)
    ct = read_volume(ct_file)
    found = find_tibiae(ct, side, report)
    report("writing", 0.0)
    labels = np.zeros(ct.shape, dtype=np.uint8)
    for tibia in found:
        labels[tibia.mask.array] = LABELS[tibia.side]
    write_volume(Path(folder) / "tibiae.nii.gz", Volume(labels, ct.ijk_to_ras))
    result = {
        "version": VERSION,
        "inputs": {"ct": ct_file},
        "settings": {"side": side},
        "found": [
            {
                "side": tibia.side,
                "label": LABELS[tibia.side],
                "seen_share": round(tibia.seen_share, 3),
                "rms_mm": round(tibia.rms_mm, 3),
                "ras_to_standard": (np.linalg.inv(tibia.matrix) @ side_to_right(tibia.side)).tolist(),
            }
            for tibia in found
        ],
        "warnings": [ADVICE],
        "seconds": round(time.perf_counter() - began, 2),
    }
    (Path(folder) / "result.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def add_arguments(parser):
    """Declare the arguments of `bonerecon find-tibia`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT volume (.nrrd, .nii, .nii.gz, .mha)")
    parser.add_argument(
        "--side", choices=(*SIDES, "auto"), default="auto", help="which tibia (default: every one that is there)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for tibiae.nii.gz and result.json")


def run(arguments):
    """Run `bonerecon find-tibia`."""
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = write_found(arguments.ct, arguments.side, folder, progress.report)
    for tibia in result["found"]:
        print(f"Found the {tibia['side']} tibia: label {tibia['label']}.")
    for warning in result["warnings"]:
        print(f"Warning: {warning}")
