"""X-rays of a 256x256x256 CT: this library's engines beside ITK-RTK, plastimatch and DiffDRR where they are installed.

    python Testing/benchmarks/xray_projection.py

Each time is the least of several runs, since other programs can only add to it; the volume is in memory, and in the
order that the view needs, before the clock starts (plastimatch tells its own time). "CPU / cores" is the processor time
shared between the cores: what the wall time comes to when nothing else runs. The error is the mean of the differences
from a march in steps of 0.25 mm with trilinear interpolation in double precision, over the mean of the march, on 4096
rays. plastimatch and Siddon take voxels for boxes, so that they answer another question, a little.
"""

import os
import re
import shutil
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
from BoneReconstructionLib.volumes import Volume, write_volume
from BoneReconstructionLib.xraygeometry import CArm, XrayGeometry, from_carm

SIZE = 256
STEP_MM = 0.25
RAYS = 4096
GOALS_S = {"numba": {256: 0.020, 512: 0.060}, "backward": {256: 0.27}}
GOAL_ERROR = 0.003
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
    """Least wall time, least processor time over the cores, and the result."""
    result = work()
    walls, processors = [], []
    for _ in range(runs):
        begin, begin_processor = time.perf_counter(), time.process_time()
        result = work()
        walls.append(time.perf_counter() - begin)
        processors.append((time.process_time() - begin_processor) / CORES)
    return min(walls), min(processors), result


def forward_and_backward(values: torch.Tensor, ijk_to_ras: torch.Tensor, geometry: XrayGeometry) -> np.ndarray:
    pose = ijk_to_ras.clone().requires_grad_()
    image = torchprojection.project(values, pose, geometry)
    (image * image).sum().backward()
    return image.detach().numpy()


def by_rtk(volume: Volume, geometry: XrayGeometry):
    """ITK-RTK's Joseph projector as a function without arguments; None if it is not installed."""
    try:
        import itk
        from itk import RTK as rtk
    except ImportError:
        return None
    image_type = itk.Image[itk.F, 3]
    image = itk.image_from_array(volume.array)
    image.SetOrigin(volume.ijk_to_ras[:3, 3].tolist())
    detector = rtk.ConstantImageSource[image_type].New()
    rows, columns = geometry.shape
    detector.SetSize([columns, rows, 1])
    detector.SetSpacing([*geometry.spacing_uv.tolist(), 1.0])
    offset = [-(columns - 1) / 2 * geometry.spacing_uv[0], -(rows - 1) / 2 * geometry.spacing_uv[1], 0.0]
    detector.SetOrigin([float(value) for value in offset])
    detector.Update()
    views = rtk.ThreeDCircularProjectionGeometry.New()
    points = [itk.Point[itk.D, 3](p.tolist()) for p in (geometry.source, geometry.detector_centre)]
    vectors = [itk.Vector[itk.D, 3](a.tolist()) for a in (geometry.u, geometry.v)]
    if not views.AddProjection(*points, *vectors):
        raise RuntimeError("ITK-RTK does not take the geometry")

    def work():
        projector = rtk.JosephForwardProjectionImageFilter[image_type, image_type].New()
        projector.SetInput(0, detector.GetOutput())
        projector.SetInput(1, image)
        projector.SetGeometry(views)
        projector.Update()
        return itk.array_from_image(projector.GetOutput())[0]

    return work


def by_plastimatch(volume: Volume, geometry: XrayGeometry, folder: Path) -> tuple[float, np.ndarray] | None:
    """plastimatch's exact projector: (seconds as it tells, image); None if it is not installed."""
    if shutil.which("plastimatch") is None:
        return None
    path = folder / "ct.mha"
    if not path.exists():
        write_volume(path, volume)
    rows, columns = geometry.shape
    height, width = rows * geometry.spacing_uv[1], columns * geometry.spacing_uv[0]
    lps = np.array([-1.0, -1.0, 1.0])
    words = [
        "plastimatch", "drr", "-i", "exact", "-P", "none", "-t", "raw", "-o", "0 0 0",
        "--sad", "1000", "--sid", "2000", "-r", f"{rows} {columns}", "-z", f"{height} {width}",
        "-n", " ".join(str(n) for n in -geometry.normal * lps), "--vup", " ".join(str(n) for n in -geometry.v * lps),
        "-O", str(folder / "drr"), str(path),
    ]  # fmt: skip
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    seconds = float(re.search(r"Total time: ([\d.eE+-]+)", output).group(1))
    image = np.fromfile(next(folder.glob("drr*.raw")), np.float32).reshape(rows, columns)
    return seconds, image


