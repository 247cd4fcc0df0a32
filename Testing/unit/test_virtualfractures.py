"""Virtual fractures: what breaks, where it goes, and that the truth which is kept is true."""

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import label
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.fracturekinds import KINDS
from BoneReconstructionLib.frames import MIRROR, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, is_closed, transformed, volume_mm3
from BoneReconstructionLib.virtualfractures import displaced_labels, displaced_surfaces, draw_fracture, fracture_ct
from BoneReconstructionLib.volumes import Volume

SHAFT = ("transverse", "oblique", "spiral", "butterfly", "segmental")
SEEDS = (0, 1)
MARGIN_MM = 60.0
TOP = -470.0  # mm, below the plateau of the tibia as it lies


@cache
def right_tibia():
    """The prior's mean tibia, tilted and far from the origin."""
    prior = load_prior("tibia-prior", "tibia")
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", (11, -7, 25), degrees=True).as_matrix()
    pose[:3, 3] = (95, 20, -600)
    return transformed(Surface(prior.mean, prior.faces), pose)


@cache
def left_tibia():
    return transformed(right_tibia(), MIRROR)


@cache
def fracture(kind, seed=0, displaced=True):
    return draw_fracture(right_tibia(), "right", kind, seed, displaced)


@cache
def healthy():
    """Bool volume of the tibia on an oblique, anisotropic, left-handed grid that leaves room to move."""
    turn = Rotation.from_euler("xyz", (4, 3, -8), degrees=True).as_matrix()
    spacing = np.array([-1.4, 1.5, 1.8])
    along = right_tibia().vertices @ (turn * np.sign(spacing))
    grid = np.eye(4)
    grid[:3, :3] = turn * spacing
    grid[:3, 3] = turn * np.sign(spacing) @ (along.min(0) - MARGIN_MM)
    shape = np.ceil((np.ptp(along, axis=0) + 2 * MARGIN_MM) / np.abs(spacing)).astype(int)[::-1]
    return voxelize(right_tibia(), tuple(shape), grid)


@cache
def bone_points():
    """(n, 3) RAS points inside the tibia."""
    return transform_points(healthy().ijk_to_ras, np.argwhere(healthy().array)[:, ::-1])


@cache
def fragments(kind, seed=0):
    """(n,) the fragments at `bone_points`."""
    return fracture(kind, seed).fragment_of(bone_points())


@cache
def labels_and_mask(kind, seed=0):
    return displaced_labels(healthy(), fracture(kind, seed))


def turn_degrees(motion):
    return np.degrees(Rotation.from_matrix(motion[:3, :3]).magnitude())


def moved_mm(motion, points):
    return np.linalg.norm(transform_points(motion, points) - points, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
class TestEveryKind:
    def test_breaks_into_two_to_four_fragments_of_some_size(self, kind, seed):
        fragment = fragments(kind, seed)
        shares = np.bincount(fragment + 1, minlength=2)[1:] / len(fragment)
        assert 2 <= len(shares) == len(fracture(kind, seed).motions) <= 4
        assert shares.min() > 0.015
        assert np.array_equal(np.argsort(-shares), np.arange(len(shares)))
        assert 0 < (fragment < 0).mean() < 0.06

    def test_fragments_hang_together(self, kind, seed):
        fragment = fragments(kind, seed)
        for number in range(len(fracture(kind, seed).motions)):
            voxels = np.argwhere(healthy().array)[fragment == number]
            grid = np.zeros(np.ptp(voxels, axis=0) + 1, dtype=bool)
            grid[tuple((voxels - voxels.min(0)).T)] = True
            sizes = np.bincount(label(grid, np.ones((3, 3, 3)))[0].ravel())[1:]
            assert sizes.max() > 0.96 * sizes.sum()

    def test_moves_rigidly_all_but_the_largest_fragment(self, kind, seed):
        motions = fracture(kind, seed).motions
        assert np.array_equal(motions[0], np.eye(4))
        for number, motion in enumerate(motions[1:], 1):
            assert np.allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3)) and np.linalg.det(motion[:3, :3]) > 0
            lines = fracture(kind, seed).line_points[(fracture(kind, seed).line_fragments == number).any(1)]
            assert 1 < moved_mm(motion, lines).mean() < 45
            assert turn_degrees(motion) < 45

    def test_fragments_hardly_overlap(self, kind, seed):
        labels, _ = labels_and_mask(kind, seed)
        kept = np.count_nonzero(fragments(kind, seed) >= 0)
        assert np.count_nonzero(labels.array) == pytest.approx(kept, rel=0.015)

    def test_mask_covers_the_lines_and_leaves_bone(self, kind, seed):
        drawn = fracture(kind, seed)
        beside = Rotation.random(len(drawn.line_points), random_state=0).as_matrix()[:, 0]
        assert drawn.mask_at(drawn.line_points + 3.9 * beside).all()
        mask = drawn.mask_at(bone_points())
        assert mask[fragments(kind, seed) < 0].all()
        height = transform_points(drawn.right_from_ras, bone_points())[:, 2]
        masked = np.bincount(np.floor(height - height.min()).astype(int), mask)
        assert np.count_nonzero(masked == 0) >= 80


