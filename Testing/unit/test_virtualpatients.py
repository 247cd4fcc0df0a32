"""Virtual people and their CTs: picture, labels and surface points tell of the same bone."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from phantoms import frame
from scipy.ndimage import distance_transform_edt
from tibiae import landmarks, tibia_prior

from BoneReconstructionLib.distances import signed_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.surfaces import Surface, is_closed, volume_mm3
from BoneReconstructionLib.virtualpatients import BONES, FIELD_SPACING_MM, PatientRanges, VirtualPatients

SEEDS = (3, 4, 5)
AXES = frame((1.4, 1.2, 2.0), (8, -6, 25), "k")


@cache
def patients():
    return VirtualPatients()


def bone(seed, name="tibia"):
    people = patients()
    return Surface(people.vertices(people.person(seed), name), people.priors[name].faces)


def grid_around(points, axes, margin_mm=15.0):
    ijk = points @ np.linalg.inv(axes[:3, :3]).T
    margin = margin_mm / np.linalg.norm(axes[:3, :3], axis=0)
    matrix = axes.copy()
    matrix[:3, 3] = axes[:3, :3] @ (ijk.min(0) - margin)
    return tuple(int(size) for size in np.ceil(np.ptp(ijk, axis=0) + 2 * margin)[::-1] + 1), matrix


@pytest.fixture(scope="module")
def scan():
    """(person, shape, ijk_to_standard, HU, {bone: labels}) of a whole leg on an oblique, left-handed grid."""
    person = patients().person(4)
    shape, matrix = grid_around(np.concatenate([bone(4, name).vertices for name in BONES]), AXES)
    hu, labels = patients().ct(person, shape, matrix)
    return person, shape, matrix, hu.numpy(), {name: label.numpy() for name, label in labels.items()}


# ---- the person ----


def test_a_person_is_that_of_the_seed():
    first, again, other = (patients().person(seed) for seed in (3, 3, 4))
    assert (first.scale, first.tissue) == (again.scale, again.tissue)
    np.testing.assert_array_equal(first.mode_weights, again.mode_weights)
    np.testing.assert_array_equal(first.kernel_weights["fibula"], again.kernel_weights["fibula"])
    assert first.scale != other.scale and first.tissue != other.tissue


def test_tissue_lies_in_its_ranges():
    ranges = vars(PatientRanges())
    for seed in range(20):
        tissue = patients().person(seed).tissue
        assert tissue.keys() == ranges.keys()
        assert all(low <= tissue[name] <= high for name, (low, high) in ranges.items())


def test_an_unknown_model_is_refused():
    with pytest.raises(InputError, match="no model"):
        VirtualPatients("no-such-prior")


# ---- the bones ----


@pytest.mark.parametrize("name", BONES)
def test_bones_are_closed_and_look_outward(name):
    for seed in SEEDS:
        assert is_closed(bone(seed, name)) and volume_mm3(bone(seed, name)) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bone_is_the_one_the_prior_describes(seed):
    """The displacement field carries modes and kernels into space; on the bone it must keep what they say."""
    person = patients().person(seed)
    expected = person.scale * tibia_prior().shape(person.mode_weights, person.kernel_weights["tibia"])
    off = np.linalg.norm(bone(seed).vertices - expected, axis=1)
    assert off.mean() < 1.0
    surface_off = np.abs(signed_distances(bone(seed).vertices, Surface(expected, tibia_prior().faces)))
    assert surface_off.mean() < 0.3 and np.percentile(surface_off, 99) < 1.5
    found, wanted = landmarks().measure(bone(seed).vertices), landmarks().measure(expected)
    for measurement, tolerance in (("length", 1.5), ("plateau_width", 1.5), ("medial_slope", 2.0), ("torsion", 3.0)):
        assert found[measurement] == pytest.approx(wanted[measurement], abs=tolerance), measurement


@pytest.mark.parametrize("name, usual_mm, largest_mm", [("tibia", 0.3, 1.5), ("fibula", 0.5, 2.0)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_distance_is_zero_on_the_person_s_own_surface(seed, name, usual_mm, largest_mm):
    people = patients()
    points = torch.as_tensor(bone(seed, name).vertices, dtype=torch.float32)
    distance = people.signed_distances(people.person(seed), name, points)[0].abs().numpy()
    assert np.percentile(distance, 95) < usual_mm
    assert distance.max() < largest_mm


@pytest.mark.parametrize("seed", SEEDS)
def test_the_field_does_not_fold_where_the_bone_is(seed):
    """A warp that turns space inside out has no inverse; its Jacobian's determinant is then negative."""
    field = patients()._fields["tibia"]
    person = patients().person(seed)
    displacement = field.displacement(person.mode_weights, person.kernel_weights["tibia"])[0].numpy()
    points, _ = field._grid(FIELD_SPACING_MM)
    assert displacement.shape[1:] == points.shape[:3]
    gradient = np.stack(np.gradient(displacement, FIELD_SPACING_MM, axis=(3, 2, 1)), axis=-1)
    determinant = np.linalg.det(np.moveaxis(gradient, 0, -2) + np.eye(3))
    mean = Surface(field.prior.mean, field.prior.faces)
    near = np.abs(signed_distances(points.reshape(-1, 3), mean)).reshape(points.shape[:3]) < 8
    assert determinant[near].min() > 0.1


