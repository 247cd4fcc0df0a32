"""From the CT of a fractured tibia to the predicted healthy bone: through files, for both sides, and all refusals."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import frame
from tibiae import COARSE, ct_of, landmarks, leg, random_tibiae, tibia_prior, unseen_tibia
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOPLY import vtkPLYReader
from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

from BoneReconstructionLib import cli, jobs, volumes
from BoneReconstructionLib.distances import surface_distances
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, is_closed, volume_mm3
from BoneReconstructionLib.tibiameasurements import DEFINITIONS
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import Volume, crop, read_geometry, read_mask, read_volume, write_volume
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.completion import DEFAULT_METHOD, FILES, METHODS, STAGES, predict
from TibiaCompletionLib.scanend import beyond_scan_mm
from TibiaCompletionLib.sidedness import detect_side

FINE = frame((0.6, 0.6, 1.0), (10, -8, 28))  # left-handed once mirrored for the left leg
LPS = np.array([-1.0, -1.0, 1.0])


def write_case(folder, one_leg):
    folder.mkdir(exist_ok=True)
    write_volume(folder / "ct.nii.gz", one_leg.ct)
    write_volume(folder / "tibia.nii.gz", one_leg.tibia)
    write_volume(folder / "fracture.nii.gz", one_leg.gap)
    return folder


def arguments(folder, output, **changed):
    """The command line after `bonerecon`; keywords replace or add options."""
    options = {name: folder / f"{name}.nii.gz" for name in ("ct", "tibia", "fracture")} | {"output": output} | changed
    return ["complete-tibia", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def complete(folder, output, **changed):
    """Runs the command line in this process and returns result.json."""
    assert cli.main(arguments(folder, output, **changed)) == 0
    return json.loads((output / "result.json").read_text("utf-8"))


def raw_points(path):
    """Vertices as they stand in a PLY file."""
    reader = vtkPLYReader()
    reader.SetFileName(str(path))
    reader.Update()
    return vtk_to_numpy(reader.GetOutput().GetPoints().GetData()).astype(float)


def gap_error(one_leg, predicted, half_mm=30.0):
    """Mean distance in mm between prediction and truth inside the gap, both directions."""
    distances = surface_distances(predicted, one_leg.truth)
    inside = [np.abs(one_leg.heights(surface.vertices)) < half_mm for surface in (predicted, one_leg.truth)]
    return (np.abs(distances.a_to_b[inside[0]]).mean() + np.abs(distances.b_to_a[inside[1]]).mean()) / 2


# ---- a left tibia with a gap of 60 mm, on an oblique left-handed CT of 0.6 x 0.6 x 1 mm ----


@pytest.fixture(scope="module")
def fine():
    return leg("left", FINE, margin_mm=12.0)


@pytest.fixture(scope="module")
def delivered(fine, tmp_path_factory):
    """Output folder and standard output of the command, run in a process that cannot import torch and slicer."""
    folder = write_case(tmp_path_factory.mktemp("fine leg"), fine)
    absent = tmp_path_factory.mktemp("absent")
    for name in ("torch", "slicer"):
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name!r}', name={name!r})")
    process = subprocess.run(
        [sys.executable, "-m", "BoneReconstructionLib", *arguments(folder, folder / "out" / "deeper")],
        check=False,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(absent), *filter(None, sys.path)])},
        cwd=absent,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    return folder / "out" / "deeper", process.stdout


@pytest.fixture(scope="module")
def result(delivered):
    return json.loads((delivered[0] / "result.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def predicted(delivered):
    return read_surface(delivered[0] / "tibia.ply")


def test_exactly_the_files_that_were_announced_are_delivered(delivered):
    assert {path.name for path in delivered[0].iterdir()} == set(FILES)


def test_progress_is_reported_through_all_stages(delivered):
    reports = [json.loads(line) for line in delivered[1].splitlines() if line.startswith("{")]
    progress = [report["progress"] for report in reports]
    assert list(dict.fromkeys(report["stage"] for report in reports)) == list(STAGES)
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert len(reports) > 8


def test_the_gap_is_filled_within_six_tenths_of_a_millimetre(fine, predicted):
    assert gap_error(fine, predicted) <= 0.6
    assert is_closed(predicted) and volume_mm3(predicted) > 0


def test_the_labelmap_has_the_geometry_of_the_ct(delivered, fine):
    shape, ijk_to_ras = read_geometry(delivered[0] / "tibia.nii.gz")
    ct_shape, ct_ijk_to_ras = read_geometry(delivered[0].parents[1] / "ct.nii.gz")
    assert shape == ct_shape == fine.bone.shape
    np.testing.assert_allclose(ijk_to_ras, ct_ijk_to_ras, atol=1e-4)
    assert np.linalg.det(ijk_to_ras[:3, :3]) < 0


def test_labelmap_and_bone_agree_outside_the_gap(delivered, fine, result):
    label = read_volume(delivered[0] / "tibia.nii.gz").array
    assert label.dtype == np.uint8 and set(np.unique(label)) == {0, 1}
    outside = ~fine.gap.array
    overlap = dice(label.astype(bool) & outside, fine.bone.array & outside)
    assert overlap >= 0.95
    assert result["metrics"]["dice_visible"]["value"] == pytest.approx(overlap, abs=1e-3)


def test_the_labelmap_is_whole_again(delivered, fine):
    label = read_mask(delivered[0] / "tibia.nii.gz").array
    assert dice(label & fine.gap.array, fine.bone.array & fine.gap.array) > 0.93


def test_the_mesh_is_written_in_lps_at_the_place_of_the_bone(delivered, fine, predicted):
    points = raw_points(delivered[0] / "tibia.ply")
    np.testing.assert_allclose(points * LPS, predicted.vertices)
    np.testing.assert_allclose((points * LPS).mean(0), fine.truth.vertices.mean(0), atol=2)
    np.testing.assert_allclose((points * LPS).min(0), fine.truth.vertices.min(0), atol=4)
    assert b"SPACE=LPS" in (delivered[0] / "tibia.ply").read_bytes()[:400]


def test_mesh_and_labelmap_show_the_same_bone(delivered, predicted):
    label = read_mask(delivered[0] / "tibia.nii.gz")
    assert dice(voxelize(predicted, label.shape, label.ijk_to_ras).array, label.array) > 0.999


def test_the_heat_map_has_no_figures_where_bone_is_masked(delivered, fine, predicted):
    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(delivered[0] / "tibia.vtp"))
    reader.Update()
    polydata = reader.GetOutput()
    np.testing.assert_allclose(vtk_to_numpy(polydata.GetPoints().GetData()) * LPS, predicted.vertices, atol=1e-3)
    distance = vtk_to_numpy(polydata.GetPointData().GetArray("DistanceToVisibleBone_mm"))
    beyond = np.abs(fine.heights(predicted.vertices)) - 30
    assert np.isnan(distance[beyond < -0.5]).all()
    assert np.isfinite(distance[beyond > 5]).all()
    assert np.nanpercentile(np.abs(distance), 95) < 1


def test_the_transform_takes_the_tibia_to_the_standard_frame(fine, result):
    """A left tibia comes to lie as a right one: plateau above, lateral side at the patient's right, front in front."""
    ras_to_standard = np.array(result["ras_to_standard"])
    size = np.cbrt(np.abs(np.linalg.det(ras_to_standard[:3, :3])))
    np.testing.assert_allclose(ras_to_standard[:3, :3].T @ ras_to_standard[:3, :3], size**2 * np.eye(3), atol=1e-9)
    np.testing.assert_array_equal(ras_to_standard[3], [0, 0, 0, 1])
    standard = transform_points(ras_to_standard, fine.truth.vertices)
    places, mean = landmarks(), tibia_prior().mean
    for indices in vars(places).values():
        np.testing.assert_allclose(standard[indices].mean(0)[:2], mean[indices].mean(0)[:2], atol=9)
    lateral, medial = (standard[side].mean(0) for side in (places.lateral_plateau, places.medial_plateau))
    assert lateral[0] - medial[0] > 25
    assert medial[2] - standard[places.plafond].mean(0)[2] > 250
    turn = ras_to_standard[:3, :3] @ fine.ras_from_standard[:3, :3] / size
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) < 6


