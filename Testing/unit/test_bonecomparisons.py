"""Comparing several bones at once: known shifts of lopsided shapes, the files, and refusals before any work."""

import argparse
import csv
import json

import numpy as np
import pytest
from phantoms import box_surface, sphere_surface
from test_alignment import bone, pose

from BoneReconstructionLib import bonecomparisons
from BoneReconstructionLib.comparison import SIGN, SIGNED_ARRAY
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import cut_to
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, write_volume
from BoneReconstructionLib.xraygeometry import preset_view
from BoneReconstructionLib.xraygeometryfiles import write_geometry

SHIFT = pose((0, 0, 0), (0, 3, -4))


def compare_bones(*arguments):
    parser = argparse.ArgumentParser()
    bonecomparisons.add_arguments(parser)
    bonecomparisons.run(parser.parse_args([str(argument) for argument in arguments]))


def table(folder):
    with open(folder / "comparison.csv", encoding="utf-8", newline="") as file:
        return {row["bone"]: row for row in csv.DictReader(file)}


@pytest.fixture
def files(tmp_path):
    """A box beside itself, higher by half, and a lopsided bone that is moved by 5 mm."""
    surfaces = {
        "box": box_surface((0, 0, 0), (10, 15, 20)),
        "raised": box_surface((0, 0, 10), (10, 15, 20)),
        "bone": bone(),
        "moved": transformed(bone(), SHIFT),
        "open": Surface(sphere_surface().vertices, sphere_surface().faces[1:]),
    }
    for name, surface in surfaces.items():
        write_surface(tmp_path / f"{name}.vtp", surface)
    return {name: tmp_path / f"{name}.vtp" for name in surfaces}


def test_each_bone_has_its_row_and_its_surface_with_signed_distances(files, tmp_path, capsys):
    out = tmp_path / "é out"
    compare_bones(
        "--pair", "patella", files["box"], files["raised"], "--pair", "femur", files["bone"], files["moved"],
        "--output", out,
    )  # fmt: skip
    assert {path.name for path in out.iterdir()} == {"patella.vtp", "femur.vtp", "comparison.csv", "result.json"}
    rows = table(out)
    assert list(rows) == ["patella", "femur"]
    assert list(rows["femur"]) == [
        "bone", "dsc", "assd_mm", "hd_mm", "hd95_mm", "mean_signed_mm", "first_volume_ml", "second_volume_ml"
    ]  # fmt: skip
    assert float(rows["patella"]["dsc"]) == pytest.approx(0.75, abs=0.01)
    assert float(rows["patella"]["hd_mm"]) == pytest.approx(10)
    assert float(rows["patella"]["first_volume_ml"]) == pytest.approx(24)
    assert 4 < float(rows["femur"]["hd_mm"]) < 5.001 and float(rows["femur"]["assd_mm"]) < 4
    first, second = (float(rows["femur"][f"{which}_volume_ml"]) for which in ("first", "second"))
    assert first == pytest.approx(second, rel=1e-4)
    np.testing.assert_allclose(read_surface(out / "femur.vtp").vertices, bone().vertices, atol=1e-4)
    # The box's upper corners lie on the raised one's sides, its lower ones 10 mm below it.
    assert np.sort(scalars(out / "patella.vtp"))[[0, -1]] == pytest.approx([0, 10], abs=1e-3)
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert list(result["bones"]) == ["patella", "femur"] and result["sign"] == SIGN
    assert result["bones"]["femur"]["alignment"] is None and result["settings"] == {"align": "none", "views": []}
    assert result["bones"]["patella"]["metrics"]["HD"] == {"value": pytest.approx(10), "unit": "mm"}
    assert result["inputs"]["femur"] == {"first": str(files["bone"]), "second": str(files["moved"])}
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert reports[-1]["progress"] == 1 and [report["stage"] for report in reports if "femur" in report["stage"]] == [
        "align femur", "distances femur", "overlap femur"
    ]  # fmt: skip


def scalars(path):
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    return vtk_to_numpy(reader.GetOutput().GetPointData().GetArray(SIGNED_ARRAY))


def test_each_bone_is_aligned_for_itself(files, tmp_path):
    out = tmp_path / "out"
    compare_bones(
        "--pair", "femur", files["bone"], files["moved"], "--pair", "tibia", files["moved"], files["bone"],
        "--align", "rigid", "--output", out,
    )  # fmt: skip
    rows = table(out)
    assert all(float(row["hd_mm"]) < 0.02 and float(row["alignment_rms_mm"]) < 0.02 for row in rows.values())
    bones = json.loads((out / "result.json").read_text(encoding="utf-8"))["bones"]
    np.testing.assert_allclose(bones["femur"]["alignment"]["second_from_first_ras"], SHIFT, atol=0.01)
    np.testing.assert_allclose(bones["tibia"]["alignment"]["second_from_first_ras"], np.linalg.inv(SHIFT), atol=0.01)
    moved = transformed(bone(), SHIFT)
    np.testing.assert_allclose(read_surface(out / "femur.vtp").vertices, moved.vertices, atol=0.02)


