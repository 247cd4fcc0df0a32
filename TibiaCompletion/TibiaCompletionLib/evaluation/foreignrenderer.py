"""A second CT renderer that no training ever imports: what a method scores here it does not owe to a shared renderer.

It differs where the plain renderer is simple: cortex and densities outside the training's ranges, a cortex that is
thicker in front, partial volumes by supersampling, muscle and fat, cancellous texture, another voxel size, a
left-handed grid, a blur that is wider along the table, noise with the spectrum of a real CT. The segmentation is
thresholded from that CT, with errors of a voxel and leaks.
"""

from functools import cached_property

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.volumes import bounding_box
from TibiaCompletionLib.evaluation.scans import Scan, long_bones, oblique_grid

SPACING_MM = (0.75, 0.75, 1.25)
# Two ranges each, below and above the training's; which of the two is drawn, too.
OUTSIDE_RANGES = {
    "shaft_cortex_mm": ((2.4, 3.2), (5.8, 6.8)),
    "end_cortex_mm": ((0.6, 0.8), (1.9, 2.4)),
    "cortical_hu": ((950.0, 1100.0), (1700.0, 1950.0)),
    "cancellous_hu": ((60.0, 100.0), (350.0, 450.0)),
    "marrow_hu": ((-120.0, -90.0), (40.0, 80.0)),
}
BLUR_MM = (0.6, 0.6, 1.0)
NOISE_HU = (35.0, 50.0)
MUSCLE_HU, FAT_HU = 60.0, -90.0
TEXTURE_MM, TEXTURE_HU = 2.0, 100.0  # coarser and stronger than the training's
SUPERSAMPLES = 2
# Between muscle and the brightest voxel around: halfway, where a blurred edge lies; one threshold for all would make
# the bone a millimetre too thick where its cortex is dense.
THRESHOLD, BRIGHTEST_OF_VOXELS, LOWEST_HU = 0.5, 7, 150.0
THRESHOLD_SMOOTHING = 0.5
# Where a smooth random field of unit deviation is beyond this, the mask is a voxel too large or too small.
PATCH_MM, PATCH_LEVEL = 5.0, 1.2
LEAKS, LEAK_MM = 3, (3.0, 5.0)

# Radial power spectrum of CT noise relative to its mean, measured in 8^3 blocks of soft tissue, curved background taken
# out, of the trunk CT in TotalSegmentator's test data (Wasserthal et al., Radiology: AI 5(5), 2023; Apache-2.0) by
# Testing/noise_spectrum.py. It ends at that CT's 3 mm voxels; from there it falls to nothing at 0.6
# cycles/mm, as a standard kernel does.
NOISE_CYCLES_PER_MM = (0.0, 0.053, 0.093, 0.131, 0.167, 0.207, 0.247, 0.289, 0.6)
NOISE_POWER = (0.94, 0.94, 1.03, 1.02, 1.02, 0.98, 0.95, 0.79, 0.0)
NOISE_TILE = 96


