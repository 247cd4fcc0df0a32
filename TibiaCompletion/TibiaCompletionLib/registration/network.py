"""The spatial transformer: an affine grid sampler and the LocNet that predicts its parameters.

A transform is a pull-back: its (4, 4) matrix, mm, takes points of the output grid to points of the input, so that the
sampler's output at p is the input at M p (the paper's A(x, theta) with T_theta^-1 = M).
"""

import math

import torch
from torch import nn
from torch.nn import functional

from TibiaCompletionLib.precision import half_on_gpu
from TibiaCompletionLib.standardgrid import CENTRE_MM, StandardGrid

# Section 2.3 of the masked tibia completion paper; one parameter counts one of these.
ANGLE_RANGE = math.radians(15)
TRANSLATION_RANGE_MM = 25.0
SCALE_RANGE = 1.1
# Angles about x, y, z; translation; logarithms of the scales along x, y, z; shears xy, xz, yz.
PARAMETERS = 12
UNITS = (*[ANGLE_RANGE] * 3, *[TRANSLATION_RANGE_MM] * 3, *[math.log(SCALE_RANGE)] * 3, *[math.log(SCALE_RANGE)] * 3)
GAIN = 10.0
GROUPS = 4
HIDDEN_UNITS = 128


def affine_matrix(parameters):
    """Matrices of affine parameters, turned, scaled and sheared about the standard grid's centre.

    Args:
        parameters: (N, 12) tensor in units of `UNITS`: Euler angles (extrinsic x, y, z), translation, log-scales,
            shears. Zero is the identity.

    Returns:
        (N, 4, 4) tensor, mm.
    """
    angles, translation, log_scale, shear = (parameters * parameters.new_tensor(UNITS)).split(3, 1)
    one, zero = torch.ones_like(angles[:, 0]), torch.zeros_like(angles[:, 0])
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(1), angles.sin().unbind(1)
    about_x = _rows([one, zero, zero], [zero, cx, -sx], [zero, sx, cx])
    about_y = _rows([cy, zero, sy], [zero, one, zero], [-sy, zero, cy])
    about_z = _rows([cz, -sz, zero], [sz, cz, zero], [zero, zero, one])
    xy, xz, yz = shear.unbind(1)
    sheared = _rows([one, xy, xz], [zero, one, yz], [zero, zero, one])
    linear = about_z @ about_y @ about_x @ torch.diag_embed(log_scale.exp()) @ sheared
    centre = parameters.new_tensor(CENTRE_MM)
    shift = translation + centre - linear @ centre
    last = _rows([zero, zero, zero, one])
    return torch.cat([torch.cat([linear, shift[:, :, None]], 2), last], 1)


def random_similarities(count, generator, share=1.0):
    """Parameters of random similarities (N, 12), uniform within the paper's ranges.

    Args:
        count: how many.
        generator: torch.Generator; its device is that of the parameters.
        share: of the ranges; a number, or (N, 1) tensor.
    """
    drawn = 2 * torch.rand((count, 7), generator=generator, device=generator.device) - 1
    # Uniform in the scale, as in the paper, not in its logarithm.
    log_scale = torch.log1p((SCALE_RANGE - 1) * share * drawn[:, 6:]) / math.log(SCALE_RANGE)
    return torch.cat([share * drawn[:, :6], log_scale.expand(-1, 3), torch.zeros_like(drawn[:, :3])], 1)


