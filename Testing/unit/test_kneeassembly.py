"""Assembled knees: gaps as asked for, nothing interpenetrates, flexion, rotation and tracking as published."""

from dataclasses import replace

import numpy as np
import pytest

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose
from BoneReconstructionLib.kneepriortraining import BONES
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface

PRIORS = {bone: load_prior("knee-prior", bone) for bone in BONES}
ASSEMBLY = KneeAssembly(PRIORS)
SMALL = {bone: 0.9 * prior.mean for bone, prior in PRIORS.items()}


def turn_degrees(matrix):
    """Rotation angle of a (4, 4) rigid matrix."""
    return np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))


@pytest.mark.parametrize("flexion", [0.0, 45.0, 90.0])
def test_gaps_are_those_asked_for(flexion):
    pose = KneePose(flexion, medial_gap_mm=3.0, lateral_gap_mm=6.0, patella_gap_mm=4.0)
    gaps = ASSEMBLY.gaps(SMALL, ASSEMBLY.assemble(SMALL, pose))
    assert gaps["medial"] == pytest.approx(3, abs=0.1)
    assert gaps["lateral"] == pytest.approx(6, abs=0.1)
    assert gaps["patella"] == pytest.approx(4, abs=0.1)
    assert gaps["fibula"] == pytest.approx(1.5, abs=0.1)


def test_no_bone_enters_another():
    places = ASSEMBLY.assemble(SMALL, KneePose(20.0, medial_gap_mm=2.0, lateral_gap_mm=2.0, patella_gap_mm=2.5))
    placed = {bone: transform_points(places[bone], SMALL[bone]) for bone in BONES}
    for bone in ("tibia", "femur"):
        locator = SurfaceLocator(Surface(placed[bone], PRIORS[bone].faces))
        for other in set(BONES) - {bone}:
            assert locator.signed(placed[other]).min() > 1.0, (bone, other)


def test_places_are_rigid_and_the_shank_stays():
    places = ASSEMBLY.assemble(SMALL, KneePose(60.0))
    for place in places.values():
        np.testing.assert_allclose(place[:3, :3].T @ place[:3, :3], np.eye(3), atol=1e-9)
        assert np.linalg.det(place[:3, :3]) == pytest.approx(1)
    assert np.array_equal(places["tibia"], np.eye(4)) and np.linalg.norm(places["fibula"][:3, 3]) < 5


def test_flexion_takes_the_thigh_backwards_and_turns_the_femur_outwards():
    straight, flexed = (ASSEMBLY.assemble(SMALL, KneePose(angle))["femur"] for angle in (0.0, 90.0))
    assert straight[2, 2] > 0.99 and flexed[1, 2] < -0.95  # where the shaft points
    # A right femur turned outwards points its lateral side backwards, by 15 degrees at 90.
    assert np.degrees(np.arctan2(-flexed[1, 0], flexed[0, 0])) == pytest.approx(15, abs=2)
    assert turn_degrees(np.linalg.inv(straight) @ flexed) == pytest.approx(90, abs=5)


def test_the_patella_lags_behind_and_keeps_its_tendons_length():
    for flexion in (0.0, 40.0, 80.0):
        places = ASSEMBLY.assemble(SMALL, KneePose(flexion, tendon_ratio=1.1, patella_lag=0.65))
        on_femur = np.linalg.inv(places["femur"]) @ places["patella"]
        assert turn_degrees(on_femur) == pytest.approx(0.65 * flexion, abs=0.5)
        patella = transform_points(places["patella"], SMALL["patella"])
        apex = patella[np.argsort(SMALL["patella"][:, 2])[:8]].mean(0)
        tuberosity = SMALL["tibia"][ASSEMBLY._tuberosity].mean(0)
        length = np.linalg.norm((apex - tuberosity)[1:])
        assert length == pytest.approx(1.1 * np.ptp(SMALL["patella"][:, 2]), abs=0.5)
        assert patella[:, 1].mean() > transform_points(places["femur"], SMALL["femur"])[:, 1].mean()


def test_a_higher_patella_follows_from_a_longer_tendon():
    low, high = (
        ASSEMBLY.assemble(SMALL, replace(KneePose(30.0), tendon_ratio=ratio))["patella"][2, 3] for ratio in (0.8, 1.25)
    )
    assert high > low + 10


def test_gaps_that_cannot_be_met_are_told():
    with pytest.raises(ArithmeticError, match="Femur and tibia"):
        ASSEMBLY.assemble(SMALL, KneePose(medial_gap_mm=-400.0, lateral_gap_mm=900.0))
