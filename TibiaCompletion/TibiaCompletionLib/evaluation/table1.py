"""`bonerecon evaluate table1`: table 1 of the masked tibia completion paper on people whom no training has seen.

Autoencoders reconstruct registered images and are compared with them, as in the paper. No mesh and no vtk is needed,
so that the table is made where the networks were trained; real bones are read and rendered on request.
"""

import csv
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch.nn import functional

from BoneReconstructionLib.imagemetrics import HU_WINDOW, SSIM_WINDOWS
from BoneReconstructionLib.jobs import Progress
from BoneReconstructionLib.modelzoo import MODELS_VARIABLE, list_models
from TibiaCompletionLib.autoencoders.inference import reconstructed
from TibiaCompletionLib.imagelosses import d_ssim
from TibiaCompletionLib.networkmodels import find_network, grid_of, load_network
from TibiaCompletionLib.precision import chosen_device
from TibiaCompletionLib.randommasks import random_blocks
from TibiaCompletionLib.registration.inference import DIRECT_RATE, DIRECT_STEPS, register
from TibiaCompletionLib.registration.network import affine_matrix, averaged, sample
from TibiaCompletionLib.registration.training import register_directly
from TibiaCompletionLib.trainingdata import SURFACE_LEVEL, left_out_seeds, virtual_images

PEOPLE = 56
NORMAL_95 = 1.96
FIGURES = (*(f"d_ssim_{window}" for window in SSIM_WINDOWS[::-1]), "psnr_db", "rmse", "rmsd_mm")
# In the units of the paper's table.
UNITS = {**{f"d_ssim_{window}": 100.0 for window in SSIM_WINDOWS}, "psnr_db": 1.0, "rmse": 100.0, "rmsd_mm": 1.0}
POINTS = 20_000
MASK_SEED = 7
ROW_TITLES = {
    "none": "w/o registration",
    "direct": "direct AGS (eq. 1)",
    "stn": "STN (eq. 2)",
    "masked": "mask-robust STN (eq. 4), input unmasked",
    "masked-input": "mask-robust STN (eq. 4), input masked",
}
COLUMN_TITLES = {
    "prototype": "P",
    "pca32": "PCA32",
    "pca16": "PCA16",
    "vae": "VAE",
    "vqvae": "VQ-VAE",
    "vae-whole": "VAE, whole bone",
    "vqvae-whole": "VQ-VAE, whole bone",
}
REGISTRATIONS = {
    "direct": "tibia-direct",
    "stn": "tibia-stn",
    "masked": "tibia-stn-masked",
    "masked-input": "tibia-stn-masked",
}
# The paper's table 1, means; None where it has no figure. It has one block for the mask-robust STN, whose caption says
# masked and whose text says not masked.
PAPER = {
    ("none", "pca32"): (1.66, 1.66, 1.67, 1.71, 32.0, 2.5, 1.6),
    ("none", "pca16"): (1.70, 1.70, 1.69, 1.70, 31.5, 2.7, 1.6),
    ("none", "vae"): (0.72, 0.72, 0.73, 0.77, 33.1, 2.3, 0.74),
    ("direct", "prototype"): (0.145, 0.146, 0.15, 0.26, 43.8, 0.7, 0.74),
    ("direct", "pca32"): (1.14, 1.13, 1.05, 0.82, 28.3, 3.9, 2.0),
    ("direct", "pca16"): (1.63, 1.63, 1.64, 1.68, 32.3, 2.4, 1.6),
    ("direct", "vae"): (1.68, 1.68, 1.67, 1.68, 31.8, 2.6, 1.6),
    ("direct", "vqvae"): (1.157, 1.16, 1.17, 1.25, 40.2, 1.00, 0.569),
    ("stn", "prototype"): (0.11, 0.11, 0.12, 0.17, 45.8, 0.52, 0.384),
    ("stn", "pca32"): (0.363, 0.36, 0.35, 0.30, 35.7, 1.8, 0.8),
    ("stn", "pca16"): (0.26, 0.26, 0.26, 0.26, 39.5, 1.1, 0.7),
    ("stn", "vae"): (0.27, 0.27, 0.27, 0.27, 38.9, 1.2, 0.7),
    ("stn", "vqvae"): (0.12, 0.12, 0.12, 0.16, 42.3, 0.8, 0.53),
    ("masked", "pca32"): (0.42, 0.42, 0.41, 0.35, 36.3, 1.6, 0.67),
    ("masked", "pca16"): (0.44, 0.44, 0.42, 0.37, 36.2, 1.6, 0.67),
    ("masked", "vae"): (0.143, 0.143, 0.144, 0.159, 43.3, 0.70, 0.52),
    ("masked", "vqvae"): (0.30, 0.30, 0.31, 0.35, 44.0, 0.68, 0.60),
}
DIFFERENCES = (
    "What differs from the paper: virtual people instead of 249 CTs; voxels of {spacing} mm, so that only tibiae "
    f"longer than 446 mm are cropped; HU from {HU_WINDOW[0]:.0f} to {HU_WINDOW[1]:.0f} mapped to [0, 1], as the paper names no window; "
    "shorter trainings at higher learning rates. Intensity figures depend on window and background: compare rows and "
    "columns, not figures across tables."
)


