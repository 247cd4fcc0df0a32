"""X-rays of a 256x256x256 CT: this library's engines, beside ITK-RTK, plastimatch and DiffDRR where they are installed.

    python Testing/benchmarks/xray_projection.py [--peers PYTHON]

PYTHON is the interpreter of an environment of the peers' own, which the product needs nothing of:

    python -m venv peers && peers/bin/pip install numpy torch itk-rtk && peers/bin/pip install --no-deps diffdrr

DiffDRR's renderers do without what it depends on. plastimatch is a program (Debian and Ubuntu have a package of this
name). Without --peers they are looked for beside this library.

Each time is the median of several runs; the volume is in memory, and in the order that the view needs, before the
clock starts (plastimatch tells its own time). "CPU / cores" is the processor time shared between the cores: what the
wall time comes to when nothing else runs. The error is the mean of the differences from a march in steps of 0.25 mm
with trilinear interpolation in double precision, over the mean of the march, on 4096 rays; a peer that is off by more
than one percent has not seen the same view. plastimatch and Siddon take voxels for boxes, so that they answer another
question, a little.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "BoneReconstruction"))

from BoneReconstructionLib import torchprojection
from BoneReconstructionLib.projection import Projector, installed_engines
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometry import CArm, XrayGeometry, from_carm

SIZE = 256
STEP_MM = 0.25
RAYS = 4096
GOALS_S = {"numba": {256: 0.020, 512: 0.060}, "backward": {256: 0.27}}
GOAL_ERROR = 0.003
# Runs of each engine and of each peer, and the mean error from which on a peer has projected something else.
RUNS, NUMBA_RUNS = 5, 15
OTHER_VIEW = 0.01
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def ct() -> Volume:
    """Attenuation per mm of a leg-like phantom at 1 mm, nowhere zero, so that no engine can leave anything out."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij")
    leg = 0.02 * ((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1)
    shaft = np.hypot((x - 0.1) / 0.30, (y - 0.1) / 0.25)
    leg += 0.03 * (shaft < 1) - 0.02 * (shaft < 0.75)
    texture = gaussian_filter(np.random.default_rng(0).normal(size=leg.shape), 1.0)
    array = gaussian_filter(leg, 0.7) + 0.004 * texture * (leg > 0) + 1e-5
    frame = np.eye(4)
    frame[:3, 3] = -(SIZE - 1) / 2
    return Volume(array.astype(np.float32), frame)


def view(pixels: int) -> XrayGeometry:
    """SSR-KD's distances and field of view, turned so that nothing lies along an axis."""
    spacing = 512 * 0.575 / pixels
    return from_carm(CArm(2000.0, 1000.0, (spacing, spacing), (pixels, pixels), 160.0, 8.0, 5.0))


def march(volume: Volume, geometry: XrayGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of some pixels, (2, n), and the integrals along their rays."""
    generator = np.random.default_rng(1)
    pixels = np.stack([generator.integers(0, size, RAYS) for size in geometry.shape])
    rays = geometry.pixel_positions(pixels[::-1].T) - geometry.source
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    middle, reach = np.linalg.norm(geometry.source), SIZE
    samples = np.arange(middle - reach, middle + reach, STEP_MM) + STEP_MM / 2
    start = (volume.ras_to_ijk @ [*geometry.source, 1])[:3]
    directions = rays @ volume.ras_to_ijk[:3, :3].T
    padded = np.pad(volume.array.astype(np.float64), 1)
    sums = [
        map_coordinates(padded, (start + samples[:, None] * direction).T[::-1] + 1, order=1).sum() * STEP_MM
        for direction in directions
    ]
    return pixels, np.array(sums)


def timed(work, runs: int) -> tuple[float, float, np.ndarray]:
    """Median wall time, median processor time over the cores, and the result."""
    result = work()
    walls, processors = [], []
    for _ in range(runs):
        begin, begin_processor = time.perf_counter(), time.process_time()
        result = work()
        walls.append(time.perf_counter() - begin)
        processors.append((time.process_time() - begin_processor) / CORES)
    return statistics.median(walls), statistics.median(processors), result


def forward_and_backward(values: torch.Tensor, ijk_to_ras: torch.Tensor, geometry: XrayGeometry) -> np.ndarray:
    pose = ijk_to_ras.clone().requires_grad_()
    image = torchprojection.project(values, pose, geometry)
    (image * image).sum().backward()
    return image.detach().numpy()


def by_peers(python: str, volume: Volume, geometry: XrayGeometry) -> tuple[dict, str]:
    """({peer: (wall time, processor time over the cores, image)}, what is said of those that were not found)."""
    with tempfile.TemporaryDirectory() as folder:
        case, found = Path(folder) / "case.npz", Path(folder) / "found.npz"
        np.savez(
            case,
            volume=volume.array,
            origin=volume.ijk_to_ras[:3, 3],
            source=geometry.source,
            centre=geometry.detector_centre,
            u=geometry.u,
            v=geometry.v,
            spacing=geometry.spacing_uv,
            shape=geometry.shape,
            runs=RUNS,
        )
        script = Path(__file__).with_name("_xray_peers.py")
        told = subprocess.run([python, script, case, found], stdout=subprocess.PIPE, text=True, check=True).stdout
        with np.load(found) as file:
            names = [name.removesuffix(" image") for name in file.files if name.endswith(" image")]
            times = {name: np.median(file[f"{name} seconds"], axis=0) / (1, CORES) for name in names}
            return {name: (*times[name], file[f"{name} image"]) for name in names}, told


def main() -> int:
    parser = argparse.ArgumentParser(description="X-rays of a CT: time and error of each engine.")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    # `run.py bench` hands all benchmarks the same arguments.
    arguments = parser.parse_known_args()[0]
    torch.set_num_threads(CORES)
    volume = ct()
    values, ijk_to_ras = torch.from_numpy(volume.array), torch.from_numpy(volume.ijk_to_ras)
    print(f"{CORES} cores, {SIZE}^3 voxels of 1 mm; engines installed: {', '.join(installed_engines())}")
    print(f"{'':34}{'pixels':>8}{'wall s':>10}{'CPU / cores s':>16}{'mean error':>12}{'goal s':>9}")
    met, missing = True, []
    for pixels in (256, 512):
        geometry = view(pixels)
        places, truth = march(volume, geometry)

        def report(name, seconds, processor, image, goal=np.inf, most=GOAL_ERROR, pixels=pixels, at=(places, truth)):
            error = np.abs(image[tuple(at[0])] - at[1]).mean() / at[1].mean()
            shared = f"{processor:.4f}" if np.isfinite(processor) else "-"
            told = f"{goal:.3f}" if np.isfinite(goal) else ""
            print(f"{name:34}{pixels:>8}{seconds:>10.4f}{shared:>16}{100 * error:>11.3f}%{told:>9}", flush=True)
            return np.fmin(seconds, processor) <= goal and error <= most

        for engine in installed_engines():
            projector = Projector(volume, engine)
            goal, runs = GOALS_S.get(engine, {}).get(pixels, np.inf), NUMBA_RUNS if engine == "numba" else RUNS
            met &= report(f"ours, {engine}", *timed(lambda: projector(geometry), runs), goal)
        backward = timed(lambda: forward_and_backward(values, ijk_to_ras, geometry), RUNS)
        met &= report("ours, torch, and back to the pose", *backward, GOALS_S["backward"].get(pixels, np.inf))
        peers, told = by_peers(arguments.peers, volume, geometry)
        for name, measured in peers.items():
            if not report(name, *measured, most=OTHER_VIEW):
                raise RuntimeError(f"{name} has projected another view than the others")
        missing += [f"at {pixels} pixels {line}" for line in told.splitlines()]
    print("\n".join(["peers not found, or not run:", *missing] if missing else ["all peers were found"]))
    print(f"goals, where nothing else runs: {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
