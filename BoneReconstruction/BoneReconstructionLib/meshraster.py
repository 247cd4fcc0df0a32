"""The compiled inner loop of `meshthickness`, by numba."""

import math

import numba


# No fastmath: two faces must come to the same side of the edge that they share, to the last bit.
@numba.njit(nogil=True, cache=True, error_model="numpy")
def add_depths(pixels, nearness, faces, depths):
    """Adds up, for each pixel, the depths at which its ray leaves a mesh minus those at which it enters.

    Args:
        pixels: (n, 2) float64 projected vertices (column, row).
        nearness: (n,) float64, one over the vertices' depths.
        faces: (m, 3) vertex indices.
        depths: (rows, columns) float64, added to.
    """
    rows, columns = depths.shape
    for face in range(len(faces)):
        a, b, c = faces[face]
        ax, ay, bx, by, cx, cy = pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1], pixels[c, 0], pixels[c, 1]
        first_row = max(0, math.ceil(min(ay, by, cy)))
        last_row = min(rows - 1, math.floor(max(ay, by, cy)))
        first_column = max(0, math.ceil(min(ax, bx, cx)))
        last_column = min(columns - 1, math.floor(max(ax, bx, cx)))
        if first_row > last_row or first_column > last_column:
            continue
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        weight_a, weight_b, weight_c = nearness[a] / area, nearness[b] / area, nearness[c] / area
        sign = 1.0 if area > 0.0 else -1.0
        for row in range(first_row, last_row + 1):
            for column in range(first_column, last_column + 1):
                ab = _edge(a, b, ax, ay, bx, by, column, row)
                left = _left(ab, a, b, ax, ay, bx, by)
                bc = _edge(b, c, bx, by, cx, cy, column, row)
                if _left(bc, b, c, bx, by, cx, cy) != left:
                    continue
                ca = _edge(c, a, cx, cy, ax, ay, column, row)
                if _left(ca, c, a, cx, cy, ax, ay) != left:
                    continue
                # 1 / depth is linear in the image.
                depths[row, column] += sign / (weight_a * bc + weight_b * ca + weight_c * ab)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _edge(a, b, ax, ay, bx, by, x, y):
    """Twice the area of (a, b, (x, y)); exactly opposite for the edge from b to a."""
    if a < b:
        return (bx - ax) * (y - ay) - (by - ay) * (x - ax)
    return -((ax - bx) * (y - by) - (ay - by) * (x - bx))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _left(value, a, b, ax, ay, bx, by):
    """On which side of an edge a pixel is; one on the edge counts as moved by an infinitesimal (d, d * d)."""
    if value != 0.0:
        return value > 0.0
    return by < ay or (by == ay and bx > ax)