@dataclass(frozen=True)
class Cell:
    """One image's figures in one cell of the table.

    Attributes:
        row: key of `ROW_TITLES`.
        column: key of `COLUMN_TITLES`.
        person: name.
        figures: {name of `FIGURES`: value}.
    """

    row: str
    column: str
    person: str
    figures: dict[str, float]


def cells(people, device, report=lambda fraction: None):
    """Every cell of the table for each person, of the methods that have been trained.

    Args:
        people: [(name, (1, 1, K, J, I) raw image on the device)].
        device: torch device.
        report: called with the fraction done.

    Yields:
        Cell.
    """
    for number, (name, raw) in enumerate(people):
        for row, target, _, images in rows_of(raw, number, device):
            surface = crossings(target, _grid())
            for column, image in images:
                yield Cell(row, column, name, image_figures(image, target, surface, _grid()))
        report((number + 1) / len(people))


def rows_of(raw, number, device):
    """One person's rows of the table, of the registrations that have been trained.

    Args:
        raw: (1, 1, K, J, I) tensor.
        number: of the person, for the random blocks.
        device: torch device.

    Yields:
        (row, registered image, what the autoencoders are given, `reconstructions` of it).
    """
    for row in ROW_TITLES:
        if _exists(REGISTRATIONS.get(row)):
            target, shown, visible = registered(row, raw.float(), number, device)
            yield row, target, shown, reconstructions(row, shown, visible, device)