def test_the_sign_and_the_height_are_right(scan):
    person, shape, matrix, _, _ = scan
    ijk = np.random.default_rng(0).uniform(0, np.array(shape[::-1]) - 1, (4000, 3))
    points = ijk @ matrix[:3, :3].T + matrix[:3, 3]
    found, height = patients().signed_distances(person, "tibia", torch.as_tensor(points, dtype=torch.float32))
    exact = signed_distances(points, bone(4))
    clear = np.abs(exact) > 1.0
    assert (np.sign(found.numpy()) == np.sign(exact))[clear].mean() > 0.999
    surface = bone(4).vertices[:, 2]
    share = (points[:, 2] - surface.min()) / np.ptp(surface)
    inside = exact < 0
    np.testing.assert_allclose(height.numpy()[inside], share[inside], atol=0.05)


# ---- the scan ----


@pytest.mark.parametrize("name", BONES)
def test_labels_are_what_the_surface_encloses(scan, name):
    _, shape, matrix, _, labels = scan
    assert dice(labels[name], voxelize(bone(4, name), shape, matrix).array) > 0.97


def test_tibia_and_fibula_do_not_share_voxels(scan):
    labels = scan[4]
    shared = (labels["tibia"] & labels["fibula"]).sum()
    assert shared < 0.01 * labels["fibula"].sum()


def inside_by(name, scan, low_mm, high_mm):
    """Voxels whose depth below a bone's surface is in a range."""
    _, _, matrix, _, _ = scan
    ijk = np.argwhere(scan[4][name])[:, ::-1]
    depth = -signed_distances(ijk @ matrix[:3, :3].T + matrix[:3, 3], bone(4, name))
    chosen = ijk[(depth > low_mm) & (depth < high_mm)]
    return tuple(chosen[:, ::-1].T), (chosen @ matrix[2, :3] + matrix[2, 3])


def test_hounsfield_units_are_those_of_cortex_marrow_and_soft_tissue(scan):
    person, _, matrix, hu, labels = scan
    place, height = inside_by("tibia", scan, 1.2, 2.6)
    shaft = np.abs(height) < 40
    assert hu[place][shaft].mean() == pytest.approx(person.tissue["cortical_hu"], rel=0.12)
    place, height = inside_by("tibia", scan, 8.0, 30.0)
    shaft = np.abs(height) < 40
    assert shaft.sum() > 50 and hu[place][shaft].mean() == pytest.approx(person.tissue["marrow_hu"], abs=60)
    head = height > height.max() - 15
    assert hu[place][head].mean() == pytest.approx(person.tissue["cancellous_hu"], abs=60)
    bones = labels["tibia"] | labels["fibula"]
    away = distance_transform_edt(~bones, np.linalg.norm(matrix[:3, :3], axis=0)[::-1]) > 6
    soft = hu[away]
    assert soft.mean() == pytest.approx(person.tissue["soft_tissue_hu"], abs=1)
    assert soft.std() == pytest.approx(person.tissue["noise_hu"], rel=0.05)


