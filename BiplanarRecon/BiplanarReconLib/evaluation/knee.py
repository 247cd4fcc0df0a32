"""`bonerecon evaluate knee`: reconstructions of real people's knees from X-rays made of their bones."""

import itertools
import time
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from BiplanarReconLib.evaluation.kneescenes import BONES, bent, knee_ct, knee_names, read_knee
from BiplanarReconLib.fieldofview import in_both
from BiplanarReconLib.fitting.reconstruction import METHOD, reconstruct
from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.evaluationruns import positive, rows_of_all
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.surfaces import Surface, vertex_areas
from BoneReconstructionLib.xraysimulation import XrayConditions, XraySimulator

PRESET = "ssr-kd"
FLEXIONS_DEG, ANGLES_DEG = (0, 30), (90, 60)
# Photons at a pixel behind nothing, in the beam's true line integrals; SSR-KD's own noise lies between the first two.
NOISE = {"low": 1e6, "middle": 1e5, "high": 2e4}
KILOVOLT, ELECTRONIC_SD, SCATTER = 70.0, 10.0, 0.1
# What the fast engine is not: the methods fit with thickness images, training projects with the fast one.
ENGINE = "torch"
DICE_SPACING_MM = 1.0
DEFAULT_JOBS = 2
FIGURES = ("dsc", "assd_mm", "hd_mm", "hd95_mm")
CASE = ("subject", "side", "flexion_deg", "noise", "angle_deg")
COLUMNS = (*CASE, "method", "bone", *FIGURES, "residual_mm", "seconds")


@dataclass(frozen=True)
class Case:
    """One pair of X-rays of one knee; the fields are the columns `CASE`."""

    subject: str
    side: str
    flexion_deg: int
    noise: str
    angle_deg: int

    def __str__(self):
        return f"{self.subject} {self.side} {self.flexion_deg} deg {self.noise} noise {self.angle_deg} deg between"


def cases(folder, quick):
    """All cases of a folder; quick: the first knee's, straight, with little noise.

    Raises:
        InputError: the folder holds no knee.
    """
    names = knee_names(folder)
    if quick:
        return [Case(*names[0], FLEXIONS_DEG[0], "low", angle) for angle in ANGLES_DEG]
    return [Case(*name, *rest) for name, *rest in itertools.product(names, FLEXIONS_DEG, NOISE, ANGLES_DEG)]


def evaluate(folder, output, quick=False, jobs=DEFAULT_JOBS):
    """Reconstruct every case; the CSV grows with each.

    Args:
        folder: of the bones, see `kneescenes.knee_names`.
        output: CSV file.
        quick: a small subset.
        jobs: number of processes.

    Returns:
        list of rows {column: value} in the order of the cases; those of a failed case are NaN.

    Raises:
        InputError: the folder holds no knee, or the output cannot be written.
    """
    return evaluate_cases([(str(folder), case) for case in cases(folder, quick)], run_case, output, COLUMNS, jobs)


def evaluate_cases(tasks, work, output, columns, jobs):
    """Run cases in parallel processes, told one by one.

    Args:
        tasks: list of (folder, case), a case being a dataclass whose fields are columns.
        work: (folder, case) -> list of rows.
        output: CSV file.
        columns: of the CSV.
        jobs: number of processes.

    Returns:
        list of rows in the order of the tasks.

    Raises:
        InputError: the output cannot be written.
    """

    def failed(_, case):
        empty = dict.fromkeys(columns, float("nan")) | {"method": METHOD} | vars(case)
        return [empty | {"bone": bone} for bone in BONES]

    def brief(rows):
        return "ASSD mm " + ", ".join(f"{row['bone']} {row['assd_mm']:.2f}" for row in rows)

    return rows_of_all(tasks, work, output, columns, jobs, lambda _, case: str(case), failed, brief)


def run_case(folder, case):
    """The rows of one case.

    Raises:
        InputError: a bone cannot be read, or the X-rays cannot be used.
    """
    bones, middle, simulator = scene(folder, case.subject, case.side, case.flexion_deg)
    views = standard_views(PRESET, middle, angle_deg=case.angle_deg)
    return rows_of(case, bones, views, views, shots(simulator, views, case.noise), case.side)


@lru_cache(maxsize=1)
def scene(folder, subject, side, flexion_deg):
    """({bone: surface}, middle of the joint, `XraySimulator`) of a bent knee."""
    knee = read_knee(folder, subject, side)
    bones = bent(knee, flexion_deg)
    seed = [*subject.encode(), *side.encode(), flexion_deg]
    return bones, knee.middle, XraySimulator(knee_ct(bones, knee.middle, seed), ENGINE)


def shots(simulator, views, noise):
    """X-rays of the views at a level of noise."""
    conditions = XrayConditions(NOISE[noise], ELECTRONIC_SD, SCATTER, kilovolt=KILOVOLT)
    return [simulator(view, conditions, seed) for seed, view in enumerate(views)]


