"""The standard bone frame and the one place where left and right are exchanged.

The standard frame is that of a right bone: +x patient right (lateral), +y anterior, +z proximal, millimetres, origin
at the prototype's centroid. A left bone is mirrored in x on the way in and back on the way out, always through
`MIRROR`, which is its own inverse.
"""

import numpy as np

MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
SIDES = ("left", "right")


def side_to_right(side):
    """Return the (4, 4) matrix that makes a right bone of a bone of `side`, and a bone of `side` of a right one.

    Args:
        side: "left" or "right".

    Raises:
        ValueError: for any other word.
    """
    if side not in SIDES:
        raise ValueError(f"The side is 'left' or 'right', not {side!r}.")
    return MIRROR.copy() if side == "left" else np.eye(4)


def transform_points(matrix, points):
    """Apply a (4, 4) affine matrix to (n, 3) points."""
    matrix = np.asarray(matrix, dtype=float)
    # Threaded BLAS is ten times slower on tall arrays than on wide ones.
    return (matrix[:3, :3] @ np.asarray(points).T).T + matrix[:3, 3]


def transform_each(matrices, points):
    """Apply (n, 4, 4) affine matrices to (n, 3) points, to each its own."""
    return np.einsum("nab,nb->na", matrices[:, :3, :3], points) + matrices[:, :3, 3]


def rotation_about(axis, angle):
    """Return the (3, 3) rotation by `angle` radians about the unit vector `axis` (right-hand rule)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def similarity_from_points(source, target, weights=None, scaled=True):
    """Best similarities (or rigid motions) that take corresponding points to each other, never mirror images.

    Umeyama, IEEE TPAMI 13(4), 1991.

    Args:
        source: (..., n, 3) points.
        target: (..., n, 3) points in correspondence.
        weights: (..., n) non-negative; equal when None.
        scaled: False keeps the scale at 1.

    Returns:
        (..., 4, 4) matrices target_from_source.
    """
    weights = np.ones(source.shape[:-1]) if weights is None else np.asarray(weights, dtype=float)
    weights = (weights / weights.sum(-1, keepdims=True))[..., None]
    source_centre, target_centre = (weights * source).sum(-2), (weights * target).sum(-2)
    arm = source - source_centre[..., None, :]
    covariance = (weights * arm).swapaxes(-1, -2) @ (target - target_centre[..., None, :])
    u, singular, vt = np.linalg.svd(covariance)
    signs = np.ones_like(singular)
    signs[..., 2] = np.sign(np.linalg.det(u @ vt))
    rotation = ((u * signs[..., None, :]) @ vt).swapaxes(-1, -2)
    scale = (singular * signs).sum(-1) / (weights * arm**2).sum((-1, -2)) if scaled else np.ones(singular.shape[:-1])
    matrix = np.zeros((*scale.shape, 4, 4))
    matrix[..., :3, :3] = scale[..., None, None] * rotation
    matrix[..., :3, 3] = target_centre - (matrix[..., :3, :3] @ source_centre[..., None])[..., 0]
    matrix[..., 3, 3] = 1.0
    return matrix
