"""Triangle surfaces in RAS millimetres and what follows from vertices and faces alone; no VTK."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh in world coordinates.

    Attributes:
        vertices: (n, 3) float64, RAS, mm.
        faces: (m, 3) int64 vertex indices, counter-clockwise seen from outside.
    """

    vertices: np.ndarray
    faces: np.ndarray


def vertex_normals(surface: Surface) -> np.ndarray:
    """(n, 3) outward unit normals at the vertices, weighted by the faces' areas; zero where no face is."""
    vectors, count = _face_vectors(surface), len(surface.vertices)
    # A corner after the other: several times faster than all corners of all faces at once.
    normals = np.column_stack(
        [sum(np.bincount(corner, vector, count) for corner in surface.faces.T) for vector in vectors.T]
    )
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)


def volume_mm3(surface: Surface) -> float:
    """Enclosed volume in mm³, by the divergence theorem; positive when the faces of a closed surface look outward."""
    if len(surface.faces) == 0:
        return 0.0
    corner = surface.vertices[surface.faces[:, 0]] - surface.vertices.mean(axis=0)
    return float(np.einsum("ij,ij->", corner, _face_vectors(surface)) / 6)


def area_mm2(surface: Surface) -> float:
    """Area in mm²."""
    return float(np.linalg.norm(_face_vectors(surface), axis=1).sum() / 2)


def is_closed(surface: Surface) -> bool:
    """Whether every edge belongs to exactly two faces that run along it in opposite directions."""
    if len(surface.faces) == 0:
        return False
    start, end = surface.faces.ravel(), np.roll(surface.faces, -1, axis=1).ravel()
    count = len(surface.vertices)
    forward, backward = np.sort(start * count + end), np.sort(end * count + start)
    return bool(np.array_equal(forward, backward) and (np.diff(forward) > 0).all())


def transformed(surface: Surface, matrix: np.ndarray) -> Surface:
    """Moves a surface by an affine matrix; where it mirrors, the faces are turned so that they still look outward.

    Args:
        surface: The surface.
        matrix: (4, 4) affine, applied to column vectors.
    """
    matrix = np.asarray(matrix, dtype=float)
    vertices = surface.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    faces = surface.faces[:, ::-1].copy() if np.linalg.det(matrix[:3, :3]) < 0 else surface.faces
    return Surface(vertices, faces)


def joined(surfaces) -> Surface:
    """Several surfaces as one, their vertices and faces in turn.

    Args:
        surfaces: sequence of Surface, in one frame.
    """
    starts = np.cumsum([0, *(len(surface.vertices) for surface in surfaces[:-1])])
    faces = [surface.faces + start for surface, start in zip(surfaces, starts, strict=True)]
    return Surface(np.concatenate([surface.vertices for surface in surfaces]), np.concatenate(faces))


def largest_component(surface: Surface) -> Surface:
    """The connected part of the largest area, without vertices that no face uses."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(surface.faces) == 0:
        return surface
    start, end = surface.faces.ravel(), np.roll(surface.faces, -1, axis=1).ravel()
    count = len(surface.vertices)
    _, labels = connected_components(coo_array((np.ones(len(start), dtype=bool), (start, end)), shape=(count, count)))
    face_labels = labels[surface.faces[:, 0]]
    areas = np.bincount(face_labels, np.linalg.norm(_face_vectors(surface), axis=1))
    faces = surface.faces[face_labels == areas.argmax()]
    used, faces = np.unique(faces, return_inverse=True)
    return Surface(surface.vertices[used], faces.reshape(-1, 3).astype(np.int64))


def _face_vectors(surface: Surface) -> np.ndarray:
    """(m, 3) outward normals of the faces, twice as long as the faces' areas."""
    coordinates = surface.vertices.T
    a, b, c = ([coordinate[corner] for coordinate in coordinates] for corner in surface.faces.T)
    u, v = (np.array([end[axis] - a[axis] for axis in range(3)]).reshape(3, -1) for end in (b, c))
    # Column by column: numpy's cross product of rows takes twice as long.
    return np.column_stack([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])


def vertex_areas(surface: Surface) -> np.ndarray:
    """Area that each vertex stands for, (n,) mm²: a third of its faces'."""
    areas = np.linalg.norm(_face_vectors(surface), axis=1) / 2
    return np.bincount(surface.faces.ravel(), np.repeat(areas / 3, 3), minlength=len(surface.vertices))
