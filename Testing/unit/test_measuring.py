"""`bonerecon measure-tibia`: known values of virtual tibiae, the same on mirrored and turned copies, files, refusals."""

import contextlib
import csv
import io
import json
from functools import cache

import numpy as np
import pytest
from tibiae import landmarks, pose, unseen_tibia

from BoneReconstructionLib import cli
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.tibiameasurements import DEFINITIONS
from TibiaCompletionLib.measuring import measure_tibia

PLACED = pose((6, -4, 15), (95.0, 20.0, -600.0))
COPY = pose((100, 35, -70), (-80, 400, 120)) @ PLACED
LEFT_COPY = MIRROR @ pose((-160, 10, 220), (10, 30, 900)) @ PLACED


def turned_outwards(vertices, degrees):
    """The tibia with its distal end turned about the mechanical axis; the shaft takes it up."""
    axes = landmarks().axes(vertices)
    height = (vertices - axes.plafond) @ axes.proximal
    share = np.clip((220 - height) / 160, 0, 1)
    angle = -np.radians(degrees) * share * share * (3 - 2 * share)
    arm = vertices - axes.plafond
    beside, before = arm @ axes.lateral, arm @ axes.anterior
    moved_beside = np.cos(angle) * beside - np.sin(angle) * before
    moved_before = np.sin(angle) * beside + np.cos(angle) * before
    return vertices + (moved_beside - beside)[:, None] * axes.lateral + (moved_before - before)[:, None] * axes.anterior


@cache
def bone():
    """A virtual right tibia whose foot is turned outwards by ten degrees more than chance had it."""
    plain = unseen_tibia()
    return Surface(turned_outwards(plain.vertices, 10.0), plain.faces)


@cache
def measured():
    return measure_tibia(transformed(bone(), PLACED)).measurements


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What the command writes and says of a left tibia in another pose: (folder, standard output)."""
    folder, said = tmp_path_factory.mktemp("measured"), io.StringIO()
    write_surface(folder / "tibia.ply", transformed(bone(), LEFT_COPY))
    with contextlib.redirect_stdout(said):
        status = cli.main(["measure-tibia", "--tibia", str(folder / "tibia.ply"), "--output", str(folder / "out")])
    assert status == 0
    return folder / "out", said.getvalue()


def geometry(folder):
    return json.loads((folder / "measurements.json").read_text("utf-8"))


def test_a_virtual_tibia_has_its_values_within_a_degree_and_a_millimetre():
    true = landmarks().measure(bone().vertices)
    assert true["torsion"] - landmarks().measure(unseen_tibia().vertices)["torsion"] == pytest.approx(10, abs=0.5)
    for name, one in measured().items():
        assert one.value == pytest.approx(true[name], abs=1.0), name
        assert abs(one.value - true[name]) < one.width < 6, name


def test_a_turned_copy_has_the_same_values_and_markups_in_their_places():
    back = PLACED @ np.linalg.inv(COPY)
    for name, one in measure_tibia(transformed(bone(), COPY)).measurements.items():
        assert one.value == pytest.approx(measured()[name].value, abs=0.2), name
        for here, there in zip(measured()[name].markups, one.markups, strict=True):
            assert np.abs(transform_points(back, there.points) - here.points).max() < 0.5, here.name


def test_a_mirrored_and_turned_copy_has_the_same_values_and_markups_in_their_places(written):
    back = PLACED @ np.linalg.inv(LEFT_COPY)
    contents = geometry(written[0])
    assert (contents["side"], contents["coordinates"]) == ("left", "RAS, mm")
    assert contents["measurements"].keys() == DEFINITIONS.keys()
    for name, one in contents["measurements"].items():
        assert one["value"] == pytest.approx(measured()[name].value, abs=0.2), name
        assert one["interval_95"] == pytest.approx(measured()[name].width, rel=0.2)
        for here, there in zip(measured()[name].markups, one["markups"], strict=True):
            assert (there["name"], there["kind"]) == (here.name, here.kind)
            assert np.abs(transform_points(back, there["points"]) - here.points).max() < 0.5, here.name


def test_table_geometry_and_result_agree(written):
    folder, said = written
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "markups",
        "measurements.csv",
        "measurements.json",
        "result.json",
    ]
    with open(folder / "measurements.csv", newline="", encoding="utf-8") as stream:
        rows = {row["measurement"]: row for row in csv.DictReader(stream)}
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["side"] == "left" and result["metrics"].keys() == DEFINITIONS.keys()
    for name, one in geometry(folder)["measurements"].items():
        row, definition = rows[one["title"]], DEFINITIONS[name]
        assert result["metrics"][name] == {"value": one["value"], "unit": definition.unit}
        assert result["intervals_95"][name] == one["interval_95"]
        assert float(row["value"]) == pytest.approx(one["value"], rel=1e-3) and row["unit"] == definition.unit
        assert row["definition"] == definition.text and row["published_source"] == definition.published.source
        assert f"{definition.title:36}{one['value']:8.1f}" in said


def test_every_markup_is_a_file_in_lps(written):
    folder, _ = written
    drawn = geometry(folder)["measurements"]
    assert len(list((folder / "markups").iterdir())) == sum(len(one["markups"]) for one in drawn.values())
    axis = json.loads((folder / "markups" / "length-mechanical-axis-of-the-tibia.mrk.json").read_text("utf-8"))
    points = np.array([point["position"] for point in axis["markups"][0]["controlPoints"]]) * [-1, -1, 1]
    np.testing.assert_allclose(points, drawn["length"]["markups"][0]["points"])


def test_a_side_that_the_shape_contradicts_is_refused():
    with pytest.raises(InputError, match="left tibia although right"):
        measure_tibia(transformed(bone(), LEFT_COPY), "right")


def test_faces_that_look_inward_are_turned(monkeypatch):
    seen = []

    def stop(tibia, *_):
        seen.append(tibia.surface)
        raise InputError("enough")

    monkeypatch.setattr("TibiaCompletionLib.measuring.detect_side", stop)
    for faces in (bone().faces, bone().faces[:, ::-1]):
        with pytest.raises(InputError, match="enough"):
            measure_tibia(Surface(bone().vertices, faces))
    np.testing.assert_array_equal(seen[0].faces, seen[1].faces)


def test_a_part_of_a_tibia_is_refused():
    vertices, faces = bone().vertices, bone().faces
    upper = vertices[:, 2] > -20
    index = np.cumsum(upper) - 1
    part = Surface(vertices[upper], index[faces[upper[faces].all(1)]])
    with pytest.raises(InputError, match="only a part"):
        measure_tibia(transformed(part, PLACED), "right")


def test_nothing_is_overwritten_and_a_missing_file_leaves_no_folder(tmp_path, capsys):
    (tmp_path / "measurements.csv").write_text("kept")
    arguments = ["measure-tibia", "--tibia", str(tmp_path / "missing.ply"), "--output"]
    assert cli.main([*arguments, str(tmp_path)]) == 2
    assert "already holds measurements.csv" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "new")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
