"""Sizes of knees: right on bones whose sizes are known, and spread as published among random people."""

import numpy as np
import pytest

from BoneReconstructionLib.kneemeasurements import PUBLISHED, KneeLandmarks
from BoneReconstructionLib.kneepriortraining import BONES
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights
from BoneReconstructionLib.shapeprior import load_prior


@pytest.fixture(scope="module")
def priors():
    return {bone: load_prior("knee-prior", bone) for bone in BONES}


@pytest.fixture(scope="module")
def landmarks(priors):
    return KneeLandmarks({bone: prior.mean for bone, prior in priors.items()})


@pytest.fixture(scope="module")
def measured(priors, landmarks):
    """{measurement: (200,) of random knees}."""
    sampling = find_model("knee-prior").tensors()["sampling"].astype(float)
    ranks = [prior.vertex_basis.shape[1] for prior in priors.values()]
    drawn = random_weights(np.random.default_rng(2024), 200, len(priors["femur"].modes), sum(ranks), sampling)
    people = []
    for log_scale, modes, kernels in zip(*drawn, strict=True):
        own = dict(zip(BONES, np.split(kernels, np.cumsum(ranks)[:-1]), strict=True))
        size = np.exp(priors["femur"].log_scale_sd * log_scale)
        people.append(landmarks.measure({bone: size * priors[bone].shape(modes, own[bone]) for bone in BONES}))
    return {name: np.array([person[name] for person in people]) for name in PUBLISHED}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_random_knees_spread_as_published(measured, name):
    assert 0.8 < measured[name].std(ddof=1) / PUBLISHED[name].sd < 1.2


def test_random_knees_are_of_human_size(measured):
    for name, values in measured.items():
        # The head's depth is published at the cut of an implant, below its widest place.
        assert abs(values.mean() - PUBLISHED[name].mean) < 2.2 * PUBLISHED[name].sd, name


def test_wide_femora_stand_on_wide_tibiae(measured):
    assert np.corrcoef(measured["femur_width"], measured["plateau_width"])[0, 1] > 0.6


def test_measurements_grow_with_the_bone_along_their_own_axis(priors, landmarks):
    means = {bone: prior.mean for bone, prior in priors.items()}
    plain = landmarks.measure(means)
    wider = landmarks.measure({bone: mean * [1.1, 1, 1] for bone, mean in means.items()})
    for name, value in plain.items():
        assert wider[name] == pytest.approx(value * (1.1 if "width" in name else 1.0), rel=1e-6)
    assert plain["femur_width"] == pytest.approx(81, abs=3) and plain["patella_width"] == pytest.approx(39, abs=3)
