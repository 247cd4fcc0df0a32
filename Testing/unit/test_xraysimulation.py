"""Simulated X-rays: attenuation, spectrum, noise, scatter, collimation."""

import numpy as np
import pytest
from phantoms import frame
from xrayphantoms import MIDDLE, SOLIDS, VIEWS, analytic_image, solid_volume

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraysimulation import (
    BONE_G_CM3,
    SSR_KD,
    XrayConditions,
    XrayRanges,
    XraySimulator,
    attenuate,
    attenuation_per_mm,
    densities,
    detect,
    open_field,
    scatter_potential,
    spectrum,
)

GEOMETRY = VIEWS["along j"].resized((120, 130))
FLAT = np.full(GEOMETRY.shape, 1.5, np.float32)


def test_the_mixture_reproduces_the_cts_own_attenuation():
    hu = np.array([-1000, -1000.5, -120, 0, 60, 100, 400, 1000, 1590, 2500], np.float32)
    # Water at 70 keV: between 0.2059 cm^2/g at 60 and 0.1837 at 80.
    water = attenuation_per_mm(np.zeros(1), 70.0)[0]
    assert water == pytest.approx(0.0194, rel=0.005)
    back = 1000 * (attenuation_per_mm(hu, 70.0) / water - 1)
    assert back == pytest.approx(np.maximum(hu, -1000), abs=0.5)


def test_bone_attenuates_more_at_lower_energies_and_soft_tissue_less_so():
    bone, muscle = np.array([1500.0]), np.array([50.0])
    ratio = [float(attenuation_per_mm(bone, e)[0] / attenuation_per_mm(muscle, e)[0]) for e in (40, 60, 100)]
    assert ratio[0] > ratio[1] > ratio[2] > 1.5
    soft, cortical = densities(np.array([-1000.0, 0.0, 1593.54, 3000.0]))
    assert soft == pytest.approx([0, 1, 0, 0], abs=1e-3)
    assert cortical[:3] == pytest.approx([0, 0, BONE_G_CM3], abs=1e-3) and cortical[3] > 1.5 * BONE_G_CM3


def test_a_spectrum_hardens_with_thickness():
    energies, weights = spectrum(70.0)
    assert weights.sum() == pytest.approx(1) and energies.max() < 70
    assert 38 < energies @ weights < 46  # mean energy of a 70 kV beam behind 3 mm of aluminium
    thin, thick = attenuate(np.array([0.01, 15.0]), np.zeros(2), 70.0) / np.array([0.01, 15.0])
    assert thin > 1.1 * thick
    assert attenuate(np.array([5.0]), np.array([2.0]), 90.0) < attenuate(np.array([5.0]), np.array([2.0]), 60.0)


def test_a_known_cylinder_of_bone_in_air_has_its_line_integrals():
    filled = solid_volume(SOLIDS["cylinder"], frame((0.8, 0.9, 0.7)))
    ct = Volume((-1000 + 2000 * filled.array).astype(np.int16), filled.ijk_to_ras)
    image = XraySimulator(ct)(GEOMETRY)
    expected = analytic_image(SOLIDS["cylinder"], GEOMETRY) * attenuation_per_mm(np.array([1000.0]))[0]
    deep = expected > 0.4 * expected.max()
    assert image.line_integrals.dtype == np.float32 and image.seen.all()
    # Edge voxels are mixtures of air and bone, whose energies do not mix as their HU do.
    assert np.abs(image.line_integrals - expected)[deep].mean() < 0.015 * expected[deep].mean()
    assert image.spacing_uv == tuple(GEOMETRY.spacing_uv)


def test_quantum_and_electronic_noise_have_the_variance_that_they_should():
    conditions = XrayConditions(photons=2e4, electronic_sd=30.0)
    noisy = detect(FLAT, GEOMETRY, conditions, seed=3).line_integrals
    received = 2e4 * np.exp(-1.5)
    assert noisy.mean() == pytest.approx(1.5, abs=0.002)
    assert noisy.std() == pytest.approx(np.sqrt(received + 30**2) / received, rel=0.05)
    assert np.array_equal(noisy, detect(FLAT, GEOMETRY, conditions, seed=3).line_integrals)
    assert not np.array_equal(noisy, detect(FLAT, GEOMETRY, conditions, seed=4).line_integrals)
    # Neighbouring pixels have nothing in common.
    deviation = noisy - noisy.mean()
    assert abs((deviation[:, 1:] * deviation[:, :-1]).mean()) < 0.05 * deviation.var()


