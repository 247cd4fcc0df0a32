"""Markup files pass into Slicer's own nodes without moving, and Slicer measures in them what was written."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

import vtk

from BoneReconstructionLib.markups import Markup, angle_degrees, write_markup

COLOUR = (0.2, 0.4, 0.9)
ANGLE = np.array([[25.0, -310, 8], [20, -300, 10], [21, -330, -90]])
CENTRE, ACROSS, UP = np.array([20.0, -300, 10]), np.array([24.0, 18, 0]), np.array([-9.0, 12, 80])


@pytest.fixture
def loaded(tmp_path):
    """Function of a Markup that returns Slicer's node of its file."""
    scene, logic = slicer.vtkMRMLScene(), slicer.vtkSlicerMarkupsLogic()
    logic.SetMRMLScene(scene)

    def load(markup):
        path = tmp_path / f"{markup.kind}.mrk.json"
        write_markup(path, markup, "what it tells")
        return scene.GetNodeByID(logic.LoadMarkups(str(path), markup.name))

    return load


def points_of(node):
    point = [0.0, 0.0, 0.0]
    found = []
    for number in range(node.GetNumberOfControlPoints()):
        node.GetNthControlPointPositionWorld(number, point)
        found.append(tuple(point))
    return np.array(found)


@pytest.mark.parametrize("kind, points", [("line", ANGLE[:2]), ("angle", ANGLE)])
def test_points_lie_where_they_were(loaded, kind, points):
    node = loaded(Markup("An axis", kind, points, COLOUR))
    np.testing.assert_allclose(points_of(node), points, atol=1e-6)
    assert node.GetNthControlPointDescription(0) == "what it tells"
    np.testing.assert_allclose(node.GetDisplayNode().GetColor(), COLOUR)


def test_slicer_measures_the_same_angle_and_length(loaded):
    angle, line = loaded(Markup("A", "angle", ANGLE, COLOUR)), loaded(Markup("L", "line", ANGLE[:2], COLOUR))
    assert angle.GetAngleDegrees() == pytest.approx(angle_degrees(ANGLE))
    assert line.GetLineLengthWorld() == pytest.approx(np.linalg.norm(ANGLE[0] - ANGLE[1]))


def test_a_plane_has_the_same_place_axes_and_size(loaded):
    markup = Markup("A plane", "plane", np.array([CENTRE, CENTRE + ACROSS, CENTRE + UP]), COLOUR)
    node = loaded(markup)
    np.testing.assert_allclose(node.GetCenterWorld(), CENTRE, atol=1e-6)
    np.testing.assert_allclose(node.GetNormalWorld(), markup.plane_axes[:, 2], atol=1e-6)
    axes = [np.zeros(3) for _ in range(3)]
    node.GetAxesWorld(*axes)
    np.testing.assert_allclose(np.stack(axes, 1), markup.plane_axes, atol=1e-6)
    np.testing.assert_allclose(node.GetSizeWorld(), markup.plane_size, atol=1e-6)
    corners = vtk.vtkPoints()
    node.GetPlaneCornerPointsWorld(corners)
    found = np.array([corners.GetPoint(number) for number in range(corners.GetNumberOfPoints())])
    np.testing.assert_allclose(found.mean(0), CENTRE, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found - CENTRE, axis=1), np.linalg.norm(markup.plane_size) / 2)