def thin_bone():
    """A slightly bent rod of 300 mm with a head, most of it so even that a piece of it slides along it."""
    ball = sphere_surface(1.0, (0, 0, 0), subdivisions=4)
    x, y, z = ball.vertices.T
    radius = np.maximum(np.hypot(x, y), 1e-6)
    width = (5 + 2 * np.exp(-(((z - 0.9) / 0.15) ** 2))) * np.minimum(radius / 0.25, 1) / radius
    across = x * width + 40 + 3 * z**2, 0.8 * y * width + 5 * np.maximum(z - 0.6, 0)
    return Surface(np.column_stack([*across, 150 * z - 60]), ball.faces)


@pytest.fixture
def knee(tmp_path):
    """A function that writes two bones as X-rays end them and the whole ones, moved; returns options for them."""

    def write(motion):
        views = [preset_view("c-arm", view, (0, 0, 20)) for view in ("AP", "right lateral")]
        sides = [side for view in views for side in view.sides()]
        options = ["--views"]
        for name, view in zip(("ap", "lateral"), views):
            write_geometry(tmp_path / f"{name}.json", view)
            options.append(tmp_path / f"{name}.json")
        for name, whole in (("tibia", bone()), ("fibula", thin_bone())):
            paths = tmp_path / f"{name}.vtp", tmp_path / f"whole {name}.vtp"
            write_surface(paths[0], cut_to(whole, sides))
            write_surface(paths[1], transformed(whole, motion))
            options += ["--pair", name, *paths]
        return options

    return write


def test_whole_bones_end_where_the_x_rays_of_the_first_ones_did(knee, tmp_path):
    options = knee(np.eye(4))
    compare_bones(*options, "--output", tmp_path / "cut")
    compare_bones(*options[3:], "--output", tmp_path / "whole")
    cut, whole = table(tmp_path / "cut"), table(tmp_path / "whole")
    for name in ("tibia", "fibula"):
        assert float(cut[name]["hd_mm"]) < 0.01 and float(cut[name]["dsc"]) > 0.999
        assert float(cut[name]["first_volume_ml"]) == pytest.approx(float(cut[name]["second_volume_ml"]), rel=1e-3)
        assert float(whole[name]["hd_mm"]) > 25 and float(whole[name]["dsc"]) < 0.99


def test_bones_that_x_rays_cut_off_find_their_places_on_whole_ones_elsewhere(knee, tmp_path):
    motion = pose((8, -12, 20), (120, -60, 300))
    compare_bones(*knee(motion), "--align", "rigid", "--output", tmp_path / "out")
    bones = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["bones"]
    for name, row in table(tmp_path / "out").items():
        np.testing.assert_allclose(bones[name]["alignment"]["second_from_first_ras"], motion, atol=0.2)
        assert float(row["hd_mm"]) < 0.3 and float(row["dsc"]) > 0.99


def test_bones_elsewhere_are_refused_unless_they_are_aligned(knee, tmp_path):
    with pytest.raises(InputError, match="The pair tibia: Nothing of the second bone lies .* align the bones"):
        compare_bones(*knee(pose((0, 0, 0), (0, 0, 400))), "--output", tmp_path / "out")


def test_labels_of_a_labelmap_are_bones(files, tmp_path):
    labels = np.zeros((50, 40, 30), np.uint8)
    labels[5:45, 5:35, 5:25] = 7
    labels[0, 0, 0] = 2
    grid = np.eye(4)
    grid[:3, 3] = -14.5, -19.5, -24.5
    write_volume(tmp_path / "labels.nrrd", Volume(labels, grid))
    compare_bones("--pair", "box", f"{tmp_path / 'labels.nrrd'}:7", files["box"], "--output", tmp_path / "out")
    row = table(tmp_path / "out")["box"]
    assert float(row["dsc"]) > 0.97 and abs(float(row["mean_signed_mm"])) < 0.3


@pytest.mark.parametrize(
    "pairs, words",
    [
        ([("femur", "bone", "moved"), ("Femur", "box", "raised")], '"Femur" is given twice'),
        ([("../femur", "bone", "moved")], "no plain word"),
        ([("", "bone", "moved")], "no plain word"),
        ([("femur", "bone", "moved"), ("tibia", "box", "missing")], "missing.vtp"),
        ([("femur", "bone", "moved"), ("tibia", "box", "open")], "second tibia's surface is open"),
    ],
)
def test_whatever_is_wrong_is_refused_before_any_bone_is_compared(pairs, words, files, tmp_path, monkeypatch):
    monkeypatch.setattr(bonecomparisons, "compare", lambda *arguments, **options: pytest.fail("compared"))
    files["missing"] = tmp_path / "missing.vtp"
    options = [word for name, first, second in pairs for word in ("--pair", name, files[first], files[second])]
    with pytest.raises(InputError, match=words) as refusal:
        compare_bones(*options, "--output", tmp_path / "out")
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_results_are_never_overwritten(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.csv").write_text("mine")
    with pytest.raises(InputError, match="already holds comparison.csv"):
        compare_bones("--pair", "box", files["box"], files["raised"], "--output", tmp_path / "out")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
