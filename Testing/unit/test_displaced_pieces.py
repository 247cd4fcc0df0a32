"""Bone in several pieces, neighbouring bones as context, and what one leg leaves open."""

from functools import cache

import numpy as np
import pytest
from tibiae import COARSE, ct_of, heights, landmarks, leg, pose, tibia_prior

from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.shapeprior import load_leg_prior, load_prior
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.completion import cautions, piece_records, predict

TURN_DEGREES = 9.0


@cache
def broken(side="left"):
    """A leg whose shaft is broken: (healthy leg, bool volume with the distal piece displaced, its motion in RAS)."""
    whole = leg(side, gap_mm=(-14.0, 0.0), margin_mm=45.0)
    right_motion = pose((TURN_DEGREES, 0, 0), (5.0, 4.0, -4.0))
    motion = whole.ras_from_standard @ right_motion @ np.linalg.inv(whole.ras_from_standard)
    height = heights(whole.bone.shape, np.linalg.inv(whole.ras_from_standard) @ whole.bone.ijk_to_ras)
    proximal = whole.bone.array & (height > 0)
    low = Surface(transform_points(motion, whole.truth.vertices), whole.truth.faces)
    moved = voxelize(low, whole.bone.shape, whole.bone.ijk_to_ras).array
    back = heights(
        whole.bone.shape, np.linalg.inv(whole.ras_from_standard) @ np.linalg.inv(motion) @ whole.bone.ijk_to_ras
    )
    distal = moved & (back < -14)
    return whole, Volume(proximal | distal, whole.bone.ijk_to_ras), motion


@cache
def completed(fixed_piece=1, side="left"):
    whole, bone, _ = broken(side)
    case = make_case(bone, whole.gap, ct_of(bone), fixed_piece)
    _, completion, _ = predict(case, side)
    return case, completion, transformed(completion.surface, side_to_right(side))