def test_the_record_lets_the_run_be_repeated(delivered, result):
    folder = delivered[0].parents[1]
    card = find_model("tibia-prior").card
    assert result["version"] == VERSION
    assert result["inputs"] == {name: str(folder / f"{name}.nii.gz") for name in ("ct", "tibia", "fracture")}
    assert result["settings"] == {
        "side": "auto",
        "method": DEFAULT_METHOD,
        "fixed_piece": 1,
        "beyond_scan": False,
        "accept_side": False,
    }
    assert result["ends_at_scan"] is False
    assert (result["side"], result["method"], result["warnings"]) == ("left", DEFAULT_METHOD, [])
    assert result["model"] == {key: card[key] for key in ("id", "version", "sha256")}
    assert "positive" in result["distance_sign"]
    assert result["seconds"] > 0


def test_the_figures_are_those_of_the_prediction(delivered, fine, predicted, result):
    metrics = result["metrics"]
    assert all(np.isfinite(metric["value"]) for metric in metrics.values())
    assert metrics["volume"]["value"] == pytest.approx(volume_mm3(predicted) / 1000, rel=1e-4)
    assert 0 < metrics["mean_distance"]["value"] < 0.4
    assert abs(metrics["signed_mean_distance"]["value"]) <= metrics["mean_distance"]["value"]
    assert metrics["p95_distance"]["value"] < 1
    hidden = np.mean(np.abs(fine.heights(predicted.vertices)) < 32) * 100
    assert metrics["unseen_share"]["value"] == pytest.approx(hidden, abs=4)
    with open(delivered[0] / "distances.csv", newline="", encoding="utf-8") as stream:
        rows = {row["metric"]: row for row in csv.DictReader(stream)}
    assert len(rows) == len(metrics)
    for name, metric in metrics.items():
        row = rows[name.replace("_", " ")]
        assert float(row["value"]) == pytest.approx(metric["value"], rel=1e-3)
        assert row["unit"] == metric["unit"] and row["definition"]


