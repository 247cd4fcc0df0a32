"""The shaft's cross-sections across a gap: on bones whose shape there is known."""

from dataclasses import replace

import numpy as np
import pytest
from tibiae import pose, random_tibiae, tibia_prior

from BoneReconstructionLib.distances import closest_points
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.shapefitting import unfitted, without_band
from BoneReconstructionLib.surfaces import Surface
from TibiaCompletionLib.crosssections import continued

SQUEEZE_MM = 1.5


@pytest.fixture(scope="module")
def bone():
    """(prior, true surface in a scanner's frame, matrix, height (n,) of its vertices in mm)."""
    prior, matrix = tibia_prior(), pose((20, -10, 35), (30.0, -80.0, 900.0), 1.05)
    vertices = random_tibiae(5, 1)[0]
    return prior, Surface(transform_points(matrix, vertices), prior.faces), matrix, vertices[:, 2]


def squeezed(bone, low, high):
    """A fit that is true where bone is seen, and up to `SQUEEZE_MM` too thin between two heights; what is seen."""
    prior, truth, matrix, height = bone
    bump = np.clip(1 - ((2 * height - low - high) / (high - low)) ** 2, 0, 1) * (height > low) * (height < high)
    local = transform_points(np.linalg.inv(matrix), truth.vertices)
    centre = np.median(local[np.abs(height - (low + high) / 2) < (high - low) / 2], axis=0)
    outwards = (local - centre) * [1, 1, 0]
    local = local - SQUEEZE_MM * bump[:, None] * outwards / np.linalg.norm(outwards, axis=1, keepdims=True)
    fitted = unfitted(prior, matrix, np.eye(4)[None])
    return (
        replace(fitted, surface=Surface(transform_points(matrix, local), prior.faces)),
        without_band(truth, height, low, high),
    )


def error(surface, bone, low, high):
    _, truth, _, height = bone
    inside = (height > low + 2) & (height < high - 2)
    return closest_points(truth.vertices[inside], surface)[1].mean()


def test_a_short_gap_is_mostly_filled_and_a_long_one_left_to_the_prior(bone):
    for length, least, most in ((20, 0.7, 1.0), (60, 0.3, 0.7), (110, -0.05, 0.15)):
        fitted, visible = squeezed(bone, -length / 2, length / 2)
        before = error(fitted.surface, bone, -length / 2, length / 2)
        after = error(continued(fitted, visible).surface, bone, -length / 2, length / 2)
        assert least < 1 - after / before < most


def test_what_is_seen_and_the_bones_ends_stay(bone):
    _, _, _, height = bone
    fitted, visible = squeezed(bone, -15, 15)
    moved = np.linalg.norm(continued(fitted, visible).surface.vertices - fitted.surface.vertices, axis=1)
    assert moved[np.abs(height) < 13].mean() > 0.5
    assert moved[np.abs(height) > 20].max() < 1e-9


def test_where_the_bone_ends_in_the_gap_nothing_is_continued(bone):
    _, _, _, height = bone
    for low, high in ((height.max() - 90, np.inf), (-np.inf, height.min() + 90)):
        fitted, _ = squeezed(bone, -15, 15)
        visible = without_band(bone[1], height, low, high)
        moved = np.linalg.norm(continued(fitted, visible).surface.vertices - fitted.surface.vertices, axis=1)
        hidden = (height > low) & (height < high)
        assert moved[hidden].max() < 1e-9
