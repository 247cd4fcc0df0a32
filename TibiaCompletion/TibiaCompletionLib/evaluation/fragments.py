"""`bonerecon evaluate fragments`: how near reduced fragments come to their true places, on displaced fractures."""

import time
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.evaluationruns import positive, rows_of_all
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.virtualfractures import displaced_surfaces
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.completion import piece_records, predict
from TibiaCompletionLib.evaluation.fragmentcases import build_fracture, fracture_keys
from TibiaCompletionLib.evaluation.tibia import DEFAULT_JOBS
from TibiaCompletionLib.fragments.amounts import bone_amounts
from TibiaCompletionLib.fragments.bodies import Body, overlap
from TibiaCompletionLib.fragments.edges import fragment_edges
from TibiaCompletionLib.fragments.reduction import reduce
from TibiaCompletionLib.fragments.splitting import fragment_surface
from TibiaCompletionLib.fragments.target import make_target

KEY_COLUMNS = ("subject", "side", "renderer", "case", "other_leg")
COLUMNS = (
    *KEY_COLUMNS,
    "fragment",
    "share",
    "main",
    "displaced_deg",
    "displaced_mm",
    "rotation_error_deg",
    "torsion_error_deg",
    "translation_error_mm",
    "overlap_mm",
    "segmented_overlap_mm",
    "seconds",
    "cpu_seconds",
    "completion_cpu_seconds",
)
# A main fragment holds at least this share of the bone; the one that the completion took to lie where it belongs is
# none, since nothing had to find its place.
MAIN_SHARE = 0.05
# What is asked for: main fragments within this of their true places, and no two of a fracture deeper in each other.
LARGEST_ROTATION_DEG, LARGEST_TRANSLATION_MM, LARGEST_OVERLAP_MM = 3.0, 2.0, 1.0
JOINT_KINDS = ("plateau", "pilon")


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate fragments`."""
    parser.add_argument(
        "--bones",
        required=True,
        metavar="FOLDER",
        help="folder with tibia/<subject>_<L|R>.ply and, where there are, the other bones and the other side",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.csv", help="one row for each fragment")
    parser.add_argument("--quick", action="store_true", help="two fractures of the first leg")
    parser.add_argument(
        "--jobs",
        type=positive,
        default=DEFAULT_JOBS,
        metavar="N",
        help="parallel processes (default 2); with one, seconds are those that a user waits",
    )


def run(arguments):
    """Run `bonerecon evaluate fragments`."""
    print(summary(evaluate(arguments.bones, arguments.output, arguments.quick, arguments.jobs)))


def evaluate(folder, output, quick=False, jobs=DEFAULT_JOBS):
    """Complete and reduce seeded fractures of all tibiae of a folder; the CSV grows with every fracture.

    Args:
        folder: of the bones, see `people.leg_names`.
        output: CSV file.
        quick: a small subset.
        jobs: number of processes.

    Returns:
        list of rows {column: value}, one for each fragment; of a fracture that failed one without figures.

    Raises:
        InputError: the folder holds no tibia, or the output cannot be written.
    """
    return rows_of_all(
        [(str(folder), key) for key in fracture_keys(folder, quick)],
        run_fracture,
        Path(output),
        COLUMNS,
        jobs,
        title=lambda _, key: _title(key),
        failed=lambda _, key: [_failed(key)],
        brief=_brief,
    )


def run_fracture(folder, key):
    """Build, complete and reduce one fracture, in a process of its own.

    Args:
        folder: of the bones.
        key: `CaseKey`.

    Returns:
        list of rows, one for each fragment.
    """
    return _measured(build_fracture(folder, key))


def _measured(case):
    given, side, fracture = case.completion_input, case.key.side, case.fracture
    ct = given.read_ct()  # read now, so that no seconds hold it
    began = time.process_time()
    _, completion, _ = predict(given, side)
    completed, reducing = time.process_time(), time.perf_counter()
    mirror = side_to_right(side)
    predicted = transformed(completion.surface, mirror)
    motions = [np.array(record["motion_ras"]) for record in piece_records(given, completion, side)]
    count = len(fracture.motions)
    masks = [Volume(case.labels.array == number + 1, case.labels.ijk_to_ras) for number in range(count)]
    surfaces = [fragment_surface(mask) for mask in masks]
    target = make_target(predicted, side, np.linalg.inv(completion.matrix) @ mirror)
    edges, amounts = fragment_edges(surfaces, ct), bone_amounts(masks, ct)
    reduction = reduce(target, surfaces, motions, edges, amounts, completion.intervals)
    cpu_seconds, seconds = time.process_time() - completed, time.perf_counter() - reducing

    held, found = _held(case), reduction.motions
    overlaps = _deepest([Body(surface) for surface in displaced_surfaces(case.leg.tibia, fracture)], found)
    segmented = _deepest(reduction.bodies, reduction.poses)
    rows = []
    for number, motion in enumerate(found):
        true = fracture.motions[held] @ np.linalg.inv(fracture.motions[number])
        centre = surfaces[number].vertices.mean(0)
        share = float(fracture.volumes_mm3[number] / fracture.volumes_mm3.sum())
        rotation, torsion, translation = place_errors(motion, true, centre, case.leg.axes[2])
        turned, twisted, moved = place_errors(np.eye(4), true, centre, case.leg.axes[2])
        rows.append(
            _of_key(case.key)
            | {
                "fragment": number + 1,
                "share": share,
                "main": int(share >= MAIN_SHARE and number != held),
                "displaced_deg": float(np.hypot(turned, twisted)),
                "displaced_mm": moved,
                "rotation_error_deg": rotation,
                "torsion_error_deg": abs(torsion),
                "translation_error_mm": translation,
                "overlap_mm": overlaps[number],
                "segmented_overlap_mm": segmented[number],
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "completion_cpu_seconds": completed - began,
            }
        )
    return rows


def _deepest(bodies, poses):
    """How deep each body at its pose reaches into another, or another into it, mm.

    `overlap_mm` tells it of the true fragments, rendered into the CT, at the places that were found for them: bone in
    bone. `segmented_overlap_mm` tells it of the segmented ones, which reach into each other even at their true places
    where a threshold leaked across the fracture; it is what a user is shown.
    """
    depths = np.zeros((len(bodies), len(bodies)))
    for a, b in combinations(range(len(bodies)), 2):
        depths[a, b] = depths[b, a] = overlap(bodies[a], poses[a], bodies[b], poses[b])
    return depths.max(1).tolist()


def place_errors(found, true, centre, axis):
    """How far a fragment is from its true place.

    Args:
        found, true: (4, 4) rigid motions from where it lies, RAS mm.
        centre: (3,) its middle where it lies.
        axis: (3,) unit vector along the bone.

    Returns:
        (angle in degrees that is left without the turn about the bone's axis, that turn in degrees, signed, distance
        of the middles in mm).
    """
    *vector, w = Rotation.from_matrix(found[:3, :3] @ true[:3, :3].T).as_quat()
    along = np.dot(vector, axis)
    shift = transform_points(found, centre[None]) - transform_points(true, centre[None])
    return (
        float(np.degrees(2 * np.arccos(min(1.0, np.hypot(along, w))))),
        float((np.degrees(2 * np.arctan2(along, w)) + 180) % 360 - 180),
        float(np.linalg.norm(shift)),
    )


def _held(case):
    """The fragment, from 0, that the completion took to lie where it belongs: most of its first visible piece."""
    given = case.completion_input
    points = given.surface.vertices[given.trusted & (given.piece == 0)]
    index = np.rint(transform_points(case.labels.ras_to_ijk, points)).astype(int)[:, ::-1]
    labels = case.labels.array[tuple(np.clip(index, 0, np.array(case.labels.shape) - 1).T)]
    return int(np.bincount(labels[labels > 0]).argmax()) - 1


def _of_key(key):
    return {name: getattr(key, name) for name in KEY_COLUMNS} | {"other_leg": int(key.other_leg)}


def _failed(key):
    return dict.fromkeys(COLUMNS, float("nan")) | _of_key(key)


def _title(key):
    return f"{key.subject} {key.side} {key.case} {key.renderer}{' other leg' if key.other_leg else ''}"


def _brief(rows):
    told = [
        f"{row['rotation_error_deg']:.1f} deg {row['translation_error_mm']:.1f} mm (torsion {row['torsion_error_deg']:.1f})"
        + (" main" if row["main"] else "")
        for row in rows
    ]
    return f"{'; '.join(told)}; overlap {max(row['overlap_mm'] for row in rows):.2f} mm; {rows[0]['seconds']:.1f} s"


def within(row):
    """Whether a fragment came as near to its true place as is asked for; torsion is told apart."""
    return row["rotation_error_deg"] <= LARGEST_ROTATION_DEG and row["translation_error_mm"] <= LARGEST_TRANSLATION_MM


def summary(rows):
    """Text: how many fragments came home, main ones and small pieces apart, with and without the other leg."""
    figures = [row for row in rows if np.isfinite(row["share"])]
    lines = [f"{'':<40}{'n':>4}{'within':>8}{'median deg':>12}{'mm':>7}{'torsion':>9}{'p80 deg':>9}{'mm':>7}"]
    main, small = ([row for row in figures if _is(row) == kind] for kind in ("main", "small"))
    paired = [row for row in main if row["other_leg"]]
    groups = {
        "main, with the other leg": paired,
        "main, with it, trained renderer": [row for row in paired if row["renderer"] == "trained"],
        "main, with it, foreign renderer": [row for row in paired if row["renderer"] == "foreign"],
        "main, with it, of the shaft": [row for row in paired if not row["case"].startswith(JOINT_KINDS)],
        "main, with it, of a joint": [row for row in paired if row["case"].startswith(JOINT_KINDS)],
        "main, without": [row for row in main if not row["other_leg"]],
        "small pieces, with the other leg": [row for row in small if row["other_leg"]],
        "small pieces, without": [row for row in small if not row["other_leg"]],
    }
    names = ("rotation_error_deg", "translation_error_mm", "torsion_error_deg")
    for title, group in groups.items():
        if group:
            rotation, translation, torsion = (np.array([row[name] for row in group]) for name in names)
            share = 100 * np.mean([within(row) for row in group])
            lines.append(
                f"{title:<40}{len(group):>4}{share:>6.0f} %{np.median(rotation):>12.2f}{np.median(translation):>7.2f}"
                f"{np.median(torsion):>9.2f}{np.percentile(rotation, 80):>9.2f}{np.percentile(translation, 80):>7.2f}"
            )
    lines.append(
        f"within: {LARGEST_ROTATION_DEG:g} degrees without torsion and {LARGEST_TRANSLATION_MM:g} mm; main: at least "
        f"{100 * MAIN_SHARE:g} % of the bone; the fragment that the completion held is in neither group"
    )
    if figures:
        lines.append(_overlap_summary(figures, "overlap_mm", "bone in bone"))
        lines.append(_overlap_summary(figures, "segmented_overlap_mm", "fragments as they are shown in each other"))
        for column, what in (("seconds", "reduction, as long as it ran"), ("cpu_seconds", "of one core")):
            seconds = [row[column] for row in figures]
            lines.append(f"{what}: median {np.median(seconds):.1f} s, longest {max(seconds):.1f} s")
    failed = len(rows) - len(figures)
    if failed:
        lines.append(f"{failed} fractures failed")
    return "\n".join(lines)


def _overlap_summary(figures, column, what):
    deepest = {}
    for row in figures:
        key = tuple(row[name] for name in KEY_COLUMNS)
        deepest[key] = max(deepest.get(key, 0.0), row[column])
    deepest = np.array(list(deepest.values()))
    return (
        f"{what} deeper than {LARGEST_OVERLAP_MM:g} mm in {np.sum(deepest > LARGEST_OVERLAP_MM)} of {len(deepest)} "
        f"fractures, deepest {deepest.max():.2f} mm"
    )


def _is(row):
    """Whether a fragment is a "main" one, a "small" piece, or the one that was "held"."""
    return "main" if row["main"] else "small" if row["share"] < MAIN_SHARE else "held"
