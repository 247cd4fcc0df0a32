"""Rigid bodies bounded by closed surfaces, and motions of them."""

from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.shapefitting import spread_over
from BoneReconstructionLib.surfaces import Surface, vertex_normals
from TibiaCompletionLib.fragments.edges import FragmentEdges

# Farther than this a vertex's plane says nothing of the distance to the surface.
PLANE_REACH_MM = 8.0
# By less than this it errs on the outside, close to the surface.
PLANE_ERROR_MM = 1.0


class Body:
    """A closed surface that is asked again and again for what lies closest.

    Args:
        surface: closed, faces outward, mm.
        edges: `FragmentEdges` of its vertices in the same frame; None: the surface is exact.
        bone: its `BoneAmounts` in the same frame; None: not known.

    Attributes:
        exact: whether the surface lies where the bone's does.
    """

    def __init__(self, surface, edges=None, bone=None):
        self.surface, self.bone = surface, bone
        self.normals = vertex_normals(surface)
        self.exact = edges is None
        self.edges = edges or FragmentEdges.exact(surface)
        self._trusted = {}

    @cached_property
    def locator(self):
        """Finds closest points of the surface."""
        return SurfaceLocator(self.surface)

    @cached_property
    def tree(self):
        """Finds closest vertices."""
        return cKDTree(self.surface.vertices)

    def nearest_edge(self, points, trust, exact=True):
        """How far points are from the plane of the closest edge in the CT, taken for one of a broken face.

        Args:
            points: (n, 3) in the body's frame, mm.
            trust: of the edges that are asked for, see `FragmentEdges`; those that are trusted less do not count.
            exact: as in `nearest`, which answers where the surface itself is.

        Returns:
            (signed distances (n,) in mm, positive outside, outward unit normals (n, 3)); both zero where there is no
            such edge within `PLANE_REACH_MM`.
        """
        if self.exact:
            return self.nearest(points, exact)
        if trust not in self._trusted:
            index = np.flatnonzero(self.edges.trust >= trust)
            self._trusted[trust] = index, cKDTree(self.edges.faces[index])
        index, tree = self._trusted[trust]
        distance, nearest = tree.query(points, distance_upper_bound=PLANE_REACH_MM)
        found = np.isfinite(distance)
        vertex = index[nearest[found]]
        away, normals = np.zeros(len(points)), np.zeros((len(points), 3))
        normals[found] = self.normals[vertex]
        away[found] = ((points[found] - self.edges.faces[vertex]) * normals[found]).sum(1)
        return away, normals

    @cached_property
    def face_locator(self):
        """Finds closest points of the surface, broken faces where the CT shows them."""
        return self.locator if self.exact else SurfaceLocator(Surface(self.edges.faces, self.surface.faces))

    def way_out(self, points):
        """How far points are from the surface with its broken faces where the CT shows them, and which way leads out.

        Args:
            points: (n, 3) in the body's frame, mm.

        Returns:
            (signed distances (n,) in mm, positive outside, unit vectors (n, 3) along which they grow).
        """
        feet, distance, _ = self.face_locator.closest_signed(points)
        return distance, _outward(points - feet, distance)

    def nearest(self, points, exact=True):
        """How far points are from the surface.

        Args:
            points: (n, 3) in the body's frame, mm.
            exact: False measures to the plane of the closest vertex instead, several times faster.

        Returns:
            (signed distances (n,) in mm, positive outside, outward unit normals (n, 3) at the closest points).
        """
        if not exact:
            distance, vertex = self.tree.query(points)
            normals = self.normals[vertex]
            away = ((points - self.surface.vertices[vertex]) * normals).sum(1)
            return np.where(distance < PLANE_REACH_MM, away, np.copysign(distance, away)), normals
        feet, distance, face = self.locator.closest(points)
        normals = self.normals[self.surface.faces[face]].sum(1)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return np.copysign(distance, ((points - feet) * normals).sum(1)), normals

    def spread(self, count):
        """Indices of about `count` vertices all over the surface."""
        return spread_over(len(self.surface.vertices), count)


def inverse(motion):
    """(4, 4) inverse of a rigid motion."""
    back = np.eye(4)
    back[:3, :3] = motion[:3, :3].T
    back[:3, 3] = -motion[:3, :3].T @ motion[:3, 3]
    return back


def near(body, pose, other, other_pose, reach_mm):
    """Vertices of a body that lie near another, both at their poses.

    Args:
        body, other: `Body`.
        pose, other_pose: (4, 4) rigid.
        reach_mm: how near.

    Returns:
        ((m,) indices, (m,) their signed distances to the other, mm, negative inside it); approximate, see `Body`.
    """
    index, local = _in_box(body, pose, other, other_pose, reach_mm)
    distance, _ = other.nearest(local, exact=False)
    kept = np.abs(distance) < reach_mm
    return index[kept], distance[kept]


def overlap(body, pose, other, other_pose):
    """How deep either of two bodies reaches into the other with a vertex, mm; 0 where they are apart.

    Args:
        body, other: `Body`.
        pose, other_pose: (4, 4) rigid.
    """
    return max(_depth(body, pose, other, other_pose), _depth(other, other_pose, body, pose))


def deep_vertices(body, pose, other, other_pose, least_mm):
    """Vertices of a body that lie deep in another, both at their poses.

    Args:
        body, other: `Body`.
        pose, other_pose: (4, 4) rigid.
        least_mm: how deep at least.

    Returns:
        ((m,) their depths in mm, (m, 3) unit vectors along which each would leave the shortest way).
    """
    away, depth = _deep(body, pose, other, other_pose, least_mm)
    return depth, _outward(away, -depth) @ other_pose[:3, :3].T


def _depth(body, pose, other, other_pose):
    return max(_deep(body, pose, other, other_pose, 0.0)[1], default=0.0)


def _deep(body, pose, other, other_pose, least_mm):
    """(ways (m, 3) from the other's surface, depths (m,)) of a body's vertices that lie deeper than that in another."""
    _, local = _in_box(body, pose, other, other_pose, 0.0)
    local = local[other.nearest(local, exact=False)[0] < PLANE_ERROR_MM - least_mm]
    feet, distance, _ = other.locator.closest_signed(local)
    deep = -distance > least_mm
    return (local - feet)[deep], -distance[deep]


def _outward(away, distance):
    """Unit vectors (n, 3) along which points leave a surface: (n, 3) ways from it, (n,) signed distances, mm."""
    return away / np.where(np.abs(distance) < 1e-9, np.inf, distance)[:, None]


def _in_box(body, pose, other, other_pose, margin_mm):
    """(indices (m,) of a body's vertices in another's bounding box, their places (m, 3) in the other's frame)."""
    local = transform_points(inverse(other_pose) @ pose, body.surface.vertices)
    lower, upper = other.surface.vertices.min(0) - margin_mm, other.surface.vertices.max(0) + margin_mm
    index = np.flatnonzero(((local > lower) & (local < upper)).all(1))
    return index, local[index]
