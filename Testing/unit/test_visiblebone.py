"""The visible bone as the CT shows it, where the segmentation is rough, broken or of another scan."""

from dataclasses import replace

import numpy as np
import pytest
from phantoms import frame
from scipy import ndimage
from tibiae import leg, tibia_prior

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import rotation_about, side_to_right, transform_points
from BoneReconstructionLib.shapefitting import fit, with_residual
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, crop
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.visiblebone import measured_in_ct

FINE = frame((0.9, 0.9, 1.2), (12, -9, 28), "j")
SEEN_MM = (-160.0, 10.0)  # of the right tibia's standard heights; the ankle's half, for speed
BROKEN_MM = (-70.0, -45.0)


@pytest.fixture(scope="module", params=["left", "right"])
def broken(request):
    """(leg, its blurred, noisy CT)."""
    one = leg(request.param, FINE, BROKEN_MM, SEEN_MM, margin_mm=10.0)
    image = ndimage.gaussian_filter(np.where(one.bone.array, 1300.0, 50.0), 0.6)
    image += 30 * np.random.default_rng(2).standard_normal(image.shape)
    return one, Volume(image.astype(np.float32), one.bone.ijk_to_ras)


def case_of(one, ct, tibia):
    return make_case(tibia, one.gap, lambda lower, upper: crop(ct, lower, upper))


def fitted_to(case, side, begin, displaced=False):
    prior, visible = tibia_prior(), case.visible(side)
    return with_residual(prior, fit(prior, visible, begin, displaced), visible)


def start_of(one):
    return side_to_right(one.side) @ one.ras_from_standard


def errors(measured, one):
    """(n,) distance of the measured vertices to the true bone, mm."""
    points = transform_points(side_to_right(one.side), measured.surface.vertices[measured.trusted])
    return SurfaceLocator(one.truth).signed(points)


def rough(mask):
    """A segmentation a voxel too large that leaks, on the bone's front, by half a centilitre."""
    grown = ndimage.binary_dilation(mask.array)
    middle = np.argwhere(grown)
    spot = middle[len(middle) // 3]
    k, j, i = np.ogrid[: grown.shape[0], : grown.shape[1], : grown.shape[2]]
    ball = (k - spot[0]) ** 2 + (j - spot[1]) ** 2 + (i - spot[2]) ** 2 < 8**2
    return Volume(grown | ball, mask.ijk_to_ras)


def test_a_rough_segmentation_hardly_counts(broken):
    one, ct = broken
    case = case_of(one, ct, rough(one.tibia))
    fitted = fitted_to(case, one.side, start_of(one))
    measured, known = measured_in_ct(case, one.side, fitted)
    segmented = SurfaceLocator(one.truth).signed(case.surface.vertices[case.trusted])
    found = errors(measured, one)
    assert np.median(segmented) > 0.5
    assert known > 0.9 and abs(np.median(found)) < 0.15
    assert np.abs(found).mean() < 0.35 * np.abs(segmented).mean()


def test_a_careful_segmentation_counts_too(broken):
    one, ct = broken
    case = case_of(one, ct, one.tibia)
    measured, known = measured_in_ct(case, one.side, fitted_to(case, one.side, start_of(one)))
    assert known > 0.9 and np.abs(errors(measured, one)).mean() < 0.12


def test_nothing_is_measured_where_the_mask_lies(broken):
    one, ct = broken
    case = case_of(one, ct, one.tibia)
    measured, _ = measured_in_ct(case, one.side, fitted_to(case, one.side, start_of(one)))
    height = one.heights(transform_points(side_to_right(one.side), measured.surface.vertices))
    inside = (height > BROKEN_MM[0]) & (height < BROKEN_MM[1])
    beyond = height > SEEN_MM[1] + 4
    assert inside.any() and not measured.trusted[inside].any()
    assert beyond.any() and not measured.trusted[beyond].any()


def test_a_ct_of_something_else_shows_no_bone(broken):
    one, ct = broken
    other = Volume(np.full(ct.shape, 50.0, dtype=np.float32), ct.ijk_to_ras)
    case = case_of(one, other, one.tibia)
    _, known = measured_in_ct(case, one.side, fitted_to(case, one.side, start_of(one)))
    assert known < 0.1


def test_a_displaced_piece_is_measured_where_it_lies(broken):
    """The proximal piece turned and shifted: measured in the CT at its place, labelled as the piece it is."""
    one, _ = broken
    inverse = np.linalg.inv(one.ras_from_standard)
    moved = np.eye(4)
    moved[:3, :3] = rotation_about((0.0, 0.6, 0.8), np.radians(4))
    moved[:3, 3] = 3.0, -2.0, 1.0
    # In RAS, about the gap's middle.
    pivot = np.eye(4)
    pivot[:3, 3] = transform_points(one.ras_from_standard, [[0, 0, np.mean(BROKEN_MM)]])[0]
    motion = pivot @ moved @ np.linalg.inv(pivot)
    shape, matrix = one.bone.shape, one.bone.ijk_to_ras
    index = np.indices(shape)[::-1].reshape(3, -1).T
    there = transform_points(np.linalg.inv(motion), transform_points(matrix, index))
    back = transform_points(np.linalg.inv(matrix), there)[:, ::-1].T
    own = (there @ inverse[2, :3] + inverse[2, 3] > BROKEN_MM[1] - 8).reshape(shape)
    proximal = (ndimage.map_coordinates(one.bone.array.astype(np.float32), back, order=1) > 0.5).reshape(shape) & own
    here = transform_points(matrix, index) @ inverse[2, :3] + inverse[2, 3]
    distal = one.bone.array & (here < BROKEN_MM[0] + 8).reshape(shape)
    bone = proximal | distal
    image = ndimage.gaussian_filter(np.where(bone, 1300.0, 50.0), 0.6).astype(np.float32)
    case = case_of(one, Volume(image, matrix), Volume(bone, matrix))
    assert case.visible(one.side).pieces == 2
    fitted = fitted_to(case, one.side, start_of(one), displaced=True)
    measured, known = measured_in_ct(case, one.side, fitted)
    assert measured.pieces == 2 and known > 0.9
    surface = Surface(measured.surface.vertices, measured.surface.faces)
    in_ras = transformed(surface, side_to_right(one.side)).vertices
    lies = one.heights(transform_points(np.linalg.inv(motion), in_ras)) > np.mean(BROKEN_MM)
    truth = {True: transformed(one.truth, motion), False: one.truth}
    apart = np.where(lies, *(SurfaceLocator(truth[side]).signed(in_ras) for side in (True, False)))
    assert np.abs(apart[measured.trusted]).mean() < 0.2
    pieces = measured.piece[measured.trusted]
    assert len(np.unique(pieces[lies[measured.trusted]])) == len(np.unique(pieces[~lies[measured.trusted]])) == 1
    assert replace(measured, piece=None).pieces == 1
