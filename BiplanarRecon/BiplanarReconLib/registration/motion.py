"""How the image of a bone changes with its pose, from two projections more than the image itself needs.

A turn of the bone about the X-ray source leaves every ray's integral as it is and moves it to another pixel. A motion
of the bone is such a turn, which brings its centre to where it is seen, a shift along the central ray through the centre,
which to first order enlarges the image, and a turn about an axis across that ray: these turns alone show the bone from
elsewhere, and only they are projected.
"""

import numpy as np
from scipy.ndimage import correlate1d

# First derivative over two pixels to each side, which hardly weakens the finest detail.
DIFFERENCE = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / 12


class ImageMotion:
    """The derivatives of a bone's image in one view by the six parameters of its pose.

    Args:
        geometry: `XrayGeometry` of the view.
    """

    def __init__(self, geometry):
        self._geometry = geometry
        rows, columns = geometry.shape
        row, column = np.mgrid[:rows, :columns]
        pixels = np.column_stack([column.ravel(), row.ravel()]).astype(float)
        rays = geometry.pixel_positions(pixels) - geometry.source
        self._pixels = pixels.reshape(rows, columns, 2).astype(np.float32)
        # Pixels per radian of a turn about the source, around each axis of the world.
        small = 1e-4
        turned = [geometry.project(geometry.source + rays + small * np.cross(axis, rays)) for axis in np.eye(3)]
        self._flows = [((one - pixels) / small).reshape(rows, columns, 2).astype(np.float32) for one in turned]

    def changes(self, image, projected, centre, radius_mm, step_mm):
        """Derivatives of an image of the bone.

        Args:
            image: (rows, columns) of the bone where it is.
            projected: function of a rotation vector (3,), radians in the world's axes, that returns the image of the
                bone turned so about its centre.
            centre: (3,) of the bone where it is, mm.
            radius_mm: what a turn is measured by.
            step_mm: over which differences are taken, at the radius.

        Returns:
            parts: (6, rows, columns) images.
            shares: (6, 6); row k holds the shares of the parts in the derivative by parameter k, which are turns about
                the world's axes times the radius, then shifts, all in mm.
        """
        ray = centre - self._geometry.source
        distance = np.linalg.norm(ray)
        ray = ray / distance
        across = np.linalg.svd(ray[None])[2][1:]
        slopes = np.stack([correlate1d(image, DIFFERENCE, axis=axis, mode="nearest") for axis in (1, 0)], -1)
        moved = [-(slopes * flow).sum(-1) for flow in self._flows]
        nearer = (slopes * (self._pixels - self._geometry.project(centre[None]).astype(np.float32))).sum(-1) / distance
        angle = step_mm / radius_mm
        turned = [(projected(angle * axis) - image) / angle for axis in across]
        turns, shifts = np.vstack([np.eye(3) / radius_mm, np.zeros((3, 3))]), np.vstack([np.zeros((3, 3)), np.eye(3)])
        about_source = np.cross(ray, shifts) / distance + np.outer(turns @ ray, ray)
        shares = np.column_stack([about_source, shifts @ ray, (turns - about_source) @ across.T])
        return np.stack([*moved, nearer, *turned]), shares
