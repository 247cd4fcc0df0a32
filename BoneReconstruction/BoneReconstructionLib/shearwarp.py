"""X-rays of a volume by perspective shear-warp factorisation, compiled by numba.

Lacroute and Levoy, SIGGRAPH 1994, with sums for compositing: the volume is cut into its own slices across the axis that
the rays follow most. On a grid of slopes (dx/ds, dy/ds) of rays from the source, every slice is met at positions that
are regular in x and in y, so that interpolating it is separable and needs two look-ups in a row that lies in the cache
(Joseph, IEEE TMI 1(3), 1982, is the rule: linear interpolation within a slice, times the ray's way from slice to
slice). The image of slopes is then looked up for each pixel of the detector, once and bicubically.
"""

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

# Rows of the image of slopes that a thread sums at a time: their part of a block of slices fits into the cache.
_BAND = 4
# Rows of the detector that a thread looks up at a time.
_ROWS = 32
# Widest step of the grid of slopes: a coarser detector still sees the volume's finest detail, by single rays.
_STEP_VOXELS = 0.65
# Samples of an image that one thread takes sooner than several are woken.
_SMALL = 2_000_000
# Shares of the bands that each thread takes one after another.
_SHARES = 4
# Samples beside a position that the bicubic interpolation asks for.
_REACH = 2
# Slices whose interpolated rows are held at a time, in the second-level cache.
_BLOCK = 128


