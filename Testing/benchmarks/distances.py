"""Signed distances of bone-like meshes: this library beside vtkDistancePolyDataFilter, in one run.

    python Testing/benchmarks/distances.py

Both times include building the search structure. VTK works one way, signed, without cell centres. Where the signs
differ, the winding number says who is right.
"""

import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "BoneReconstruction"))

from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkFiltersGeneral import vtkDistancePolyDataFilter

from BoneReconstructionLib.distances import signed_distances
from BoneReconstructionLib.meshing import decimate, isosurface, to_polydata
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume

RUNS = 5
AGREED_MM = 0.02


def bone(spacing_mm: float, seed: int) -> Surface:
    """A bent bone-like shape of about 345 mm; seeds differ by smooth bumps of about 1 mm."""
    lower = np.array([-45.0, -45.0, -190.0])
    shape = np.ceil(-2 * lower[::-1] / spacing_mm).astype(int) + 1
    z, y, x = np.ogrid[tuple(slice(0, size) for size in shape)]
    x, y, z = (lower[axis] + spacing_mm * values for axis, values in enumerate((x, y, z)))
    axis_x, axis_y = 12 * (z / 180) ** 2, 6 * np.sin(z / 90)
    radius = 11 + 24 * (z / 180) ** 4 + z / 90
    random = np.random.default_rng(seed)
    waves = [(random.normal(size=3) * 0.08, random.uniform(0, 2 * np.pi)) for _ in range(4)]
    field = np.empty(shape, np.float32)
    for k in range(shape[0]):
        across, along = x[0] - axis_x[k], y[0] - axis_y[k]
        ridges = 1.5 * np.cos(3 * np.arctan2(along, across))
        side = np.hypot(across, 1.2 * along) - radius[k] - ridges
        bumps = sum(np.sin(wave[0] * x[0] + wave[1] * y[0] + wave[2] * z[k] + phase) for wave, phase in waves)
        field[k] = np.maximum(side, abs(z[k]) - 172) + 0.5 * bumps
    ijk_to_ras = np.diag([spacing_mm] * 3 + [1.0])
    ijk_to_ras[:3, 3] = lower
    return isosurface(Volume(-field, ijk_to_ras), 0.0)


def irregular(surface: Surface, faces: int) -> Surface:
    """Decimated while squeezed along its axis, so that its triangles are long, thin and of many sizes."""
    squeeze = np.diag([1.0, 1.0, 0.1, 1.0])
    return transformed(decimate(transformed(surface, squeeze), faces), np.linalg.inv(squeeze))


def by_vtk(surface: Surface, other: Surface) -> tuple[float, np.ndarray]:
    distances = vtkDistancePolyDataFilter()
    distances.SetInputData(0, to_polydata(surface))
    distances.SetInputData(1, to_polydata(other))
    distances.ComputeSecondDistanceOff()
    distances.ComputeCellCenterDistanceOff()
    distances.SignedDistanceOn()
    begin = time.perf_counter()
    distances.Update()
    seconds = time.perf_counter() - begin
    return seconds, vtk_to_numpy(distances.GetOutput().GetPointData().GetArray("Distance"))


def by_us(surface: Surface, other: Surface) -> tuple[float, np.ndarray]:
    begin = time.perf_counter()
    distances = signed_distances(surface.vertices, other)
    return time.perf_counter() - begin, distances


def outside(point: np.ndarray, surface: Surface) -> bool:
    """Whether a point is outside, by the winding number (van Oosterom and Strackee 1983), slow and sure."""
    a, b, c = (surface.vertices[surface.faces[:, corner]] - point for corner in range(3))
    la, lb, lc = (np.linalg.norm(vectors, axis=1) for vectors in (a, b, c))
    below = la * lb * lc + (a * b).sum(axis=1) * lc + (b * c).sum(axis=1) * la + (c * a).sum(axis=1) * lb
    solid_angles = 2 * np.arctan2((a * np.cross(b, c)).sum(axis=1), below)
    return abs(solid_angles.sum()) < 2 * np.pi


def main() -> int:
    first, second = bone(0.568, 1), bone(0.568, 2)
    pairs = {
        "dense to dense": (first, second),
        "dense to coarse": (first, decimate(second, 4000)),
        "coarse to dense": (decimate(first, 4000), second),
        "dense to irregular": (first, irregular(second, 40000)),
    }
    print(
        f"{'':20}{'vertices':>20}{'VTK s':>9}{'ours s':>9}{'ratio':>8}{'max |difference| mm':>22}"
        f"{'signs wrong: VTK':>18}{'ours':>6}"
    )
    worst = wrong = 0
    for name, (surface, other) in pairs.items():
        runs = [(by_vtk(surface, other), by_us(surface, other)) for _ in range(RUNS)]
        vtk_s, our_s = (np.median([run[which][0] for run in runs]) for which in range(2))
        theirs, ours = runs[0][0][1], runs[0][1][1]
        apart = np.flatnonzero((np.sign(theirs) != np.sign(ours)) & (np.abs(theirs - ours) > AGREED_MM))
        ours_wrong = sum(outside(surface.vertices[index], other) != (ours[index] > 0) for index in apart)
        difference = np.abs(np.delete(ours - theirs, apart)).max()
        worst, wrong = max(worst, difference), wrong + ours_wrong
        sizes = f"{len(surface.vertices):,} to {len(other.vertices):,}"
        print(
            f"{name:20}{sizes:>20}{vtk_s:9.3f}{our_s:9.3f}{vtk_s / our_s:8.1f}{difference:22.4f}"
            f"{len(apart) - ours_wrong:18}{ours_wrong:6}",
            flush=True,
        )
    agreed = worst <= AGREED_MM and wrong == 0
    print(f"within {AGREED_MM} mm of VTK wherever VTK's sign is right: {'yes' if agreed else 'NO'}")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
