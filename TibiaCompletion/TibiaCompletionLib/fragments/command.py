"""`bonerecon reduce-fragments`: the fragments of a broken tibia brought to their places on the predicted bone."""

import json
import time
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, transform_points
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import Volume, read_geometry, read_masks, read_volume, resample, write_volume
from TibiaCompletionLib.fragments.amounts import bone_amounts
from TibiaCompletionLib.fragments.assessment import FIGURES
from TibiaCompletionLib.fragments.edges import fragment_edges
from TibiaCompletionLib.fragments.reduction import reduce
from TibiaCompletionLib.fragments.results import SPLIT, TABLE, TARGET, write_reduction
from TibiaCompletionLib.fragments.splitcommand import add_fracture_argument, read_fracture
from TibiaCompletionLib.fragments.splitting import fragment_surface, split
from TibiaCompletionLib.fragments.target import make_target

STAGES = {"reading": 3, "telling the fragments apart": 3, "reducing": 8, "writing": 2}
FILES = (TABLE, TARGET, SPLIT, RESULT)
COMPLETED = "tibia.ply"
MOST_FRAGMENTS = 12
# Deeper overlaps are told.
OVERLAP_MM = 1.0
CHECKED_VOXELS = 1000


def reduce_fragments(ct, fragments, completion, folder, report, fracture=None):
    """Reduce fragments and write their files into an empty folder.

    Args:
        ct: volume file.
        fragments: FILE with a segment or label for each fragment, or FILE[:LABEL|SEGMENT] of the whole broken bone.
        completion: output folder of complete-tibia.
        folder: where the files of `results.write_reduction`, fragments.nii.gz where the bone was split, and
            result.json go.
        report: called with (stage, fraction).
        fracture: FILE[:LABEL|SEGMENT] of the coarse mask of the fracture, by which a whole bone is split, or None.

    Returns:
        The contents of result.json.

    Raises:
        InputError: anything that is wrong with the input, before any work.
    """
    began = time.perf_counter()
    report("reading", 0.0)
    surface, side, ras_to_standard, motions, intervals = read_completion(completion)
    shape, ijk_to_ras = read_geometry(ct)
    masks = read_masks(fragments)
    for name, mask in masks.items():
        _check_in_ct(name, mask, shape, ijk_to_ras)
    crumbs, image = (), read_volume(ct)
    if len(masks) == 1:
        (mask,) = masks.values()
        report("telling the fragments apart", 0.0)
        found = split(resample(mask, shape, ijk_to_ras, "antialiased"), image, read_fracture(fracture, image))
        crumbs, labels = found.crumbs, found.labels
        masks = {f"Fragment {n}": Volume(labels.array == n, ijk_to_ras) for n in range(1, len(found.volumes_ml) + 1)}
        write_volume(folder / SPLIT, labels)
    if len(masks) < 2:
        raise InputError(
            "No fragments can be told apart in this segment: separate them in the Segment Editor, a segment for each, "
            "and name that file."
        )
    if len(masks) > MOST_FRAGMENTS:
        raise InputError(
            f"There are {len(masks)} fragments and at most {MOST_FRAGMENTS} can be reduced: leave out the small ones."
        )
    report("telling the fragments apart", 0.5)
    surfaces = [fragment_surface(mask) for mask in masks.values()]
    report("reducing", 0.0)
    target = make_target(surface, side, ras_to_standard)
    edges = fragment_edges(surfaces, image)
    report("reducing", 0.3)
    amounts = bone_amounts(list(masks.values()), image)
    report("reducing", 0.4)
    reduction = reduce(
        target, surfaces, motions, edges, amounts, intervals, lambda fraction: report("reducing", 0.4 + 0.6 * fraction)
    )
    report("writing", 0.0)
    records = write_reduction(folder, list(masks), reduction)
    result = {
        "version": VERSION,
        "inputs": {"ct": ct, "fragments": fragments, "fracture": fracture, "completion": completion},
        "side": side,
        "axes_from_ras": target.axes_from_ras.tolist(),
        "definitions": {name: f"{figure.text} ({figure.unit})" for name, figure in FIGURES.items()},
        "fragments": records,
        "crumbs": [
            {"volume_ml": round(volume, 3), "centre_ras": np.round(centre, 1).tolist()} for volume, centre in crumbs
        ],
        "warnings": _warnings(records, crumbs),
        "seconds": round(time.perf_counter() - began, 2),
    }
    (folder / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def read_completion(folder):
    """What complete-tibia found.

    Args:
        folder: its output folder.

    Returns:
        (surface in RAS mm, side, (4, 4) ras_to_standard, list of the visible pieces' (4, 4) motions in RAS mm, half
        widths of the measurements' 95 % intervals by name).

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        side, matrix = result["side"], np.array(result["ras_to_standard"], dtype=float).reshape(4, 4)
        motions = [np.array(piece["motion_ras"], dtype=float).reshape(4, 4) for piece in result["pieces"]]
        intervals = {name: float(width) for name, width in result.get("intervals_95", {}).items()}
        if side not in SIDES:
            raise ValueError(side)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no completed tibia: name an output folder of complete-tibia.") from error
    return read_surface(folder / COMPLETED), side, matrix, motions, intervals


def _check_in_ct(name, mask, shape_kji, ijk_to_ras):
    if not mask.array.any():
        raise InputError(f"The fragment {name} is empty: segment it, or remove its segment.")
    index = np.argwhere(mask.array)[:: max(1, np.count_nonzero(mask.array) // CHECKED_VOXELS), ::-1]
    place = transform_points(np.linalg.inv(ijk_to_ras) @ mask.ijk_to_ras, index)
    if not ((place > -1) & (place < np.array(shape_kji)[::-1])).all(1).any():
        raise InputError(f"The fragment {name} lies outside the CT: name the CT that it was segmented in.")


def _warnings(records, crumbs):
    sentences = [
        f"{record['name']} overlaps another fragment by {record['figures']['overlap_mm']:.1f} mm at its place: check the "
        "segmentation between them, or move it by hand."
        for record in records
        if record["figures"]["overlap_mm"] > OVERLAP_MM
    ]
    if crumbs:
        volume = sum(volume for volume, _ in crumbs)
        sentences.append(f"{len(crumbs)} small pieces of bone, {volume:.1f} mL in all, were left where they are.")
    return sentences


def add_arguments(parser):
    """Declare the arguments of `bonerecon reduce-fragments`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT volume (.nrrd, .nii, .nii.gz, .mha)")
    parser.add_argument(
        "--fragments",
        required=True,
        metavar="FILE[:LABEL|SEGMENT]",
        help="segmentation or labelmap with one segment or label for each fragment, or with the broken bone as one "
        "segment, whose fragments are then told apart",
    )
    add_fracture_argument(parser)
    parser.add_argument("--completion", required=True, metavar="DIR", help="output folder of complete-tibia")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")


def run(arguments):
    """Run `bonerecon reduce-fragments`."""
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = reduce_fragments(
            arguments.ct, arguments.fragments, arguments.completion, folder, progress.report, arguments.fracture
        )
    for warning in result["warnings"]:
        print(f"Warning: {warning}")
