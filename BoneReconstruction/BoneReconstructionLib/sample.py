"""`bonerecon make-sample`: the CT of a virtual patient with a fractured tibia, and what the other leg is like."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.frames import SIDES, rotation_about, side_to_right, transform_points
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.twolegs import other_tibia as other_leg_tibia
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.virtualfractures import KINDS, displaced_labels, draw_fracture, fracture_ct
from BoneReconstructionLib.virtualpatients import VirtualPatients
from BoneReconstructionLib.volumes import Volume, write_volume

SPACING_MM = (0.8, 0.8, 1.0)
# About tibia and fibula, towards L, P, I and R, A, S: the calf with its skin, the femur's condyles, the talus.
MARGIN_LOW_MM = (22.0, 55.0, 35.0)
MARGIN_HIGH_MM = (22.0, 22.0, 35.0)
GAP_MM = (35.0, 55.0)
GAP_CENTRE = (0.35, 0.6)  # along the bone, 0 distal to 1 proximal
TILT_DEGREES = 10.0
GANTRY_DEGREES = 4.0
# Without a place in `virtualfractures`: the shaft's bone between the main fragments is half gone and nothing is moved.
COMMINUTED = "comminuted"
STAGES = {"drawing the person": 3, "rendering the CT": 8, "writing": 3}
FILES = ("ct.nii.gz", "tibia.nii.gz", "fracture.nii.gz", "truth.ply", "other_tibia.ply", RESULT)


@dataclass(frozen=True, eq=False)
class Sample:
    """A virtual patient's scan with the truth.

    Attributes:
        ct: HU, int16.
        tibia: bool, what a surgeon would segment: the bone without what the fracture took away.
        fracture: bool, the coarse mask.
        truth: the healthy tibia, RAS mm.
        other_tibia: the other leg's healthy tibia beside it, RAS mm.
    """

    ct: Volume
    tibia: Volume
    fracture: Volume
    truth: Surface
    other_tibia: Surface


def make_sample(patients, seed, side, kind=COMMINUTED, report=lambda stage, fraction: None):
    """Render a virtual patient of a seed.

    Args:
        patients: `VirtualPatients`.
        seed: of person, pose and fracture.
        side: "left" or "right".
        kind: `COMMINUTED` or one of `virtualfractures.KINDS`, whose fragments are displaced.
        report: called with (stage, fraction).

    Returns:
        Sample, on an oblique anisotropic grid.
    """
    person = patients.person(seed)
    generator = np.random.default_rng([seed, 1])
    report("drawing the person", 1.0)
    tibia = Surface(patients.vertices(person, "tibia"), patients.priors["tibia"].faces)
    fibula = patients.vertices(person, "fibula")

    # Into the scanner: the right leg lies at the patient's right, tilted a little about a random axis.
    axis = generator.standard_normal(3)
    ras_from_right = np.eye(4)
    ras_from_right[:3, :3] = rotation_about(
        axis / np.linalg.norm(axis), np.radians(generator.uniform(-TILT_DEGREES, TILT_DEGREES))
    )
    ras_from_right[:3, 3] = [95.0, 20.0, -600.0]
    ras_from_standard = side_to_right(side) @ ras_from_right
    truth = transformed(tibia, ras_from_standard)
    (other_side,) = (name for name in SIDES if name != side)
    other_tibia = transformed(other_leg_tibia(patients, person), side_to_right(other_side) @ ras_from_right)
    seen = np.concatenate([truth.vertices, transform_points(ras_from_standard, fibula)])
    gantry = rotation_about((1.0, 0.0, 0.0), np.radians(GANTRY_DEGREES))
    along = seen @ gantry
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, :3] = gantry * SPACING_MM
    ijk_to_ras[:3, 3] = gantry @ (along.min(0) - MARGIN_LOW_MM)
    extent = np.ptp(along, axis=0) + MARGIN_LOW_MM + MARGIN_HIGH_MM
    shape = tuple(int(n) for n in np.ceil(extent / SPACING_MM)[::-1])

    missing = region = None
    if kind == COMMINUTED:
        heights = _heights(shape, ijk_to_ras, np.linalg.inv(ras_from_standard))
        missing, region = _comminuted(tibia, heights, generator)
    hu, labels = patients.ct(person, shape, np.linalg.inv(ras_from_standard) @ ijk_to_ras, missing)
    report("rendering the CT", 1.0)
    hu, bone = hu.cpu().numpy(), labels["tibia"].cpu().numpy()
    if kind == COMMINUTED:
        reach = tuple(int(16 / s) | 1 for s in SPACING_MM[::-1])
        mask = region & ndimage.maximum_filter(bone.view(np.uint8), reach).astype(bool)
        bone = bone & ~missing
    else:
        fracture, healthy = draw_fracture(truth, side, kind, seed), Volume(bone, ijk_to_ras)
        hu = fracture_ct(Volume(hu, ijk_to_ras), healthy, fracture, person.tissue["soft_tissue_hu"]).array
        fragments, painted = displaced_labels(healthy, fracture)
        bone, mask = fragments.array > 0, painted.array
    return Sample(
        Volume(np.rint(hu).clip(-1024, 3071).astype(np.int16), ijk_to_ras),
        Volume(bone, ijk_to_ras),
        Volume(mask, ijk_to_ras),
        truth,
        other_tibia,
    )


def _comminuted(tibia, heights, generator):
    """Where a shattered shaft lacks bone, and all that a coarse mask covers along it: bool, (K, J, I) each.

    Args:
        tibia: in the standard frame.
        heights: (K, J, I) of each voxel there, mm.
        generator: of place, length and pieces.
    """
    shape = heights.shape
    gap = generator.uniform(*GAP_MM)
    low, high = tibia.vertices[:, 2].min(), tibia.vertices[:, 2].max()
    height = heights - (low + generator.uniform(*GAP_CENTRE) * (high - low))
    grain = generator.standard_normal(shape).astype(np.float32)
    texture = ndimage.gaussian_filter(grain, 4.0 / np.array(SPACING_MM[::-1]))
    rough = np.abs(height) + 6.0 * texture / texture.std()
    # Between the main fragments half of the bone is gone and the rest lies in pieces.
    return (rough < gap / 2 - 4) & (texture < 0.0), np.abs(height) < gap / 2 + 8


def _heights(shape, ijk_to_ras, standard_from_ras):
    """Height (K, J, I) of each voxel in the standard frame, mm."""
    matrix = standard_from_ras @ ijk_to_ras
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]).astype(np.float32)


def add_arguments(parser):
    """Declare the arguments of `bonerecon make-sample`."""
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for ct, tibia, fracture, truth, other_tibia"
    )
    parser.add_argument("--seed", type=int, default=1, help="which virtual patient (default 1)")
    parser.add_argument("--side", choices=SIDES, default="left")
    parser.add_argument(
        "--kind", choices=(COMMINUTED, *KINDS), default=COMMINUTED, help=f"of the fracture (default {COMMINUTED})"
    )


def run(arguments):
    """Run `bonerecon make-sample`."""
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        progress.report("drawing the person", 0.0)
        sample = make_sample(VirtualPatients(), arguments.seed, arguments.side, arguments.kind, progress.report)
        for name, volume in (("ct", sample.ct), ("tibia", sample.tibia), ("fracture", sample.fracture)):
            write_volume(Path(folder) / f"{name}.nii.gz", volume)
        write_surface(Path(folder) / "truth.ply", sample.truth)
        write_surface(Path(folder) / "other_tibia.ply", sample.other_tibia)
        settings = {"seed": arguments.seed, "side": arguments.side, "kind": arguments.kind}
        (Path(folder) / RESULT).write_text(json.dumps({"version": VERSION, "settings": settings}, indent=2))
        progress.report("writing", 1.0)