def foreign_scan(leg, seed, grid=None):
    """Scan a leg by the foreign renderer.

    Args:
        leg: the `Leg`.
        seed: integers, of grid, tissue, noise and the segmentation's errors.
        grid: ((K, J, I), (4, 4) ijk_to_ras); None for an oblique one around the tibia.

    Returns:
        Scan.
    """
    generator = np.random.default_rng([*seed, 2])
    shape, ijk_to_ras = oblique_grid(leg, np.array(SPACING_MM), generator, flipped="i") if grid is None else grid
    spacing = np.array(SPACING_MM) if grid is None else np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    tissue = {name: float(generator.uniform(*limits[generator.integers(2)])) for name, limits in OUTSIDE_RANGES.items()}
    noise_hu = generator.uniform(*NOISE_HU)
    sharp = _soft_tissue(shape, spacing, generator)
    texture = _Texture(generator)
    masks = {}
    for name, bone in long_bones(leg, shape, ijk_to_ras).items():
        masks[name] = voxelize(bone.surface, shape, ijk_to_ras)
        distance = bone.field.on_grid(shape, ijk_to_ras)
        if name == "tibia":
            to_tibia = distance
        place = np.nonzero(distance < np.linalg.norm(spacing) / 2)
        share, hu = _supersampled(bone, tissue, texture, np.stack(place[::-1], 1), ijk_to_ras)
        sharp[place] += share * (hu - sharp[place])

    def scanned(image):
        blurred = ndimage.gaussian_filter(image, (np.array(BLUR_MM) / spacing)[::-1], mode="nearest", truncate=3.0)
        return blurred + np.float32(noise_hu) * ct_noise(image.shape, spacing, np.random.default_rng([*seed, 3]))

    def segmented(mask, read_ct):
        return thresholded(mask, read_ct(), spacing, np.random.default_rng([*seed, 4]))

    tibia = masks.pop("tibia")
    return Scan(tibia, masks, to_tibia, sharp, MUSCLE_HU, scanned, segmented)


