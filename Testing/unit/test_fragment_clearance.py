"""Fragments that end up in each other are shifted apart, no farther than that takes."""

import numpy as np
import pytest
from phantoms import sphere_surface

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.frames import rotation_about
from BoneReconstructionLib.surfaces import Surface
from TibiaCompletionLib.fragments.bodies import Body, overlap
from TibiaCompletionLib.fragments.clearance import cleared

TURN = np.array([0.3, -0.8, 0.5])
AXIS = np.array([2.0, -1.0, 2.0]) / 3
LARGE_MM, SMALL_MM = 20.0, 8.0


def ball(radius):
    return Body(sphere_surface(radius, (0.0, 0.0, 0.0), 4))


def rod(radius, axis):
    """A rod of 40 mm along z (2) or x (0), rounded: a ball drawn out."""
    stretch = np.full(3, radius)
    stretch[axis] = 20.0
    surface = sphere_surface(1.0, (0.0, 0.0, 0.0), 4)
    return Body(Surface(surface.vertices * stretch, surface.faces))


def at(*shift):
    """A turned fragment somewhere."""
    return turned_about(TURN, np.zeros(3), np.asarray(shift, dtype=float))


def deepest(bodies, poses):
    pairs = [(a, b) for a in range(len(bodies)) for b in range(a)]
    return max(overlap(bodies[a], poses[a], bodies[b], poses[b]) for a, b in pairs)


@pytest.mark.parametrize("depth", [1.3, 3.0])
def test_a_fragment_is_shifted_the_shortest_way_and_not_turned(depth):
    bodies, poses = [ball(LARGE_MM), ball(LARGE_MM)], [at(0, 0, 0), at(*(40.0 - depth) * AXIS)]
    found = cleared(bodies, poses)
    assert 0.5 < deepest(bodies, found) <= 1.0 < deepest(bodies, poses)
    np.testing.assert_array_equal(found[0], poses[0])
    np.testing.assert_array_equal(found[1][:3, :3], poses[1][:3, :3])
    shift = found[1][:3, 3] - poses[1][:3, 3]
    assert shift @ AXIS == pytest.approx(depth - 0.8, abs=0.15)
    assert np.linalg.norm(shift - (shift @ AXIS) * AXIS) < 0.15


def test_what_is_not_in_anything_stays():
    bodies, poses = [ball(LARGE_MM), ball(SMALL_MM)], [at(0, 0, 0), at(*27.5 * AXIS)]
    np.testing.assert_array_equal(cleared(bodies, poses), poses)


def test_a_small_fragment_gives_way_to_a_large_one():
    bodies = [ball(LARGE_MM), ball(LARGE_MM), ball(SMALL_MM)]
    poses = [at(0, 0, 0), at(45.0, 0, 0), at(45.0, 25.0, 0)]
    found = cleared(bodies, poses)
    large, small = (np.linalg.norm((new - old)[:3, 3]) for new, old in zip(found[1:], poses[1:], strict=True))
    assert deepest(bodies, found) <= 1.0
    assert small > 5 * large


def test_a_push_is_passed_on():
    bodies, poses = [ball(LARGE_MM)] * 3, [at(0, 0, 0), at(37.0, 0, 0), at(76.5, 0, 0)]
    found = cleared(bodies, poses)
    assert deepest(bodies, found) <= 1.0
    assert found[2][0, 3] > poses[2][0, 3] + 0.5


def test_what_crosses_another_leaves_although_its_vertices_look_for_ways_out_on_both_sides():
    bodies, poses = [rod(3.0, 2), rod(2.0, 0)], [np.eye(4), at(0, 0, 0)]
    poses[1][:3, :3] = rotation_about((0, 0, 1), 0.2)
    poses[1][1, 3] = 1.5
    found = cleared(bodies, poses)
    assert deepest(bodies, poses) > 1.5 and deepest(bodies, found) <= 1.0
    assert 1.5 < found[1][1, 3] < 6.5


def test_what_is_far_too_deep_is_left_to_the_user():
    bodies, poses = [ball(LARGE_MM), ball(SMALL_MM)], [at(0, 0, 0), at(3.0, 0, 0)]
    np.testing.assert_array_equal(cleared(bodies, poses), poses)
