"""Fast projection: both engines against what is known, against a slow march, and against each other."""

import importlib.util
from functools import cache

import numpy as np
import pytest
from phantoms import frame
from scipy.ndimage import gaussian_filter, map_coordinates
from xrayphantoms import MIDDLE, SOLIDS, VIEWS, analytic_image, solid_volume

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.projection import ENGINES, Projector, installed_engines
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometry import CArm, from_carm, preset_view

FRAMES = {
    "oblique": frame((0.4, 0.45, 0.55)),
    "left-handed, steep": frame((0.5, 0.4, 0.45), (80, 40, -130), "ik"),
}
LEAST_MM = 0.4  # of a solid: seen, at a voxel's blur
every_engine = pytest.mark.parametrize("engine", ENGINES)


def textured_volume():
    """A smooth random volume with an edge, no axis alike."""
    generator = np.random.default_rng(5)
    array = gaussian_filter(generator.normal(size=(40, 50, 60)), 1.5)
    array = (0.02 + 0.05 * array) * (np.indices(array.shape).sum(axis=0) > 30)
    matrix = frame((0.9, 1.0, 1.2), (9, -14, 21), "j")
    matrix[:3, 3] = MIDDLE - matrix[:3, :3] @ ((np.array(array.shape[::-1]) - 1) / 2)
    return Volume(array.astype(np.float32), matrix)


def march(volume, geometry, step_mm=0.25):
    """Trilinear samples along each ray, in double precision."""
    row, column = np.indices(geometry.shape)
    ends = geometry.pixel_positions(np.stack([column.ravel(), row.ravel()], axis=-1))
    rays = ends - geometry.source
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    depth = np.linalg.norm(MIDDLE - geometry.source)
    samples = np.arange(depth - 60, depth + 60, step_mm) + step_mm / 2
    points = geometry.source + rays[:, None] * samples[:, None]
    ijk = points @ volume.ras_to_ijk[:3, :3].T + volume.ras_to_ijk[:3, 3]
    values = map_coordinates(np.pad(volume.array.astype(float), 1), ijk.reshape(-1, 3).T[::-1] + 1, order=1)
    return values.reshape(len(rays), -1).sum(axis=1).reshape(geometry.shape) * step_mm


@cache
def volume_of(kind, axes):
    return solid_volume(SOLIDS[kind], FRAMES[axes])


@every_engine
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("axes", FRAMES)
@pytest.mark.parametrize("kind", SOLIDS)
def test_path_lengths_and_outlines_of_known_solids(kind, axes, view, engine):
    solid, geometry = SOLIDS[kind], VIEWS[view]
    image = Projector(volume_of(kind, axes), engine)(geometry)
    truth = analytic_image(solid, geometry)
    assert image.dtype == np.float32 and image.shape == geometry.shape
    assert image.sum() == pytest.approx(truth.sum(), rel=0.005)
    # Rays half a pixel around each pixel's centre all meet the solid, or all miss it.
    angles = np.arange(8) * np.pi / 4
    around = [analytic_image(solid, geometry, (np.cos(a) / 2, np.sin(a) / 2)) > 0 for a in angles]
    inside, outside = np.all(around, axis=0) & (truth > 0), ~np.any(around, axis=0) & (truth == 0)
    assert inside.sum() > 300 and outside.sum() > 300
    assert image[outside].max() < LEAST_MM < image[inside].min()
    # The ramp of one voxel shows only where rays graze the solid.
    deep = truth > 0.4 * truth.max()
    assert np.abs(image - truth)[deep].mean() < 0.005 * truth[deep].mean()


@every_engine
@pytest.mark.parametrize("view", VIEWS)
def test_a_textured_volume_agrees_with_a_slow_march(view, engine):
    volume, geometry = textured_volume(), VIEWS[view].resized((36, 40))
    image, truth = Projector(volume, engine)(geometry), march(volume, geometry)
    assert np.abs(image - truth).mean() < 0.003 * truth.mean()
    assert np.corrcoef(image.ravel(), truth[:, ::-1].ravel())[0, 1] < 0.99  # the test would see a mirrored image