def ct_noise(shape_kji, spacing, generator):
    """Noise of unit standard deviation with the spectrum of a real CT, (K, J, I) float32, repeated every 96 voxels.

    Args:
        shape_kji: (K, J, I).
        spacing: (3,) mm along i, j, k.
        generator: numpy.random.Generator.
    """
    tile = np.fft.rfftn(generator.standard_normal((NOISE_TILE,) * 3))
    i, j, k = (np.fft.fftfreq(NOISE_TILE, step) for step in spacing)
    frequency = np.sqrt(k[:, None, None] ** 2 + j[:, None] ** 2 + i[: NOISE_TILE // 2 + 1] ** 2)
    tile *= np.sqrt(np.interp(frequency, NOISE_CYCLES_PER_MM, NOISE_POWER))
    tile = np.fft.irfftn(tile, (NOISE_TILE,) * 3, axes=(0, 1, 2)).astype(np.float32)
    tile /= tile.std()
    for axis, size in enumerate(shape_kji):
        tile = np.take(tile, np.arange(size) % NOISE_TILE, axis=axis)
    return tile


def thresholded(mask, ct, spacing, generator):
    """A segmentation as made with a local threshold and a fill: rough, here and there a voxel off, leaking.

    Args:
        mask: (K, J, I) bool, the true bone.
        ct: (K, J, I) HU.
        spacing: (3,) mm along i, j, k.
        generator: numpy.random.Generator.

    Returns:
        (K, J, I) bool.
    """
    lower, upper = bounding_box(mask)
    box = tuple(slice(max(low - 8, 0), high + 8) for low, high in zip(lower, upper, strict=True))
    true = mask[box].view(np.uint8)
    smooth = ndimage.gaussian_filter(ct[box].astype(np.float32), THRESHOLD_SMOOTHING, truncate=3.0)
    brightest = ndimage.maximum_filter(smooth, BRIGHTEST_OF_VOXELS)
    bright = (smooth > MUSCLE_HU + THRESHOLD * (brightest - MUSCLE_HU)) & (smooth > LOWEST_HU)
    inner, outer = ndimage.minimum_filter(true, 5) > 0, ndimage.maximum_filter(true, 5) > 0
    found = (inner | (bright & outer)).view(np.uint8)
    found = ndimage.minimum_filter(ndimage.maximum_filter(found, 3), 3)  # closes what noise has torn

    coarse = np.ceil(np.array(true.shape) * spacing[::-1] / 2.0).astype(int) + 1
    patches = ndimage.gaussian_filter(generator.standard_normal(coarse), PATCH_MM / 2.0)
    patches /= patches.std()
    patches = ndimage.zoom(patches, np.array(true.shape) / coarse, order=1, mode="nearest", grid_mode=True)
    found = np.where(patches > PATCH_LEVEL, ndimage.maximum_filter(found, 3), found)
    found = np.where(patches < -PATCH_LEVEL, ndimage.minimum_filter(found, 3), found) > 0

    rim = np.argwhere(outer & ~inner)
    k, j, i = (np.arange(size) for size in true.shape)
    for centre in rim[generator.integers(len(rim), size=LEAKS)]:
        away = [(axis - middle) * step for axis, middle, step in zip((k, j, i), centre, spacing[::-1], strict=True)]
        squared = away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2
        found |= squared < generator.uniform(*LEAK_MM) ** 2
    result = np.zeros_like(mask)
    result[box] = found
    return result


def _soft_tissue(shape, spacing, generator):
    """(K, J, I) float32: muscle with lobes of fat."""
    coarse = np.ceil(np.array(shape) * spacing[::-1] / 4.0).astype(int) + 1
    lobes = ndimage.gaussian_filter(generator.standard_normal(coarse).astype(np.float32), 2.0)
    lobes = np.clip(lobes / lobes.std() - 0.8, 0, 1)
    lobes = ndimage.zoom(lobes, np.array(shape) / coarse, order=1, mode="nearest", grid_mode=True)
    return (MUSCLE_HU + (FAT_HU - MUSCLE_HU) * lobes).astype(np.float32)


class _Texture:
    """A periodic random field of unit deviation in space, for the trabeculae."""

    SIZE, STEP_MM = 64, 0.6

    def __init__(self, generator):
        self._white = generator.standard_normal((self.SIZE,) * 3).astype(np.float32)

    @cached_property
    def _values(self):
        values = ndimage.gaussian_filter(self._white, TEXTURE_MM / self.STEP_MM / 2, mode="wrap")
        return values / values.std()

    def at(self, points):
        return ndimage.map_coordinates(self._values, points.T / self.STEP_MM, order=1, mode="grid-wrap")


def _supersampled(bone, tissue, texture, index, ijk_to_ras):
    """Share of bone (n,) and mean HU of that bone (n,) in voxels (n, 3), i j k, from samples inside each."""
    offsets = (np.arange(SUPERSAMPLES) + 0.5) / SUPERSAMPLES - 0.5
    filled, total = np.zeros((2, len(index)), dtype=np.float32)
    for offset in np.array(np.meshgrid(offsets, offsets, offsets)).reshape(3, -1).T:
        points = transform_points(ijk_to_ras, index + offset)
        distance = bone.field.at(points)
        inside = distance < 0
        filled += inside
        total[inside] += _bone_hu(bone, tissue, texture, points[inside], distance[inside])
    return filled / SUPERSAMPLES**3, total / np.maximum(filled, 1)


def _bone_hu(bone, tissue, texture, points, distance):
    height = bone.heights(points)
    shaft = np.interp(height, (0.0, 0.08, 0.3, 0.7, 0.92, 1.0), (0.0, 0.0, 0.9, 1.0, 0.0, 0.0))
    thickness = tissue["end_cortex_mm"] + (tissue["shaft_cortex_mm"] - tissue["end_cortex_mm"]) * shaft
    middle = bone.low + height[:, None] * bone.along / (bone.along @ bone.along)
    away = points - middle
    front = np.array([0.0, 1.0, 0.0]) - bone.along * bone.along[1] / (bone.along @ bone.along)
    cosine = away @ front / (np.linalg.norm(away, axis=1) * np.linalg.norm(front) + 1e-6)
    depth = np.clip(-distance / (thickness * (1 + 0.3 * cosine)) - 0.5, 0, 1)  # porous endosteum
    inside = tissue["cancellous_hu"] * (1 - shaft) + tissue["marrow_hu"] * shaft
    inside = inside + (1 - shaft) * TEXTURE_HU * texture.at(points)
    cortex = tissue["cortical_hu"] * (0.75 + 0.25 * shaft)
    return cortex + depth * (inside - cortex)
