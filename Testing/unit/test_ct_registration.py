"""`bonerecon register-ct`: a CT in a known pose is found in its X-rays, and what does not belong together is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ctphantoms import BONE, FRAMES, MIDDLE, NEIGHBOUR, ct, mask, pose, surface_points, views, xrays

from BiplanarReconLib.ctregistration import FILES, TRANSFORM
from BiplanarReconLib.registration.bone import bone_of
from BiplanarReconLib.registration.pictures import COLOR, edges, overlay
from BiplanarReconLib.registration.registration import COARSE, CtRegistrar
from BiplanarReconLib.registration.search import STEP_MM, places
from BiplanarReconLib.registration.views import views_of
from BoneReconstructionLib.cli import main
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.radiographs import Radiograph, write_radiograph
from BoneReconstructionLib.transformfiles import read_transform, write_transform
from BoneReconstructionLib.volumes import Volume, write_volume
from BoneReconstructionLib.xraygeometryfiles import write_geometry

# A start of 11 mm and 9 degrees.
TURN, SHIFT = np.radians((5.0, -6.0, 4.5)), np.array([8.0, -5.0, 6.0])


def error_mm(found, truth):
    points = surface_points()
    return np.linalg.norm(transform_points(found, points) - transform_points(truth, points), axis=1).mean()


@pytest.fixture(scope="module")
def shots():
    return xrays(ct(), pose(), views())


@pytest.fixture(scope="module")
def registrar():
    return CtRegistrar(ct(), mask())


def started(registrar, truth):
    return registrar.bone.turned(truth, TURN, SHIFT)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_bone_is_found_whatever_the_grid_of_its_ct(frame):
    volume, truth = ct(FRAMES[frame]), pose()
    own = CtRegistrar(volume, mask())
    found = own.register(xrays(volume, truth, views()), views(), started(own, truth))
    assert error_mm(found.pose, truth) < 0.6
    assert min(found.correlations) > 0.7 and max(found.residuals_mm) <= 1 and min(found.shown) > 0.99
    assert not found.warnings and found.moved == pytest.approx((np.linalg.norm(SHIFT), 9.0), abs=1)
    assert np.allclose(found.pose[:3, :3] @ found.pose[:3, :3].T, np.eye(3))


def test_the_neighbour_may_lie_elsewhere_than_in_the_ct(registrar):
    # Turned and 6 mm further away, as another posture has it.
    moved = [((x + 3, y - 4, z + 6), axes, hu) for (x, y, z), axes, hu in NEIGHBOUR]
    truth = pose()
    found = registrar.register(xrays(ct(solids=(*BONE, *moved)), truth, views()), views(), started(registrar, truth))
    assert error_mm(found.pose, truth) < 0.8 and not found.warnings


def test_all_bone_of_a_cropped_ct_is_found_without_a_mask(shots):
    own = CtRegistrar(ct(half_mm=(45.0, 45.0, 22.0)))
    found = own.register(shots, views(), started(own, pose()))
    assert error_mm(found.pose, pose()) < 0.8


def test_without_a_start_the_bone_begins_where_the_central_rays_meet(registrar, shots):
    start = registrar.start(views())
    assert np.allclose(transform_points(start, registrar.bone.centre[None])[0], 0, atol=1e-6)
    assert np.array_equal(start[:3, :3], np.eye(3))
    assert error_mm(registrar.register(shots, views()).pose, pose()) < 0.6


def test_the_unit_of_the_x_rays_does_not_matter(registrar, shots):
    other = [
        replace(one, line_integrals=gain * one.line_integrals) for one, gain in zip(shots, (7.0, 0.4), strict=True)
    ]
    found = registrar.register(other, views(), started(registrar, pose()))
    assert error_mm(found.pose, pose()) < 0.6


def test_what_a_collimator_covers_does_not_count(registrar, shots):
    covered = []
    for one in shots:
        seen, values = one.seen.copy(), one.line_integrals.copy()
        seen[:, :40] = seen[-30:] = False
        values[~seen] = np.random.default_rng(1).uniform(0, 12, np.count_nonzero(~seen))
        covered.append(replace(one, seen=seen, line_integrals=values))
    found = registrar.register(covered, views(), started(registrar, pose()))
    assert error_mm(found.pose, pose()) < 0.6


def test_the_search_finds_a_shift_and_a_turn_by_itself(registrar, shots):
    truth = pose()
    start = registrar.bone.turned(truth, np.radians((0.0, 10.0, 0.0)), np.array([-16.0, 12.0, 14.0]))
    seen = [views_of(one, view, np.zeros(3), [COARSE.pixel_mm])[0] for one, view in zip(shots, views(), strict=True)]
    found = places(registrar.bone.projector(COARSE.voxel_mm), registrar.bone, seen, start)
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)
    gap, angle = registrar.bone.apart(found[0][1], truth)
    assert gap < STEP_MM and angle < 12


def test_progress_is_reported_in_order(registrar, shots):
    told = []
    registrar.register(shots, views(), started(registrar, pose()), lambda *one: told.append(one))
    assert [name for name, _ in told] == sorted(name for name, _ in told)
    assert [fraction for name, fraction in told if name == "fitting the pose"][-1] == 1


@pytest.mark.parametrize("solid", [((0, 0, 0), (9, 9, 40), 900), ((0, 0, 0), (15, 15, 15), 900)], ids=["rod", "ball"])
def test_a_bone_of_another_shape_is_not_presented_as_good(shots, solid):
    own = CtRegistrar(ct(solids=(solid,)))
    try:
        found = own.register(shots, views(), started(own, pose()))
    except InputError as error:
        assert "not found" in str(error)
    else:
        assert found.warnings


def test_x_rays_without_the_bone_are_refused(registrar):
    empty = xrays(ct(solids=()), pose(), views())
    with pytest.raises(InputError, match="not found in the X-rays"):
        registrar.register(empty, views(), started(registrar, pose()))


def test_a_start_too_far_away_is_refused(registrar, shots):
    with pytest.raises(InputError, match="outside an X-ray's field of view"):
        registrar.register(shots, views(), registrar.bone.turned(pose(), np.zeros(3), np.array([0, 0, 160.0])))


def test_x_rays_whose_field_of_view_misses_the_bone_are_refused(registrar):
    # They end just below the bone's middle, or above all of it.
    truth = pose(shift=(0, 0, 0))
    for height, words in ((95.0, "one X-ray misses the bone"), (150.0, "outside an X-ray's field of view")):
        high = views((0, 0, height))
        with pytest.raises(InputError, match=words):
            registrar.register(xrays(ct(), truth, high), high, truth)


def test_impossible_input_is_refused(registrar, shots):
    scaled = np.diag([1.1, 1, 1, 1])
    with pytest.raises(InputError, match="not rigid"):
        registrar.register(shots, views(), scaled)
    with pytest.raises(InputError, match="not rigid"):
        registrar.register(shots, views(), np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(InputError, match="starting transform"):
        registrar.register(shots, [replace(view, anatomical=False) for view in views()])
    with pytest.raises(InputError, match="parallel"):
        registrar.register(shots, [views()[0], views()[0]])
    blind = [replace(one, seen=np.zeros_like(one.seen)) for one in shots]
    with pytest.raises(InputError, match="hardly anything"):
        registrar.register(blind, views())


def test_a_ct_without_bone_is_refused():
    with pytest.raises(InputError, match="hardly any bone: check that it is in HU"):
        CtRegistrar(ct(solids=()))
    away = mask()
    away.ijk_to_ras[:3, 3] -= [0.0, 0.0, 36.0]
    with pytest.raises(InputError, match="hardly any bone in the mask"):
        CtRegistrar(ct(), away)


def test_coarse_voxels_keep_the_mass_and_its_place():
    bone = bone_of(ct(FRAMES["anisotropic and oblique"]), mask())
    view = views(tuple(bone.centre))[0]
    fine, coarse = (bone.projector(size)(view).sum(dtype=float) for size in (1.0, 5.0))
    assert coarse == pytest.approx(fine, rel=0.01)
    points, shares = bone.samples
    assert shares.sum() == pytest.approx(1) and np.allclose(shares @ points, bone.centre, atol=0.1)
    assert np.linalg.norm(bone.centre - MIDDLE) < 12 and 10 < bone.radius_mm < 30


def test_a_turn_about_the_centre_moves_the_centre_by_the_shift_alone():
    bone = bone_of(ct(), mask())
    other = bone.turned(pose(), np.radians((0.0, 0.0, 30.0)), np.array([3.0, 0.0, 4.0]))
    assert bone.apart(other, pose()) == pytest.approx((5.0, 30.0))


def test_the_picture_shows_the_edges_of_the_projection():
    row, column = np.indices((80, 90))
    disc = np.clip(20 - np.hypot(row - 40, column - 45), 0, 1)
    found = np.argwhere(edges(disc, 1.5))
    radius = np.hypot(found[:, 0] - 40, found[:, 1] - 45)
    assert len(found) > 80 and np.abs(radius - 19.5).max() < 1.6
    seen = np.ones(disc.shape, bool)
    seen[:, :45] = False
    view = views()[0].resized(disc.shape)
    image = overlay(Radiograph(disc.astype(np.float32), seen, (1.0, 1.0)), view, disc, 0.5)
    drawn = (image == COLOR).all(2)
    assert drawn[:, 45:].any() and not drawn[:, :45].any()


@pytest.fixture(scope="module")
def case(tmp_path_factory, shots):
    folder = tmp_path_factory.mktemp("Röntgen und CT")
    write_volume(folder / "ct.nii.gz", ct())
    labels = mask()
    write_volume(folder / "labels.nii.gz", Volume(labels.array.astype(np.uint8) * 3, labels.ijk_to_ras))
    for name, one, view in zip(("ap", "lateral"), shots, views(), strict=True):
        write_radiograph(folder / f"{name}.nrrd", one)
        write_geometry(folder / f"{name}.json", view)
    return folder


def command(case, output, *arguments):
    files = [f"--{kind}={case / kind}.nrrd" for kind in ("ap", "lateral")]
    files += [f"--{kind}-geometry={case / kind}.json" for kind in ("ap", "lateral")]
    return main(["register-ct", "--ct", str(case / "ct.nii.gz"), *files, "--output", str(output), *arguments])


def test_the_command_delivers_a_transform_pictures_and_figures(case, registrar, capsys):
    write_transform(case / "start.tfm", started(registrar, pose()))
    segmentation = ("--segmentation", f"{case / 'labels.nii.gz'}:3")
    assert command(case, case / "out", *segmentation, "--start", str(case / "start.tfm")) == 0
    assert sorted(path.name for path in (case / "out").iterdir()) == sorted(FILES)
    found = read_transform(case / "out" / TRANSFORM)
    assert error_mm(found, pose()) < 0.6
    result = json.loads((case / "out" / "result.json").read_text("utf-8"))
    assert np.allclose(result["ct_to_xrays_ras"], found, atol=1e-4)
    assert set(result["residual_mm"]) == {"ap", "lateral"} and min(result["correlation"].values()) > 0.7
    assert result["turned_deg"] == pytest.approx(9, abs=1) and result["warnings"] == []
    lines = [json.loads(line)["progress"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert lines == sorted(lines) and lines[-1] == 1
    assert command(case, case / "out") == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_refused_command_leaves_nothing_behind(case, capsys):
    write_transform(case / "far.tfm", np.eye(4))
    assert command(case, case / "none", "--start", str(case / "far.tfm")) == 2
    assert "field of view" in capsys.readouterr().err and not (case / "none").exists()
    assert command(case, case / "none", "--segmentation", f"{case / 'labels.nii.gz'}:9") == 2
    assert "no label 9" in capsys.readouterr().err
