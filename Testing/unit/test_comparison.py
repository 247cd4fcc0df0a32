"""Comparing two bones: figures known by hand, the sign, the command line's files and every refusal."""

import argparse
import csv
import json

import numpy as np
import pytest
from phantoms import box_surface, solid_mask, sphere_surface
from test_alignment import MIRROR, bone, pose
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

from BoneReconstructionLib import comparison
from BoneReconstructionLib.comparison import SIGN, compare
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, write_volume

FILES = {"first.vtp", "second.vtp", "distances.csv", "result.json"}


def bonerecon_compare(*arguments):
    parser = argparse.ArgumentParser()
    comparison.add_arguments(parser)
    comparison.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def spheres(tmp_path):
    write_surface(tmp_path / "large.ply", sphere_surface(21.0))
    write_surface(tmp_path / "small.stl", sphere_surface(20.0))
    return tmp_path / "large.ply", tmp_path / "small.stl"


def open_surface():
    sphere = sphere_surface()
    return Surface(sphere.vertices, sphere.faces[1:])


def test_a_larger_first_bone_lies_outside_the_second():
    found = compare(sphere_surface(21.0), sphere_surface(20.0))
    assert SIGN == "positive: the first bone lies outside the second"
    for figure in (found.distances.assd, found.distances.hd, found.distances.mean_signed_a_to_b):
        assert figure == pytest.approx(1, abs=0.02)
    assert found.distances.mean_signed_b_to_a == pytest.approx(-1, abs=0.02)
    # Both heat maps obey the same words.
    assert found.first_signed_mm.min() > 0.9 and found.second_signed_mm.min() > 0.9


def test_overlap_and_volumes_are_those_of_the_shapes():
    found = compare(box_surface((0, 0, 0), (10, 15, 20)), box_surface((0, 0, 10), (10, 15, 20)))
    assert found.dice == pytest.approx(0.75, abs=0.01)
    assert found.jaccard == pytest.approx(0.6, abs=0.015)
    assert found.first_volume_ml == pytest.approx(24)
    assert found.second_volume_ml == pytest.approx(24)
    assert found.spacing_mm == 0.5


def test_a_huge_pair_is_voxelised_coarser_and_says_so():
    found = compare(box_surface((0, 0, 0), (300, 300, 300)), box_surface((0, 0, 0), (300, 300, 300)))
    assert found.spacing_mm == pytest.approx(1.7) and found.dice == 1
    assert any("1.7 mm" in definition for *_, definition in found.rows())


def test_faces_that_look_inward_do_not_turn_the_sign():
    inward = sphere_surface(20.0)
    found = compare(sphere_surface(21.0), Surface(inward.vertices, inward.faces[:, ::-1]))
    assert found.first_signed_mm.min() > 0.9 and found.second_volume_ml > 0


def test_alignment_moves_the_first_bone_onto_the_second_and_is_recorded():
    truth = pose((20, 10, -15), (40, -10, 25))
    apart = compare(bone(), transformed(bone(), truth))
    aligned = compare(bone(), transformed(bone(), truth), "rigid")
    assert apart.alignment is None and apart.distances.assd > 5
    assert aligned.distances.hd < 0.02 and aligned.dice > 0.995
    np.testing.assert_allclose(aligned.alignment.fixed_from_moving, truth, atol=0.01)
    np.testing.assert_allclose(aligned.first.vertices, aligned.second.vertices, atol=0.02)


