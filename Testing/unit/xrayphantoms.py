"""Solids whose path lengths along any ray are known, their volumes on oblique grids, and oblique views of them."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometry import CArm, XrayGeometry, from_carm

TURN = Rotation.from_euler("xyz", (25, -40, 65), degrees=True).as_matrix()
MIDDLE = np.array([30.0, -40.0, 210.0])


@dataclass(frozen=True)
class Sphere:
    centre: tuple = (33.0, -44.0, 213.0)
    radius: float = 17.0

    def lengths(self, start, directions):
        offset = start - np.array(self.centre)
        along = directions @ offset
        below = along**2 - offset @ offset + self.radius**2
        return 2 * np.sqrt(np.maximum(below, 0))

    def distances(self, points):
        return np.linalg.norm(points - self.centre, axis=-1) - self.radius


@dataclass(frozen=True)
class TurnedBox:
    centre: tuple = (28.0, -37.0, 208.0)
    half: tuple = (9.0, 14.0, 18.0)

    def lengths(self, start, directions):
        return np.maximum(np.subtract(*_slabs(TURN.T @ (start - self.centre), directions @ TURN, self.half)), 0)

    def distances(self, points):
        beyond = np.abs((points - self.centre) @ TURN) - self.half
        return np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)


@dataclass(frozen=True)
class TurnedCylinder:
    centre: tuple = (30.0, -42.0, 211.0)
    radius: float = 11.0
    half: float = 18.0

    def lengths(self, start, directions):
        start, directions = TURN.T @ (start - self.centre), directions @ TURN
        flat, base = directions[..., :2], start[:2]
        a, b = (flat**2).sum(axis=-1), flat @ base
        root = np.sqrt(np.maximum(b**2 - a * (base @ base - self.radius**2), 0))
        leave, enter = _slabs(start[2:], directions[..., 2:], (self.half,))
        length = np.minimum((-b + root) / a, leave) - np.maximum((-b - root) / a, enter)
        return np.where(root > 0, np.maximum(length, 0), 0)

    def distances(self, points):
        local = (points - self.centre) @ TURN
        side, cap = np.hypot(local[..., 0], local[..., 1]) - self.radius, np.abs(local[..., 2]) - self.half
        outside = np.hypot(np.maximum(side, 0), np.maximum(cap, 0))
        return outside + np.minimum(np.maximum(side, cap), 0)


SOLIDS = {"sphere": Sphere(), "box": TurnedBox(), "cylinder": TurnedCylinder()}


def _slabs(start, directions, half):
    """(leaving, entering) distances along rays through |x| <= half on every axis."""
    ends = [(sign * np.array(half) - start) / directions for sign in (-1, 1)]
    return np.maximum(*ends).min(axis=-1), np.minimum(*ends).max(axis=-1)


def solid_volume(solid, matrix: np.ndarray, extent_mm: float = 27.0) -> Volume:
    """float32 volume of how much of each voxel a solid fills, on a grid with a frame's axes about `MIDDLE`."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    counts = np.ceil(2 * extent_mm / spacing).astype(int) + 1
    placed = matrix.copy()
    placed[:3, 3] = MIDDLE - matrix[:3, :3] @ ((counts - 1) / 2)
    ijk = np.stack(np.indices(counts[::-1])[::-1], axis=-1)
    distances = solid.distances(ijk @ placed[:3, :3].T + placed[:3, 3])
    # A ramp as wide as a voxel keeps the volume, and the integral across any face.
    return Volume(np.clip(0.5 - distances / spacing.mean(), 0, 1).astype(np.float32), placed)


def analytic_image(solid, geometry: XrayGeometry, shift=(0.0, 0.0)) -> np.ndarray:
    """(rows, columns) path lengths in mm, the rays meeting the detector at a shift in pixels from the centres."""
    row, column = np.indices(geometry.shape)
    pixels = np.stack([column.ravel() + shift[0], row.ravel() + shift[1]], axis=-1)
    rays = geometry.pixel_positions(pixels) - geometry.source
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return solid.lengths(geometry.source, rays).reshape(geometry.shape)


def tilted_view(shape=(48, 50)) -> XrayGeometry:
    """A detector that is turned against the beam, off centre, with oblong pixels and a mirrored image."""
    view = from_carm(CArm(900.0, 600.0, (2.0, 1.7), shape, -125.0, 20.0, 33.0, tuple(MIDDLE), (6.0, -4.0), True))
    tilt = Rotation.from_rotvec(np.radians(18) * view.u).as_matrix()
    return XrayGeometry(view.source, view.detector_centre, view.u, tilt @ view.v, view.spacing_uv, view.shape)


VIEWS = {
    "along i": from_carm(CArm(1000.0, 700.0, (1.8, 1.8), (48, 44), 78.0, 12.0, isocentre=tuple(MIDDLE))),
    "along j": from_carm(CArm(1000.0, 700.0, (1.8, 1.7), (44, 46), 170.0, -14.0, 20.0, tuple(MIDDLE))),
    "along k": from_carm(CArm(1100.0, 800.0, (1.6, 1.8), (45, 45), 30.0, 75.0, -70.0, tuple(MIDDLE))),
    "between the axes": from_carm(CArm(1000.0, 650.0, (2.0, 1.7), (46, 48), 130.0, 35.0, isocentre=tuple(MIDDLE))),
    "tilted detector": tilted_view(),
}
