"""Fragments' edges in a CT: where the segmentation is wrong the grey values tell, and only dense edges are trusted."""

from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.fragments.bodies import Body
from TibiaCompletionLib.fragments.edges import SPARSE_TRUST, STEP_TRUST, FragmentEdges, fragment_edges

SHAPE, SPACING = (60, 48, 52), np.array([0.9, 0.8, 1.1])
CUT_MM, LEAK_MM = 40.0, 1.6
CORTEX_HU, CANCELLOUS_HU, MARROW_HU, MUSCLE_HU = 1200.0, 400.0, -60.0, 50.0


def broken_tube(turned, leak=LEAK_MM, filling=MARROW_HU, cortex=6.0):
    """A tube of cortex, filled with something, broken off square at `CUT_MM`; oblique where asked, i runs against x.

    Returns:
        (CT, mask that lies too far out at the broken end and on one side by the leak in mm, (4, 4) RAS from the tube's
        own frame, z along it).
    """
    own = np.diag([*(SPACING * [-1, 1, 1]), 1.0])
    own[:3, 3] = [SPACING[0] * (SHAPE[2] - 1), 0.0, 0.0]
    k, j, i = np.indices(SHAPE)
    points = np.stack([i, j, k], -1) * SPACING
    radius = np.hypot(points[..., 0] - 22, points[..., 1] - 19)
    solid = np.clip((14.0 - radius) / 0.8 + 0.5, 0, 1) * np.clip((CUT_MM - points[..., 2]) / 1.1 + 0.5, 0, 1)
    inside = np.clip((radius - 14.0 + cortex) / 0.8 + 0.5, 0, 1)
    hu = MUSCLE_HU + solid * (filling + inside * (CORTEX_HU - filling) - MUSCLE_HU)
    hu = ndimage.gaussian_filter(hu, 0.6 / SPACING[::-1])
    mask = (radius < 14 + leak * (points[..., 0] > 22)) & (points[..., 2] < CUT_MM + leak) & (points[..., 2] > 4)
    turn = np.eye(4)
    if turned:
        turn[:3, :3] = np.linalg.qr(np.array([[3.0, 1, 0], [-1, 2, 1], [0, -1, 4]]))[0]
    return Volume(hu.astype(np.float32), turn @ own), Volume(mask, turn @ own), turn


def end_of(turned, filling=MARROW_HU):
    """(surface, its edges, (n,) vertices' distance from the axis, heights of the edges along the tube)."""
    ct, mask, turn = broken_tube(turned, filling=filling)
    surface = mask_surface(mask)
    (edges,) = fragment_edges([surface], ct)
    back = np.linalg.inv(turn)
    own = surface.vertices @ back[:3, :3].T + back[:3, 3]
    found = edges.points @ back[:3, :3].T + back[:3, 3]
    middle = np.array([SPACING[0] * (SHAPE[2] - 1) - 22, 19])
    return own, found, edges, np.linalg.norm(own[:, :2] - middle, axis=1)


def test_edges_of_broken_cortex_lie_where_the_ct_shows_them():
    for turned in (False, True):
        own, found, edges, radius = end_of(turned)
        face = (own[:, 2] > CUT_MM) & (radius > 9.5) & (radius < 12.5)
        assert np.count_nonzero(face) > 50
        assert np.abs(found[face, 2] - CUT_MM).mean() < 0.35
        assert np.mean(edges.trust[face] == 1) > 0.8


def test_marrow_at_a_broken_end_is_not_trusted():
    own, _, edges, radius = end_of(False)
    assert np.all(edges.trust[(own[:, 2] > CUT_MM) & (radius < 6)] == SPARSE_TRUST)


def test_a_break_through_cancellous_bone_is_shown_where_it_is():
    for turned in (False, True):
        turn = broken_tube(turned)[2]
        own, _, edges, radius = end_of(turned, CANCELLOUS_HU)
        face = (own[:, 2] > CUT_MM) & (radius < 6)
        faces = (edges.faces - turn[:3, 3]) @ turn[:3, :3]
        assert np.mean(edges.trust[face] == STEP_TRUST) > 0.9 and np.mean(edges.trust[face] > SPARSE_TRUST) > 0.9
        assert np.abs(faces[face, 2] - CUT_MM).mean() < 0.35
        assert np.abs(own[face, 2] - CUT_MM).mean() > 1.0  # the segmentation does not know


