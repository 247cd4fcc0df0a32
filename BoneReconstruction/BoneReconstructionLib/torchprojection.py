"""Differentiable X-rays in torch: the forward and the inverse projector, with gradients to the volume and to its pose.

`project` integrates by Joseph's rule (IEEE TMI 1(3), 1982): one bilinear look-up in each slice of the volume across the
axis that the rays follow most. `beam_volume` and `from_beam_volume` are the projective spatial transformer and its
inverse (Van Houtte et al. 2022, eq. 1 to 3; ProST is by Gao et al., MICCAI 2020).

Poses are given as the volume's IJK-to-RAS: a motion of the volume is `motion @ ijk_to_ras`, and gradients reach the
motion through it.
"""

import torch
from torch.nn import functional

from BoneReconstructionLib.projection import slice_order, slicing_axis
from BoneReconstructionLib.xraygeometry import XrayGeometry

# Look-ups at a time: their positions and results stay in the cache.
_LOOKUPS = 2**20


def project(values: torch.Tensor, ijk_to_ras: torch.Tensor, geometry: XrayGeometry) -> torch.Tensor:
    """X-rays of a volume.

    Args:
        values: (K, J, I) or (C, K, J, I) of any device, for instance attenuation per mm, at least two voxels along
            each axis; zero is assumed beyond.
        ijk_to_ras: (4, 4) of the volume, float64 for exact positions.
        geometry: of the view.

    Returns:
        (rows, columns) or (C, rows, columns): the integrals along the rays, in the volume's unit times mm.

    Raises:
        InputError: the source lies within or beside the volume, so that rays run through it both ways.
    """
    axis = slicing_axis(values.shape[-3:], ijk_to_ras.detach().cpu().numpy(), geometry)
    order = slice_order(axis)
    xys = [2 - n for n in order[::-1]]
    device, double = values.device, torch.float64
    to_voxels = torch.linalg.inv(ijk_to_ras.to(device=device, dtype=double))
    from_source = _pixel_rays(geometry, device)
    source = torch.as_tensor(geometry.source, dtype=double, device=device)
    sx, sy, ss = (to_voxels[:3, :3] @ source + to_voxels[:3, 3])[xys]
    dx, dy, ds = (to_voxels[:3, :3][xys] @ from_source.reshape(3, -1)).reshape(from_source.shape)
    slopes = torch.stack([dx / ds, dy / ds], dim=-1)
    starts = torch.stack([sx, sy]) - slopes * ss
    channels = values.reshape(-1, *values.shape[-3:]).permute(order[0] + 1, 0, order[1] + 1, order[2] + 1)
    sums = _SliceSums.apply(channels, starts.to(values.dtype), slopes.to(values.dtype))
    lengths = torch.linalg.vector_norm(from_source, dim=0) / ds.abs()
    return (sums * lengths.to(values.dtype)).reshape(*values.shape[:-3], *geometry.shape)


def beam_volume(
    values: torch.Tensor, ijk_to_ras: torch.Tensor, geometry: XrayGeometry, depths: tuple[float, float], count: int
) -> torch.Tensor:
    """A volume sampled along the rays: the projective spatial transformer (eq. 1).

    Its sum over the samples times `beam_steps` is the projection (eq. 2).

    Args:
        values: (N, C, K, J, I).
        ijk_to_ras: (4, 4), or (N, 4, 4) for each its own.
        geometry: of the view.
        depths: of the first and the last sample, mm from the source along the detector's normal.
        count: samples along each ray, at least 2.

    Returns:
        (N, C, count, rows, columns); zero beyond the volume.
    """
    device, double = values.device, torch.float64
    to_voxels = torch.linalg.inv(ijk_to_ras.to(device=device, dtype=double).expand(len(values), 4, 4))
    source = torch.as_tensor(geometry.source, dtype=double, device=device)
    origin = to_voxels[:, :3, :3] @ source + to_voxels[:, :3, 3]
    from_source = _pixel_rays(geometry, device) / geometry.source_detector_mm
    direction = (to_voxels[:, :3, :3] @ from_source.reshape(3, -1)).reshape(-1, 3, *geometry.shape)
    depth = torch.linspace(*depths, count, dtype=double, device=device)
    voxels = origin[:, None, None, None] + depth[:, None, None, None] * direction.movedim(1, -1)[:, None]
    return functional.grid_sample(values, _grid(voxels, values), align_corners=True)


def beam_steps(geometry: XrayGeometry, depths: tuple[float, float], count: int) -> torch.Tensor:
    """(rows, columns) float32, mm along each ray from one sample of `beam_volume` to the next."""
    rays = _pixel_rays(geometry, torch.device("cpu"))
    step = (depths[1] - depths[0]) / (count - 1)
    return (torch.linalg.vector_norm(rays, dim=0) * (step / geometry.source_detector_mm)).float()


