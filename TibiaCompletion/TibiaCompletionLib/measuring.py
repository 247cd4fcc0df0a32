"""`bonerecon measure-tibia`: length, angles and torsion of a whole tibia, with the lines and planes they are read from.

The prior is fitted to the bone's surface and then follows it, so that the places of the bone are known; see
`tibiameasurements` for the definitions.
"""

import csv
import json
import re
import time
from dataclasses import dataclass

import numpy as np

from BoneReconstructionLib.comparison import read_bone
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, side_to_right
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.markups import MARKUPS_SUFFIX, write_markup
from BoneReconstructionLib.shapefitting import FIT_NOISE_MM, VisibleSurface, fit, with_residual
from BoneReconstructionLib.shapeposterior import intervals
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior, with_torsion
from BoneReconstructionLib.surfaces import Surface, transformed, volume_mm3
from BoneReconstructionLib.tibiameasurements import Measurement, TibiaLandmarks
from BoneReconstructionLib.version import VERSION
from TibiaCompletionLib.plausibility import WHOLE
from TibiaCompletionLib.sidedness import detect_side, named_side

STAGES = {"reading": 1, "finding the pose": 4, "fitting": 6, "measuring": 2}
TABLE, GEOMETRY, MARKUPS = "measurements.csv", "measurements.json", "markups"
FILES = (TABLE, GEOMETRY, MARKUPS, RESULT)
COORDINATES = "RAS, mm"
COLUMNS = (
    "measurement",
    "value",
    "interval_95",
    "unit",
    "definition",
    "source",
    "published_mean",
    "published_sd",
    "published_source",
)
# All of the bone is seen, so that the fit may end with less trust in the prior, which draws angles towards the mean.
NOISE_MM = (*FIT_NOISE_MM, 0.2, 0.15, 0.1, 0.1)
ON_SURFACE_MM = 1.0


@dataclass(frozen=True, eq=False)
class WholeTibia:
    """An unbroken tibia, as `sidedness.detect_side` asks for it.

    Attributes:
        surface: the bone's whole surface, faces outward, RAS mm.
    """

    surface: Surface

    def visible(self, side):
        """All of the bone as a right one, if it is of `side` ("left" or "right")."""
        return VisibleSurface.whole(transformed(self.surface, side_to_right(side)))


@dataclass(frozen=True, eq=False)
class MeasuredTibia:
    """A tibia and its measurements.

    Attributes:
        side: "left" or "right".
        measurements: {name of `tibiameasurements.DEFINITIONS`: `Measurement`}, markups in RAS mm.
        rms_mm: robust root mean square distance of the prior's shape from the bone, before it followed the surface.
        warnings: sentences about the side.
    """

    side: str
    measurements: dict[str, Measurement]
    rms_mm: float
    warnings: list[str]


def measure_tibia(surface, side="auto", accept_side=False, report=lambda stage, fraction: None):
    """Measure a whole tibia of which nothing but the surface is known.

    Args:
        surface: of the whole bone, RAS mm.
        side: "left", "right" or "auto".
        accept_side: keep a given side that the shape contradicts.
        report: called with (stage, fraction).

    Returns:
        MeasuredTibia.

    Raises:
        InputError: the bone is no adult tibia or not whole; the side cannot be told or contradicts the shape; weights
            missing or altered.
    """
    report("finding the pose", 0.0)
    inward = volume_mm3(surface) < 0
    tibia = WholeTibia(Surface(surface.vertices, surface.faces[:, ::-1]) if inward else surface)
    side, found, warnings = detect_side(tibia, side, accept_side)
    if found.shown[0] > WHOLE[0] or found.shown[1] < WHOLE[1]:
        raise InputError(
            "The bone is only a part of a tibia: name the whole one, or predict it by complete-tibia first."
        )
    report("fitting", 0.0)
    prior, visible = with_torsion(load_prior(TIBIA_PRIOR, "tibia")), tibia.visible(side)
    fitted = fit(
        prior, visible, found.start, noise_mm=NOISE_MM, report=lambda fraction: report("fitting", 0.6 * fraction)
    )
    followed = with_residual(prior, fitted, visible).surface
    # What the residual leaves over is noise of the fit; widths would tell it from copy to copy of a bone.
    feet, distance, _ = visible.locator.closest(followed.vertices)
    vertices = np.where(distance[:, None] < ON_SURFACE_MM, feet, followed.vertices)
    followed = transformed(Surface(vertices, followed.faces), side_to_right(side))
    report("measuring", 0.0)
    landmarks = TibiaLandmarks(prior.mean, prior.faces)
    widths = intervals(prior, fitted, landmarks.measure)
    return MeasuredTibia(side, landmarks.measurements(followed.vertices, side, widths), fitted.rms_mm, warnings)


