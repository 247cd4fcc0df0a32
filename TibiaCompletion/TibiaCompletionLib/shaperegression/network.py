"""A network with the shape prior inside its decoder: masks in, pose and weights of the prior out.

It is beside the masked tibia completion paper's recipe, not in it: it sees masks of the visible tibia, of its
neighbours and of what is hidden instead of intensities, and can only answer with a bone that the prior knows.
"""

import math

import torch
from torch import nn

from BoneReconstructionLib.shapefitting import spread_over
from TibiaCompletionLib.precision import half_on_gpu
from TibiaCompletionLib.registration.network import GROUPS, affine_matrix

# Visible tibia, neighbouring bones, what is hidden.
CHANNELS = 3
POSE = 7
VERTICES = 1500
HIDDEN_UNITS = 256


class ShapeRegressor(nn.Module):
    """Pose and weights of a shape prior from masks.

    Args:
        grid: `StandardGrid` of the masks.
        widths: channels after each halving, multiples of 4.
        modes: number of the prior's modes r.
        kernels: rank q of its kernel basis.
    """

    def __init__(self, grid, widths, modes, kernels):
        super().__init__()
        self.modes, self.kernels = modes, kernels
        layers, before = [], CHANNELS
        for width in widths:
            layers += [nn.Conv3d(before, width, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
            layers += [nn.Conv3d(width, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.SiLU()]
            before = width
        self.features = nn.Sequential(*layers)
        cells = math.prod(math.ceil(count / 2 ** len(widths)) for count in grid.shape_kji)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * cells, HIDDEN_UNITS),
            nn.SiLU(),
            nn.Linear(HIDDEN_UNITS, POSE + modes + 3 * kernels),
        )
        # Starts at the mean bone where the grid was placed.
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, masks):
        """Predict from masks (N, 3, K, J, I) in [0, 1].

        Returns:
            (matrix (N, 4, 4) from the standard frame to the grid's place, mm, a similarity;
            mode weights (N, r); kernel weights (N, q, 3)), the weights in standard deviations.
        """
        with half_on_gpu(masks.device):
            features = self.features(masks)
        pose, modes, kernels = self.head(features.float()).split((POSE, self.modes, 3 * self.kernels), 1)
        parameters = torch.cat([pose[:, :6], pose[:, 6:].expand(-1, 3), torch.zeros_like(pose[:, :3])], 1)
        return affine_matrix(parameters), modes, kernels.view(-1, self.kernels, 3)


class PriorVertices:
    """Evenly chosen vertices of a `ShapePrior` as torch tensors.

    Args:
        prior: `ShapePrior`.
        device: torch device.
    """

    def __init__(self, prior, device):
        self.index = spread_over(len(prior.mean), VERTICES)
        arrays = prior.mean[self.index], prior.modes[:, self.index], prior.vertex_basis[self.index]
        self.mean, self.modes, self.basis = (torch.as_tensor(a, dtype=torch.float32, device=device) for a in arrays)

    def __call__(self, matrix, modes, kernels):
        """(N, V, 3) places of the vertices, mm; arguments as `ShapeRegressor` returns them."""
        shape = self.mean + torch.einsum("nr,rvc->nvc", modes, self.modes)
        shape = shape + torch.einsum("vq,nqc->nvc", self.basis, kernels)
        return shape @ matrix[:, :3, :3].transpose(1, 2) + matrix[:, None, :3, 3]
