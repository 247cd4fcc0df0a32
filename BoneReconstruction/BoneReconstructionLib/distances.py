"""Exact signed distances from points to triangle surfaces, and the surface metrics of the papers made of them.

The search rests on one fact. Let p be the point of a triangle closest to q, at distance d, and let balls of radius r
about its corners cover the triangle, and those about the ends of each edge the edge. Then some corner w has
|q - w|^2 <= d^2 + r^2, because q - p is perpendicular to the face or edge inside which p lies. So only triangles around
vertices w with |q - w|^2 - r_w^2 <= d^2 need a look, r_w being the largest such reach r of the triangles around w.
With sqrt(R^2 - r_w^2) as a fourth coordinate, R the largest reach of all, this power distance is Euclidean and a
kd-tree finds those vertices. Triangles much longer than the rest are bisected, for the search alone, so that a few of
them do not slow down every query.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.surfaces import Surface, vertex_areas
from BoneReconstructionLib.threads import in_blocks

TOLERANCE_MM = 0.002
"""A triangle closer by less than this may be missed; it bounds the work where very many are equally far away."""

_BLOCK = 8192  # queries that one thread takes at a time
_CHUNK = 2048  # rings of triangles tested at a time: their coordinates just fit into the cache
_NEIGHBOURS = 5  # vertices that are asked for first; one query in a hundred needs more
_PIECES = 40000  # into about a third of which coarser surfaces are cut for the search
_EDGE_ENDS = np.array([[0, 0], [0, 1], [0, 2], [1, 2]])


@dataclass(frozen=True, eq=False)
class _Feet:
    """Closest points of a block of queries: the triangles, their columns and the features hit.

    feature 0 is the inside of the triangle; 1, 2 and 3 are its edges 01, 02 and 12, along which place runs from 0 to 1.
    """

    points: np.ndarray
    distances: np.ndarray
    faces: np.ndarray
    columns: np.ndarray
    feature: np.ndarray
    place: np.ndarray


class SurfaceLocator:
    """Finds the closest points of one triangle surface; build it once and ask it often.

    Every triangle counts as it is: nothing is assumed about how regular, fine or closed the mesh is. Distances are
    exact to double precision unless a triangle is missed that is closer by less than TOLERANCE_MM. Vertices with
    equal coordinates count as one, so that unconnected triangles get their signs right, too.

    Args:
        surface: at least one triangle, finite coordinates.

    Raises:
        InputError: the surface has no triangles or coordinates that are not finite.
    """

    def __init__(self, surface: Surface):
        if len(surface.faces) == 0:
            raise InputError("The surface has no triangles; choose another one.")
        if not np.isfinite(surface.vertices).all():
            raise InputError("The surface has coordinates that are not finite numbers; repair it first.")
        self._vertices, self._faces = _welded(surface)
        self._triangles = np.empty((len(self._faces), 16))
        reach2, area = np.empty((2, len(self._faces)))

        def fill(block):
            corners = np.take(self._vertices, self._faces[block].T, axis=0)
            self._triangles[block], reach2[block], area[block] = _triangle_rows(*corners)

        in_blocks(fill, len(self._faces), _BLOCK)
        usual = 4 * area.sum() / max(len(area), _PIECES)
        samples, corners, parents, reach2 = _bisect_long(self._vertices, self._faces, reach2, usual)
        self._ring_start, self._ring_faces, reach2 = _rings(corners, parents, reach2, len(samples))
        self._max_reach2 = reach2.max()
        lifted = np.column_stack([samples, np.sqrt(self._max_reach2 - reach2)])
        self._tree = cKDTree(lifted, leafsize=16, balanced_tree=False)

    def closest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Closest points of the surface.

        Args:
            points: (n, 3) in the surface's frame, mm.

        Returns:
            Closest points (n, 3) in mm, distances (n,) in mm, never negative, and the indices (n,) of the faces on
            which the closest points lie.

        Raises:
            InputError: points of another shape or not finite.
        """
        return self._closest(points, with_sign=False)

    def signed(self, points: np.ndarray) -> np.ndarray:
        """Signed distances (n,), mm, alone; see `closest_signed`."""
        return self.closest_signed(points)[1]

    def closest_signed(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `closest`, but distances are positive outside and negative inside.

        The sign is that of the angle-weighted pseudonormal (Baerentzen and Aanaes 2005), which is right for closed
        surfaces, at sharp edges and corners as well. An open surface has a front, positive, and a back, negative;
        beyond its rim neither means much.
        """
        return self._closest(points, with_sign=True)

    def _closest(self, points, with_sign):
        points = _checked(points)
        feet, distances, faces = np.empty((len(points), 3)), np.empty(len(points)), np.empty(len(points), np.int64)

        def work(block):
            found = self._feet(points[block])
            feet[block], distances[block], faces[block] = found.points, found.distances, found.faces
            if with_sign:
                outward = _dot((points[block] - found.points).T, self._pseudonormals(found))
                distances[block] = np.where(outward < 0, -found.distances, found.distances)

        in_blocks(work, len(points), _BLOCK)
        return feet, distances, faces

    def _feet(self, points):
        columns = points.T.copy()
        lifted = np.column_stack([points, np.zeros(len(points))])
        best2 = np.full(len(points), np.inf)
        faces = np.zeros(len(points), np.int64)
        todo = [(np.arange(len(points)), 0)]
        while todo:
            queries, seen = todo.pop()
            wanted = min(4 * seen or _NEIGHBOURS, self._tree.n)
            power, near = self._tree.query(lifted[queries], k=np.arange(seen + 1, wanted + 1))
            power = power**2 - self._max_reach2
            if seen == 0:
                self._look(columns, queries, near[:, 0], best2, faces)
            limit = _still_closer2(best2[queries])
            row, neighbour = np.nonzero(power <= limit[:, None])
            if seen == 0:
                row, neighbour = row[neighbour > 0], neighbour[neighbour > 0]
            self._look(columns, queries[row], near[row, neighbour], best2, faces)
            open_ = queries[power[:, -1] <= _still_closer2(best2[queries])]
            if wanted < self._tree.n and len(open_):
                parts = -(-len(open_) * wanted // 2**18)
                todo += [(part, wanted) for part in np.array_split(open_, parts)]
        return self._foot(points, columns, faces)

    def _look(self, columns, queries, samples, best2, faces):
        """Tests the faces around each query's sample; queries ascend, and each may come several times."""
        for start in range(0, len(queries), _CHUNK):
            part = slice(start, start + _CHUNK)
            candidates, position, starts = self._ring(samples[part])
            query = queries[part][position]
            distance2 = _distances2(np.take(columns, query, axis=1), self._columns(candidates))
            first = np.flatnonzero(np.diff(queries[part], prepend=-1))
            unique = queries[part][first]
            best2[unique] = np.minimum(best2[unique], np.minimum.reduceat(distance2, starts[first]))
            hit = np.flatnonzero(distance2 == best2[query])
            faces[query[hit]] = candidates[hit]

    def _ring(self, samples):
        """Faces around the samples one after the other, each with its sample's position, and the runs' starts."""
        start = self._ring_start[samples]
        count = self._ring_start[samples + 1] - start
        end = np.cumsum(count)
        faces = self._ring_faces[np.arange(end[-1]) + np.repeat(start - end + count, count)]
        return faces, np.repeat(np.arange(len(samples)), count), end - count

    def _columns(self, faces):
        return np.take(self._triangles, faces, axis=0).T.copy()

    def _foot(self, points, columns, faces):
        rows = self._columns(faces)
        feature, u, v = _place(columns, rows)
        feet = rows[0:3] + u * rows[3:6] + v * rows[6:9]
        distances = np.sqrt(((columns - feet) ** 2).sum(axis=0))
        return _Feet(feet.T, distances, faces, rows, feature, np.where(feature == 1, u, v))

    def _pseudonormals(self, feet):
        """Angle-weighted normals (3, n), of any length, of the features on which the feet lie."""
        normals = _cross(feet.columns[3:6], feet.columns[6:9])
        rim = np.flatnonzero(feet.feature)
        if len(rim) == 0:
            return normals
        place = feet.place[rim]
        at_vertex = (place == 0) | (place == 1)
        first, second = np.take_along_axis(self._faces[feet.faces[rim]], _EDGE_ENDS[feet.feature[rim]], axis=1).T
        vertex = np.where(place == 1, second, first)
        faces, position, starts = self._ring(vertex)
        corners = self._faces[faces]
        at = np.argmax(corners == vertex[position, None], axis=1)
        a, b, c = (self._vertices[corners[np.arange(len(at)), (at + step) % 3]].T for step in range(3))
        cross = _cross(b - a, c - a)
        size = np.sqrt(_dot(cross, cross))
        at_edge = (corners == second[position, None]).any(axis=1)
        weight = np.where(at_vertex[position], np.arctan2(size, _dot(b - a, c - a)), at_edge)
        weight /= np.where(size > 0, size, np.inf)
        normals[:, rim] = np.add.reduceat(cross * weight, starts, axis=1)
        return normals


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """How far two surfaces lie apart, by point-to-triangle distances in mm from the vertices of each to the other.

    The papers average over points spread evenly on both surfaces. Vertices are not evenly spread, so each counts
    with a third of the area of its triangles; on evenly tessellated surfaces the figures are the papers'.

    Attributes:
        assd: average symmetric surface distance, (sum_a w |d(a, B)| + sum_b w |d(b, A)|) / (sum_a w + sum_b w).
        rmsd: square root of the same average of the squared distances.
        hd: Hausdorff distance, the largest distance of either direction.
        hd95: the larger of the two directions' 95th percentiles.
        mean_signed_a_to_b: average over a of the signed distance; positive: a's point lies outside b.
        mean_signed_b_to_a: average over b of the signed distance; positive: b's point lies outside a.
        a_to_b: (n,) signed distance of each vertex of a to b; positive outside b.
        b_to_a: (m,) signed distance of each vertex of b to a; positive outside a.
    """

    assd: float
    rmsd: float
    hd: float
    hd95: float
    mean_signed_a_to_b: float
    mean_signed_b_to_a: float
    a_to_b: np.ndarray
    b_to_a: np.ndarray


def signed_distances(points: np.ndarray, surface: Surface) -> np.ndarray:
    """Signed distances (n,) in mm of points (n, 3) to a surface, positive outside; see SurfaceLocator.signed."""
    return SurfaceLocator(surface).signed(points)


def closest_points(points: np.ndarray, surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Closest points (n, 3), distances (n,) in mm and faces (n,) of points (n, 3); see SurfaceLocator.closest."""
    return SurfaceLocator(surface).closest(points)


def surface_distances(a: Surface, b: Surface) -> SurfaceDistances:
    """Compares two surfaces in the same frame, in both directions.

    Args:
        a: first surface.
        b: second surface.

    Raises:
        InputError: a surface has no triangles, no area or coordinates that are not finite.
    """
    to_b, to_a = SurfaceLocator(b), SurfaceLocator(a)
    a_to_b, b_to_a = to_b.signed(a.vertices), to_a.signed(b.vertices)
    weight_a, weight_b = vertex_areas(a), vertex_areas(b)
    if not (weight_a.any() and weight_b.any()):
        raise InputError("A surface has no area, only degenerate triangles; choose another one.")
    weight = np.concatenate([weight_a, weight_b])
    distance = np.abs(np.concatenate([a_to_b, b_to_a]))
    return SurfaceDistances(
        assd=float(np.average(distance, weights=weight)),
        rmsd=float(np.sqrt(np.average(distance**2, weights=weight))),
        hd=float(distance[weight > 0].max()),
        hd95=max(_percentile(np.abs(a_to_b), weight_a, 95), _percentile(np.abs(b_to_a), weight_b, 95)),
        mean_signed_a_to_b=float(np.average(a_to_b, weights=weight_a)),
        mean_signed_b_to_a=float(np.average(b_to_a, weights=weight_b)),
        a_to_b=a_to_b,
        b_to_a=b_to_a,
    )


def _percentile(values, weights, percent):
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(share, percent / 100 * share[-1])]])


def _checked(points):
    points = np.asarray(points, float)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError("The points must be finite coordinates in three columns.")
    return points


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a, b):
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _still_closer2(best2):
    return np.maximum(np.sqrt(np.maximum(best2, 0)) - TOLERANCE_MM, 0) ** 2


def _welded(surface):
    """Vertices and faces without repeated or unused vertices; both keep their order."""
    vertices, faces = np.asarray(surface.vertices, float), np.asarray(surface.faces, np.int32)
    keys = vertices @ [1.0, np.sqrt(2.0), np.sqrt(3.0)]
    order = np.argsort(keys)
    repeated = np.flatnonzero(np.diff(keys[order]) == 0) + 1
    repeated = repeated[(vertices[order[repeated]] == vertices[order[repeated - 1]]).all(axis=1)]
    if len(repeated):
        first = np.arange(len(vertices))
        first[repeated] = 0
        first = np.maximum.accumulate(first)
        original = np.empty(len(vertices), np.int32)
        original[order] = order[first]
        faces = original[faces]
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    if used.all():
        return vertices, faces
    return vertices[used], (np.cumsum(used, dtype=np.int32) - 1)[faces]


def _triangle_rows(a, b, c):
    """What the tests need of triangles with corners a, b, c (n, 3): rows (n, 16), squared reaches and areas (n,)."""
    a, ab, ac = a.T, (b - a).T, (c - a).T
    aa, bb, cc = _dot(ab, ab), _dot(ab, ac), _dot(ac, ac)
    bc = ac - ab
    ll = _dot(bc, bc)
    normal = _cross(ab, ac)
    determinant = _dot(normal, normal)
    # Slivers this thin are their edges; barycentric coordinates would be rounding noise.
    flat = determinant <= 1e-10 * np.maximum(np.maximum(aa, cc), ll) ** 2
    with np.errstate(divide="ignore"):
        inverse = 1.0 / np.stack([aa, cc, ll, np.where(flat, np.inf, determinant)])
    inverse[np.isinf(inverse)] = 0.0
    rows = np.concatenate([a, ab, ac, [aa, bb, cc], inverse]).T
    return rows, _reach2(aa, cc, ll, determinant), np.sqrt(determinant) / 2


def _reach2(aa, cc, ll, determinant):
    """Squared radius of the smallest balls about the corners that cover the face, and each edge from its own ends."""
    large = np.maximum(np.maximum(aa, cc), ll)
    acute = aa + cc + ll > 2 * large
    with np.errstate(divide="ignore", invalid="ignore"):
        circumradius2 = aa * cc * ll / (4 * determinant)
    return np.where(acute, np.fmin(circumradius2, large / 3), large / 4) * (1 + 1e-9)


def _candidates(points, rows):
    """Closest points on the edges 01, 02, 12 and, if it is closest, inside of each triangle.

    Args:
        points: (3, n).
        rows: (16, n) the triangles' rows, transposed.

    Returns:
        Squared distances to corner 0 (n,), what the four candidates (inside first) add to these, four times (n,),
        infinite where there is no foot inside, and the places (t1, t2, t3, u, v) of the candidates.
    """
    dx, dy, dz = points[0] - rows[0], points[1] - rows[1], points[2] - rows[2]
    aa, bb, cc = rows[9], rows[10], rows[11]
    d1 = dx * rows[3] + dy * rows[4] + dz * rows[5]
    d2 = dx * rows[6] + dy * rows[7] + dz * rows[8]
    d3 = d2 - d1 + aa - bb
    t1, t2, t3 = (
        np.minimum(np.maximum(d * inverse, 0), 1) for d, inverse in zip((d1, d2, d3), rows[12:15], strict=True)
    )
    u = (cc * d1 - bb * d2) * rows[15]
    v = (aa * d2 - bb * d1) * rows[15]
    inside = (u > 0) & (v > 0) & (u + v < 1)
    add0 = np.where(inside, u * (u * aa + 2 * (v * bb - d1)) + v * (v * cc - 2 * d2), np.inf)
    add1 = t1 * (t1 * aa - 2 * d1)
    add2 = t2 * (t2 * cc - 2 * d2)
    add3 = aa - 2 * d1 + t3 * (t3 * (aa - 2 * bb + cc) - 2 * d3)
    return dx * dx + dy * dy + dz * dz, (add0, add1, add2, add3), (t1, t2, t3, u, v)


def _distances2(points, rows):
    """Squared distances (n,) from points (3, n) to triangles (16, n)."""
    to_corner2, (add0, add1, add2, add3), _ = _candidates(points, rows)
    return to_corner2 + np.minimum(np.minimum(add0, add1), np.minimum(add2, add3))


def _place(points, rows):
    """Features hit (n,), see _Feet, and the closest points' coordinates u and v (n,) along the sides 01 and 02."""
    _, adds, (t1, t2, t3, u, v) = _candidates(points, rows)
    feature = np.argmin(adds, axis=0)
    return feature, np.choose(feature, (u, t1, 0, 1 - t3)), np.choose(feature, (v, 0, t2, t3))


def _bisect_long(vertices, faces, reach2, usual):
    """Bisects triangles whose squared reach is beyond the usual, longest first, as long as few pieces are added.

    Returns:
        Sample points (s, 3), of which the vertices come first, the pieces' corners (p, 3), the faces they are parts
        of (p,), ascending, and their squared reaches (p,).
    """
    samples, corners, parents = vertices, faces, np.arange(len(faces), dtype=np.int32)
    room = 2 * len(faces) + _PIECES
    limit = reach2.max()
    while limit > usual:
        limit = max(limit / 2, usual)
        while len(long := np.flatnonzero(reach2 > limit)):
            room -= len(long)
            if room < 0:
                limit = 0
                break
            a, b, c = _longest_side_first(samples, corners[long]).T
            # Neighbours that are cut on their common side share the new sample.
            keys = np.minimum(a, b).astype(np.int64) << 32 | np.maximum(a, b)
            sides, middle = np.unique(keys, return_inverse=True)
            middle = (middle + len(samples)).astype(np.int32)
            samples = np.concatenate([samples, (samples[sides >> 32] + samples[sides & 0xFFFFFFFF]) / 2])
            halves = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
            keep = reach2 <= limit
            corners = np.concatenate([corners[keep], halves])
            parents = np.concatenate([parents[keep], parents[long], parents[long]])
            reach2 = np.concatenate([reach2[keep], _triangle_rows(*samples[halves.T])[1]])
    if len(samples) == len(vertices):
        return samples, corners, parents, reach2
    order = np.argsort(parents, kind="stable")
    return samples, corners[order], parents[order], reach2[order]


def _longest_side_first(samples, corners):
    a, b, c = samples[corners.T]
    sides2 = np.stack([_dot(side.T, side.T) for side in (b - a, c - b, a - c)])
    first = np.argmax(sides2, axis=0)
    return np.take_along_axis(corners, (first[:, None] + np.arange(3)) % 3, axis=1)


def _rings(corners, parents, reach2, count):
    """Faces around each sample, as starts (s + 1,) into a list of faces, and the largest squared reach there (s,)."""
    size = corners.size
    rows = np.arange(0, size + 1, 3, dtype=np.int32)
    pieces = csr_matrix((np.ones(size, np.int8), corners.ravel(), rows), shape=(len(corners), count)).tocsc()
    faces, start = parents[pieces.indices], pieces.indptr
    largest = np.maximum.reduceat(reach2[pieces.indices], start[:-1])
    if len(parents) == parents[-1] + 1:
        return start, faces, largest
    new = np.diff(faces, prepend=-1) != 0
    new[start[:-1]] = True
    return np.concatenate([[0], np.cumsum(new)])[start], faces[new], largest
