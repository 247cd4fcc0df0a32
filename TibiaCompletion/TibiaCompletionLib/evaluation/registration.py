"""Laying points on a surface, rigidly and robustly, from where they are."""

import numpy as np

from BoneReconstructionLib.frames import rotation_about, transform_points

STEPS = 40
LARGEST_TURN = 0.2  # radians in one step
STILL = 1e-4  # mm


def laid_on(points, surface, locator):
    """Rigid motion that lays points on a surface by point-to-plane steps.

    Points more than three robust standard deviations away do not count, so that a part may differ.

    Args:
        points: (n, 3) mm.
        surface: the surface, mm.
        locator: its `SurfaceLocator`.

    Returns:
        (4, 4) matrix to apply to the points.
    """
    corners = surface.vertices[surface.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    size = np.linalg.norm(np.ptp(points, axis=0))
    matrix = np.eye(4)
    for _ in range(STEPS):
        moved = transform_points(matrix, points)
        feet, distance, face = locator.closest(moved)
        kept = distance <= 3 * 1.4826 * np.median(distance) + 1e-9
        centre, plane = moved.mean(0), normals[face[kept]]
        rows = np.concatenate([np.cross(moved[kept] - centre, plane), plane], 1)
        gaps = (plane * (feet - moved)[kept]).sum(1)
        change = np.linalg.lstsq(rows / [size, size, size, 1, 1, 1], gaps, rcond=1e-3)[0] / [size, size, size, 1, 1, 1]
        angle = np.linalg.norm(change[:3])
        step = np.eye(4)
        if angle > 0:
            step[:3, :3] = rotation_about(change[:3] / angle, min(angle, LARGEST_TURN))
        step[:3, 3] = centre + change[3:] - step[:3, :3] @ centre
        matrix = step @ matrix
        if angle * size + np.linalg.norm(change[3:]) < STILL:
            break
    return matrix
