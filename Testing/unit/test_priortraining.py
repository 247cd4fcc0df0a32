"""`bonerecon train prior`: each step on shapes whose answer is known, and the whole on a few synthetic people."""

import numpy as np
import pytest
from phantoms import sphere_surface
from tibiae import landmarks, pose, random_tibiae, tibia_prior

from BoneReconstructionLib import cli, modelzoo, priortraining, shapeprior
from BoneReconstructionLib.distances import closest_points, surface_distances
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.meshing import decimate
from BoneReconstructionLib.priortraining import (
    People,
    SharpBone,
    barycentric,
    on_template,
    place_fibulae,
    principal_modes,
    procrustes,
    shared_detail,
    smooth_people,
    subdivide,
    tibia_frame,
    train,
)
from BoneReconstructionLib.shapeprior import Kernel, load_prior
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, is_closed, transformed, volume_mm3

SIZES = np.array([0.9, 0.95, 1.0, 1.06, 1.12])


# ---- steps ----


def test_procrustes_takes_pose_and_size_away_and_keeps_the_shape():
    shape = tibia_prior().mean[::40]
    faces = np.array([[i, i + 1, i + 2] for i in range(len(shape) - 2)])
    bones = np.array(
        [
            transform_points(pose((5 * k, -3 * k, 40 * k), (10 * k, 200, -30 * k), size), shape)
            for k, size in enumerate(SIZES)
        ]
    )
    people = procrustes(bones, faces)
    np.testing.assert_allclose(people.shapes, np.broadcast_to(people.mean, people.shapes.shape), atol=1e-6)
    np.testing.assert_allclose(people.scales / people.scales[0], SIZES / SIZES[0], rtol=1e-6)
    assert np.log(people.scales).mean() == pytest.approx(0, abs=1e-9)
    # The mean has the people's geometric mean size.
    size = np.linalg.norm(people.mean - people.mean.mean(0)) / np.linalg.norm(shape - shape.mean(0))
    assert size == pytest.approx(np.exp(np.log(SIZES).mean()), rel=1e-6)


@pytest.mark.parametrize("tilt", [(0, 0, 0), (8, -6, 35), (-10, 5, -50)])
def test_a_tibia_is_put_upright_with_its_back_parallel_to_x(tilt):
    mean = tibia_prior().mean
    matrix = tibia_frame(transform_points(pose(tilt, (50, -80, 300)), mean))
    np.testing.assert_allclose(matrix[:3, :3].T @ matrix[:3, :3], np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix[:3, :3]) > 0
    turn = matrix[:3, :3] @ pose(tilt)[:3, :3]
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) < 4


def test_subdivision_keeps_the_vertices_and_the_shape():
    coarse = sphere_surface(20.0, (0, 0, 0), subdivisions=3)
    fine = subdivide(coarse.vertices, coarse.faces, times=2)
    np.testing.assert_allclose(fine.vertices[: len(coarse.vertices)], coarse.vertices, atol=1e-4)
    assert len(fine.faces) == 16 * len(coarse.faces)
    np.testing.assert_allclose(np.linalg.norm(fine.vertices, axis=1), 20, atol=0.05)


def test_barycentric_coordinates_give_the_points_back():
    generator = np.random.default_rng(0)
    corners, wanted = generator.normal(size=(50, 3, 3)) * 10, generator.dirichlet([1, 1, 1], 50)
    found = barycentric(np.einsum("nk,nkc->nc", wanted, corners), corners)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_modes_are_the_principal_components_with_their_spread():
    generator = np.random.default_rng(1)
    directions = np.linalg.qr(generator.normal(size=(60, 2)))[0].T.reshape(2, 20, 3)
    weights = generator.normal(size=(400, 2)) * [5.0, 2.0]
    mean, modes = principal_modes(np.tensordot(weights, directions, 1) + 7.0, 5)
    assert mean.shape == (20, 3) and modes.shape == (5, 20, 3)
    np.testing.assert_allclose(np.linalg.norm(modes[:2], axis=(1, 2)), [5, 2], rtol=0.1)
    assert abs((modes[0] * directions[0]).sum()) == pytest.approx(5, rel=0.1)
    assert np.abs(modes[2:]).max() < 1e-9
    assert len(principal_modes(np.zeros((4, 20, 3)), 25)[1]) == 3


