"""`bonerecon reconstruct-knee`: two X-rays of a known left knee become its bones, and bad input is refused."""

import contextlib
import io
import json

import numpy as np
import pytest
from virtualkneexrays import ISOCENTRE, SHAPE, bones, views, xrays

from BiplanarReconLib.fitting import kneefit, kneestart, reconstruction
from BiplanarReconLib.fitting.kneemodel import BONES
from BiplanarReconLib.kneereconstruction import FILES, SIGMA_ARRAY
from BoneReconstructionLib.cli import main
from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.radiographs import Radiograph, write_radiograph
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import is_closed
from BoneReconstructionLib.volumes import read_volume
from BoneReconstructionLib.xraygeometry import preset_view
from BoneReconstructionLib.xraygeometryfiles import write_geometry

SEEN = np.ones(SHAPE, dtype=bool)


def write_case(folder, images, geometries):
    for name, image, geometry in zip(("ap", "lateral"), images, geometries, strict=True):
        write_radiograph(
            folder / f"{name}.nrrd", Radiograph(image, SEEN, tuple(float(size) for size in geometry.spacing_uv))
        )
        write_geometry(folder / f"{name}.json", geometry)
    return folder


def command(folder, output, *arguments):
    files = [part for name in ("ap", "lateral") for part in _files(folder, name)]
    return main(["reconstruct-knee", *files, "--output", str(output), *arguments])


def _files(folder, name):
    return f"--{name}", str(folder / f"{name}.nrrd"), f"--{name}-geometry", str(folder / f"{name}.json")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("Röntgen images"), xrays(views()), views())


