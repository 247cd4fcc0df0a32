"""Surfaces: from volumes and back, smoothing, decimation, files, measures."""

import os

import numpy as np
import pytest
from phantoms import (
    ASYMMETRIC_SOLID,
    Ball,
    Solid,
    box_surface,
    centroid_ras,
    covering_grid,
    frame,
    solid_ct,
    solid_mask,
    solid_surface,
    sphere_surface,
    voxel_centres,
)
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkPoints
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
from vtkmodules.vtkFiltersCore import vtkImplicitPolyDataDistance
from vtkmodules.vtkImagingStencil import vtkImageStencilToImage, vtkPolyDataToImageStencil
from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

from BoneReconstructionLib import meshing
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import (
    decimate,
    from_polydata,
    isosurface,
    mask_surface,
    smooth,
    to_polydata,
    voxelize,
)
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.surfaces import (
    Surface,
    area_mm2,
    is_closed,
    joined,
    largest_component,
    transformed,
    vertex_normals,
    volume_mm3,
)
from BoneReconstructionLib.volumes import Volume

FRAMES = {
    "axial": frame(turn_degrees=(0, 0, 0), flipped_axes="ij"),
    "oblique": frame(),
    "oblique left-handed": frame(flipped_axes="k"),
    "steep left-handed": frame(spacing=(0.9, 0.5, 1.3), turn_degrees=(80, 40, -130), flipped_axes="ijk"),
}
BALL = Ball((30, -40, 210), 20)


def rough(surface, amplitude=0.3):
    """The surface with its vertices moved to and fro along their normals."""
    offsets = amplitude * np.random.default_rng(1).standard_normal((len(surface.vertices), 1))
    return Surface(surface.vertices + offsets * vertex_normals(surface), surface.faces)


def open_surface():
    sphere = sphere_surface(subdivisions=2)
    return Surface(sphere.vertices, sphere.faces[1:])


@pytest.mark.parametrize("name", FRAMES)
def test_an_isosurface_lies_on_the_bone_and_looks_outward(name):
    surface = isosurface(solid_ct(FRAMES[name]), 300)
    distance = np.abs(ASYMMETRIC_SOLID.signed_distance(surface.vertices))
    assert distance.mean() < 0.03
    assert is_closed(surface)
    # Flying edges cut the box's corners off, nothing else.
    assert volume_mm3(surface) == pytest.approx(ASYMMETRIC_SOLID.volume, rel=0.02)
    step = surface.vertices + 0.5 * vertex_normals(surface)
    assert (ASYMMETRIC_SOLID.signed_distance(step) > ASYMMETRIC_SOLID.signed_distance(surface.vertices)).mean() > 0.999


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32])
def test_isosurfaces_are_made_of_any_scalar_type(dtype):
    mask = solid_mask(FRAMES["oblique left-handed"])
    surface = isosurface(Volume(mask.array.astype(dtype), mask.ijk_to_ras), 0.5)
    assert volume_mm3(surface) == pytest.approx(mask.array.sum() * np.prod(mask.spacing), rel=0.03)


def test_an_isosurface_of_nothing_is_empty():
    surface = isosurface(Volume(np.zeros((4, 5, 6), dtype=np.int16), frame()), 300)
    assert surface.vertices.shape == surface.faces.shape == (0, 3)


@pytest.mark.parametrize("flipped_axes", ["", "i"])
def test_the_surface_of_a_ball_s_mask_is_within_a_tenth_of_a_millimetre(flipped_axes):
    solid = Solid((BALL,))
    mask = solid_mask(frame((0.6, 0.6, 1.0), flipped_axes=flipped_axes), solid=solid)
    surface = mask_surface(mask)
    assert is_closed(surface)
    assert np.abs(solid.signed_distance(surface.vertices)).mean() < 0.1
    assert volume_mm3(surface) == pytest.approx(solid.volume, rel=0.01)


