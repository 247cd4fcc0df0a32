"""Rough surfaces that cut a bone: planes, spirals, wedges and bowls roughened by fractal noise.

A cut is called with (n, 3) points in the bone's frame (right bone, mm) and returns (n,) approximate signed distances in
mm, positive on the side that it takes off. Roughness is a height above the smooth cut, looked up at the foot of each
point, so that a cut never leaves islands.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

FIELD_SIZE = 64
FIELD_SPACING_MM = 1.5
LONGEST_WAVE_MM = 40.0
# Fracture surfaces of many brittle materials share this exponent (Bouchaud, J Phys Condens Matter 9:4319, 1997).
ROUGHNESS_EXPONENT = 0.8
# Close to its axis a spiral's slope has no bound.
SMALLEST_RADIUS_MM = 3.0


@dataclass(frozen=True, eq=False)
class NoiseField:
    """A periodic random field of zero mean and unit standard deviation.

    Attributes:
        values: (FIELD_SIZE, FIELD_SIZE, FIELD_SIZE), FIELD_SPACING_MM apart.
    """

    values: np.ndarray

    def __call__(self, points):
        """(n,) values at (n, 3) points in mm."""
        return map_coordinates(self.values, np.asarray(points).T / FIELD_SPACING_MM, order=1, mode="grid-wrap")


def noise_field(generator, exponent=ROUGHNESS_EXPONENT):
    """Draw a fractal field: power falls with the wave number to the power -(2 exponent + 3) below LONGEST_WAVE_MM."""
    white = np.fft.rfftn(generator.standard_normal((FIELD_SIZE,) * 3))
    full, half = np.fft.fftfreq(FIELD_SIZE, FIELD_SPACING_MM), np.fft.rfftfreq(FIELD_SIZE, FIELD_SPACING_MM)
    wave = np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2)
    amplitude = np.where(wave < 1 / LONGEST_WAVE_MM, 0.0, np.maximum(wave, 1e-9) ** -(exponent + 1.5))
    values = np.fft.irfftn(white * amplitude, (FIELD_SIZE,) * 3, axes=(0, 1, 2))
    return NoiseField(values / values.std())


@dataclass(frozen=True, eq=False)
class Plane:
    """A rough plane.

    Attributes:
        origin: (3,) a point of it, mm.
        normal: (3,) unit vector to the side that is taken off.
        roughness_mm: standard deviation of its height.
        noise: its relief.
    """

    origin: np.ndarray
    normal: np.ndarray
    roughness_mm: float
    noise: NoiseField

    def __call__(self, points):
        height = (points - self.origin) @ self.normal
        return height - self.roughness_mm * self.noise(points - height[:, None] * self.normal)


@dataclass(frozen=True, eq=False)
class Spiral:
    """A rough spiral staircase around an axis along z at the bone's border; takes off below.

    On a round bone that the axis touches the fracture line climbs evenly once around the bone and is closed by a
    straight line along the axis, as torsion breaks bones.

    Attributes:
        origin: (3,) middle of the fracture on the axis, mm.
        inward: (3,) horizontal unit vector from the axis to the bone.
        length_mm: from the lower to the upper end of the fracture.
        hand: 1 climbs counter-clockwise seen from above, -1 clockwise.
        roughness_mm: standard deviation of its height.
        noise: its relief.
    """

    origin: np.ndarray
    inward: np.ndarray
    length_mm: float
    hand: int
    roughness_mm: float
    noise: NoiseField

    def __call__(self, points):
        local = points - self.origin
        across, beside = local @ self.inward, local @ np.cross([0.0, 0.0, 1.0], self.inward)
        climb = self.length_mm / np.pi
        # Where the bone flares, above and below the fracture, it may reach behind the axis.
        turn = self.hand * np.clip(np.arctan2(beside, across), -np.pi / 2, np.pi / 2)
        below = climb * turn - local[:, 2]
        foot = np.column_stack([points[:, :2], points[:, 2] + below])
        below = below + self.roughness_mm * self.noise(foot)
        slope = climb / np.maximum(np.hypot(across, beside), SMALLEST_RADIUS_MM)
        # Close to the axis all of the spiral is near, but not farther up or down than it reaches.
        beyond = np.abs(local[:, 2]) - self.length_mm / 2 - 3 * self.roughness_mm
        return np.sign(below) * np.maximum(np.abs(below) / np.hypot(1, slope), beyond)


@dataclass(frozen=True, eq=False)
class Wedge:
    """What several cuts take off in common.

    Attributes:
        cuts: the cuts.
    """

    cuts: tuple

    def __call__(self, points):
        return np.min([cut(points) for cut in self.cuts], axis=0)


@dataclass(frozen=True, eq=False)
class Bowl:
    """A rough ellipsoid with axes along x, y and z; takes off its inside.

    Attributes:
        centre: (3,) mm.
        semiaxes: (3,) mm.
        roughness_mm: standard deviation of its radius.
        noise: its relief.
    """

    centre: np.ndarray
    semiaxes: np.ndarray
    roughness_mm: float
    noise: NoiseField

    def __call__(self, points):
        local = points - self.centre
        radius = np.maximum(np.linalg.norm(local / self.semiaxes, axis=1), 1e-6)
        foot = local / radius[:, None]
        inside = (1 - radius) / np.linalg.norm(foot / self.semiaxes**2, axis=1)
        return inside + self.roughness_mm * self.noise(foot + self.centre)
