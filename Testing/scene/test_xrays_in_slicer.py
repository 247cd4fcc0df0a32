"""X-rays in the scene: planes at their true place with their image on them, kept with the scene, seen from the source."""

from dataclasses import replace

import numpy as np
import pytest

from BoneReconstructionLib.radiographs import Radiograph
from BoneReconstructionLib.xraygeometry import preset_view

SHAPE = (96, 72)
ISOCENTRE = (25.0, -60.0, 410.0)


@pytest.fixture
def slicer(application):
    import slicer
    return slicer


def radiograph(geometry, point):
    """A bright spot where a point is seen, 3 by 5 pixels, on a dark ground."""
    values = np.tile(np.linspace(0.2, 0.4, SHAPE[0], dtype=np.float32)[:, None], SHAPE[1])
    column, row = np.round(geometry.project(np.array([point]))[0]).astype(int)
    values[row - 2:row + 3, column - 1:column + 2] = 3.0
    return Radiograph(values, np.ones(SHAPE, bool), None, None, {}, ("values are line integrals",))


def add(view, point=ISOCENTRE, turn=0.0):
    from BiplanarReconLib.scene import xrays
    from BiplanarReconLib.xrayrecords import record_of
    geometry = preset_view("c-arm", view, ISOCENTRE, turn).resized(SHAPE)
    image = radiograph(geometry, point)
    record = replace(record_of(image).from_geometry(geometry, "a test"), view=view, side="right")
    return xrays.addXray(image, f"{view} X-ray", record), geometry


def models(node):
    from BiplanarReconLib.scene import xrays
    return [node.GetNodeReference(role) for role in (xrays.PLANE_ROLE, xrays.BEAM_ROLE)]


def test_image_plane_and_beam_lie_where_the_geometry_says(slicer):
    from BoneReconstructionLib import scene
    node, geometry = add("AP", turn=20.0)
    volume = scene.volumeFromNode(node)
    pixels = np.array([[0, 0], [SHAPE[1] - 1, 0], [3, SHAPE[0] - 1]])
    placed = (volume.ijk_to_ras @ np.column_stack([pixels, np.zeros(3), np.ones(3)]).T).T[:, :3]
    assert np.allclose(placed, geometry.pixel_positions(pixels), atol=1e-9)
    assert np.linalg.det(volume.ijk_to_ras[:3, :3]) > 0
    plane, beam = models(node)
    corners = slicer.util.arrayFromModelPoints(plane)
    assert np.allclose(geometry.project(corners.astype(float)), [(-0.5, -0.5), (71.5, -0.5), (71.5, 95.5), (-0.5, 95.5)],
                       atol=1e-3)
    points = slicer.util.arrayFromModelPoints(beam)
    assert np.abs(points - geometry.source).max(axis=1).min() < 1e-2
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node)
    assert {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(model)) for model in (plane, beam)} == {item}


def test_an_x_ray_that_loses_its_geometry_loses_its_plane_until_it_has_one_again(slicer):
    from BiplanarReconLib.scene import xrays
    node, _geometry = add("AP")
    count = slicer.mrmlScene.GetNumberOfNodes()
    record = xrays.recordOf(node)
    xrays.keep(node, record.changed("source_detector_mm", None))
    assert not any(model.GetDisplayNode().GetVisibility() for model in models(node))
    xrays.keep(node, record.changed("source_detector_mm", 1200.0))
    assert all(model.GetDisplayNode().GetVisibility() for model in models(node))
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert xrays.recordOf(node).geometry.source_detector_mm == pytest.approx(1200)


def test_the_camera_of_an_x_ray_sees_a_point_over_its_image(application, slicer, tmp_path):
    """Also in a scene that was saved and opened again."""
    from BiplanarReconLib.scene import layouts, xrays
    point = np.array(ISOCENTRE) + (18, 4, 25)
    node, geometry = add("AP", point, turn=15.0)
    path = str(tmp_path / "x-ray scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    (node,) = [one for one in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if xrays.isXray(one)]
    assert np.allclose(xrays.recordOf(node).geometry.project(point[None]), geometry.project(point[None]), atol=1e-6)
    xrays.restoreTextures()
    application.openViews()
    node.GetDisplayNode().SetWindowLevel(3.0, 1.4)  # the plane follows
    layouts.lookThrough(node)
    bright, picture = spot(slicer)
    camera = slicer.modules.cameras.logic().GetViewActiveCameraNode(
        slicer.app.layoutManager().threeDWidget(0).mrmlViewNode())
    assert np.allclose(camera.GetPosition(), geometry.source)
    # What the image shows of the point lies in the picture where the point itself does.
    expected = inPicture(camera, point, picture.shape)
    assert np.abs(bright - expected).max() < 3
    spread = picture[..., :3].astype(int).max() - np.median(picture[100:-100, 100:-100])
    assert spread > 100


def spot(slicer):
    """Middle of the brightest part of the 3D view's picture, (x, y) from its top left, and the picture."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy
    view = slicer.app.layoutManager().threeDWidget(0).threeDView()
    view.forceRender()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(view.renderWindow())
    grabber.ReadFrontBufferOff()
    grabber.Update()
    image = grabber.GetOutput()
    width, height, _depth = image.GetDimensions()
    picture = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1]
    rows, columns = np.nonzero((picture[..., :3] > 245).all(axis=2))
    return np.array([columns.mean(), rows.mean()]), picture


def inPicture(camera, point, shape):
    """(x, y) of a RAS point in a picture of a camera."""
    matrix = camera.GetCamera().GetCompositeProjectionTransformMatrix(shape[1] / shape[0], -1, 1)
    projection = np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
    x, y, _z, w = projection @ np.append(point, 1)
    return np.array([(x / w + 1) / 2 * shape[1], (1 - y / w) / 2 * shape[0]])


def test_both_x_rays_are_shown_as_they_were_taken(application, slicer):
    from BiplanarReconLib.scene import layouts
    application.openViews()
    frontal, geometry = add("PA")
    lateral, _other = add("right lateral")
    layouts.showBoth({"frontal": frontal, "lateral": lateral})
    widget = slicer.app.layoutManager().sliceWidget("Red")
    assert widget.sliceLogic().GetSliceCompositeNode().GetBackgroundVolumeID() == frontal.GetID()
    matrix = slicer.util.arrayFromVTKMatrix(widget.mrmlSliceNode().GetSliceToRAS())
    assert np.allclose(matrix[:3, 0], geometry.u) and np.allclose(matrix[:3, 1], -geometry.v)
    assert np.allclose(matrix[:3, 3], geometry.detector_centre)
    width, height = widget.mrmlSliceNode().GetFieldOfView()[:2]
    extent = np.array(SHAPE[::-1]) * geometry.spacing_uv
    assert width >= extent[0] and height >= extent[1] and min(width / extent[0], height / extent[1]) < 1.1


def test_an_x_ray_is_written_as_it_was_read(application, slicer, tmp_path):
    from BiplanarReconLib.scene import xrays
    from BoneReconstructionLib.radiographs import read_radiograph
    from BoneReconstructionLib.xraygeometryfiles import read_geometry
    node, geometry = add("left lateral")
    image, described = xrays.write(tmp_path, "lateral", node)
    assert np.array_equal(read_radiograph(image).line_integrals, slicer.util.arrayFromVolume(node)[0])
    assert np.allclose(read_geometry(described, SHAPE).source, geometry.source)