def test_the_surface_of_a_thin_rod_s_mask_keeps_its_volume_and_its_place():
    axis = np.array([0.6, 0.5, 0.62]) / np.linalg.norm([0.6, 0.5, 0.62])
    ijk_to_ras = frame((0.6, 0.6, 1.0))
    shape = (60, 90, 90)
    points = voxel_centres(shape, ijk_to_ras)
    points = points - points.reshape(-1, 3).mean(axis=0)
    along = points @ axis
    across = np.linalg.norm(points - along[..., None] * axis, axis=-1)
    mask = Volume((across < 4) & (np.abs(along) < 20), ijk_to_ras)
    surface = mask_surface(mask)
    assert volume_mm3(surface) == pytest.approx(mask.array.sum() * 0.36, rel=0.01)
    vertices = surface.vertices - voxel_centres(shape, ijk_to_ras).reshape(-1, 3).mean(axis=0)
    along = vertices @ axis
    across = np.linalg.norm(vertices - along[:, None] * axis, axis=1)
    assert np.abs(across - 4)[np.abs(along) < 15].mean() < 0.1


def test_a_slanting_mask_is_smoothed_in_layers_as_it_is_at_once(monkeypatch):
    k, j, i = np.indices((60, 50, 40))
    mask = Volume((i - k / 3 - 8) ** 2 + (j - k / 2 - 9) ** 2 < 40, frame(flipped_axes="j"))
    surfaces = []
    for layers in (7, 1000):
        monkeypatch.setattr(meshing, "LAYERS_AT_ONCE", layers)
        surfaces.append(mask_surface(mask))
    np.testing.assert_array_equal(surfaces[0].vertices, surfaces[1].vertices)


def test_a_stated_sigma_smooths_in_millimetres_and_keeps_the_volume():
    mask = solid_mask(frame((0.6, 0.6, 1.0)), solid=Solid((Ball((3, 4, 5), 8),)))
    default, smoother = mask_surface(mask), mask_surface(mask, sigma_mm=1.5)
    assert volume_mm3(smoother) == pytest.approx(volume_mm3(default), rel=0.02)
    roughness = [np.std(np.linalg.norm(surface.vertices - (3, 4, 5), axis=1)) for surface in (default, smoother)]
    assert roughness[1] < 0.7 * roughness[0]


def test_a_mask_that_fills_its_volume_is_closed_at_the_border():
    surface = mask_surface(Volume(np.ones((10, 12, 14), dtype=bool), frame(flipped_axes="j")))
    assert is_closed(surface)
    assert volume_mm3(surface) == pytest.approx(10 * 12 * 14 * 0.42, rel=0.01)


def test_the_surface_of_a_single_voxel_s_mask_is_closed():
    array = np.zeros((5, 5, 5), dtype=bool)
    array[2, 3, 1] = True
    surface = mask_surface(Volume(array, frame()))
    assert is_closed(surface)
    np.testing.assert_allclose(surface.vertices.mean(axis=0), frame()[:3, :3] @ (1, 3, 2), atol=1e-3)


def test_an_empty_mask_has_no_surface():
    with pytest.raises(InputError, match="empty"):
        mask_surface(Volume(np.zeros((5, 5, 5), dtype=bool), np.eye(4)))


@pytest.mark.parametrize("name", FRAMES)
def test_voxelizing_marks_the_voxels_whose_centres_are_inside(name):
    shape, ijk_to_ras = covering_grid(FRAMES[name])
    mask = voxelize(solid_surface(), shape, ijk_to_ras)
    distance = ASYMMETRIC_SOLID.signed_distance(voxel_centres(shape, ijk_to_ras))
    assert mask.array.dtype == bool
    assert (mask.array != (distance < 0))[np.abs(distance) > 0.02].sum() == 0
    # The box's faces run along the axial grid, so that one layer more or less is its whole share.
    assert mask.array.sum() * np.prod(mask.spacing) == pytest.approx(ASYMMETRIC_SOLID.volume, rel=0.03)


@pytest.mark.parametrize("flipped_axes", ["", "i"])
def test_voxelizing_keeps_volume_and_place(flipped_axes):
    shape, ijk_to_ras = covering_grid(frame(flipped_axes=flipped_axes))
    mask = voxelize(solid_surface(), shape, ijk_to_ras)
    assert mask.array.sum() * 0.42 == pytest.approx(ASYMMETRIC_SOLID.volume, rel=0.01)
    np.testing.assert_allclose(centroid_ras(mask), ASYMMETRIC_SOLID.centroid, atol=0.05)


