"""Arrangements of views that show a prediction beside the measured bone, and pictures of them."""

from contextlib import contextmanager

import slicer
from slicer.i18n import tr as _

from BoneReconstructionLib import scene
from TibiaCompletionLib.report import Picture
from TibiaCompletionLib.scene.fragments import newestFor

AROUND_FRACTURE_MM = 25.0  # what slices show beside the mask


def showSlices(prediction):
    """Arrange slices through the fracture with the outlines of measured and PREDICTED bone, and one 3D view."""
    scene.showLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    (tibia, _tibiaID), mask = prediction.input("tibia"), prediction.input("fracture")
    for node in (*_afterwards(prediction), tibia):
        if node is not None and node.GetDisplayNode():
            scene.onlyIn3DView(node)
    prediction.segmentation.GetDisplayNode().SetVisibility(True)
    if tibia is not None and tibia.IsA("vtkMRMLSegmentationNode"):
        tibia.GetDisplayNode().SetVisibility(True)
        tibia.GetDisplayNode().SetVisibility2DOutline(True)
        tibia.GetDisplayNode().SetVisibility2DFill(False)
    lower, upper = scene.boundsOf(*mask) if mask[0] is not None else _bounds(prediction)
    scene.lookAtSlices(prediction.ct, lower - AROUND_FRACTURE_MM, upper + AROUND_FRACTURE_MM)
    view = slicer.app.layoutManager().threeDWidget(0).mrmlViewNode()
    scene.lookAt(view, *_bounds(prediction))


def showBeforeAfter(prediction):
    """Arrange two linked 3D views: the measured bone in the first, the PREDICTED one with what follows in the second."""
    scene.showLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutDual3DView)
    manager = slicer.app.layoutManager()
    before, after = (manager.threeDWidget(index).mrmlViewNode() for index in (0, 1))
    tibia = prediction.input("tibia")[0]
    if tibia is not None and tibia.IsA("vtkMRMLSegmentationNode"):
        tibia.CreateClosedSurfaceRepresentation()
        tibia.GetDisplayNode().SetVisibility(True)
        scene.onlyIn3DView(tibia, before)
    prediction.model.GetDisplayNode().SetVisibility(True)
    for node in _afterwards(prediction):
        scene.onlyIn3DView(node, after)
    for view in (before, after):
        view.SetLinkedControl(True)
        scene.lookAt(view, *_bounds(prediction))


def _afterwards(prediction):
    """What is not as measured: the PREDICTED model, its markups and the fragments at their new places."""
    plan = newestFor(prediction)
    return (prediction.model, *prediction.markups, *(plan.models if plan is not None else ()))


@contextmanager
def _opaque(prediction):
    """Show measured and PREDICTED bone without transparency inside the block."""
    display, (tibia, segmentID) = prediction.model.GetDisplayNode(), prediction.input("tibia")
    opacity = display.GetOpacity()
    isSegment = tibia is not None and tibia.IsA("vtkMRMLSegmentationNode") and scene.hasSegment(tibia, segmentID)
    measured = tibia.GetDisplayNode().GetSegmentOpacity3D(segmentID) if isSegment else None
    try:
        display.SetOpacity(1.0)
        if isSegment:
            tibia.GetDisplayNode().SetSegmentOpacity3D(segmentID, 1.0)
        yield
    finally:
        display.SetOpacity(opacity)
        if isSegment:
            tibia.GetDisplayNode().SetSegmentOpacity3D(segmentID, measured)


def _bounds(prediction):
    vertices = scene.surfaceFromModel(prediction.model).vertices
    return vertices.min(axis=0), vertices.max(axis=0)


def pictures(prediction):
    """Pictures of a prediction for the report, [Picture]; none where Slicer runs without views."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return []
    layout = manager.layout
    showBeforeAfter(prediction)
    with _opaque(prediction):
        pictures = [
            Picture(caption, scene.viewPicture(manager.threeDWidget(index).threeDView()))
            for index, caption in enumerate((_("The bone as measured"), _("The PREDICTED bone")))
        ]
    showSlices(prediction)
    captions = {"Red": _("Axial"), "Yellow": _("Sagittal"), "Green": _("Coronal")}
    for name, caption in captions.items():
        text = _("{slice}: the CT with the outlines of the measured and of the PREDICTED bone")
        pictures.append(Picture(text.format(slice=caption), scene.viewPicture(manager.sliceWidget(name).sliceView())))
    manager.setLayout(layout)
    return pictures
