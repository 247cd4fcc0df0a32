"""Fitting the prior: poses found from any direction, whole bones of any size, and what is carried on into a gap."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tibiae import pose, random_tibiae, tibia_prior, unseen_tibia

from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.shapefitting import (
    FIT_POINTS,
    INDEPENDENT_SHARE,
    OUTLIER_SD,
    RESIDUAL_SUPPORTS_MM,
    ShapeFit,
    VisibleSurface,
    fit,
    search,
    start,
    starting_poses,
    with_residual,
    without_band,
)
from BoneReconstructionLib.surfaces import Surface, is_closed, transformed, vertex_normals, volume_mm3

GAP_MM = 30.0


@pytest.fixture(scope="module")
def prior():
    return tibia_prior()


def whole(surface):
    return VisibleSurface.whole(surface)


def of_length(surface, length_mm):
    return Surface(surface.vertices * (length_mm / np.ptp(surface.vertices[:, 2])), surface.faces)


def random_pose(seed):
    """Any rotation in space and a place half a metre away."""
    generator = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = generator.uniform(-500, 500, 3)
    return matrix


def turn_between(found, truth):
    """Degrees from one similarity's rotation to another's."""
    rotations = [matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3])) for matrix in (found, truth)]
    return np.degrees(Rotation.from_matrix(rotations[0].T @ rotations[1]).magnitude())


def fitted_to(prior, visible):
    return with_residual(prior, fit(prior, visible, start(prior, visible)), visible)


# ---- what is visible ----


def test_moved_pieces_are_asked_as_their_moved_surface_would_be():
    bone = of_length(unseen_tibia(), 350.0)
    piece = np.array([0, 1, 3])[np.digitize(bone.vertices[:, 2], [-60.0, 40.0])]  # no vertex is of piece 2 or 4
    shown = VisibleSurface(bone, np.ones(len(piece), dtype=bool), piece)
    first, last = pose((10, -15, 20), (15, -9, 40)), pose((-5, 8, 70), (-12, 30, -20))
    motions = np.array([np.eye(4), first, np.eye(4), last, first])
    moved = shown.reduced(motions)
    points = moved.surface.vertices[::37] + np.random.default_rng(2).normal(0, 15.0, (len(piece[::37]), 3))
    nearest = shown.nearest(points, motions)
    found = np.linalg.norm(moved.surface.vertices[nearest] - points, axis=1)
    np.testing.assert_allclose(found, moved.tree.query(points)[0], atol=1e-9)
    places, normals = shown.placed(motions, nearest)
    np.testing.assert_allclose(places, moved.surface.vertices[nearest], atol=1e-9)
    alone = (piece[bone.faces] == piece[bone.faces[:, :1]]).all(1)  # across a rim the moved surface is torn
    inner = ~np.isin(nearest, bone.faces[~alone])
    assert inner.mean() > 0.8
    np.testing.assert_allclose(normals[inner], moved.normals[nearest[inner]], atol=1e-9)


def test_a_band_is_hidden_and_its_rims_are_not_trusted():
    surface = unseen_tibia()
    height = surface.vertices[:, 2]
    visible = without_band(surface, height, -20.0, 40.0, margin_mm=3.0)
    left = visible.surface.vertices[:, 2]
    assert ((left < -20) | (left > 40)).all()
    assert len(left) == ((height < -20) | (height > 40)).sum()
    np.testing.assert_array_equal(visible.trusted, (left < -23) | (left > 43))
    edges = np.ptp(left[visible.surface.faces], axis=1)
    assert edges.max() < 10 and len(visible.surface.faces) > 0.7 * len(surface.faces)


# ---- the starting pose ----


@pytest.mark.parametrize("scale", [0.82, 1.0, 1.2])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_whole_bone_is_found_from_any_direction_and_at_any_size(prior, scale, seed):
    truth = random_pose(seed)
    surface = of_length(Surface(random_tibiae(seed, 1)[0], prior.faces), scale * np.ptp(prior.mean[:, 2]))
    moved = transformed(surface, truth)
    found, distance = search(prior, whole(moved))
    matrix = found.matrix
    assert turn_between(matrix, truth) < 10
    assert np.cbrt(np.linalg.det(matrix[:3, :3])) == pytest.approx(scale, rel=0.05)
    assert np.linalg.norm(transform_points(matrix, prior.mean) - moved.vertices, axis=1).mean() < 10
    assert distance < 1.5


@pytest.mark.parametrize("seed", [4, 5, 6, 7])
@pytest.mark.parametrize("length", [303, 443])
@pytest.mark.parametrize("end", ["proximal", "distal"])
def test_150_mm_of_either_end_are_found_from_any_direction(prior, end, length, seed):
    truth = random_pose(seed)
    surface = of_length(Surface(random_tibiae(seed, 1)[0], prior.faces), length)
    height = surface.vertices[:, 2]
    shown = height > height.max() - 150 if end == "proximal" else height < height.min() + 150
    band = (-np.inf, height.max() - 150) if end == "proximal" else (height.min() + 150, np.inf)
    moved = transformed(surface, truth)
    matrix = start(prior, without_band(moved, height, *band))
    assert turn_between(matrix, truth) < 12
    assert np.linalg.norm(transform_points(matrix, prior.mean) - moved.vertices, axis=1)[shown].mean() < 20


def test_a_mirrored_bone_is_found_less_well_and_never_by_mirroring(prior):
    surface = transformed(unseen_tibia(), random_pose(8))
    right, distance = search(prior, whole(surface))
    wrong, wrong_distance = search(prior, whole(transformed(surface, MIRROR)))
    assert np.linalg.det(right.matrix[:3, :3]) > 0 and np.linalg.det(wrong.matrix[:3, :3]) > 0
    assert wrong_distance > 1.5 * distance


def test_poses_to_try_are_similarities_that_put_the_bone_where_it_is_seen(prior):
    points = transform_points(random_pose(9), unseen_tibia().vertices)
    poses = starting_poses(prior, points)
    assert len(poses) >= 16
    for matrix, (lowest, highest) in poses:
        scale = np.cbrt(np.linalg.det(matrix[:3, :3]))
        np.testing.assert_allclose(matrix[:3, :3].T @ matrix[:3, :3], scale**2 * np.eye(3), atol=1e-9)
        assert lowest <= scale <= highest
    ends = [transform_points(matrix, [[0, 0, prior.mean[:, 2].max()]])[0] for matrix, _ in poses]
    far = [np.linalg.norm(end - points, axis=1).min() for end in ends]
    assert max(far) < 60


# ---- the fit ----


@pytest.fixture(scope="module")
def seen_whole(prior):
    """An unseen tibia in a random pose, and the fit to all of it before the residual."""
    visible = whole(transformed(unseen_tibia(), random_pose(10)))
    fractions = []
    fitted = fit(prior, visible, start(prior, visible), report=fractions.append)
    return visible, fitted, fractions


def test_a_whole_unseen_tibia_is_fitted_within_a_fifth_of_a_millimetre(prior, seen_whole):
    visible, fitted, _ = seen_whole
    final = with_residual(prior, fitted, visible)
    assert surface_distances(final.surface, visible.surface).assd <= 0.2
    assert is_closed(final.surface) and volume_mm3(final.surface) > 0
    np.testing.assert_array_equal(final.surface.faces, prior.faces)


def test_the_residual_takes_away_what_the_prior_cannot_say(prior, seen_whole):
    visible, fitted, _ = seen_whole
    before = surface_distances(fitted.surface, visible.surface).assd
    after = surface_distances(with_residual(prior, fitted, visible).surface, visible.surface).assd
    assert after < 0.5 * before


def test_the_fit_explains_its_surface(prior, seen_whole):
    _, fitted, fractions = seen_whole
    shape = prior.shape(fitted.mode_weights, fitted.kernel_weights)
    np.testing.assert_allclose(fitted.surface.vertices, transform_points(fitted.matrix, shape), atol=1e-9)
    scale = np.cbrt(np.linalg.det(fitted.matrix[:3, :3]))
    np.testing.assert_allclose(fitted.matrix[:3, :3].T @ fitted.matrix[:3, :3], scale**2 * np.eye(3), atol=1e-9)
    assert turn_between(fitted.matrix, random_pose(10)) < 5
    assert 0 < fitted.rms_mm < 0.5
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_corresponding_places_are_found_not_just_the_surface(seen_whole):
    visible, fitted, _ = seen_whole
    off = np.linalg.norm(fitted.surface.vertices - visible.surface.vertices, axis=1)
    assert off.mean() < 3


@pytest.mark.parametrize("length_mm", [300.0, 420.0])
def test_copies_of_any_length_are_fitted(prior, length_mm):
    surface = transformed(of_length(unseen_tibia(), length_mm), random_pose(11))
    assert surface_distances(fitted_to(prior, whole(surface)).surface, surface).assd <= 0.35


@pytest.fixture(scope="module")
def gap(prior):
    """An unseen tibia, what is visible of it beside a gap of 60 mm, and the fit with and without the residual."""
    surface = unseen_tibia(12)
    visible = without_band(surface, surface.vertices[:, 2], -GAP_MM, GAP_MM)
    fitted = fit(prior, visible, start(prior, visible))
    return surface, visible, fitted, with_residual(prior, fitted, visible)


def test_a_gap_in_the_shaft_is_filled(gap):
    surface, _, _, final = gap
    distances = surface_distances(final.surface, surface)
    inside = np.abs(surface.vertices[:, 2]) < GAP_MM
    assert np.abs(distances.b_to_a[inside]).mean() <= 0.6
    assert np.abs(distances.b_to_a[~inside]).mean() <= 0.2


def test_the_continued_surface_has_no_step_at_the_gap_s_ends(gap):
    """Displacements by the residual change slowly from one vertex to the next, across the gap's ends too."""
    _, _, fitted, final = gap
    moved = ((final.surface.vertices - fitted.surface.vertices) * vertex_normals(fitted.surface)).sum(1)
    edges = fitted.surface.faces[:, [0, 1]]
    height = fitted.surface.vertices[edges].mean(1)[:, 2]
    at_ends = np.abs(np.abs(height) - GAP_MM) < 5
    assert np.abs(moved[edges[at_ends, 0]] - moved[edges[at_ends, 1]]).max() < 0.3


