"""`bonerecon evaluate register-ct`: real CTs registered to two X-rays of themselves, from many starting positions.

The X-rays are made by the other engine at the full resolution of a C-arm, polychromatic, with scatter and noise, of
the CT in a body: what the method is given, the CT or a bone in it, is a part of what they show. A registration is
judged by its mean target registration error (mTRE): the mean distance between where the found and where the true pose
puts the points of the bone's surface that lie in both X-rays. It succeeds below 2 mm (RadGS-Reg, Experiments).
"""

import argparse
import time
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from BiplanarReconLib.evaluation.ctscenes import ct_files, in_a_body, read_subject, stem
from BiplanarReconLib.evaluation.knee import ELECTRONIC_SD, ENGINE, KILOVOLT, NOISE, SCATTER
from BiplanarReconLib.fieldofview import in_both
from BiplanarReconLib.registration.registration import METHOD, CtRegistrar
from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.evaluationruns import positive, rows_of_all
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.xraysimulation import XrayConditions, XraySimulator

PRESET = "c-arm"
# Pairs of X-rays of each CT, two for each noise; the CT's true pose in them, and the angle between the views.
PAIRS = 2 * len(NOISE)
TRUE_MM, TRUE_DEG, BETWEEN_DEG = 20.0, 15.0, (75.0, 105.0)
# Starting positions are up to so far from the truth; those that the method is meant for, and bins of the table.
START_MM, START_DEG = 25.0, 20.0
NEAR_MM, NEAR_DEG, BIN_MM = 20.0, 10.0, 5.0
SUCCESS_MM, CAPTURED = 2.0, 0.95
DEFAULT_STARTS = 100
CASE = ("subject", "pair", "noise", "angle_deg", "start", "method", "start_mm", "start_deg", "start_mtre_mm")
FOUND = ("mtre_mm", "correlation", "least_correlation", "residual_mm")
# Of the clock, and of the processor, for which other work does not count.
TIMES = ("seconds", "cpu_seconds")
COLUMNS = (*CASE, *FOUND, "success", "warned", "refused", *TIMES)


@dataclass(frozen=True)
class Case:
    """One pair of X-rays of one CT, and the numbers of the starts that are tried on it.

    Attributes:
        path: of the CT.
        labels: of the bone, as `ctscenes.read_subject` takes them.
        pair: number of the pair.
        starts: numbers of the starts.
        seed: of everything that is drawn.
    """

    path: Path
    labels: tuple
    pair: int
    starts: tuple
    seed: int

    def __str__(self):
        return f"{stem(self.path)} pair {self.pair}"


def cases(paths, labels, starts, seed):
    """All cases: the starts are dealt to the pairs of X-rays in turn.

    Args:
        paths: CT files and folders of them.
        labels: {name of a CT: labels of its bone}.
        starts: their number for each CT.
        seed: of everything that is drawn.

    Raises:
        InputError: there is no CT, or labels are given for one that is not there.
    """
    files = ct_files(paths)
    unknown = sorted(set(labels) - {stem(path) for path in files})
    if unknown:
        raise InputError(f"Labels are given for {', '.join(unknown)}, which is not among the CTs: check the name.")
    return [
        Case(path, tuple(labels.get(stem(path), ())), pair, tuple(range(pair, starts, PAIRS)), seed)
        for path in files
        for pair in range(min(PAIRS, starts))
    ]


def run_case(path, labels, pair, starts, seed):
    """The rows of one `Case`.

    Raises:
        InputError: the CT or its bone cannot be read.
    """
    subject, simulator, registrar = _prepared(path, labels)
    bone = registrar.bone
    name = [*subject.name.encode()]
    generator = np.random.default_rng([seed, pair, *name])
    truth = np.eye(4)
    truth[:3, 3] = -bone.centre
    truth = _displaced(truth, bone, TRUE_MM, TRUE_DEG, generator)
    angle = float(generator.uniform(*BETWEEN_DEG))
    noise = list(NOISE)[pair % len(NOISE)]
    views = standard_views(PRESET, np.zeros(3), angle_deg=angle)
    conditions = XrayConditions(NOISE[noise], ELECTRONIC_SD, SCATTER, kilovolt=KILOVOLT)
    # What moves is the X-rays' geometry about the CT.
    radiographs = [simulator(view.moved(np.linalg.inv(truth)), conditions, n) for n, view in enumerate(views)]
    targets = subject.targets[in_both(transform_points(truth, subject.targets), views)]
    rows = []
    for number in starts:
        generator = np.random.default_rng([seed, number, 1, *name])
        start = _displaced(truth, bone, START_MM, START_DEG, generator)
        row = {"subject": subject.name, "pair": pair, "noise": noise, "angle_deg": angle, "start": number}
        row |= {"method": METHOD} | dict(zip(("start_mm", "start_deg"), bone.apart(start, truth), strict=True))
        row["start_mtre_mm"] = mtre(start, truth, targets)
        rows.append(row | _registered(registrar, radiographs, views, start, truth, targets))
    return rows


def _registered(registrar, radiographs, views, start, truth, targets):
    """The figures of one registration."""
    began = time.perf_counter(), time.process_time()
    try:
        found = registrar.register(radiographs, views, start)
    except InputError:
        nothing = dict.fromkeys(FOUND, float("nan"))
        return nothing | {"success": 0, "warned": 0, "refused": 1} | _times(*began)
    times, error = _times(*began), mtre(found.pose, truth, targets)
    return times | {
        "mtre_mm": error,
        "success": int(error < SUCCESS_MM),
        "correlation": float(np.mean(found.correlations)),
        "least_correlation": min(found.correlations),
        "residual_mm": max(found.residuals_mm),
        "warned": int(bool(found.warnings)),
        "refused": 0,
    }