def by_diffdrr(volume: Volume, geometry: XrayGeometry, kind: str):
    """One of DiffDRR's renderers as a function without arguments; None if it is not installed."""
    try:
        from diffdrr import renderers
    except ImportError:
        return None
    density = torch.from_numpy(volume.array.transpose(2, 1, 0).copy())
    row, column = np.indices(geometry.shape)
    ends = geometry.pixel_positions(np.stack([column.ravel(), row.ravel()], axis=-1))
    ends = geometry.source + 1.2 * (ends - geometry.source)
    lengths = torch.from_numpy(np.linalg.norm(ends - geometry.source, axis=1)).float()[None, None]
    shift = 0.5 if kind == "Siddon" else 0.0
    source, target = (
        torch.from_numpy(points @ volume.ras_to_ijk[:3, :3].T + volume.ras_to_ijk[:3, 3] + shift).float()[None]
        for points in (geometry.source[None], ends)
    )
    options = {"voxel_shift": 0.5} if kind == "Siddon" else {}
    renderer = getattr(renderers, kind)(**options)

    def work():
        with torch.inference_mode():
            return renderer(density, source, target, lengths).reshape(geometry.shape).numpy()

    return work


def main() -> int:
    torch.set_num_threads(CORES)
    volume = ct()
    values, ijk_to_ras = torch.from_numpy(volume.array), torch.from_numpy(volume.ijk_to_ras)
    print(f"{CORES} cores, {SIZE}^3 voxels of 1 mm; engines installed: {', '.join(installed_engines())}")
    print(f"{'':34}{'pixels':>8}{'wall s':>10}{'CPU / cores s':>16}{'mean error':>12}{'goal s':>9}")
    met = True
    for pixels in (256, 512):
        geometry = view(pixels)
        places, truth = march(volume, geometry)

        def report(name, seconds, processor, image, goal=None, places=places, truth=truth, pixels=pixels):
            error = np.abs(image[tuple(places)] - truth).mean() / truth.mean() if image is not None else np.nan
            shared = f"{processor:.4f}" if processor is not None else "-"
            told = f"{goal:.3f}" if goal else ""
            print(f"{name:34}{pixels:>8}{seconds:>10.4f}{shared:>16}{100 * error:>11.3f}%{told:>9}", flush=True)
            return goal is None or (min(seconds, processor) <= goal and error <= GOAL_ERROR)

        for engine in installed_engines():
            projector = Projector(volume, engine)
            goal = GOALS_S.get(engine, {}).get(pixels)
            met &= report(f"ours, {engine}", *timed(lambda: projector(geometry), 15 if engine == "numba" else 5), goal)
        backward = timed(lambda: forward_and_backward(values, ijk_to_ras, geometry), 5)
        met &= report("ours, torch, and back to the pose", *backward, GOALS_S["backward"].get(pixels))
        rtk = by_rtk(volume, geometry)
        if rtk:
            report("ITK-RTK, Joseph", *timed(rtk, 5))
        with tempfile.TemporaryDirectory() as folder:
            runs = [by_plastimatch(volume, geometry, Path(folder)) for _ in range(3)]
        if all(runs):
            report("plastimatch, exact", min(seconds for seconds, _ in runs), None, runs[0][1])
        for kind in ("Siddon", "Trilinear"):
            # Gigabytes and minutes at 512.
            diffdrr = by_diffdrr(volume, geometry, kind) if pixels == 256 else None
            if diffdrr:
                report(f"DiffDRR, {kind}", *timed(diffdrr, 1))
    print(f"goals, where nothing else runs: {'met' if met else 'NOT met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
