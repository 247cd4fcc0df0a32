"""Surfaces out of volumes and back, smoothed and decimated, by VTK."""

from collections.abc import Sequence

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkPoints
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkImageData, vtkPlane, vtkPlaneCollection, vtkPolyData
from vtkmodules.vtkFiltersCore import (
    vtkFlyingEdges3D,
    vtkQuadricDecimation,
    vtkTriangleFilter,
    vtkWindowedSincPolyDataFilter,
)
from vtkmodules.vtkFiltersGeneral import vtkClipClosedSurface

from BoneReconstructionLib.surfaces import Surface, transformed, volume_mm3
from BoneReconstructionLib.threads import in_blocks
from BoneReconstructionLib.volumes import Volume, bounding_box, crop

# `voxelize` rounds positions across its lines to this fraction of a voxel; 64-bit products then hold 200,000 voxels.
STEPS_PER_VOXEL = 4096

# Bounds the memory that `voxelize` takes to about 300 MB however large the triangles are.
COLUMNS_AT_ONCE = 1_000_000

# Slices that are blurred at a time.
LAYERS_AT_ONCE = 24

# Standard deviation, in voxels, of the Gaussian that `mask_surface` smooths with where the caller gives none.
MASK_SIGMA = 0.8


def isosurface(volume: Volume, value: float) -> Surface:
    """Surface between the voxels above and below a value, by flying edges.

    Args:
        volume: Scalars or bool; at least two voxels along each axis. The frame may be oblique and left-handed.
        value: Threshold in the volume's unit; what is above it is inside.

    Returns:
        The surface, faces outward (towards lower values). It is open where the inside meets the volume's border.
    """
    array = np.ascontiguousarray(volume.array)
    if array.dtype == bool:
        array = array.view(np.uint8)
    image = vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel()))
    edges = vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, value)
    edges.ComputeNormalsOff()
    edges.ComputeGradientsOff()
    edges.ComputeScalarsOff()
    edges.Update()
    return transformed(from_polydata(edges.GetOutput()), volume.ijk_to_ras)


def mask_surface(mask: Volume, sigma_mm: float | None = None) -> Surface:
    """Smooth closed surface of a bool mask that encloses the mask's volume.

    The mask is smoothed by a Gaussian and cut at the level, near one half, at which the surface encloses as much as
    the voxels do: at one half itself a Gaussian of standard deviation s takes s^2 / R off the radius R of a sphere.

    Args:
        mask: bool. A mask that touches the volume's border is closed there.
        sigma_mm: Standard deviation of the Gaussian in mm; by default 0.8 voxels along each axis.

    Returns:
        The surface, faces outward.

    Raises:
        InputError: The mask is empty.
    """
    sigma_kji = np.full(3, MASK_SIGMA) if sigma_mm is None else sigma_mm / mask.spacing[::-1]
    margin = np.ceil(4 * sigma_kji).astype(int) + 1
    lower, upper = bounding_box(mask.array)
    box = crop(mask, lower, upper)
    padded = np.pad(box.array, np.column_stack((margin, margin)))
    ijk_to_ras = box.ijk_to_ras.copy()
    ijk_to_ras[:3, 3] -= ijk_to_ras[:3, :3] @ margin[::-1]
    smoothed = Volume(_blurred(padded, sigma_kji), ijk_to_ras)

    target = np.count_nonzero(box.array) * np.prod(mask.spacing)
    levels = np.array([0.5, 0.45]) * min(1.0, float(smoothed.array.max()))
    volumes = [volume_mm3(isosurface(smoothed, level)) for level in levels]
    slope = (volumes[1] - volumes[0]) / (levels[1] - levels[0])
    level = levels[0] + (target - volumes[0]) / slope
    return isosurface(smoothed, float(np.clip(level, 0.6 * levels[0], 1.4 * levels[0])))


def _blurred(mask, sigma_kji):
    """A bool array blurred by a Gaussian a few layers at a time, float32: a slanting bone fills little of its box."""
    from scipy.ndimage import gaussian_filter

    blurred, reach = np.zeros(mask.shape, np.float32), np.ceil(4 * sigma_kji).astype(int)

    def work(layers):
        first = max(layers.start - reach[0], 0)
        near = mask[first : layers.stop + reach[0]]
        if not near.any():
            return
        lower, upper = bounding_box(near)
        box = tuple(slice(max(low - by, 0), high + by) for low, high, by in zip(lower[1:], upper[1:], reach[1:]))
        found = gaussian_filter(near[:, *box].astype(np.float32), sigma_kji, mode="constant")
        blurred[layers, *box] = found[layers.start - first :][: layers.stop - layers.start]

    in_blocks(work, len(mask), LAYERS_AT_ONCE)
    return blurred


