"""Comparing any two bones: surface distances, overlap and volumes, as a function and as `bonerecon compare`."""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from BoneReconstructionLib import jobs
from BoneReconstructionLib.alignment import Region, RigidAlignment, align_rigid
from BoneReconstructionLib.distances import SurfaceDistances, surface_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import mask_surface, voxelize
from BoneReconstructionLib.overlap import dice, jaccard
from BoneReconstructionLib.surfacefiles import SURFACE_SUFFIXES, read_surface, write_surface
from BoneReconstructionLib.surfaces import Surface, is_closed, transformed, volume_mm3
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import read_mask

ALIGNMENTS = ("none", "rigid")
SIGN = "positive: the first bone lies outside the second"
SIGNED_ARRAY = "SignedDistance_mm"
BONE_HELP = "surface (.ply .stl .obj .vtp), or labelmap or segmentation as FILE[:LABEL|SEGMENT]"
SPACING_MM = 0.5
MOST_VOXELS = 50_000_000

# The stages of a comparison, with their share of the time.
STAGES = {"align": 4, "distances": 2, "overlap": 2}

_FILES = ("first.vtp", "second.vtp", "distances.csv", jobs.RESULT)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two bones compared.

    Attributes:
        first: the first bone's surface, moved onto the second where they were aligned.
        second: the second bone's surface.
        distances: of the first (a) to the second (b) and back.
        dice: Dice similarity coefficient of the two, voxelised on a common grid.
        jaccard: Jaccard index on the same grid.
        spacing_mm: voxel size of that grid.
        first_volume_ml: volume that the first surface encloses.
        second_volume_ml: volume that the second surface encloses.
        alignment: how the first bone was moved; None when it was not.
    """

    first: Surface
    second: Surface
    distances: SurfaceDistances
    dice: float
    jaccard: float
    spacing_mm: float
    first_volume_ml: float
    second_volume_ml: float
    alignment: RigidAlignment | None

    @property
    def first_signed_mm(self) -> np.ndarray:
        """(n,) distance at the first bone's vertices; positive: the first bone lies outside the second."""
        return self.distances.a_to_b

    @property
    def second_signed_mm(self) -> np.ndarray:
        """(m,) distance at the second bone's vertices; positive: the first bone lies outside the second."""
        return -self.distances.b_to_a

    def rows(self) -> list[tuple[str, float, str, str]]:
        """The table: name, value, unit and definition of each figure."""
        d = self.distances
        rows = [
            ("ASSD", d.assd, "mm", "mean distance of both surfaces to each other, by area"),
            ("RMSD", d.rmsd, "mm", "root mean square distance of both surfaces to each other, by area"),
            ("HD", d.hd, "mm", "largest distance of either surface to the other"),
            ("HD95", d.hd95, "mm", "larger of the two directions' 95th percentiles of the distance, by area"),
            ("mean signed, first to second", d.mean_signed_a_to_b, "mm", SIGN),
            ("mean signed, second to first", d.mean_signed_b_to_a, "mm", "positive: the second lies outside the first"),
            ("DSC", self.dice, "1", f"Dice coefficient on a common grid of {self.spacing_mm:g} mm"),
            ("Jaccard", self.jaccard, "1", f"Jaccard index on a common grid of {self.spacing_mm:g} mm"),
            ("first volume", self.first_volume_ml, "mL", "volume that the first surface encloses"),
            ("second volume", self.second_volume_ml, "mL", "volume that the second surface encloses"),
        ]
        if self.alignment is not None:
            rms = self.alignment.rms_mm
            rows.append(("alignment RMS", rms, "mm", "root mean square distance of the pairs used for the alignment"))
        return rows


