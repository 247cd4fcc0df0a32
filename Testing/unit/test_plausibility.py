"""What is refused or warned of because it is not one adult's tibia, alone in its segment and without metal."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from phantoms import frame, voxel_centres
from tibiae import ct_of, leg, random_tibiae, tibia_prior, unseen_tibia

from BoneReconstructionLib.distances import closest_points
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_normals
from BoneReconstructionLib.volumes import Volume, crop
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.completion import predict
from TibiaCompletionLib.plausibility import leak_warnings, leaks, likeness, metal_warnings, unusual_warnings
from TibiaCompletionLib.sidedness import detect_side

COARSE = frame((2.2, 2.4, 3.0), (12, -9, 28), "j")


def sentence_of(error):
    sentence = str(error.value)
    assert sentence.endswith(".") and sentence.count(". ") == 0, sentence
    return sentence


def whole_case(bone):
    return make_case(bone, Volume(np.zeros(bone.shape, dtype=bool), bone.ijk_to_ras), None, whole=True)


def capsules(*parts):
    """Bool volume, on an oblique grid, of rods with round ends: ((3,) start, (3,) end, radius) in mm."""
    points = np.array([end for start, stop, _ in parts for end in (start, stop)], dtype=float)
    ijk = points @ np.linalg.inv(COARSE[:3, :3]).T
    margin = 45.0 / np.linalg.norm(COARSE[:3, :3], axis=0)
    matrix = COARSE.copy()
    matrix[:3, 3] = COARSE[:3, :3] @ (ijk.min(0) - margin)
    shape = tuple(int(size) for size in np.ceil(np.ptp(ijk, axis=0) + 2 * margin)[::-1])
    centres = voxel_centres(shape, matrix)
    inside = np.zeros(shape, dtype=bool)
    for start, stop, radius in parts:
        start, along = np.array(start, dtype=float), np.subtract(stop, start)
        share = np.clip((centres - start) @ along / max(along @ along, 1e-9), 0, 1)
        inside |= np.linalg.norm(centres - start - share[..., None] * along, axis=-1) < radius
    return Volume(inside, matrix)


def femur():
    """Shaft with a bow, head on its neck, greater trochanter and two condyles."""
    rods = [
        ((0, 0, 30), (0, 8, 200), 14),
        ((0, 8, 200), (0, 0, 390), 15),
        ((0, 0, 390), (-42, 4, 425), 14),
        ((-45, 4, 428), (-45, 4, 428), 24),
        ((12, -4, 395), (8, -8, 412), 17),
        ((0, 2, 60), (0, 2, 25), 24),
        ((-24, -12, 20), (-24, 14, 24), 20),
        ((24, -12, 22), (24, 14, 26), 20),
    ]
    return capsules(*rods)


def humerus():
    return capsules(
        ((0, 0, 0), (0, 4, 160), 10),
        ((0, 4, 160), (0, 0, 290), 12),
        ((-8, 0, 305), (-8, 0, 305), 23),
        ((10, 4, 295), (10, 4, 290), 16),
        ((-28, 0, 5), (26, 0, 5), 8),
        ((-10, 3, -4), (16, 3, -4), 10),
    )


def fibula():
    prior = load_prior("tibia-prior", "fibula")
    one = leg("left", COARSE)
    placed = transformed(Surface(prior.mean, prior.faces), one.ras_from_standard)
    return voxelize(placed, one.bone.shape, one.bone.ijk_to_ras)


# ---- an adult's tibia ----


@pytest.mark.parametrize("seed, part", [(3, "whole"), (4, "knee"), (5, "ankle")])
def test_tibiae_of_virtual_people_pass(seed, part):
    vertices = random_tibiae(seed, 1)[0]
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    band = {"whole": (low, high), "knee": (high - 150, high), "ankle": (low, low + 150)}[part]
    one = leg("right", COARSE, shown_mm=band, surface=Surface(vertices, tibia_prior().faces))
    side, _, warnings = detect_side(whole_case(one.bone), "auto")
    assert (side, warnings) == ("right", [])


def test_a_bone_between_usual_and_refused_is_called_unlike_the_training_people():
    usual = likeness(whole_case(scaled_tibia(360.0)).visible("left"))
    assert unusual_warnings(usual) == []
    for strange in (replace(usual, distance_mm=1.0), replace(usual, deviation=2.0)):
        (sentence,) = unusual_warnings(strange)
        assert "unlike" in sentence and "larger errors" in sentence
    shaft_alone = replace(usual, deviation=2.0, shown=(0.3, 0.7))
    assert unusual_warnings(shaft_alone) == []


def test_a_small_adults_tibia_passes():
    assert detect_side(whole_case(scaled_tibia(300.0)), "left")[0] == "left"


def scaled_tibia(length_mm):
    mean = tibia_prior().mean
    return leg("left", COARSE, surface=Surface(mean * length_mm / np.ptp(mean[:, 2]), tibia_prior().faces)).bone


@pytest.mark.parametrize(
    "other, side",
    [(fibula, "auto"), (femur, "right"), (humerus, "left")],
    ids=["fibula", "femur", "humerus"],
)
def test_another_bone_is_refused(other, side):
    with pytest.raises(InputError) as error:
        detect_side(whole_case(other()), side)
    assert "not the shape of an adult tibia" in sentence_of(error)


@pytest.mark.parametrize("length_mm", [200, 276])
def test_a_childs_tibia_is_refused_with_its_length(length_mm):
    with pytest.raises(InputError) as error:
        detect_side(whole_case(scaled_tibia(length_mm)), "left")
    sentence = sentence_of(error)
    assert "children" in sentence and "280 mm or more" in sentence
    assert int(sentence.split("about ")[1].split(" mm")[0]) == pytest.approx(length_mm, rel=0.2)


def test_the_likeness_knows_what_is_shown():
    one = leg("left", COARSE, shown_mm=(20.0, np.inf))
    found = likeness(whole_case(one.bone).visible("left"))
    height = unseen_tibia().vertices[:, 2]
    assert found.shown[0] == pytest.approx((20 - height.min()) / np.ptp(height), abs=0.05)
    assert found.shown[1] == pytest.approx(1.0, abs=0.02)
    assert found.length_mm == pytest.approx(np.ptp(height), rel=0.08)


# ---- leaks ----


@cache
def broken(side="left"):
    return leg(side, gap_mm=(-20.0, 20.0))


def place_of(name):
    """Index of a vertex of the standard tibia."""
    vertices = unseen_tibia().vertices
    x, y, z = vertices.T
    return {
        "proximal third, lateral": np.argmax(x - 5 * abs(z - z.max() + 25)),
        "proximal third, above the bone": np.argmax(z),
        "shaft, posterior": np.argmin(y + 5 * abs(z + 50)),
        "distal third, anterior": np.argmax(y - 5 * abs(z - z.min() - 30)),
    }[name]


def leaking(name, radius_mm=10.0, side="left"):
    """(case whose segment has a ball on the bone's surface, volume in mL of the ball that is no bone, its centre)."""
    one = broken(side)
    vertex = place_of(name)
    centre = one.truth.vertices[vertex] + 0.5 * radius_mm * vertex_normals(one.truth)[vertex]
    ball = np.linalg.norm(voxel_centres(one.bone.shape, one.bone.ijk_to_ras) - centre, axis=-1) < radius_mm
    extra = ball & ~one.bone.array & ~one.gap.array
    volume_ml = extra.sum() * abs(np.linalg.det(one.bone.ijk_to_ras[:3, :3])) / 1000
    segment = Volume(one.tibia.array | extra, one.bone.ijk_to_ras)
    return make_case(segment, one.gap, ct_of(one.tibia)), volume_ml, centre


def found_leaks(case, side):
    """What lies outside the healthy bone."""
    return leaks(case, side, transformed(broken(side).truth, side_to_right(side)))


@pytest.mark.parametrize(
    "name, side",
    [
        ("proximal third, lateral", "left"),
        ("proximal third, above the bone", "right"),
        ("shaft, posterior", "left"),
        ("distal third, anterior", "right"),
        ("proximal third, lateral", "right"),
    ],
)
def test_a_leak_is_found_and_its_place_named(name, side):
    case, volume_ml, centre = leaking(name, side=side)
    found = found_leaks(case, side)
    assert found.place == name
    assert 0.4 * volume_ml < found.volume_ml < volume_ml
    assert np.linalg.norm(case.surface.vertices[found.vertices] - centre, axis=1).max() < 17
    sentence = leak_warnings(found)[0]
    assert name in sentence and f"{found.volume_ml:.1f} mL" in sentence


def test_a_clean_segment_does_not_leak():
    one = broken()
    found = found_leaks(make_case(one.tibia, one.gap, None), "left")
    assert (found.volume_ml, found.place, found.vertices.any()) == (0.0, "", False)
    assert leak_warnings(found) == []


def test_what_leaks_is_warned_of_and_not_believed():
    case, *_, centre = leaking("proximal third, lateral", 12.0)
    _, completion, warnings = predict(case, "left")
    assert len(warnings) == 1 and "leaks out of the tibia (proximal third, lateral" in warnings[0]
    predicted = transformed(completion.surface, side_to_right("left"))
    near = np.linalg.norm(predicted.vertices - centre, axis=1) < 25
    assert near.sum() > 50
    assert closest_points(predicted.vertices[near], broken().truth)[1].max() < 2.0  # a voxel is 2.2 to 3 mm


def test_a_fragment_beside_its_place_is_no_leak():
    one = broken()
    beside = one.tibia.array.copy()
    centre = one.truth.vertices[place_of("shaft, posterior")]
    outward = vertex_normals(one.truth)[place_of("shaft, posterior")]
    fragment = np.linalg.norm(voxel_centres(one.bone.shape, one.bone.ijk_to_ras) - centre - 14 * outward, axis=-1) < 8
    beside |= fragment
    case = make_case(Volume(beside, one.bone.ijk_to_ras), one.gap, None)
    assert len(case.piece_volumes_ml) == 3
    assert found_leaks(case, "left").volume_ml == 0


def with_fibula(away_mm):
    one, prior = broken(), load_prior("tibia-prior", "fibula")
    moved = Surface(prior.mean + [away_mm, 0.0, 0.0], prior.faces)
    beside = voxelize(transformed(moved, one.ras_from_standard), one.bone.shape, one.bone.ijk_to_ras).array
    return make_case(Volume(one.tibia.array | beside, one.bone.ijk_to_ras), one.gap, None)


@pytest.mark.parametrize("away_mm", [-2.0, 3.0], ids=["touching", "apart"])
def test_a_segment_with_a_further_bone_in_it_is_refused(away_mm):
    with pytest.raises(InputError) as error:
        leak_warnings(found_leaks(with_fibula(away_mm), "left"))
    assert "as a further bone would" in sentence_of(error)


def test_a_further_bone_is_refused_before_the_prediction():
    with pytest.raises(InputError, match="segment"):
        predict(with_fibula(-2.0), "left")


# ---- metal ----


def metal_case(hu, inside):
    """A leg with a rod of 4 mm radius along the standard axis of its shaft, in the bone or 60 mm beside it."""
    one = broken()
    centres = voxel_centres(one.bone.shape, one.bone.ijk_to_ras)
    standard = centres @ np.linalg.inv(one.ras_from_standard)[:3, :3].T + np.linalg.inv(one.ras_from_standard)[:3, 3]
    middle = unseen_tibia().vertices
    middle = middle[np.abs(middle[:, 2] - 60) < 20].mean(0) + [0.0 if inside else 60.0, 0, 0]
    rod = (np.linalg.norm(standard[..., :2] - middle[:2], axis=-1) < 4) & (np.abs(standard[..., 2] - 60) < 20)
    ct = Volume(np.where(rod, hu, one.ct.array).astype(np.int16), one.bone.ijk_to_ras)
    case = make_case(one.tibia, one.gap, lambda lower, upper: crop(ct, lower, upper))
    return case, rod.sum() * abs(np.linalg.det(one.bone.ijk_to_ras[:3, :3])) / 1000


def test_metal_in_the_bone_is_warned_of_with_its_volume():
    case, volume_ml = metal_case(3071, inside=True)
    warnings = metal_warnings(case)
    assert len(warnings) == 1 and f"{volume_ml:.1f} mL of metal" in warnings[0] and "streaks" in warnings[0]


def test_dense_bone_is_no_metal():
    assert metal_warnings(metal_case(2000, inside=True)[0]) == []


def test_metal_away_from_the_bone_is_not_mentioned():
    assert metal_warnings(metal_case(3071, inside=False)[0]) == []


def test_a_segment_of_metal_is_refused():
    case, _ = metal_case(1200, inside=True)
    hot = Volume(np.full(case.tibia.shape, 3071, dtype=np.int16), case.tibia.ijk_to_ras)
    with pytest.raises(InputError) as error:
        metal_warnings(replace(case, read_ct=lambda: hot))
    assert "metal, not bone" in sentence_of(error)