@pytest.mark.parametrize("kind", KINDS)
class TestKind:
    def test_undisplaced_stays_within_a_millimetre_and_a_degree(self, kind):
        drawn = fracture(kind, displaced=False)
        for motion in drawn.motions:
            assert moved_mm(motion, right_tibia().vertices).max() < 1.5
            assert moved_mm(motion, drawn.line_points).max() < 1
            assert turn_degrees(motion) < 1
        lost = bone_points()[drawn.fragment_of(bone_points()) < 0]
        assert len(lost) and drawn.distance_to_lines(lost).max() < 1 + 1.0

    def test_left_bone_breaks_as_the_mirror_image(self, kind):
        left = draw_fracture(left_tibia(), "left", kind, 0)
        points = bone_points()[::7]
        agree = left.fragment_of(transform_points(MIRROR, points)) == fracture(kind).fragment_of(points)
        assert agree.mean() > 0.999
        assert np.allclose(left.motions, MIRROR @ fracture(kind).motions @ MIRROR, atol=1e-3)

    def test_same_seed_breaks_the_same_and_another_seed_does_not(self, kind):
        again = draw_fracture(right_tibia(), "right", kind, 0)
        assert np.array_equal(again.motions, fracture(kind).motions)
        assert np.array_equal(again.line_points, fracture(kind).line_points)
        assert not np.array_equal(fracture(kind, 1).line_points, fracture(kind).line_points)

    def test_lines_are_where_fragments_meet(self, kind):
        drawn = fracture(kind, displaced=False)
        fragment, depth = drawn.fragment_and_depth(drawn.line_points)
        assert np.abs(depth + drawn.hairline_mm / 2).max() < 0.3
        assert (fragment[:, None] == drawn.line_fragments).any(1).all()
        assert np.abs(drawn.distance_to_lines(drawn.line_points)).max() == 0

    def test_displaced_labels_are_the_healthy_fragments_moved(self, kind):
        drawn, fragment, (labels, _) = fracture(kind), fragments(kind), labels_and_mask(kind)
        for number, motion in enumerate(drawn.motions):
            found = transform_points(labels.ijk_to_ras, np.argwhere(labels.array == number + 1)[:, ::-1])
            wanted = transform_points(motion, bone_points()[fragment == number])
            assert len(found) == pytest.approx(len(wanted), rel=0.04)
            assert np.linalg.norm(found.mean(0) - wanted.mean(0)) < 0.5

    def test_displaced_mask_covers_every_broken_surface(self, kind):
        drawn, (labels, mask) = fracture(kind), labels_and_mask(kind)
        for number, motion in enumerate(drawn.motions):
            lines = drawn.line_points[(drawn.line_fragments == number).any(1)]
            place = np.rint(transform_points(mask.ras_to_ijk, transform_points(motion, lines))).astype(int).T[::-1]
            assert mask.array[tuple(place)].all()
        assert (mask.array & (labels.array > 0)).sum() < 0.6 * (labels.array > 0).sum()


