"""Sizes and angles of tibiae: known values on constructed bones, known changes, the same in any pose and on both sides."""

import numpy as np
import pytest
from tibiae import landmarks, pose, random_tibiae, tibia_prior

from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.markups import angle_degrees
from BoneReconstructionLib.tibiameasurements import DEFINITIONS, PUBLISHED

ANGLES = [name for name, definition in DEFINITIONS.items() if definition.unit == "degrees"]


@pytest.fixture(scope="module")
def tibia():
    return random_tibiae(8, 1)[0]


def turned(points, centre, axis, degrees):
    """Points (n, 3) turned about an axis through a centre, each by its own angle (n,), by Rodrigues' formula."""
    angle = np.radians(degrees)[:, None]
    arm = points - centre
    along = np.outer(arm @ axis, axis)
    return centre + along + np.cos(angle) * (arm - along) + np.sin(angle) * np.cross(axis, arm)


def with_end_turned(tibia, end, axis, degrees):
    """The tibia with one end turned rigidly about one of its axes through its joint centre; the shaft bends smoothly."""
    axes = landmarks().axes(tibia)
    centre = getattr(axes, end)
    away = np.abs((tibia - centre) @ axes.proximal)
    share = np.clip((200 - away) / 150, 0, 1)
    return turned(tibia, centre, getattr(axes, axis), degrees * share * share * (3 - 2 * share))


def place_mean(bone, chosen, fixed, mean):
    """Move chosen vertices, but those that are fixed, so that the mean of all that are chosen is where it should be."""
    free = np.setdiff1d(chosen, fixed)
    bone[free] += (np.asarray(mean) - bone[chosen].mean(0)) * len(chosen) / len(free)


def change(before, after):
    first, second = landmarks().measure(before), landmarks().measure(after)
    return {name: second[name] - first[name] for name in first}


def test_everything_defined_is_measured(tibia):
    assert landmarks().measure(tibia).keys() == DEFINITIONS.keys()
    assert PUBLISHED.keys() <= DEFINITIONS.keys()


def test_definitions_say_what_where_and_how_large():
    for definition in DEFINITIONS.values():
        assert definition.text.endswith(".") and definition.source and definition.published.source
        assert definition.unit in ("mm", "degrees") and definition.published.sd > 0


@pytest.mark.parametrize(
    "mpta, ldta, medial, lateral, torsion",
    [(90.0, 90.0, 0.0, 0.0, 0.0), (84.0, 92.5, 9.0, -3.0, 38.0), (93.0, 85.0, -4.0, 12.0, -10.0)],
)
def test_a_bone_built_with_known_planes_and_axes_has_their_angles(mpta, ldta, medial, lateral, torsion):
    """Joint surfaces are planes of known tilt, and axis, condyles and ankle lie on known lines."""
    places, length = landmarks(), 350.0
    bone = tibia_prior().mean.copy()
    tilt = {name: np.tan(np.radians(value)) for name, value in (("medial", medial), ("lateral", lateral))}
    surfaces = {
        "medial": np.union1d(places.medial_plateau, places.medial_profile),
        "lateral": np.union1d(places.lateral_plateau, places.lateral_profile),
    }
    bone[places.medial_posterior, 1] = bone[places.lateral_posterior, 1] = -40.0
    centre = {half: bone[vars(places)[f"{half}_plateau"]].mean(0) for half in surfaces}
    middle = (centre["medial"] + centre["lateral"]) / 2
    for half, chosen in surfaces.items():
        height = np.tan(np.radians(90 - mpta)) * (centre[half] - middle)[0]
        bone[chosen, 2] = height + tilt[half] * (bone[chosen, 1] - centre[half][1])

    across = np.array([np.cos(np.radians(torsion)), -np.sin(np.radians(torsion))])
    level = bone[places.plafond, :2] - bone[places.plafond, :2].mean(0)
    rise = np.tan(np.radians(90 - ldta)) * level @ across + 0.3 * level @ [-across[1], across[0]]
    bone[places.plafond] = np.column_stack([level + middle[:2], rise - length])
    place_mean(bone, places.malleolus, places.plafond, [*(middle[:2] - 25 * across), -length - 8])
    place_mean(bone, places.notch, places.plafond, [*(middle[:2] + 15 * across), -length + 9])

    turn = pose((25, -40, 130), (80, -300, 500))
    found = places.measure(transform_points(turn, bone))
    known = {"mpta": mpta, "ldta": ldta, "medial_slope": medial, "lateral_slope": lateral, "torsion": torsion}
    assert found["length"] == pytest.approx(length, abs=1e-6)
    assert {name: found[name] for name in known} == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("turn", [(0, 0, 90), (130, -50, 20), (180, 0, 0)])
def test_measurements_do_not_depend_on_the_pose(tibia, turn):
    moved = transform_points(pose(turn, (100, -300, 700)), tibia)
    assert landmarks().measure(moved) == pytest.approx(landmarks().measure(tibia), abs=1e-6)


def test_a_larger_bone_has_larger_lengths_and_the_same_angles(tibia):
    small, large = landmarks().measure(tibia), landmarks().measure(1.1 * tibia)
    for name, definition in DEFINITIONS.items():
        assert large[name] == pytest.approx(small[name] * (1.1 if definition.unit == "mm" else 1.0)), name


