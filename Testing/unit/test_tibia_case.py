"""One fractured tibia: what is believed of it, and everything that is refused before any work."""

import numpy as np
import pytest
from tibiae import COARSE, heights, leg

from BoneReconstructionLib.distances import closest_points
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.surfaces import is_closed, volume_mm3
from BoneReconstructionLib.volumes import Volume, crop
from TibiaCompletionLib.case import beyond_cuts, check_visible_length, make_case

VOXEL_MM = np.linalg.norm(COARSE[:3, :3], axis=0)


@pytest.fixture(scope="module")
def broken():
    return leg("left", gap_mm=(-30.0, 30.0))


@pytest.fixture(scope="module")
def case(broken):
    return make_case(broken.tibia, broken.gap, lambda lower, upper: crop(broken.ct, lower, upper))


def no_ct(lower, upper):
    raise AssertionError("The CT was read although nobody looks at it.")


def refusal(tibia, fracture):
    with pytest.raises(InputError) as error:
        make_case(tibia, fracture, no_ct)
    sentence = str(error.value)
    assert sentence.endswith(".") and sentence.count(". ") == 0, sentence
    return sentence


def like(volume, array):
    return Volume(array, volume.ijk_to_ras)


def band(one_leg, low, high):
    """Bool volume between two standard heights on a leg's grid."""
    height = heights(one_leg.bone.shape, np.linalg.inv(one_leg.ras_from_standard) @ one_leg.bone.ijk_to_ras)
    return like(one_leg.bone, (height >= low) & (height <= high))


# ---- what is believed ----


def test_bone_is_trusted_up_to_the_mask_and_not_in_it(broken, case):
    beyond = np.abs(broken.heights(case.surface.vertices)) - 30
    assert not case.trusted[beyond < VOXEL_MM.min()].any()
    assert case.trusted[beyond > 3 * VOXEL_MM.max()].all()


def test_the_surface_is_that_of_the_segment(broken, case):
    assert is_closed(case.surface)
    voxel = abs(np.linalg.det(broken.bone.ijk_to_ras[:3, :3]))
    assert volume_mm3(case.surface) == pytest.approx(broken.tibia.array.sum() * voxel, rel=0.01)
    distance = closest_points(case.surface.vertices[case.trusted], broken.truth)[1]
    assert distance.mean() < 0.4 and distance.max() < 2.5


def test_the_masks_are_cropped_to_the_bone_with_a_margin(broken, case):
    assert case.tibia.shape == case.fracture.shape < broken.bone.shape
    np.testing.assert_array_equal(case.tibia.ijk_to_ras, case.fracture.ijk_to_ras)
    assert case.tibia.array.sum() == broken.tibia.array.sum()
    centres = [
        (volume.ijk_to_ras @ [*np.argwhere(volume.array).mean(0)[::-1], 1])[:3] for volume in (case.tibia, broken.tibia)
    ]
    np.testing.assert_allclose(*centres)


def test_the_ct_is_read_when_asked_for_and_lies_on_the_masks(case):
    ct = case.read_ct()
    assert ct.shape == case.tibia.shape
    np.testing.assert_allclose(ct.ijk_to_ras, case.tibia.ijk_to_ras)
    np.testing.assert_array_equal(ct.array == 1200, case.tibia.array)


def test_a_left_bone_is_shown_as_a_right_one_with_its_faces_outward(case):
    left, right = case.visible("left"), case.visible("right")
    np.testing.assert_allclose(left.surface.vertices, transform_points(MIRROR, case.surface.vertices))
    np.testing.assert_array_equal(right.surface.vertices, case.surface.vertices)
    assert volume_mm3(left.surface) == pytest.approx(volume_mm3(right.surface)) and volume_mm3(left.surface) > 0
    np.testing.assert_array_equal(left.trusted, case.trusted)