def test_nothing_is_carried_further_than_the_support(prior):
    """A bone that is the mean but for its distal end: the residual leaves everything else alone."""
    mean = Surface(prior.mean, prior.faces)
    bulge = np.where(prior.mean[:, 2] < -150, 1.0, 0.0)
    data = Surface(prior.mean + bulge[:, None] * vertex_normals(mean), prior.faces)
    visible = VisibleSurface(data, prior.mean[:, 2] < -150)
    none = ShapeFit(np.eye(4), np.zeros(len(prior.modes)), np.zeros((prior.vertex_basis.shape[1], 3)), np.eye(4)[None], mean)
    moved = np.linalg.norm(with_residual(prior, none, visible).surface.vertices - prior.mean, axis=1)
    assert np.median(moved[prior.mean[:, 2] < -155]) == pytest.approx(1.0, abs=0.15)
    assert moved[prior.mean[:, 2] > -150 + RESIDUAL_SUPPORTS_MM[0][2] + RESIDUAL_SUPPORTS_MM[1][2] + 3].max() < 1e-9


def test_untrusted_bone_does_not_pull(prior):
    """Fragments under the mask, so little displaced that no outlier is suspected, leave the fit where it is."""
    rigid = replace(prior, modes=prior.modes[:0], kernels=())
    mean = Surface(prior.mean, prior.faces)
    broken = np.abs(prior.mean[:, 2]) < GAP_MM
    displaced = Surface(prior.mean + np.where(broken, 0.8, 0.0)[:, None] * [1.0, 0.5, 0.0], prior.faces)
    fitted = fit(rigid, VisibleSurface(displaced, ~broken), pose((1, -1, 3), (2, -2, 3), 1.01))
    np.testing.assert_allclose(fitted.surface.vertices, mean.vertices, atol=0.01)


def test_a_piece_that_the_fit_loses_costs_most_though_it_does_not_pull(prior):
    bone = unseen_tibia()
    heights = bone.vertices[:, 2]
    piece = (heights > heights.max() - 25) & (bone.vertices[:, 0] > np.median(bone.vertices[:, 0]) + 10)
    apart = Surface(bone.vertices + np.where(piece, 80.0, 0.0)[:, None] * [1.0, 0.0, 0.0], bone.faces)
    begin = start(prior, whole(bone))
    in_place, lost = (fit(prior, whole(surface), begin) for surface in (bone, apart))
    assert 0.01 < piece.mean() < 0.15
    most = INDEPENDENT_SHARE * OUTLIER_SD**2 * piece.mean() * FIT_POINTS
    assert lost.cost - in_place.cost == pytest.approx(most, rel=0.25)