def angle_degrees(first, second):
    """Between two vectors."""
    return np.degrees(np.arccos(first @ second / np.linalg.norm(first) / np.linalg.norm(second)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_displaced_piece_is_brought_back_to_its_place(side):
    whole, _, motion = broken(side)
    case, completion, _ = completed(1, side)
    assert completion.motions is not None and len(case.piece_volumes_ml) == 2
    found = np.array(piece_records(case, completion, side)[1]["motion_ras"])
    long_axis = whole.ras_from_standard[:3, 2]
    # Turned back but for the torsion, which one leg does not show.
    assert angle_degrees((found @ motion)[:3, :3] @ long_axis, long_axis) < 3.0
    nothing_left_out = np.zeros(len(completion.surface.vertices), dtype=bool)
    assert any("displaced" in sentence for sentence in cautions(case, completion, nothing_left_out))


def test_the_predicted_axis_is_that_of_the_healthy_bone():
    whole, *_ = broken()
    predicted = completed()[2]

    def long_axis(vertices):
        return vertices[landmarks().medial_plateau].mean(0) - vertices[landmarks().plafond].mean(0)

    assert angle_degrees(long_axis(predicted.vertices), long_axis(whole.truth.vertices)) < 2.0


def test_the_chosen_piece_stays_where_it_lies():
    whole, _, motion = broken()
    case, _, predicted = completed(2)
    assert case.piece_volumes_ml[0] < case.piece_volumes_ml[1]
    lying = transform_points(motion, whole.truth.vertices)
    distal = whole.heights(whole.truth.vertices) < -60
    off = np.linalg.norm(predicted.vertices[distal] - lying[distal], axis=1)
    assert np.median(off) < 3.0  # in correspondence, so sliding along the bone counts
    assert np.median(np.linalg.norm(predicted.vertices[distal] - whole.truth.vertices[distal], axis=1)) > 10.0


def test_pieces_that_lie_as_they_should_are_one_bone():
    whole = leg("left")
    case = make_case(whole.tibia, whole.gap, ct_of(whole.tibia))
    _, completion, _ = predict(case, "left")
    assert len(case.piece_volumes_ml) == 2 and completion.motions is None


def test_a_piece_that_is_not_there_is_refused():
    whole, bone, _ = broken()
    with pytest.raises(InputError, match="no visible piece 3: the mask leaves 2"):
        make_case(bone, whole.gap, None, 3)


def test_the_interval_of_the_length_is_wide_where_an_end_is_masked():
    whole = leg("right")
    height = whole.heights(whole.truth.vertices)
    widths = {}
    for name, gap in (("shaft", (-30.0, 30.0)), ("pilon", (-np.inf, height.min() + 40))):
        one = leg("right", gap_mm=gap)
        widths[name] = predict(make_case(one.tibia, one.gap, ct_of(one.tibia)), "right")[1].measured["length"][1]
    assert widths["shaft"] < 1.5
    assert widths["pilon"] > 3.0


def test_the_leg_prior_holds_both_bones():
    both = load_leg_prior("tibia-prior")
    tibia, fibula = tibia_prior(), load_prior("tibia-prior", "fibula")
    assert np.array_equal(both.mean[both.part == 0], tibia.mean)
    assert np.array_equal(both.mean[both.part == 1], fibula.mean)
    assert not both.modes[len(tibia.modes) :, both.part == 0].any()
    assert both.faces.max() == len(both.mean) - 1


def test_neighbours_tell_where_a_masked_plateau_is():
    """The mean leg, seven percent larger and its head 4 mm higher: only a femur shows that."""
    scale = 1.07
    tibia, fibula = tibia_prior(), load_prior("tibia-prior", "fibula")
    right = Surface(scale * tibia.mean, tibia.faces)
    top = right.vertices[:, 2].max()
    right.vertices[:, 2] += 4.0 * np.clip((right.vertices[:, 2] - top + 40) / 20, 0, 1)
    one = leg("left", COARSE, (top - 40, np.inf), margin_mm=30.0, surface=right)

    def volume(vertices, faces):
        placed = transformed(Surface(vertices, faces), one.ras_from_standard)
        return voxelize(placed, one.bone.shape, one.bone.ijk_to_ras)

    # Two rods with round ends stand 2.8 mm above the plateaus: condyles as far as the joint is concerned.
    plateau = [right.vertices[getattr(landmarks(), f"{name}_plateau")].mean(0) for name in ("medial", "lateral")]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(24)], 1)
    femur = np.zeros(one.bone.shape, dtype=bool)
    for centre in plateau:
        profile = [(0.1, 0.0), (6.0, 1.5), (10.0, 5.0), (10.0, 22.0), (0.1, 22.1)]
        points = np.concatenate([centre + [0, 0, 2.8 + z] + radius * ring for radius, z in profile])
        strip = [(level * 24 + a, level * 24 + (a + 1) % 24) for level in range(len(profile) - 1) for a in range(24)]
        faces = np.array([t for a, b in strip for t in ((a, b, b + 24), (a, b + 24, a + 24))])
        ends = [[(0, a + 1, a) for a in range(1, 23)], [(96, 96 + a, 97 + a) for a in range(1, 23)]]
        femur |= volume(points, np.concatenate([faces, *ends])).array
    assert femur.sum() > 500
    neighbours = {
        "fibula": volume(scale * fibula.mean, fibula.faces),
        "femur": Volume(femur, one.bone.ijk_to_ras),
    }
    errors = {}
    for name, given in (("alone", {}), ("with neighbours", neighbours)):
        case = make_case(one.tibia, one.gap, ct_of(one.tibia), neighbours=given)
        predicted = transformed(predict(case, "left")[1].surface, side_to_right("left"))
        distances = surface_distances(predicted, one.truth)
        hidden = one.heights(one.truth.vertices) > top - 40
        errors[name] = np.abs(distances.b_to_a[hidden]).mean()
    assert errors["with neighbours"] < 0.9
    assert errors["with neighbours"] < 0.5 * errors["alone"]