# ---- the same on a coarse grid: sides, repetition, methods, other geometries ----


@pytest.fixture(scope="module")
def coarse():
    return {side: leg(side, COARSE) for side in ("left", "right")}


def case_of(one):
    return make_case(one.tibia, one.gap, ct_of(one.tibia))


@pytest.fixture(scope="module")
def completed(coarse):
    """{side: (side found, Completion, warnings)} with the side found by shape."""
    return {side: predict(case_of(one)) for side, one in coarse.items()}


@pytest.fixture(scope="module")
def folders(coarse, tmp_path_factory):
    return {side: write_case(tmp_path_factory.mktemp(side), one) for side, one in coarse.items()}


def test_the_side_is_told_by_shape(completed):
    for side, (found, _, warnings) in completed.items():
        assert (found, warnings) == (side, [])


def test_a_mirrored_leg_gives_the_mirrored_bone(coarse, completed):
    np.testing.assert_array_equal(coarse["left"].tibia.array, coarse["right"].tibia.array)
    np.testing.assert_allclose(coarse["left"].bone.ijk_to_ras, MIRROR @ coarse["right"].bone.ijk_to_ras)
    left, right = (completed[side][1] for side in ("left", "right"))
    # Both are kept as right bones, so that the mirrored left one is the right one.
    assert np.linalg.norm(left.surface.vertices - right.surface.vertices, axis=1).max() < 0.05
    np.testing.assert_allclose(left.matrix, right.matrix, atol=0.05)


def test_a_run_gives_the_same_bone_again(coarse, completed):
    again = predict(case_of(coarse["left"]))[1]
    np.testing.assert_allclose(again.surface.vertices, completed["left"][1].surface.vertices, atol=1e-6)


def test_a_coarse_scan_is_completed_within_a_voxel(coarse, completed):
    right = completed["right"][1].surface
    assert gap_error(coarse["right"], right) < 0.8
    assert surface_distances(right, coarse["right"].truth).assd < 0.5


