"""Markups as plain data, and the files that Slicer reads them from."""

import json

import numpy as np
import pytest
from tibiae import pose

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR
from BoneReconstructionLib.markups import Markup, angle_degrees, write_markup

COLOUR = (0.2, 0.4, 0.9)
PLANE = Markup("Coronal plane", "plane", np.array([[10.0, -20, 30], [40, -20, 30], [10, -20, 110]]), COLOUR)
ANGLE = Markup("Angle", "angle", np.array([[5.0, 0, 0], [1, 0, 0], [1, 0, 7]]), COLOUR)


@pytest.mark.parametrize("degrees", [0.0, 0.5, 35.0, 90.0, 179.0])
def test_the_angle_between_two_arms_does_not_depend_on_their_lengths(degrees):
    arm = [np.cos(np.radians(degrees)), 0, np.sin(np.radians(degrees))]
    assert angle_degrees(np.array([[40.0, 0, 0], [0, 0, 0], 3 * np.array(arm)])) == pytest.approx(degrees, abs=1e-9)


def test_a_plane_has_right_handed_axes_and_whole_sides():
    np.testing.assert_allclose(PLANE.plane_axes, [[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    np.testing.assert_allclose(PLANE.plane_size, [60, 160])


@pytest.mark.parametrize("matrix", [pose((20, 30, -70), (40, 10, -900)), MIRROR])
def test_a_moved_or_mirrored_plane_keeps_its_size_and_stays_right_handed(matrix):
    moved = PLANE.transformed(matrix)
    assert np.linalg.det(moved.plane_axes) == pytest.approx(1)
    np.testing.assert_allclose(moved.plane_size, PLANE.plane_size)
    np.testing.assert_allclose(moved.plane_axes[:, 0], matrix[:3, :3] @ PLANE.plane_axes[:, 0], atol=1e-12)


def test_a_file_says_its_frame_its_unit_and_what_was_measured(tmp_path):
    path = tmp_path / "angle.mrk.json"
    write_markup(path, ANGLE, "Angle: 90.0 degrees")
    (contents,) = json.loads(path.read_text("utf-8"))["markups"]
    assert (contents["type"], contents["coordinateSystem"], contents["coordinateUnits"]) == ("Angle", "LPS", "mm")
    assert [point["position"] for point in contents["controlPoints"]] == [[-5, 0, 0], [-1, 0, 0], [-1, 0, 7]]
    assert {point["description"] for point in contents["controlPoints"]} == {"Angle: 90.0 degrees"}
    assert contents["measurements"][0]["units"] == "deg"
    assert contents["display"]["color"] == list(COLOUR)
    assert [entry.name for entry in tmp_path.iterdir()] == ["angle.mrk.json"]


def test_a_file_of_another_ending_or_in_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"\.mrk\.json"):
        write_markup(tmp_path / "angle.json", ANGLE)
    with pytest.raises(InputError, match="cannot be written"):
        write_markup(tmp_path / "missing" / "angle.mrk.json", ANGLE)