def sample(images, matrix, grid, output_grid=None):
    """The affine grid sampler: trilinear, zero outside, differentiable in images and matrix.

    Args:
        images: (N, C, K, J, I) tensor on `grid`.
        matrix: (N, 4, 4) tensor that takes points of the output grid to points of the input, mm.
        grid: `StandardGrid` of the input.
        output_grid: `StandardGrid` of the output; the input's when None.

    Returns:
        (N, C, K, J, I) tensor on the output grid, of the matrix's type.
    """
    output_grid = output_grid or grid
    centre = matrix.new_tensor(CENTRE_MM)
    inside, outside = (matrix.new_tensor(one.half_extent_ijk.tolist()) for one in (grid, output_grid))
    linear = matrix[:, :3, :3]
    # affine_grid counts from -1 to 1 between the outermost voxel centres.
    shift = (linear @ centre + matrix[:, :3, 3] - centre) / inside
    theta = torch.cat([linear * outside / inside[:, None], shift[:, :, None]], 2)
    size = (len(images), images.shape[1], *output_grid.shape_kji)
    # Half precision would put the places off by a tenth of a voxel.
    places = functional.affine_grid(theta, size, align_corners=True)
    return functional.grid_sample(images.to(places.dtype), places, align_corners=True)


def averaged(images, grid, coarse):
    """Images averaged over the voxels of a coarser grid, at twice as many places along each axis.

    What is resampled from there on the coarse grid, moved or not, is neither aliased nor blurred once more: so the
    LocNets see images, while they are trained and afterwards.

    Args:
        images: (N, C, K, J, I) tensor on `grid`.
        grid: `StandardGrid`.
        coarse: the same box with voxels an even number of times as wide along every axis, or the very same grid.

    Returns:
        (images, their `StandardGrid`).
    """
    if grid == coarse:
        return images, grid
    half = [count // other // 2 for count, other in zip(grid.shape_kji, coarse.shape_kji, strict=True)]
    shape = tuple(2 * count - 1 for count in coarse.shape_kji)
    spacing = tuple(width / 2 for width in coarse.spacing_ijk)
    images = functional.avg_pool3d(images, half)
    for axis in (2, 3, 4):  # several times faster than pooling at every place
        last = images.shape[axis] - 1
        images = (images.narrow(axis, 0, last) + images.narrow(axis, 1, last)) / 2
    return images, StandardGrid(shape, spacing)


class LocNet(nn.Module):
    """Localisation network: affine parameters out of an image, by 3D convolutions.

    Args:
        grid: `StandardGrid` of the images; which may be coarser than what is registered.
        widths: channels after each halving, multiples of 4.
        repeated: how many of the last widths are followed by one more convolution.
    """

    def __init__(self, grid, widths, repeated=0):
        super().__init__()
        layers, before = [], 1
        for number, width in enumerate(widths):
            layers += [nn.Conv3d(before, width, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
            if number >= len(widths) - repeated:
                layers += [nn.Conv3d(width, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
            before = width
        self.features = nn.Sequential(*layers)
        cells = math.prod(math.ceil(count / 2 ** len(widths)) for count in grid.shape_kji)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(before * cells, HIDDEN_UNITS), nn.SiLU(), nn.Linear(HIDDEN_UNITS, PARAMETERS)
        )
        # Starts at the identity.
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, images):
        """Parameters (N, 12) of images (N, 1, K, J, I) with values in [0, 1]."""
        with half_on_gpu(images.device):
            features = self.features(images)
        return self.head(features.float())


class PrototypeRegistration(nn.Module):
    """A LocNet and the prototype that it is trained with.

    Args:
        locnet: `LocNet`.
        prototype: (1, 1, K, J, I) tensor to start from.
    """

    def __init__(self, locnet, prototype):
        super().__init__()
        self.locnet = locnet
        self.prototype = nn.Parameter(prototype.clone().float())


class DirectRegistration(nn.Module):
    """A prototype and free affine parameters for each image, the paper's baseline without a network.

    An image's parameters are seldom in a batch: what is learned is a `GAIN`th of them, so that they move that much
    faster than the prototype's voxels.

    Args:
        count: number of images.
        prototype: (1, 1, K, J, I) tensor to start from.
    """

    def __init__(self, count, prototype):
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(count, PARAMETERS, device=prototype.device))
        self.prototype = nn.Parameter(prototype.clone().float())

    @property
    def parameters_of_images(self):
        """(N, 12) affine parameters of all images."""
        return GAIN * self.shares


def _rows(*rows):
    """(N, r, c) tensor of r rows, each a list of c (N,) tensors."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