def project(
    slices: np.ndarray, homography: np.ndarray, source: np.ndarray, rays: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Integrals of a volume along the rays of an image.

    Args:
        slices: (S, Y, X) float32, C-contiguous; zero is assumed beyond.
        homography: (3, 3); (x slope * w, y slope * w, w) of (column, row, 1), slopes in voxels per slice.
        source: (3,) position (x, y, s) of the source in voxels, s outside 0..S-1.
        rays: (3, 3); vector in mm from the source to the pixel (column, row, 1).
        shape: (rows, columns) of the image.

    Returns:
        (rows, columns) float32, in the volume's unit times mm.
    """
    grid = _slope_grid(slices.shape, homography, source, shape)
    image = np.zeros(shape, np.float32)
    if grid is None:
        return image
    (low_x, low_y), (step_x, step_y), (columns, rows) = grid
    sums = np.zeros((rows, columns), np.float32)
    sx, sy, ss = source
    # Pixel position in the image of slopes.
    into_grid = np.array([[1 / step_x, 0, -low_x / step_x], [0, 1 / step_y, -low_y / step_y], [0, 0, 1]]) @ homography
    first, last = _spans(into_grid, shape, (rows, columns))
    arguments = (slices, sums, first, last, sx, sy, ss, low_x, step_x, low_y, step_y)
    small = sums.size * len(slices) < _SMALL
    _in_bands(functools.partial(_sum_slices, *arguments), rows, rows if small else _BAND)
    # The last row of the homography tells how many slices the way to a pixel would cross.
    arguments = (sums, into_grid, np.ascontiguousarray(rays), homography[2].copy(), image)
    _in_bands(functools.partial(_warp, *arguments), shape[0], shape[0] if small else _ROWS)
    return image


def _slope_grid(size, homography, source, shape):
    """Lowest slopes, steps and numbers (columns, rows) of the grid of slopes; None where no ray meets the volume."""
    rows, columns = shape
    corners = np.array([(c, r, 1.0) for c in (0, columns - 1) for r in (0, rows - 1)]).T
    mapped = homography @ corners
    slopes = mapped[:2] / mapped[2]
    # Steps: the densest that neighbouring pixels have at any corner, by the homography's derivative.
    steps = np.full(2, np.inf)
    for corner in range(4):
        jacobian = (homography[:2, :2] - slopes[:, corner, None] * homography[2, :2]) / mapped[2, corner]
        steps = np.minimum(steps, np.linalg.norm(jacobian, axis=1))
    s_size, y_size, x_size = size
    distances = np.array([0.0, s_size - 1.0]) - source[2]
    steps = np.minimum(steps, _STEP_VOXELS / np.abs(distances).max())
    low, high = slopes.min(axis=1), slopes.max(axis=1)
    count = np.ceil((high - low) / steps - 1e-6).astype(int) + 1
    # Only slopes that meet the volume, and two more on each side for the bicubic interpolation.
    first, last = np.empty(2, int), np.empty(2, int)
    for axis, extent in enumerate((x_size, y_size)):
        edges = np.concatenate([(edge - source[axis]) / distances for edge in (-1.0, float(extent))])
        first[axis] = max(-2, math.floor((edges.min() - low[axis]) / steps[axis]) - 2)
        last[axis] = min(count[axis] + 1, math.ceil((edges.max() - low[axis]) / steps[axis]) + 2)
    if (last < first).any():
        return None
    return low + first * steps, steps, last - first + 1


def _spans(into_grid, shape, grid):
    """Of each row of the grid, (rows,) int the first column that a pixel asks for and the one behind the last."""
    rows, columns = shape[0] - 1, shape[1] - 1
    corners = into_grid @ np.array([(0, 0, 1.0), (columns, 0, 1.0), (columns, rows, 1.0), (0, rows, 1.0)]).T
    return _spans_within(corners[0] / corners[2], corners[1] / corners[2], *grid)


@numba.njit(nogil=True, cache=True)
def _spans_within(x, y, rows, columns):
    low, high = np.full(rows, np.inf), np.full(rows, -np.inf)
    # Where the detector's edges run within reach of the bicubic interpolation.
    for end in range(4):
        x0, y0, x1, y1 = x[end - 1], y[end - 1], x[end], y[end]
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        for row in range(max(0, math.ceil(y0 - _REACH)), min(rows, math.floor(y1 + _REACH) + 1)):
            for place in (row - _REACH, row + _REACH):
                share = (min(max(place, y0), y1) - y0) / (y1 - y0) if y1 > y0 else 1.0 * (place > y0)
                low[row] = min(low[row], x0 + share * (x1 - x0))
                high[row] = max(high[row], x0 + share * (x1 - x0))
    first, last = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for row in range(rows):
        if low[row] <= high[row]:
            first[row] = min(max(math.floor(low[row]) - _REACH, 0), columns)
            last[row] = min(max(math.ceil(high[row]) + _REACH + 1, 0), columns)
    return first, last


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _sum_slices(slices, sums, first, last, sx, sy, ss, low_x, step_x, low_y, step_y, first_row, last_row):
    # The innermost loop adds up along a ray and stores nothing: only so does the compiler use gather instructions,
    # since it cannot know that what it stores is not what it looks up next. For the same reason there are slices of
    # arrays and loops from 0, which keep indices from being checked for being negative.
    count, height, width = slices.shape
    # The rows of a block of slices interpolated in y, each between two zeros; index 1 is x = 0.
    stride = width + 3
    lines = np.zeros(_BLOCK * stride, np.float32)
    following = lines[1:]
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        start = begin - ss
        for row in range(first_row, last_row):
            slope_y = low_y + row * step_y
            for s in range(size):
                y = sy + slope_y * (start + s)
                line = lines[s * stride + 1 : s * stride + 1 + width]
                if not (-1.0 < y < height):
                    line[:] = np.float32(0.0)
                    continue
                y0 = math.floor(y)
                above = np.float32(y - y0)
                below = np.float32(1.0) - above
                if y0 < 0:
                    y0, below, above = 0, above, np.float32(0.0)
                elif y0 == height - 1:
                    y0, below, above = y0 - 1, np.float32(0.0), below
                here, there = slices[begin + s, y0], slices[begin + s, y0 + 1]
                for x in range(width):
                    line[x] = below * here[x] + above * there[x]
            for column in range(first[row], last[row]):
                slope_x = low_x + column * step_x
                x0 = sx + 1.0 + slope_x * start
                # Where x lies in 0..width+1.
                low, high = 0, size
                if slope_x != 0.0:
                    one, other = -x0 / slope_x, (width + 1 - x0) / slope_x
                    low = max(low, math.ceil(min(max(min(one, other), -1.0), size + 1.0)))
                    high = min(high, math.floor(min(max(max(one, other), -1.0), size + 1.0)) + 1)
                elif not (0.0 <= x0 <= width + 1):
                    continue
                x_low, slope = np.float32(x0 + slope_x * low), np.float32(slope_x)
                offset = low * stride
                total = np.float32(0.0)
                for s in range(high - low):
                    x = x_low + slope * np.float32(s)
                    x_index = np.int32(x)
                    index = np.uint64(offset + s * stride + x_index)
                    left = lines[index]
                    total += left + (x - np.float32(x_index)) * (following[index] - left)
                sums[row, column] += total


@numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def _warp(sums, into_grid, rays, crossed, image, first_row, last_row):
    rows, columns = sums.shape
    wx, wy = np.empty(4), np.empty(4)
    for row in range(first_row, last_row):
        for column in range(image.shape[1]):
            w = into_grid[2, 0] * column + into_grid[2, 1] * row + into_grid[2, 2]
            x = (into_grid[0, 0] * column + into_grid[0, 1] * row + into_grid[0, 2]) / w
            y = (into_grid[1, 0] * column + into_grid[1, 1] * row + into_grid[1, 2]) / w
            if not (-1.0 < x < columns and -1.0 < y < rows):
                continue
            x0, y0 = math.floor(x), math.floor(y)
            _cubic(x - x0, wx)
            _cubic(y - y0, wy)
            total = 0.0
            for b in range(4):
                j = y0 + b - 1
                if 0 <= j < rows:
                    part = 0.0
                    for a in range(4):
                        i = x0 + a - 1
                        if 0 <= i < columns:
                            part += wx[a] * sums[j, i]
                    total += wy[b] * part
            across = crossed[0] * column + crossed[1] * row + crossed[2]
            squares = 0.0
            for axis in range(3):
                squares += (rays[axis, 0] * column + rays[axis, 1] * row + rays[axis, 2]) ** 2
            image[row, column] = total * math.sqrt(squares) / abs(across)


@numba.njit(nogil=True, cache=True, inline="always")
def _cubic(t, weights):
    """Catmull-Rom weights of the four samples about a position t of 0..1 between the middle two."""
    weights[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
    weights[1] = (1.5 * t - 2.5) * t * t + 1.0
    weights[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
    weights[3] = (0.5 * t - 0.5) * t * t


def _in_bands(work, rows, band):
    """Call work(first, end) for bands of rows, several at a time."""
    if band >= rows:
        work(0, rows)
        return

    def share(number):
        for first in range(number * band, rows, shares * band):
            work(first, min(first + band, rows))

    # Every thread takes a few shares: handing each band over would take as long as some of them.
    shares = min(_SHARES * _cores(), math.ceil(rows / band))
    list(_pool().map(share, range(shares)))


@functools.cache
def _pool():
    return ThreadPoolExecutor(_cores(), "shearwarp")


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
