"""Radial power spectrum of a real CT's noise: `python Testing/noise_spectrum.py CT.nii.gz`.

Blocks of 8^3 voxels of soft tissue are freed of a quadratic background; those that then vary least and look Gaussian
hold hardly more than noise. Their mean spectrum, relative to its own mean, is what the foreign renderer's noise has.
"""

import sys

import numpy as np

from BoneReconstructionLib.volumes import read_volume

SIZE, STEP = 8, 2
SOFT_TISSUE_HU = (-180, 200)
QUIETEST = 0.1


def main():
    volume = read_volume(sys.argv[1])
    place = np.indices((SIZE,) * 3).reshape(3, -1) / (SIZE - 1) - 0.5
    background = [np.ones(SIZE**3), *place, *(place[a] * place[b] for a in range(3) for b in range(a, 3))]
    background = np.linalg.qr(np.stack(background, 1))[0]
    taper = np.hanning(SIZE + 2)[1:-1]
    taper = np.einsum("i,j,k->ijk", taper, taper, taper)
    blocks = np.lib.stride_tricks.sliding_window_view(volume.array, (SIZE,) * 3)[::STEP, ::STEP, ::STEP]
    blocks = blocks.reshape(-1, SIZE**3)
    blocks = blocks[(blocks.min(1) > SOFT_TISSUE_HU[0]) & (blocks.max(1) < SOFT_TISSUE_HU[1])].astype(float)
    residual = blocks - blocks @ background @ background.T
    deviation = residual.std(1)
    quiet = np.argsort(deviation)[: int(QUIETEST * len(deviation))]
    kurtosis = (residual[quiet] ** 4).mean(1) / deviation[quiet] ** 4 - 3
    chosen = residual[quiet[np.abs(kurtosis) < 1]].reshape(-1, SIZE, SIZE, SIZE)
    power = (np.abs(np.fft.fftn(chosen * taper, axes=(1, 2, 3))) ** 2).mean(0)
    i, j, k = (np.fft.fftfreq(SIZE, step) for step in volume.spacing)
    frequency = np.sqrt(k[:, None, None] ** 2 + j[:, None] ** 2 + i**2)
    bins = np.rint(frequency * SIZE * volume.spacing.mean()).astype(int)
    print(f"{len(chosen)} blocks, {deviation[quiet].mean():.1f} HU")
    for number in range(1, bins.max() + 1):
        here = bins == number
        print(f"{frequency[here].mean():.3f} cycles/mm  {power[here].mean() / power.mean():.2f}")


if __name__ == "__main__":
    main()
