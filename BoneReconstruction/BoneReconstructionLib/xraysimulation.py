"""X-rays of CTs: from Hounsfield units to attenuation, and from line integrals to what a detector measures.

A voxel is a mixture of soft tissue (water of the density that its HU mean) and, from `BONE_FROM_HU` up, cortical bone;
the mixture reproduces the CT's own attenuation. So every line integral is that of two materials, in g/cm^2, and follows
for any energy, or for a whole spectrum with its beam hardening, from two projections.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.projection import Projector
from BoneReconstructionLib.radiographs import Radiograph
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometry import XrayGeometry

# Mass attenuation coefficients, cm^2/g (NIST X-ray mass attenuation coefficients, Hubbell and Seltzer, NISTIR 5632).
ENERGIES_KEV = np.array([15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0])
WATER = np.array([1.673, 0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505])
CORTICAL_BONE = np.array([9.032, 4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480])  # ICRU-44
ALUMINIUM = np.array([7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378])
BONE_G_CM3, ALUMINIUM_G_CM3 = 1.92, 2.699

CT_KEV = 70.0  # mean energy of a 120 kV CT beam within a patient
XRAY_KEV = 50.0  # the same of a 70 kV radiograph: what is meant where one energy stands for the beam
BONE_FROM_HU = 100.0  # muscle reaches 80 HU
FILTER_MM = 3.0  # of aluminium, inherent and added
ENERGY_STEP_KEV = 5.0

SCATTER_SIGMA_MM = 40.0  # at the detector; scatter has no structure finer than centimetres
LEAK = 5e-4  # what collimator blades let through


@dataclass(frozen=True)
class XrayConditions:
    """How one X-ray is taken.

    Attributes:
        photons: that reach a pixel without a patient; None for no noise at all.
        electronic_sd: standard deviation of the electronic noise, in photons.
        scatter: share of `scatter_potential` that reaches the detector.
        collimation: share of the image that the blades cover at left, right, top and bottom.
        kilovolt: tube voltage of a polychromatic beam; None for one energy, `XRAY_KEV`.
        normalised: the noise is that of an image whose densest ray lets 1/e through, as TIGRE makes it whatever the
            patient's thickness; otherwise that of the line integrals as they are.
    """

    photons: float | None = None
    electronic_sd: float = 0.0
    scatter: float = 0.0
    collimation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    kilovolt: float | None = None
    normalised: bool = False


# Of SSR-KD's published code: TIGRE's noise with 1e5 photons and a standard deviation of 10.
SSR_KD = XrayConditions(photons=1e5, electronic_sd=10.0, normalised=True)


@dataclass(frozen=True)
class XrayRanges:
    """Ranges that conditions are drawn from, each (lowest, highest).

    Attributes:
        photons: drawn evenly on a logarithmic scale; around SSR-KD's.
        electronic_sd: in photons.
        scatter: up to scatter fractions of about a third behind a grid.
        collimation: of each of the four blades.
        kilovolt: of a polychromatic beam; None for one energy.
    """

    photons: tuple[float, float] = (3e4, 3e5)
    electronic_sd: tuple[float, float] = (0.0, 20.0)
    scatter: tuple[float, float] = (0.0, 0.3)
    collimation: tuple[float, float] = (0.0, 0.08)
    kilovolt: tuple[float, float] | None = None

    def __post_init__(self):
        for item in fields(self):
            limits = getattr(self, item.name)
            if limits is not None and not 0 <= limits[0] <= limits[1]:
                raise ValueError(f"{item.name}: {limits} is no range of values from 0")

    def draw(self, generator: np.random.Generator) -> XrayConditions:
        """Conditions of one X-ray."""
        low, high = np.log(self.photons)
        return XrayConditions(
            float(np.exp(generator.uniform(low, high))),
            float(generator.uniform(*self.electronic_sd)),
            float(generator.uniform(*self.scatter)),
            tuple(generator.uniform(*self.collimation, 4).tolist()),
            None if self.kilovolt is None else float(generator.uniform(*self.kilovolt)),
        )


class XraySimulator:
    """Makes X-rays of one CT.

    Args:
        ct: HU.
        engine: as of `Projector`.

    Attributes:
        engine: the one in use.
    """

    def __init__(self, ct: Volume, engine: str | None = None):
        soft, bone = densities(ct.array)
        self._soft = Projector(Volume(soft, ct.ijk_to_ras), engine)
        self._bone = Projector(Volume(bone, ct.ijk_to_ras), engine)
        self.engine = self._soft.engine

    def __call__(
        self, geometry: XrayGeometry, conditions: XrayConditions = XrayConditions(), seed: int = 0
    ) -> Radiograph:
        """One X-ray.

        Args:
            geometry: of the view.
            conditions: how it is taken; ideal by default.
            seed: of the noise; the same seed gives the same image.

        Raises:
            InputError: the source lies within or beside the CT.
        """
        # mm to cm.
        soft, bone = self._soft(geometry) / 10, self._bone(geometry) / 10
        line_integrals = attenuate(soft, bone, conditions.kilovolt)
        return detect(line_integrals, geometry, conditions, seed)


def densities(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Densities of the two materials that a CT's voxels are mixed of.

    Args:
        hu: Hounsfield units.

    Returns:
        Soft tissue and cortical bone, g/cm^3, float32, each of the shape of `hu`.
    """
    hu = np.maximum(np.asarray(hu, dtype=np.float32), -1000)
    cortex = _cortical_hu()
    # Above cortical bone (metal, teeth) the bone grows denser.
    share = np.clip((hu - BONE_FROM_HU) / (cortex - BONE_FROM_HU), 0, 1)
    soft = (1 - share) * (1 + np.minimum(hu, BONE_FROM_HU) / 1000)
    bone = share * (BONE_G_CM3 * np.maximum((hu + 1000) / (cortex + 1000), 1))
    return soft.astype(np.float32), bone.astype(np.float32)