@pytest.mark.parametrize("axis, end", [(axis, end) for axis in range(3) for end in (0, 1)])
def test_bone_cut_by_any_side_of_the_scan_is_not_trusted_there(broken, axis, end):
    """The cut makes a flat end, which is no bone's surface."""
    lower, upper = [0, 0, 0], list(broken.bone.shape)
    occupied = np.flatnonzero(broken.tibia.array.any(axis=tuple(other for other in range(3) if other != axis)))
    if end == 0:
        lower[axis] = occupied[0] + max(3, len(occupied) // 8)
    else:
        upper[axis] = occupied[-1] - max(3, len(occupied) // 8)
    tibia, gap = crop(broken.tibia, lower, upper), crop(broken.gap, lower, upper)
    cut = make_case(like(tibia, np.ascontiguousarray(tibia.array)), gap, no_ct)
    place = transform_points(tibia.ras_to_ijk, cut.surface.vertices)[:, 2 - axis]
    depth = place if end == 0 else tibia.shape[axis] - 1 - place
    assert (depth < 0.6).any() and not cut.trusted[depth < 0.6].any()
    assert cut.trusted[(depth > 5) & (np.abs(broken.heights(cut.surface.vertices)) > 30 + 3 * VOXEL_MM.max())].all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_what_lies_beyond_a_cut_of_the_masks_own_volume_is_known(broken, axis, end):
    shape, place = broken.bone.shape, [int(np.median(index)) for index in np.nonzero(broken.bone.array)]
    lower, upper = np.zeros(3, dtype=int), np.array(shape)
    (lower if end == "lower" else upper)[axis] = place[axis]
    expected = np.ones(shape, dtype=bool)
    expected[tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))] = False
    cut = crop(broken.bone, lower, upper)
    np.testing.assert_array_equal(beyond_cuts(cut, shape, broken.bone.ijk_to_ras), expected)
    turned = Volume(cut.array[::-1, :, ::-1], cut.ijk_to_ras @ flipped(cut.shape))
    np.testing.assert_array_equal(beyond_cuts(turned, shape, broken.bone.ijk_to_ras), expected)


def flipped(shape):
    """(4, 4) matrix from the indices of an array turned round along i and k to those that it had."""
    matrix = np.diag([-1.0, 1.0, -1.0, 1.0])
    matrix[[0, 2], 3] = shape[2] - 1, shape[0] - 1
    return matrix


def test_a_mask_that_holds_the_whole_bone_has_no_cuts(broken):
    shape, matrix = broken.bone.shape, broken.bone.ijk_to_ras
    assert not beyond_cuts(broken.bone, shape, matrix).any()
    lower, upper = (np.array(index) for index in zip(*((i.min(), i.max() + 1) for i in np.nonzero(broken.bone.array))))
    assert not beyond_cuts(crop(broken.bone, lower, upper), shape, matrix).any()


def test_specks_of_the_segmentation_are_dropped_and_fragments_kept(broken):
    array = broken.tibia.array.copy()
    speck, fragment = (5, 5, 5), (slice(60, 70), slice(1, 11), slice(1, 11))
    array[speck] = array[fragment] = True
    case = make_case(like(broken.tibia, array), broken.gap, no_ct)
    size = case.tibia.array.sum()
    assert broken.tibia.array.sum() < size <= broken.tibia.array.sum() + 1000
    assert size == array.sum() - 1


def test_a_mask_over_a_gap_without_label_is_accepted(case):
    assert not (case.tibia.array & case.fracture.array).any()


def test_bone_under_the_mask_may_be_segmented(broken):
    case = make_case(broken.bone, broken.gap, no_ct)
    assert (case.tibia.array & case.fracture.array).any()
    inside = np.abs(broken.heights(case.surface.vertices)) < 30
    assert inside.any() and not case.trusted[inside].any()


def test_a_whole_bone_needs_no_mask(broken):
    whole = make_case(broken.bone, like(broken.gap, np.zeros_like(broken.gap.array)), no_ct, whole=True)
    assert whole.trusted.all() and not whole.piece.any() and not whole.fracture.array.any()
    voxel_ml = abs(np.linalg.det(broken.bone.ijk_to_ras[:3, :3])) / 1000
    assert whole.piece_volumes_ml == (pytest.approx(broken.bone.array.sum() * voxel_ml),)


def test_a_mask_over_a_bone_that_may_be_whole_counts(broken, case):
    masked = make_case(broken.tibia, broken.gap, no_ct, whole=True)
    np.testing.assert_array_equal(masked.trusted, case.trusted)


def test_the_ct_is_read_once_and_only_its_part_is_kept(broken):
    boxes = []

    def read_ct(lower, upper):
        boxes.append((lower, upper))
        return crop(broken.ct, lower, upper)

    case = make_case(broken.tibia, broken.gap, read_ct)
    assert case.read_ct() is case.read_ct() and len(boxes) == 1
    assert case.read_ct().array.base is None


# ---- what is refused ----


