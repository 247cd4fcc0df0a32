"""What both X-rays show: bones cut off at the frusta's sides, and as labels."""

import numpy as np
import pytest
from virtualkneexrays import ISOCENTRE, bones, views

from BiplanarReconLib.fieldofview import cut_to_views, in_both, labelmap
from BoneReconstructionLib.surfaces import Surface, is_closed, volume_mm3
from BoneReconstructionLib.xraygeometry import CArm, from_carm

OBLIQUE = from_carm(CArm(1100.0, 700.0, (1.9, 2.3), (60, 50), -160.0, 15.0, 25.0, tuple(ISOCENTRE), (7.0, -9.0), True))


@pytest.mark.parametrize("view", [views()[1], OBLIQUE])
def test_the_frustums_sides_agree_with_what_the_view_contains(view):
    points = ISOCENTRE + np.random.default_rng(1).uniform(-150, 150, (4000, 3))
    inside = np.all([(points - origin) @ inwards >= 0 for origin, inwards in view.sides()], axis=0)
    assert 200 < inside.sum() < 3800
    assert np.array_equal(inside, view.contains(points))


def test_a_shaft_is_cut_where_an_xray_ends_and_closed_there():
    femur = bones("right")["femur"][0]
    cut = cut_to_views(femur, views())
    assert is_closed(cut) and 0.2 < volume_mm3(cut) / volume_mm3(femur) < 0.9
    assert in_both(ISOCENTRE + 0.9999 * (cut.vertices - ISOCENTRE), views()).all()
    # What was inside is still there.
    kept = femur.vertices[in_both(femur.vertices, views())]
    assert np.linalg.norm(kept[:, None] - cut.vertices[None], axis=2).min(1).max() < 1e-2


def test_a_bone_inside_stays_as_it_is_and_one_outside_vanishes():
    patella = bones("right")["patella"][0]
    assert np.allclose(cut_to_views(patella, views()).vertices, patella.vertices)
    assert len(cut_to_views(Surface(patella.vertices + [0, 0, 300], patella.faces), views()).faces) == 0


def test_labels_count_from_one_and_hold_the_volumes():
    surfaces = [bones("left")["patella"][0], bones("left")["fibula"][0]]
    labels = labelmap(surfaces)
    for number, surface in enumerate(surfaces, start=1):
        volume = (labels.array == number).sum() * np.prod(labels.spacing)
        assert volume == pytest.approx(volume_mm3(surface), rel=0.02)
