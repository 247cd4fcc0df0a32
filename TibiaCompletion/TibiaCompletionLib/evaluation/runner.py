"""Runs methods on cases in parallel processes and gathers the figures: CSV, summary, pictures of the worst cases."""

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from BoneReconstructionLib.evaluationruns import check_writable, duration, outcomes_of, reason, write_rows
from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.imagemetrics import HU_WINDOW
from BoneReconstructionLib.surfaces import transformed
from TibiaCompletionLib.completion import DEFAULT_METHOD, METHODS, predict
from TibiaCompletionLib.evaluation.baselines import interpolate, mirror
from TibiaCompletionLib.evaluation.cases import build_case, case_leg
from TibiaCompletionLib.evaluation.scoring import DEVIATIONS, FIGURES, Truth, deviation_figures, figures

DEFAULT = "default"
BASELINES = ("prototype", "interpolation", "mirror")
COLUMNS = (
    "subject",
    "side",
    "renderer",
    "scale",
    "case",
    "context",
    "other_leg",
    "method",
    *FIGURES,
    "seconds",
    "peak_mb",
    *DEVIATIONS,
)
DECIMALS = {"dice": 4, "scale": 3, "psnr_db": 2, "seconds": 2, "peak_mb": 0}
# Whether the predicted bone's interval of length and torsion holds the truth: in the summary only.
HELD = ("length_held", "torsion_held")
WORST = 3
SUMMARY_FIGURES = {
    "assd_gap_mm": "gap ASSD",
    "assd_mm": "ASSD",
    "hd95_mm": "HD95",
    "dice": "Dice",
    "psnr_db": "PSNR",
    "length_error_mm": "length",
    "torsion_error_deg": "torsion",
    "angulation_error_deg": "angul.",
    "length_held": "length in",
    "torsion_held": "tors. in",
    "sigma_gap_mm": "gap SD",
    "rms_gap_mm": "gap RMS",
    "within_1_sd": "in 1 SD",
    "within_2_sd": "in 2 SD",
    "seconds": "s",
}


def method_names():
    """Names that can be asked for: the default, the baselines, and every completion method by its own name."""
    return (DEFAULT, *BASELINES, *(name for name in METHODS if name not in BASELINES))


def applies(method, key):
    """Whether a method is run on a case: baselines use neither context nor, but for `mirror`, the other leg."""
    if method == "mirror":
        return key.other_leg
    return method not in BASELINES or not (key.context or key.other_leg)


def evaluate(folder, output, methods, keys, jobs):
    """Run methods on cases of a folder of bones; the CSV grows with every case.

    Args:
        folder: of the bones, see `people.leg_names`.
        output: CSV file; pictures of the default method's worst cases are written beside it.
        methods: names out of `method_names`.
        keys: list of `CaseKey`, see `cases.case_keys`.
        jobs: number of processes.

    Returns:
        list of rows {column: value}, in the order of the cases; figures that could not be had are NaN.

    Raises:
        InputError: the output cannot be written.
    """
    folder, output = str(folder), Path(output)
    check_writable(output)
    tasks = [(folder, key, tuple(name for name in methods if applies(name, key))) for key in keys]
    tasks = [task for task in tasks if task[2]]
    print(f"{len(tasks)} cases, {sum(len(names) for *_, names in tasks)} completions, {jobs} processes")
    print(f"HU window of the image figures: {HU_WINDOW[0]:.0f} to {HU_WINDOW[1]:.0f}", flush=True)
    rows, worst, began = {}, [], time.monotonic()
    for done, (number, outcomes) in enumerate(outcomes_of(tasks, jobs, run_case), start=1):
        _, key, names = tasks[number]
        if isinstance(outcomes, Exception):
            outcomes = _all_failed(key, names, reason(outcomes))
        rows[number] = [row for row, _, _ in outcomes]
        for row, why, surface in outcomes:
            if why:
                print(f"FAILED {_title(row)}: {why}")
            if surface is not None:
                worst = sorted([*worst, (_badness(row), row, key, surface)], key=lambda w: -w[0])[:WORST]
        write_rows(output, [row for index in sorted(rows) for row in rows[index]], COLUMNS, DECIMALS)
        left = (time.monotonic() - began) / done * (len(tasks) - done)
        told = f"{_title(rows[number][0])}: {_brief(rows[number])}"
        print(f"{done}/{len(tasks)} {told}; {duration(left)} left", flush=True)
    print(f"Done in {duration(time.monotonic() - began)}.")
    try:
        _picture(folder, output, worst)
    except Exception as error:  # the figures count
        print(f"The pictures could not be drawn: {reason(error)}")
    return [row for index in sorted(rows) for row in rows[index]]


