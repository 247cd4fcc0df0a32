"""The knee's gaps in a completion are the published ones, as a fit measures them."""

import numpy as np
import pytest
from scipy.spatial import cKDTree
from tibiae import landmarks, tibia_prior

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose
from BoneReconstructionLib.shapefitting import JointContact, _contact_rows
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.virtualknees import BONES, MODEL
from TibiaCompletionLib.shapecompletion import LATERAL_GAP_MM, MEDIAL_GAP_MM

# Smallest distances between femur and tibia in CTs without load, see `shapecompletion`.
PUBLISHED_MM = {"medial": 1.8, "lateral": 2.9}
ALONG = np.array([0.0, 0.0, 1.0])


def in_the_knee(chosen, knee):
    """Vertices of the knee prior's tibia, which is cut off below, that lie where some of the tibia prior's do."""
    mean = tibia_prior().mean
    heads = [bone[bone[:, 2] > bone[:, 2].max() - 40] for bone in (mean, knee)]
    shift = heads[1].max(0) + heads[1].min(0) - heads[0].max(0) - heads[0].min(0)
    return np.unique(cKDTree(knee).query(mean[chosen] + shift / 2)[1])


def test_knees_with_the_published_gaps_have_those_of_the_completion():
    priors = {bone: load_prior(MODEL, bone) for bone in BONES}
    assembly, generator, tibia = KneeAssembly(priors), np.random.default_rng(0), priors["tibia"]
    plateaus = [in_the_knee(getattr(landmarks(), f"{name}_plateau"), tibia.mean) for name in PUBLISHED_MM]
    found = []
    for _ in range(4):
        weights = generator.normal(size=len(tibia.modes))
        bones = {bone: prior.mean + np.tensordot(weights, prior.modes, 1) for bone, prior in priors.items()}
        for flexion in (0.0, 10.0, 20.0):
            pose = KneePose(flexion, medial_gap_mm=PUBLISHED_MM["medial"], lateral_gap_mm=PUBLISHED_MM["lateral"])
            femur = transform_points(assembly.assemble(bones, pose)["femur"], bones["femur"])
            surface = Surface(bones["tibia"], tibia.faces)
            contacts = [JointContact(plateau, femur, 1, 0.0, 1.0) for plateau in plateaus]
            rows = [_contact_rows(contact, surface, ALONG, 0.0) for contact in contacts]
            found.append([one.residual.mean() for one in rows])
    assert np.mean(found, 0) == pytest.approx([MEDIAL_GAP_MM[0], LATERAL_GAP_MM[0]], abs=0.3)
