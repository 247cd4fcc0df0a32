"""Virtual people and their CTs: picture, labels and surface points tell of the same bone."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from phantoms import frame
from scipy.ndimage import distance_transform_edt
from tibiae import landmarks, tibia_prior

from BoneReconstructionLib.bonefields import FIELD_SPACING_MM
from BoneReconstructionLib.distances import signed_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.randomfields import PeriodicField
from BoneReconstructionLib.surfaces import Surface, is_closed, volume_mm3
from BoneReconstructionLib.virtualpatients import BONES, NEIGHBOURS, PatientRanges, VirtualPatients

SEEDS = (3, 4, 5)
AXES = frame((1.4, 1.2, 2.0), (8, -6, 25), "k")
# Bones in muscle without end, seen by a perfect scanner.
STILL = {"noise_hu": 0.0, "blur_mm": 0.0, "slice_mm": 0.0}
PLAIN = {"calf_size": 0.0, "texture_hu": 0.0, "cortex_variation": 0.0, "femur_size": 0.0, "talus_size": 0.0}


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


def test_hounsfield_units_are_those_of_cortex_marrow_and_cancellous_bone(scan):
    person, _, _, hu, _ = scan
    place, height = inside_by("tibia", scan, 1.2, 2.6)
    shaft = np.abs(height) < 40
    assert hu[place][shaft].mean() == pytest.approx(person.tissue["cortical_hu"], rel=0.12)
    place, height = inside_by("tibia", scan, 8.0, 30.0)
    shaft = np.abs(height) < 40
    assert shaft.sum() > 50 and hu[place][shaft].mean() == pytest.approx(person.tissue["marrow_hu"], abs=60)
    head = height > height.max() - 15
    assert hu[place][head].mean() == pytest.approx(person.tissue["cancellous_hu"], abs=60)


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
    np.testing.assert_allclose(broken[:4], whole[:4], atol=0.1)


def ct_at(z, changes, spacing=(1.0, 1.0, 1.0), shape_mm=(120, 130, 24), seed=4):
    """A scan around a height of the standard frame with some tissue changed: (HU, labels, ijk_to_standard)."""
    person = replace(patients().person(seed), tissue=patients().person(seed).tissue | changes)
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = [-60.0, -90.0, z - shape_mm[2] / 2]
    matrix[:3, 3] += np.array(spacing) / 2
    shape = tuple(round(size / step) for size, step in zip(shape_mm, spacing, strict=True))[::-1]
    hu, labels = patients().ct(person, shape, matrix)
    return hu.numpy(), {name: label.numpy() for name, label in labels.items()}, matrix


def test_blur_is_in_millimetres_whatever_the_voxels(scan):
    """Across the edge of the shaft the finer grid does not show a sharper one."""
    person = scan[0]
    still = replace(person, tissue=person.tissue | PLAIN | STILL | {"blur_mm": 2.5})
    profiles = []
    for spacing in (0.5, 1.0):
        count = int(120 / spacing)
        matrix = np.diag([spacing, 2.0, 2.0, 1.0])
        matrix[:3, 3] = [-60.0, bone(4).vertices[:, 1].mean(), 0.0]
        hu = patients().ct(still, (17, 17, count), matrix)[0][8, 8].numpy()
        profiles.append(hu[:: int(1.0 / spacing)])
    steepest = [np.abs(np.diff(profile)).max() for profile in profiles]
    assert steepest[0] == pytest.approx(steepest[1], rel=0.15)


# ---- tissue ----


def test_muscle_fat_skin_and_air_follow_each_other_from_the_bone_outward():
    layers = {"skin_hu": 60.0, "skin_mm": 3.0, "fat_hu": -100.0, "fat_mm": 12.0, "septum_mm": 0.0}
    hu, labels, _ = ct_at(40.0, STILL | layers | {"soft_tissue_hu": 50.0})
    depth = distance_transform_edt(np.pad(hu, ((0, 0), (1, 1), (1, 1)), constant_values=-1000) > -500)[:, 1:-1, 1:-1]
    assert np.percentile(hu[depth == 0], 95) == pytest.approx(-1000, abs=1)
    assert hu[(depth > 1.2) & (depth < 2.3)].mean() == pytest.approx(60, abs=12)
    behind = np.broadcast_to(np.arange(hu.shape[1])[:, None] < 40, hu.shape)  # the calf's side
    assert hu[(depth > 5) & (depth < 9) & behind].mean() == pytest.approx(-100, abs=5)
    away = distance_transform_edt(~(labels["tibia"] | labels["fibula"])) > 3
    assert hu[(depth > 20) & away] == pytest.approx(50, abs=0.1)
    girth_mm = np.pi * 2 * np.sqrt((depth > 0).sum((1, 2)) / np.pi)
    assert (girth_mm > 290).all() and (girth_mm < 460).all()


def test_septa_are_sheets_of_fat_inside_the_muscle():
    changes = STILL | {"fat_hu": -100.0, "soft_tissue_hu": 50.0, "skin_mm": 2.0, "fat_mm": 5.0, "calf_size": 1.0}
    without, with_septa = (ct_at(40.0, changes | {"septum_mm": width})[0] for width in (0.0, 2.0))
    changed = without - with_septa > 75
    assert 0.02 < changed.sum() / (without > -500).sum() < 0.2
    assert np.percentile(without[changed], 2) > 20 and (with_septa <= without + 1e-2).all()


def test_fat_skin_and_air_can_be_switched_off():
    hu, labels, _ = ct_at(40.0, STILL | PLAIN)
    away = distance_transform_edt(~(labels["tibia"] | labels["fibula"])) > 2
    assert len(np.unique(hu[away].round(2))) == 1


def test_cancellous_bone_has_texture_at_the_ends_and_marrow_none():
    high = bone(4).vertices[:, 2].max()
    spread = {}
    for place, z in (("head", high - 16.0), ("shaft", high - 180.0)):
        even, textured = (ct_at(z, PLAIN | STILL | {"texture_hu": hu, "texture_mm": 1.5}) for hu in (0.0, 60.0))
        labels, difference = even[1]["tibia"], textured[0] - even[0]
        assert np.abs(difference[~(labels | even[1]["fibula"])]).max() < 60
        depth = distance_transform_edt(labels)
        deep = (depth > 5) if place == "head" else (depth > 0.7 * depth.max())
        spread[place] = difference[deep].std()
        if place == "head":
            # Grains of 1.5 mm, longer along the bone: neighbours are alike, those 8 mm away are not.
            alike = [
                np.corrcoef(
                    difference[:, :, :-step][deep[:, :, :-step] & deep[:, :, step:]],
                    difference[:, :, step:][deep[:, :, :-step] & deep[:, :, step:]],
                )[0, 1]
                for step in (1, 8)
            ]
            along = np.corrcoef(difference[:-1][deep[:-1] & deep[1:]], difference[1:][deep[:-1] & deep[1:]])[0, 1]
            assert 0.75 < alike[0] < along < 1.0 and abs(alike[1]) < 0.15
    assert spread["head"] == pytest.approx(60, rel=0.2) and spread["shaft"] < 3


def test_the_cortex_is_up_to_a_quarter_thicker_or_thinner():
    changes = PLAIN | STILL | {"shaft_cortex_mm": 4.0}
    even, varied = (
        ct_at(-20.0, changes | {"cortex_variation": share}, (1.0, 1.0, 1.2), (120, 130, 120)) for share in (0.0, 0.25)
    )
    matrix, difference = even[2], varied[0] - even[0]
    ijk = np.argwhere(even[1]["tibia"])
    depth = -signed_distances(ijk[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3], bone(4))
    change = difference[even[1]["tibia"]]
    touched = depth[np.abs(change) > 200]
    assert touched.min() > 4.0 * 0.75 - 1.2 and touched.max() < 4.0 * 1.25 + 1.2
    assert (change > 200).sum() > 50 and (change < -200).sum() > 50


def test_a_tissue_keeps_its_place_whatever_the_grid():
    """The same patient in another field of view, and on a mirrored grid, without the noise that every scan has anew."""
    person = replace(patients().person(4), tissue=patients().person(4).tissue | STILL)
    matrix = np.diag([1.0, 1.0, 2.0, 1.0])
    matrix[:3, 3] = [-60.0, -60.0, 90.0]
    hu = patients().ct(person, (24, 120, 120), matrix)[0].numpy()
    moved = matrix.copy()
    moved[:3, 3] += matrix[:3, :3] @ [8, 12, 4]
    part = patients().ct(person, (16, 100, 100), moved)[0].numpy()
    inner = (slice(2, -2), slice(3, -3), slice(3, -3))  # soft tissue is less exact on the border
    np.testing.assert_allclose(part[inner], hu[4:20, 12:112, 8:108][inner], atol=2.0)
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, 119
    mirrored = patients().ct(person, (24, 120, 120), matrix @ flip)[0].numpy()
    np.testing.assert_allclose(mirrored[:, :, ::-1], hu, atol=2.0)


# ---- bones beyond the joints ----


@pytest.fixture(scope="module", params=[0.0, 4.0])
def joints(request):
    """(gap in mm, {bone: {joint: (label, distance to the tibia in mm)}}) of both joints of a person."""
    gaps = STILL | {"knee_gap_mm": request.param, "ankle_gap_mm": request.param}
    heights = bone(4).vertices[:, 2]
    return request.param, {
        "femur": ct_at(heights.max() + 10, gaps, shape_mm=(120, 130, 60)),
        "talus": ct_at(heights.min() + 5, gaps, shape_mm=(120, 130, 60)),
    }


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_the_neighbour_stands_a_gap_away_from_the_tibia(joints, name):
    gap, scans = joints
    hu, labels, matrix = scans[name]
    points = np.argwhere(labels[name])[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
    distance = signed_distances(points, bone(4))
    assert 0.5 * gap - 0.4 < distance.min() < gap + 0.7  # the warp makes it a little narrower or wider
    # It is the tibia's counterpart: much of its surface is as close, and it lies beyond the joint.
    assert ((distance < gap + 1.2).sum() > 250) and not (labels[name] & (labels["tibia"] | labels["fibula"])).any()
    beyond = points[:, 2].mean() - bone(4).vertices[:, 2].mean()
    assert beyond > 150 if name == "femur" else beyond < -150
    volume_ml = labels[name].sum() / 1000
    assert (60 < volume_ml < 250) if name == "femur" else (12 < volume_ml < 45)
    inside = distance_transform_edt(labels[name])
    assert hu[inside > 6].mean() == pytest.approx(patients().person(4).tissue["cancellous_hu"], abs=60)
    assert hu[labels[name] & (inside < 1.5)].mean() > 400


def test_neighbours_can_be_left_out():
    _, labels, _ = ct_at(bone(4).vertices[:, 2].max() + 10, {"femur_size": 0.0})
    assert not labels["femur"].any() and not labels["talus"].any()


# ---- the scanner ----


def test_thick_slices_are_means_of_thin_ones():
    z = bone(4).vertices[:, 2].max()
    changes = STILL | {"knee_gap_mm": 2.0}
    thin, thick = (ct_at(z, changes, spacing=(1.0, 1.0, step))[0] for step in (1.0, 3.0))
    mean = thin.reshape(8, 3, *thin.shape[1:]).mean(1)
    assert np.abs(thick - mean).mean() < 6
    assert np.abs(thick - thin[1::3]).mean() > 2 * np.abs(thick - mean).mean()


def test_the_slice_thickness_blurs_along_the_table_only():
    z = bone(4).vertices[:, 2].max()
    sharp, blurred = (ct_at(z, STILL | {"slice_mm": thickness})[0] for thickness in (0.0, 3.0))
    assert np.abs(np.diff(blurred, axis=0)).max() < 0.7 * np.abs(np.diff(sharp, axis=0)).max()
    sharp, blurred = (ct_at(-20.0, PLAIN | STILL | {"slice_mm": thickness})[0] for thickness in (0.0, 3.0))
    for axis in (1, 2):
        steepest = [np.abs(np.diff(image[8:16], axis=axis)).max() for image in (sharp, blurred)]
        assert steepest[1] == pytest.approx(steepest[0], rel=0.1)


def test_the_noise_has_its_deviation_and_the_spectrum_of_a_scanner():
    noise = {}
    for slice_mm in (0.0, 3.0):
        scanner = STILL | {"slice_mm": slice_mm, "noise_peak_per_mm": 0.2}
        clean, noisy = (ct_at(0.0, scanner | {"noise_hu": hu})[0] for hu in (0.0, 25.0))
        noise[slice_mm] = noisy - clean
        assert noise[slice_mm].std() == pytest.approx(25, rel=0.03) and abs(noise[slice_mm].mean()) < 1
    power = (np.abs(np.fft.fft2(noise[0.0])) ** 2).mean(0)
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in power.shape), indexing="ij"))
    low, peak, high = (power[(radius >= a) & (radius < a + 0.04)].mean() for a in (0.0, 0.18, 0.44))
    assert peak > 2 * low and peak > 2 * high
    alike = [np.corrcoef(image[:-1].ravel(), image[1:].ravel())[0, 1] for image in noise.values()]
    assert abs(alike[0]) < 0.03 and alike[1] > 0.3


def test_a_periodic_field_has_unit_variance_its_correlation_and_no_seam():
    field = PeriodicField(torch.Generator().manual_seed(2), (2.0, 2.0, 6.0), "cpu")
    points = torch.as_tensor(np.random.default_rng(0).uniform(-500, 500, (50000, 3)), dtype=torch.float32)
    values = field.at(points)
    assert float(values.std()) == pytest.approx(1, abs=0.1) and abs(float(values.mean())) < 0.05
    for axis, length in enumerate((2.0, 2.0, 6.0)):
        # White noise smoothed by a Gaussian of s is correlated as exp(-d^2 / (4 s^2)).
        there = field.at(points + length * torch.eye(3)[axis])
        assert np.corrcoef(values, there)[0, 1] == pytest.approx(np.exp(-0.25), abs=0.08)
        period = PeriodicField.SIZE / PeriodicField.STEPS_PER_CORRELATION * length
        np.testing.assert_allclose(field.at(points + period * torch.eye(3)[axis]), values, atol=2e-3)
