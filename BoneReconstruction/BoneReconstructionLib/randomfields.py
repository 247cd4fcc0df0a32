"""Random fields of virtual patients, in torch: smooth ones in space, and the noise of a CT scanner on its voxels."""

import math

import torch
from torch.nn import functional


class PeriodicField:
    """A smooth random function of space of zero mean and unit variance, which repeats after `SIZE` steps.

    Its covariance is Gaussian. Drawn on the CPU, so that every device shows the same patient.

    Args:
        generator: torch.Generator on the CPU.
        correlation_mm: (3,) standard deviations, along x, y, z, of the Gaussian that white noise is smoothed with.
        device: torch device.
    """

    SIZE = 48
    STEPS_PER_CORRELATION = 1.5

    def __init__(self, generator, correlation_mm, device):
        spectrum = torch.fft.rfftn(torch.randn((self.SIZE,) * 3, generator=generator))
        for axis, frequency in enumerate(_frequencies(spectrum, (self.SIZE,) * 3, (1.0,) * 3)):
            spectrum *= torch.exp(-2 * (math.pi * self.STEPS_PER_CORRELATION * frequency) ** 2)
        tile = torch.fft.irfftn(spectrum, (self.SIZE,) * 3)
        tile = ((tile - tile.mean()) / tile.std()).to(device)
        # One plane more on each axis, so that interpolation goes on across the seam.
        self._tile = functional.pad(tile[None, None], (0, 1) * 3, mode="circular")
        self._per_mm = self.STEPS_PER_CORRELATION / torch.tensor(correlation_mm, device=device)

    def at(self, points):
        """Values (n,) at (n, 3) points, mm."""
        place = torch.remainder(points * self._per_mm, self.SIZE) * (2 / self.SIZE) - 1
        return functional.grid_sample(self._tile, place[None, None, None], align_corners=True)[0, 0, 0, 0]


def scanned(hu, spacing_kji, blur_mm, noise_hu, peak_per_mm, seed):
    """Blur an image as a scanner does and add its noise.

    Noise of filtered back-projection has the power spectrum of the ramp filter times that of a low-pass, in the plane
    of a slice (Riederer et al., Phys Med Biol 23(3):446-454, 1978); across slices it is blurred as the image is. The
    blur is the discrete Gaussian (Lindeberg, IEEE TPAMI 12(3):234-254, 1990): however small it is against the voxels,
    its variance is right and nothing overshoots.

    Args:
        hu: (K, J, I) tensor; k counts slices. Its border is repeated outside.
        spacing_kji: (3,) mm.
        blur_mm: standard deviations of the Gaussian blur along K, J, I.
        noise_hu: standard deviation of the noise.
        peak_per_mm: cycles per mm at which the noise has most power.
        seed: of the noise, on this device.

    Returns:
        (K, J, I) tensor.
    """
    shape = hu.shape
    margins = [math.ceil(4 * blur / spacing) + 1 for blur, spacing in zip(blur_mm, spacing_kji)]
    padded = [_fast_length(size + 2 * margin) for size, margin in zip(shape, margins)]
    padding = [n for size, m, whole in zip(shape, margins, padded) for n in (whole - size - m, m)][::-1]
    hu = functional.pad(hu[None, None], padding, mode="replicate")[0, 0]
    spectrum = torch.fft.rfftn(hu)
    k, j, i = _frequencies(spectrum, padded, spacing_kji)
    transfers = [
        torch.exp((blur / spacing) ** 2 * (torch.cos(2 * math.pi * spacing * frequency) - 1))
        for frequency, blur, spacing in zip((k, j, i), blur_mm, spacing_kji)
    ]
    for transfer in transfers:
        spectrum *= transfer
    if noise_hu > 0:
        generator = torch.Generator(device=hu.device).manual_seed(seed)
        white = torch.randn(spectrum.shape, generator=generator, device=hu.device, dtype=spectrum.dtype)
        radius = torch.sqrt(i**2 + j**2)
        in_plane = torch.sqrt(radius) * torch.exp(-((radius / peak_per_mm) ** 2) / 4)
        # The inverse transform takes each frequency of the half spectrum twice, but of those on its edge, which are
        # their own mirror images, half the power only.
        counted = torch.full_like(i, 2.0)
        counted[..., 0] = 0.5
        if padded[2] % 2 == 0:
            counted[..., -1] = 0.5
        power = float((in_plane**2 * counted).sum() * (transfers[0] ** 2).sum())
        spectrum += white * (in_plane * (noise_hu * math.prod(padded) / math.sqrt(power))) * transfers[0]
    result = torch.fft.irfftn(spectrum, padded)
    return result[tuple(slice(margin, margin + size) for margin, size in zip(margins, shape))].contiguous()


def _frequencies(spectrum, shape_kji, spacing_kji):
    """Cycles per mm along K (K, 1, 1), J (J, 1) and I (I // 2 + 1,) of a real transform's spectrum."""
    k, j = (torch.fft.fftfreq(size, step, device=spectrum.device) for size, step in zip(shape_kji, spacing_kji[:2]))
    return k[:, None, None], j[:, None], torch.fft.rfftfreq(shape_kji[2], spacing_kji[2], device=spectrum.device)


def _fast_length(size):
    """The next length that Fourier transforms take in small steps."""
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