def smooth(surface: Surface, iterations: int = 20, pass_band: float = 0.1) -> Surface:
    """Smooths by a windowed sinc filter, which keeps the volume (Taubin, ICCV 1995).

    Args:
        surface: The surface.
        iterations: Degree of the filter's polynomial.
        pass_band: Between 0 and 2; lower is smoother.

    Returns:
        The surface with the same faces; an open border stays where it is.
    """
    smoother = vtkWindowedSincPolyDataFilter()
    smoother.SetInputData(to_polydata(surface))
    smoother.SetNumberOfIterations(iterations)
    smoother.SetPassBand(pass_band)
    smoother.NormalizeCoordinatesOn()
    smoother.NonManifoldSmoothingOn()
    smoother.BoundarySmoothingOff()
    smoother.FeatureEdgeSmoothingOff()
    smoother.Update()
    points = smoother.GetOutput().GetPoints()
    return Surface(vtk_to_numpy(points.GetData()).astype(np.float64), surface.faces)


def decimate(surface: Surface, target_faces: int) -> Surface:
    """Takes out faces by quadric error.

    Args:
        surface: The surface.
        target_faces: Number of faces to come down to.

    Returns:
        The decimated surface; the surface itself if it has no more faces than that.
    """
    if target_faces >= len(surface.faces):
        return surface
    decimation = vtkQuadricDecimation()
    decimation.SetInputData(to_polydata(surface))
    decimation.SetTargetReduction(1 - target_faces / len(surface.faces))
    decimation.Update()
    return from_polydata(decimation.GetOutput())


def cut_off(surface: Surface, origin: np.ndarray, inwards: np.ndarray) -> Surface:
    """Cuts a closed surface with a plane and closes it with a flat cap.

    Args:
        surface: Closed; VTK works in single precision, so that it should lie near the origin.
        origin: (3,) point of the plane.
        inwards: (3,) normal of the plane, towards what stays.
    """
    plane = vtkPlane()
    plane.SetOrigin(origin)
    plane.SetNormal(inwards)
    planes = vtkPlaneCollection()
    planes.AddItem(plane)
    # One plane at a time: given several at once the filter leaves holes.
    clip = vtkClipClosedSurface()
    clip.SetInputData(to_polydata(surface))
    clip.SetClippingPlanes(planes)
    clip.Update()
    return from_polydata(clip.GetOutput())


def cut_to(surface: Surface, sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> Surface:
    """Cuts a closed surface with several planes and closes it with flat caps.

    Args:
        surface: closed, in mm.
        sides: (point of the plane, normal towards what stays) of each plane, (3,) each.

    Returns:
        The surface, empty where nothing of it stays.
    """
    # Near the origin single precision does no harm.
    centre = surface.vertices.mean(axis=0)
    cut = Surface(surface.vertices - centre, surface.faces)
    for origin, inwards in sides:
        if len(cut.faces) and ((cut.vertices - (origin - centre)) @ inwards).min() < 0:
            cut = cut_off(cut, origin - centre, inwards)
    return Surface(cut.vertices + centre, cut.faces)


def to_polydata(surface: Surface) -> vtkPolyData:
    """Copies a surface into VTK; points keep their type and RAS."""
    points = vtkPoints()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(surface.vertices), deep=True))
    cells = vtkCellArray()
    cells.SetData(3, numpy_to_vtk(np.ascontiguousarray(surface.faces, dtype=np.int64).ravel(), deep=True))
    polydata = vtkPolyData()
    polydata.SetPoints(points)
    polydata.SetPolys(cells)
    return polydata