def compare(
    first: Surface,
    second: Surface,
    align: str = "none",
    region: Region | None = None,
    report: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Comparison:
    """Measures how far two bones differ. Distances are point-to-triangle; see `SurfaceDistances`.

    Args:
        first: closed surface, RAS mm; one whose faces look inward is turned.
        second: the same.
        align: "none", or "rigid" to move the first bone onto the second.
        region: which points of the second bone's surface count for the alignment, as for `align_rigid`.
        report: called with the stage ("align", "distances", "overlap") and how much of it is done, 0 to 1.

    Raises:
        InputError: a surface is open or empty, a left and a right bone are to be aligned, the region misses the second
            bone, or there is a region without an alignment.
    """
    if align not in ALIGNMENTS:
        raise InputError(f"The alignment {align!r} is unknown; choose one of {', '.join(ALIGNMENTS)}.")
    if region is not None and align == "none":
        raise InputError("A region only counts for the rigid alignment; choose that or leave the region out.")
    first, second = solid(first, "first bone"), solid(second, "second bone")
    report("align", 0)
    alignment = None
    if align == "rigid":
        alignment = align_rigid(first, second, region)
        first = transformed(first, alignment.fixed_from_moving)
    report("distances", 0)
    distances = surface_distances(first, second)
    report("overlap", 0)
    spacing, masks = _masks(first, second)
    return Comparison(
        first=first,
        second=second,
        distances=distances,
        dice=dice(*masks),
        jaccard=jaccard(*masks),
        spacing_mm=spacing,
        first_volume_ml=volume_mm3(first) / 1000,
        second_volume_ml=volume_mm3(second) / 1000,
        alignment=alignment,
    )


def solid(surface: Surface, name: str) -> Surface:
    """A bone's surface with its faces looking outward.

    Args:
        surface: RAS mm.
        name: of the bone, for the refusal.

    Raises:
        InputError: the surface is open.
    """
    if not is_closed(surface):
        raise InputError(
            f"The {name}'s surface is open, so that it encloses no volume; close its holes or give a labelmap."
        )
    return surface if volume_mm3(surface) >= 0 else Surface(surface.vertices, surface.faces[:, ::-1])


def outcome(comparison: Comparison) -> dict:
    """What result.json says of a comparison: its metrics with their units, and how the first bone was moved."""
    alignment = comparison.alignment
    return {
        "metrics": {name: {"value": value, "unit": unit} for name, value, unit, _ in comparison.rows()},
        "alignment": alignment
        and {
            "second_from_first_ras": alignment.fixed_from_moving.tolist(),
            "rms_mm": alignment.rms_mm,
            "points_used": alignment.points_used,
        },
    }


def read_bone(name: str) -> Surface:
    """Reads one bone, named as on the command line.

    Args:
        name: a surface file (.ply, .stl, .obj, .vtp), or FILE[:LABEL|SEGMENT] of a labelmap or segmentation, of which
            the smooth surface is taken.

    Raises:
        InputError: the file is missing or unreadable, or the mask is empty or ambiguous.
    """
    if Path(name).suffix.lower() in SURFACE_SUFFIXES:
        return read_surface(name)
    return mask_surface(read_mask(name))


def add_arguments(parser) -> None:
    """Adds the arguments of `bonerecon compare`."""
    parser.add_argument("first", metavar="FIRST", help=f"the first bone: {BONE_HELP}")
    parser.add_argument("second", metavar="SECOND", help="the second bone, in the same way")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results, made when missing")
    parser.add_argument("--align", choices=ALIGNMENTS, default="none", help="move the first bone onto the second")
    parser.add_argument(
        "--region", metavar="FILE[:LABEL|SEGMENT]", help="mask of the part of the second bone that the alignment uses"
    )


def run(arguments) -> None:
    """Runs `bonerecon compare`: writes first.vtp, second.vtp, distances.csv and, last, result.json."""
    begin = time.monotonic()
    progress = jobs.Progress({"read": 2} | STAGES | {"write": 1})
    with jobs.OutputFolder(arguments.output, _FILES) as folder:
        progress.report("read", 0)
        first, second = read_bone(arguments.first), read_bone(arguments.second)
        region = None if arguments.region is None else read_mask(arguments.region)
        comparison = compare(first, second, arguments.align, region, progress.report)
        progress.report("write", 0)
        write_surface(folder / "first.vtp", comparison.first, {SIGNED_ARRAY: comparison.first_signed_mm})
        write_surface(folder / "second.vtp", comparison.second, {SIGNED_ARRAY: comparison.second_signed_mm})
        with open(folder / "distances.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("metric", "value", "unit", "definition"))
            writer.writerows((name, f"{value:.6g}", *rest) for name, value, *rest in comparison.rows())
        result = _result(comparison, arguments) | {"seconds": round(time.monotonic() - begin, 2)}
        (folder / jobs.RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    progress.report("write", 1)


def _masks(first, second):
    """Voxel size of a common grid and what lies in it of the two surfaces, both bool (k, j, i)."""
    vertices = np.concatenate([first.vertices, second.vertices])
    lower, size = vertices.min(axis=0), np.ptp(vertices, axis=0)
    spacing = float(max(SPACING_MM, np.ceil(10 * np.cbrt(size.prod() / MOST_VOXELS)) / 10))
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = lower - spacing / 2
    shape = tuple(np.ceil(size / spacing).astype(int)[::-1] + 2)
    return spacing, [voxelize(surface, shape, grid).array for surface in (first, second)]


def _result(comparison, arguments):
    return outcome(comparison) | {
        "sign": SIGN,
        "inputs": {"first": arguments.first, "second": arguments.second, "region": arguments.region},
        "settings": {"align": arguments.align, "overlap_spacing_mm": comparison.spacing_mm},
        "version": VERSION,
    }