@pytest.mark.parametrize(
    "end, axis, degrees, gained",
    [
        ("plafond", "proximal", -12.0, {"torsion": 12.0}),
        ("plafond", "proximal", 8.0, {"torsion": -8.0}),
        ("plateau", "lateral", 7.0, {"medial_slope": 7.0, "lateral_slope": 7.0}),
        ("plateau", "anterior", -6.0, {"mpta": -6.0}),
        ("plateau", "anterior", 4.0, {"mpta": 4.0}),
    ],
)
def test_turning_an_end_of_the_bone_changes_what_it_should_by_as_much(tibia, end, axis, degrees, gained):
    """Seen from above, outwards is clockwise on a right leg; lowering the medial side is varus."""
    expected = dict.fromkeys(("length", *ANGLES), 0.0) | gained
    found = change(tibia, with_end_turned(tibia, end, axis, degrees))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1.0), name


def test_tilting_the_plafond_in_the_plane_of_the_ankle_changes_its_angle_by_as_much(tibia):
    places = landmarks()
    axes = places.axes(tibia)
    ankle = axes.across(tibia[places.notch].mean(0) - tibia[places.malleolus].mean(0))
    away = (tibia - axes.plafond) @ axes.proximal
    share = np.clip((200 - away) / 150, 0, 1)
    tilted = turned(tibia, axes.plafond, np.cross(ankle, axes.proximal), 5.0 * share)
    found = change(tibia, tilted)
    assert found["ldta"] == pytest.approx(-5.0, abs=1.0)
    assert found["length"] == pytest.approx(0, abs=1.0) and found["torsion"] == pytest.approx(0, abs=1.0)


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


def test_a_left_bone_has_the_values_of_its_mirror_image_and_mirrored_markups(tibia):
    moved = transform_points(pose((20, 30, -70), (40, 10, -900)), tibia)
    right = landmarks().measurements(moved)
    left = landmarks().measurements(transform_points(MIRROR, moved), "left")
    for name, measurement in right.items():
        assert left[name].value == pytest.approx(measurement.value, abs=1e-9)
        for one, other in zip(measurement.markups, left[name].markups, strict=True):
            np.testing.assert_allclose(other.points, transform_points(MIRROR, one.points), atol=1e-9)
            if other.kind == "plane":
                assert np.linalg.det(other.plane_axes) == pytest.approx(1)


def test_markups_show_what_was_measured(tibia):
    """What a viewer reads from the points is the value, and the points lie in the plane that is drawn."""
    found = landmarks().measurements(transform_points(pose((20, 30, -70), (40, 10, -900)), tibia))
    for name, measurement in found.items():
        drawn = {markup.kind: markup for markup in measurement.markups}
        if measurement.definition.unit == "mm":
            first, second = drawn["line"].points
            assert np.linalg.norm(first - second) == pytest.approx(measurement.value)
            continue
        assert angle_degrees(drawn["angle"].points) == pytest.approx(abs(measurement.value)), name
        normal, centre = drawn["plane"].plane_axes[:, 2], drawn["plane"].points[0]
        np.testing.assert_allclose((drawn["angle"].points - centre) @ normal, 0, atol=1e-6, err_msg=name)


def test_lines_touch_the_bone_where_their_names_say(tibia):
    places, found = landmarks(), landmarks().measurements(tibia)
    lines = {markup.name: markup.points for one in found.values() for markup in one.markups if markup.kind == "line"}
    axes = places.axes(tibia)
    np.testing.assert_allclose(lines["Mechanical axis of the tibia"], [axes.plateau, axes.plafond])
    np.testing.assert_allclose(lines["Malleolus to fibular notch"][0], tibia[places.malleolus].mean(0))
    medial, lateral = lines["Tangent of the plateaus"]
    for centre in (tibia[places.medial_plateau].mean(0), tibia[places.lateral_plateau].mean(0)):
        share = (centre - medial) @ (lateral - medial) / ((lateral - medial) @ (lateral - medial))
        np.testing.assert_allclose(centre, medial + share * (lateral - medial), atol=1e-9)
        assert 0 < share < 1
    for half in ("medial", "lateral"):
        anterior, posterior = lines[f"Tangent of the {half} plateau"]
        assert (anterior - posterior) @ axes.anterior > 40
        nearest = np.linalg.norm(tibia[vars(places)[f"{half}_profile"]] - (anterior + posterior) / 2, axis=1).min()
        assert nearest < 3


def test_the_text_of_a_measurement_holds_value_interval_and_unit(tibia):
    found = landmarks().measurements(tibia, widths={"length": 1.26})
    assert found["length"].text == f"Length: {found['length'].value:.1f} +/- 1.3 mm"
    assert found["torsion"].text == f"Torsion: {found['torsion'].value:.1f} degrees"


def test_the_places_lie_where_their_names_say():
    mean, places = tibia_prior().mean, landmarks()
    centre = {name: mean[indices].mean(0) for name, indices in vars(places).items()}
    assert all(len(indices) >= 10 for indices in vars(places).values())
    for place in ("plateau", "profile", "posterior"):
        assert centre[f"medial_{place}"][0] < centre[f"lateral_{place}"][0]
    assert centre["medial_posterior"][1] < centre["medial_plateau"][1] - 10
    assert centre["malleolus"][2] < centre["plafond"][2] < centre["notch"][2] + 5
    assert centre["malleolus"][0] < centre["plafond"][0] < centre["notch"][0]
    assert set(places.plafond_middle) < set(places.plafond)
    for half in ("medial", "lateral"):
        assert np.ptp(mean[vars(places)[f"{half}_profile"], 1]) > 30  # from border to border


def test_the_mean_bone_measures_like_people():
    for name, value in landmarks().measure(tibia_prior().mean).items():
        published = DEFINITIONS[name].published
        assert abs(value - published.mean) < 2 * published.sd, name
