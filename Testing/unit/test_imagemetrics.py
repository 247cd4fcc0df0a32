"""Image figures on images whose figures are known."""

import numpy as np
import pytest

from BoneReconstructionLib import imagemetrics
from BoneReconstructionLib.errors import InputError

IMAGE = np.random.default_rng(1).random((17, 19, 16))


def test_the_window_maps_its_ends_to_0_and_1_and_cuts_off_what_is_outside():
    low, high = imagemetrics.HU_WINDOW
    hu = np.array([low - 500, low, (low + high) / 2, high, high + 500])
    assert imagemetrics.windowed(hu) == pytest.approx([0, 0, 0.5, 1, 1])


def test_a_constant_offset_gives_known_errors():
    other = IMAGE + 0.1
    assert imagemetrics.mse(IMAGE, other) == pytest.approx(0.01)
    assert imagemetrics.rmse(IMAGE, other) == pytest.approx(0.1)
    assert imagemetrics.mae(IMAGE, other) == pytest.approx(0.1)
    assert imagemetrics.psnr(IMAGE, other) == pytest.approx(20)
    assert imagemetrics.psnr(IMAGE, other, data_range=10) == pytest.approx(40)


def test_squared_and_absolute_errors_differ_where_errors_do():
    other = IMAGE.copy()
    other[0] += 0.34
    assert imagemetrics.mae(IMAGE, other) == pytest.approx(0.34 / 17)
    assert imagemetrics.mse(IMAGE, other) == pytest.approx(0.34**2 / 17)


@pytest.mark.parametrize("window", imagemetrics.SSIM_WINDOWS)
def test_equal_images_are_wholly_similar(window):
    assert imagemetrics.ssim(IMAGE, IMAGE, window) == pytest.approx(1)
    assert imagemetrics.d_ssim(IMAGE, IMAGE, window) == pytest.approx(0, abs=1e-12)
    assert imagemetrics.psnr(IMAGE, IMAGE) == np.inf
    assert imagemetrics.frequency_distance(IMAGE, IMAGE) == -np.inf


def test_constant_images_leave_only_the_luminance_term():
    a, b = np.full((15, 15, 15), 0.3), np.full((15, 15, 15), 0.6)
    expected = (2 * 0.3 * 0.6 + 1e-4) / (0.3**2 + 0.6**2 + 1e-4)
    assert imagemetrics.ssim(a, b) == pytest.approx(expected)
    assert imagemetrics.d_ssim(a, b) == pytest.approx((1 - expected) / 2)


def test_one_window_of_weights_computed_by_hand():
    a, b = IMAGE[:3, :3, :3], IMAGE[3:6, 3:6, 3:6]
    line = np.exp(-0.5 * (np.arange(-1, 2) / 1.5) ** 2)
    weights = np.einsum("i,j,k->ijk", line, line, line)
    weights /= weights.sum()
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)
    assert imagemetrics.ssim(a, b, window=3) == pytest.approx(expected)


def test_opposite_structure_is_dissimilar():
    assert imagemetrics.ssim(IMAGE, 1 - IMAGE, window=3) < -0.5
    assert imagemetrics.d_ssim(IMAGE, 1 - IMAGE, window=3) > 0.75


def test_the_data_range_scales_with_the_images():
    assert imagemetrics.ssim(1000 * IMAGE, 900 * IMAGE, 7, 1000) == pytest.approx(
        imagemetrics.ssim(IMAGE, 0.9 * IMAGE, 7)
    )


def test_the_frequency_distance_of_one_voxel_and_of_a_constant():
    one = np.zeros((4, 4, 4))
    one[0, 0, 0] = 0.5  # the spectrum is 0.5 everywhere
    assert imagemetrics.frequency_distance(one, np.zeros((4, 4, 4))) == pytest.approx(np.log10(0.5))
    # All in the lowest frequency: 64 * 0.5 there and nothing in the 63 others.
    assert imagemetrics.frequency_distance(np.full((4, 4, 4), 0.5), np.zeros((4, 4, 4))) == pytest.approx(
        np.log10(0.5)
    )


def test_the_frequency_distance_counts_the_imaginary_part():
    one = np.zeros(4)
    one[1] = 1.0  # the spectrum is 1, -i, -1, i
    assert imagemetrics.frequency_distance(one, np.zeros(4)) == pytest.approx(np.log10(0.5 + 0.5))


def test_all_figures_are_taken_inside_the_window():
    hu = 2000 * IMAGE - 200
    far = np.where(hu > 1700, 3000, hu)
    near = np.where(hu > 1700, 1800, hu)
    figures = imagemetrics.image_metrics(hu, far)
    assert figures == imagemetrics.image_metrics(hu, near)
    assert set(figures) == {
        *(f"d_ssim_{window}" for window in (3, 7, 11, 15)), "psnr_db", "rmse", "mse", "mae", "frequency_distance"
    }  # fmt: skip


@pytest.mark.parametrize("figure", ["mse", "mae", "psnr", "ssim", "frequency_distance"])
def test_images_of_different_shapes_are_refused(figure):
    with pytest.raises(InputError, match="resample"):
        getattr(imagemetrics, figure)(IMAGE, IMAGE[:-1])


@pytest.mark.parametrize("window", [1, 4, 21])
def test_windows_that_cannot_be_are_refused(window):
    with pytest.raises(InputError, match="window"):
        imagemetrics.ssim(IMAGE, IMAGE, window)