def from_beam_volume(
    beam: torch.Tensor,
    geometry: XrayGeometry,
    depths: tuple[float, float],
    shape_kji: tuple[int, int, int],
    ijk_to_ras: torch.Tensor,
) -> torch.Tensor:
    """What lies along the rays brought back into the space of a volume: inv-ProST (eq. 3).

    Args:
        beam: (N, C, samples, rows, columns), for instance of `beam_volume`, or features made in its space.
        geometry: of the view.
        depths: of the first and the last sample, as in `beam_volume`.
        shape_kji: of the volume to fill.
        ijk_to_ras: (4, 4) of that volume, or (N, 4, 4) for each its own.

    Returns:
        (N, C, K, J, I); zero outside the frustum and the range of depths.
    """
    device, double = beam.device, torch.float64
    matrix = torch.as_tensor(geometry.matrix, dtype=double, device=device)
    into_beam = matrix @ ijk_to_ras.to(device=device, dtype=double).expand(len(beam), 4, 4)
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=double, device=device) for n in shape_kji), indexing="ij")
    voxels = torch.stack([i, j, k, torch.ones_like(i)], dim=-1)
    column, row, depth = (voxels @ into_beam.mT[:, None, None]).unbind(-1)
    sample = (depth - depths[0]) * ((beam.shape[2] - 1) / (depths[1] - depths[0]))
    # What lies beside or behind the source is in no frustum, whatever its quotients say.
    ahead = depth > 1e-6
    place = torch.stack([column / depth.where(ahead, 1.0), row / depth.where(ahead, 1.0), sample], dim=-1)
    place = place.where(ahead[..., None], -2.0)
    return functional.grid_sample(beam, _grid(place, beam), align_corners=True)


def _pixel_rays(geometry, device):
    """(3, rows, columns) float64 vectors from the source to the pixels, RAS mm."""
    matrix = torch.as_tensor(geometry.pixel_to_ras, dtype=torch.float64, device=device)
    start = matrix[:3, 3] - torch.as_tensor(geometry.source, dtype=torch.float64, device=device)
    rows, columns = (torch.arange(n, dtype=torch.float64, device=device) for n in geometry.shape)
    return start[:, None, None] + matrix[:3, 0, None, None] * columns + matrix[:3, 1, None, None] * rows[:, None]


def _grid(places, values):
    """Positions (..., 3) in samples (i, j, k) of `values` as `grid_sample` wants them, in the type of `values`."""
    sizes = torch.tensor(values.shape[:-4:-1], dtype=places.dtype, device=places.device)
    return (places * (2 / (sizes - 1).clamp(min=1)) - 1).to(values.dtype)


class _SliceSums(torch.autograd.Function):
    """Sums over slices (S, C, Y, X) of what is found at starts + s * slopes, (rows, columns, 2) in x and y."""

    @staticmethod
    def forward(context, slices, starts, slopes):
        context.save_for_backward(slices, starts, slopes)
        sums = slices.new_zeros(slices.shape[1], *starts.shape[:2])
        for begin, end, grid in _chunks(slices, starts, slopes):
            sums += functional.grid_sample(slices[begin:end], grid, align_corners=True).sum(dim=0)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        slices, starts, slopes = context.saved_tensors
        needs_values, needs_rays = context.needs_input_grad[0], any(context.needs_input_grad[1:])
        to_slices = torch.empty_like(slices) if needs_values else None
        to_starts, to_slopes = torch.zeros_like(starts), torch.zeros_like(slopes)
        for begin, end, grid in _chunks(slices, starts, slopes):
            expanded = gradient.expand(end - begin, *gradient.shape)
            part, to_grid = torch.ops.aten.grid_sampler_2d_backward(
                expanded, slices[begin:end], grid, 0, 0, True, [needs_values, needs_rays]
            )
            if needs_values:
                to_slices[begin:end] = part
            if needs_rays:
                numbers = torch.arange(begin, end, dtype=grid.dtype, device=grid.device)
                to_starts += to_grid.sum(dim=0)
                to_slopes += torch.tensordot(numbers, to_grid, dims=1)
        if not needs_rays:
            return to_slices, None, None
        scale = _grid_scale(slices)
        return to_slices, to_starts * scale, to_slopes * scale


def _grid_scale(slices):
    sizes = torch.tensor(slices.shape[:-3:-1], dtype=slices.dtype, device=slices.device)
    return 2 / (sizes - 1).clamp(min=1)


def _chunks(slices, starts, slopes):
    """(first slice, end, grid) of as many slices at a time as `_LOOKUPS` allow."""
    scale = _grid_scale(slices)
    starts, slopes = starts * scale - 1, slopes * scale
    size = max(1, _LOOKUPS // starts[..., 0].numel())
    for begin in range(0, len(slices), size):
        end = min(begin + size, len(slices))
        numbers = torch.arange(begin, end, dtype=starts.dtype, device=starts.device)
        yield begin, end, torch.addcmul(starts, slopes, numbers[:, None, None, None])
