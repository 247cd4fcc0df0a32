"""`bonerecon evaluate knee` and `geometry`: scenes of real bones, figures with known answers, runs that go on."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from virtualkneexrays import ISOCENTRE, bones, views

from BiplanarReconLib.evaluation import geometryerror, knee, kneescenes
from BiplanarReconLib.evaluation.knee import CASE, COLUMNS, Case, cases, figures
from BoneReconstructionLib import evaluationruns
from BoneReconstructionLib.cli import main
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import isosurface
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometry import angle_between

WHOLE = Case("Ana", "left", 0, "low", 90)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A left knee, and a right one without a patella."""
    folder = tmp_path_factory.mktemp("people")
    for bone, (surface, _) in bones("left").items():
        (folder / bone).mkdir()
        write_surface(folder / bone / "Ana_L.ply", surface)
        if bone != "patella":
            write_surface(folder / bone / "Ben_R.ply", surface)
    return folder


def test_only_knees_with_all_four_bones_count(people, tmp_path):
    assert kneescenes.knee_names(people) == [("Ana", "left")]
    with pytest.raises(InputError, match="holds nobody"):
        kneescenes.knee_names(tmp_path)


def test_each_knee_is_seen_bent_and_straight_in_three_levels_of_noise_and_two_angles(people):
    every = cases(people, quick=False)
    assert len(every) == len(set(every)) == 12
    assert {(case.flexion_deg, case.noise, case.angle_deg) for case in every} == {
        (flexion, noise, angle) for flexion in (0, 30) for noise in ("low", "middle", "high") for angle in (90, 60)
    }
    assert cases(people, quick=True) == [WHOLE, replace(WHOLE, angle_deg=60)]


def test_bending_turns_thigh_and_patella_backwards_and_leaves_the_shank():
    own = {bone: surface for bone, (surface, _) in bones("left").items()}
    straight = kneescenes.RealKnee("Ana", "left", own, ISOCENTRE + [0, 0, 15.0], np.array([1.0, 0, 0]))
    bent = kneescenes.bent(straight, 30)
    assert bent["tibia"] is own["tibia"] and bent["fibula"] is own["fibula"]
    end = len(own["femur"].vertices) - 1
    before, after = (bones["femur"].vertices[end] - straight.middle for bones in (own, bent))
    turn = np.degrees(np.arctan2(before[2], before[1]) - np.arctan2(after[2], after[1]))
    assert turn == pytest.approx(-30, abs=0.1)
    assert kneescenes._gap(bent["patella"], bent["femur"]) == pytest.approx(
        kneescenes._gap(own["patella"], own["femur"]), abs=0.1
    )


def test_the_rendered_knee_has_a_dense_shell_inside_flesh_and_air():
    own = {bone: surface for bone, (surface, _) in bones("left").items()}
    ct = kneescenes.knee_ct(own, ISOCENTRE, [1, 2])
    place = np.rint((ct.ras_to_ijk @ [*own["patella"].vertices.mean(0), 1])[:3]).astype(int)
    k, j, i = place[::-1]
    # Cancellous bone has a texture.
    assert 0 < ct.array[k - 8 : k + 9, j - 8 : j + 9, i - 8 : i + 9].mean() < 500 and ct.array.max() > 700
    assert ct.array[0, 0, 0] < -900 and ((ct.array > 20) & (ct.array < 90)).mean() > 0.1
    assert np.array_equal(ct.array, kneescenes.knee_ct(own, ISOCENTRE, [1, 2]).array)


def ball(radius):
    grid = np.indices((64, 64, 64))[::-1] - 31.5
    surface = isosurface(Volume((radius - np.linalg.norm(grid, axis=0)).astype(np.float32), np.eye(4)), 0)
    return Surface(surface.vertices - 31.5 + ISOCENTRE, surface.faces)


def test_figures_of_balls_are_known():
    truth, found = ball(20.0), ball(22.0)
    measured = figures(truth, found, np.zeros(len(found.faces), dtype=bool), views())
    assert measured["assd_mm"] == pytest.approx(2, abs=0.02) and measured["hd_mm"] == pytest.approx(2, abs=0.1)
    assert measured["hd95_mm"] == pytest.approx(2, abs=0.05)
    assert measured["dsc"] == pytest.approx(2 * 20**3 / (20**3 + 22**3), abs=0.01)