class TestShaft:
    @pytest.mark.parametrize("kind", SHAFT)
    def test_fractures_leave_both_joints_whole(self, kind):
        for seed in SEEDS:
            drawn = fracture(kind, seed)
            lines = transform_points(drawn.right_from_ras, drawn.line_points)[:, 2]
            bone = transform_points(drawn.right_from_ras, right_tibia().vertices)[:, 2]
            assert lines.min() > bone.min() + 20 and lines.max() < bone.max() - 30

    def test_spirals_are_longer_than_oblique_and_these_than_transverse_fractures(self):
        def height(kind):
            return np.mean(
                [
                    np.ptp(
                        transform_points(fracture(kind, seed).right_from_ras, fracture(kind, seed).line_points)[:, 2]
                    )
                    for seed in SEEDS
                ]
            )

        assert height("spiral") > height("oblique") > height("transverse")


class TestJoint:
    def test_depressed_plateau_crushes_the_bone_below_it(self):
        drawn = fracture("plateau-depression")
        down = transform_points(drawn.right_from_ras, bone_points())
        fragment = drawn.fragment_of(bone_points())
        pressed = transform_points(drawn.right_from_ras @ drawn.motions[1], bone_points()[fragment == 1])
        assert down[fragment == 1, 2].mean() - pressed[:, 2].mean() > 4
        assert down[fragment == -1, 2].mean() < down[fragment == 1, 2].mean()
        assert (drawn.fragment_of(transform_points(drawn.motions[1], bone_points()[fragment == 1])) != 0).mean() > 0.97

    def test_lateral_depression_lies_on_the_lateral_side_of_either_leg(self):
        for bone, side, lateral in ((right_tibia(), "right", 1), (left_tibia(), "left", -1)):
            drawn = draw_fracture(bone, side, "plateau-depression", 0)
            assert lateral * (drawn.line_points[:, 0].mean() - bone.vertices[bone.vertices[:, 2] > TOP, 0].mean()) > 5


class TestSurfacesAndScan:
    def test_displaced_surfaces_are_closed_and_keep_the_volume(self):
        drawn = fracture("butterfly")
        pieces = displaced_surfaces(right_tibia(), drawn)
        fragment = drawn.fragment_of(bone_points())
        voxel = np.prod(healthy().spacing)
        assert all(is_closed(piece) for piece in pieces)
        for number, piece in enumerate(pieces):
            assert volume_mm3(piece) == pytest.approx(voxel * np.count_nonzero(fragment == number), rel=0.05)

    def test_ct_shows_bone_at_the_fragments_displaced_places_and_soft_tissue_between(self):
        generator = np.random.default_rng(0)
        hu = np.where(healthy().array, 800.0, 50.0) + 10 * generator.standard_normal(healthy().shape)
        drawn, (labels, _) = fracture("oblique"), labels_and_mask("oblique")
        moved = fracture_ct(Volume(hu, healthy().ijk_to_ras), healthy(), drawn, 50.0)
        assert np.mean((moved.array > 425) == (labels.array > 0)) > 0.9995
        vacated = healthy().array & (labels.array == 0) & (moved.array < 300)
        assert np.median(moved.array[vacated]) == pytest.approx(50, abs=8)
        assert 6 < 1.4826 * np.median(np.abs(moved.array[vacated] - np.median(moved.array[vacated]))) < 25
        far = ~drawn.mask_at(bone_points()) & (drawn.fragment_of(bone_points()) == 0)
        kept = np.zeros(healthy().shape, dtype=bool)
        kept[healthy().array] = far
        kept &= labels.array == 1
        assert np.abs(moved.array - hu)[kept].max() < 1e-2


class TestInput:
    def test_refuses_a_kind_that_does_not_exist(self):
        with pytest.raises(InputError, match="no fracture of kind greenstick"):
            draw_fracture(right_tibia(), "right", "greenstick")

    def test_draws_a_kind_from_the_seed(self):
        kinds = {draw_fracture(right_tibia(), "right", None, seed, displaced=False).kind for seed in range(12)}
        assert len(kinds) > 3
