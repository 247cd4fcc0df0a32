"""Pictures for the documentation that need no Slicer scene: `python Testing/pictures.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import vtk

from BoneReconstructionLib.meshing import to_polydata
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.virtualfractures import KINDS, displaced_surfaces, draw_fracture
from BoneReconstructionLib.virtualpatients import BONES, VirtualPatients

BONE_COLOURS = {"tibia": (0.93, 0.87, 0.72), "fibula": (0.72, 0.80, 0.90)}
FRAGMENT_COLOURS = ((0.93, 0.87, 0.72), (0.36, 0.56, 0.80), (0.86, 0.45, 0.32), (0.45, 0.68, 0.42))
VIEWS = {"front": 0.0, "from the right": 90.0}


def random_legs(path, count=12, first_seed=0):
    """Picture `count` random virtual tibiae and fibulae on one scale, each from the front and from its right."""
    patients = VirtualPatients()
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(1, 1, 1)
    columns = 6
    for number in range(count):
        person = patients.person(first_seed + number)
        for view, angle in enumerate(VIEWS.values()):
            turn = _turned(angle, [-(230.0 * (number % columns) + 110.0 * view), 0.0, -470.0 * (number // columns)])
            for bone in BONES:
                surface = Surface(patients.vertices(person, bone), patients.priors[bone].faces)
                renderer.AddActor(_actor(transformed(surface, turn), BONE_COLOURS[bone]))
    _look_from_front(renderer, 1.35)
    _save(renderer, path, (1500, 1000))


def nine_fractures(path, seed=0):
    """Picture a fracture of each kind, of one tibia, from the front and from its right, fragments in colours."""
    prior = load_prior("tibia-prior", "tibia")
    bone = Surface(prior.mean, prior.faces)
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(1, 1, 1)
    for number, kind in enumerate(KINDS):
        fracture = draw_fracture(bone, "right", kind, seed)
        corner = np.array([-215.0 * (number % 5), 0.0, -450.0 * (number // 5)])
        for view, angle in enumerate(VIEWS.values()):
            turn = _turned(angle, corner - [95.0 * view, 0, 0])
            for surface, colour in zip(displaced_surfaces(bone, fracture), FRAGMENT_COLOURS, strict=False):
                renderer.AddActor(_actor(transformed(surface, turn), colour))
        label = vtk.vtkBillboardTextActor3D()
        label.SetInput(kind)
        label.SetPosition(*(corner - [47.0, 0, 235.0]))
        label.GetTextProperty().SetColor(0, 0, 0)
        label.GetTextProperty().SetFontSize(24)
        label.GetTextProperty().SetJustificationToCentered()
        renderer.AddActor(label)
    _look_from_front(renderer, 1.3)
    _save(renderer, path, (2000, 1600))


def _turned(degrees, place):
    """(4, 4) turn about the long axis, so that another side faces the camera, and shift to a place."""
    matrix = np.eye(4)
    radians = np.radians(degrees)
    matrix[:2, :2] = [[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]]
    matrix[:3, 3] = place
    return matrix


def _look_from_front(renderer, zoom):
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetPosition(0, 1, 0)
    camera.SetFocalPoint(0, 0, 0)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(zoom)


def side_by_side(pictures, path):
    """Put PNG pictures of one height beside each other."""
    append = vtk.vtkImageAppend()
    append.SetAppendAxis(0)
    for picture in pictures:
        reader = vtk.vtkPNGReader()
        reader.SetFileName(str(picture))
        append.AddInputConnection(reader.GetOutputPort())
    _write(append.GetOutputPort(), path)


def _actor(surface, colour):
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputData(to_polydata(surface))
    normals.SplittingOff()
    mapper = vtk.vtkPolyDataMapper()
    mapper.SetInputConnection(normals.GetOutputPort())
    actor = vtk.vtkActor()
    actor.SetMapper(mapper)
    actor.GetProperty().SetColor(*colour)
    return actor


def _save(renderer, path, size):
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetSize(*size)
    window.SetMultiSamples(8)
    window.AddRenderer(renderer)
    window.Render()
    picture = vtk.vtkWindowToImageFilter()
    picture.SetInput(window)
    picture.ReadFrontBufferOff()
    picture.Update()
    _write(picture.GetOutputPort(), path)


def _write(port, path):
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(port)
    writer.Write()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random_legs(folder / "RandomLegs.png")
    nine_fractures(folder / "Fractures.png")
