"""Sizes and angles of tibiae: the same in any pose, and changing as the bone is changed."""

import numpy as np
import pytest
from tibiae import landmarks, pose, random_tibiae, tibia_prior

from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.tibiameasurements import PUBLISHED


@pytest.fixture(scope="module")
def tibia():
    return random_tibiae(8, 1)[0]


def turned_about_z(points, radians):
    x, y, z = points.T
    return np.column_stack([x * np.cos(radians) - y * np.sin(radians), x * np.sin(radians) + y * np.cos(radians), z])


def test_everything_published_is_measured(tibia):
    assert landmarks().measure(tibia).keys() == PUBLISHED.keys()


@pytest.mark.parametrize("turn", [(0, 0, 90), (130, -50, 20), (180, 0, 0)])
def test_measurements_do_not_depend_on_the_pose(tibia, turn):
    moved = transform_points(pose(turn, (100, -300, 700)), tibia)
    assert landmarks().measure(moved) == pytest.approx(landmarks().measure(tibia), abs=1e-6)


def test_a_larger_bone_has_larger_lengths_and_the_same_angles(tibia):
    small, large = landmarks().measure(tibia), landmarks().measure(1.1 * tibia)
    for name, published in PUBLISHED.items():
        assert large[name] == pytest.approx(small[name] * (1.1 if published.unit == "mm" else 1.0)), name


def test_turning_the_ankle_outwards_adds_to_the_torsion(tibia):
    """Seen from above, outwards is clockwise on a right leg."""
    share = np.clip((100 - tibia[:, 2]) / 200, 0, 1)
    twisted = turned_about_z(tibia, -np.radians(10) * share)
    before, after = landmarks().measure(tibia), landmarks().measure(twisted)
    assert after["torsion"] - before["torsion"] == pytest.approx(10, abs=1.0)
    assert after["length"] == pytest.approx(before["length"], abs=1)


def test_lowering_the_back_of_the_plateau_adds_to_the_slope(tibia):
    tilted = tibia.copy()
    top = tibia[:, 2] > tibia[:, 2].max() - 40
    tilted[top, 2] += np.tan(np.radians(5)) * (tibia[top, 1] - tibia[top, 1].mean())
    gained = landmarks().measure(tilted)["medial_slope"] - landmarks().measure(tibia)["medial_slope"]
    assert gained == pytest.approx(5, abs=0.7)


def test_stretching_one_axis_changes_the_size_along_it(tibia):
    before = landmarks().measure(tibia)
    for axis, name in enumerate(("plateau_width", "plateau_depth", "length")):
        after = landmarks().measure(tibia * np.where(np.arange(3) == axis, 1.1, 1.0))
        assert after[name] == pytest.approx(1.1 * before[name], rel=0.01), name
        others = {"plateau_width", "plateau_depth", "length"} - {name}
        assert all(after[other] == pytest.approx(before[other], rel=0.02) for other in others)


def test_a_left_bone_taken_for_a_right_one_turns_inwards(tibia):
    """The formulas are those of a right bone: torsion and sides tell them apart."""
    right, wrong = landmarks().measure(tibia), landmarks().measure(transform_points(MIRROR, tibia))
    assert right["torsion"] > 0
    assert abs(wrong["torsion"] - right["torsion"]) > 20


def test_the_places_lie_where_their_names_say():
    mean, places = tibia_prior().mean, landmarks()
    centre = {name: mean[indices].mean(0) for name, indices in vars(places).items()}
    assert all(len(indices) >= 10 for indices in vars(places).values())
    assert centre["medial_plateau"][0] < centre["lateral_plateau"][0]
    assert centre["medial_posterior"][0] < centre["lateral_posterior"][0]
    assert centre["medial_posterior"][1] < centre["medial_plateau"][1] - 10
    assert centre["malleolus"][2] < centre["plafond"][2] < centre["notch"][2] + 5
    assert centre["malleolus"][0] < centre["plafond"][0] < centre["notch"][0]