@pytest.fixture(scope="module")
def done(case):
    """The output folder and what was printed; the side is left to be found."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command(case, case / "out") == 0
    return case / "out", printed.getvalue()


def test_every_file_is_delivered_and_the_result_says_what_was_found(done):
    folder, _ = done
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["side"] == "left" and result["angle_between_views_deg"] == 90
    assert any("side was not given" in warning for warning in result["warnings"])
    for bone in BONES:
        residuals = result["bones"][bone]["residual_mm"]
        assert set(residuals) == {"ap", "lateral"} and max(residuals.values()) < 0.6
        assert 0 < result["bones"][bone]["deviation_mm"] < 2


@pytest.mark.parametrize("bone, most_mm", [("femur", 0.4), ("tibia", 0.4), ("fibula", 0.4), ("patella", 1.0)])
def test_the_bones_lie_where_they_were(done, bone, most_mm):
    found, truth = read_surface(done[0] / f"{bone}.ply"), bones("left")[bone][0]
    inside = np.all([view.contains(truth.vertices) for view in views()], axis=0)
    assert SurfaceLocator(found).closest(truth.vertices[inside])[1].mean() < most_mm
    # Cut off where the X-rays end, and closed there.
    assert is_closed(found)
    assert np.all([view.contains(ISOCENTRE + 0.999 * (found.vertices - ISOCENTRE)) for view in views()])


def test_models_carry_their_standard_deviation(done):
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(done[0] / "tibia.vtp"))
    reader.Update()
    values = reader.GetOutput().GetPointData().GetArray(SIGMA_ARRAY)
    low, high = values.GetRange()
    assert values.GetNumberOfTuples() == reader.GetOutput().GetNumberOfPoints() and 0 < low < high < 10


def test_the_labelmap_holds_each_bone_under_its_label(done):
    labels = read_volume(done[0] / "bones.nii.gz")
    for number, bone in enumerate(BONES, start=1):
        place = read_surface(done[0] / f"{bone}.ply").vertices.mean(0)
        i, j, k = np.rint((labels.ras_to_ijk @ [*place, 1])[:3]).astype(int)
        assert labels.array[k, j, i] == number


def test_outlines_lie_on_the_true_bones_rims(done):
    lines = json.loads((done[0] / "outlines.json").read_text("utf-8"))
    for view, geometry in zip(("ap", "lateral"), views(), strict=True):
        pixels = geometry.project(bones("left")["tibia"][0].vertices)
        line = np.concatenate(lines[view]["tibia"])
        apart = np.linalg.norm(line[:, None] - pixels[None], axis=2).min(1)
        assert np.median(apart) < 2 and line[:, 1].min() == pytest.approx(pixels[:, 1].min(), abs=1.5)


def test_progress_never_falls_and_ends_at_one(done):
    steps = [json.loads(line)["progress"] for line in done[1].splitlines() if line.startswith("{")]
    assert steps == sorted(steps) and steps[-1] == 1 and len(steps) > 10


def test_nothing_is_overwritten(case, done, capsys):
    before = (done[0] / "result.json").stat().st_mtime_ns
    assert command(case, done[0]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (done[0] / "result.json").stat().st_mtime_ns == before


def refused(folder, capsys, *arguments):
    """The sentence that a case is refused with; nothing is left."""
    assert command(folder, folder / "refused", *arguments) == 2
    assert not (folder / "refused").exists()
    return capsys.readouterr().err


def test_views_that_are_nearly_parallel_are_refused(tmp_path, capsys):
    first = views()[0]
    second = preset_view("ssr-kd", "AP", ISOCENTRE, 20.0).resized(SHAPE)
    folder = write_case(tmp_path, xrays((first, second)), (first, second))
    assert "nearly parallel" in refused(folder, capsys)


def test_swapped_views_are_refused(tmp_path, capsys):
    folder = write_case(tmp_path, xrays(views())[::-1], views()[::-1])
    assert "swapped" in refused(folder, capsys)


def test_a_geometry_without_spacing_is_refused(case, tmp_path, capsys):
    folder = write_case(tmp_path, xrays(views()), views())
    geometry = json.loads((folder / "ap.json").read_text("utf-8"))
    del geometry["spacing_uv_mm"]
    (folder / "ap.json").write_text(json.dumps(geometry), "utf-8")
    assert "lacks spacing_uv_mm" in refused(folder, capsys)


def test_a_geometry_of_another_spacing_than_the_image_states_is_refused(tmp_path, capsys):
    folder = write_case(tmp_path, xrays(views()), views())
    geometry = json.loads((folder / "ap.json").read_text("utf-8"))
    geometry["spacing_uv_mm"] = [1.2, 1.2]
    (folder / "ap.json").write_text(json.dumps(geometry), "utf-8")
    assert "check which is right" in refused(folder, capsys)


def test_an_image_unlike_an_xray_is_refused(tmp_path, capsys):
    noise = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    folder = write_case(tmp_path, [noise, xrays(views())[1]], views())
    assert "noise" in refused(folder, capsys)


def test_a_calibrations_frame_needs_the_patients_axes(case, tmp_path, capsys):
    folder = write_case(tmp_path, xrays(views()), views())
    for name in ("ap", "lateral"):
        geometry = json.loads((folder / f"{name}.json").read_text("utf-8"))
        (folder / f"{name}.json").write_text(json.dumps(geometry | {"anatomical": False}), "utf-8")
    assert "give --patient-axes" in refused(folder, capsys)
    assert "right-handed" in refused(folder, capsys, "--patient-axes=x,z,y")
    assert "right-handed" in refused(folder, capsys, "--patient-axes=x,up,y")
    assert "leave the patient's axes out" in refused(case, capsys, "--patient-axes=x,y,z")


@pytest.fixture
def glance(monkeypatch):
    """A search that takes a second: few poses, no shapes."""
    monkeypatch.setattr(kneestart, "FLEXIONS_DEGREES", (0.0,))
    monkeypatch.setattr(kneestart, "TURNS_DEGREES", (0.0,))
    monkeypatch.setattr(kneestart, "SIZES", (1.0,))
    monkeypatch.setattr(kneefit, "SHAPES", ())


@pytest.mark.parametrize("upwards_mm", [75.0, 170.0])
def test_a_field_of_view_that_misses_the_joint_is_refused(glance, upwards_mm):
    """At 75 mm the joint is at the border, at 170 mm nothing but the shaft of the femur is seen."""
    step = np.eye(4)
    step[2, 3] = upwards_mm
    moved = [view.moved(step) for view in views()]
    with pytest.raises(InputError, match="misses the|do not show a knee"):
        reconstruction.reconstruct(xrays(moved), [SEEN, SEEN], moved, "left")


def test_a_smooth_picture_of_something_else_is_refused(glance):
    row, column = np.indices(SHAPE)
    blobs = [2 + np.sin(row / 9 + k) * np.cos(column / 7 - k) for k in (0, 1)]
    with pytest.raises(InputError, match="do not show a knee"):
        reconstruction.reconstruct(blobs, [SEEN, SEEN], views(), "left")