def test_an_empty_fracture_mask_is_refused(broken):
    assert "fracture mask is empty" in refusal(broken.bone, like(broken.gap, np.zeros_like(broken.gap.array)))


def test_an_empty_tibia_is_refused(broken):
    assert "tibia segment is empty" in refusal(like(broken.bone, np.zeros_like(broken.bone.array)), broken.gap)


@pytest.mark.parametrize("dilated", [False, True])
def test_a_mask_over_the_whole_bone_is_refused(broken, dilated):
    mask = np.ones_like(broken.bone.array) if dilated else broken.bone.array
    assert "whole tibia" in refusal(broken.bone, like(broken.bone, mask))


def test_a_mask_that_leaves_only_a_thin_rind_is_refused(broken):
    from scipy.ndimage import binary_erosion

    core = binary_erosion(broken.bone.array, iterations=1)
    assert "0 mm of healthy tibia" in refusal(broken.bone, like(broken.bone, core))


@pytest.mark.parametrize("away_mm, refused", [(4.0, False), (12.0, True), (60.0, True)])
def test_a_mask_beside_the_tibia_is_refused_and_one_that_touches_it_is_not(broken, away_mm, refused):
    """The mask is a plate beside the bone, along i."""
    occupied = np.flatnonzero(broken.bone.array.any((0, 1)))
    first = occupied[-1] + int(np.ceil(away_mm / VOXEL_MM[0]))
    size = max(first + 3, broken.bone.shape[2])
    tibia, mask = (np.zeros((*broken.bone.shape[:2], size), dtype=bool) for _ in range(2))
    tibia[..., : broken.bone.shape[2]] = broken.bone.array
    mask[:, :, first : first + 3] = True
    tibia, mask = like(broken.bone, tibia), like(broken.bone, mask)
    if refused:
        assert "beside the tibia" in refusal(tibia, mask)
    else:
        make_case(tibia, mask, no_ct)


@pytest.mark.parametrize("visible_mm, refused", [(60.0, True), (74.0, True), (100.0, False)])
def test_less_than_80_mm_of_visible_tibia_is_refused(broken, visible_mm, refused):
    top = broken.heights(broken.truth.vertices).max()
    mask = band(broken, -np.inf, top - visible_mm)
    if refused:
        sentence = refusal(broken.bone, mask)
        assert "healthy tibia is visible" in sentence and "80 mm is needed" in sentence
    else:
        make_case(broken.bone, mask, no_ct)


def test_visible_ends_on_both_sides_of_the_mask_are_added_up(broken):
    height = broken.heights(broken.truth.vertices)
    mask = band(broken, height.min() + 35, height.max() - 35)
    assert "healthy tibia" in refusal(broken.bone, mask)
    make_case(broken.bone, band(broken, height.min() + 60, height.max() - 60), no_ct)


def test_bone_that_the_scan_does_not_show_is_not_visible():
    """A scan of a short piece of the shaft with a small mask."""
    short = leg("right", gap_mm=(0.0, 12.0), shown_mm=(-35.0, 40.0))
    assert "healthy tibia" in refusal(short.bone, short.gap)


# ---- the visible length ----


def tube(*bands):
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.column_stack([10 * np.cos(angles), 10 * np.sin(angles), np.zeros(24)])
    rings = [circle + [0, 0, z] for low, high in bands for z in np.arange(low, high, 0.5)]
    return np.concatenate([np.zeros((0, 3)), *rings])


@pytest.mark.parametrize(
    "bands, refused",
    [([(0, 100)], False), ([(0, 70)], True), ([(0, 50), (200, 250)], False), ([(0, 30), (200, 240)], True), ([], True)],
)
def test_the_visible_length_is_taken_along_the_bone_without_gaps(bands, refused):
    axis = COARSE[:3, 2] / VOXEL_MM[2]
    turned = transform_points(COARSE, tube(*bands) / VOXEL_MM)
    if refused:
        with pytest.raises(InputError, match="80 mm is needed"):
            check_visible_length(turned, axis)
    else:
        check_visible_length(turned, axis)


def test_a_wide_short_end_is_not_taken_for_a_long_one():
    """A disc of 120 mm diameter and 40 mm height: what counts is its height."""
    disc = tube((0, 40)) * [6.0, 6.0, 1.0]
    with pytest.raises(InputError, match="40 mm"):
        check_visible_length(disc, np.array([0.0, 0.0, 1.0]))
