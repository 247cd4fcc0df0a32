"""Tibiae are found and segmented in CTs of both legs with bones in contact, in parts of them, and nowhere else."""

import json
from dataclasses import replace

import numpy as np
import pytest

from BoneReconstructionLib import cli
from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import rotation_about, side_to_right, transform_points
from BoneReconstructionLib.meshing import isosurface
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.shapeprior import load_leg_prior
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, crop, read_volume, write_volume
from TibiaCompletionLib.evaluation import finding, legscenes, scans
from TibiaCompletionLib.evaluation.people import Leg
from TibiaCompletionLib.tibiafinding import find_tibiae

SPACING = np.array([1.6, 1.6, 2.4])


def blob(distance, low, high):
    """Closed surface of a signed distance function in a box, on a grid of 2 mm."""
    counts = np.ceil((np.array(high) - low) / 2.0).astype(int) + 1
    grid = np.stack(np.meshgrid(*(a + 2.0 * np.arange(n) for a, n in zip(low, counts)), indexing="ij"), -1)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = low
    return isosurface(Volume(-distance(grid).transpose(2, 1, 0).astype(np.float32), matrix), 0.0)


def femur(points):
    """Two condyles and a shaft above the origin."""
    x, y, z = np.moveaxis(points, -1, 0)
    condyles = [np.sqrt((x - s * 22) ** 2 + (0.8 * y) ** 2 + (z - 24) ** 2) - 24 for s in (-1, 1)]
    shaft = np.maximum(np.hypot(x, y) - 15 - 14 * np.exp(-z / 25), np.maximum(14 - z, z - 160))
    return np.minimum.reduce([*condyles, shaft])


def talus(points):
    """An ellipsoid below the origin."""
    return np.sqrt(((points + [0, 0, 14]) ** 2 / [1.0, 1.8, 0.7]).sum(-1)) - 15


def make_leg(side, seed):
    """A virtual leg that lies where it would in a patient, femur and talus touching the tibia."""
    prior = load_leg_prior("tibia-prior")
    generator = np.random.default_rng(seed)
    count = np.count_nonzero(prior.part == 0)
    # The last modes move the fibula beside the tibia.
    modes = 0.7 * generator.standard_normal(len(prior.modes))
    vertices = prior.shape(modes, 0.4 * generator.standard_normal((prior.vertex_basis.shape[1], 3)))
    place = np.eye(4)
    tilt = rotation_about((0.6, 0.8, 0.0), np.radians(generator.uniform(-6, 6)))
    place[:3, :3] = tilt @ rotation_about((0, 0, 1), np.radians(generator.uniform(-15, 15)))
    place[:3, 3] = (95.0, 12.0, -640.0 + 10 * seed)
    place = side_to_right(side) @ place
    tibia = Surface(vertices[:count], prior.faces[(prior.faces < count).all(1)])
    fibula = Surface(vertices[count:], prior.faces[(prior.faces >= count).all(1)] - count)
    locator = SurfaceLocator(tibia)
    knee = tibia.vertices[tibia.vertices[:, 2] > tibia.vertices[:, 2].max() - 12].mean(0)
    ankle = tibia.vertices[tibia.vertices[:, 2] < tibia.vertices[:, 2].min() + 14].mean(0)
    above, below = blob(femur, (-50, -35, -4), (50, 35, 170)), blob(talus, (-24, -32, -32), (24, 32, 2))
    femur_here = legscenes._touching(Surface(above.vertices + knee, above.faces), np.array([0, 0, -1.0]), locator)
    talus_here = legscenes._touching(Surface(below.vertices + ankle, below.faces), np.array([0, 0, 1.0]), locator)
    bones = {"fibula": fibula, "femur": femur_here, "talus": talus_here}
    axes = place[:3, :3].T
    return Leg(
        "virtual",
        side,
        transformed(tibia, place),
        {bone: transformed(surface, place) for bone, surface in bones.items()},
        None,
        transform_points(place, ankle[None])[0],
        axes,
        float(np.ptp(tibia.vertices[:, 2])),
    )


@pytest.fixture(scope="module")
def legs():
    return {side: make_leg(side, seed) for side, seed in (("right", 1), ("left", 2))}


