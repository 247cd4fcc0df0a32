"""`bonerecon simulate-xrays`, from a CT file to two X-rays with their geometry."""

import json

import numpy as np
import pytest
from phantoms import frame, solid_ct, voxel_centres
from xrayphantoms import MIDDLE

from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib.cli import main
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.radiographs import read_radiograph
from BoneReconstructionLib.volumes import read_volume, write_volume
from BoneReconstructionLib.xraygeometry import angle_between, check_views
from BoneReconstructionLib.xraygeometryfiles import read_geometry
from BoneReconstructionLib.xraysimulation import attenuation_per_mm


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    path = tmp_path_factory.mktemp("Dr. Lékař") / "ct of a knee.nrrd"
    write_volume(path, solid_ct(frame((0.9, 0.8, 1.1), flipped_axes="i")))
    return path


def simulate(ct, output, *arguments):
    return main(["simulate-xrays", "--ct", str(ct), "--preset", "ssr-kd", "--output", str(output), *arguments])


@pytest.mark.parametrize("angle", [60.0, 90.0, 120.0])
@pytest.mark.parametrize("frontal", ["AP", "PA"])
@pytest.mark.parametrize("lateral", ["left lateral", "right lateral"])
def test_views_are_as_far_apart_as_asked(frontal, lateral, angle):
    views = standard_views("c-arm", MIDDLE, frontal, lateral, angle)
    assert angle_between(*views) == pytest.approx(angle)
    with pytest.raises(InputError, match="nearly parallel"):
        standard_views("c-arm", MIDDLE, frontal, lateral, 20.0)


def test_the_images_show_the_ct_where_the_geometry_says(ct, tmp_path, capsys):
    output = tmp_path / "x-rays"
    assert simulate(ct, output, "--conditions", "ideal") == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "ap.json", "ap.nrrd", "lateral.json", "lateral.nrrd", "result.json",
    ]  # fmt: skip
    volume = read_volume(ct)
    weights = attenuation_per_mm(volume.array).ravel()
    centre = weights @ voxel_centres(volume.shape, volume.ijk_to_ras).reshape(-1, 3) / weights.sum()
    views = []
    for name in ("ap", "lateral"):
        image = read_radiograph(output / f"{name}.nrrd")
        geometry = read_geometry(output / f"{name}.json", image.shape)
        assert image.spacing_uv == pytest.approx(tuple(geometry.spacing_uv)) and image.seen.all()
        row, column = np.indices(image.shape)
        total = image.line_integrals.sum()
        middle = np.array([(column * image.line_integrals).sum(), (row * image.line_integrals).sum()]) / total
        assert np.abs(middle - geometry.project(centre[None])[0]).max() < 0.6
        views.append(geometry)
    check_views(*views)
    result = json.loads((output / "result.json").read_text())
    assert result["engine"] in ("numba", "torch") and result["views"] == ["AP", "left lateral"]
    stages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert stages[-1]["progress"] == 1


def test_the_seed_decides_conditions_and_noise(ct, tmp_path):
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert simulate(ct, tmp_path / name, "--seed", seed, "--format", "tiff", "--angle", "70") == 0
    first, second, third = ((tmp_path / name / "lateral.tif").read_bytes() for name in "abc")
    assert first == second != third
    conditions = json.loads((tmp_path / "a" / "result.json").read_text())["conditions"]
    assert 60 <= conditions[0]["kilovolt"] <= 80 and conditions[0] != conditions[1]
    image = read_radiograph(tmp_path / "a" / "lateral.tif", "linear", "dark")
    assert image.shape == (512, 512) and image.spacing_uv is None
    frontal, lateral = (read_geometry(tmp_path / "a" / f"{name}.json") for name in ("ap", "lateral"))
    assert angle_between(frontal, lateral) == pytest.approx(70)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--angle", "20"), "nearly parallel"),
        (("--isocentre", "0", "0", "900"), "CT's centre lies outside"),
        (("--isocentre", "nan", "0", "0"), "isocentre is missing"),
        (("--seed", "-1"), "seed is negative"),
    ],
)
def test_bad_requests_end_with_one_sentence_and_nothing_written(ct, tmp_path, capsys, arguments, words):
    output = tmp_path / "out"
    assert simulate(ct, output, *arguments) == 2
    assert words in capsys.readouterr().err and not output.exists()


def test_nothing_is_overwritten(ct, tmp_path, capsys):
    (tmp_path / "ap.json").write_text("mine")
    assert simulate(ct, tmp_path) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ap.json"]
    assert simulate(tmp_path / "missing.nrrd", tmp_path / "out") == 2
