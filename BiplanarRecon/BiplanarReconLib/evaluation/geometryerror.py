"""`bonerecon evaluate geometry`: what a wrong geometry does to reconstructed knees, as Fig. 3 of the atlas paper has it.

The X-rays are made as ever, straight knee, little noise, 90 degrees between the views; the method is told a lateral
view that is turned about the body's long axis, or shifted along it, as when the patient moves between the two X-rays.
"""

from dataclasses import dataclass

import numpy as np

from BiplanarReconLib.evaluation.knee import (
    FIGURES,
    PRESET,
    add_common_arguments,
    evaluate_cases,
    rows_of,
    scene,
    shots,
)
from BiplanarReconLib.evaluation.kneescenes import BONES, knee_names
from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib.frames import rotation_about

ANGLES_DEG, SHIFTS_MM = (0.0, 2.5, 5.0, 7.5, 10.0), (5.0, 10.0, 15.0, 20.0)
NOISE = "low"
COLUMNS = (
    "subject",
    "side",
    "angle_error_deg",
    "shift_error_mm",
    "method",
    "bone",
    *FIGURES,
    "residual_mm",
    "seconds",
)


@dataclass(frozen=True)
class Case:
    """One knee, and how wrong the lateral view is; the fields are columns."""

    subject: str
    side: str
    angle_error_deg: float
    shift_error_mm: float

    def __str__(self):
        return f"{self.subject} {self.side} {self.angle_error_deg:g} deg {self.shift_error_mm:g} mm"


def cases(folder):
    """All cases of a folder.

    Raises:
        InputError: the folder holds no knee.
    """
    errors = [(angle, 0.0) for angle in ANGLES_DEG] + [(0.0, shift) for shift in SHIFTS_MM]
    return [Case(*name, *error) for name in knee_names(folder) for error in errors]


def run_case(folder, case):
    """The rows of one case.

    Raises:
        InputError: a bone cannot be read, or the X-rays cannot be used.
    """
    bones, middle, simulator = scene(folder, case.subject, case.side, 0)
    views = standard_views(PRESET, middle)
    wrong = views[1].moved(motion(middle, case.angle_error_deg, case.shift_error_mm))
    return rows_of(case, bones, views, (views[0], wrong), shots(simulator, views, NOISE), case.side)


def motion(middle, angle_deg, shift_mm):
    """(4, 4) turn about the body's long axis through a point, and shift along it."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_about((0, 0, 1), np.radians(angle_deg))
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + [0, 0, shift_mm]
    return matrix


def summary(rows):
    """Text: mean ASSD of each bone, mean Dice and mean residual by error."""
    lines = [f"{'error':>8}" + "".join(f"{bone:>9}" for bone in BONES) + "  (ASSD mm)     Dice  residual mm  failed"]
    for angle, shift in sorted(
        {(row["angle_error_deg"], row["shift_error_mm"]) for row in rows}, key=lambda e: e[::-1]
    ):
        own = [row for row in rows if (row["angle_error_deg"], row["shift_error_mm"]) == (angle, shift)]
        good = [row for row in own if np.isfinite(row["assd_mm"])]
        label = f"{shift:g} mm" if shift else f"{angle:g} deg"
        values = "".join(f"{_mean(row['assd_mm'] for row in good if row['bone'] == bone):9.2f}" for bone in BONES)
        dsc, residual = (_mean(row[name] for row in good) for name in ("dsc", "residual_mm"))
        failed = (len(own) - len(good)) // len(BONES)
        lines.append(f"{label:>8}{values}{'':13}{dsc:7.3f}  {residual:11.2f}  {failed:6d}")
    return "\n".join(lines)


def _mean(values):
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate geometry`."""
    add_common_arguments(parser)


def run(arguments):
    """Run `bonerecon evaluate geometry`."""
    tasks = [(arguments.bones, case) for case in cases(arguments.bones)]
    print(summary(evaluate_cases(tasks, run_case, arguments.output, COLUMNS, arguments.jobs)))
