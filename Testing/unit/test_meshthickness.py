"""Thickness images of closed meshes, by numba and by numpy."""

import numpy as np
import pytest
from phantoms import box_surface, sphere_surface
from xrayphantoms import MIDDLE, TURN, VIEWS, TurnedBox, analytic_image

from BoneReconstructionLib import meshthickness
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshraster import add_depths
from BoneReconstructionLib.meshthickness import thickness_image
from BoneReconstructionLib.surfaces import Surface, joined, transformed
from BoneReconstructionLib.xraygeometry import XrayGeometry

BY = {"numba": add_depths, "numpy": meshthickness._add_depths}


@pytest.fixture(params=BY)
def either(request, monkeypatch):
    monkeypatch.setattr(meshthickness, "_adder", lambda: BY[request.param])


def turned_box():
    box = TurnedBox()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = TURN, box.centre
    return transformed(box_surface((0, 0, 0), box.half), matrix), box


@pytest.mark.parametrize("view", VIEWS)
def test_a_box_is_exact_in_every_view(view, either):
    surface, box = turned_box()
    truth = analytic_image(box, VIEWS[view])
    assert np.abs(thickness_image(surface, VIEWS[view]) - truth).max() < 1e-3
    assert truth.max() > 20


@pytest.mark.parametrize("view", VIEWS)
def test_a_fine_mesh_is_closed_in_the_image(view, either):
    sphere = sphere_surface(17.0, (33.0, -44.0, 213.0), 5)
    geometry = VIEWS[view].resized((200, 220))
    image = thickness_image(sphere, geometry)
    # One pixel counted twice or not at all would stand out by hundreds of millimetres.
    assert image.min() > -1e-3 and image.max() == pytest.approx(34, abs=0.1)


def test_rays_through_edges_and_vertices_count_once(either):
    # In this view corners, edges and the diagonals of faces run through pixels' centres.
    geometry = XrayGeometry((0, 0, -1000), (0, 0, 1000), (1, 0, 0), (0, 1, 0), (1, 1), (101, 101))
    image = thickness_image(box_surface((0, 0, 10), (20, 20, 10)), geometry)
    inside = np.zeros(image.shape, dtype=bool)
    inside[11:90, 11:90] = True
    assert np.abs(image[~inside]).max() < 1e-6
    # The rays through the far face are the longer the more they slope, those through a side are cut short.
    assert image[inside].min() > 0.2 and image.max() == pytest.approx(20 * np.hypot(1, np.hypot(39, 39) / 2000))
    assert np.array_equal(image, image.T) and image[50, 50] == pytest.approx(20)


def test_both_ways_give_the_same_image():
    surface, _ = turned_box()
    bones = joined((surface, sphere_surface(12.0, (22.0, -30.0, 190.0), 4)))
    for geometry in VIEWS.values():
        images = []
        for adder in BY.values():
            depths = np.zeros(geometry.shape)
            adder(geometry.project(bones.vertices), 1 / geometry.depths(bones.vertices), bones.faces, depths)
            images.append(depths)
        assert np.abs(images[0] - images[1]).max() < 1e-9


def test_the_image_follows_the_bone(either):
    geometry = VIEWS["along j"]
    centre = MIDDLE + (6.0, -3.0, 8.0)
    image = thickness_image(sphere_surface(9.0, centre, 4), geometry)
    row, column = np.indices(geometry.shape)
    middle = np.array([(column * image).sum(), (row * image).sum()]) / image.sum()
    assert np.abs(middle - geometry.project(centre[None])[0]).max() < 0.2


def test_parts_outside_the_view_are_left_out(either):
    geometry = VIEWS["along i"]
    aside = sphere_surface(9.0, MIDDLE + (0, 0, 300.0), 3)
    assert not thickness_image(aside, geometry).any()
    assert not thickness_image(Surface(np.zeros((0, 3)), np.zeros((0, 3), int)), geometry).any()


def test_a_bone_beside_the_source_is_refused(either):
    geometry = VIEWS["along i"]
    with pytest.raises(InputError, match="beside or behind the X-ray source"):
        thickness_image(sphere_surface(9.0, geometry.source, 3), geometry)