@pytest.fixture(scope="module")
def scene(legs):
    """(CT, {side: bool volume}) of both legs on an oblique, anisotropic, left-handed grid."""
    right, left = legs.values()
    others = {f"other {bone}": surface for bone, surface in {"tibia": left.tibia, **left.neighbours}.items()}
    everything = [right.tibia, *right.neighbours.values(), left.tibia, *left.neighbours.values()]
    held = replace(right, tibia=Surface(np.concatenate([bone.vertices for bone in everything]), right.tibia.faces[:0]))
    grid = scans.oblique_grid(held, SPACING, np.random.default_rng(3), "ik" if np.linalg.det(right.axes) > 0 else "k")
    scan = scans.trained_scan(replace(right, neighbours=right.neighbours | others), (7,), grid)
    ct = Volume(scan.scanned(scan.sharp).astype(np.int16), scan.tibia.ijk_to_ras)
    return ct, {"right": scan.tibia, "left": scan.neighbours["other tibia"]}


@pytest.fixture(scope="module")
def both(scene):
    return find_tibiae(scene[0])


def heights(volume, mask):
    """(K,) height of each slice in RAS and which slices show a mask."""
    matrix = volume.ijk_to_ras
    return matrix[2, 2] * np.arange(volume.shape[0]) + matrix[2, 3], mask.any((1, 2))


def slices(scene, low, high, side=None):
    """The scene between two heights over the right tibia's lowest slice, mm; with a side, around that leg only."""
    ct, tibiae = scene
    z, shown = heights(ct, tibiae["right"].array)
    kept = np.flatnonzero((z > z[shown].min() + low) & (z < z[shown].min() + high))
    lower, upper = np.array([kept[0], 0, 0]), np.array([kept[-1] + 1, *ct.shape[1:]])
    if side is not None:
        columns = np.flatnonzero(tibiae[side].array[kept].any((0, 1)))
        lower[2], upper[2] = max(columns[0] - 22, 0), columns[-1] + 22
    return crop(ct, lower, upper), {name: crop(mask, lower, upper) for name, mask in tibiae.items()}


def test_a_threshold_merges_the_bones_of_the_scene(scene):
    from scipy import ndimage

    ct, tibiae = scene
    labels = ndimage.label(ct.array > 200)[0]
    for mask in tibiae.values():
        own = np.bincount(labels[mask.array])[1:].argmax() + 1
        assert np.count_nonzero(labels == own) > 1.3 * np.count_nonzero((labels == own) & mask.array)


def test_both_tibiae_are_found_with_their_sides_although_the_bones_touch(scene, both):
    ct, tibiae = scene
    assert [tibia.side for tibia in both] == ["right", "left"]
    for tibia in both:
        assert tibia.mask.array.dtype == bool
        assert np.array_equal(tibia.mask.ijk_to_ras, ct.ijk_to_ras)
        assert dice(tibia.mask.array, tibiae[tibia.side].array) > 0.95
        assert tibia.seen_share > 0.9
        assert tibia.rms_mm < 0.8


def test_the_pose_leads_from_the_standard_frame_to_the_bone_turned_right(scene, both):
    prior = load_leg_prior("tibia-prior")
    mean = prior.mean[prior.part == 0]
    for tibia in both:
        placed = transform_points(side_to_right(tibia.side) @ tibia.matrix, mean)
        true = scene[1][tibia.side]
        points = transform_points(true.ijk_to_ras, np.argwhere(true.array)[::50, ::-1])
        assert placed.min(0) == pytest.approx(points.min(0), abs=12)
        assert placed.max(0) == pytest.approx(points.max(0), abs=12)


def test_an_ankle_is_enough_and_shows_one_side_only(scene):
    ct, tibiae = slices(scene, -60, 130, "right")
    (found,) = find_tibiae(ct)
    assert found.side == "right"
    assert dice(found.mask.array, tibiae["right"].array) > 0.94
    assert 0.15 < found.seen_share < 0.65
    with pytest.raises(InputError, match="shows no left tibia but a right one"):
        find_tibiae(ct, "left")


def test_of_a_bare_shaft_the_side_must_be_given(scene):
    ct, tibiae = slices(scene, 130, 230, "left")
    with pytest.raises(InputError, match="side of the tibia cannot be told"):
        find_tibiae(ct)
    (found,) = find_tibiae(ct, "left")
    assert found.side == "left"
    assert dice(found.mask.array, tibiae["left"].array) > 0.94


