"""Overlap of masks against counts done by hand."""

import numpy as np
import pytest
from phantoms import frame

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.overlap import dice, jaccard, volume_ml
from BoneReconstructionLib.volumes import Volume

A = np.array([1, 1, 1, 0, 0, 0], bool).reshape(1, 2, 3)
B = np.array([0, 1, 1, 1, 1, 0], bool).reshape(1, 2, 3)
NONE = np.zeros((1, 2, 3), bool)


def test_dice_is_twice_the_common_part_over_the_sum():
    assert dice(A, B) == pytest.approx(2 * 2 / (3 + 4))


def test_jaccard_is_the_common_part_over_the_union():
    assert jaccard(A, B) == pytest.approx(2 / 5)


def test_equal_masks_overlap_fully_and_an_empty_one_not_at_all():
    assert dice(A, A) == jaccard(A, A) == 1
    assert dice(A, NONE) == jaccard(NONE, A) == 0


@pytest.mark.parametrize("measure", [dice, jaccard])
@pytest.mark.parametrize("a, b", [(NONE, NONE), (A, A.reshape(1, 3, 2)), (A, B.astype(np.uint8))])
def test_undefined_overlaps_are_refused(measure, a, b):
    with pytest.raises(InputError):
        measure(a, b)


def test_volume_counts_voxels_of_oblique_and_flipped_grids():
    mask = np.zeros((10, 20, 30), bool)
    mask[2:7, 3:13, 4:24] = True
    assert volume_ml(Volume(mask, frame((0.6, 0.7, 1.0), flipped_axes="j"))) == pytest.approx(0.42)
