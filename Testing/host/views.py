"""Pictures of the scene through Slicer's displayable managers, and of panels; each is stamped as the test host's.

`sliceView` and `threeDView` save a PNG and return its pixels without the stamp, (height, width, 3) uint8, for tests
that count colours in regions. They leave no nodes in the scene.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from vtkmodules.util.numpy_support import vtk_to_numpy

from host import qtcompat

STAMP = "test host, not 3D Slicer"
SLICE_MANAGERS = ("vtkMRMLVolumeGlyphSliceDisplayableManager", "vtkMRMLModelSliceDisplayableManager",
                   "vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLMarkupsDisplayableManager",
                   "vtkMRMLColorLegendDisplayableManager")
THREE_D_MANAGERS = ("vtkMRMLCameraDisplayableManager", "vtkMRMLViewDisplayableManager",
                     "vtkMRMLModelDisplayableManager", "vtkMRMLSegmentationsDisplayableManager3D",
                     "vtkMRMLMarkupsDisplayableManager", "vtkMRMLColorLegendDisplayableManager")
_LOOK_FROM = {"anterior": ((0, 1, 0), (0, 0, 1)), "posterior": ((0, -1, 0), (0, 0, 1)),
              "right": ((1, 0, 0), (0, 0, 1)), "left": ((-1, 0, 0), (0, 0, 1)),
              "superior": ((0, 0, 1), (0, 1, 0)), "inferior": ((0, 0, -1), (0, 1, 0))}


def sliceView(path, orientation="Axial", background=None, foreground=None, label=None, centre=None,
              fieldOfView=None, foregroundOpacity=0.5, size=(400, 400)):
    """Save a picture of a slice with everything that the scene shows in slice views.

    Args:
        path: PNG file to write.
        orientation: "Axial", "Sagittal" or "Coronal".
        background, foreground, label: volume nodes of the three layers.
        centre: RAS point (mm) in the middle of the picture; default: the middle of the background volume.
        fieldOfView: width of the picture in mm; default: the background volume fits.
        size: width and height in pixels.
    """
    scene = slicer.mrmlScene
    with _temporaryNodes():
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        logic.SetMRMLScene(scene)
        sliceNode = logic.AddSliceNode("TestHostSlice")
        sliceNode.SetOrientation(orientation)
        sliceNode.SetDimensions(size[0], size[1], 1)
        composite = logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(background.GetID() if background else None)
        composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        composite.SetLabelVolumeID(label.GetID() if label else None)
        composite.SetForegroundOpacity(foregroundOpacity)
        logic.ResizeSliceNode(*size)
        if background is not None:
            logic.FitSliceToBackground(*size)
        else:
            sliceNode.SetFieldOfView(100.0, 100.0 * size[1] / size[0], 1.0)
        if centre is not None:
            sliceNode.JumpSliceByCentering(*(float(value) for value in centre))
        if fieldOfView is not None:
            sliceNode.SetFieldOfView(fieldOfView, fieldOfView * size[1] / size[0], 1.0)
        sliceNode.UpdateMatrices()
        logic.UpdatePipeline()

        window, overlay, mapper = sliceWindow(size)
        mapper.SetInputConnection(logic.GetImageDataConnection())
        group = displayableManagers(slicer.vtkMRMLSliceViewDisplayableManagerFactory, SLICE_MANAGERS, overlay, sliceNode)
        tellOfLegends()
        pixels = _render(window, group)
    return _save(pixels, path)


def threeDView(path, lookFrom="anterior", size=(400, 400), zoom=1.0):
    """Save a picture of everything that the scene shows in 3D views.

    Args:
        path: PNG file to write.
        lookFrom: "anterior", "posterior", "left", "right", "superior" or "inferior".
        size: width and height in pixels.
        zoom: above 1: closer.
    """
    scene = slicer.mrmlScene
    with _temporaryNodes():
        viewNode = scene.AddNode(slicer.vtkMRMLViewNode())
        viewNode.SetLayoutName("TestHostView")
        viewNode.SetBoxVisible(False)
        viewNode.SetAxisLabelsVisible(False)
        window = newWindow(size)
        renderer = vtk.vtkRenderer()
        window.AddRenderer(renderer)
        group = displayableManagers(slicer.vtkMRMLThreeDViewDisplayableManagerFactory, THREE_D_MANAGERS, renderer, viewNode)
        tellOfLegends()
        camera = renderer.GetActiveCamera()
        direction, up = _LOOK_FROM[lookFrom]
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(*direction)
        camera.SetViewUp(*up)
        renderer.ResetCamera()
        camera.Zoom(zoom)
        renderer.ResetCameraClippingRange()
        pixels = _render(window, group)
    return _save(pixels, path)


def grab(widget, path):
    """Save a picture of a panel or any other widget; return its pixels without the stamp."""
    native = qtcompat.toNative(widget)
    for _pass in range(2):  # texts that wrap find their height in the second one
        native.resize(native.width(), max(native.height(), native.sizeHint().height()))
        QtWidgets.QApplication.processEvents()
    image = native.grab().toImage().convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return _save(rows[:, :3 * image.width()].reshape(image.height(), image.width(), 3).copy(), path)


@contextlib.contextmanager
def _temporaryNodes():
    """Remove the view's own nodes afterwards, which in Slicer belong to the layout."""
    scene = slicer.mrmlScene
    before = {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}
    try:
        yield
    finally:
        nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
        for node in reversed(nodes):
            if node.GetID() not in before and scene.IsNodePresent(node):
                scene.RemoveNode(node)