def _times(clock, processor):
    """`TIMES` since then."""
    return dict(zip(TIMES, (time.perf_counter() - clock, time.process_time() - processor), strict=True))


def mtre(pose, truth, targets):
    """Mean distance in mm between where two (4, 4) poses put the targets (n, 3)."""
    return float(np.linalg.norm(transform_points(pose, targets) - transform_points(truth, targets), axis=1).mean())


def _displaced(pose, bone, most_mm, most_deg, generator):
    """A pose moved by up to so much, evenly drawn, in any direction and about any axis."""
    axis, direction = (vector / np.linalg.norm(vector) for vector in generator.normal(size=(2, 3)))
    angle, distance = np.radians(generator.uniform(0, most_deg)), generator.uniform(0, most_mm)
    return bone.turned(pose, angle * axis, distance * direction)


@lru_cache(maxsize=1)
def _prepared(path, labels):
    subject = read_subject(path, labels)
    return subject, XraySimulator(in_a_body(subject.ct), ENGINE), CtRegistrar(subject.ct, subject.mask)


def evaluate(tasks, output, jobs=1):
    """Register every case; the CSV grows with each.

    Args:
        tasks: list of `Case`.
        output: CSV file.
        jobs: number of processes; more than one make each registration slower.

    Returns:
        list of rows {column: value}.

    Raises:
        InputError: the output cannot be written.
    """
    return rows_of_all(
        [astuple(task) for task in tasks],
        run_case,
        output,
        COLUMNS,
        jobs,
        title=lambda *task: str(Case(*task)),
        failed=lambda *task: [],
        brief=lambda rows: f"{sum(row['success'] for row in rows)} of {len(rows)}",
    )


def summary(rows):
    """Text: success by the start's distance, within the meant reach, capture range, errors and times of each CT."""
    edges = np.arange(0, START_MM, BIN_MM)
    head = "".join(f"{f'{low:.0f}-{low + BIN_MM:.0f} mm':>10}" for low in edges)
    within = f"within {NEAR_DEG:.0f} deg {NEAR_MM:.0f} mm"
    lines = [
        f"{'success by start':<24}{head}{within:>22}{'capture mm':>12}{'mTRE mm':>9}{'worst':>7}{'s':>6}{'most':>6}{'cpu s':>7}"
    ]
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    for name in [*subjects, "all"]:
        own = [row for row in rows if name in (row["subject"], "all")]
        bins = [[row["success"] for row in own if low <= row["start_mm"] < low + BIN_MM] for low in edges]
        near = [row["success"] for row in own if row["start_mm"] <= NEAR_MM and row["start_deg"] <= NEAR_DEG]
        errors = [row["mtre_mm"] for row in own if row["success"]]
        seconds, busy = ([row[kind] for row in own] for kind in TIMES)
        lines.append(
            f"{name:<24}"
            + "".join(f"{_share(part):>10}" for part in bins)
            + f"{_share(near):>22}{_capture(bins):>12.0f}{_value(np.mean, errors):>9}{_value(np.max, errors):>7}"
            + f"{_value(np.median, seconds):>6}{_value(np.max, seconds):>6}{_value(np.median, busy):>7}"
        )
    failed = [row for row in rows if not row["success"]]
    refused, warned = (sum(row[name] for row in failed) for name in ("refused", "warned"))
    false = sum(row["warned"] for row in rows if row["success"])
    lines.append(
        f"{len(rows)} registrations, {len(failed)} failed: {refused} refused, {warned} warned of, "
        f"{len(failed) - refused - warned} passed as good; {false} good ones warned of"
    )
    return "\n".join(lines)


def _share(successes):
    return f"{sum(successes)}/{len(successes)}"


def _value(function, values):
    return f"{function(values):.2f}" if values else "-"


def _capture(bins):
    """Upper end in mm of the last bin up to which so many registrations as `CAPTURED` succeed in each."""
    held = [len(part) > 0 and np.mean(part) >= CAPTURED for part in bins]
    return BIN_MM * (held.index(False) if False in held else len(held))


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate register-ct`."""
    parser.add_argument("--cts", required=True, nargs="+", metavar="PATH", help="CT files, or folders of them")
    parser.add_argument(
        "--labels",
        nargs="+",
        type=_labels,
        default=[],
        metavar="NAME:1,2",
        help="bone of the CT NAME, by its labels in NAME_labels beside it (default: all bone of a CT)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.csv", help="one row for each registration")
    parser.add_argument("--starts", type=positive, default=DEFAULT_STARTS, metavar="N", help="for each CT (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="of poses, starts and noise (default 1)")
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="parallel processes (default 1, which times are meant for)"
    )


def _labels(text):
    name, _, numbers = text.rpartition(":")
    if not name or not all(number.isdecimal() for number in numbers.split(",")):
        raise argparse.ArgumentTypeError("NAME:LABEL,LABEL is needed")
    return name, tuple(numbers.split(","))


def run(arguments):
    """Run `bonerecon evaluate register-ct`."""
    if arguments.seed < 0:
        raise InputError("The seed is negative: give a whole number from 0.")
    tasks = cases(arguments.cts, dict(arguments.labels), arguments.starts, arguments.seed)
    print(summary(evaluate(tasks, arguments.output, arguments.jobs)))
