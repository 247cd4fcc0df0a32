"""Fragments' edges in a CT: where the segmentation is wrong the grey values tell, and only dense edges are trusted."""

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.fragments.bodies import Body
from TibiaCompletionLib.fragments.edges import SPARSE_TRUST, FragmentEdges, fragment_edges

SHAPE, SPACING = (60, 48, 52), np.array([0.9, 0.8, 1.1])
CUT_MM, LEAK_MM = 40.0, 1.6
CORTEX_HU, MARROW_HU, MUSCLE_HU = 1200.0, -60.0, 50.0


def broken_tube(turned, leak=LEAK_MM):
    """A tube of cortex, filled with marrow, broken off square at `CUT_MM`; oblique where asked, i runs against x.

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
    inside = np.clip((radius - 8.0) / 0.8 + 0.5, 0, 1)
    hu = MUSCLE_HU + solid * (MARROW_HU + inside * (CORTEX_HU - MARROW_HU) - MUSCLE_HU)
    hu = ndimage.gaussian_filter(hu, 0.6 / SPACING[::-1])
    mask = (radius < 14 + leak * (points[..., 0] > 22)) & (points[..., 2] < CUT_MM + leak) & (points[..., 2] > 4)
    turn = np.eye(4)
    if turned:
        turn[:3, :3] = np.linalg.qr(np.array([[3.0, 1, 0], [-1, 2, 1], [0, -1, 4]]))[0]
    return Volume(hu.astype(np.float32), turn @ own), Volume(mask, turn @ own), turn


def end_of(turned):
    """(surface, its edges, (n,) vertices' distance from the axis, heights of the edges along the tube)."""
    ct, mask, turn = broken_tube(turned)
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
