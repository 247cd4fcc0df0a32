"""Fragments brought home: where they come from is known, nothing overlaps, a mirror image reads the same."""

import numpy as np
import pytest
from brokentibiae import PLACE, fracture, fragments, healthy, reduction, target
from phantoms import sphere_surface
from tibiae import pose

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.virtualfractures import displaced_surfaces
from TibiaCompletionLib.evaluation.fragments import place_errors
from TibiaCompletionLib.fragments.assessment import Assessment
from TibiaCompletionLib.fragments.bodies import Body, overlap
from TibiaCompletionLib.fragments.reduction import reduce
from TibiaCompletionLib.fragments.target import Target, make_target

KINDS = ("butterfly", "plateau-split-depression")


@pytest.mark.parametrize("kind", KINDS)
def test_every_fragment_comes_home(kind):
    axis = target().axes_from_ras[2, :3]
    for number, motion in enumerate(reduction(kind).motions):
        true = np.linalg.inv(fracture(kind).motions[number])
        centre = fragments(kind)[number].vertices.mean(0)
        rotation, torsion, translation = place_errors(motion, true, centre, axis)
        before = place_errors(np.eye(4), true, centre, axis)
        assert number == 0 or before[0] + abs(before[1]) + before[2] > 5
        assert rotation < 1.5 and abs(torsion) < 3 and translation < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_fragments_overlap(kind):
    found = reduction(kind)
    for a in range(len(found.bodies)):
        for b in range(a):
            assert overlap(found.bodies[a], found.poses[a], found.bodies[b], found.poses[b]) < 1.0


@pytest.mark.parametrize(("interval_mm", "nearest_mm", "farthest_mm"), [(12.0, 0.0, 1.5), (0.5, 2.0, 8.0)])
def test_broken_faces_correct_a_length_as_far_as_it_is_unknown(interval_mm, nearest_mm, farthest_mm):
    """The completion is 6 mm too short below the first fragment; its interval says whether faces may tell."""
    right, pieces = target(), displaced_surfaces(healthy(), fracture("butterfly"))
    first = transform_points(right.axes_from_ras, pieces[0].vertices)[:, 2]
    vertices = right.bone.surface.vertices.copy()
    below = np.clip((first.min() + 20 - vertices[:, 2]) / 40, 0, 1)
    vertices[:, 2] += 6.0 * below
    short = Target(right.axes_from_ras, Body(Surface(vertices, right.bone.surface.faces)), right.joint)
    found = reduce(short, pieces, intervals={"length": interval_mm, "torsion": 4.0})
    true = np.linalg.inv(fracture("butterfly").motions[1])
    centre = pieces[1].vertices.mean(0)
    assert nearest_mm <= place_errors(found.motions[1], true, centre, right.axes_from_ras[2, :3])[2] < farthest_mm


def test_the_order_of_the_fragments_does_not_matter():
    turned = reduce(target(), fragments("butterfly")[::-1])
    assert np.allclose(turned.poses[::-1], reduction("butterfly").poses)


def test_a_mirrored_patient_reads_the_same():
    here, there = reduction("butterfly", "right"), reduction("butterfly", "left")
    for right, left in zip(Assessment(here).figures(here.motions), Assessment(there).figures(there.motions)):
        assert left.values == pytest.approx(right.values, abs=0.2, nan_ok=True)


def test_fragments_of_another_bone_are_refused():
    small = [transformed(surface, np.diag([0.5, 1.6, 0.8, 1.0])) for surface in fragments("butterfly")]
    with pytest.raises(InputError, match="does not fit the completed tibia"):
        reduce(target(), small)


def test_the_axes_are_the_bones_own():
    right, left = target("right"), target("left")
    assert np.abs(right.axes_from_ras @ MIRROR - left.axes_from_ras).max() < 0.05
    assert np.allclose(right.axes_from_ras[:3, :3] @ right.axes_from_ras[:3, :3].T, np.eye(3))
    turned = pose((25, -40, 70), (5.0, 60.0, 300.0))
    moved = make_target(transformed(healthy("right"), turned), "right", np.linalg.inv(turned @ PLACE))
    here = transform_points(right.axes_from_ras, healthy("right").vertices)
    there = transform_points(moved.axes_from_ras @ turned, healthy("right").vertices)
    assert np.abs(here - there).max() < 0.5
    joint = here[right.joint]
    assert (joint[:, 2] > here[:, 2].max() - 20).any() and (joint[:, 2] < 25).any()
    assert not ((joint[:, 2] > 40) & (joint[:, 2] < here[:, 2].max() - 30)).any()


def test_overlap_is_the_depth_of_the_deeper_one():
    ball = Body(sphere_surface(20.0, (0.0, 0.0, 0.0), 4))
    apart = turned_about(np.zeros(3), np.zeros(3), [41.0, 0, 0])
    together = turned_about([0, 0, 1.0], np.zeros(3), [38.5, 0, 0])
    assert overlap(ball, np.eye(4), ball, apart) == 0
    assert overlap(ball, np.eye(4), ball, together) == pytest.approx(1.5, abs=0.1)
