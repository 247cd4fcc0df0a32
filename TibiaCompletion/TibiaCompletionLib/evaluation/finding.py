"""`bonerecon evaluate finding`: how well tibiae are found in CTs of real people's legs, with bones in contact."""

import time
from pathlib import Path

from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.evaluationruns import check_writable, write_rows
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.overlap import dice
from TibiaCompletionLib.evaluation.legscenes import RENDERERS, make_scene
from TibiaCompletionLib.evaluation.people import leg_names
from TibiaCompletionLib.tibiafinding import find_tibiae

COLUMNS = ("subject", "side", "renderer", "found_side", "dice", "assd_mm", "seen_share", "rms_mm", "seconds")
SEED = 31
SAME_BONE = 0.3  # Dice from which on a segment is taken to mean this bone


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate finding`."""
    parser.add_argument(
        "--bones",
        required=True,
        metavar="FOLDER",
        help="folder with tibia/<subject>_<L|R>.ply and, where there are, the other bones and the other side",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.csv", help="a row for each leg and renderer")


def run(arguments):
    """Run `bonerecon evaluate finding`."""
    rows = evaluate(arguments.bones, arguments.output)
    right = [row for row in rows if row["found_side"] == row["side"]]
    worst = f", worst Dice {min(row['dice'] for row in right):.4f}" if right else ""
    print(f"{len(right)} of {len(rows)} tibiae found with their side{worst}")


def evaluate(folder, output):
    """Find the tibiae in one scan of each person and renderer; both legs are in view.

    Args:
        folder: of the bones, see `people.leg_names`.
        output: CSV file; it grows with every scan.

    Returns:
        list of rows {column: value}, one for each leg and renderer; figures of legs that were not found are NaN.

    Raises:
        InputError: the folder holds no tibia, or the output cannot be written.
    """
    output = Path(output)
    check_writable(output)
    people = {}
    for subject, side in leg_names(folder):
        people.setdefault(subject, []).append(side)
    rows = []
    for number, (subject, sides) in enumerate(people.items()):
        for renderer in RENDERERS:
            scene = make_scene(folder, subject, sides, renderer, (SEED, number))
            for row in _measured(scene):
                row |= {"subject": subject, "renderer": renderer}
                rows.append(row)
                print(_line(row), flush=True)
            write_rows(output, rows, COLUMNS)
    return rows


def _measured(scene):
    """Rows of one scene, without subject and renderer."""
    began = time.perf_counter()
    try:
        found = find_tibiae(scene.ct)
    except Exception as error:  # one failing scene must not end the run
        print(f"Refused: {error}")
        found = []
    seconds = time.perf_counter() - began
    rows = []
    for side, true in scene.tibiae.items():
        row = dict.fromkeys(COLUMNS, float("nan")) | {"side": side, "found_side": "", "seconds": seconds}
        for tibia in found:
            overlap = dice(tibia.mask.array, true.array)
            if overlap > SAME_BONE:
                distances = surface_distances(mask_surface(tibia.mask), scene.legs[side].tibia)
                row |= {"found_side": tibia.side, "dice": overlap, "assd_mm": distances.assd}
                row |= {"seen_share": tibia.seen_share, "rms_mm": tibia.rms_mm}
        rows.append(row)
    return rows


def _line(row):
    start = f"{row['subject']} {row['side']} {row['renderer']}: "
    if not row["found_side"]:
        return f"{start}not found, {row['seconds']:.1f} s"
    right = "right side" if row["found_side"] == row["side"] else "WRONG SIDE"
    return f"{start}Dice {row['dice']:.4f}, ASSD {row['assd_mm']:.2f} mm, {right}, {row['seconds']:.1f} s for the scan"