def write_measurements(folder, side, measurements):
    """Write table, geometry and markups of a tibia into a folder.

    Args:
        folder: where measurements.csv, measurements.json (points in RAS mm) and markups (a folder of Slicer's
            `.mrk.json` files, LPS mm as they say) go.
        side: "left" or "right".
        measurements: {name of `tibiameasurements.DEFINITIONS`: `Measurement`}, markups in RAS mm.
    """
    with open(folder / TABLE, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(COLUMNS)
        rows.writerows(_row(one) for one in measurements.values())
    contents = {
        "side": side,
        "coordinates": COORDINATES,
        "measurements": {name: _geometry(one) for name, one in measurements.items()},
    }
    (folder / GEOMETRY).write_text(json.dumps(contents, indent=2), encoding="utf-8")
    (folder / MARKUPS).mkdir()
    for name, one in measurements.items():
        for markup in one.markups:
            words = re.sub(r"[^a-z0-9]+", "-", f"{name} {markup.name}".lower()).strip("-")
            write_markup(folder / MARKUPS / f"{words}{MARKUPS_SUFFIX}", markup, one.text)


def _row(measurement):
    what, people = measurement.definition, measurement.definition.published
    interval = "" if measurement.width is None else f"{measurement.width:.2g}"
    value = (what.title, f"{measurement.value:.4g}", interval, what.unit, what.text, what.source)
    return (*value, people.mean, people.sd, people.source)


def _geometry(measurement):
    what, people = measurement.definition, measurement.definition.published
    return {
        "title": what.title,
        "value": measurement.value,
        "unit": what.unit,
        "interval_95": measurement.width,
        "definition": what.text,
        "source": what.source,
        "published": {"mean": people.mean, "sd": people.sd, "source": people.source},
        "markups": [
            {"name": markup.name, "kind": markup.kind, "points": markup.points.tolist(), "colour": markup.colour}
            for markup in measurement.markups
        ],
    }


def table(measured):
    """The measurements as lines of text."""
    lines = [f"{measured.side} tibia; the interval holds 95 %, published are mean and standard deviation of people"]
    for one in measured.measurements.values():
        what, people = one.definition, one.definition.published
        lines.append(
            f"{what.title:36}{one.value:8.1f} +/- {one.width:<5.1f}{what.unit:9}{people.mean:8.1f} +/- {people.sd:.1f}"
        )
    return "\n".join(lines)


def add_arguments(parser):
    """Declare the arguments of `bonerecon measure-tibia`."""
    parser.add_argument(
        "--tibia",
        required=True,
        metavar="FILE[:LABEL|SEGMENT]",
        help="surface (.ply .stl .obj .vtp), labelmap or segmentation of a whole tibia",
    )
    parser.add_argument("--side", choices=(*SIDES, "auto"), default="auto", help="side of the leg (default: by shape)")
    parser.add_argument(
        "--accept-side", action="store_true", help="keep a given side although the shape is that of the other"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for table, geometry and markups")


def run(arguments):
    """Run `bonerecon measure-tibia`: writes measurements.csv, measurements.json, markups and, last, result.json."""
    began = time.perf_counter()
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        progress.report("reading", 0.0)
        surface = read_bone(arguments.tibia)
        side = named_side(arguments.tibia) or "auto" if arguments.side == "auto" else arguments.side
        measured = measure_tibia(surface, side, arguments.accept_side, progress.report)
        write_measurements(folder, measured.side, measured.measurements)
        result = {
            "version": VERSION,
            "inputs": {"tibia": arguments.tibia},
            "settings": {"side": arguments.side, "accept_side": arguments.accept_side},
            "side": measured.side,
            "rms_mm": round(measured.rms_mm, 3),
            "metrics": {
                name: {"value": one.value, "unit": one.definition.unit} for name, one in measured.measurements.items()
            },
            "intervals_95": {name: one.width for name, one in measured.measurements.items()},
            "warnings": measured.warnings,
            "seconds": round(time.perf_counter() - began, 2),
        }
        (folder / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    progress.report("measuring", 1.0)
    print(table(measured))
    for warning in measured.warnings:
        print(f"Warning: {warning}")