def sliceWindow(size):
    """A window for slices: (window, renderer above the image for the overlays, mapper of the image)."""
    window = newWindow(size)
    window.SetNumberOfLayers(2)
    image, overlay = vtk.vtkRenderer(), vtk.vtkRenderer()
    overlay.SetLayer(1)
    window.AddRenderer(image)
    window.AddRenderer(overlay)
    mapper = vtk.vtkImageMapper()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    image.AddViewProp(actor)
    return window, overlay, mapper


def stampView(renderer):
    """Write into a view that it is no 3D Slicer."""
    words = vtk.vtkTextActor()
    words.SetInput(STAMP)
    words.SetPosition(4, 2)
    words.GetTextProperty().SetFontSize(11)
    words.GetTextProperty().SetColor(0.5, 0.5, 0.5)
    renderer.AddViewProp(words)


def newWindow(size):
    """A window without a screen; width and height in pixels."""
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    return window


def displayableManagers(factoryClass, names, renderer, viewNode):
    """Slicer's displayable managers, by name, on a renderer; the group that keeps them alive."""
    factory = factoryClass.GetInstance()
    factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = factory.InstantiateDisplayableManagers(renderer)
    group.SetMRMLDisplayableNode(viewNode)
    return group


def tellOfLegends():
    """Legends' managers learn of them only when they are added, and in Slicer the views are there before them."""
    for legend in slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode"):
        slicer.mrmlScene.InvokeEvent(slicer.mrmlScene.NodeAddedEvent, legend)


def _render(window, group):
    window.Render()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.ReadFrontBufferOff()
    grabber.Update()
    image = grabber.GetOutput()
    width, height, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()
    group.SetMRMLDisplayableNode(None)
    window.Finalize()
    return pixels


def _save(pixels, path):
    """Write the pixels with the stamp in a strip of its own below them."""
    height, width, _ = pixels.shape
    strip = 16
    image = QtGui.QImage(width, height + strip, QtGui.QImage.Format.Format_RGB888)
    image.fill(QtGui.QColor(255, 255, 210))
    painter = QtGui.QPainter(image)
    painter.drawImage(0, 0, QtGui.QImage(pixels.tobytes(), width, height, 3 * width,
                                         QtGui.QImage.Format.Format_RGB888))
    painter.setPen(QtGui.QColor(0, 0, 0))
    font = painter.font()
    font.setPixelSize(11)
    painter.setFont(font)
    painter.drawText(QtCore.QRect(4, height, width - 4, strip), QtCore.Qt.AlignmentFlag.AlignVCenter, STAMP)
    painter.end()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    if not image.save(str(temporary), "PNG"):
        raise OSError(f"The picture {path} could not be written")
    os.replace(temporary, path)
    return pixels
