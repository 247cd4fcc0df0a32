"""The two legs of a virtual person, and what is counted of the fractures that one of them has."""

import numpy as np
import pytest
from tibiae import landmarks
from virtualpeople import patients

from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.twolegs import other_tibia, twisted
from TibiaCompletionLib.evaluation import otherleg


def test_a_twist_turns_the_ends_against_each_other_and_keeps_heights_and_the_axis():
    points = np.array([[30.0, 0.0, -100.0], [30.0, 0.0, 0.0], [30.0, 0.0, 100.0], [0.0, 0.0, 40.0]])
    turned = twisted(points, np.radians(20.0))
    angles = np.degrees(np.arctan2(turned[:3, 1], turned[:3, 0]))
    np.testing.assert_allclose(angles, [-10.0, 0.0, 10.0], atol=1e-9)
    np.testing.assert_allclose(turned[:, 2], points[:, 2])
    np.testing.assert_allclose(turned[3], points[3])


def test_a_person_keeps_both_legs_and_they_are_alike_but_not_equal():
    person = patients().person(7)
    own, other = patients().vertices(person, "tibia"), other_tibia(patients(), person)
    np.testing.assert_array_equal(other.vertices, other_tibia(patients(), person).vertices)
    apart = np.linalg.norm(other.vertices - own, axis=1)
    assert 0.3 < apart.mean() < 6.0
    stranger = patients().vertices(patients().person(8), "tibia")
    assert apart.mean() < np.linalg.norm(stranger - own, axis=1).mean()


def test_the_legs_are_written_with_their_sides_and_their_differences_are_told(tmp_path):
    ((length, torsion),) = otherleg.write_legs(tmp_path, [11])
    right, left = (read_surface(tmp_path / "tibia" / f"V11_{side}.ply") for side in "RL")
    measured = landmarks().measure(right.vertices)
    mirrored = landmarks().measure(left.vertices * [-1, 1, 1])
    assert measured["length"] - mirrored["length"] == pytest.approx(length, abs=0.02)
    assert measured["torsion"] - mirrored["torsion"] == pytest.approx(torsion, abs=0.05)


def test_every_person_has_the_gaps_and_one_fracture_on_either_side_in_turn():
    keys = otherleg.case_keys(range(8))
    assert len(keys) == 8 * 4 and all(key.other_leg for key in keys)
    broken = [(key.side, key.case) for key in keys if key.case.startswith("fracture")]
    assert len(set(broken)) == 8


def test_accepted_fractures_are_counted_one_by_one_and_together():
    def row(torsion, length, case="fracture-1", method="default"):
        errors = {"torsion_error_deg": torsion, "angulation_error_deg": 1.0, "length_error_mm": length}
        return {"case": case, "method": method, **errors}

    rows = [row(4.0, 5.0), row(6.0, 3.0), row(1.0, 1.0), row(9.0, 9.0, "shaft"), row(9.0, 9.0, method="mirror")]
    text = otherleg.accepted(rows)
    assert "torsion_error_deg at most 5: 2 of 3" in text and "length_error_mm at most 4: 2 of 3" in text
    assert "angulation_error_deg at most 2: 3 of 3" in text and "all of these: 1 of 3" in text
