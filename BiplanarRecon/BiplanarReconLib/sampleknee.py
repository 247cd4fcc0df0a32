"""`bonerecon make-knee`: the CT of a virtual knee and its true bones, to make X-rays of."""

import json

import numpy as np

from BoneReconstructionLib.frames import SIDES, side_to_right
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.virtualknees import BONES, KneeRanges, VirtualKnees
from BoneReconstructionLib.volumes import Volume, write_volume

SPACING_MM = 1.2
FLEXION_DEGREES = (0.0, 20.0)  # as people stand
# The CT about the knee, in the knee's frame, and where a right knee lies in the patient (RAS), mm. It is longer than
# what the machines' detectors show: no X-ray of a patient shows a limb that ends.
LOWEST_MM, EXTENT_MM, PLACE_MM = (-90.0, -95.0, -110.0), (180.0, 180.0, 220.0), (95.0, 20.0, -450.0)
STAGES = {"drawing the person": 1, "rendering the CT": 4, "writing": 1}
FILES = ("ct.nii.gz", *(f"{bone}.ply" for bone in BONES), RESULT)


def make_knee(knees, seed, side, spacing_mm=SPACING_MM, report=lambda stage, fraction: None):
    """Draw a knee and render its CT.

    Args:
        knees: `VirtualKnees`.
        seed: which virtual person.
        side: "left" or "right".
        spacing_mm: of the CT.
        report: called with (stage, fraction).

    Returns:
        (`Volume` of int16 HU, {bone: closed `Surface`}), RAS mm.
    """
    knee = knees.knee(seed)
    report("drawing the person", 1.0)
    ras_from_knee = np.eye(4)
    ras_from_knee[:3, 3] = PLACE_MM
    ras_from_knee = side_to_right(side) @ ras_from_knee
    # Upright in the scanner, whichever side it is.
    ijk_to_ras = np.diag([spacing_mm] * 3 + [1.0])
    corners = np.array([LOWEST_MM, np.add(LOWEST_MM, EXTENT_MM)]) @ ras_from_knee[:3, :3].T + ras_from_knee[:3, 3]
    ijk_to_ras[:3, 3] = corners.min(0)
    shape = tuple(int(count) for count in np.ceil(np.divide(EXTENT_MM, spacing_mm))[::-1])
    hu, _labels = knees.ct(knee, shape, np.linalg.inv(ras_from_knee) @ ijk_to_ras)
    report("rendering the CT", 1.0)
    ct = Volume(np.rint(hu.cpu().numpy()).clip(-1024, 3071).astype(np.int16), ijk_to_ras)
    vertices = knees.vertices(knee)
    return ct, {bone: transformed(Surface(vertices[bone], knees.priors[bone].faces), ras_from_knee) for bone in BONES}


def add_arguments(parser):
    """Declare the arguments of `bonerecon make-knee`."""
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the CT and the true bones")
    parser.add_argument("--seed", type=int, default=1, help="which virtual person (default 1)")
    parser.add_argument("--side", choices=SIDES, default="right")


def run(arguments):
    """Run `bonerecon make-knee`."""
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        progress.report("drawing the person", 0.0)
        knees = VirtualKnees(ranges=KneeRanges(flexion_degrees=FLEXION_DEGREES))
        ct, bones = make_knee(knees, arguments.seed, arguments.side, report=progress.report)
        write_volume(folder / "ct.nii.gz", ct)
        for bone, surface in bones.items():
            write_surface(folder / f"{bone}.ply", surface)
        settings = {"seed": arguments.seed, "side": arguments.side}
        (folder / RESULT).write_text(json.dumps({"version": VERSION, "settings": settings}, indent=2), encoding="utf-8")
        progress.report("writing", 1.0)
