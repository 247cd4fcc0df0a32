"""A picture of a predicted bone beside the true one, coloured by their distance."""

import os
import sys

import numpy as np
import vtk
from vtkmodules.util.numpy_support import numpy_to_vtk

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import rotation_about
from BoneReconstructionLib.meshing import to_polydata
from BoneReconstructionLib.surfaces import Surface

SIZE = (1200, 900)
BONE_COLOUR = (0.93, 0.87, 0.72)
# The colours' range ends at the distance that this share of the prediction keeps to, and at no less than 1 mm.
RANGE_SHARE, SMALLEST_RANGE_MM = 0.98, 1.0
VIEWS_DEGREES = (0.0, 90.0)


def compare(path, predicted, leg, title):
    """Write a PNG: the true bone, then the prediction coloured by its signed distance, from in front and the side.

    Args:
        path: of the picture.
        predicted: surface, RAS mm.
        leg: `people.Leg` whose tibia is the truth.
        title: one line.
    """
    distance = SurfaceLocator(leg.tibia).signed(predicted.vertices)
    limit = max(SMALLEST_RANGE_MM, float(np.quantile(np.abs(distance), RANGE_SHARE)))
    colours = diverging_colours(limit)

    renderer = vtk.vtkRenderer()
    renderer.SetBackground(1, 1, 1)
    width = 0.32 * leg.length
    for row, degrees in enumerate(VIEWS_DEGREES):
        for column, (surface, values) in enumerate(((leg.tibia, None), (predicted, distance))):
            places = _turned(leg, surface.vertices, degrees)
            places[:, 0] -= (2 * row + column) * width  # seen from in front, +x is at the left
            renderer.AddActor(bone_actor(Surface(places, surface.faces), values, colours))
    bar = scalar_bar(colours)
    bar.SetPosition(0.88, 0.2)
    bar.SetWidth(0.1)
    bar.SetHeight(0.6)
    renderer.AddViewProp(bar)
    label = vtk.vtkTextActor()
    label.SetInput(f"{title}. True and predicted, from in front and from the side; red: outside the true bone")
    label.SetPosition(20, SIZE[1] - 40)
    label.GetTextProperty().SetColor(0, 0, 0)
    label.GetTextProperty().SetFontSize(16)
    renderer.AddViewProp(label)

    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetFocalPoint(0, 0, 0)
    camera.SetPosition(0, 1, 0)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(1.25)
    write_picture(renderer, path, SIZE)


def diverging_colours(limit_mm):
    """Blue inside, grey on, red outside the true bone, up to a signed distance in mm."""
    colours = vtk.vtkColorTransferFunction()
    colours.SetColorSpaceToDiverging()
    colours.AddRGBPoint(-limit_mm, 0.23, 0.30, 0.75)
    colours.AddRGBPoint(0.0, 0.87, 0.87, 0.87)
    colours.AddRGBPoint(limit_mm, 0.71, 0.02, 0.15)
    return colours


def scalar_bar(colours):
    """The legend of `diverging_colours`, still to be placed."""
    bar = vtk.vtkScalarBarActor()
    bar.SetLookupTable(colours)
    bar.SetTitle("mm")
    bar.SetNumberOfLabels(5)
    for text in (bar.GetTitleTextProperty(), bar.GetLabelTextProperty()):
        text.SetColor(0, 0, 0)
        text.SetFontSize(16)
    bar.UnconstrainedFontSizeOn()
    return bar


def _turned(leg, points, degrees):
    """RAS points in a frame of the bone with x to the patient's right, turned about its long axis."""
    places = leg.places(points) * [np.sign(np.linalg.det(leg.axes)), 1, 1]
    return places @ rotation_about((0.0, 0.0, 1.0), np.radians(degrees)).T


def bone_actor(surface, values, colours):
    """Actor of a surface, bone-coloured, or coloured by values of its vertices where they are not None."""
    polydata = to_polydata(surface)
    if values is not None:
        polydata.GetPointData().SetScalars(numpy_to_vtk(values, deep=True))
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputData(polydata)
    normals.SplittingOff()
    normals.ConsistencyOff()
    mapper = vtk.vtkPolyDataMapper()
    mapper.SetInputConnection(normals.GetOutputPort())
    mapper.SetLookupTable(colours)
    mapper.UseLookupTableScalarRangeOn()
    actor = vtk.vtkActor()
    actor.SetMapper(mapper)
    actor.GetProperty().SetColor(*BONE_COLOUR)
    return actor


def write_picture(renderer, path, size):
    """Render off screen and write a PNG of (width, height) pixels, under a temporary name first."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        # VTK finds a window without a display by itself, but complains first.
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetSize(*size)
    window.SetMultiSamples(8)
    window.AddRenderer(renderer)
    window.Render()
    image = vtk.vtkWindowToImageFilter()
    image.SetInput(window)
    image.ReadFrontBufferOff()
    image.Update()
    temporary = path.with_name(f".{path.name}")
    writer = vtk.vtkPNGWriter()
    writer.SetCompressionLevel(9)
    writer.SetFileName(str(temporary))
    writer.SetInputConnection(image.GetOutputPort())
    writer.Write()
    os.replace(temporary, path)
