"""`bonerecon simulate-xrays`: a frontal and a lateral X-ray of a CT, with their geometry."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.radiographs import Radiograph, write_radiograph
from BoneReconstructionLib.volumes import Volume, read_volume
from BoneReconstructionLib.xraygeometry import (
    FRONTAL_VIEWS,
    LATERAL_VIEWS,
    PRESETS,
    XrayGeometry,
    check_views,
    preset_view,
)
from BoneReconstructionLib.xraygeometryfiles import write_geometry
from BoneReconstructionLib.xraysimulation import SSR_KD, XrayConditions, XrayRanges, XraySimulator

CONDITIONS = ("drawn", "ssr-kd", "ideal")
FORMATS = {"nrrd": ".nrrd", "tiff": ".tif"}
KILOVOLT = (60.0, 80.0)  # of radiographs of knees
STAGES = {"reading the CT": 3, "projecting": 4, "writing": 1}


def standard_views(
    preset: str,
    isocentre: np.ndarray,
    frontal: str = "AP",
    lateral: str = "left lateral",
    angle_deg: float | None = None,
) -> tuple[XrayGeometry, XrayGeometry]:
    """A frontal and a lateral view by a preset.

    Args:
        preset: one of `PRESETS`.
        isocentre: (3,) RAS mm.
        frontal: one of `FRONTAL_VIEWS`.
        lateral: one of `LATERAL_VIEWS`.
        angle_deg: between the two beams; the lateral view is turned to it. 90 degrees when None.

    Raises:
        InputError: there is no such preset or view, or the views are too close to parallel.
    """
    first = preset_view(preset, frontal, isocentre)
    # The way from the frontal beam to the lateral one, about the body's long axis.
    towards = 1 if (frontal == "AP") == (lateral == "right lateral") else -1
    turn = 0.0 if angle_deg is None else towards * (angle_deg - 90)
    second = preset_view(preset, lateral, isocentre, turn)
    check_views(first, second)
    return first, second


def simulate_pair(
    ct: Volume,
    views: tuple[XrayGeometry, XrayGeometry],
    conditions: tuple[XrayConditions, XrayConditions],
    seed: int,
    report=lambda stage, fraction: None,
) -> tuple[tuple[Radiograph, Radiograph], str]:
    """X-rays of a CT in two views.

    Args:
        ct: HU.
        views: the geometries.
        conditions: of each X-ray.
        seed: of the noise.
        report: called with (stage, fraction).

    Returns:
        The two X-rays, and the projection engine's name.

    Raises:
        InputError: a source lies in the CT, or the CT lies outside a view.
    """
    corners = np.array(np.meshgrid(*([0, size - 1] for size in ct.shape[::-1]))).reshape(3, -1)
    middle = (ct.ijk_to_ras[:3, :3] @ corners.mean(axis=1) + ct.ijk_to_ras[:3, 3])[None]
    if not all(view.contains(middle)[0] for view in views):
        raise InputError("The CT's centre lies outside an X-ray's field of view: check the isocentre.")
    simulator = XraySimulator(ct)
    images = []
    for number, (view, condition) in enumerate(zip(views, conditions, strict=True)):
        # Each image its own noise.
        images.append(simulator(view, condition, 2 * seed + number))
        report("projecting", (number + 1) / len(views))
    return tuple(images), simulator.engine


def add_arguments(parser):
    """Declare the arguments of `bonerecon simulate-xrays`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT in HU (.nrrd, .nii.gz, .mha)")
    parser.add_argument("--preset", required=True, choices=list(PRESETS), help="machine: distances and detector")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for images and geometries")
    parser.add_argument("--frontal", choices=FRONTAL_VIEWS, default="AP")
    parser.add_argument(
        "--lateral", choices=LATERAL_VIEWS, default="left lateral", help="the side named is at the detector"
    )
    parser.add_argument("--angle", type=float, metavar="DEG", help="between the two beams, 30 to 150 (default 90)")
    parser.add_argument(
        "--isocentre", type=float, nargs=3, metavar=("R", "A", "S"), help="RAS mm (default the CT's centre)"
    )
    parser.add_argument(
        "--conditions",
        choices=CONDITIONS,
        default="drawn",
        help="noise, scatter, collimation and tube voltage drawn from ranges by the seed (default), SSR-KD's noise "
        "alone, or none",
    )
    parser.add_argument("--seed", type=int, default=1, help="of conditions and noise (default 1)")
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        default="nrrd",
        help="line integrals in float32, or 16-bit detector values with bone dark",
    )


def run(arguments):
    """Run `bonerecon simulate-xrays`."""
    suffix = FORMATS[arguments.format]
    stems = (arguments.frontal.lower(), "lateral")
    names = [f"{stem}{end}" for stem in stems for end in (suffix, ".json")]
    if arguments.seed < 0:
        raise InputError("The seed is negative: give a whole number from 0.")
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, [*names, RESULT]) as folder:
        progress.report("reading the CT", 0.0)
        ct = read_volume(arguments.ct)
        progress.report("reading the CT", 1.0)
        if arguments.isocentre is None:
            isocentre = ct.ijk_to_ras[:3, :3] @ ((np.array(ct.shape[::-1]) - 1) / 2) + ct.ijk_to_ras[:3, 3]
        else:
            isocentre = np.array(arguments.isocentre)
        views = standard_views(arguments.preset, isocentre, arguments.frontal, arguments.lateral, arguments.angle)
        conditions = _conditions(arguments.conditions, arguments.seed)
        images, engine = simulate_pair(ct, views, conditions, arguments.seed, progress.report)
        for name, view, image in zip(stems, views, images, strict=True):
            write_radiograph(Path(folder) / f"{name}{suffix}", image)
            write_geometry(Path(folder) / f"{name}.json", view)
        result = {
            "files": names,
            "values": "line integrals" if suffix == ".nrrd" else "linear, bone dark, 65535 is the unattenuated beam",
            "views": [arguments.frontal, arguments.lateral],
            "conditions": [asdict(condition) for condition in conditions],
            "seed": arguments.seed,
            "engine": engine,
        }
        (Path(folder) / RESULT).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        progress.report("writing", 1.0)


def _conditions(kind: str, seed: int) -> tuple[XrayConditions, XrayConditions]:
    if kind == "drawn":
        generator = np.random.default_rng([seed, 1])
        ranges = XrayRanges(kilovolt=KILOVOLT)
        return ranges.draw(generator), ranges.draw(generator)
    condition = SSR_KD if kind == "ssr-kd" else XrayConditions()
    return condition, condition
