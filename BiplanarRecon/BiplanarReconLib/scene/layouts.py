"""Arrangements of views: both X-rays with outlines beside the 3D view, and the 3D view through an X-ray's own camera."""

import numpy as np
import slicer
import slicer.util
from slicer.i18n import tr as _

from BiplanarReconLib.scene import xrays
from BoneReconstructionLib import scene
from BoneReconstructionLib.errors import InputError

SLICES = {"frontal": "Red", "lateral": "Green"}
FREE_VIEW_DEGREES = 30.0
# Around the image, seen through its own camera.
MARGIN = 1.05
# How far from above the free view looks, of the way that the sources look.
FROM_ABOVE = 0.5


def showBoth(nodes, reconstruction=None):
    """Arrange both X-rays as slices, each with its outlines only, and everything in the 3D view.

    Args:
        nodes: {"frontal" or "lateral": X-ray or None}, one of them at least with a geometry.
        reconstruction: `reconstructions.Reconstruction` or None.
    """
    scene.showLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    manager = slicer.app.layoutManager()
    placed = {name: node for name, node in nodes.items() if node is not None and not xrays.recordOf(node).reason}
    for name, node in placed.items():
        widget = manager.sliceWidget(SLICES[name])
        composite = widget.sliceLogic().GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(node.GetID())
        composite.SetForegroundVolumeID(None)
        composite.SetLabelVolumeID(None)
        _lookAtImage(widget.mrmlSliceNode(), xrays.recordOf(node).geometry)
        for outline in reconstruction.outlines[name] if reconstruction is not None else ():
            _onlyInSlice(outline.GetDisplayNode(), widget.mrmlSliceNode())
    lookFreely(list(placed.values()))


def lookThrough(node):
    """Turn the first 3D view to an X-ray, seen from its own source: bones lie over what they have drawn on it.

    Raises:
        InputError: the X-ray has no geometry, or the layout has no 3D view.
    """
    geometry = xrays.recordOf(node).geometry
    camera = _camera()
    extent = np.array(geometry.shape[::-1]) * geometry.spacing_uv
    camera.SetPosition(*geometry.source)
    camera.SetFocalPoint(*geometry.detector_centre)
    camera.SetViewUp(*-geometry.v)
    distance = np.linalg.norm(geometry.detector_centre - geometry.source)
    height = max(extent[1], extent[0] / _aspect())
    camera.SetViewAngle(float(np.degrees(2 * np.arctan(MARGIN * height / 2 / distance))))
    camera.ResetClippingRange()


def lookFreely(nodes):
    """Turn the first 3D view to X-rays with a geometry, from above and between their sources."""
    views = [xrays.recordOf(node).geometry for node in nodes]
    sources = -sum(view.beam for view in views)
    direction = sources / np.linalg.norm(sources) + (0, 0, FROM_ABOVE)
    camera = _camera()
    camera.SetViewAngle(FREE_VIEW_DEGREES)
    scene.lookAt(_view(), *xrays.boundsOf(nodes), direction / np.linalg.norm(direction))
    if _aspect() < 1:  # as wide as high
        camera.SetViewAngle(float(np.degrees(2 * np.arctan(np.tan(np.radians(FREE_VIEW_DEGREES / 2)) / _aspect()))))


def _widget():
    manager = slicer.app.layoutManager()
    if manager.threeDViewCount == 0:
        raise InputError(_("There is no 3D view: choose a layout with one."))
    return manager.threeDWidget(0)


def _view():
    return _widget().mrmlViewNode()


def _camera():
    return slicer.modules.cameras.logic().GetViewActiveCameraNode(_view())


def _aspect():
    """Width of the 3D view by its height."""
    width, height = _widget().threeDView().renderWindow().GetSize()
    return max(width, 1) / max(height, 1)


def _lookAtImage(sliceNode, geometry):
    """Show an X-ray as it was taken: rows to the right, columns down."""
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = geometry.u, -geometry.v
    matrix[:3, 2] = np.cross(geometry.u, -geometry.v)
    matrix[:3, 3] = geometry.detector_centre
    sliceNode.GetSliceToRAS().DeepCopy(slicer.util.vtkMatrixFromArray(matrix))
    width, height = np.array(geometry.shape[::-1]) * geometry.spacing_uv
    columns, rows = sliceNode.GetDimensions()[:2]
    per_pixel = max(width / max(columns, 1), height / max(rows, 1)) * MARGIN
    sliceNode.SetFieldOfView(per_pixel * columns, per_pixel * rows, sliceNode.GetFieldOfView()[2])
    sliceNode.UpdateMatrices()


def _onlyInSlice(display, sliceNode):
    """Draw in one slice view, and in all 3D views."""
    display.RemoveAllViewNodeIDs()
    for view in (sliceNode, *slicer.util.getNodesByClass("vtkMRMLViewNode")):
        display.AddViewNodeID(view.GetID())
