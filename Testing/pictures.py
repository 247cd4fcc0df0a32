"""Pictures for the documentation that need no Slicer scene: `python Testing/pictures.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import vtk

from BoneReconstructionLib.frames import rotation_about
from BoneReconstructionLib.meshing import to_polydata
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.virtualfractures import KINDS, displaced_surfaces, draw_fracture
from BoneReconstructionLib.virtualknees import VirtualKnees
from BoneReconstructionLib.virtualpatients import BONES, VirtualPatients

BONE_COLOURS = {
    "tibia": (0.93, 0.87, 0.72),
    "fibula": (0.72, 0.80, 0.90),
    "femur": (0.86, 0.78, 0.66),
    "patella": (0.86, 0.60, 0.48),
}
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
            turn = _turned(angle)
            turn[:3, 3] = [-(230.0 * (number % columns) + 110.0 * view), 0.0, -470.0 * (number // columns)]
            for bone in BONES:
                surface = Surface(patients.vertices(person, bone), patients.priors[bone].faces)
                renderer.AddActor(_actor(transformed(surface, turn), BONE_COLOURS[bone]))
    _look_from_front(renderer)
    renderer.GetActiveCamera().Zoom(1.35)
    window = _window((1500, 1000))
    window.AddRenderer(renderer)
    _save(window, path)


def random_knees(path, count=8, first_seed=0):
    """Picture `count` random virtual knees on one scale, each from the front and from its right."""
    knees = VirtualKnees()
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(1, 1, 1)
    columns = 4
    for number in range(count):
        placed = knees.vertices(knees.knee(first_seed + number))
        for view, angle in enumerate(VIEWS.values()):
            turn = _turned(angle)
            # Thighs reach backwards, which is to the left from the right.
            turn[:3, 3] = [-(480.0 * (number % columns) + 220.0 * view), 0.0, -400.0 * (number // columns)]
            for bone, vertices in placed.items():
                surface = Surface(vertices, knees.priors[bone].faces)
                renderer.AddActor(_actor(transformed(surface, turn), BONE_COLOURS[bone]))
    _look_from_front(renderer)
    renderer.GetActiveCamera().Zoom(2.0)
    window = _window((1600, 720))
    window.AddRenderer(renderer)
    _save(window, path)


def nine_fractures(path, seed=5):
    """Picture a fracture of each kind of one tibia from two sides each, fragments in different colours."""
    prior = load_prior("tibia-prior", "tibia")
    bone = Surface(prior.mean, prior.faces)
    size = np.array([1950, 1650])
    window = _window(size)
    labels = vtk.vtkRenderer()
    labels.SetBackground(1, 1, 1)
    window.AddRenderer(labels)
    for number, kind in enumerate(KINDS):
        corner = np.array([number % 3, 2 - number // 3]) / 3
        renderer = vtk.vtkRenderer()
        renderer.SetBackground(1, 1, 1)
        renderer.SetViewport(*(corner + [0.01, 0.03]), *(corner + [0.32, 0.32]))
        fracture = draw_fracture(bone, "right", kind, seed)
        fragments = displaced_surfaces(bone, fracture)
        # Where to look, half the height to show, turn about the bone's axis and tilt of the second view.
        middle, half_height, angle, tilt = fracture.line_points[:, 2].mean(), 110.0, 90.0, 0.0
        if kind.startswith("plateau"):
            middle, half_height, angle, tilt = bone.vertices[:, 2].max() - 40, 66.0, 40.0, 45.0
        elif kind == "pilon":
            middle, half_height, angle, tilt = bone.vertices[:, 2].min() + 45, 66.0, 150.0, -25.0
        centre = np.eye(4)
        centre[2, 3] = -middle
        for shift, view in ((0.58, _turned(0)), (-0.58, _turned(angle, tilt))):
            view = view @ centre
            view[0, 3] += shift * half_height
            for surface, colour in zip(fragments, FRAGMENT_COLOURS, strict=False):
                renderer.AddActor(_actor(transformed(surface, view), colour))
        label = vtk.vtkTextActor()
        label.SetInput(kind)
        label.SetPosition(*(size * (corner + [1 / 6, 0.005])))
        label.GetTextProperty().SetJustificationToCentered()
        label.GetTextProperty().SetColor(0, 0, 0)
        label.GetTextProperty().SetFontSize(26)
        labels.AddActor(label)
        _look_from_front(renderer)
        camera = renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(0, 500, 0)
        camera.SetParallelScale(half_height)
        renderer.ResetCameraClippingRange()
        window.AddRenderer(renderer)
    _save(window, path)


def _turned(degrees, tilt_degrees=0.0):
    """(4, 4) turn about the long axis, then towards the camera, so that another side is seen."""
    matrix = np.eye(4)
    tilt, turn = rotation_about((1, 0, 0), -np.radians(tilt_degrees)), rotation_about((0, 0, 1), -np.radians(degrees))
    matrix[:3, :3] = tilt @ turn
    return matrix


def _look_from_front(renderer):
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetPosition(0, 1, 0)
    camera.SetFocalPoint(0, 0, 0)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera()


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


def _window(size):
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetSize(*size)
    window.SetMultiSamples(8)
    return window


def _save(window, path):
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
    random_knees(folder / "RandomKnees.png")
    nine_fractures(folder / "Fractures.png")
