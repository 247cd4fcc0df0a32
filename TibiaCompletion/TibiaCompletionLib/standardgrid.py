"""The regular grid of the standard tibia frame on which the networks see a bone."""

from dataclasses import dataclass

import numpy as np

# Middle of the tallest tibiae in the standard frame, whose origin is the mean bone's centroid: the knee is heavier.
CENTRE_MM = (0.0, 0.0, -30.0)


@dataclass(frozen=True)
class StandardGrid:
    """Voxels along the axes of the standard frame, around `CENTRE_MM`.

    Attributes:
        shape_kji: number of voxels (K, J, I).
        spacing_ijk: mm.
    """

    shape_kji: tuple[int, int, int]
    spacing_ijk: tuple[float, float, float]

    @property
    def half_extent_ijk(self):
        """(3,) distance of the outermost voxel centres from the middle, mm."""
        return (np.array(self.shape_kji[::-1]) - 1) / 2 * self.spacing_ijk

    @property
    def ijk_to_standard(self):
        """(4, 4) from voxel indices (i, j, k, 1) to the standard frame, mm."""
        matrix = np.diag([*self.spacing_ijk, 1.0])
        matrix[:3, 3] = CENTRE_MM - self.half_extent_ijk
        return matrix

    def coarser(self, factor):
        """The same box with voxels `factor` times as wide.

        Args:
            factor: whole number that divides the shape.
        """
        return StandardGrid(
            tuple(count // factor for count in self.shape_kji),
            tuple(spacing * factor for spacing in self.spacing_ijk),
        )


# The paper's 128 x 128 x 256 voxels; at its 1 mm they would crop every adult tibia, so they are taller here.
STANDARD_GRID = StandardGrid((256, 128, 128), (1.0, 1.0, 1.75))
