"""The surgeon's figures: signs and sizes of known motions, step and gap of a fragment that is moved by known amounts."""

import numpy as np
import pytest
from brokentibiae import fracture, reduction

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.frames import transform_points
from TibiaCompletionLib.fragments.assessment import FIGURES, Assessment

KIND = "plateau-split-depression"
WEDGE = 1
STEEP = 0.95  # cosine of surfaces that look along a motion


@pytest.fixture(scope="module")
def assessment():
    return Assessment(reduction(KIND))


def in_ras(poses):
    return [reduction(KIND).target.motion_in_ras(pose) for pose in poses]


def from_the_ct(turn, shift=(0, 0, 0), centre=(0, 0, 0)):
    """Motions, RAS, of the wedge alone, turned about a centre, degrees, and shifted, mm, in the target's axes."""
    poses = np.tile(np.eye(4), (len(reduction(KIND).bodies), 1, 1))
    poses[WEDGE] = turned_about(np.radians(turn), np.asarray(centre, dtype=float), np.asarray(shift, dtype=float))
    return in_ras(poses)


def from_its_place(shift):
    """Motions, RAS, of all fragments to their planned places, the wedge shifted from there, mm, in the target's axes."""
    return in_ras(shifted(reduction(KIND).poses, shift))


def from_its_true_place(shift):
    """The same from where the fragments belong: how well they were planned does not matter."""
    true = [reduction(KIND).target.motion_from_ras(np.linalg.inv(motion)) for motion in fracture(KIND).motions]
    return in_ras(shifted(true, shift))


def shifted(poses, shift):
    poses = np.array(poses)
    poses[WEDGE, :3, 3] += shift
    return poses


@pytest.mark.parametrize(
    ("turn", "name", "point", "goes"),
    [
        ((0, -7, 0), "valgus_deg", (0, 0, -100), (1, 0, 0)),
        ((-7, 0, 0), "flexion_deg", (0, 0, -100), (0, -1, 0)),
        ((0, 0, -7), "external_rotation_deg", (0, 100, 0), (1, 0, 0)),
    ],
)
def test_positive_angles_turn_the_fragment_where_they_say(assessment, turn, name, point, goes):
    values = assessment.figures(from_the_ct(turn))[WEDGE].values
    assert values[name] == pytest.approx(7.0)
    others = {"valgus_deg", "flexion_deg", "external_rotation_deg"} - {name}
    assert all(abs(values[other]) < 1e-6 for other in others)
    shift = transform_points(turned_about(np.radians(turn), np.zeros(3), np.zeros(3)), [point])[0] - point
    assert shift @ goes == pytest.approx(100 * np.sin(np.radians(7)))


def test_translation_is_that_of_the_fragments_middle(assessment):
    middle = reduction(KIND).bodies[WEDGE].surface.vertices.mean(0)
    values = assessment.figures(from_the_ct((4, 5, 6), (1.5, -2.5, 3.5), middle))[WEDGE].values
    assert [values[name] for name in ("lateral_mm", "anterior_mm", "proximal_mm")] == pytest.approx((1.5, -2.5, 3.5))
    assert list(values) == list(FIGURES)


def test_at_the_planned_place_steps_are_small_and_gaps_no_wider_than_what_bone_was_lost(assessment):
    planned = assessment.figures(reduction(KIND).motions)
    back = assessment.figures([np.linalg.inv(motion) for motion in fracture(KIND).motions])
    for here, true in zip(planned, back):
        assert here.values["step_mm"] < 2.0
        assert -0.6 < here.values["gap_mm"] < true.values["gap_mm"] + 1.0


def test_a_fragment_that_is_lifted_steps_by_as_much(assessment):
    planned, lifted, sunk = (assessment.figures(from_its_place((0, 0, z)))[WEDGE] for z in (0.0, 4.0, -4.0))
    looks = reduction(KIND).bodies[WEDGE].normals @ planned_rotation().T
    level = np.isfinite(planned.step) & (looks[:, 2] > STEEP)
    assert level.sum() > 50
    assert np.median(lifted.step[level] - planned.step[level]) == pytest.approx(4.0, abs=0.2)
    assert np.median(sunk.step[level] - planned.step[level]) == pytest.approx(-4.0, abs=0.2)
    lifted, sunk = (assessment.figures(from_its_true_place((0, 0, z)))[WEDGE] for z in (4.0, -4.0))
    assert all(moved.values["step_mm"] == pytest.approx(4.0, abs=0.8) for moved in (lifted, sunk))


def planned_rotation():
    return reduction(KIND).poses[WEDGE][:3, :3]


def test_a_fragment_that_is_drawn_away_gapes_by_as_much(assessment):
    planned = assessment.figures(reduction(KIND).motions)[WEDGE]
    faces = np.isfinite(planned.gap)
    looks = reduction(KIND).bodies[WEDGE].normals @ planned_rotation().T
    away = -looks[faces].mean(0)
    away /= np.linalg.norm(away)
    opposite = faces & (looks @ away < -STEEP)
    assert opposite.sum() > 10
    apart, pressed = (assessment.figures(from_its_place(mm * away))[WEDGE] for mm in (3.0, -3.0))
    assert np.median(apart.gap[opposite] - planned.gap[opposite]) == pytest.approx(3.0, abs=0.5)
    assert apart.values["gap_mm"] > planned.values["gap_mm"] + 1.5
    assert np.median(pressed.gap[opposite] - planned.gap[opposite]) == pytest.approx(-3.0, abs=0.5)
    assert pressed.values["overlap_mm"] > planned.values["overlap_mm"] + 1


def test_the_neighbours_figures_follow_and_what_was_moved_back_reads_as_before(assessment):
    before, after, again = (assessment.figures(from_its_place((0, 0, z))) for z in (0.0, 4.0, 0.0))
    assert after[0].values["step_mm"] > before[0].values["step_mm"] + 1.5
    assert np.allclose(after[0].step, before[0].step, equal_nan=True)  # its own height over the target is what it was
    assert all(one.values == pytest.approx(two.values, nan_ok=True) for one, two in zip(again, before))
