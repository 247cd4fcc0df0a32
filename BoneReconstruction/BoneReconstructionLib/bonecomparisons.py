"""Comparing several bones at once, each with its own counterpart: `bonerecon compare-bones`."""

import csv
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from BoneReconstructionLib import jobs
from BoneReconstructionLib.alignment import RigidAlignment, align_rigid
from BoneReconstructionLib.comparison import (
    ALIGNMENTS,
    BONE_HELP,
    SIGN,
    SIGNED_ARRAY,
    STAGES,
    Comparison,
    compare,
    outcome,
    read_bone,
    solid,
)
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import cut_to
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, joined, transformed
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.xraygeometryfiles import read_geometry

TABLE = "comparison.csv"
# The table's columns after the bone's name, and which figure of `Comparison.rows` each holds.
COLUMNS = {
    "dsc": "DSC",
    "assd_mm": "ASSD",
    "hd_mm": "HD",
    "hd95_mm": "HD95",
    "mean_signed_mm": "mean signed, first to second",
    "first_volume_ml": "first volume",
    "second_volume_ml": "second volume",
}
# What is nearer to a cut face is no bone's surface to be aligned.
RIM_MM = 1.0
ALIGNED_COLUMNS = COLUMNS | {"alignment_rms_mm": "alignment RMS"}


def add_arguments(parser) -> None:
    """Adds the arguments of `bonerecon compare-bones`."""
    parser.add_argument(
        "--pair",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "FIRST", "SECOND"),
        help=f"a bone's name, which names its files, and the two to compare, each a {BONE_HELP}; once for each bone",
    )
    parser.add_argument(
        "--align", choices=ALIGNMENTS, default="none", help="move each first bone onto its second, for itself"
    )
    parser.add_argument(
        "--views",
        nargs="+",
        default=(),
        metavar="FILE",
        help="geometries of the X-rays that the first bones were reconstructed from and end with: the second ones are "
        "cut off there too",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results, made when missing")


def run(arguments) -> None:
    """Runs `bonerecon compare-bones`: writes NAME.vtp of each first bone, comparison.csv and, last, result.json."""
    begin = time.monotonic()
    names = [name for name, _, _ in arguments.pair]
    _check_names(names)
    stages = {f"{stage} {name}": share for name in names for stage, share in STAGES.items()}
    progress = jobs.Progress({"read": 2 * len(names), "place": 4} | stages | {"write": 1})
    with jobs.OutputFolder(arguments.output, [f"{name}.vtp" for name in names] + [TABLE, jobs.RESULT]) as folder:
        sides = [side for view in arguments.views for side in read_geometry(view).sides()]
        bones = _read(arguments.pair, progress)
        found = _compare(bones, arguments.align, sides, progress)
        progress.report("write", 0)
        for name, comparison in found.items():
            write_surface(folder / f"{name}.vtp", comparison.first, {SIGNED_ARRAY: comparison.first_signed_mm})
        _write_table(folder / TABLE, found, COLUMNS if arguments.align == "none" else ALIGNED_COLUMNS)
        result = _result(found, arguments) | {"seconds": round(time.monotonic() - begin, 2)}
        (folder / jobs.RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    progress.report("write", 1)


def compare_cut(
    first: Surface,
    second: Surface,
    sides: Sequence[tuple[np.ndarray, np.ndarray]],
    alignment: RigidAlignment | None,
    report: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Comparison:
    """Compares a bone that is cut off at some planes with one that goes on there: both are cut off alike.

    Args:
        first, second, report: as for `compare`.
        sides: (point of the plane, unit normal towards what stays) of each plane, in the first bone's place.
        alignment: how the first bone is moved before, as align_cut found it; None: it stays.

    Raises:
        InputError: as `compare`; nothing of the second bone lies on the inner side of all planes.
    """
    pose = np.eye(4) if alignment is None else alignment.fixed_from_moving
    seen = cut_to(transformed(second, np.linalg.inv(pose)), sides)
    if len(seen.faces) == 0:
        raise InputError("Nothing of the second bone lies where the first one's X-rays look: align the bones.")
    comparison = compare(transformed(first, pose), transformed(seen, pose), report=report)
    return replace(comparison, alignment=alignment)


def align_cut(
    first: Surface, second: Surface, sides: Sequence[tuple[np.ndarray, np.ndarray]], start: np.ndarray
) -> RigidAlignment:
    """Moves a bone that is cut off onto one that goes on there; cut faces do not count.

    Args:
        first, second: RAS mm.
        sides: as for compare_cut.
        start: (4, 4) second_from_first, a pose to begin with beside those that `align_rigid` finds.

    Raises:
        InputError: one bone is left and the other right; hardly any of the first lies off its cut faces.
    """
    # All of the cut bone has a place on the whole one: it is the fixed one here, of which a region may count.
    near = transformed(second, np.linalg.inv(start))
    found = align_rigid(near, first, lambda points: _within(points, sides, RIM_MM))
    return RigidAlignment(start @ np.linalg.inv(found.fixed_from_moving), found.rms_mm, found.points_used)


def _within(points, sides, rim_mm):
    return np.all([(points - origin) @ inwards > rim_mm for origin, inwards in sides], axis=0)


def _check_names(names):
    for number, name in enumerate(names):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise InputError(f'"{name}" is no plain word for a bone: use letters, digits, - and _ only.')
        if name.lower() in (other.lower() for other in names[:number]):  # file systems may not tell them apart
            raise InputError(f'The name "{name}" is given twice: name each pair of bones differently.')


def _read(pairs, progress):
    """All bones, {name: (first, second)}: what cannot be compared is refused before any work is done."""
    bones = {}
    for number, (name, *sources) in enumerate(pairs):
        progress.report("read", number / len(pairs))
        bones[name] = [
            solid(read_bone(source), f"{which} {name}") for which, source in zip(("first", "second"), sources)
        ]
    return bones


def _compare(bones, align, sides, progress):
    """{name: Comparison} of {name: (first, second)}."""
    progress.report("place", 0)
    together = np.eye(4)
    if sides and align == "rigid" and len(bones) > 1:
        # A piece of a shaft slides along the whole one; all bones together do not.
        firsts, seconds = map(joined, zip(*bones.values()))
        together = align_cut(firsts, seconds, sides, together).fixed_from_moving
    return {name: _compare_pair(name, *pair, align, sides, together, progress) for name, pair in bones.items()}


def _compare_pair(name, first, second, align, sides, start, progress):
    def report(stage, done):
        progress.report(f"{stage} {name}", done)

    try:
        if not sides:
            return compare(first, second, align, report=report)
        report("align", 0)
        alignment = align_cut(first, second, sides, start) if align == "rigid" else None
        return compare_cut(first, second, sides, alignment, report)
    except InputError as error:
        raise InputError(f"The pair {name}: {error}") from error


def _write_table(path: Path, found, columns):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("bone", *columns))
        for name, comparison in found.items():
            figures = {row[0]: row[1] for row in comparison.rows()}
            writer.writerow((name, *(f"{figures[figure]:.6g}" for figure in columns.values())))


def _result(found, arguments):
    inputs = {name: {"first": first, "second": second} for name, first, second in arguments.pair}
    return {
        "bones": {
            name: outcome(comparison) | {"overlap_spacing_mm": comparison.spacing_mm}
            for name, comparison in found.items()
        },
        "sign": SIGN,
        "inputs": inputs,
        "settings": {"align": arguments.align, "views": list(arguments.views)},
        "version": VERSION,
    }
