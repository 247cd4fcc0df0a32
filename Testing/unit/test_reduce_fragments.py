"""The command: files that belong together, fragments that were told apart before or not, refusals before any work."""

import csv
import json

import numpy as np
import pytest
from brokentibiae import PLACE, fracture, fragments, healthy

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.transformfiles import read_transform
from BoneReconstructionLib.volumes import Volume, write_volume
from TibiaCompletionLib.evaluation.fragments import place_errors
from TibiaCompletionLib.fragments.assessment import Assessment
from TibiaCompletionLib.fragments.command import reduce_fragments
from TibiaCompletionLib.fragments.results import read_reduction
from TibiaCompletionLib.fragments.splitcommand import split_fragments

KIND = "butterfly"
SPACING = np.array([1.2, 1.0, 1.5])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with CT, labelmap of the fragments and completed tibia."""
    folder = tmp_path_factory.mktemp("patient")
    points = np.concatenate([surface.vertices for surface in fragments(KIND)])
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(SPACING * [-1, -1, 1])
    matrix[:3, 3] = [points[:, 0].max() + 5, points[:, 1].max() + 5, points[:, 2].min() - 5]
    shape = tuple(np.ceil((np.ptp(points, axis=0) + 10) / SPACING).astype(int)[::-1])
    labels = np.zeros(shape, dtype=np.uint8)
    for number, surface in enumerate(fragments(KIND), start=1):
        labels[voxelize(surface, shape, matrix).array] = number
    write_volume(folder / "labels.nii.gz", Volume(labels, matrix))
    write_volume(folder / "one.nii.gz", Volume((labels == 1).astype(np.uint8), matrix))
    write_volume(folder / "ct.nii.gz", Volume(np.where(labels, 1000, 50).astype(np.int16), matrix))
    completion = folder / "completion"
    completion.mkdir()
    write_surface(completion / "tibia.ply", healthy())
    result = {"side": "right", "ras_to_standard": np.linalg.inv(PLACE).tolist(), "pieces": []}
    (completion / "result.json").write_text(json.dumps(result))
    return folder


def reduced(files, folder, fragments_name):
    return reduce_fragments(
        str(files / "ct.nii.gz"), str(files / fragments_name), str(files / "completion"), folder, lambda *_: None
    )


@pytest.fixture(scope="module")
def result(files):
    (files / "out").mkdir()
    return reduced(files, files / "out", "labels.nii.gz")


def test_transforms_bring_the_fragments_home(files, result):
    axis = np.array(result["axes_from_ras"])[2, :3]
    for number, record in enumerate(result["fragments"]):
        motion = read_transform(files / "out" / record["transform"])
        assert np.allclose(motion, record["motion_ras"], atol=1e-4)
        surface = read_surface(files / "out" / record["surface"])
        # Thin spikes are taken for spurs, so that the middles differ.
        assert np.abs(surface.vertices.mean(0) - fragments(KIND)[number].vertices.mean(0)).max() < 2.5
        true = np.linalg.inv(fracture(KIND).motions[number])
        rotation, _, translation = place_errors(motion, true, surface.vertices.mean(0), axis)
        assert rotation < 1.5 and translation < 1.2


def test_table_and_result_say_the_same(files, result):
    with open(files / "out" / "fragments.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert json.loads((files / "out" / "result.json").read_text()) == result
    assert [row["fragment"] for row in rows] == ["Label 1", "Label 2", "Label 3"]
    for row, record in zip(rows, result["fragments"], strict=True):
        for name, value in record["figures"].items():
            assert row[name] == "" if value is None else float(row[name]) == pytest.approx(value, abs=0.006)
        assert record["figures"].keys() == result["definitions"].keys()


def test_what_was_written_is_assessed_as_before(files, result):
    names, reduction = read_reduction(files / "out")
    assert names == [record["name"] for record in result["fragments"]]
    for told, record in zip(Assessment(reduction).figures(reduction.motions), result["fragments"], strict=True):
        known = {name: value for name, value in record["figures"].items() if value is not None}
        assert {name: told.values[name] for name in known} == pytest.approx(known, abs=0.02)
    here = transform_points(reduction.target.axes_from_ras, healthy().vertices)[reduction.target.joint]
    assert np.ptp(here[:, 2]) > 300


def test_a_bone_is_split_and_its_fragments_are_numbered_by_volume(files, tmp_path):
    write_volume(tmp_path / "bone.nii.gz", _whole(files))
    found = split_fragments(str(files / "ct.nii.gz"), str(tmp_path / "bone.nii.gz"), tmp_path, lambda *_: None)
    assert found["volumes_ml"] == sorted(found["volumes_ml"], reverse=True) and len(found["volumes_ml"]) >= 2


def _whole(files):
    from BoneReconstructionLib.volumes import read_volume

    labels = read_volume(files / "labels.nii.gz")
    return Volume((labels.array > 0).astype(np.uint8), labels.ijk_to_ras)


def test_bad_input_is_refused(files, tmp_path):
    with pytest.raises(InputError, match="No fragments can be told apart"):
        reduced(files, tmp_path, "one.nii.gz")
    away = Volume(np.ones((5, 5, 5), dtype=np.uint8), np.diag([1.0, 1, 1, 1]))
    write_volume(tmp_path / "away.nii.gz", away)
    with pytest.raises(InputError, match="lies outside the CT"):
        reduced(files, tmp_path, tmp_path / "away.nii.gz")
    with pytest.raises(InputError, match="holds no completed tibia"):
        reduce_fragments(str(files / "ct.nii.gz"), str(files / "labels.nii.gz"), str(files), tmp_path, lambda *_: None)
    with pytest.raises(InputError, match="holds no reduced fragments"):
        read_reduction(tmp_path)