def test_the_prior_is_better_than_the_prototype(coarse, completed):
    one = coarse["right"]
    prototype = predict(make_case(one.tibia, one.gap, ct_of(one.tibia)), "right", "prototype")[1]
    errors = [surface_distances(found.surface, one.truth).assd for found in (completed["right"][1], prototype)]
    assert errors[0] < 0.5 * errors[1] < 1.5
    # The prototype is the mean bone, moved, turned and scaled.
    np.testing.assert_allclose(
        prototype.surface.vertices, transform_points(prototype.matrix, tibia_prior().mean), atol=1e-9
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_given_side_is_kept_and_one_that_the_shape_contradicts_is_asked_about(folders, tmp_path, capsys, side):
    wrong = {"left": "right", "right": "left"}[side]
    given = complete(folders[side], tmp_path / "given", side=side, method="prototype")
    assert (given["side"], given["settings"]["side"], given["warnings"]) == (side, side, [])
    assert "Warning" not in capsys.readouterr().out
    words = arguments(folders[side], tmp_path / "wrong", side=wrong, method="prototype")
    assert cli.main(words) == 2
    sentence = capsys.readouterr().err
    assert f"shape is that of a {side} tibia although {wrong} was given" in sentence and "--accept-side" in sentence
    assert not (tmp_path / "wrong").exists()
    assert cli.main([*words, "--accept-side"]) == 0
    result = json.loads((tmp_path / "wrong" / "result.json").read_text("utf-8"))
    assert result["side"] == wrong and result["settings"]["accept_side"] is True
    assert len(result["warnings"]) == 1 and "accepted" in result["warnings"][0]
    assert f"Warning: {result['warnings'][0]}" in capsys.readouterr().out


def test_every_method_explains_itself():
    assert DEFAULT_METHOD in METHODS
    for method in METHODS.values():
        assert method.title and method.description.endswith(".") and method.description.count(".") == 1


def test_masks_of_another_geometry_than_the_ct_are_resampled(coarse, folders, tmp_path):
    """The tibia on a finer, turned, right-handed grid, the fracture on a coarse one that covers only the gap."""
    one = coarse["left"]
    other = leg("left", frame((1.2, 1.0, 1.4), (-15, 20, 60)), margin_mm=5.0)
    write_volume(tmp_path / "tibia.nrrd", other.tibia)
    small = leg("left", frame((3.0, 3.0, 2.0), (0, 0, 0), "ijk"), shown_mm=(-45.0, 45.0))
    write_volume(tmp_path / "fracture.mha", small.gap)
    results, labels, bones = [], [], []
    for name, masks in (
        ("same", {}),
        ("other", {"tibia": tmp_path / "tibia.nrrd", "fracture": tmp_path / "fracture.mha"}),
    ):
        results.append(complete(folders["left"], tmp_path / name, method="prototype", **masks))
        labels.append(read_volume(tmp_path / name / "tibia.nii.gz"))
        bones.append(read_surface(tmp_path / name / "tibia.ply"))
    assert labels[1].shape == one.bone.shape
    np.testing.assert_allclose(labels[1].ijk_to_ras, one.bone.ijk_to_ras, atol=1e-4)
    assert np.linalg.norm(bones[0].vertices - bones[1].vertices, axis=1).max() < 0.8
    for metric in ("dice_visible", "unseen_share"):
        values = [result["metrics"][metric]["value"] for result in results]
        assert values[1] == pytest.approx(values[0], rel=0.02), metric


def test_labels_of_one_file_are_told_apart(coarse, folders, tmp_path):
    one = coarse["right"]
    labels = np.where(one.gap.array, 7, np.where(one.tibia.array, 3, 0)).astype(np.uint8)
    write_volume(tmp_path / "labels.nii.gz", Volume(labels, one.bone.ijk_to_ras))
    file = tmp_path / "labels.nii.gz"
    separate = complete(folders["right"], tmp_path / "separate", method="prototype")
    together = complete(
        folders["right"], tmp_path / "together", method="prototype", tibia=f"{file}:3", fracture=f"{file}:7"
    )
    assert together["metrics"] == separate["metrics"]
    assert together["inputs"]["tibia"] == f"{file}:3"


def test_the_end_of_a_knee_scan_is_no_fracture(tmp_path):
    """150 mm of the proximal tibia with a gap of 30 mm: the side is found, and visible bone and truth agree."""
    top = random_tibiae(31, 1)[0][:, 2].max()
    surface = Surface(random_tibiae(31, 1)[0], tibia_prior().faces)
    knee = leg("left", COARSE, gap_mm=(top - 90, top - 60), shown_mm=(top - 150, np.inf), surface=surface)
    side, completion, _ = predict(case_of(knee))
    assert side == "left"
    mirrored = Surface(transform_points(MIRROR, knee.truth.vertices), knee.truth.faces[:, ::-1])
    distances = surface_distances(completion.surface, mirrored)
    height = knee.heights(knee.truth.vertices)
    in_gap, shown = np.abs(height - top + 75) < 15, (height > top - 140)
    assert np.abs(distances.b_to_a[shown]).mean() < 0.5
    assert np.abs(distances.b_to_a[in_gap]).mean() < 0.8


# ---- where the scan ends ----


@cache
def knee(mask_to_the_end=False):
    """(leg, CT that ends 150 mm below its plateau, upper voxel of the scan): a gap in it, or from there to its end."""
    top = top_of_tibia()
    one = leg("left", COARSE, gap_mm=(top - 180, top - 95) if mask_to_the_end else (top - 100, top - 70))
    upwards = (one.bone.ijk_to_ras[:3, 2] @ one.ras_from_standard[:3, 2]) > 0
    place = one.ras_from_standard @ [0, 0, top - 150, 1]
    end = int(np.rint((one.bone.ras_to_ijk @ place)[2]))
    lower, upper = ([end, 0, 0], one.bone.shape) if upwards else ([0, 0, 0], [end, *one.bone.shape[1:]])
    ct, tibia, gap = (crop(volume, lower, upper) for volume in (one.ct, one.tibia, one.gap))
    return one, {"ct": ct, "tibia": tibia, "fracture": gap}


def top_of_tibia():
    return unseen_tibia().vertices[:, 2].max()


def completed_knee(folder, *words, **case):
    one, files = knee(**case)
    for name, volume in files.items():
        write_volume(folder / f"{name}.nii.gz", Volume(volume.array.copy(), volume.ijk_to_ras))
    assert cli.main([*arguments(folder, folder / "out", side="left"), *words]) == 0
    result = json.loads((folder / "out" / "result.json").read_text("utf-8"))
    return one, files["ct"], result, read_surface(folder / "out" / "tibia.ply")


@pytest.fixture(scope="module")
def cut_knee(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knee")
    return *completed_knee(folder), folder / "out"


@pytest.fixture(scope="module")
def whole_knee(tmp_path_factory):
    return completed_knee(tmp_path_factory.mktemp("whole knee"), "--beyond-scan")


def test_the_mesh_ends_where_the_scan_ends(cut_knee):
    one, ct, result, predicted, _ = cut_knee
    assert result["ends_at_scan"] is True and result["settings"]["beyond_scan"] is False
    assert is_closed(predicted)
    ijk = transform_points(ct.ras_to_ijk, predicted.vertices)
    assert (ijk > -0.501).all() and (ijk < np.array(ct.shape[::-1]) - 0.499).all()
    assert one.heights(predicted.vertices).min() == pytest.approx(top_of_tibia() - 150, abs=12)


def test_how_much_lies_beyond_the_scan_is_said(cut_knee):
    one, ct, result, *_ = cut_knee
    beyond = beyond_scan_mm(one.truth.vertices, ct.shape, ct.ijk_to_ras).max()
    (sentence,) = [warning for warning in result["warnings"] if "beyond the scan" in warning]
    assert float(sentence.split("up to ")[1].split(" mm")[0]) == pytest.approx(beyond, rel=0.1)
    assert "--beyond-scan" in sentence


def test_the_cap_is_not_measured(cut_knee):
    *_, ct, result, predicted, folder = cut_knee
    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(folder / "tibia.vtp"))
    reader.Update()
    distance = vtk_to_numpy(reader.GetOutput().GetPointData().GetArray("DistanceToVisibleBone_mm"))
    on_cap = np.abs(beyond_scan_mm(predicted.vertices, ct.shape, ct.ijk_to_ras)) < 1e-3
    assert on_cap.sum() > 20 and np.isnan(distance[on_cap]).all()
    assert np.isfinite(distance).sum() > 0.5 * len(distance)
    metrics = result["metrics"]
    assert metrics["volume"]["value"] == pytest.approx(volume_mm3(predicted) / 1000, rel=1e-3)
    assert metrics["unseen_share"]["value"] == pytest.approx(100 * 34 / 150, abs=9)
    assert metrics["p95_distance"]["value"] < 1.5


def test_length_and_torsion_of_a_bone_whose_end_was_not_seen_are_not_reported(cut_knee):
    result = cut_knee[2]
    assert result["intervals_95"] == {} and not {"length", "torsion"} & set(result["metrics"])
    assert not any("length" in warning for warning in result["warnings"])


def test_mesh_and_labelmap_of_a_cut_bone_agree(cut_knee):
    predicted, folder = cut_knee[3:]
    label = read_mask(folder / "tibia.nii.gz")
    assert dice(voxelize(predicted, label.shape, label.ijk_to_ras).array, label.array) > 0.999


def test_the_mesh_goes_on_when_asked_for(cut_knee, whole_knee):
    one, _, result, predicted = whole_knee
    assert result["ends_at_scan"] is False and result["settings"]["beyond_scan"] is True
    assert len(predicted.vertices) == len(tibia_prior().mean)
    assert np.ptp(one.heights(predicted.vertices)) == pytest.approx(np.ptp(one.heights(one.truth.vertices)), rel=0.08)
    assert result["metrics"]["volume"]["value"] > 1.3 * cut_knee[2]["metrics"]["volume"]["value"]
    assert set(result["intervals_95"]) == set(DEFINITIONS)
    assert result["intervals_95"]["length"] > 5
    assert any("labelmap ends where the scan ends" in warning for warning in result["warnings"])
    assert any("length of the bone is not shown" in warning for warning in result["warnings"])


def test_a_mask_that_reaches_the_scans_end_is_filled_up_to_there(tmp_path):
    one, ct, result, predicted = completed_knee(tmp_path, "--method", "prototype", mask_to_the_end=True)
    assert result["ends_at_scan"] is True and is_closed(predicted)
    assert one.heights(predicted.vertices).min() == pytest.approx(top_of_tibia() - 150, abs=12)
    assert result["metrics"]["unseen_share"]["value"] > 22


def test_a_bone_inside_its_scan_is_whole(result, predicted):
    assert result["ends_at_scan"] is False and len(predicted.vertices) == len(tibia_prior().mean)


# ---- metal, and what a segment's name says ----


def test_metal_in_the_ct_is_warned_of(coarse, folders, tmp_path):
    ct = coarse["left"].ct
    array = ct.array.copy()
    array[tuple(np.argwhere(coarse["left"].tibia.array)[::40].T)] = 3071
    write_volume(tmp_path / "metal.nii.gz", Volume(array, ct.ijk_to_ras))
    result = complete(folders["left"], tmp_path / "out", method="prototype", ct=tmp_path / "metal.nii.gz")
    assert len(result["warnings"]) == 1 and "mL of metal" in result["warnings"][0]


def test_a_segment_named_after_the_wrong_side_is_asked_about(coarse, folders, tmp_path, capsys):
    one = coarse["left"]
    for name in ("left", "right"):
        image = sitk.Cast(sitk.ReadImage(str(folders["left"] / "tibia.nii.gz")), sitk.sitkUInt8)
        image.SetMetaData("Segment0_ID", "s")
        image.SetMetaData("Segment0_Name", f"{name} tibia")
        image.SetMetaData("Segment0_LabelValue", "1")
        image.SetMetaData("Segment0_Layer", "0")
        sitk.WriteImage(image, str(tmp_path / f"{name}.seg.nrrd"))
        words = arguments(
            folders["left"], tmp_path / name, method="prototype", tibia=f"{tmp_path / name}.seg.nrrd:{name} tibia"
        )
        assert cli.main(words) == (0 if name == one.side else 2)
    assert "shape is that of a left tibia although right was given" in capsys.readouterr().err


# ---- refusals: one sentence, status 2, nothing left behind ----


@pytest.fixture
def refused(folders, tmp_path, capsys):
    """Runs the command on the coarse left leg with changed options; returns the sentence after checking the rest."""

    def run(**changed):
        before = sorted(tmp_path.rglob("*"))
        output = changed.pop("output", tmp_path / "new" / "out")
        status = cli.main(arguments(folders["left"], output, **changed))
        error = capsys.readouterr().err
        assert status == 2, error
        assert error.startswith("bonerecon: ") and error.count("\n") == 1 and error.endswith(".\n")
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


def mask_file(folder, name, volume, array):
    write_volume(folder / name, Volume(array, volume.ijk_to_ras))
    return folder / name


def test_an_empty_fracture_mask_is_refused(refused, coarse, tmp_path):
    gap = coarse["left"].gap
    assert "empty" in refused(fracture=mask_file(tmp_path, "f.nrrd", gap, np.zeros_like(gap.array)))


def test_a_fracture_mask_outside_the_ct_is_refused(refused, coarse, tmp_path):
    gap = coarse["left"].gap
    away = gap.ijk_to_ras.copy()
    away[:3, 3] += 5000
    write_volume(tmp_path / "f.nrrd", Volume(gap.array, away))
    assert "outside the CT" in refused(fracture=tmp_path / "f.nrrd")


def test_a_mask_of_the_whole_bone_is_refused(refused, coarse, tmp_path):
    bone = coarse["left"].bone
    assert "whole tibia" in refused(fracture=mask_file(tmp_path, "f.nrrd", bone, np.ones_like(bone.array)))


def test_a_mask_beside_the_tibia_is_refused(refused, coarse, tmp_path):
    bone = coarse["left"].bone
    beside = np.zeros_like(bone.array)
    beside[60:80, :4, :4] = True
    assert "beside" in refused(fracture=mask_file(tmp_path, "f.nrrd", bone, beside))


def test_too_little_visible_bone_is_refused(refused, coarse, tmp_path):
    bone = coarse["left"].bone
    most = np.ones_like(bone.array)
    most[: np.flatnonzero(bone.array.any((1, 2)))[0] + 22] = False
    assert "80 mm" in refused(fracture=mask_file(tmp_path, "f.nrrd", bone, most))


def nrrd(path, directions, array, components=1):
    """A NRRD file with a header of our own: space directions as given, in LPS."""
    sizes = " ".join(map(str, array.shape[::-1]))
    own, kind, none = (f"{components} ", "vector ", "none ") if components > 1 else ("", "", "")
    lines = [
        "NRRD0004",
        "type: short",
        f"dimension: {array.ndim + (components > 1)}",
        "space: left-posterior-superior",
        f"sizes: {own}{sizes}",
        f"space directions: {none}{directions}",
        f"kinds: {kind}domain domain domain",
        "endian: little",
        "encoding: raw",
        "space origin: (0,0,0)",
    ]
    data = np.repeat(array.ravel(), components).astype("<i2").tobytes()
    path.write_bytes("\n".join([*lines, "", ""]).encode() + data)
    return path


@pytest.mark.parametrize("option", ["ct", "tibia", "fracture"])
@pytest.mark.parametrize(
    "directions", ["(1,0,0) (0.2,1,0) (0,0,1)", "(1,0,0) (1,0,0) (0,0,1)", "(1,0,0) (0,0,0) (0,0,1)"]
)
def test_sheared_and_singular_geometries_are_refused(refused, tmp_path, option, directions):
    file = nrrd(tmp_path / "odd.nrrd", directions, np.ones((6, 7, 8)))
    sentence = refused(**{option: file})
    assert any(word in sentence for word in ("sheared", "singular", "not numbers"))
    assert "odd.nrrd" in sentence


@pytest.mark.parametrize("option", ["ct", "tibia", "fracture"])
def test_several_components_are_refused(refused, tmp_path, option):
    file = nrrd(tmp_path / "colours.nrrd", "(1,0,0) (0,1,0) (0,0,1)", np.ones((6, 7, 8)), components=3)
    assert "3 components" in refused(**{option: file})


def test_a_plain_file_written_that_way_is_read(tmp_path):
    """So that the two tests above fail for what they say."""
    file = nrrd(tmp_path / "plain.nrrd", "(1,0,0) (0,1,0) (0,0,1)", np.ones((6, 7, 8)))
    assert read_geometry(file)[0] == (6, 7, 8)


def test_a_missing_file_and_a_missing_label_are_refused(refused, folders, tmp_path):
    for option in ("ct", "tibia", "fracture"):
        assert "does not exist" in refused(**{option: tmp_path / "none.nii.gz"})
    assert "no label 5" in refused(tibia=f"{folders['left'] / 'tibia.nii.gz'}:5")


def test_masks_too_large_for_the_memory_are_refused(refused, monkeypatch):
    monkeypatch.setattr(volumes, "available_memory_bytes", lambda: 100_000)
    assert "too large for the memory" in refused()


def test_a_ct_too_large_for_the_memory_is_refused_although_the_masks_are_small(refused, tmp_path, monkeypatch):
    """Labelmap and resampled masks have the CT's size; here 48 million voxels with 60 MB to put them in."""
    lps = np.diag([*LPS, 1.0]) @ leg("left").bone.ijk_to_ras
    ct = sitk.Image([600, 400, 200], sitk.sitkUInt8)
    ct.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(ct, str(tmp_path / "large.nii.gz"), True)
    monkeypatch.setattr(volumes, "available_memory_bytes", lambda: 60_000_000)
    assert "too large for the memory" in refused(ct=tmp_path / "large.nii.gz")


@pytest.fixture
def copied_model(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "tibia-prior"
    shutil.copytree(find_model("tibia-prior").folder, folder)
    monkeypatch.setenv("BONERECON_MODELS", str(tmp_path / "models"))
    return folder


def test_missing_weights_are_refused(refused, copied_model):
    (copied_model / "weights.safetensors").unlink()
    assert "missing" in refused()


def test_weights_altered_by_a_byte_are_refused(refused, copied_model):
    data = bytearray((copied_model / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copied_model / "weights.safetensors").write_bytes(data)
    assert "altered" in refused()


def test_an_earlier_result_is_not_overwritten(refused, tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "result.json").write_text("{}")
    assert "already holds result.json" in refused(output=tmp_path / "earlier")
    assert (tmp_path / "earlier" / "result.json").read_text() == "{}"


@pytest.mark.parametrize("name", [name for name in FILES if name != "result.json"])
def test_no_other_file_of_an_earlier_result_is_overwritten(refused, tmp_path, name):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / name).write_text("mine")
    assert name in refused(output=tmp_path / "earlier")


@pytest.mark.parametrize("changed", [{"side": "both"}, {"method": "magic"}])
def test_unknown_sides_and_methods_are_refused(folders, tmp_path, capsys, changed):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments(folders["left"], tmp_path / "out", **changed))
    assert end.value.code == 2 and "invalid choice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def shaft():
    """120 mm of the shaft's middle with a small gap: neither end shows which way and which side."""
    return leg("left", gap_mm=(-8.0, 8.0), shown_mm=(-60.0, 60.0))


def test_a_side_that_cannot_be_told_is_asked_for():
    with pytest.raises(InputError, match="choose left or right"):
        predict(make_case(shaft().tibia, shaft().gap, None))


def test_a_shaft_without_ends_is_not_completed_upside_down():
    """It is put the right way up, or refused."""
    one = shaft()
    case = make_case(one.tibia, one.gap, ct_of(one.tibia))
    try:
        _, found, _ = detect_side(case, "left")
    except InputError:
        return
    upwards = (MIRROR @ one.ras_from_standard)[:3, 2]
    assert upwards @ found.start[:3, 2] > 0


# ---- ended from outside ----


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_job_ended_in_any_stage_leaves_nothing(folders, tmp_path, monkeypatch, stage):
    report = jobs.Progress.report
    seen = []

    def report_and_end(self, name, fraction):
        report(self, name, fraction)
        seen.append(name)
        if name == stage:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(jobs.Progress, "report", report_and_end)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments(folders["left"], tmp_path / "new" / "out", method="prototype"))
    assert end.value.code == 143
    assert stage in seen and list(tmp_path.iterdir()) == []


def test_a_process_ended_while_it_completes_leaves_nothing(folders, tmp_path):
    command = [sys.executable, "-m", "BoneReconstructionLib", *arguments(folders["left"], tmp_path / "new" / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment) as process:
        try:
            for line in process.stdout:
                if '"completing"' in line:
                    assert list((tmp_path / "new" / "out").iterdir()) != []
                    process.terminate()
                    break
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []
