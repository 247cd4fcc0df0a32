"""Accuracy, time and memory of the tibia's prior fit and completion.

`python Testing/benchmarks/tibia_completion.py [--bones FOLDER]`: FOLDER holds tibia/<subject>_<L|R>.ply of people whom
the prior has never seen; without it, virtual patients stand in. Three tables:

- the prior fitted to the whole surface, at the bone's own size and scaled to 300 and 420 mm: ASSD, point to triangle;
- `bonerecon complete-tibia` run on an oblique 0.6x0.6x1 mm CT with a 60 mm gap in the shaft: Dice outside the gap,
  ASSD inside it, seconds and peak memory of the process; beside it SimpleITK's affine registration of the mean tibia to
  the same CT, the gap masked: ASSD inside it and seconds without reading;
- `bonerecon measure-tibia` on the bone and on copies that are turned, every other one mirrored too, its side left to be
  found: the largest difference of each measurement.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _masked_affine import BONE_HU, SOFT_TISSUE_HU, registered_mean

from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.frames import rotation_about, side_to_right
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.shapefitting import VisibleSurface, fit, start, with_residual
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, write_volume
from TibiaCompletionLib.measuring import measure_tibia

LENGTHS_MM = (300.0, 420.0)
SPACING_MM = (0.6, 0.6, 1.0)
GAP_MM = 60.0
POLLED_S = 0.02
TILT = rotation_about(np.array([0.6, 0.64, 0.48]), np.radians(17.0))


def bones(folder):
    """Yield (name, side, surface) of the people in a folder, or of virtual ones."""
    if folder is not None:
        for path in sorted((Path(folder) / "tibia").glob("*.ply")):
            yield path.stem, {"L": "left", "R": "right"}[path.stem[-1]], read_surface(path)
        return
    from BoneReconstructionLib.virtualpatients import VirtualPatients

    patients = VirtualPatients()
    for seed, side in enumerate(("left", "right", "left"), start=100):
        right = Surface(patients.vertices(patients.person(seed), "tibia"), patients.priors["tibia"].faces)
        yield f"virtual {seed}", side, transformed(right, side_to_right(side))


def along(surface):
    """Height of each vertex along the bone's long axis, mm."""
    centred = surface.vertices - surface.vertices.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][0]


def fit_errors(prior, surface, side):
    """ASSD in mm of the prior fitted to the whole bone, at its own size and at `LENGTHS_MM`."""
    right = transformed(surface, side_to_right(side))
    length = np.ptp(along(right))
    for wanted in (length, *LENGTHS_MM):
        scaled = Surface(right.vertices * (wanted / length), right.faces)
        visible = VisibleSurface.whole(scaled)
        fitted = with_residual(prior, fit(prior, visible, start(prior, visible)), visible)
        yield surface_distances(fitted.surface, scaled).assd