def attenuation_per_mm(hu: np.ndarray, energy_kev: float = XRAY_KEV) -> np.ndarray:
    """Linear attenuation coefficient of a CT's voxels at one energy.

    Args:
        hu: Hounsfield units.
        energy_kev: 15 to 150.

    Returns:
        Per mm, float32, of the shape of `hu`; 0 for air.
    """
    soft, bone = densities(hu)
    water, cortical = (_coefficient(table, energy_kev) / 10 for table in (WATER, CORTICAL_BONE))
    return (water * soft + cortical * bone).astype(np.float32)


def attenuate(soft: np.ndarray, bone: np.ndarray, kilovolt: float | None = None) -> np.ndarray:
    """Line integrals that a detector measures behind two materials.

    Args:
        soft: g/cm^2 of soft tissue along each ray.
        bone: g/cm^2 of cortical bone along each ray.
        kilovolt: tube voltage of a polychromatic beam; one energy, `XRAY_KEV`, when None.

    Returns:
        -ln(I / I0) in float32, I being the energy that the detector takes up.
    """
    if kilovolt is None:
        water, cortical = (_coefficient(table, XRAY_KEV) for table in (WATER, CORTICAL_BONE))
        return (water * soft + cortical * bone).astype(np.float32)
    energies, weights = spectrum(kilovolt)
    received = np.zeros(np.shape(soft))
    for energy, weight in zip(energies, weights, strict=True):
        water, cortical = (_coefficient(table, energy) for table in (WATER, CORTICAL_BONE))
        received += weight * np.exp(-(water * soft + cortical * bone))
    return -np.log(received).astype(np.float32)


def spectrum(kilovolt: float) -> tuple[np.ndarray, np.ndarray]:
    """A tungsten tube's spectrum as an energy-integrating detector weighs it.

    Kramers' law behind `FILTER_MM` of aluminium; characteristic lines, which below 69.5 kV are none, are left out.

    Args:
        kilovolt: 40 to 150.

    Returns:
        Energies in keV and their weights, which sum to 1.
    """
    energies = np.arange(15.0 + ENERGY_STEP_KEV / 2, kilovolt, ENERGY_STEP_KEV)
    filtered = np.exp(-_coefficient(ALUMINIUM, energies) * ALUMINIUM_G_CM3 * FILTER_MM / 10)
    weights = (kilovolt - energies) * filtered
    return energies, weights / weights.sum()


