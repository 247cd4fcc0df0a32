"""`bonerecon train knee-prior`: each step on shapes whose answer is known."""

import numpy as np
import pytest
from phantoms import sphere_surface
from tibiae import pose

from BoneReconstructionLib import cli
from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.kneepriortraining import (
    BONES,
    REACH_MM,
    KneePeople,
    aligned,
    condyle_centres,
    cut,
    priors_of,
    sphere_through,
    start_upright,
)
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.shapefitting import VisibleSurface, fit
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, is_closed, transformed, volume_mm3

PRIORS = {bone: load_prior("knee-prior", bone) for bone in BONES}


def test_spheres_and_circles_are_found():
    points = sphere_surface(21.0, (5, -8, 100)).vertices
    centre, radius = sphere_through(points[points[:, 2] > 105])
    np.testing.assert_allclose(centre, [5, -8, 100], atol=0.05)
    assert radius == pytest.approx(21, abs=0.05)
    centre, radius = sphere_through(np.array([[3.0, 0], [0, 3], [-3, 0]]) + [7, 1])
    np.testing.assert_allclose([*centre, radius], [7, 1, 3], atol=1e-9)


def test_a_cut_shaft_is_closed_by_a_fan_about_its_last_vertex():
    ball = sphere_surface(20.0, (0, 0, 0), subdivisions=4)
    shapes, faces = cut(np.array([ball.vertices, 2 * ball.vertices]), ball.faces, ball.vertices[:, 2] < 9)
    for shape, size in zip(shapes, (1, 2), strict=True):
        surface = Surface(shape, faces)
        assert is_closed(surface)
        # A ball of 20 mm without the cap above 9 mm, and with it the triangles that the plane cuts.
        whole, cap = 4 / 3 * np.pi * 20**3, np.pi * 11**2 * (60 - 11) / 3
        assert volume_mm3(surface) == pytest.approx(size**3 * (whole - cap), rel=0.05)
        assert np.abs(shape[-1, :2]).max() < 0.5 * size


def test_people_are_aligned_rigidly_onto_their_mean():
    mean = PRIORS["patella"].mean[::8]
    shapes = np.array([transform_points(pose((4, -6, 9), (1, 2, 3)), mean), mean, 1.05 * mean])
    moved = np.array([transform_points(m, s) for m, s in zip(aligned(shapes), shapes, strict=True)])
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-3)
    assert np.ptp(moved[2][:, 0]) / np.ptp(moved[1][:, 0]) == pytest.approx(1.05, abs=0.01)


def test_the_femurs_frame_stands_on_the_flexion_axis():
    centres = condyle_centres(PRIORS["femur"].mean)
    assert np.abs(centres.mean(0)).max() < 4 and np.abs(centres[:, 1:]).max() < 4
    assert 40 < centres[1, 0] - centres[0, 0] < 60


def test_the_bundled_bones_are_closed_right_and_of_the_knee():
    for bone, prior in PRIORS.items():
        surface = Surface(prior.mean, prior.faces)
        assert is_closed(surface) and volume_mm3(surface) > 0, bone
        assert len(prior.modes) == 25
    assert PRIORS["femur"].mean[:, 2].max() <= REACH_MM + 1 and PRIORS["tibia"].mean[:, 2].min() >= -REACH_MM - 1
    assert PRIORS["fibula"].mean[:, 0].mean() > 20  # lateral of a right tibia
    weights = find_model("knee-prior").weights
    assert weights.stat().st_size < 4e6


def test_modes_belong_together_across_the_bones():
    generator = np.random.default_rng(5)
    sizes = generator.normal(size=(12, 1, 1))
    shapes = {bone: PRIORS[bone].mean[::20] * (1 + 0.02 * sizes) for bone in BONES}
    priors = priors_of(KneePeople(shapes, dict.fromkeys(BONES, np.zeros((0, 3), int)), np.ones(12)))
    for bone, prior in priors.items():
        direction = prior.modes[0] * np.sign((prior.modes[0] * prior.mean).sum())
        np.testing.assert_allclose(direction / prior.mean, direction[0, 0] / prior.mean[0, 0], rtol=1e-3, err_msg=bone)
        assert np.abs(prior.modes[1:]).max() < 1e-6


@pytest.mark.parametrize("turn", [0, 180])
def test_a_patella_is_found_whether_its_scan_is_ras_or_lps(turn):
    prior = PRIORS["patella"]
    weights = np.zeros(len(prior.modes))
    weights[:3] = [1.0, -1.0, 0.5]
    shape = prior.shape(weights, np.zeros((prior.vertex_basis.shape[1], 3)))
    bone = transformed(Surface(shape, prior.faces), pose((6, -5, 8 + turn), (40, -200, 70), 1.05))
    visible = VisibleSurface.whole(bone)
    fitted = fit(prior, visible, start_upright(prior, visible), points=1000)
    assert surface_distances(fitted.surface, bone).assd < 0.2


def test_a_folder_without_the_knees_bones_is_refused(tmp_path, capsys):
    assert cli.main(["train", "knee-prior", "--bones", str(tmp_path), "--output", str(tmp_path / "model")]) == 2
    assert "llp26_left_leg.npz" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
