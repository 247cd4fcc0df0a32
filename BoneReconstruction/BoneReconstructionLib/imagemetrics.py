"""How far two CT images differ, as the papers measure it; all figures belong to one fixed HU window.

Intensity figures depend on the window and on the share of background: they compare methods on the same images and are
no goal by themselves. Print `HU_WINDOW` beside them.
"""

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.errors import InputError

# From fat to dense cortex; what lies outside is cut off.
HU_WINDOW = (-200.0, 1800.0)
SSIM_WINDOWS = (3, 7, 11, 15)
# Of SSIM's Gaussian weights and its two stabilising constants: Wang et al., IEEE TIP 13(4), 2004.
SSIM_SIGMA = 1.5
SSIM_CONSTANTS = (0.01, 0.03)


def windowed(hu: np.ndarray, window: tuple[float, float] = HU_WINDOW) -> np.ndarray:
    """Maps HU linearly to [0, 1], as float32; values outside the window are cut off.

    Args:
        hu: any shape, HU.
        window: (lowest, highest) HU.
    """
    low, high = window
    return np.clip((np.asarray(hu, dtype=np.float32) - low) / (high - low), 0, 1)


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error of two images of the same shape."""
    return float(np.mean(_difference(a, b) ** 2))


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean squared error of two images of the same shape."""
    return float(np.sqrt(mse(a, b)))


def mae(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute error of two images of the same shape."""
    return float(np.mean(np.abs(_difference(a, b))))


def psnr(a: np.ndarray, b: np.ndarray, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / MSE) in dB; infinite for equal images.

    Args:
        a: image, any shape.
        b: image of the same shape.
        data_range: width of the range of values; 1 for `windowed` images.
    """
    error = mse(a, b)
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(a: np.ndarray, b: np.ndarray, window: int = 11, data_range: float = 1.0) -> float:
    """Mean structural similarity, from -1 to 1 (equal); Wang et al., IEEE TIP 13(4), 2004, in three dimensions.

    Moments are weighted by a Gaussian of standard deviation 1.5 voxels cut off at the window; only windows that lie
    inside the image count. With these weights windows of 11 and 15 give nearly the same figure, as in table 1 of the
    masked tibia completion paper; with uniform weights they would not.

    Args:
        a: image, any number of dimensions, each at least `window`.
        b: image of the same shape.
        window: odd number of voxels along each side.
        data_range: width of the range of values; 1 for `windowed` images.

    Raises:
        InputError: the shapes differ, the window is even or larger than the image.
    """
    if window % 2 == 0 or window < 3:
        raise InputError(f"The SSIM window is {window} voxels wide; choose an odd number from 3.")
    if min(np.shape(a)) < window:
        raise InputError(f"The images of {np.shape(a)} voxels are smaller than the SSIM window of {window}.")
    _difference(a, b)
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    mean_a, mean_b = _weighted(a, window), _weighted(b, window)
    variance_a = _weighted(a * a, window) - mean_a**2
    variance_b = _weighted(b * b, window) - mean_b**2
    covariance = _weighted(a * b, window) - mean_a * mean_b
    c1, c2 = ((constant * data_range) ** 2 for constant in SSIM_CONSTANTS)
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(similarity.mean())


def d_ssim(a: np.ndarray, b: np.ndarray, window: int = 11, data_range: float = 1.0) -> float:
    """Structural dissimilarity (1 - SSIM) / 2, from 0 (equal) to 1; see `ssim`."""
    return (1 - ssim(a, b, window, data_range)) / 2


def frequency_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frequency distance of the edge-aware reconstruction paper (EAR, equations 7 and 8); -inf for equal images.

    FD = log10(mean |Re F(a) - Re F(b)| + mean |Im F(a) - Im F(b)|), with the unnormalised discrete Fourier transform F
    and means over all frequencies. The paper rescales the figures of the methods that it compares to [0, 1]
    afterwards, so that its absolute values cannot be compared with these.

    Raises:
        InputError: the shapes differ.
    """
    spectrum = np.fft.fftn(_difference(a, b))
    distance = np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()
    return float(np.log10(distance)) if distance > 0 else float("-inf")


def image_metrics(a_hu: np.ndarray, b_hu: np.ndarray) -> dict[str, float]:
    """All figures of two CT images within `HU_WINDOW`.

    Args:
        a_hu: (K, J, I) HU, each side at least 15 voxels.
        b_hu: (K, J, I) HU.

    Returns:
        {"d_ssim_3", "d_ssim_7", "d_ssim_11", "d_ssim_15", "psnr_db", "rmse", "mse", "mae", "frequency_distance"}.

    Raises:
        InputError: the shapes differ or are too small.
    """
    a, b = windowed(a_hu), windowed(b_hu)
    return {f"d_ssim_{window}": d_ssim(a, b, window) for window in SSIM_WINDOWS} | {
        "psnr_db": psnr(a, b),
        "rmse": rmse(a, b),
        "mse": mse(a, b),
        "mae": mae(a, b),
        "frequency_distance": frequency_distance(a, b),
    }


def _difference(a, b):
    if np.shape(a) != np.shape(b):
        raise InputError(f"The images have {np.shape(a)} and {np.shape(b)} voxels; resample one to the other's grid.")
    return np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)


def _weighted(image, window):
    """Gaussian-weighted mean over each window that lies inside the image."""
    half = window // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    for axis in range(image.ndim):
        image = ndimage.correlate1d(image, weights, axis=axis)
        image = np.take(image, np.arange(half, image.shape[axis] - half), axis=axis)
    return image