def test_people_are_carried_to_an_even_template():
    coarse = decimate(Surface(tibia_prior().mean, tibia_prior().faces), 1500)
    nearest = closest_points(coarse.vertices, Surface(tibia_prior().mean, tibia_prior().faces))[2]
    corner = tibia_prior().faces[nearest, 0]
    bones = random_tibiae(40, 2)[:, corner]
    moved = on_template(People(bones, np.ones(2), coarse.faces), 5.0)
    template = Surface(moved.mean, moved.faces)
    assert is_closed(template) and volume_mm3(template) > 0
    for carried, person in zip(moved.shapes, bones, strict=True):
        fine = subdivide(person, coarse.faces)
        assert np.median(closest_points(carried, fine)[1]) < 0.3


def sharp(subject, detail):
    return SharpBone(subject, np.eye(4), np.zeros((len(detail), 3)), detail)


def test_detail_is_shared_as_far_as_people_agree():
    generator = np.random.default_rng(2)
    common, own = generator.normal(size=5000), generator.normal(size=(3, 5000))
    alike, shrinkage = shared_detail([sharp("a", common), sharp("b", common)])
    assert shrinkage == pytest.approx(1) and np.allclose(alike, common)
    strangers, nothing = shared_detail([sharp("a", own[0]), sharp("b", own[1])])
    assert nothing < 0.1 and np.abs(strangers).mean() < 0.1
    # Correlation 1/2 between two people: a third one is predicted with 2 * 0.5 / 1.5.
    _, half = shared_detail([sharp("a", common + own[0]), sharp("b", common + own[1])])
    assert half == pytest.approx(2 / 3, abs=0.05)


def test_both_sides_of_a_person_count_once_and_one_person_says_nothing():
    one = np.ones(50)
    detail, shrinkage = shared_detail([sharp("a", one), sharp("a", 3 * one)])
    assert shrinkage == 0 and not detail.any()


def test_fibulae_are_placed_beside_the_tibia_rigidly():
    tibia, fibula = tibia_prior().mean[::20], load_prior("tibia-prior", "fibula").mean
    lost = transform_points(pose((20, 10, 50), (300, -20, 80)), fibula)
    placed = place_fibulae(tibia[None], lost[None], np.array([1.0]), fibula, tibia)
    np.testing.assert_allclose(placed[0], fibula, atol=1e-6)
    larger = place_fibulae(tibia[None], lost[None], np.array([1.1]), fibula, tibia)[0]
    assert np.ptp(larger[:, 2]) == pytest.approx(1.1 * np.ptp(fibula[:, 2]), rel=0.01)


@pytest.mark.parametrize("winding", [1, -1])
def test_people_of_the_archive_become_right_ones_in_ras_with_faces_outward(winding):
    """The archive holds left bones in LPS."""
    mean, faces = tibia_prior().mean, tibia_prior().faces
    lps = transform_points(np.diag([-1.0, -1, 1, 1]) @ MIRROR, mean)
    file = {"tibia_vertices": lps[None].astype(np.float32), "tibia_faces": faces[:, ::winding]}
    vertices, outward = smooth_people(file, "tibia")
    np.testing.assert_allclose(vertices[0], mean, atol=1e-4)
    assert volume_mm3(Surface(vertices[0], outward)) > 0


# ---- the whole ----


def people_of(bone, count):
    """(coarse mesh's faces, (count, n, 3) right bones) of synthetic people, from the bundled prior."""
    prior = load_prior("tibia-prior", bone)
    mean = Surface(prior.mean, prior.faces)
    coarse = decimate(mean, 1600)
    corner = prior.faces[closest_points(coarse.vertices, mean)[2], 0]
    weights = np.random.default_rng(7).standard_normal((count, len(prior.modes)))
    shapes = prior.mean[corner] + np.tensordot(weights, prior.modes[:, corner], 1)
    return coarse.faces, shapes * SIZES[1 : count + 1, None, None]