def test_voxelizing_cuts_off_what_lies_beyond_the_grid():
    mask = voxelize(box_surface((1.1, 13.5, 1.65), (4.1, 16.5, 4.65)), (20, 20, 20), np.eye(4))
    expected = np.zeros((20, 20, 20), dtype=bool)
    expected[:7, :, :6] = True
    np.testing.assert_array_equal(mask.array, expected)
    assert not voxelize(box_surface((100, 0, 0)), (20, 20, 20), np.eye(4)).array.any()
    assert not voxelize(box_surface((4.5, 4.5, 4.5), (0.3, 0.3, 0.3)), (20, 20, 20), np.eye(4)).array.any()


@pytest.mark.parametrize("dtype", [bool, np.int16])
def test_voxelizing_an_isosurface_whose_vertices_lie_on_the_grid_leaks_nowhere(dtype):
    # Flying edges put every vertex on a line between two centres: all lines along k run through vertices or edges.
    mask = solid_mask(FRAMES["oblique"])
    surface = isosurface(Volume(mask.array.astype(dtype), mask.ijk_to_ras), 0.3)
    np.testing.assert_array_equal(voxelize(surface, mask.shape, mask.ijk_to_ras).array, mask.array)
    on_centres = mask.ijk_to_ras.copy()
    on_centres[:3, 3] += mask.ijk_to_ras[:3, :3] @ (0.3, 0.3, 0.3)
    again = voxelize(isosurface(Volume(mask.array, mask.ijk_to_ras), 0.7), mask.shape, on_centres).array
    assert (again != mask.array).sum() < 0.2 * mask.array.sum()


def test_voxelizing_agrees_with_vtk():
    surface = transformed(rough(sphere_surface(15.3, (20.2, 21.7, 19.9))), np.diag([1.0, 1.1, 0.9, 1.0]))
    stencil = vtkPolyDataToImageStencil()
    stencil.SetInputData(to_polydata(surface))
    stencil.SetOutputWholeExtent(0, 44, 0, 49, 0, 39)
    image = vtkImageStencilToImage()
    image.SetInputConnection(stencil.GetOutputPort())
    image.SetInsideValue(1)
    image.Update()
    expected = vtk_to_numpy(image.GetOutput().GetPointData().GetScalars()).reshape(40, 50, 45)
    assert expected.sum() > 10_000
    np.testing.assert_array_equal(voxelize(surface, (40, 50, 45), np.eye(4)).array, expected)


def test_parts_that_overlap_are_voxelized_once():
    parts = sphere_surface(8, (12, 15, 15)), sphere_surface(7, (20, 14, 16))
    both = voxelize(joined(parts), (30, 30, 40), np.eye(4)).array
    np.testing.assert_array_equal(
        both, np.any([voxelize(part, (30, 30, 40), np.eye(4)).array for part in parts], axis=0)
    )


def test_large_triangles_are_voxelized_in_several_blocks(monkeypatch):
    box = transformed(box_surface((0, 0, 0), (9, 7, 5)), frame((1, 1, 1)))
    placed = Surface(box.vertices + 15, box.faces)
    whole = voxelize(placed, (30, 30, 30), np.eye(4)).array
    monkeypatch.setattr(meshing, "COLUMNS_AT_ONCE", 100)
    np.testing.assert_array_equal(voxelize(placed, (30, 30, 30), np.eye(4)).array, whole)
    assert whole.sum() == pytest.approx(8 * 9 * 7 * 5, rel=0.02)


def test_a_mask_becomes_a_surface_and_the_same_mask_again():
    mask = solid_mask(FRAMES["steep left-handed"], solid=Solid(ASYMMETRIC_SOLID.parts[:2]))
    again = voxelize(mask_surface(mask), mask.shape, mask.ijk_to_ras)
    dice = 2 * (again.array & mask.array).sum() / (again.array.sum() + mask.array.sum())
    assert dice > 0.98


def test_smoothing_takes_noise_off_and_keeps_the_volume():
    sphere = sphere_surface(BALL.radius, BALL.centre)
    noisy = rough(sphere)
    smoothed = smooth(noisy)
    before, after = (np.std(BALL.signed_distance(surface.vertices)) for surface in (noisy, smoothed))
    assert after < 0.5 * before
    assert volume_mm3(smoothed) == pytest.approx(volume_mm3(noisy), rel=0.005)
    assert volume_mm3(smooth(sphere)) == pytest.approx(volume_mm3(sphere), rel=0.005)
    np.testing.assert_array_equal(smoothed.faces, noisy.faces)


