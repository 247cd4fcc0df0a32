"""Surface and segmentation files pass between this library and Slicer's own storage nodes without moving."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

import vtk
from phantoms import (
    Ball,
    Solid,
    centroid_ras,
    frame,
    solid_mask,
    solid_surface,
    sphere_surface,
    voxel_centres,
)
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from BoneReconstructionLib.meshing import from_polydata, to_polydata
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.volumes import Volume, read_mask

SUFFIXES = [".ply", ".stl", ".obj", ".vtp"]


def storage_node(scene, node_class, path):
    node = getattr(slicer, node_class)()
    scene.AddNode(node)
    node.SetFileName(str(path))
    return node


def oriented_image(mask):
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(mask.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(mask.array.astype(np.uint8).ravel(), deep=True))
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(mask.ijk_to_ras.ravel())
    image.SetImageToWorldMatrix(matrix)
    return image


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slicer_reads_our_surface_files_at_the_same_place(tmp_path, scene, suffix):
    surface = solid_surface()
    write_surface(tmp_path / f"tibia é{suffix}", surface)
    model = slicer.vtkMRMLModelNode()
    scene.AddNode(model)
    storage = storage_node(scene, "vtkMRMLModelStorageNode", tmp_path / f"tibia é{suffix}")
    # Were our header not understood, the node's own setting would decide.
    storage.SetCoordinateSystem(slicer.vtkMRMLStorageNode.CoordinateSystemRAS)
    assert storage.ReadData(model)
    in_slicer = from_polydata(model.GetPolyData())
    np.testing.assert_allclose(in_slicer.vertices[in_slicer.faces], surface.vertices[surface.faces], atol=2e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("system", ["CoordinateSystemLPS", "CoordinateSystemRAS"])
def test_we_read_slicer_s_surface_files_at_the_same_place(tmp_path, scene, suffix, system):
    surface = solid_surface()
    model = slicer.vtkMRMLModelNode()
    scene.AddNode(model)
    model.SetAndObservePolyData(to_polydata(surface))
    storage = storage_node(scene, "vtkMRMLModelStorageNode", tmp_path / f"tibia{suffix}")
    storage.SetCoordinateSystem(getattr(slicer.vtkMRMLStorageNode, system))
    assert storage.WriteData(model)
    again = read_surface(tmp_path / f"tibia{suffix}")
    np.testing.assert_allclose(again.vertices[again.faces], surface.vertices[surface.faces], atol=2e-3)


def test_slicer_shows_the_values_at_the_vertices_of_our_vtp_files(tmp_path, scene):
    surface = sphere_surface(subdivisions=3)
    values = np.linspace(-3, 4, len(surface.vertices))
    values[5] = np.nan
    write_surface(tmp_path / "tibia.vtp", surface, {"DistanceToVisibleBone_mm": values})
    model = slicer.vtkMRMLModelNode()
    scene.AddNode(model)
    assert storage_node(scene, "vtkMRMLModelStorageNode", tmp_path / "tibia.vtp").ReadData(model)
    array = model.GetPolyData().GetPointData().GetArray("DistanceToVisibleBone_mm")
    np.testing.assert_allclose(vtk_to_numpy(array), values, rtol=1e-6)


def test_we_read_overlapping_segments_that_slicer_wrote(tmp_path, scene):
    tibia = solid_mask(frame((0.6, 0.7, 1.5), flipped_axes="j"))
    inside_ball = Solid((Ball((28, -38, 208), 4),)).signed_distance(voxel_centres(tibia.shape, tibia.ijk_to_ras)) < 0
    masks = {"Tibia gauche: é": tibia, "Fracture": Volume(inside_ball, tibia.ijk_to_ras)}
    segmentation = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(segmentation)
    segmentation.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    for name, mask in masks.items():
        segmentation.AddSegmentFromBinaryLabelmapRepresentation(oriented_image(mask), name, [1, 0, 0])
    path = tmp_path / "mon étude.seg.nrrd"
    assert storage_node(scene, "vtkMRMLSegmentationStorageNode", path).WriteData(segmentation)
    for name, mask in masks.items():
        again = read_mask(f"{path}:{name}")
        assert again.array.sum() == mask.array.sum()
        np.testing.assert_allclose(centroid_ras(again), centroid_ras(mask), atol=1e-6)