def test_neither_cut_faces_nor_what_lies_outside_the_views_count():
    truth, found = ball(20.0), ball(20.0)
    # The upper cap of the found ball is cut off by a flat face 8 mm above the middle.
    low = np.where(found.vertices[:, 2] > ISOCENTRE[2] + 8, ISOCENTRE[2] + 8, found.vertices[:, 2])
    flat = Surface(np.column_stack([found.vertices[:, :2], low]), found.faces)
    cap = (flat.vertices[flat.faces, 2] > ISOCENTRE[2] + 7.99).all(1)
    counted = figures(truth, flat, cap, views())
    assert counted["assd_mm"] < 0.2 < figures(truth, flat, np.zeros_like(cap), views())["assd_mm"]
    far = Surface(truth.vertices + [0, 0, 300], truth.faces)
    assert np.isnan(figures(far, far, cap, views())["assd_mm"])


def test_a_case_that_fails_leaves_empty_fields_and_the_others_go_on(people, tmp_path, monkeypatch, capsys):
    good = [dict.fromkeys(COLUMNS, 1.0) | vars(WHOLE) | {"bone": bone} for bone in knee.BONES]
    outcomes = [(1, good), (0, InputError("The X-rays are bad."))]
    monkeypatch.setattr(evaluationruns, "outcomes_of", lambda tasks, jobs, work: iter(outcomes))
    tasks = [(people, replace(WHOLE, noise="high")), (people, WHOLE)]
    rows = knee.evaluate_cases(tasks, None, tmp_path / "out.csv", COLUMNS, 2)
    assert "Ana left 0 deg high noise 90 deg between: FAILED: The X-rays are bad." in capsys.readouterr().out
    with open(tmp_path / "out.csv", encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    assert [row["noise"] for row in written] == ["high"] * 4 + ["low"] * 4
    assert written[0]["assd_mm"] == "" and written[4]["assd_mm"] == "1.000" and list(written[0]) == list(COLUMNS)
    assert knee.summary(rows).splitlines()[1].split()[-2:] == ["1", "1"]


def test_an_output_that_cannot_be_written_is_refused_before_the_work(people, tmp_path, capsys):
    arguments = ["evaluate", "knee", "--bones", str(people), "--output", str(tmp_path / "missing" / "out.csv")]
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_columns_are_those_that_were_asked_for():
    assert CASE == ("subject", "side", "flexion_deg", "noise", "angle_deg")
    assert COLUMNS[5:] == ("method", "bone", "dsc", "assd_mm", "hd_mm", "hd95_mm", "residual_mm", "seconds")


def test_wrong_geometries_reach_ten_degrees_and_twenty_millimetres(people):
    every = geometryerror.cases(people)
    assert {(case.angle_error_deg, case.shift_error_mm) for case in every} == {
        *((angle, 0.0) for angle in (0.0, 2.5, 5.0, 7.5, 10.0)),
        *((0.0, shift) for shift in (5.0, 10.0, 15.0, 20.0)),
    }
    frontal, lateral = views()
    wrong = lateral.moved(geometryerror.motion(ISOCENTRE, 10.0, 0.0))
    assert abs(angle_between(frontal, wrong) - 90) == pytest.approx(10)
    assert wrong.project(ISOCENTRE[None]) == pytest.approx(lateral.project(ISOCENTRE[None]))
    shifted = lateral.moved(geometryerror.motion(ISOCENTRE, 0.0, 20.0))
    assert shifted.source - lateral.source == pytest.approx([0, 0, 20])


def test_the_summary_of_wrong_geometries_has_a_line_for_each():
    rows = [
        dict.fromkeys(geometryerror.COLUMNS, value) | {"angle_error_deg": a, "shift_error_mm": s, "bone": bone}
        for a, s, value in ((0.0, 0.0, 1.0), (5.0, 0.0, 2.0), (0.0, 5.0, float("nan")))
        for bone in knee.BONES
    ]
    lines = geometryerror.summary(rows).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["0", "deg", "1.00"], ["5", "deg", "2.00"], ["5", "mm", "nan"]]
    assert [line.split()[-1] for line in lines[1:]] == ["0", "0", "1"]