def test_smoothing_far_from_the_origin_is_as_exact_as_near_it():
    near = rough(sphere_surface(centre=(0, 0, 0)))
    far = Surface(near.vertices + (400, -900, 1500), near.faces)
    np.testing.assert_allclose(smooth(far).vertices - (400, -900, 1500), smooth(near).vertices, atol=1e-3)


def test_decimation_reaches_its_target_near_the_surface():
    sphere = sphere_surface(BALL.radius, BALL.centre)
    decimated = decimate(sphere, 800)
    assert len(decimated.faces) <= 820
    assert is_closed(decimated)
    assert volume_mm3(decimated) == pytest.approx(volume_mm3(sphere), rel=0.01)
    implicit = vtkImplicitPolyDataDistance()
    implicit.SetInput(to_polydata(decimated))
    measured = max(abs(implicit.EvaluateFunction(vertex)) for vertex in sphere.vertices)
    assert 0.05 < measured < 0.6


def test_decimation_to_more_faces_than_there_are_changes_nothing():
    sphere = sphere_surface(subdivisions=2)
    decimated = decimate(sphere, 10_000)
    np.testing.assert_array_equal(decimated.faces, sphere.faces)


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".obj", ".vtp", ".PLY"])
def test_a_surface_comes_back_from_a_file_at_its_place(tmp_path, suffix):
    surface = solid_surface()
    path = tmp_path / f"Dr. Lékař é{suffix}"
    write_surface(path, surface)
    again = read_surface(path)
    assert len(again.faces) == len(surface.faces)
    assert is_closed(again)
    np.testing.assert_allclose(again.vertices[again.faces], surface.vertices[surface.faces], atol=2e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("suffix", "header"),
    [
        (".ply", b"comment SPACE=LPS\n"),
        (".stl", b"SPACE=LPS"),
        (".obj", b"# BoneReconstruction output. SPACE=LPS\n"),
        (".vtp", b'Name="SPACE"'),
    ],
)
def test_files_say_that_they_are_lps_where_slicer_looks_for_it(tmp_path, suffix, header):
    write_surface(tmp_path / f"tibia{suffix}", solid_surface())
    assert header in (tmp_path / f"tibia{suffix}").read_bytes()[:600]


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".obj"])
def test_a_file_marked_ras_is_taken_as_it_is_and_an_unmarked_one_as_lps(tmp_path, suffix):
    surface = solid_surface()
    path = tmp_path / f"tibia{suffix}"
    write_surface(path, surface)
    lps = surface.vertices[surface.faces] * (-1, -1, 1)
    original = path.read_bytes()
    path.write_bytes(original.replace(b"SPACE=LPS", b"SPACE=RAS"))
    marked_ras = read_surface(path)
    np.testing.assert_allclose(marked_ras.vertices[marked_ras.faces], lps, atol=2e-5)
    path.write_bytes(original.replace(b"SPACE=LPS", b"no remark"))
    unmarked = read_surface(path)
    np.testing.assert_allclose(unmarked.vertices[unmarked.faces], surface.vertices[surface.faces], atol=2e-5)