def complete(surface, side, folder, prior):
    """Run the command line, and SimpleITK, on an oblique CT of the bone with a gap in its shaft; return the figures."""
    height = along(surface)
    low = (height.min() + height.max() - GAP_MM) / 2
    local = surface.vertices @ TILT
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, :3] = TILT * SPACING_MM
    ijk_to_ras[:3, 3] = TILT @ (local.min(0) - 25)
    shape = tuple(int(n) for n in np.ceil((np.ptp(local, axis=0) + 50) / SPACING_MM)[::-1])
    bone = voxelize(surface, shape, ijk_to_ras)
    centre = surface.vertices.mean(0)
    axis = np.linalg.svd(surface.vertices - centre, full_matrices=False)[2][0]
    k, j, i = np.indices(shape, dtype=np.float32)
    place = ijk_to_ras[:3, :3].T @ axis
    voxel_height = i * place[0] + j * place[1] + k * place[2] + axis @ (ijk_to_ras[:3, 3] - centre)
    gap = (voxel_height > low) & (voxel_height < low + GAP_MM)
    hu = np.where(bone.array & ~gap, BONE_HU, SOFT_TISSUE_HU).astype(np.int16)
    write_volume(folder / "ct.nii.gz", Volume(hu, ijk_to_ras))
    write_volume(folder / "tibia.nii.gz", Volume(bone.array & ~gap, ijk_to_ras))
    write_volume(folder / "fracture.nii.gz", Volume(gap, ijk_to_ras))
    began = time.perf_counter()
    command = [sys.executable, "-m", "BoneReconstructionLib", "complete-tibia", "--side", side]
    for name in ("ct", "tibia", "fracture"):
        command += [f"--{name}", str(folder / f"{name}.nii.gz")]
    peak = watched([*command, "--output", str(folder / "out")])
    seconds = time.perf_counter() - began
    predicted = read_surface(folder / "out" / "tibia.ply")
    registered, registration_seconds = registered_mean(prior, side, folder)

    def gap_error(found):
        distances, found_height = surface_distances(found, surface), (found.vertices - centre) @ axis
        inside = [(h > low) & (h < low + GAP_MM) for h in (found_height, height)]
        errors = np.abs(distances.a_to_b[inside[0]]), np.abs(distances.b_to_a[inside[1]])
        return (errors[0].mean() + errors[1].mean()) / 2

    result = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    dice = result["metrics"]["dice_visible"]["value"]
    figures = dice, gap_error(predicted), seconds, result["seconds"], peak
    return *figures, gap_error(registered), registration_seconds


def watched(command):
    """Run a command and return its peak memory, MB; a child's rusage would hold its parent's memory (Linux)."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0.0
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            told = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
            peak = max([peak, *told])
            time.sleep(POLLED_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return peak


def differences(surface, side, copies=3):
    """{measurement: largest difference of turned and mirrored copies' values} and {measurement: unit}."""
    own, largest = measure_tibia(surface, side).measurements, {}
    for number in range(copies):
        generator = np.random.default_rng(number)
        matrix = np.eye(4)
        turn = generator.normal(0, 0.5, 3)
        matrix[:3, :3] = rotation_about(turn / np.linalg.norm(turn), np.linalg.norm(turn))
        matrix[:3, :3] *= [(-1.0) ** (number + 1), 1.0, 1.0]
        matrix[:3, 3] = generator.normal(0, 300, 3)
        for name, one in measure_tibia(transformed(surface, matrix)).measurements.items():
            largest[name] = max(largest.get(name, 0.0), abs(one.value - own[name].value))
    return largest, {name: one.definition.unit for name, one in own.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bones", metavar="FOLDER")
    arguments = parser.parse_args()
    prior = load_prior("tibia-prior", "tibia")
    people = list(bones(arguments.bones))
    print("Prior fitted to the whole tibia: ASSD, mm")
    print(f"{'tibia':<24}{'own size':>10}" + "".join(f"{length:>8.0f} mm" for length in LENGTHS_MM))
    for name, side, surface in people:
        print(f"{name:<24}" + "".join(f"{error:>10.3f}" for error in fit_errors(prior, surface, side)), flush=True)
    print(f"\ncomplete-tibia, oblique {SPACING_MM[0]}x{SPACING_MM[1]}x{SPACING_MM[2]} mm CT, {GAP_MM:.0f} mm shaft gap")
    print(f"{'':<79}{'SimpleITK, affine':>32}")
    titles = ("Dice outside", "ASSD inside mm", "seconds", "of these work", "peak MB", "ASSD inside mm", "seconds")
    print(f"{'tibia':<24}" + "".join(f"{title:>16}" for title in titles))
    for name, side, surface in people:
        with tempfile.TemporaryDirectory() as folder:
            found = complete(surface, side, Path(folder), prior)
        values = zip(found, (4, 3, 1, 1, 0, 3, 1), strict=True)
        print(f"{name:<24}" + "".join(f"{value:>16.{digits}f}" for value, digits in values), flush=True)
    print("\nmeasure-tibia, bone against turned and mirrored copies: largest differences")
    for name, side, surface in people:
        largest, units = differences(surface, side)
        print(
            f"{name:<24}" + ", ".join(f"{what} {value:.3f} {units[what]}" for what, value in largest.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
