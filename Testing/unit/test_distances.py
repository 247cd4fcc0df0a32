"""Point-to-triangle distances against brute force, known shapes and the angle-weighted sign."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull, Delaunay

from BoneReconstructionLib.distances import (
    TOLERANCE_MM,
    SurfaceLocator,
    closest_points,
    signed_distances,
    surface_distances,
)
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.surfaces import Surface, joined


def box(size=(10.0, 20.0, 30.0), centre=(0.0, 0.0, 0.0)):
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    return outward(corners * size + centre)


def outward(points):
    """Convex hull of the points with faces counter-clockwise seen from outside."""
    faces = ConvexHull(points).simplices.astype(np.int64)
    a, b, c = points[faces.T]
    inwards = np.einsum("ij,ij->i", np.cross(b - a, c - a), a - points.mean(axis=0)) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return Surface(points, faces)


def sphere(radius, count=3000, centre=(0.0, 0.0, 0.0)):
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    z = 1 - (2 * np.arange(count) + 1) / count
    ring = np.sqrt(1 - z**2)
    return outward(radius * np.column_stack([ring * np.cos(turn), ring * np.sin(turn), z]) + centre)


def brute_force(points, surface):
    """Distances by projection on every plane and every edge, one triangle after the other."""
    best = np.full(len(points), np.inf)
    for triangle in surface.vertices[surface.faces]:
        for start, end in zip(triangle, np.roll(triangle, -1, axis=0)):
            length2 = max(np.dot(end - start, end - start), 1e-300)
            place = np.clip((points - start) @ (end - start) / length2, 0, 1)
            best = np.minimum(best, np.linalg.norm(points - start - place[:, None] * (end - start), axis=1))
        normal = np.cross(triangle[1] - triangle[0], triangle[2] - triangle[0])
        area = np.linalg.norm(normal)
        if area > 1e-9:
            normal /= area
            height = (points - triangle[0]) @ normal
            foot = points - height[:, None] * normal
            sides = [np.cross(e - s, foot - s) @ normal for s, e in zip(triangle, np.roll(triangle, -1, axis=0))]
            best = np.where(np.min(sides, axis=0) >= 0, np.minimum(best, np.abs(height)), best)
    return best


def soup(rng, count, spread, size):
    centres = rng.uniform(-spread, spread, (count, 1, 3))
    vertices = (centres + rng.normal(size=(count, 3, 3)) * size).reshape(-1, 3)
    return Surface(vertices, np.arange(3 * count).reshape(-1, 3))


def slivers(rng):
    """Long thin obtuse triangles, some without any area, among small ones."""
    small = soup(rng, 200, 40, 1.0).vertices.reshape(-1, 3, 3)
    start, along = rng.uniform(-50, 50, (60, 3)), rng.normal(size=(60, 3)) * 40
    width = rng.normal(size=(60, 3)) * rng.choice([0, 1e-7, 1e-3, 0.3], (60, 1))
    thin = np.stack([start, start + along, start + rng.uniform(0, 1, (60, 1)) * along + width], axis=1)
    vertices = np.concatenate([small, thin]).reshape(-1, 3)
    return Surface(vertices, np.arange(len(vertices)).reshape(-1, 3))


def mixed_sizes(rng):
    """A finely meshed sphere beside a box of twelve triangles."""
    fine, coarse = sphere(8, 2000), box((80, 90, 100), (60, 0, 0))
    return joined((fine, coarse))


SURFACES = {
    "scattered triangles": lambda rng: soup(rng, 300, 30, 5.0),
    "triangles of very different size": lambda rng: soup(rng, 300, 60, np.exp(rng.normal(size=(300, 1, 1)) * 1.5)),
    "slivers": slivers,
    "fine beside coarse": mixed_sizes,
    "one triangle": lambda rng: soup(rng, 1, 10, 10.0),
    "a box of twelve triangles": lambda rng: box(),
    "an irregular hull": lambda rng: outward(rng.normal(size=(400, 3)) * [5, 10, 60]),
}


@pytest.mark.parametrize("name", SURFACES)
def test_distances_agree_with_brute_force_within_the_stated_tolerance(name):
    rng = np.random.default_rng(7)
    surface = SURFACES[name](rng)
    near = surface.vertices[rng.integers(len(surface.vertices), size=700)] + rng.normal(size=(700, 3))
    points = np.concatenate([near, rng.uniform(-80, 80, (500, 3)), rng.normal(size=(100, 3)) * 5000])
    truth = brute_force(points, surface)
    feet, distances, faces = closest_points(points, surface)
    assert (distances - truth).max() <= TOLERANCE_MM
    assert (distances - truth).min() >= -1e-6
    assert np.mean(np.abs(distances - truth) < 1e-6) > 0.99
    np.testing.assert_allclose(np.linalg.norm(points - feet, axis=1), distances, atol=1e-9)
    for foot, face in zip(feet[:200], faces[:200], strict=True):
        assert brute_force(foot[None], Surface(surface.vertices, surface.faces[face][None])) < 1e-6
    np.testing.assert_allclose(np.abs(signed_distances(points, surface)), distances, atol=1e-12)


def test_results_do_not_depend_on_the_order_or_number_of_points():
    rng = np.random.default_rng(1)
    locator = SurfaceLocator(sphere(20, 4000))
    points = rng.normal(size=(30000, 3)) * 15
    order = rng.permutation(len(points))
    together = locator.signed(points)
    np.testing.assert_array_equal(locator.signed(points[order]), together[order])
    np.testing.assert_array_equal(locator.signed(points[:1]), together[:1])
    assert locator.signed(np.empty((0, 3))).shape == (0,)


def test_points_equally_far_from_everything_are_answered():
    distances = signed_distances(np.zeros((20, 3)), sphere(50, 3000))
    np.testing.assert_allclose(distances, -50, atol=0.1)


def test_the_sign_is_right_on_every_side_of_a_box():
    rng = np.random.default_rng(3)
    points = rng.uniform(-30, 30, (5000, 3))
    beyond = np.abs(points) - np.array([5.0, 10.0, 15.0])
    truth = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)
    found = signed_distances(points, box())
    np.testing.assert_array_equal(found < 0, truth < 0)
    np.testing.assert_allclose(found, truth, atol=TOLERANCE_MM)


def test_the_sign_is_right_around_a_thin_slab_and_a_sharp_wedge():
    rng = np.random.default_rng(4)
    slab = box((40, 40, 0.02))
    points = rng.uniform(-25, 25, (4000, 3)) * [1, 1, 0.001]
    beyond = np.abs(points) - np.array([20, 20, 0.01])
    np.testing.assert_array_equal(signed_distances(points, slab) > 0, beyond.max(axis=1) > 0)

    blade = outward(np.array([[0, 0, z] for z in (-20.0, 20)] + [[30, y, z] for y in (-1.0, 1) for z in (-20.0, 20)]))
    points = rng.uniform([-3, -3, -19], [25, 3, 19], (4000, 3))
    inside = (points[:, 0] > 0) & (np.abs(points[:, 1]) < points[:, 0] / 30)
    np.testing.assert_array_equal(signed_distances(points, blade) < 0, inside)


def test_the_sign_survives_unconnected_triangles_and_unused_vertices():
    connected = box()
    apart = Surface(
        np.concatenate([[[99.0, 99, 99]], connected.vertices[connected.faces].reshape(-1, 3)]),
        np.arange(36).reshape(-1, 3) + 1,
    )
    points = np.random.default_rng(5).uniform(-25, 25, (2000, 3))
    np.testing.assert_allclose(signed_distances(points, apart), signed_distances(points, connected), atol=TOLERANCE_MM)


def test_concentric_spheres_are_as_far_apart_as_their_radii():
    found = surface_distances(sphere(21, 8000), sphere(20, 8000))
    for figure in (found.assd, found.rmsd, found.hd95, found.mean_signed_a_to_b, -found.mean_signed_b_to_a):
        assert figure == pytest.approx(1.0, abs=0.02)
    assert found.hd == pytest.approx(1.0, abs=0.03)


def test_a_surface_has_no_distance_to_itself():
    found = surface_distances(sphere(20), sphere(20))
    assert max(found.assd, found.rmsd, found.hd, found.hd95) < 1e-9


def test_a_shifted_box_has_the_distances_computed_by_hand():
    found = surface_distances(box(), box(centre=(0, 0, 2)))
    # The corners of one end lie 2 mm outside the other box, those of the other end on its sides; all weigh the same.
    np.testing.assert_allclose(found.a_to_b, np.where(box().vertices[:, 2] < 0, 2.0, 0.0), atol=1e-9)
    assert (found.hd, found.hd95) == pytest.approx((2.0, 2.0))
    assert 0.8 < found.assd < 1.2 and found.rmsd == pytest.approx(np.sqrt(2 * found.assd))


def test_averages_count_area_and_not_vertices():
    flat = np.array([[0.0, 0, 0], [100, 0, 0], [100, 100, 0], [0, 100, 0]])
    rng = np.random.default_rng(6)
    crowded = np.concatenate([flat, np.column_stack([rng.uniform(1, 3, (500, 2)), np.zeros(500)])])
    low = Surface(flat - [0, 0, 1], np.array([[0, 1, 2], [0, 2, 3]]))
    tilted = crowded + np.column_stack([np.zeros((len(crowded), 2)), crowded[:, 0] / 50])
    high = Surface(tilted, Delaunay(crowded[:, :2]).simplices.astype(np.int64))
    # Heights above the lower plane run evenly from 1 to 3 mm over the area; most vertices are near 1 mm.
    assert np.median(np.abs(surface_distances(high, low).a_to_b)) < 1.1
    assert abs(surface_distances(high, low).mean_signed_a_to_b) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    "surface",
    [
        Surface(np.zeros((3, 3)), np.empty((0, 3), np.int64)),
        Surface(np.array([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]]), np.array([[0, 1, 2]])),
    ],
)
def test_a_surface_without_triangles_or_with_bad_numbers_is_refused(surface):
    with pytest.raises(InputError):
        SurfaceLocator(surface)


@pytest.mark.parametrize("points", [np.zeros(3), np.zeros((4, 2)), np.array([[0, 0, np.inf]])])
def test_points_that_are_no_points_are_refused(points):
    with pytest.raises(InputError):
        SurfaceLocator(box()).signed(points)