def detect(line_integrals: np.ndarray, geometry: XrayGeometry, conditions: XrayConditions, seed: int) -> Radiograph:
    """What the detector makes of ideal line integrals: scatter, collimation, quantum and electronic noise.

    Args:
        line_integrals: (rows, columns).
        geometry: of the view.
        conditions: how it is taken.
        seed: of the noise.
    """
    received = np.exp(-np.asarray(line_integrals, dtype=np.float64))
    if conditions.scatter > 0:
        received += conditions.scatter * scatter_potential(received, geometry)
    seen = open_field(geometry.shape, conditions.collimation)
    received[~seen] *= LEAK
    measured = -np.log(received)
    if conditions.photons is not None:
        generator = np.random.default_rng(seed)
        scale = max(float(measured[seen].max(initial=0)), 1e-6) if conditions.normalised else 1.0
        counts = generator.poisson(conditions.photons * np.exp(-measured / scale)).astype(np.float64)
        counts += generator.normal(0, conditions.electronic_sd, counts.shape)
        # A pixel without a count has no logarithm.
        measured = -scale * np.log(np.maximum(counts, 1) / conditions.photons)
    measured = np.maximum(measured, 0).astype(np.float32)
    return Radiograph(measured, seen, tuple(geometry.spacing_uv.tolist()), steps=("simulated line integrals",))


def scatter_potential(received: np.ndarray, geometry: XrayGeometry) -> np.ndarray:
    """Scatter-like background of an image: p exp(-p) spread over centimetres (Ohnesorge et al., Eur Radiol 9, 1999).

    Args:
        received: (rows, columns) primary beam behind the patient, 1 without one.
        geometry: of the view.

    Returns:
        (rows, columns) in units of the unattenuated beam.
    """
    potential = -received * np.log(received)
    sigma = SCATTER_SIGMA_MM / geometry.spacing_uv[::-1]
    # A wide Gaussian needs no fine grid: it is applied to block means and interpolated back.
    blocks = np.maximum(1, (sigma / 4).astype(int))
    rows, columns = (math.ceil(n / b) for n, b in zip(potential.shape, blocks, strict=True))
    padded = np.pad(
        potential, [(0, n * b - size) for n, b, size in zip((rows, columns), blocks, potential.shape)], "edge"
    )
    means = padded.reshape(rows, blocks[0], columns, blocks[1]).mean(axis=(1, 3))
    smooth = ndimage.gaussian_filter(means, sigma / blocks, mode="constant")
    places = [(np.arange(size) + 0.5) / b - 0.5 for size, b in zip(potential.shape, blocks, strict=True)]
    return ndimage.map_coordinates(smooth, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")


def open_field(shape: tuple[int, int], collimation: tuple[float, float, float, float]) -> np.ndarray:
    """(rows, columns) bool, True where blades covering shares at left, right, top and bottom let the beam through."""
    rows, columns = shape
    left, right, top, bottom = collimation
    seen = np.zeros(shape, dtype=bool)
    seen[round(top * rows) : rows - round(bottom * rows), round(left * columns) : columns - round(right * columns)] = (
        True
    )
    return seen


def _coefficient(table: np.ndarray, energy_kev: float | np.ndarray) -> np.ndarray:
    """cm^2/g at an energy, interpolated between logarithms."""
    return np.exp(np.interp(np.log(energy_kev), np.log(ENERGIES_KEV), np.log(table)))


def _cortical_hu() -> float:
    water, cortical = (_coefficient(table, CT_KEV) for table in (WATER, CORTICAL_BONE))
    return float(1000 * (BONE_G_CM3 * cortical / water - 1))
