"""Virtual knees: drawn from one seed, within their ranges, of both sides, and a CT that shows the bones where they lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from virtualkneepeople import knee, knees

from BoneReconstructionLib.frames import MIRROR, side_to_right, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.virtualknees import BONES, VirtualKnees

SEEDS = (3, 4, 5, 6)
SHAPE, SPACING = (70, 80, 75), 2.0


def grid():
    """ijk_to_knee of a grid about the knee."""
    matrix = np.diag([SPACING, SPACING, SPACING, 1.0])
    matrix[:3, 3] = [-75.0, -85.0, -70.0]
    return matrix


@pytest.fixture(scope="module")
def scan():
    return knees().ct(knee(4), SHAPE, grid())


def surfaces(one):
    return {bone: Surface(v, knees().priors[bone].faces) for bone, v in knees().vertices(one).items()}


def test_the_seed_makes_the_knee():
    again = VirtualKnees().knee(4)
    assert again.pose == knee(4).pose and again.tissue == knee(4).tissue and again.scale == knee(4).scale
    for bone in BONES:
        assert np.array_equal(again.places[bone], knee(4).places[bone])
    assert knee(5).pose != knee(4).pose and not np.allclose(knee(5).mode_weights, knee(4).mode_weights)


@pytest.mark.parametrize("seed", SEEDS)
def test_knees_lie_within_their_ranges_and_have_the_gaps_that_were_drawn(seed):
    one, ranges = knee(seed), knees().ranges
    for name, value in vars(one.pose).items():
        low, high = getattr(ranges, name)
        assert low <= value <= high
    gaps = knees().assembly.gaps(knees().bones(one), one.places)
    assert gaps["medial"] == pytest.approx(one.pose.medial_gap_mm, abs=0.1)
    assert gaps["lateral"] == pytest.approx(one.pose.lateral_gap_mm, abs=0.1)
    assert gaps["fibula"] == pytest.approx(one.pose.fibula_gap_mm, abs=0.1)
    assert gaps["patella"] == pytest.approx(one.pose.patella_gap_mm, abs=0.1)


def test_labels_are_what_the_surfaces_enclose(scan):
    _, labels = scan
    for bone, surface in surfaces(knee(4)).items():
        assert dice(labels[bone].numpy(), voxelize(surface, SHAPE, grid()).array) > 0.94, bone


def test_bones_do_not_share_voxels(scan):
    labels = torch.stack(list(scan[1].values()))
    assert int(labels.sum(0).max()) == 1


def test_the_scan_shows_cortex_cancellous_bone_muscle_and_air(scan):
    hu, labels = scan[0].numpy(), {bone: label.numpy() for bone, label in scan[1].items()}
    bone = np.logical_or.reduce(list(labels.values()))
    assert hu[bone].mean() > 250 and hu[labels["femur"]].max() > 900
    # Every bone lies in flesh: some of it beyond the bone, and air beyond the skin.
    assert -150 < np.median(hu[~bone & (hu > -500)]) < 80
    assert (hu[:, 0] < -900).mean() > 0.5 or (hu[:, -1] < -900).mean() > 0.5
    patella = np.argwhere(labels["patella"]).mean(0).astype(int)
    assert (hu[patella[0], patella[1] :, patella[2]] < -900).any()  # towards the front


def test_a_mirrored_grid_shows_the_left_knee(scan):
    """On a mirrored grid the same voxels; in the world the mirrored surfaces."""
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, SHAPE[2] - 1
    labels = knees().ct(knee(4), SHAPE, grid() @ flip)[1]
    for bone in BONES:
        assert dice(labels[bone].numpy(), scan[1][bone].numpy()[:, :, ::-1]) > 0.999
    left = transformed(surfaces(knee(4))["fibula"], side_to_right("left"))
    assert dice(voxelize(left, SHAPE, MIRROR @ grid()).array, scan[1]["fibula"].numpy()) > 0.94
    assert left.vertices[:, 0].mean() < 0  # the fibula is lateral: the patient's left


def test_a_knee_is_the_same_in_another_field_of_view(scan):
    still = replace(knee(4), tissue=knee(4).tissue | {"noise_hu": 0.0, "blur_mm": 0.0, "slice_mm": 0.0})
    hu = knees().ct(still, SHAPE, grid())[0].numpy()
    moved = grid()
    moved[:3, 3] += SPACING * np.array([8, 10, 6])
    part = knees().ct(still, (50, 60, 55), moved)[0].numpy()
    inner = (slice(3, -3),) * 3  # soft tissue is less exact on the border
    np.testing.assert_allclose(part[inner], hu[6:56, 10:70, 8:63][inner], atol=2.0)


def test_flexion_bends_the_flesh_with_the_bones():
    """The thigh's muscles surround the femur's shaft whatever the flexion."""
    straight = next(knee(seed) for seed in SEEDS)
    for flexion in (5.0, 85.0):
        pose = replace(straight.pose, flexion_degrees=flexion)
        bent = knees().knee_of(
            straight.seed, straight.scale, straight.mode_weights, straight.kernel_weights, pose, straight.tissue
        )
        femur = knees().bones(bent)["femur"]
        ring = femur[np.abs(femur[:, 2] - 120) < 6].mean(0, keepdims=True)
        shaft = transform_points(bent.places["femur"], ring)[0]
        small = np.diag([2.0, 2.0, 2.0, 1.0])
        small[:3, 3] = shaft - 40
        hu = knees().ct(bent, (41, 41, 41), small)[0].numpy()
        assert (hu < -500).mean() < 0.05 and hu[20].max() > 900