def test_values_at_the_vertices_are_kept_by_vtp_and_refused_by_others(tmp_path):
    surface = sphere_surface(subdivisions=3)
    values = np.linspace(-3, 4, len(surface.vertices))
    values[5] = np.nan
    write_surface(tmp_path / "tibia.vtp", surface, {"DistanceToVisibleBone_mm": values})
    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "tibia.vtp"))
    reader.Update()
    kept = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars())
    np.testing.assert_allclose(kept, values, rtol=1e-6)
    np.testing.assert_allclose(read_surface(tmp_path / "tibia.vtp").vertices, surface.vertices, atol=2e-5)
    with pytest.raises(InputError, match=r"\.vtp"):
        write_surface(tmp_path / "tibia.ply", surface, {"values": values})
    assert not (tmp_path / "tibia.ply").exists()


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    for suffix in (".ply", ".stl", ".obj", ".vtp"):
        (tmp_path / f"text{suffix}").write_text("no mesh\n")
        with pytest.raises(InputError, match="cannot be read"):
            read_surface(tmp_path / f"text{suffix}")
        with pytest.raises(InputError, match="does not exist"):
            read_surface(tmp_path / f"missing{suffix}")
    with pytest.raises(InputError, match="none of the endings"):
        read_surface(tmp_path / "tibia.step")
    with pytest.raises(InputError, match="none of the endings"):
        write_surface(tmp_path / "tibia.step", solid_surface())
    with pytest.raises(InputError, match="cannot be written"):
        write_surface(tmp_path / "missing" / "tibia.ply", solid_surface())


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "tibia.ply"
    write_surface(path, sphere_surface(subdivisions=2))
    before = path.read_bytes()

    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(InputError, match="cannot be written"):
        write_surface(path, sphere_surface(subdivisions=3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["tibia.ply"]
    assert path.read_bytes() == before


def test_polygons_and_strips_become_triangles_and_lines_are_left_out():
    points = vtkPoints()
    for point in [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 2, 0), (1, 2, 0)]:
        points.InsertNextPoint(point)
    polygons, strips, lines = vtkCellArray(), vtkCellArray(), vtkCellArray()
    polygons.InsertNextCell(4, (0, 1, 2, 3))
    strips.InsertNextCell(4, (3, 2, 4, 5))
    lines.InsertNextCell(2, (0, 5))
    polydata = vtkPolyData()
    polydata.SetPoints(points)
    polydata.SetPolys(polygons)
    polydata.SetStrips(strips)
    polydata.SetLines(lines)
    surface = from_polydata(polydata)
    assert surface.faces.shape == (4, 3)
    assert surface.faces.dtype == np.int64
    assert area_mm2(surface) == pytest.approx(2)
    np.testing.assert_allclose(vertex_normals(surface), np.tile((0, 0, 1), (6, 1)))


def test_polydata_keeps_doubles_and_outlives_the_arrays_it_came_from():
    surface = sphere_surface(subdivisions=3)
    polydata = to_polydata(Surface(surface.vertices.copy(), surface.faces.copy()))
    again = from_polydata(polydata)
    np.testing.assert_array_equal(again.vertices, surface.vertices)
    np.testing.assert_array_equal(again.faces, surface.faces)


def test_measures_of_a_ball_and_a_box():
    sphere = sphere_surface(20, (400, -900, 1500), subdivisions=6)
    assert volume_mm3(sphere) == pytest.approx(4 / 3 * np.pi * 8000, rel=1e-3)
    assert area_mm2(sphere) == pytest.approx(4 * np.pi * 400, rel=1e-3)
    np.testing.assert_allclose(vertex_normals(sphere), (sphere.vertices - (400, -900, 1500)) / 20, atol=0.01)
    assert volume_mm3(box_surface(half=(1, 2, 3))) == pytest.approx(48)
    assert area_mm2(box_surface(half=(1, 2, 3))) == pytest.approx(88)


def test_only_a_surface_without_holes_and_double_edges_is_closed():
    sphere = sphere_surface(subdivisions=2)
    assert is_closed(sphere)
    assert not is_closed(open_surface())
    turned = sphere.faces.copy()
    turned[0] = turned[0, ::-1]
    assert not is_closed(Surface(sphere.vertices, turned))
    assert not is_closed(Surface(sphere.vertices, np.vstack([sphere.faces, sphere.faces])))
    assert not is_closed(Surface(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)))


def test_a_mirrored_surface_still_looks_outward():
    surface = solid_surface()
    for matrix in (np.diag([-1.0, 1, 1, 1]), frame(flipped_axes="k"), frame()):
        moved = transformed(surface, matrix)
        assert volume_mm3(moved) == pytest.approx(volume_mm3(surface) * abs(np.linalg.det(matrix)))
        np.testing.assert_allclose(moved.vertices, surface.vertices @ matrix[:3, :3].T + matrix[:3, 3])


def test_the_largest_component_is_that_of_the_largest_area_not_of_the_most_faces():
    surface = joined((sphere_surface(3, (0, 0, 0), 4), sphere_surface(10, (50, 0, 0), 2), box_surface((-30, 0, 0))))
    largest = largest_component(surface)
    np.testing.assert_allclose(largest.vertices.mean(axis=0), (50, 0, 0), atol=1e-9)
    assert is_closed(largest)
    assert len(largest.vertices) == 66