def test_a_gap_in_the_shaft_is_no_bone_and_the_pieces_are(scene):
    ct, tibiae = slices(scene, -60, 480, "right")
    true = tibiae["right"].array
    z, shown = heights(ct, true)
    gap = np.abs(z - z[shown].mean()) < 15
    broken = ct.array.copy()
    broken[gap[:, None, None] & (broken > 120)] = 50
    broken[gap] = np.where(true[gap], 50, broken[gap])
    (found,) = find_tibiae(Volume(broken, ct.ijk_to_ras))
    inner = np.abs(z - z[shown].mean()) < 9
    assert np.count_nonzero(found.mask.array[inner]) < 0.1 * np.count_nonzero(true[inner])
    assert dice(found.mask.array[~gap], true[~gap]) > 0.94


def test_there_is_no_tibia_above_the_knee(scene):
    z, shown = heights(scene[0], scene[1]["left"].array | scene[1]["right"].array)
    lowest = z[heights(scene[0], scene[1]["right"].array)[1]].min()
    ct, _ = slices(scene, z[shown].max() - lowest + 6, 1000)
    with pytest.raises(InputError, match="No tibia was found"):
        find_tibiae(ct)


@pytest.mark.parametrize(
    "values, message",
    [
        (lambda hu: np.where(hu > 150, 50, hu), "not Hounsfield units"),
        (lambda hu: hu / 3000.0, "not Hounsfield units"),
        (lambda hu: hu + 1024, "not Hounsfield units"),
        (lambda hu: np.where(hu > 150, np.nan, hu), "not numbers"),
    ],
)
def test_soft_tissue_and_other_units_are_refused(scene, values, message):
    ct, _ = scene
    with pytest.raises(InputError, match=message):
        find_tibiae(Volume(values(ct.array.astype(np.float32)), ct.ijk_to_ras))


def test_the_command_finds_the_tibia_in_a_knees_scan_and_writes_a_labelmap_on_its_grid(scene, tmp_path):
    ct, tibiae = slices(scene, 230, 480, "left")
    write_volume(tmp_path / "ct.nii.gz", ct)
    folder = tmp_path / "out"
    assert cli.main(["find-tibia", "--ct", str(tmp_path / "ct.nii.gz"), "--output", str(folder)]) == 0
    labels = read_volume(folder / "tibiae.nii.gz")
    assert labels.array.dtype == np.uint8
    assert labels.ijk_to_ras == pytest.approx(ct.ijk_to_ras, abs=1e-3)
    assert set(np.unique(labels.array)) == {0, 2}
    assert dice(labels.array == 2, tibiae["left"].array) > 0.94
    result = json.loads((folder / "result.json").read_text())
    (found,) = result["found"]
    assert (found["side"], found["label"]) == ("left", 2)
    assert "look at it" in result["warnings"][0]


def test_a_leg_that_the_folder_lacks_is_a_mirror_image_beside_the_other(legs):
    leg = legs["right"]
    other = legscenes._mirrored(leg)
    assert other.side == "left"
    away = other.tibia.vertices.mean(0) - leg.tibia.vertices.mean(0)
    assert -200 < away[0] < -160
    outwards = other.neighbours["fibula"].vertices.mean(0) - other.tibia.vertices.mean(0)
    assert outwards[0] < 0  # a left fibula lies at the patient's left of its tibia


def test_neighbours_touch_the_tibia_and_do_not_enter_it(legs):
    leg = legs["left"]
    locator = SurfaceLocator(leg.tibia)
    for bone in ("femur", "talus"):
        assert 0 <= locator.signed(leg.neighbours[bone].vertices).min() < 0.1


def test_the_evaluation_tells_a_tibia_on_the_wrong_side_and_one_that_is_missing(scene, legs, both, monkeypatch):
    ct, tibiae = scene
    wrong = replace(both[0], side="left")
    monkeypatch.setattr(finding, "find_tibiae", lambda ct: [wrong])
    rows = {row["side"]: row for row in finding._measured(legscenes.LegScene(ct, legs, tibiae))}
    assert rows["right"]["found_side"] == "left"
    assert rows["right"]["dice"] > 0.95
    assert rows["right"]["assd_mm"] < 0.6
    assert rows["left"]["found_side"] == ""
    assert np.isnan(rows["left"]["dice"])
