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
    """A rough spiral that climbs once around an axis along z and is closed by a wall along the axis; takes off below.

    Attributes:
        origin: (3,) middle of the spiral on its axis, mm.
        pitch_mm: climb of one turn, the wall's length.
        hand: 1 climbs counter-clockwise seen from above, -1 clockwise.
        wall_angle: direction of the wall from the axis, radians from +x towards +y.
        roughness_mm: standard deviation of its height.
        noise: its relief.
    """

    origin: np.ndarray
    pitch_mm: float
    hand: int
    wall_angle: float
    roughness_mm: float
    noise: NoiseField

    def __call__(self, points):
        local = points - self.origin
        cosine, sine = np.cos(self.wall_angle), np.sin(self.wall_angle)
        # The wall is the half plane where `out` is positive and `beside` is zero.
        out, beside = local[:, 0] * cosine + local[:, 1] * sine, local[:, 1] * cosine - local[:, 0] * sine
        z = local[:, 2]
        wall_foot = np.column_stack([out * cosine, out * sine, z]) + self.origin
        beside = beside - self.roughness_mm * self.noise(wall_foot) * np.clip(out / SMALLEST_RADIUS_MM, 0, 1)
        turn = self.hand * np.arctan2(-beside, -out) / (2 * np.pi)
        below = self.pitch_mm * turn - z
        foot = np.column_stack([points[:, :2], points[:, 2] + below])
        below = below + self.roughness_mm * self.noise(foot)
        radius = np.maximum(np.hypot(out, beside), SMALLEST_RADIUS_MM)
        below = below / np.hypot(1, self.pitch_mm / (2 * np.pi * radius))
        beyond = np.hypot(np.minimum(out, 0), np.maximum(np.abs(z) - self.pitch_mm / 2, 0))
        return np.sign(below) * np.minimum(np.abs(below), np.hypot(beside, beyond))


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