def registered(row, raw, number, device):
    """(target, input, visible) of a row: the registered image, what the autoencoder is given, and what is visible.

    Args:
        row: key of `ROW_TITLES`.
        raw: (1, 1, K, J, I) tensor.
        number: of the person, for the random blocks.
        device: torch device.
    """
    grid = _grid()
    if row == "none":
        return raw, raw, None
    if row == "direct":
        coarse = grid_of(find_network("tibia-direct").card["network"]["grid"])
        network = _network("tibia-direct", device)
        prototype = functional.avg_pool3d(network.prototype.detach(), grid.shape_kji[0] // coarse.shape_kji[0])
        shown, between = averaged(raw, grid, coarse)
        parameters = register_directly(prototype, shown, between, coarse, DIRECT_STEPS, DIRECT_RATE)
        aligned = sample(raw, affine_matrix(parameters), grid)
        return aligned, aligned, None
    model_id = "tibia-stn" if row == "stn" else "tibia-stn-masked"
    locnet = _network(model_id, device)
    locnet = locnet.locnet if row == "stn" else locnet
    locnet_grid = grid_of(find_network(model_id).card["network"]["grid"])
    if row != "masked-input":
        aligned, _ = register(locnet, raw, grid, locnet_grid)
        return aligned, aligned, None
    visible = ~random_blocks(grid, 1, torch.Generator(device).manual_seed(MASK_SEED + number))
    shown, matrix = register(locnet, raw * visible, grid, locnet_grid)
    matrix = matrix.float()
    return sample(raw, matrix, grid), shown, sample(visible.float(), matrix, grid) > 0.5


def reconstructions(row, shown, visible, device):
    """Yields (column, image) of a row that has such a method."""
    masked = row.startswith("masked")
    if row in ("direct", "stn"):
        yield "prototype", _network(f"tibia-{row}", device).prototype.detach()
    pca_id = f"tibia-pca-{'stn' if masked else row}"
    if _exists(pca_id):
        for rank in (32, 16):
            components = _network(pca_id, device).truncated(rank)
            yield f"pca{rank}", components.reconstructed(shown, visible).clamp(0, 1)
    names = {"": "masked-visible", "-whole": "masked-whole"} if masked else {"": row}
    for ending, name in names.items():
        for kind in ("vae", "vqvae"):
            if _exists(f"tibia-{kind}-{name}"):
                yield kind + ending, reconstructed(_network(f"tibia-{kind}-{name}", device), shown)


def image_figures(image, target, surface, grid):
    """{name of `FIGURES`: value} of an image (1, 1, K, J, I) against the one that it should be, and its `crossings`."""
    error = float(((image - target) ** 2).mean())
    figures = {f"d_ssim_{window}": float(d_ssim(image, target, window)) for window in SSIM_WINDOWS}
    figures["psnr_db"] = float(-10 * np.log10(max(error, 1e-12)))
    figures["rmse"] = error**0.5
    figures["rmsd_mm"] = surface_rmsd(crossings(image, grid), surface, max(grid.spacing_ijk))
    return figures


def surface_rmsd(a, b, reach):
    """Root mean square distance of two images' iso-surfaces, both ways, mm; NaN where one has none.

    The points are the vertices that marching cubes would make. Each is compared with the plane through the nearest
    point of the other surface; far aside of that point, with the point itself.

    Args:
        a, b: from `crossings`.
        reach: how far aside of a point its plane counts, mm.
    """
    if not len(a[0]) or not len(b[0]):
        return float("nan")
    squared = []
    for (points, _), (others, normals) in ((a, b), (b, a)):
        points = points[:: max(1, len(points) // POINTS)]
        _, nearest = cKDTree(others).query(points)
        apart = points - others[nearest]
        off_plane = (apart * normals[nearest]).sum(1)
        aside = (apart**2).sum(1) - off_plane**2
        squared.append(off_plane**2 + np.where(aside > reach**2, aside, 0))
    return float(np.sqrt(np.concatenate(squared).mean()))


def crossings(image, grid, level=SURFACE_LEVEL):
    """Where an image crosses a level between neighbouring voxels.

    Args:
        image: (1, 1, K, J, I) tensor.
        grid: `StandardGrid`.
        level: of the surface.

    Returns:
        ((n, 3) x, y, z in mm, (n, 3) unit normals).
    """
    image, spacing = image[0, 0].float().cpu().numpy(), np.array(grid.spacing_ijk[::-1])
    slopes = np.stack(np.gradient(image, *spacing), -1)
    points, normals = [], []
    for axis in range(3):
        below = np.moveaxis(image, axis, 0)
        index = np.argwhere((below[:-1] > level) != (below[1:] > level))
        index[:, : axis + 1] = np.roll(index[:, : axis + 1], -1, axis=1)
        after = index.copy()
        after[:, axis] += 1
        first, second = image[tuple(index.T)], image[tuple(after.T)]
        share = ((level - first) / (second - first))[:, None]
        points.append((index + share * (after - index)) * spacing)
        normals.append((1 - share) * slopes[tuple(index.T)] + share * slopes[tuple(after.T)])
    points, normals = np.concatenate(points)[:, ::-1], np.concatenate(normals)[:, ::-1]
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def table(found):
    """The table as text: means with 95 % intervals over people, the paper's figures below each."""
    lines = ["D-SSIM x 10^-2 with windows 15, 11, 7, 3; PSNR dB; RMSE x 10^-2; RMSD mm. In brackets: the paper's."]
    for row, row_title in ROW_TITLES.items():
        lines.append(row_title)
        for column, title in COLUMN_TITLES.items():
            chosen = [cell.figures for cell in found if (cell.row, cell.column) == (row, column)]
            if not chosen and column.endswith("-whole"):
                continue
            ours = [_mean_text([one[name] * UNITS[name] for one in chosen]) for name in FIGURES]
            paper = PAPER.get((row, column), (None,) * len(FIGURES))
            theirs = ["N/A" if value is None else f"{value:g}" for value in paper]
            parts = [f"{value} [{other}]".ljust(22) for value, other in zip(ours, theirs, strict=True)]
            lines.append(f"  {title:18} {' '.join(parts)}".rstrip())
    return "\n".join(lines)


def differences():
    """Sentences about what differs from the paper."""
    return DIFFERENCES.format(spacing=" x ".join(f"{one:g}" for one in _grid().spacing_ijk))


def _mean_text(values):
    values = [value for value in values if np.isfinite(value)]  # an image without bone has no surface
    if not values:
        return "N/A"
    if len(values) < 10:  # too few for an interval
        return f"{np.mean(values):.3g}"
    return f"{np.mean(values):.3g} ± {NORMAL_95 * np.std(values, ddof=1) / np.sqrt(len(values)):.2g}"


@cache
def _exists(model_id):
    """Whether a model is there; a training may have been cut short. No model at all: None."""
    return model_id is None or any(model.id == model_id for model in list_models())


@cache
def _network(model_id, device):
    return load_network(find_network(model_id), device)


@cache
def _grid():
    """The grid of the images, on which the STN's prototype is."""
    return grid_of(find_network("tibia-stn").card["network"]["prototype_grid"])


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate table1`."""
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="models folder that `bonerecon train tibia` has made"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="OUT.csv", help="one row for each cell and person"
    )
    parser.add_argument("--people", type=int, default=PEOPLE, metavar="N", help=f"virtual people (default: {PEOPLE})")
    parser.add_argument("--bones", metavar="FOLDER", help="real bones, tibia/<subject>_<L|R>.ply, instead of them")
    parser.add_argument(
        "--pictures", type=Path, metavar="OUT.png", help="also picture the first person's cells, as the paper's table 2"
    )
    parser.add_argument("--device", default="auto", help="torch device (default: a GPU where there is one)")


def run(arguments):
    """Run `bonerecon evaluate table1`."""
    if arguments.models is not None:
        os.environ[MODELS_VARIABLE] = str(arguments.models)
    if arguments.pictures is not None:  # a missing package is told before the work, not after it
        from TibiaCompletionLib.evaluation.table1pictures import contact_sheet
    device = chosen_device(arguments.device)
    progress = Progress({"people": 1, "methods": 8})
    if arguments.bones is None:
        people = virtual_people(arguments.people, device, lambda fraction: progress.report("people", fraction))
    else:
        people = real_people(arguments.bones, device, lambda fraction: progress.report("people", fraction))
    with torch.no_grad():
        found = list(cells(people, device, lambda fraction: progress.report("methods", fraction)))
    write_cells(arguments.output, found)
    if arguments.bones is None:
        print(table(found))
    else:  # too few for a mean: case by case
        for name, _ in people:
            print(f"{name}\n{table([cell for cell in found if cell.person == name])}\n")
    print(differences())
    if arguments.pictures is not None:
        arguments.pictures.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(arguments.pictures, pictured(people[0][1], device), list(COLUMN_TITLES.values()), _grid())


@torch.no_grad()
def pictured(raw, device):
    """What `table1pictures.contact_sheet` shows of the first person, whose raw image is given."""

    def array(image):
        return image[0, 0].float().cpu().numpy()

    return [
        (ROW_TITLES[row], array(target), array(shown), {COLUMN_TITLES[name]: array(image) for name, image in images})
        for row, target, shown, images in rows_of(raw, 0, device)
    ]


def virtual_people(count, device, report):
    """[(name, raw image)] of left-out virtual people."""
    seeds = left_out_seeds(count)
    images = virtual_images(seeds, _grid(), device, report)
    return [(str(seed), image[None]) for seed, image in zip(seeds, images, strict=True)]


def real_people(folder, device, report):
    """[(name, raw image)] of real legs, rendered plainly; see `evaluation.scans`.

    Raises:
        InputError: the folder holds no tibia, or one cannot be read.
    """
    from BoneReconstructionLib.volumes import Volume
    from TibiaCompletionLib.evaluation.people import leg_names, read_leg
    from TibiaCompletionLib.evaluation.scans import trained_scan
    from TibiaCompletionLib.trainingcts import raw_image

    names = leg_names(folder)
    people = []
    for number, (subject, side) in enumerate(names):
        leg = read_leg(folder, subject, side)
        scan = trained_scan(leg, [number, 0])
        ct = Volume(scan.scanned(scan.sharp), scan.tibia.ijk_to_ras)
        image = raw_image(ct, scan.tibia, side, _grid())
        people.append((leg.name, torch.from_numpy(image)[None].to(device)))
        report((number + 1) / len(names))
    return people


def write_cells(path, found):
    """Write one row for each cell and person as CSV, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("row", "column", "person", *FIGURES))
        for cell in found:
            rows.writerow((cell.row, cell.column, cell.person, *(f"{cell.figures[name]:.5g}" for name in FIGURES)))
    os.replace(temporary, path)