def test_thin_cortex_with_marrow_behind_it_is_no_step():
    ct, mask, _ = broken_tube(False, cortex=1.5)
    surface = mask_surface(mask)
    (edges,) = fragment_edges([surface], ct)
    assert np.count_nonzero(edges.trust == 1) > 1000
    assert np.mean(edges.trust == STEP_TRUST) < 0.02


def test_thin_cortex_is_measured_by_what_thick_cortex_beside_it_tells():
    """A piece of a joint has no thick cortex, and taken alone its cortex would pass for less dense and thicker."""
    (thick, rough, _), (thin, mask, _) = broken_tube(False), broken_tube(False, filling=150.0, cortex=1.0)
    empty = np.zeros_like(mask.array)
    ct = Volume(np.concatenate([thin.array, thick.array], axis=2), thin.ijk_to_ras)
    masks = [np.concatenate(both, axis=2) for both in ((mask.array, empty), (empty, rough.array))]
    surfaces = [mask_surface(Volume(array, thin.ijk_to_ras)) for array in masks]
    edges, _ = fragment_edges(surfaces, ct)
    points = surfaces[0].vertices
    wall = (points[:, 2] > 12) & (points[:, 2] < CUT_MM - 8)
    middle = np.array([SPACING[0] * (SHAPE[2] - 1) - 22, 19])
    out = np.linalg.norm(edges.points[wall, :2] - middle, axis=1) - 14.0
    assert np.count_nonzero(wall) > 500
    assert abs(np.median(out)) < 0.15


def test_a_careful_segmentation_is_taken_as_it_is():
    ct, mask, _ = broken_tube(False, 0.0)
    surface = mask_surface(mask)
    (edges,) = fragment_edges([surface], ct)
    assert edges is None


def test_a_body_asks_the_edges_and_not_the_segmentation():
    surface = mask_surface(broken_tube(False)[1])
    top = surface.vertices[:, 2] > CUT_MM
    faces = surface.vertices - [0, 0, 2.0]
    body = Body(surface, FragmentEdges(surface.vertices, faces, np.where(top, 0.5, 1.0)))
    middle = surface.vertices[top & (np.hypot(*(surface.vertices[:, :2] - surface.vertices[top, :2].mean(0)).T) < 5)]
    points = middle + [0, 0, 3.0]
    away, normals = body.nearest_edge(points, 0.5)
    assert np.abs(away - 5.0).max() < 0.3 and normals[:, 2].min() > 0.9
    for elsewhere, trust in ((points, 1.0), (points + [900.0, 0, 0], 0.5)):
        away, normals = body.nearest_edge(elsewhere, trust)
        assert not away.any() and not normals.any()


def test_the_way_out_is_that_of_the_faces_and_not_of_the_segmentation():
    surface = mask_surface(broken_tube(False)[1])
    top = surface.vertices[:, 2] > CUT_MM
    faces = np.where(top[:, None], surface.vertices - [0, 0, 2.0], surface.vertices)
    body = Body(surface, FragmentEdges(surface.vertices, faces, np.full(len(faces), SPARSE_TRUST)))
    centre = surface.vertices[top, :2].mean(0)
    points = np.array([[*centre, CUT_MM - 3.0], [*centre, CUT_MM + 1.0]])
    away, directions = body.way_out(points)
    assert away == pytest.approx(points[:, 2] - (surface.vertices[top, 2].max() - 2.0), abs=0.1)
    assert directions[:, 2].min() > 0.99


def test_beside_a_sharp_edge_nothing_is_inside():
    corners = np.array(list(product((0.0, 10.0), repeat=3)))
    squares = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    box = Body(Surface(corners, np.concatenate([squares[:, :3], squares[:, [0, 2, 3]]])))
    points = np.random.default_rng(0).uniform(-3, 13, (2000, 3))
    outside = ((points < 0) | (points > 10)).any(1)
    assert np.array_equal(box.way_out(points)[0] > 0, outside)
