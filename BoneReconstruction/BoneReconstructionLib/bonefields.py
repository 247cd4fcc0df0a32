"""A bone of the prior as fields on regular grids, in torch: warped by a person's weights without meshes or vtk.

The mean bone's signed distance and the displacement, linear in the prior's weights, are known on grids of the
standard frame. To render, the displacement is inverted by fixed-point iteration and the mean distance is looked up;
the person's own surface points come from the same displacement, so that picture and truth agree.
"""

from functools import cached_property

import numpy as np
import torch
from torch.nn import functional

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.shapeprior import Kernel
from BoneReconstructionLib.surfaces import Surface

FIELD_SPACING_MM = 5.0
DISTANCE_SPACING_MM = 1.5
COARSE = 3
EXACT_MM = 6.0
MARGIN_MM = 24.0
INVERSION_STEPS = 12
# The empirical modes are known on the bone; this smooth kernel carries them into the space around it.
# Weaker smoothing follows the modes closer, but overshoots between bone and air until the field folds.
EXTENSION = Kernel(1.0, (16.0, 16.0, 16.0))
EXTENSION_RIDGE = 0.01


class BoneField:
    """One bone's mean signed distance and displacement fields on regular grids of the standard frame."""

    def __init__(self, prior, device):
        self.prior, self.device = prior, device
        self.low = prior.mean.min(0) - MARGIN_MM
        self.high = prior.mean.max(0) + MARGIN_MM

    def _grid(self, spacing):
        """Points (K, J, I, 3) of a grid that covers the bone, and the upper corner that it really reaches."""
        counts = np.ceil((self.high - self.low) / spacing).astype(int) + 1
        axes = [low + spacing * np.arange(count) for low, count in zip(self.low, counts)]
        points = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], -1)
        return points, np.array([axis[-1] for axis in axes])

    def tensor(self, array):
        """An array as a float32 tensor on the field's device."""
        return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32, device=self.device)

    @cached_property
    def distance(self):
        """((1, 1, K, J, I) mean signed distance in mm, upper corner)."""
        locator = SurfaceLocator(Surface(self.prior.mean, self.prior.faces))
        points, upper = self._grid(COARSE * DISTANCE_SPACING_MM)
        coarse = self.tensor(locator.signed(points.reshape(-1, 3)).reshape(points.shape[:3]))
        shape = [COARSE * (size - 1) + 1 for size in coarse.shape]
        distance = functional.interpolate(coarse[None, None], shape, mode="trilinear", align_corners=True)
        near = (distance[0, 0].abs() < EXACT_MM).nonzero()  # where voxels can be partly bone or cortex
        exact = locator.signed(self.low + DISTANCE_SPACING_MM * near.flip(1).cpu().numpy())
        distance[0, 0, near[:, 0], near[:, 1], near[:, 2]] = self.tensor(exact)
        return distance, upper

    @cached_property
    def bases(self):
        """(modes (r, 3 K J I), kernels (K J I, q), grid shape, upper corner): displacements on the coarse grid, mm."""
        points, upper = self._grid(FIELD_SPACING_MM)
        flat = points.reshape(-1, 3)
        nodes = self.prior.kernel_nodes
        nearest = ((nodes[:, None] - self.prior.mean[None]) ** 2).sum(-1).argmin(1)
        known = self.prior.modes[:, nearest].transpose(1, 0, 2).reshape(len(nodes), -1)
        ridge = EXTENSION_RIDGE * np.eye(len(nodes))
        weights = np.linalg.solve(EXTENSION(nodes, nodes) + ridge, known)
        modes = (EXTENSION(flat, nodes) @ weights).reshape(len(flat), -1, 3).transpose(1, 2, 0)
        # In blocks that stay in the processor's cache.
        kernels = np.concatenate([self.prior.kernel_basis(block) for block in np.array_split(flat, 64)])
        return self.tensor(modes), self.tensor(kernels), points.shape[:3], upper

    def displacement(self, mode_weights, kernel_weights):
        """(1, 3, K, J, I) displacement of each point of the mean bone's space, mm."""
        modes, kernels, shape, _ = self.bases
        field = torch.tensordot(self.tensor(mode_weights), modes, 1) + (kernels @ self.tensor(kernel_weights)).T
        return field.reshape(1, 3, *shape)

    def look_up(self, field, upper, points):
        """Trilinear values (c, n) of a (1, c, K, J, I) field at (n, 3) standard points; the border outside."""
        slope = 2 / (upper - self.low)
        place = torch.addcmul(self.tensor(-1 - slope * self.low), points, self.tensor(slope))
        place = place[None, None, None]
        return functional.grid_sample(field, place, align_corners=True, padding_mode="border")[0, :, 0, 0]

    def inverse(self, displacement):
        """(1, 3, K, J, I) field E with p = q + E(q) the mean bone's point that the displacement takes to q."""
        points, upper = self._grid(FIELD_SPACING_MM)
        goal = self.tensor(points.reshape(-1, 3))
        source = goal
        for _ in range(INVERSION_STEPS):
            source = goal - self.look_up(displacement, upper, source).T
        return (source - goal).T.reshape(displacement.shape)

    def vertices(self, displacement):
        """(n, 3) array: the prior's vertices where the displacement takes them, mm at scale 1."""
        mean = self.tensor(self.prior.mean)
        return (mean + self.look_up(displacement, self.bases[3], mean).T).cpu().numpy().astype(float)

    def source(self, inverse, points):
        """The points (n, 3) of the mean bone's space that a displacement takes to `points`, by its `inverse`."""
        return points + self.look_up(inverse, self.bases[3], points).T

    def mean_distance(self, source):
        """Signed distance (n,) in mm to the mean bone at (n, 3) points of its space."""
        distance, upper = self.distance
        return self.look_up(distance, upper, source)[0]
