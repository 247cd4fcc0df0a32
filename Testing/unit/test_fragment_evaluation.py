"""The evaluation of reduced fragments: errors of known motions, cases that fail, the summary."""

import numpy as np
import pytest
from tibiae import pose

from BoneReconstructionLib import evaluationruns
from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface
from TibiaCompletionLib.evaluation import fragments
from TibiaCompletionLib.evaluation.fragmentcases import fracture_keys
from TibiaCompletionLib.evaluation.fragments import place_errors, summary

CENTRE, AXIS = np.array([30.0, -20.0, 100.0]), np.array([0.0, 0.0, 1.0])


def off(turn, shift):
    true = pose((10, 20, -30), (5.0, 6.0, 7.0))
    middle = true[:3, :3] @ CENTRE + true[:3, 3]
    return place_errors(turned_about(np.radians(turn), middle, np.asarray(shift)) @ true, true, CENTRE, AXIS)


def test_torsion_is_told_apart_from_the_rest_of_the_rotation():
    assert off((0, 0, 7), (0, 0, 0)) == pytest.approx((0, 7, 0), abs=1e-5)
    assert off((3, 4, 0), (0, 0, 0)) == pytest.approx((5, 0, 0), abs=1e-5)
    assert off((0, 0, -2), (2.0, -1.0, 2.0)) == pytest.approx((0, -2, 3), abs=1e-5)


@pytest.fixture
def bones(tmp_path):
    (tmp_path / "tibia").mkdir()
    tetrahedron = Surface(np.eye(4, 3), np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]))
    for side in "LR":
        write_surface(tmp_path / "tibia" / f"A_{side}.ply", tetrahedron)
    return tmp_path


def test_every_bone_has_twenty_fractures_in_turn(bones):
    keys = fracture_keys(bones)
    assert len(keys) == 40 == len(set(keys)) and all(key.other_leg for key in keys)
    assert {key.side for key in keys[:2]} == {"left", "right"}
    assert len(fracture_keys(bones, quick=True)) == 2


def test_one_case_that_fails_is_a_row_and_does_not_end_the_run(bones, monkeypatch, tmp_path):
    failed = InputError("This bone is no bone.")
    outcomes = [(0, failed), (1, failed)]
    monkeypatch.setattr(evaluationruns, "outcomes_of", lambda tasks, jobs, work: iter(outcomes))
    rows = fragments.evaluate(bones, tmp_path / "out.csv", quick=True)
    assert len(rows) == 2 and all(np.isnan(row["share"]) for row in rows)
    assert summary(rows).endswith("2 fractures failed")
    assert len((tmp_path / "out.csv").read_text("utf-8").splitlines()) == 3


def test_the_summary_counts_main_fragments_and_small_pieces_apart():
    row = dict.fromkeys(fragments.COLUMNS, 1.0) | {"main": 1, "other_leg": 1, "renderer": "trained", "case": "pilon-8"}
    small = row | {"rotation_error_deg": 3.5, "main": 0, "share": 0.03}
    held = row | {"main": 0}
    deep = row | {"case": "spiral-2", "renderer": "foreign", "translation_error_mm": 2.5}
    deep |= {"overlap_mm": 1.5, "segmented_overlap_mm": 0.75}
    lines = {line[:40].strip(): line[40:].split() for line in summary([row, small, held, deep]).splitlines()}
    assert lines["main, with the other leg"][:2] == ["2", "50"]
    assert lines["main, with it, trained renderer"][:2] == lines["main, with it, of a joint"][:2] == ["1", "100"]
    assert lines["main, with it, foreign renderer"][:2] == lines["main, with it, of the shaft"][:2] == ["1", "0"]
    assert lines["small pieces, with the other leg"][:2] == ["1", "0"]
    assert "main, without" not in lines
    told = summary([row, small, held, deep])
    assert "bone in bone deeper than 1 mm in 1 of 2 fractures, deepest 1.50 mm" in told
    assert "shown in each other deeper than 1 mm in 0 of 2 fractures, deepest 1.00 mm" in told
