"""What motions of their own save: displaced pieces more than the completion asks for, pieces in place less."""

import numpy as np
import pytest
from tibiae import random_tibiae, tibia_prior

from BoneReconstructionLib.priortraining import People
from BoneReconstructionLib.surfaces import Surface
from TibiaCompletionLib.evaluation import motions
from TibiaCompletionLib.evaluation.motions import DISPLACED, GAPS, IN_PLACE, saving, table, tasks_of
from TibiaCompletionLib.shapecompletion import COST_OF_A_MOTION


@pytest.fixture
def people(monkeypatch):
    """Eight random tibiae in place of the training people's."""
    shapes = np.array(random_tibiae(3, 8))
    found = People(shapes, np.ones(len(shapes)), tibia_prior().faces)
    monkeypatch.setattr(motions, "_people", lambda bones: found)
    return found


def test_a_displaced_shaft_saves_much_and_one_in_place_little(people):
    assert saving("", 2, "transverse", DISPLACED) > 2 * COST_OF_A_MOTION
    assert saving("", 2, "transverse", IN_PLACE) < COST_OF_A_MOTION


@pytest.mark.parametrize("gap", GAPS)
def test_gaps_lie_as_far_from_their_end_as_they_say(people, gap):
    end, shown_mm, (low, high) = GAPS[gap]
    truth = Surface(people.shapes[0], people.faces)
    tibia, mask = motions._masked(truth, gap)
    heights = tibia.ijk_to_ras[2, 3] + tibia.spacing[2] * np.flatnonzero(tibia.array.any((1, 2)))
    hidden = mask.ijk_to_ras[2, 3] + mask.spacing[2] * np.flatnonzero(mask.array.any((1, 2)))
    z = truth.vertices[:, 2]
    heights, hidden = (places - z.min() if end == "distal" else z.max() - places for places in (heights, hidden))
    assert heights.min() == pytest.approx(0, abs=1.5)
    assert heights.max() == pytest.approx(min(shown_mm, np.ptp(z)), abs=1.5)
    assert (hidden.min(), hidden.max()) == pytest.approx((low, high), abs=1.1)
    assert not (tibia.array & mask.array).any()


def test_the_table_counts_what_lies_on_the_wrong_side():
    below, above = COST_OF_A_MOTION - 1, COST_OF_A_MOTION + 1
    lines = table({("pilon", DISPLACED): [below, above, above], ("pilon", IN_PLACE): [above]}).splitlines()
    assert lines[1].split() == ["pilon", "displaced", "3", f"{below:.1f}", f"{above:.1f}", f"{above:.1f}", "1"]
    assert lines[3].split()[:4] == ["pilon", "in", "place", "1"]
    assert lines[-1].split()[-1] == "1"


def test_every_person_has_every_case_once():
    tasks = tasks_of("bones", (0, 5))
    assert len(tasks) == len(set(tasks)) == 2 * (2 * 9 + 3)
