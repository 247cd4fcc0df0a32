"""Outlines of bones on X-rays."""

import numpy as np
import pytest
from virtualkneexrays import ISOCENTRE, views

from BiplanarReconLib.overlays import COLORS, outline, picture, write_picture
from BoneReconstructionLib.meshing import isosurface
from BoneReconstructionLib.radiographs import Radiograph
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume


def ball(shift=(0, 0, 0), radius=20.0):
    """A ball beside the isocentre."""
    grid = np.indices((48, 48, 48))[::-1] - 23.5
    surface = isosurface(Volume((radius - np.linalg.norm(grid, axis=0)).astype(np.float32), np.eye(4)), 0)
    return Surface(surface.vertices - 23.5 + ISOCENTRE + shift, surface.faces)


def test_the_outline_of_a_ball_is_the_circle_that_its_tangents_draw():
    view = views()[1]
    lines = outline(ball((0.0, 15.0, -10.0)), view)
    assert len(lines) == 1 and np.array_equal(lines[0][0], lines[0][-1])
    middle = view.project((ISOCENTRE + [0.0, 15.0, -10.0])[None])[0]
    # Tangents from a source 1000 mm away; twice as large on the detector.
    radius = 2 * 20 / np.sqrt(1 - 0.02**2) / view.spacing_uv[0]
    assert np.linalg.norm(lines[0] - middle, axis=1) == pytest.approx(radius, abs=1.0)


def test_a_bone_beside_the_image_has_no_outline():
    assert outline(ball((0.0, 0.0, 400.0)), views()[0]) == []


def test_a_picture_shows_the_xray_with_coloured_rims(tmp_path):
    view, values = views()[0], np.tile(np.linspace(0, 4, 160, dtype=np.float32), (160, 1))
    seen = np.ones((160, 160), dtype=bool)
    seen[:10] = False
    image = picture(Radiograph(values, seen), view, {"patella": ball()})
    assert image.shape == (160, 160, 3) and not image[:10].any()
    assert image[20, 150, 0] > image[20, 5, 0] and (image[20, :, 0] == image[20, :, 2]).all()
    rim = (image == COLORS["patella"]).all(2)
    middle = view.project(ISOCENTRE[None])[0]
    assert 100 < rim.sum() < 300 and not rim[int(middle[1]), int(middle[0])]
    write_picture(tmp_path / "picture.png", image)
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG" and len(list(tmp_path.iterdir())) == 1