def test_ssr_kds_noise_depends_on_the_share_of_the_densest_ray():
    image = np.tile(np.linspace(0, 6, GEOMETRY.shape[1], dtype=np.float32), (GEOMETRY.shape[0], 1))
    image[0, -1] = 6.0
    noise = detect(image, GEOMETRY, SSR_KD, seed=1).line_integrals - image
    for column in (40, 90, 125):
        received = 1e5 * np.exp(-image[5, column] / 6)
        assert noise[:, column].std() == pytest.approx(6 * np.sqrt(received + 100) / received, rel=0.25)


def test_a_ray_that_lets_nothing_through_stays_finite_and_none_is_negative():
    dense = np.full(GEOMETRY.shape, 60.0)
    image = detect(dense, GEOMETRY, XrayConditions(photons=1e4, electronic_sd=5.0), seed=0).line_integrals
    assert np.isfinite(image).all() and image.max() <= np.log(1e4) + 1e-4
    assert detect(0 * dense, GEOMETRY, XrayConditions(photons=1e3), seed=0).line_integrals.min() == 0


def test_scatter_is_smooth_adds_to_the_beam_and_follows_the_patient():
    received = np.ones((200, 180))
    received[60:140, 20:80] = np.exp(-2.0)
    geometry = VIEWS["along k"].resized(received.shape)
    background = scatter_potential(received, geometry)
    assert background.shape == received.shape and background.min() >= 0
    assert np.unravel_index(background.argmax(), background.shape) == pytest.approx((100, 50), abs=15)
    spacing = geometry.spacing_uv[0]
    assert np.abs(np.diff(background, axis=1)).max() / spacing < background.max() / 25
    clean = detect(-np.log(received), geometry, XrayConditions(), 0).line_integrals
    hazy = detect(-np.log(received), geometry, XrayConditions(scatter=0.3), 0).line_integrals
    assert (hazy[60:140, 20:80] < clean[60:140, 20:80]).all()


def test_a_patient_without_an_edge_scatters_as_much_as_its_potential():
    geometry = VIEWS["along k"].resized((2000, 2000))
    wide = geometry.__class__(
        geometry.source, geometry.detector_centre, geometry.u, geometry.v, (1.0, 1.0), geometry.shape
    )
    potential = scatter_potential(np.full(wide.shape, np.exp(-2.0)), wide)
    assert potential[1000, 1000] == pytest.approx(2 * np.exp(-2), rel=0.01)


def test_blades_keep_the_beam_away():
    conditions = XrayConditions(photons=1e5, electronic_sd=5.0, collimation=(0.1, 0.2, 0.0, 0.3))
    image = detect(FLAT, GEOMETRY, conditions, seed=0)
    rows, columns = GEOMETRY.shape
    expected = np.zeros((rows, columns), bool)
    expected[: round(0.7 * rows), round(0.1 * columns) : round(0.8 * columns)] = True
    assert np.array_equal(image.seen, expected) and np.array_equal(
        open_field(GEOMETRY.shape, (0, 0, 0, 0)), expected | 1
    )
    assert image.line_integrals[~expected].min() > 6.5 > image.line_integrals[expected].max()


def test_conditions_are_drawn_within_their_ranges_and_by_the_seed():
    ranges = XrayRanges(kilovolt=(60.0, 80.0))
    drawn = [ranges.draw(np.random.default_rng(seed)) for seed in range(50)]
    for name in ("photons", "electronic_sd", "scatter", "kilovolt"):
        low, high = getattr(ranges, name)
        values = [getattr(conditions, name) for conditions in drawn]
        assert low <= min(values) and max(values) <= high and len(set(values)) == 50
    assert drawn[7] == ranges.draw(np.random.default_rng(7))
    with pytest.raises(ValueError, match="scatter"):
        XrayRanges(scatter=(0.3, 0.1))


def test_a_source_within_the_ct_is_refused():
    ct = Volume(np.full((40, 40, 40), 50, np.int16), frame((2.0, 2.0, 2.0)))
    ct.ijk_to_ras[:3, 3] = GEOMETRY.source - ct.ijk_to_ras[:3, :3] @ (20, 20, 20)
    assert np.isfinite(MIDDLE).all()
    with pytest.raises(InputError, match="source lies within"):
        XraySimulator(ct)(GEOMETRY)
