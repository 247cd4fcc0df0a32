"""The geometry of X-rays: directions, round trips, refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from phantoms import frame
from xrayphantoms import MIDDLE, VIEWS, tilted_view

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.xraygeometry import (
    PRESETS,
    VALUES,
    CArm,
    XrayGeometry,
    angle_between,
    calibration_note,
    check_views,
    common_point,
    from_carm,
    from_json,
    preset_view,
    to_carm,
)

PLAIN = CArm(1000.0, 600.0, (0.5, 0.4), (300, 400))
EVERYWHERE = {
    "PA": PLAIN,
    "RAO cranial": replace(PLAIN, primary_deg=-25.0, secondary_deg=15.0, isocentre=(10.0, -20.0, 30.0)),
    "rolled, off centre": replace(
        PLAIN, primary_deg=120.0, secondary_deg=-35.0, roll_deg=50.0, offset_uv=(30.0, -12.0)
    ),
    "mirrored": replace(PLAIN, primary_deg=170.0, roll_deg=-140.0, offset_uv=(9.0, 4.0), mirrored=True),
    "from above": replace(PLAIN, secondary_deg=90.0, roll_deg=30.0),
}
every_place = pytest.mark.parametrize("values", EVERYWHERE.values(), ids=EVERYWHERE)


def points_about(centre, count=20):
    return np.asarray(centre) + np.random.default_rng(4).uniform(-60, 60, (count, 3))


# In RAS: the beam, and what lies to the right and below in the image.
@pytest.mark.parametrize(
    ("view", "beam", "right", "below"),
    [
        ("AP", (0, -1, 0), (-1, 0, 0), (0, 0, -1)),
        ("PA", (0, 1, 0), (1, 0, 0), (0, 0, -1)),
        ("left lateral", (-1, 0, 0), (0, 1, 0), (0, 0, -1)),
        ("right lateral", (1, 0, 0), (0, -1, 0), (0, 0, -1)),
    ],
)
def test_standard_views_look_the_way_they_are_called(view, beam, right, below):
    geometry = preset_view("ssr-kd", view, MIDDLE)
    assert np.allclose(geometry.beam, beam, atol=1e-12)
    pixels = geometry.project(MIDDLE + np.array([(0, 0, 0), right, below]))
    assert pixels[1, 0] > pixels[0, 0] and pixels[1, 1] == pytest.approx(pixels[0, 1])
    assert pixels[2, 1] > pixels[0, 1] and pixels[2, 0] == pytest.approx(pixels[0, 0])
    assert not geometry.mirrored


def test_positive_angles_bring_the_detector_to_the_left_and_to_the_head():
    detector = from_carm(replace(PLAIN, primary_deg=30.0)).detector_centre
    assert detector == pytest.approx([-400 * math.sin(math.pi / 6), 400 * math.cos(math.pi / 6), 0])
    detector = from_carm(replace(PLAIN, secondary_deg=20.0)).detector_centre
    assert detector == pytest.approx([0, 400 * math.cos(math.pi / 9), 400 * math.sin(math.pi / 9)])


def test_a_detector_turned_clockwise_shows_the_patient_turned_counter_clockwise():
    straight, turned = from_carm(PLAIN), from_carm(replace(PLAIN, roll_deg=10.0))
    head = np.array([[0, 0, 50.0]])
    middle = straight.principal_point
    assert straight.project(head)[0, 0] == pytest.approx(middle[0])
    # Counter-clockwise, what was above the middle comes to lie to the left of it.
    assert turned.project(head)[0, 0] < middle[0] - 10 and turned.project(head)[0, 1] < middle[1]


@every_place
def test_a_machines_values_are_read_back(values):
    geometry = from_carm(values)
    read = to_carm(geometry, np.array(values.isocentre))
    for name in ("source_detector_mm", "source_isocentre_mm", "secondary_deg", "isocentre", "offset_uv", "spacing_uv"):
        assert getattr(read, name) == pytest.approx(getattr(values, name), abs=1e-6), name
    assert read.mirrored == values.mirrored
    again = from_carm(read)
    points = points_about(values.isocentre)
    assert np.allclose(again.project(points), geometry.project(points), atol=1e-6)
    if abs(values.secondary_deg) < 90:
        assert (read.primary_deg, read.roll_deg) == pytest.approx((values.primary_deg, values.roll_deg), abs=1e-6)


def test_any_detector_is_read_as_a_machine_and_made_again():
    geometry = tilted_view()
    again = from_carm(to_carm(geometry, MIDDLE))
    for name in ("source", "detector_centre", "u", "v"):
        assert np.allclose(getattr(again, name), getattr(geometry, name), atol=1e-9)


@pytest.mark.parametrize("view", VIEWS)
def test_points_on_a_pixels_ray_are_projected_to_it(view):
    geometry = VIEWS[view]
    pixels = np.random.default_rng(0).uniform(-20, 120, (30, 2))
    ends = geometry.pixel_positions(pixels)
    for share in (0.3, 0.7, 1.0, 1.4):
        assert np.allclose(geometry.project(geometry.source + share * (ends - geometry.source)), pixels)
    homogeneous = np.column_stack([pixels, np.zeros(30), np.ones(30)]) @ geometry.pixel_to_ras.T
    assert np.allclose(homogeneous[:, :3], ends)
    assert np.allclose(geometry.depths(ends), geometry.source_detector_mm)
    points = np.column_stack([points_about(MIDDLE), np.ones(20)])
    projected = points @ geometry.matrix.T
    assert np.allclose(projected[:, :2] / projected[:, 2:], geometry.project(points[:, :3]))
    assert np.allclose(projected[:, 2], geometry.depths(points[:, :3]))


def test_magnification_follows_from_the_distances():
    geometry = from_carm(PLAIN)
    pixels = geometry.project(np.array([(0, 0, 0), (30.0, 0, 0), (0, 0, 30.0)]))
    assert np.hypot(*(pixels[1] - pixels[0])) == pytest.approx(30 * 1000 / 600 / 0.5)  # columns, 0.5 mm
    assert np.hypot(*(pixels[2] - pixels[0])) == pytest.approx(30 * 1000 / 600 / 0.4)  # rows, 0.4 mm


def test_what_lies_behind_the_source_is_nowhere_in_the_image():
    geometry = from_carm(PLAIN)
    behind = geometry.source - 10 * geometry.normal
    assert np.isnan(geometry.project(np.stack([behind, geometry.source]))).all()
    assert geometry.contains(np.stack([behind, np.zeros(3)])).tolist() == [False, True]


def test_the_frustum_ends_at_the_outer_pixels_edges():
    geometry = from_carm(PLAIN)
    pixels = np.array([(-0.4, -0.4), (399.4, 299.4), (-0.6, 10), (10, 299.6)])
    points = geometry.source + 0.6 * (geometry.pixel_positions(pixels) - geometry.source)
    assert geometry.contains(points).tolist() == [True, True, False, False]


def test_resizing_keeps_the_detectors_area():
    geometry = from_carm(EVERYWHERE["rolled, off centre"])
    small = geometry.resized((75, 50))
    for (x, y), (small_x, small_y) in {(-0.5, -0.5): (-0.5, -0.5), (399.5, 299.5): (49.5, 74.5)}.items():
        assert np.allclose(geometry.pixel_positions([(x, y)]), small.pixel_positions([(small_x, small_y)]))


def test_moving_source_and_detector_with_the_patient_changes_nothing():
    geometry, motion = from_carm(EVERYWHERE["mirrored"]), frame((1, 1, 1))
    motion[:3, 3] = (5, -80, 33)
    points = points_about((0, 0, 0))
    moved = points @ motion[:3, :3].T + motion[:3, 3]
    assert np.allclose(geometry.moved(motion).project(moved), geometry.project(points))
    with pytest.raises(ValueError, match="rigid"):
        geometry.moved(np.diag([-1.0, 1, 1, 1]))


@every_place
def test_json_holds_everything(values):
    geometry = replace(from_carm(values, {"angles": "typed"}), anatomical=False)
    again = from_json(json.loads(json.dumps(geometry.to_json())))
    for name in ("source", "detector_centre", "u", "v", "spacing_uv"):
        assert np.allclose(getattr(again, name), getattr(geometry, name), rtol=1e-12)
    assert (again.shape, again.origins, again.anatomical) == (geometry.shape, {"angles": "typed"}, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "something"}, "no X-ray geometry"),
        ({"version": 2}, "version 2"),
        ({"u": [1, 0]}, "u is missing or not 3 numbers"),
        ({"source": None}, "source is missing"),
        ({"spacing_uv_mm": None}, "pixel spacing at the detector is missing"),
        ({"spacing_uv_mm": [0.0, 0.5]}, "spacing 0 x 0.5 mm is impossible"),
        ({"shape_rows_columns": [300.5, 400]}, "image size"),
        ({"shape_rows_columns": 300}, "image size"),
        ({"anatomical": "yes"}, "neither true nor false"),
        ({"origins": {"angles": 3}}, "origins are not texts"),
        ({"detector_centre": [math.nan, 0, 0]}, "detector centre is missing"),
        ({"u": [0.0, 0.0, 1.0]}, "right angles"),
        ({"u": [2.0, 0.0, 0.0]}, "right angles"),
        ({"source": [0.0, -60000.0, 0.0]}, "mm from the detector"),
        ({"source": [0.0, 390.0, 0.0]}, "10 mm from the detector"),
        ({"source": [3000.0, 0.0, 0.0]}, "central ray"),
    ],
)
def test_impossible_geometries_are_refused_in_one_sentence(change, words):
    with pytest.raises(InputError, match=words):
        from_json(from_carm(PLAIN).to_json() | change)
    with pytest.raises(InputError, match="lacks source, v"):
        from_json({key: value for key, value in from_carm(PLAIN).to_json().items() if key not in ("source", "v")})
    with pytest.raises(InputError, match="no X-ray geometry"):
        from_json([])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source_detector_mm": None}, "source to detector is missing"),
        ({"source_isocentre_mm": math.inf}, "source to isocentre is missing"),
        ({"primary_deg": None}, "primary angle is missing"),
        ({"source_isocentre_mm": 1000.0}, "isocentre must lie between"),
        ({"source_isocentre_mm": -5.0}, "isocentre must lie between"),
        ({"secondary_deg": 91.0}, "angles .* are impossible"),
        ({"source_detector_mm": 100.0, "source_isocentre_mm": 60.0}, "100 mm from the detector"),
        ({"spacing_uv": None}, "pixel spacing at the detector is missing"),
        ({"shape": None}, "image size"),
    ],
)
def test_a_machines_impossible_values_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        from_carm(replace(PLAIN, **change))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_pair_whose_views_agree(name):
    frontal, lateral = preset_view(name, "AP", MIDDLE), preset_view(name, "right lateral", MIDDLE)
    check_views(frontal, lateral)
    assert angle_between(frontal, lateral) == pytest.approx(90)
    assert common_point(frontal, lateral) == pytest.approx(MIDDLE)
    assert set(frontal.origins) == set(VALUES) and frontal.origins["angles"] == f"preset {name}"
    assert calibration_note(frontal) == ""


def test_the_values_of_ssr_kd():
    values = to_carm(preset_view("ssr-kd", "AP"), np.zeros(3))
    assert (values.source_detector_mm, values.source_isocentre_mm) == pytest.approx((2000, 1000))
    assert values.spacing_uv == (0.575, 0.575) and values.shape == (512, 512)
    with pytest.raises(InputError, match="no preset lab"):
        preset_view("lab", "AP")
    with pytest.raises(InputError, match="no view oblique"):
        preset_view("eos", "oblique")


def views_apart(angle):
    return preset_view("ssr-kd", "AP"), preset_view("ssr-kd", "left lateral", turn_deg=90 - angle)


@pytest.mark.parametrize("angle", [30.5, 60, 90, 120, 149.5])
def test_views_from_30_to_150_degrees_apart_are_taken(angle):
    assert angle_between(*views_apart(angle)) == pytest.approx(angle)
    check_views(*views_apart(angle))


@pytest.mark.parametrize(
    ("angle", "words"),
    [
        (0, "0 degrees apart, nearly parallel"),
        (28, "nearly parallel"),
        (155, "nearly opposite"),
        (180, "nearly opposite"),
    ],
)
def test_nearly_parallel_views_are_refused(angle, words):
    with pytest.raises(InputError, match=words):
        check_views(*views_apart(angle))


def test_views_that_contradict_each_other_are_refused():
    frontal, lateral = views_apart(70)
    with pytest.raises(InputError, match="swapped"):
        check_views(lateral, frontal)
    aside = np.eye(4)
    aside[2, 3] = 900
    with pytest.raises(InputError, match="do not look at the same place"):
        check_views(frontal, lateral.moved(aside))
    with pytest.raises(InputError, match="frame"):
        check_views(frontal, replace(lateral, anatomical=False))
    # In the frame of a calibration nobody knows which view is which.
    check_views(replace(lateral, anatomical=False), replace(frontal, anatomical=False))


def test_an_uncalibrated_view_says_what_is_assumed():
    geometry = from_carm(PLAIN, {"angles": "assumed from the view AP", "spacing": "DICOM ImagerPixelSpacing"})
    assert geometry.assumed == ("angles",)
    assert "not calibrated, its angles are assumed" in calibration_note(geometry)
    assert isinstance(geometry, XrayGeometry)
