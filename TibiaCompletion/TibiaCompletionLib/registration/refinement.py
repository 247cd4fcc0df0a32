"""A registration refined on what is visible: the prototype's occupancy laid on the bone's by Gauss-Newton steps.

Beside the paper's recipe: its direct registration (equation 1), started where the LocNet has found the bone, on the
voxels alone that the mask does not hide.
"""

from itertools import product

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from BoneReconstructionLib.frames import similarity_from_points, transform_points
from TibiaCompletionLib.registration.network import averaged
from TibiaCompletionLib.standardgrid import CENTRE_MM, STANDARD_GRID, StandardGrid

GRID = STANDARD_GRID.coarser(2)
# Coarse voxels see the bone from further away, fine ones see it better: (what is averaged, steps).
LEVELS = (
    (StandardGrid((64, 16, 16), (8.0, 8.0, 7.0)), 10),
    (StandardGrid((64, 32, 32), (4.0, 4.0, 7.0)), 6),
    (GRID, 6),
)
# Voxels within which the occupancy changes by less than this per mm say nothing about where the bone is.
LEAST_SLOPE = 0.01
# Standard deviation of the logarithm of a tibia's size relative to the starting one; a short piece does not tell it.
SIZE_SD = 0.1
# Of an occupancy; neighbouring voxels err alike.
NOISE = 3.0


def refined(matrix, prototype, visible, hidden):
    """Improve a registration on the visible voxels.

    Args:
        matrix: (4, 4) affine that takes points of the prototype to those of the case's images, mm; of a LocNet's answer
            the nearest similarity is taken, because its shears and uneven scales are errors.
        prototype: (1, 1, K, J, I) occupancy of the prototype, 0 to 1, on `GRID`.
        visible: (1, 1, K, J, I) occupancy of the visible bone on `GRID`.
        hidden: (1, 1, K, J, I) share of each voxel that is hidden.

    Returns:
        (4, 4) float64 array, a similarity.
    """
    corners = CENTRE_MM + GRID.half_extent_ijk * np.array(list(product((-1, 1), repeat=3)))
    matrix = similarity_from_points(corners, transform_points(np.asarray(matrix, dtype=float), corners))
    start = np.log(np.cbrt(np.linalg.det(matrix[:3, :3])))
    images = torch.cat([prototype, visible, hidden], 1)
    for coarse, steps in LEVELS:
        shown, grid = averaged(images, GRID, coarse)
        points, values, slopes = _edges(shown[0, 0].numpy(), grid)
        arm = points - CENTRE_MM
        jacobian = np.column_stack([slopes, np.cross(arm, slopes), (arm * slopes).sum(1)])
        for _ in range(steps):
            found, unseen = _looked_up(shown[:, 1:], matrix, points, grid)
            weight = (1 - unseen) / NOISE**2
            normal = (jacobian * weight[:, None]).T @ jacobian
            right = jacobian.T @ (weight * (found - values))
            normal[6, 6] += SIZE_SD**-2
            right[6] += (np.log(np.cbrt(np.linalg.det(matrix[:3, :3]))) - start) * SIZE_SD**-2
            change = np.linalg.solve(normal + 1e-9 * np.trace(normal) * np.eye(7), right)
            # The step moves the prototype's values; the points are moved the other way.
            matrix = matrix @ np.linalg.inv(_similarity(change))
    return matrix


def _edges(image, grid):
    """((n, 3) places, mm, (n,) values, (n, 3) slopes per mm) of the voxels at a prototype's surface."""
    slopes = np.stack(np.gradient(image, *grid.spacing_ijk[::-1]), -1)[..., ::-1]
    index = np.argwhere(np.linalg.norm(slopes, axis=-1) > LEAST_SLOPE)
    place = index[:, ::-1] * grid.spacing_ijk + grid.ijk_to_standard[:3, 3]
    at = tuple(index.T)
    return place, image[at].astype(float), slopes[at].astype(float)


def _looked_up(images, matrix, points, grid):
    """(2, n) values of (1, 2, K, J, I) images where a matrix takes (n, 3) points; what lies outside is hidden."""
    places = points @ matrix[:3, :3].T + matrix[:3, 3]
    share = (places - CENTRE_MM) / grid.half_extent_ijk
    at = torch.as_tensor(share, dtype=torch.float32)[None, None, None]
    found = functional.grid_sample(images, at, align_corners=True)[0, :, 0, 0].numpy().astype(float)
    found[1, (np.abs(share) > 1).any(1)] = 1.0
    return found


def _similarity(change):
    """(4, 4) similarity about the grid's centre: shift (mm), rotation vector, logarithm of the size."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.exp(change[6]) * Rotation.from_rotvec(change[3:6]).as_matrix()
    matrix[:3, 3] = CENTRE_MM + change[:3] - matrix[:3, :3] @ CENTRE_MM
    return matrix