@pytest.fixture(scope="module")
def bones(tmp_path_factory):
    """A folder of training bones: three smooth people, and two sharper ones, one of them with both sides."""
    folder = tmp_path_factory.mktemp("bones")
    arrays = {}
    for bone in ("tibia", "fibula"):
        faces, shapes = people_of(bone, 3)
        left = [transform_points(np.diag([-1.0, -1, 1, 1]) @ MIRROR, shape) for shape in shapes]
        arrays |= {f"{bone}_vertices": np.array(left, dtype=np.float32), f"{bone}_faces": faces}
        (folder / bone).mkdir()
        prior = load_prior("tibia-prior", bone)
        for subject, scale, sides in (("anna", 0.96, "LR"), ("bert", 1.04, "R")):
            for side in sides:
                right = Surface(prior.mean * scale, prior.faces)
                place = (MIRROR if side == "L" else np.eye(4)) @ pose((5, 4, 10), (90, 0, 500))
                write_surface(folder / bone / f"{subject}_{side}.ply", transformed(right, place))
    np.savez(folder / "llp26_left_leg.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def trained(bones, tmp_path_factory):
    """Model folder, card and reported stages; learned on a coarse template, from few points, with one kernel."""
    output = tmp_path_factory.mktemp("models") / "tiny-prior"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(priortraining, "TEMPLATE_SPACING_MM", {"tibia": 5.0, "fibula": 6.0})
        patch.setattr(priortraining, "KERNELS", (Kernel(1.5, (60.0, 60.0, 100.0)),))
        patch.setattr(shapeprior, "KERNEL_NODES", 200)

        class Progress:
            def report(self, stage, fraction):
                seen.append((stage, fraction))

        card = train(bones, output, progress=Progress())
    return output, card, seen


def test_the_trained_prior_is_a_model_that_loads(trained, monkeypatch):
    output, card, _ = trained
    monkeypatch.setenv("BONERECON_MODELS", str(output.parent))
    assert modelzoo.find_model("tiny-prior").state() == "ok"
    for bone in ("tibia", "fibula"):
        prior = load_prior("tiny-prior", bone)
        assert is_closed(Surface(prior.mean, prior.faces)) and volume_mm3(Surface(prior.mean, prior.faces)) > 0
        assert len(prior.modes) == card["figures"]["people"] - 1 == 4
    sampling = modelzoo.find_model("tiny-prior").tensors()["sampling"]
    assert sampling.shape == (5, 5) and np.isfinite(sampling).all()


def test_the_trained_prior_is_that_of_its_people(trained, monkeypatch):
    output, *_ = trained
    monkeypatch.setenv("BONERECON_MODELS", str(output.parent))
    prior, bundled = load_prior("tiny-prior", "tibia"), tibia_prior()
    distances = surface_distances(Surface(prior.mean, prior.faces), Surface(bundled.mean, bundled.faces))
    assert distances.assd < 3
    assert np.abs(prior.mean.mean(0)).max() < 8
    lateral = bundled.mean[landmarks().lateral_plateau].mean(0)
    near = prior.mean[np.linalg.norm(prior.mean - lateral, axis=1).argmin()]
    assert np.linalg.norm(near - lateral) < 8
    fibula = load_prior("tiny-prior", "fibula").mean
    assert np.linalg.norm(fibula.mean(0) - load_prior("tibia-prior", "fibula").mean.mean(0)) < 8


def test_the_card_tells_what_was_measured(trained):
    _, card, seen = trained
    figures = card["figures"]
    assert card["id"] == "tiny-prior"
    assert figures["left_out_people"]["whole"]["mean_assd_mm"] < 0.5
    for figure in figures["spread_of_1000_random_tibiae"].values():
        # So few people cannot be calibrated; the bundled prior's spread is tested with its sampling.
        assert figure["sd_ratio"] == pytest.approx(figure["sd"] / figure["published_sd"], abs=0.01)
        assert figure["source"]
    assert list(dict.fromkeys(stage for stage, _ in seen)) == list(priortraining.STAGES)[:3]


# ---- refusals ----


def refused(folder, output, capsys):
    assert cli.main(["train", "prior", "--bones", str(folder), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bonerecon: ") and error.count("\n") == 1
    assert not output.exists()
    return error


def test_a_folder_without_people_is_refused(tmp_path, capsys):
    assert "llp26_left_leg.npz" in refused(tmp_path, tmp_path / "model", capsys)
    assert "llp26_left_leg.npz" in refused(tmp_path / "none", tmp_path / "model", capsys)


def test_a_folder_without_sharper_bones_is_refused(bones, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(priortraining, "TEMPLATE_SPACING_MM", {"tibia": 8.0, "fibula": 8.0})
    (tmp_path / "llp26_left_leg.npz").write_bytes((bones / "llp26_left_leg.npz").read_bytes())
    refused(tmp_path, tmp_path / "model", capsys)


def test_a_bone_whose_name_tells_no_side_is_refused(bones, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(priortraining, "TEMPLATE_SPACING_MM", {"tibia": 8.0, "fibula": 8.0})
    (tmp_path / "llp26_left_leg.npz").write_bytes((bones / "llp26_left_leg.npz").read_bytes())
    (tmp_path / "tibia").mkdir()
    (tmp_path / "tibia" / "anna.ply").write_bytes((bones / "tibia" / "anna_R.ply").read_bytes())
    assert "anna.ply" in refused(tmp_path, tmp_path / "model", capsys)


def test_an_archive_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "llp26_left_leg.npz").write_bytes(b"not an archive")
    refused(tmp_path, tmp_path / "model", capsys)
