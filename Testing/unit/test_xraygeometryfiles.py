"""Geometries in files: our JSON and MayaCam 2.0 calibration texts."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from xrayphantoms import VIEWS

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.xraygeometry import angle_between, check_views
from BoneReconstructionLib.xraygeometryfiles import read_geometry, write_geometry

CAMERA = np.array([[8600.0, 0, 790.5], [0, 8700.0, 902.25], [0, 0, 1]])
ROTATION = Rotation.from_euler("xyz", (100, 35, -20), degrees=True).as_matrix()
TRANSLATION = np.array([-60.0, 120.0, 1370.0])
SIZE = (1500, 1760)  # columns, rows


def mayacam(camera=CAMERA, rotation=ROTATION, translation=TRANSLATION, size=SIZE, newline="\n"):
    rows = [
        "image size", ",".join(map(str, size)), "",
        "camera matrix", *(",".join(map(repr, map(float, row))) for row in camera), "",
        "rotation", *(",".join(map(repr, map(float, row))) for row in rotation), "",
        "translation", *(repr(float(value)) for value in translation), "",
    ]  # fmt: skip
    return newline.join(rows)


def write(path, text):
    path.write_bytes(text.encode())
    return path


def test_a_geometry_comes_back_from_its_file(tmp_path):
    path = tmp_path / "Dr. Lékař ap.json"
    for geometry in VIEWS.values():
        write_geometry(path, geometry)
        again = read_geometry(path, geometry.shape)
        assert np.allclose(again.matrix, geometry.matrix, rtol=1e-12) and again.shape == geometry.shape
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_calibration_projects_as_its_camera_does(tmp_path, newline):
    geometry = read_geometry(write(tmp_path / "cam1.txt", mayacam(newline=newline)), SIZE[::-1])
    points = np.random.default_rng(0).uniform(-80, 80, (30, 3))
    seen = (points @ ROTATION.T + TRANSLATION) @ CAMERA.T
    assert np.allclose(geometry.project(points), seen[:, :2] / seen[:, 2:], atol=1e-8)
    assert geometry.source == pytest.approx(-ROTATION.T @ TRANSLATION)
    assert geometry.shape == (1760, 1500) and not geometry.mirrored
    # The frame is the calibration's, and pixels are oblong as the two focal lengths say.
    assert not geometry.anatomical and geometry.assumed == ()
    assert geometry.spacing_uv[0] / geometry.spacing_uv[1] == pytest.approx(8700 / 8600)
    assert geometry.origins["angles"] == "calibration" and "nominal" in geometry.origins["source_detector"]


def test_two_calibrated_cameras_make_a_pair(tmp_path):
    turn = Rotation.from_euler("y", 52, degrees=True).as_matrix()
    first = read_geometry(write(tmp_path / "1.txt", mayacam(translation=(5, -9, 1370))))
    second = read_geometry(write(tmp_path / "2.txt", mayacam(rotation=turn @ ROTATION, translation=(3, 8, 1470))))
    assert angle_between(first, second) == pytest.approx(52, abs=5)
    check_views(first, second)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (mayacam(rotation=2 * ROTATION), "rotation is none"),
        (mayacam(rotation=-ROTATION), "rotation is none"),
        (mayacam(camera=-CAMERA), "camera matrix is none"),
        (mayacam(camera=CAMERA + [[0, 90, 0], [0, 0, 0], [0, 0, 0]]), "without skew"),
        (mayacam(translation=(-6.0, 12.0, 137.0)), "mm from the detector"),  # centimetres
        (mayacam(size=(1500, 1760, 3)), "lacks its image size"),
        (mayacam().replace("rotation", "turning"), "lacks its rotation"),
        (mayacam().replace("8600.0", "wide"), "'camera matrix' is not made of numbers"),
        ("1,2,3\n4,5,6\n7,8,9\n1,2,3\n4,5,6\n", "MayaCam 1.0"),
        ("hello", "neither an X-ray geometry"),
        ("{", "no valid JSON"),
        ('{"a": 1}', "no X-ray geometry"),
    ],
)
def test_other_texts_are_refused_with_the_files_name(tmp_path, text, words):
    with pytest.raises(InputError, match=rf"^cam\.txt: .*{words}"):
        read_geometry(write(tmp_path / "cam.txt", text))


def test_a_geometry_of_another_image_is_refused(tmp_path):
    path = write(tmp_path / "cam.txt", mayacam())
    with pytest.raises(InputError, match="image of 1500 x 1760 pixels, the X-ray has 1760 x 1500"):
        read_geometry(path, (1500, 1760))
    with pytest.raises(InputError, match="cannot be read"):
        read_geometry(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_geometry(write(tmp_path / "picture.txt", "ok").parent)
