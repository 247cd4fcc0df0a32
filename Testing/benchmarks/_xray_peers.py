"""X-rays by other programs, run by `xray_projection.py --peers` in an interpreter that has them.

    python _xray_peers.py INPUT.npz OUTPUT.npz

The input holds the volume [k, j, i] of 1 mm voxels, its origin, and a view; the output holds, of each peer that is
found, the seconds and processor seconds of its runs and its image. It needs numpy, and of ITK-RTK, DiffDRR (with torch) and plastimatch
(a program on the path) what there is.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# DiffDRR takes gigabytes and minutes for more pixels than these.
DIFFDRR_PIXELS = 256


def timed(work, runs):
    """((seconds, processor seconds) of each run after a first one, image)."""
    image, seconds = work(), []
    for _ in range(runs):
        began, busy = time.perf_counter(), time.process_time()
        image = work()
        seconds.append((time.perf_counter() - began, time.process_time() - busy))
    return seconds, image


def by_rtk(case):
    """ITK-RTK's Joseph projector."""
    import itk
    from itk import RTK as rtk

    image_type = itk.Image[itk.F, 3]
    volume = itk.image_from_array(case["volume"])
    volume.SetOrigin(case["origin"].tolist())
    rows, columns = case["shape"].tolist()
    across, down = case["spacing"].tolist()
    detector = rtk.ConstantImageSource[image_type].New()
    detector.SetSize([columns, rows, 1])
    detector.SetSpacing([across, down, 1.0])
    detector.SetOrigin([-(columns - 1) / 2 * across, -(rows - 1) / 2 * down, 0.0])
    detector.Update()
    views = rtk.ThreeDCircularProjectionGeometry.New()
    points = [itk.Point[itk.D, 3](case[name].tolist()) for name in ("source", "centre")]
    vectors = [itk.Vector[itk.D, 3](case[name].tolist()) for name in ("u", "v")]
    if not views.AddProjection(*points, *vectors):
        raise RuntimeError("ITK-RTK does not take the geometry")

    def work():
        projector = rtk.JosephForwardProjectionImageFilter[image_type, image_type].New()
        projector.SetInput(0, detector.GetOutput())
        projector.SetInput(1, volume)
        projector.SetGeometry(views)
        projector.Update()
        return itk.array_from_image(projector.GetOutput())[0]

    return timed(work, case["runs"])


def by_diffdrr(case, kind):
    """One of DiffDRR's renderers, without gradients."""
    import torch
    from diffdrr import renderers

    if max(case["shape"]) > DIFFDRR_PIXELS:
        raise ImportError("not tried at this size")
    density = torch.from_numpy(case["volume"].transpose(2, 1, 0).copy())
    row, column = np.indices(case["shape"])
    middle = (case["shape"][::-1] - 1) / 2
    offsets = (np.stack([column.ravel(), row.ravel()], axis=-1) - middle) * case["spacing"]
    ends = case["centre"] + offsets[:, :1] * case["u"] + offsets[:, 1:] * case["v"]
    # Rays that end behind the volume, wherever the detector is.
    ends = case["source"] + 1.2 * (ends - case["source"])
    lengths = torch.from_numpy(np.linalg.norm(ends - case["source"], axis=1)).float()[None, None]
    source, target = (
        torch.from_numpy(points - case["origin"]).float()[None] for points in (case["source"][None], ends)
    )
    renderer = getattr(renderers, kind)()

    def work():
        with torch.inference_mode():
            return renderer(density, source, target, lengths).reshape(*case["shape"]).numpy()

    return timed(work, case["runs"])


def by_plastimatch(case):
    """plastimatch's exact projector, by the time that it tells, which reading the volume is no part of."""
    if shutil.which("plastimatch") is None:
        raise ImportError("no program of this name on the path")
    rows, columns = case["shape"].tolist()
    across, down = case["spacing"].tolist()
    normal = np.cross(case["u"], case["v"])
    normal *= np.sign(normal @ (case["centre"] - case["source"]))
    lps = np.array([-1.0, -1.0, 1.0])
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        _write_mha(Path(folder) / "ct.mha", case["volume"], case["origin"])
        words = [
            "plastimatch", "drr", "-i", "exact", "-P", "none", "-t", "raw", "-o", "0 0 0",
            "--sad", str(np.linalg.norm(case["source"])),
            "--sid", str(normal @ (case["centre"] - case["source"])),
            "-r", f"{rows} {columns}", "-z", f"{rows * down} {columns * across}",
            "-n", " ".join(map(str, -normal * lps)), "--vup", " ".join(map(str, -case["v"] * lps)),
            "-O", str(Path(folder) / "drr"), str(Path(folder) / "ct.mha"),
        ]  # fmt: skip
        for _ in range(case["runs"]):
            told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            seconds.append((float(re.search(r"Total time: ([\d.eE+-]+)", told).group(1)), np.nan))
        # It counts in cm.
        image = 10 * np.fromfile(next(Path(folder).glob("drr*.raw")), np.float32).reshape(rows, columns)
    return seconds, image


def _write_mha(path, volume, origin):
    """A float volume of 1 mm in a MetaImage, whose frame is LPS: seen so, the array runs backwards along x and y."""
    lps = np.array([-1.0, -1.0, 1.0]) * origin
    sizes = volume.shape[::-1]
    lps[:2] -= np.array(sizes[:2]) - 1
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = {' '.join(map(str, lps))}\nElementSpacing = 1 1 1\n"
        f"DimSize = {' '.join(map(str, sizes))}\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(head.encode() + np.ascontiguousarray(volume[:, ::-1, ::-1], dtype="<f4").tobytes())


PEERS = {
    "ITK-RTK, Joseph": by_rtk,
    "plastimatch, exact": by_plastimatch,
    "DiffDRR, Siddon": lambda case: by_diffdrr(case, "Siddon"),
    "DiffDRR, Trilinear": lambda case: by_diffdrr(case, "Trilinear"),
}


def main():
    with np.load(sys.argv[1]) as file:
        case = {name: file[name] for name in file.files}
    case["runs"] = int(case["runs"])
    found = {}
    for name, work in PEERS.items():
        try:
            found[f"{name} seconds"], found[f"{name} image"] = work(case)
        except ImportError as error:
            print(f"{name}: {error}")
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