def summary(rows):
    """Text: mean of every figure for each kind of case, renderer, size, context, other leg and method."""
    groups = {}
    for row in rows:
        size = {-1: "smaller", 0: "own", 1: "larger"}.get(np.sign(row["scale"] - 1), "unknown")
        kind = row["case"].rstrip("1234").rstrip("-")
        given = " ".join(word for word in ("context", "other_leg") if row[word]) or "-"
        groups.setdefault((kind, row["renderer"], size, given.replace("_", " "), row["method"]), []).append(row)
    lines = [
        f"{'case':<12}{'renderer':<9}{'size':<9}{'given':<11}{'method':<15}{'n':>3}"
        + "".join(f"{title:>10}" for title in SUMMARY_FIGURES.values())
    ]
    for (kind, renderer, size, given, method), members in groups.items():
        values = []
        for name in SUMMARY_FIGURES:
            known = [row[name] for row in members if np.isfinite(row[name])]
            values.append(f"{np.mean(known):>10.3f}" if known else f"{'':>10}")
        failed = sum(bool(np.isnan(row["seconds"])) for row in members)
        lines.append(
            f"{kind:<12}{renderer:<9}{size:<9}{given:<11}{method:<15}{len(members) - failed:>3}{''.join(values)}"
            + (f"  {failed} failed" if failed else "")
        )
    return "\n".join(lines)


def run_case(folder, key, methods):
    """Build a case and run methods on it, in a process of its own.

    Args:
        folder: of the bones.
        key: `CaseKey`.
        methods: names.

    Returns:
        list of (row, reason of a failure or None, predicted surface of the default method or None).

    Raises:
        InputError: a bone cannot be read or broken.
    """
    case = build_case(folder, key)
    truth = _truth(case.leg, case.scan)
    case.completion_input.read_ct()  # made now, so that no method's seconds hold it
    return [_run_method(case, truth, method) for method in methods]


def _run_method(case, truth, method):
    row = _row(case.key, method, case.leg.scale)
    try:
        reset_peak_memory()
        began = time.perf_counter()
        predicted, measured, sigma = _complete(case, method)
        seconds, peak = time.perf_counter() - began, peak_memory_mb()
        row |= figures(predicted, truth, case.masked, case.scanned) | _held(measured, truth)
        row |= deviation_figures(predicted, sigma, truth, case.masked)
        row |= {"seconds": seconds, "peak_mb": peak}
    except Exception as error:
        return row, reason(error), None
    return row, None, predicted if method == DEFAULT else None


def _complete(case, method):
    """(predicted surface, RAS mm, its `Completion.measured`, its `Completion.sigma_mm`)."""
    if method == "interpolation":
        return interpolate(case), {}, None
    if method == "mirror":
        return mirror(case), {}, None
    name = DEFAULT_METHOD if method == DEFAULT else method
    given = replace(case.completion_input, other_tibia=case.other_tibia)
    side, completion, _ = predict(given, case.key.side, name)
    return transformed(completion.surface, side_to_right(side)), completion.measured, completion.sigma_mm


def _held(measured, truth):
    """{column of `HELD`: 1.0 where the interval holds the truth, else 0.0}."""
    true = truth.measurements if measured else {}
    return {f"{name}_held": float(abs(value - true[name]) <= width) for name, (value, width) in measured.items()}


@lru_cache(maxsize=1)
def _truth(leg, scan):
    return Truth(leg, scan)


def reset_peak_memory():
    """Let this process's peak memory be counted anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory_mb():
    """Peak memory of this process in MB since `reset_peak_memory`, or since its start elsewhere; NaN on Windows."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ModuleNotFoundError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # bytes on macOS


def _row(key, method, scale):
    values = {"subject": key.subject, "side": key.side, "renderer": key.renderer, "scale": scale, "case": key.case}
    values |= {"context": int(key.context), "other_leg": int(key.other_leg), "method": method}
    return values | dict.fromkeys((*FIGURES, *DEVIATIONS, *HELD, "seconds", "peak_mb"), float("nan"))


def _all_failed(key, methods, why):
    # How far a bone is scaled is not known without the bone.
    scale = 1.0 if key.length_mm is None else float("nan")
    return [(_row(key, method, scale), why, None) for method in methods]


def _badness(row):
    """What ranks the worst cases, mm: the gap's distance, where there is no gap the whole bone's."""
    return row["assd_gap_mm"] if np.isfinite(row["assd_gap_mm"]) else row["assd_mm"]


def _title(row):
    words = [f"{row['subject']} {row['side']}", row["case"]]
    if row["renderer"] != "trained":
        words.append(row["renderer"])
    if row["scale"] != 1:
        words.append(f"x{row['scale']:.2f}")
    words += [word.replace("_", " ") for word in ("context", "other_leg") if row[word]]
    return " ".join(words)


def _brief(rows):
    return ", ".join(f"{row['method']} {_badness(row):.2f} mm" for row in rows)


def _picture(folder, output, worst):
    from TibiaCompletionLib.evaluation.pictures import compare

    for number, (badness, row, key, surface) in enumerate(worst, start=1):
        leg = case_leg(folder, key)
        path = output.with_name(f"{output.stem}-worst-{number}.png")
        compare(path, surface, leg, f"{_title(row)}: {badness:.2f} mm")
        print(f"{path}: {_title(row)}, {badness:.2f} mm")