def test_stages_are_reported_in_order():
    stages = []
    compare(sphere_surface(), sphere_surface(), report=lambda stage, fraction: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["align", "distances", "overlap"]


@pytest.mark.parametrize(
    "first, second, align, region, words",
    [
        (open_surface(), sphere_surface(), "none", None, "first bone's surface is open"),
        (sphere_surface(), open_surface(), "none", None, "second bone's surface is open"),
        (bone(), transformed(bone(), MIRROR), "rigid", None, "left and a right"),
        (sphere_surface(), sphere_surface(), "similarity", None, "alignment"),
        (sphere_surface(), sphere_surface(), "none", lambda points: points[:, 0] > 0, "region"),
    ],
)
def test_bones_that_cannot_be_compared_are_refused_in_one_sentence(first, second, align, region, words):
    with pytest.raises(InputError, match=words) as refusal:
        compare(first, second, align, region)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_the_command_writes_the_table_the_surfaces_and_the_record(spheres, tmp_path, capsys):
    bonerecon_compare(*spheres, "--output", tmp_path / "é out")
    assert {path.name for path in (tmp_path / "é out").iterdir()} == FILES
    result = json.loads((tmp_path / "é out" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["ASSD"]["value"] == pytest.approx(1, abs=0.02)
    assert result["sign"] == SIGN and result["alignment"] is None
    assert result["inputs"]["first"] == str(spheres[0])
    with open(tmp_path / "é out" / "distances.csv", encoding="utf-8", newline="") as file:
        table = {row["metric"]: row for row in csv.DictReader(file)}
    assert set(table) == set(result["metrics"])
    assert float(table["HD95"]["value"]) == pytest.approx(result["metrics"]["HD95"]["value"], rel=1e-4)
    assert all(row["unit"] and row["definition"] for row in table.values())
    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "é out" / "first.vtp"))
    reader.Update()
    scalars = vtk_to_numpy(reader.GetOutput().GetPointData().GetArray("SignedDistance_mm"))
    assert scalars.min() > 0.9
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["progress"] == 1


def test_the_command_aligns_on_a_region_and_records_the_motion(tmp_path):
    truth = pose((4, -3, 6), (5, 8, -4))
    write_surface(tmp_path / "a.vtp", bone())
    write_surface(tmp_path / "b.obj", transformed(bone(), truth))
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = -130
    region = np.zeros((130, 130, 130), np.uint8)
    region[:65], region[65:] = 3, 7
    write_volume(tmp_path / "region.nii.gz", Volume(region, grid))
    bonerecon_compare(
        tmp_path / "a.vtp", tmp_path / "b.obj", "--output", tmp_path / "out", "--align", "rigid",
        "--region", f"{tmp_path / 'region.nii.gz'}:3",
    )
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(result["alignment"]["second_from_first_ras"], truth, atol=0.02)
    moved = read_surface(tmp_path / "out" / "first.vtp")
    np.testing.assert_allclose(moved.vertices, transformed(bone(), truth).vertices, atol=0.05)


def test_labels_of_a_labelmap_are_compared_as_bones(tmp_path):
    mask = solid_mask(np.diag([1.0, 1, 1, 1]))
    write_volume(tmp_path / "labels.nrrd", Volume(mask.array.astype(np.uint8) * 4, mask.ijk_to_ras))
    bonerecon_compare(tmp_path / "labels.nrrd", f"{tmp_path / 'labels.nrrd'}:4", "--output", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["HD"]["value"] < 1e-6 and result["metrics"]["DSC"]["value"] == 1


def test_results_are_never_overwritten(spheres, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text("mine")
    with pytest.raises(InputError):
        bonerecon_compare(*spheres, "--output", tmp_path / "out")
    assert (tmp_path / "out" / "result.json").read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]


@pytest.mark.parametrize("case", ["missing file", "empty mask", "region without alignment", "open surface"])
def test_a_refused_command_leaves_nothing_behind(case, spheres, tmp_path):
    write_volume(tmp_path / "empty.nrrd", Volume(np.zeros((5, 5, 5), np.uint8), np.eye(4)))
    write_surface(tmp_path / "open.ply", open_surface())
    arguments = {
        "missing file": (spheres[0], tmp_path / "none.stl"),
        "empty mask": (tmp_path / "empty.nrrd", spheres[1]),
        "region without alignment": (*spheres, "--region", tmp_path / "empty.nrrd"),
        "open surface": (spheres[0], tmp_path / "open.ply"),
    }[case]
    with pytest.raises(InputError):
        bonerecon_compare(*arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