def test_scans_of_the_same_person_are_the_same_and_noise_comes_from_the_seed(scan):
    person, shape, matrix, _, _ = scan
    small = (12, *shape[1:])
    first, again, other = (patients().ct(one, small, matrix)[0] for one in (person, person, replace(person, seed=99)))
    assert torch.equal(first, again)
    assert (first - other).std() > person.tissue["noise_hu"]


def part_of_the_leg(scan, thickness=24):
    """A slab at the tibia's proximal end: shape and ijk_to_standard."""
    _, shape, matrix, _, labels = scan
    first = np.flatnonzero(labels["tibia"].any((1, 2)))[0]
    moved = matrix.copy()
    moved[:3, 3] += matrix[:3, 2] * first
    return (thickness, *shape[1:]), moved


def test_a_mirrored_grid_shows_the_left_leg(scan):
    """The left leg on a mirrored grid: the same voxels; on a common grid, the mirror image about its middle."""
    person = scan[0]
    shape, matrix = part_of_the_leg(scan)
    right = patients().ct(person, shape, matrix)[1]["tibia"].numpy()
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, shape[2] - 1
    left = patients().ct(person, shape, matrix @ flip)[1]["tibia"].numpy()
    assert dice(left, right[:, :, ::-1]) > 0.999
    assert np.linalg.det((matrix @ flip)[:3, :3]) * np.linalg.det(matrix[:3, :3]) < 0
    # In the world, MIRROR @ matrix holds the left bone at the mirrored place.
    mirrored = Surface(bone(4).vertices * [-1, 1, 1], bone(4).faces[:, ::-1])
    assert dice(voxelize(mirrored, shape, MIRROR @ matrix).array, right) > 0.95


def test_missing_bone_gives_way_to_soft_tissue_and_stays_in_the_labels(scan):
    person = scan[0]
    shape, matrix = part_of_the_leg(scan)
    missing = np.zeros(shape, dtype=bool)
    missing[8:20] = True
    whole, labels = patients().ct(person, shape, matrix)
    broken, broken_labels = patients().ct(person, shape, matrix, missing)
    assert torch.equal(labels["tibia"], broken_labels["tibia"])
    inside = labels["tibia"].numpy()[11:17]
    assert broken.numpy()[11:17][inside].mean() == pytest.approx(person.tissue["soft_tissue_hu"], abs=10)
    assert whole.numpy()[11:17][inside].mean() > person.tissue["soft_tissue_hu"] + 100
    np.testing.assert_allclose(broken[:4], whole[:4], atol=1e-3)


def test_blur_is_in_millimetres_whatever_the_voxels(scan):
    """Across the edge of the shaft the finer grid does not show a sharper one."""
    person = scan[0]
    tissue = person.tissue | {"noise_hu": 0.0, "blur_mm": 2.5}
    still = replace(person, tissue=tissue)
    profiles = []
    for spacing in (0.5, 1.0):
        count = int(120 / spacing)
        matrix = np.diag([spacing, 2.0, 2.0, 1.0])
        matrix[:3, 3] = [-60.0, bone(4).vertices[:, 1].mean(), 0.0]
        hu = patients().ct(still, (17, 17, count), matrix)[0][8, 8].numpy()
        profiles.append(hu[:: int(1.0 / spacing)])
    steepest = [np.abs(np.diff(profile)).max() for profile in profiles]
    assert steepest[0] == pytest.approx(steepest[1], rel=0.15)