def from_polydata(polydata: vtkPolyData) -> Surface:
    """Copies VTK polygons, strips included, as triangles; lines and single points are left out."""
    if polydata.GetNumberOfPolys() == 0 and polydata.GetNumberOfStrips() == 0:
        return Surface(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    if polydata.GetNumberOfStrips() or polydata.GetPolys().IsHomogeneous() != 3:
        triangles = vtkTriangleFilter()
        triangles.SetInputData(polydata)
        triangles.PassLinesOff()
        triangles.PassVertsOff()
        triangles.Update()
        polydata = triangles.GetOutput()
    vertices = vtk_to_numpy(polydata.GetPoints().GetData()).astype(np.float64)
    faces = vtk_to_numpy(polydata.GetPolys().GetConnectivityArray()).astype(np.int64).reshape(-1, 3)
    return Surface(vertices, faces)


def voxelize(surface: Surface, shape_kji: tuple[int, int, int], ijk_to_ras: np.ndarray) -> Volume:
    """Bool volume of the voxels whose centres lie inside a closed surface.

    A line along k through each column of voxel centres is cut with the triangles; a centre is inside where the
    triangles before it do not cancel out, so that parts which overlap count once. The cuts are decided in whole
    numbers, so that no line slips through between two triangles; about ten times as fast as VTK's image stencil.

    Args:
        surface: Closed; parts beyond the grid are cut off.
        shape_kji: Number of voxels.
        ijk_to_ras: (4, 4) frame of the grid; may be oblique and left-handed.
    """
    mask = Volume(np.zeros(tuple(int(size) for size in shape_kji), dtype=bool), np.array(ijk_to_ras, dtype=float))
    if len(surface.faces) == 0:
        return mask
    vertices = transformed(surface, mask.ras_to_ijk).vertices
    lower = np.maximum(np.ceil(vertices.min(axis=0)), 0).astype(int)
    upper = np.minimum(np.floor(vertices.max(axis=0)) + 1, mask.shape[::-1]).astype(int)
    if (lower >= upper).any():
        return mask
    # One more layer at the end takes the cuts that lie behind the last centre.
    crossings = np.zeros((upper - lower)[::-1] + (1, 0, 0), dtype=np.int8)
    corners = (vertices - lower)[surface.faces]
    grid = np.rint(corners[..., :2] * STEPS_PER_VOXEL).astype(np.int64)
    first = np.maximum(-(-grid.min(axis=1) // STEPS_PER_VOXEL), 0)
    last = np.minimum(grid.max(axis=1) // STEPS_PER_VOXEL, (upper - lower)[:2] - 1)
    widths = np.maximum(last - first + 1, 0)
    ends = np.cumsum(widths.prod(axis=1))
    for block in np.split(np.arange(len(ends)), np.flatnonzero(np.diff(ends // COLUMNS_AT_ONCE)) + 1):
        _add_crossings(crossings, grid[block], corners[block, :, 2], first[block], widths[block])
    np.cumsum(crossings, axis=0, out=crossings)
    mask.array[tuple(slice(a, b) for a, b in zip(lower[::-1], upper[::-1], strict=True))] = crossings[:-1] != 0
    return mask


def _add_crossings(
    crossings: np.ndarray, grid: np.ndarray, depths: np.ndarray, first: np.ndarray, widths: np.ndarray
) -> None:
    """Adds to each column of voxel centres where a line along k enters (+1) or leaves (-1) through a triangle.

    Args:
        crossings: (K + 1, J, I), changed; an entry stands at the first centre behind the triangle.
        grid: (m, 3, 2) int64 corners of m triangles along i and j, in steps from the first centre.
        depths: (m, 3) corners along k, in voxels from the first centre.
        first: (m, 2) first column, (i, j), of each triangle's bounding box.
        widths: (m, 2) number of columns of that box along i and j.
    """
    counts = widths.prod(axis=1)
    face = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(face)) - np.repeat(np.cumsum(counts) - counts, counts)
    row, column = np.divmod(within, widths[face, 0])
    ij = first[face] + np.column_stack((column, row))
    sides, left = [], []
    for start, end in ((1, 2), (2, 0), (0, 1)):
        along = (grid[:, end] - grid[:, start])[face]
        across = ij * STEPS_PER_VOXEL - grid[face, start]
        side = along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]
        # A line exactly on an edge is taken to lie a trifle further along i, and less so along j.
        on_edge = (along[:, 1] < 0) | ((along[:, 1] == 0) & (along[:, 0] > 0))
        sides.append(side)
        left.append((side > 0) | ((side == 0) & on_edge))
    turn = left[0] & left[1] & left[2], ~(left[0] | left[1] | left[2])
    hit = np.flatnonzero(turn[0] | turn[1])
    weights = np.column_stack(sides)[hit].astype(float)
    depth = np.einsum("ij,ij->i", weights, depths[face[hit]]) / weights.sum(axis=1)
    k = np.clip(np.ceil(depth), 0, len(crossings) - 1).astype(int)
    np.add.at(crossings, (k, ij[hit, 1], ij[hit, 0]), np.where(turn[0][hit], -1, 1).astype(np.int8))
