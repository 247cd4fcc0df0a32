"""Random masks on the standard grid, made on the training device: what a coarse fracture mask may hide.

A mask is True where the bone is hidden. The papers' equations 4 and 5 use one letter for opposite things; here there
are only `hidden` and its complement, `visible`.
"""

import math

import torch

BLOCK_MM = (10.0, 20.0)
BLOCK_SHARE = 0.25
BAND_MM = (20.0, 70.0)
# Standard heights of the joints' surfaces, and how far the bones of adults reach beyond them.
PILON_MM, PLATEAU_MM, SPREAD_MM = -205.0, 155.0, 25.0
LARGEST_TILT = math.radians(50)
ROUGHNESS_MM = 6.0
WAVE_MM = (25.0, 60.0)
SHEETS = 3
SHEET_MM = (12.0, 30.0)
KINDS = ("blocks", "shaft", "plateau", "pilon", "fracture")


def random_blocks(grid, count, generator):
    """Cubes of one random size out of 10 to 20 mm that fill space, each hidden with probability `BLOCK_SHARE`.

    The paper draws m from a Bernoulli distribution over blocks of 10 to 20 voxels of 1 mm and does not say how many.

    Args:
        grid: `StandardGrid`.
        count: number of masks.
        generator: torch.Generator; its device is that of the masks.

    Returns:
        (count, 1, K, J, I) bool tensor.
    """
    masks = []
    for _ in range(count):
        size = float(_uniform(generator, *BLOCK_MM, 1))
        shift = _uniform(generator, 0.0, size, 3)
        axes = zip(_axes(grid, generator.device), shift, strict=True)
        places = [((axis + low) / size).floor().long() for axis, low in axes]
        shape = [int(place[-1]) + 1 for place in places]
        hidden = torch.rand(shape, generator=generator, device=generator.device) < BLOCK_SHARE
        x, y, z = places
        masks.append(hidden[x][:, y][:, :, z].permute(2, 1, 0))
    return torch.stack(masks)[:, None]


def random_bands(grid, count, kind, generator):
    """Bands across the bone, tilted a little: (count, 1, K, J, I) bool tensor.

    Args:
        grid: `StandardGrid`.
        count: number of masks.
        kind: "shaft", or "plateau" or "pilon" to hide all of that end.
        generator: torch.Generator.
    """
    masks = []
    for _ in range(count):
        height = _heights(grid, generator, LARGEST_TILT / 3)
        width = float(_uniform(generator, *BAND_MM, 1))
        if kind == "shaft":
            low = float(_uniform(generator, PILON_MM, PLATEAU_MM - width, 1))
            masks.append((height > low) & (height < low + width))
        else:
            end = float(_uniform(generator, -SPREAD_MM, SPREAD_MM, 1))
            masks.append(height > PLATEAU_MM + end - width if kind == "plateau" else height < PILON_MM + end + width)
    return torch.stack(masks)[:, None]


def random_fractures(grid, count, generator):
    """Coarse masks around one to three rough, oblique fracture surfaces that lie near each other.

    Returns:
        (count, 1, K, J, I) bool tensor.
    """
    masks = []
    for _ in range(count):
        place = float(_uniform(generator, PILON_MM, PLATEAU_MM, 1))
        hidden = torch.zeros(grid.shape_kji, dtype=torch.bool, device=generator.device)
        for _ in range(int(torch.randint(1, SHEETS + 1, (1,), generator=generator, device=generator.device))):
            height = _heights(grid, generator, LARGEST_TILT) + _waves(grid, generator)
            middle = place + float(_uniform(generator, -SPREAD_MM, SPREAD_MM, 1))
            hidden |= (height - middle).abs() < float(_uniform(generator, *SHEET_MM, 1)) / 2
        masks.append(hidden)
    return torch.stack(masks)[:, None]


def random_masks(grid, count, generator):
    """Masks of all `KINDS`, drawn with equal probability: (count, 1, K, J, I) bool tensor."""
    chosen = torch.randint(len(KINDS), (count,), generator=generator, device=generator.device).tolist()
    return torch.cat([_mask(grid, KINDS[number], generator) for number in chosen])


def _mask(grid, kind, generator):
    if kind == "blocks":
        return random_blocks(grid, 1, generator)
    if kind == "fracture":
        return random_fractures(grid, 1, generator)
    return random_bands(grid, 1, kind, generator)


def _uniform(generator, low, high, count):
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def _axes(grid, device):
    """Coordinates of the voxel centres along x, y, z from the grid's first voxel, mm."""
    return [
        spacing * torch.arange(count, device=device)
        for count, spacing in zip(grid.shape_kji[::-1], grid.spacing_ijk, strict=True)
    ]


def _standard_axes(grid, device):
    """(x (1, 1, I), y (1, J, 1), z (K, 1, 1)) in the standard frame, mm."""
    first = grid.ijk_to_standard[:3, 3].tolist()
    x, y, z = (axis + low for axis, low in zip(_axes(grid, device), first, strict=True))
    return x[None, None], y[None, :, None], z[:, None, None]


def _heights(grid, generator, largest_tilt):
    """(K, J, I) height above a plane through the long axis's origin that is tilted in a random direction, mm."""
    x, y, z = _standard_axes(grid, generator.device)
    slope = torch.tan(_uniform(generator, 0.0, largest_tilt, 1))
    direction = _uniform(generator, 0.0, 2 * math.pi, 1)
    return z + slope * (direction.cos() * x + direction.sin() * y)


def _waves(grid, generator):
    x, y, _ = _standard_axes(grid, generator.device)
    length, phase = _uniform(generator, *WAVE_MM, 2), _uniform(generator, 0.0, 2 * math.pi, 2)
    return (
        ROUGHNESS_MM * (2 * math.pi * x / length[0] + phase[0]).sin() * (2 * math.pi * y / length[1] + phase[1]).sin()
    )