@every_engine
def test_moving_the_volume_is_moving_the_x_ray_the_other_way(engine):
    volume, geometry = textured_volume(), VIEWS["along j"].resized((40, 36))
    motion = frame((1, 1, 1), (4, -6, 8))
    motion[:3, 3] = MIDDLE - motion[:3, :3] @ MIDDLE + (3.0, -5.0, 7.0)
    projector = Projector(volume, engine)
    moved = projector(geometry, motion)
    assert np.abs(moved - projector(geometry.moved(np.linalg.inv(motion)))).max() < 2e-3 * moved.max()
    assert np.abs(moved - projector(geometry)).max() > 0.1 * moved.max()


def test_the_engines_agree():
    volume = textured_volume()
    for geometry in VIEWS.values():
        first, second = (Projector(volume, engine)(geometry) for engine in ENGINES)
        assert np.abs(first - second).mean() < 3e-3 * second.mean()


@every_engine
def test_a_standard_ap_view_has_right_at_left_and_head_at_the_top(engine):
    array = np.zeros((21, 21, 21), np.float32)
    array[18, 10, 17] = 1  # superior and, i running to the right, right
    matrix = np.eye(4)
    matrix[:3, 3] = -10
    geometry = preset_view("ssr-kd", "AP").resized((128, 128))
    row, column = np.unravel_index(Projector(Volume(array, matrix), engine)(geometry).argmax(), geometry.shape)
    assert row < 63 and column < 63
    assert np.abs(geometry.project(np.array([[7.0, 0, 8]]))[0] - (column, row)).max() <= 0.51


@every_engine
def test_a_magnified_slab_keeps_its_length_everywhere(engine):
    # A slab at right angles to the beam, wider than the view: the length grows by 1 / cos only.
    array = np.full((5, 300, 300), 2.0, np.float32)
    matrix = np.eye(4)
    matrix[:3, 3] = (-149.5, -149.5, -2)
    geometry = from_carm(CArm(1000.0, 500.0, (4.0, 4.0), (64, 64), 0.0, 90.0))
    image = Projector(Volume(array, matrix), engine)(geometry)
    row, column = np.indices(geometry.shape)
    ends = geometry.pixel_positions(np.stack([column.ravel(), row.ravel()], axis=-1)) - geometry.source
    expected = 2.0 * 5 * np.linalg.norm(ends, axis=1) / 1000
    assert np.abs(image.ravel() / expected - 1).max() < 1e-4


@every_engine
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 12, 9), (7, 1, 6), (5, 8, 1)])
def test_flat_volumes_and_single_voxels_are_projected(shape, engine):
    array = np.ones(shape, np.float32)
    matrix = np.eye(4)
    matrix[:3, 3] = -(np.array(shape[::-1]) - 1) / 2
    geometry = from_carm(CArm(1000.0, 500.0, (0.1, 0.1), (301, 301), 20.0, 30.0))
    # A point's shadow has area (pixel at the object)^2: the sum of the image is the volume's content.
    total = Projector(Volume(array, matrix), engine)(geometry).sum() * (0.1 / 2) ** 2
    assert total == pytest.approx(array.sum(), rel=0.02)


@every_engine
def test_an_empty_volume_and_one_beside_the_view_give_nothing(engine):
    geometry = VIEWS["along i"]
    volume = volume_of("sphere", "oblique")
    aside = np.eye(4)
    aside[2, 3] = 500
    assert not Projector(Volume(np.zeros((4, 5, 6)), np.eye(4)), engine)(geometry).any()
    assert not Projector(volume, engine)(geometry, aside).any()


@every_engine
def test_a_source_within_the_volume_is_refused(engine):
    volume = volume_of("sphere", "oblique")
    geometry = VIEWS["along i"]
    inside = np.eye(4)
    inside[:3, 3] = geometry.source - MIDDLE
    with pytest.raises(InputError, match="source lies within"):
        Projector(volume, engine)(geometry, inside)


def test_what_is_installed_decides_the_engine(monkeypatch):
    volume = Volume(np.ones((2, 2, 2)), np.eye(4))
    assert installed_engines() == ENGINES
    assert Projector(volume).engine == "numba"
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else found(name))
    assert Projector(volume).engine == "torch"
    with pytest.raises(ModuleNotFoundError, match="numba"):
        Projector(volume, "numba")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError):
        Projector(volume)


def test_unknown_engines_and_sheared_volumes_are_refused():
    with pytest.raises(InputError, match="no projection engine cuda"):
        Projector(Volume(np.ones((2, 2, 2)), np.eye(4)), "cuda")
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(InputError, match="sheared"):
        Projector(Volume(np.ones((2, 2, 2)), sheared))
