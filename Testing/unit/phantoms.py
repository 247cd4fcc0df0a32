"""Small shapes whose position, volume and surface are known exactly, on oblique, anisotropic and flipped grids."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.surfaces import Surface, joined
from BoneReconstructionLib.volumes import Volume


@dataclass(frozen=True)
class Ball:
    centre: tuple[float, float, float]
    radius: float

    @property
    def volume(self) -> float:
        return 4 / 3 * np.pi * self.radius**3

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points - self.centre, axis=-1) - self.radius


@dataclass(frozen=True)
class Box:
    centre: tuple[float, float, float]
    half: tuple[float, float, float]

    @property
    def volume(self) -> float:
        return 8 * float(np.prod(self.half))

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        beyond = np.abs(points - self.centre) - self.half
        return np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)


@dataclass(frozen=True)
class Solid:
    """Separate balls and boxes in RAS mm; no mirroring and no quarter turn maps it onto itself."""

    parts: tuple

    @property
    def volume(self) -> float:
        return sum(part.volume for part in self.parts)

    @property
    def centroid(self) -> np.ndarray:
        return np.average([part.centre for part in self.parts], axis=0, weights=[part.volume for part in self.parts])

    def signed_distance(self, points: np.ndarray) -> np.ndarray:
        """Distance in mm of (..., 3) RAS points, positive outside."""
        return np.min([part.signed_distance(points) for part in self.parts], axis=0)


# Right-anterior-superior of the world's origin, none of the three coordinates alike.
ASYMMETRIC_SOLID = Solid((Ball((30, -40, 210), 9), Ball((47, -36, 214), 5), Box((26, -20, 200), (3.5, 6.5, 2.5))))


def frame(
    spacing: tuple[float, float, float] = (0.6, 0.7, 1.0),
    turn_degrees: tuple[float, float, float] = (17, -11, 28),
    flipped_axes: str = "",
) -> np.ndarray:
    """(4, 4) IJK-to-RAS of a grid about the world's origin: turned about x, y, z, the named axes of "ijk" reversed."""
    signs = [-1.0 if axis in flipped_axes else 1.0 for axis in "ijk"]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_degrees, degrees=True).as_matrix() * spacing * signs
    return matrix


def covering_grid(matrix: np.ndarray, margin_mm: float = 5.0, solid: Solid = ASYMMETRIC_SOLID):
    """Shape (k, j, i) and IJK-to-RAS of a grid with a frame's axes that holds a solid and a margin."""
    corners = [
        np.add(part.centre, np.multiply(signs, getattr(part, "half", (getattr(part, "radius", 0),) * 3)))
        for part in solid.parts
        for signs in np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    ]
    return grid_around(np.array(corners), matrix, margin_mm)


def grid_around(points: np.ndarray, matrix: np.ndarray, margin_mm: float = 0.0):
    """The same around points (n, 3), RAS mm."""
    ijk = points @ np.linalg.inv(matrix[:3, :3]).T
    margin = margin_mm / np.linalg.norm(matrix[:3, :3], axis=0)
    lower, upper = ijk.min(axis=0) - margin, ijk.max(axis=0) + margin
    placed = matrix.copy()
    placed[:3, 3] = matrix[:3, :3] @ lower
    return tuple(int(size) for size in np.ceil(upper - lower)[::-1] + 1), placed


def voxel_centres(shape_kji: tuple[int, int, int], ijk_to_ras: np.ndarray) -> np.ndarray:
    """(K, J, I, 3) RAS mm."""
    ijk = np.stack(np.indices(shape_kji)[::-1], axis=-1)
    return ijk @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]


def solid_mask(matrix: np.ndarray, margin_mm: float = 5.0, solid: Solid = ASYMMETRIC_SOLID) -> Volume:
    """Bool volume of a solid on a grid with a frame's axes: what lies inside at the voxel's centre."""
    shape, ijk_to_ras = covering_grid(matrix, margin_mm, solid)
    return Volume(solid.signed_distance(voxel_centres(shape, ijk_to_ras)) < 0, ijk_to_ras)


def solid_ct(matrix: np.ndarray, margin_mm: float = 5.0, solid: Solid = ASYMMETRIC_SOLID) -> Volume:
    """int16 volume that passes 300 HU at a solid's surface, by 200 HU per mm, between -1000 and 1500 HU."""
    shape, ijk_to_ras = covering_grid(matrix, margin_mm, solid)
    distance = solid.signed_distance(voxel_centres(shape, ijk_to_ras))
    return Volume(np.rint(np.clip(300 - 200 * distance, -1000, 1500)).astype(np.int16), ijk_to_ras)


def centroid_ras(mask: Volume) -> np.ndarray:
    """(3,) RAS mm, mean position of a mask's voxels."""
    ijk = np.argwhere(mask.array)[:, ::-1].mean(axis=0)
    return mask.ijk_to_ras[:3, :3] @ ijk + mask.ijk_to_ras[:3, 3]


def sphere_surface(radius: float = 20.0, centre=(30.0, -40.0, 210.0), subdivisions: int = 5) -> Surface:
    """Closed triangle sphere from an octahedron cut 4^subdivisions times, its vertices on the sphere, faces outward."""
    points = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], dtype=float)
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    for _ in range(subdivisions):
        edges = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1), axis=-1).reshape(-1, 2)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        middle = len(points) + inverse.reshape(-1, 3)
        points = np.vstack([points, points[unique].mean(axis=1)])
        (a, b, c), (ab, bc, ca) = faces.T, middle.T
        smaller = (a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)
        faces = np.vstack([np.column_stack(corners) for corners in smaller])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return Surface(radius * points + np.asarray(centre, dtype=float), faces.astype(np.int64))


def box_surface(centre=(26.0, -20.0, 200.0), half=(3.5, 6.5, 2.5)) -> Surface:
    """Closed box of twelve triangles, faces outward."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return Surface(corners * half + np.asarray(centre, dtype=float), np.array(faces, dtype=np.int64))


def solid_surface(solid: Solid = ASYMMETRIC_SOLID) -> Surface:
    """The solid's parts as closed surfaces, balls within 0.01 mm."""
    return joined(
        [
            sphere_surface(part.radius, part.centre) if isinstance(part, Ball) else box_surface(part.centre, part.half)
            for part in solid.parts
        ]
    )