def rows_of(case, bones, views, given, radiographs, side):
    """Reconstruct and measure.

    Args:
        case: a dataclass whose fields are columns.
        bones: {bone: true surface}.
        views: the X-rays' true geometries.
        given: the geometries that the method is told.
        radiographs: the X-rays.
        side: of the knee.

    Returns:
        list of rows {column: value}.
    """
    began = time.perf_counter()
    knee = reconstruct([one.line_integrals for one in radiographs], [one.seen for one in radiographs], given, side)
    seconds = time.perf_counter() - began
    return [
        dict(zip(vars(case), astuple(case), strict=True))
        | {"method": METHOD, "bone": bone, "seconds": seconds}
        | {"residual_mm": _mean([one.rms_mm for one in knee.residuals[bone]])}
        | figures(bones[bone], knee.surfaces[bone], knee.caps[bone], views)
        for bone in BONES
    ]


def figures(truth, found, cap, views):
    """Dice, ASSD, HD and HD95 of the bone inside both frusta; the found bone's cut face does not count.

    Distances are point to triangle, from the vertices of both surfaces, weighted by area.

    Args:
        truth: the true bone, RAS mm.
        found: the reconstructed one.
        cap: (m,) bool, its faces that are no bone's surface.
        views: the X-rays' geometries.

    Returns:
        {name of `FIGURES`: value}, NaN where no part of the bone lies inside.
    """
    bare = Surface(found.vertices, found.faces[~cap])
    inside, seen = in_both(found.vertices, views), in_both(truth.vertices, views)
    to_truth = SurfaceLocator(truth).closest(found.vertices[inside])[1]
    _, to_found, face = SurfaceLocator(found).closest(truth.vertices[seen])
    # What lies beyond the model's end is closest to its cap.
    real = ~cap[face]
    sides = [(to_truth, vertex_areas(bare)[inside]), (to_found[real], vertex_areas(truth)[seen][real])]
    if any(area.sum() == 0 for _, area in sides):
        return dict.fromkeys(FIGURES, float("nan"))
    distance, area = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    return {
        "dsc": _dice(truth, found, views),
        "assd_mm": float(np.average(distance, weights=area)),
        "hd_mm": float(distance[area > 0].max()),
        "hd95_mm": max(_percentile(*side, 0.95) for side in sides),
    }


def _percentile(distance, area, share):
    order = np.argsort(distance)
    total = np.cumsum(area[order])
    return float(distance[order[np.searchsorted(total, share * total[-1])]])


def _dice(truth, found, views):
    # Long shafts outside the views need no voxels.
    inside = [one.vertices[in_both(one.vertices, views)] for one in (truth, found)]
    low, high = np.concatenate(inside).min(0) - 10, np.concatenate(inside).max(0) + 10
    matrix = np.diag([DICE_SPACING_MM] * 3 + [1.0])
    matrix[:3, 3] = low
    shape = tuple(int(n) for n in np.ceil((high - low) / DICE_SPACING_MM)[::-1])
    masks = [voxelize(surface, shape, matrix).array for surface in (truth, found)]
    index = np.argwhere(masks[0] | masks[1])
    counted = in_both(transform_points(matrix, index[:, ::-1]), views)
    place = tuple(index[counted].T)
    return float(dice(masks[0][place], masks[1][place]))


def _mean(values):
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def summary(rows):
    """Text: mean and worst figures by bone over the cases that did not fail."""
    lines = ["bone      ASSD mm  worst   Dice  HD95 mm  residual mm  cases  failed"]
    for bone in BONES:
        own = [row for row in rows if row["bone"] == bone]
        good = [row for row in own if np.isfinite(row["assd_mm"])]
        means = [np.mean([row[name] for row in good]) if good else np.nan for name in ("assd_mm", "dsc", "hd95_mm")]
        worst, residual = max((row["assd_mm"] for row in good), default=np.nan), _mean([r["residual_mm"] for r in good])
        lines.append(
            f"{bone:8s}  {means[0]:7.2f}  {worst:5.2f}  {means[1]:.3f}  {means[2]:7.2f}  {residual:11.2f}  "
            f"{len(good):5d}  {len(own) - len(good):6d}"
        )
    return "\n".join(lines)


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate knee`."""
    add_common_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="two cases of the first knee")


def add_common_arguments(parser):
    """Declare the arguments that evaluations on real people's knees share."""
    parser.add_argument(
        "--bones", required=True, metavar="FOLDER", help="folder with <bone>/<subject>_<L|R>.ply of all four bones"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.csv", help="one row for each bone and case")
    parser.add_argument("--jobs", type=positive, default=DEFAULT_JOBS, metavar="N", help="parallel processes (default 2)")


def run(arguments):
    """Run `bonerecon evaluate knee`."""
    print(summary(evaluate(arguments.bones, arguments.output, arguments.quick, arguments.jobs)))
