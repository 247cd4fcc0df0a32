"""Pictures for the documentation that need no Slicer scene: `python Testing/pictures.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import vtk

from BoneReconstructionLib.meshing import to_polydata
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.virtualpatients import BONES, VirtualPatients

BONE_COLOURS = {"tibia": (0.93, 0.87, 0.72), "fibula": (0.72, 0.80, 0.90)}
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
            turn = np.eye(4)
            radians = np.radians(angle)
            turn[:2, :2] = [[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]]
            turn[:3, 3] = [-(230.0 * (number % columns) + 110.0 * view), 0.0, -470.0 * (number // columns)]
            for bone in BONES:
                surface = Surface(patients.vertices(person, bone), patients.priors[bone].faces)
                renderer.AddActor(_actor(transformed(surface, turn), BONE_COLOURS[bone]))
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetPosition(0, 1, 0)
    camera.SetFocalPoint(0, 0, 0)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()
    camera.Zoom(1.35)
    _save(renderer, path, (1500, 1000))


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
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(picture.GetOutputPort())
    writer.Write()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random_legs(folder / "RandomLegs.png")
