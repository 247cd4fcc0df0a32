"""The sample: a virtual patient's broken leg in files that complete-tibia takes."""

import numpy as np
import pytest
from scipy import ndimage
from test_virtualpatients import patients
from tibiae import landmarks

from BoneReconstructionLib import cli, sample
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import is_closed, volume_mm3
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks
from BoneReconstructionLib.volumes import check_geometry, read_mask, read_volume
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.sidedness import detect_side


@pytest.fixture(scope="module")
def coarse():
    """Samples are made on coarse voxels and by one set of patients, to be quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SPACING_MM", (1.8, 1.8, 2.4))
        patch.setattr(sample, "VirtualPatients", patients)
        yield


@pytest.fixture(scope="module")
def legs(coarse):
    return {side: sample.make_sample(patients(), 1, side) for side in ("left", "right")}


def test_ct_and_masks_share_an_oblique_anisotropic_grid(legs):
    for leg in legs.values():
        for mask in (leg.tibia, leg.fracture):
            assert mask.shape == leg.ct.shape and mask.array.dtype == bool
            np.testing.assert_array_equal(mask.ijk_to_ras, leg.ct.ijk_to_ras)
        check_geometry(leg.ct.ijk_to_ras)
        np.testing.assert_allclose(leg.ct.spacing, (1.8, 1.8, 2.4))
        assert np.abs(leg.ct.ijk_to_ras[:3, :3] / leg.ct.spacing - np.eye(3)).max() > 0.05


def test_the_right_leg_lies_at_the_patient_s_right(legs):
    assert legs["right"].truth.vertices[:, 0].mean() > 50
    assert legs["left"].truth.vertices[:, 0].mean() < -50
    places = landmarks()
    for side, sign in (("left", -1), ("right", 1)):
        vertices = legs[side].truth.vertices
        across = vertices[places.lateral_plateau].mean(0) - vertices[places.medial_plateau].mean(0)
        assert sign * across[0] > 25
        assert vertices[places.medial_plateau].mean(0)[2] > vertices[places.plafond].mean(0)[2] + 250


def test_the_truth_is_the_healthy_bone_where_the_scan_shows_it(legs):
    for leg in legs.values():
        assert is_closed(leg.truth) and volume_mm3(leg.truth) > 0
        whole = voxelize(leg.truth, leg.ct.shape, leg.ct.ijk_to_ras).array
        outside = ~leg.fracture.array
        assert dice(leg.tibia.array & outside, whole & outside) > 0.95


def test_bone_is_missing_inside_the_mask_only(legs):
    for leg in legs.values():
        whole = voxelize(leg.truth, leg.ct.shape, leg.ct.ijk_to_ras).array
        in_mask = leg.fracture.array
        share = (leg.tibia.array & in_mask).sum() / (whole & in_mask).sum()
        assert 0.2 < share < 0.95
        gone = whole & ~leg.tibia.array & in_mask
        assert leg.ct.array[gone].mean() < leg.ct.array[leg.tibia.array & in_mask].mean() - 150


def test_the_ct_is_in_hounsfield_units(legs):
    ct = legs["left"].ct.array
    assert ct.dtype == np.int16 and ct.min() >= -1024
    assert 900 < np.percentile(ct[legs["left"].tibia.array], 98) < 2000
    # Air around the leg; most of what is in it is muscle.
    assert np.percentile(ct, 20) == pytest.approx(-1000, abs=60)
    assert 20 < np.median(ct[ct > -500]) < 80


def test_the_knee_and_the_ankle_are_in_view(legs):
    """Bone beyond both ends of the tibia, under skin."""
    for leg in legs.values():
        ct, whole = leg.ct, voxelize(leg.truth, leg.ct.shape, leg.ct.ijk_to_ras).array
        slices = np.flatnonzero(whole.any((1, 2)))
        for beyond in (slice(0, slices[0] - 2), slice(slices[-1] + 3, None)):
            dense = ct.array[beyond] > 250
            assert dense.sum() * np.prod(ct.spacing) > 1500
        assert (ct.array[:, [0, -1]] < -500).mean() > 0.9 and (ct.array[:, :, [0, -1]] < -500).mean() > 0.9


def test_the_whole_leg_is_in_the_scan(legs):
    for leg in legs.values():
        place = leg.truth.vertices @ leg.ct.ras_to_ijk[:3, :3].T + leg.ct.ras_to_ijk[:3, 3]
        assert (place > 2).all() and (place < np.array(leg.ct.shape[::-1]) - 3).all()


@pytest.fixture(scope="module")
def broken(coarse):
    return {kind: sample.make_sample(patients(), 3, "right", kind) for kind in ("spiral", "plateau-split")}


def test_displaced_fragments_lie_in_ct_and_segment_alike(broken):
    for leg in broken.values():
        whole = voxelize(leg.truth, leg.ct.shape, leg.ct.ijk_to_ras).array
        moved = leg.tibia.array & ~whole
        assert moved.sum() > 0.01 * whole.sum()
        deep = ndimage.binary_erosion(leg.tibia.array)
        assert np.median(leg.ct.array[deep & moved]) > 150  # bone is in the CT where the segment says so
        assert dice(leg.tibia.array, whole) < 0.99
        assert (leg.fracture.array & leg.tibia.array).any()


def test_a_plateau_fracture_leaves_the_ankle_alone(broken):
    leg = broken["plateau-split"]
    height = np.argwhere(leg.fracture.array)[:, 0]
    whole = np.flatnonzero(voxelize(leg.truth, leg.ct.shape, leg.ct.ijk_to_ras).array.any((1, 2)))
    assert height.min() > whole[0] + 0.6 * np.ptp(whole)


def test_the_other_leg_is_of_the_other_side_and_alike_but_not_equal(legs):
    places = TibiaLandmarks(patients().priors["tibia"].mean, patients().priors["tibia"].faces)
    for side, other in (("left", "right"), ("right", "left")):
        own = places.measurements(legs[side].truth.vertices, side)
        across = places.measurements(legs[side].other_tibia.vertices, other)
        assert np.sign(legs[side].other_tibia.vertices[:, 0].mean()) == -np.sign(legs[side].truth.vertices[:, 0].mean())
        for name, limit in (("length", 12.0), ("torsion", 8.0)):
            assert 0 < abs(own[name].value - across[name].value) < limit


def test_the_sample_can_be_completed_and_its_side_is_seen(legs):
    for side, leg in legs.items():
        case = make_case(leg.tibia, leg.fracture, None)
        found, _, warnings = detect_side(case, "auto")
        assert (found, warnings) == (side, [])


def test_a_seed_gives_the_same_sample_and_another_seed_another_person(coarse, legs):
    again, other = (sample.make_sample(patients(), seed, "left") for seed in (1, 2))
    np.testing.assert_array_equal(again.ct.array, legs["left"].ct.array)
    np.testing.assert_array_equal(again.fracture.array, legs["left"].fracture.array)
    assert np.ptp(other.truth.vertices[:, 2]) != np.ptp(legs["left"].truth.vertices[:, 2])


def test_the_command_writes_what_was_announced(coarse, legs, tmp_path, capsys):
    assert cli.main(["make-sample", "--output", str(tmp_path / "out"), "--seed", "1", "--side", "right"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(sample.FILES)
    ct = read_volume(tmp_path / "out" / "ct.nii.gz")
    np.testing.assert_array_equal(ct.array, legs["right"].ct.array)
    np.testing.assert_allclose(ct.ijk_to_ras, legs["right"].ct.ijk_to_ras, atol=1e-3)
    for name in ("tibia", "fracture"):
        mask = read_mask(tmp_path / "out" / f"{name}.nii.gz")
        np.testing.assert_array_equal(mask.array, getattr(legs["right"], name).array)
    truth = read_surface(tmp_path / "out" / "truth.ply")
    np.testing.assert_allclose(truth.vertices, legs["right"].truth.vertices, atol=1e-3)
    assert '"progress": 1.0' in capsys.readouterr().out.splitlines()[-1]


def test_a_folder_that_holds_a_sample_is_refused(coarse, tmp_path, capsys):
    (tmp_path / "truth.ply").write_text("mine")
    assert cli.main(["make-sample", "--output", str(tmp_path)]) == 2
    assert "truth.ply" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["truth.ply"]
