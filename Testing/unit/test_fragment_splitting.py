"""Fragments told apart: pieces that touch, cracks that only the CT shows, crumbs, a bone that is whole."""

import numpy as np
import pytest
from phantoms import frame
from tibiae import COARSE, leg

from BoneReconstructionLib.surfaces import volume_mm3
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.fragments.splitting import fragment_surface, split

OBLIQUE = frame((0.9, 1.1, 1.4), (14, -10, 33), "ik")


def rod(points, low, high, radius=9.0):
    """Whether (…, 3) points lie in a rod along z with rough ends."""
    rough = 1.5 * np.sin(points[..., 0] / 2.3) * np.cos(points[..., 1] / 2.9)
    return (
        (np.hypot(points[..., 0], points[..., 1]) < radius)
        & (points[..., 2] > low + rough)
        & (points[..., 2] < high + rough)
    )


def grid(size=(90, 70, 80)):
    """Points (K, J, I, 3) in RAS mm of a grid, and its frame; the origin lies in its middle."""
    k, j, i = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    matrix = OBLIQUE.copy()
    points = np.stack([i, j, k], -1) @ matrix[:3, :3].T
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(size[::-1]) - 1) / 2
    return points, matrix


@pytest.fixture(scope="module")
def broken():
    """Two rods 1 mm apart that touch in two places, a crumb beside them."""
    points, matrix = grid()
    upper, lower = rod(points, 0.5, 40), rod(points, -30, -0.5)
    bridges = np.zeros(upper.shape, dtype=bool)
    for x, y in ((4.0, 3.0), (-5.0, -2.0)):
        bridges |= (np.hypot(points[..., 0] - x, points[..., 1] - y) < 1.6) & (np.abs(points[..., 2]) < 4)
    crumb = np.linalg.norm(points - [20.0, 5.0, 8.0], axis=-1) < 3.0
    return points, matrix, upper, lower, upper | lower | bridges | crumb


def test_pieces_that_touch_in_places_are_told_apart_and_numbered_by_volume(broken):
    _, matrix, upper, lower, bone = broken
    found = split(Volume(bone, matrix))
    assert len(found.volumes_ml) == 2
    assert found.volumes_ml[0] == pytest.approx(upper.sum() * 0.9 * 1.1 * 1.4 / 1000, rel=0.05)
    assert found.volumes_ml[0] > found.volumes_ml[1]
    assert (found.labels.array[upper] == 1).mean() > 0.99
    assert (found.labels.array[lower] == 2).mean() > 0.99
    assert np.array_equal(found.labels.ijk_to_ras, matrix)


def test_crumbs_are_listed_and_left_out(broken):
    found = split(Volume(broken[4], broken[1]))
    ((volume, centre),) = found.crumbs
    assert volume == pytest.approx(4 / 3 * np.pi * 27 / 1000, rel=0.15)
    assert np.abs(centre - [20.0, 5.0, 8.0]).max() < 0.3
    assert not found.labels.array[np.linalg.norm(broken[0] - [20.0, 5.0, 8.0], axis=-1) < 3.0].any()


def test_a_crack_that_the_segmentation_has_closed_is_found_in_the_ct():
    points, matrix = grid()
    bone, crack = rod(points, -30, 40), np.abs(points[..., 2] - 0.2 * points[..., 0]) < 0.8
    noise = np.random.default_rng(2).standard_normal(bone.shape)
    ct = Volume(np.where(bone & ~crack, 1100.0, 60.0) + 20 * noise, matrix)
    assert len(split(Volume(bone, matrix)).volumes_ml) == 1
    found = split(Volume(bone, matrix), ct)
    assert len(found.volumes_ml) == 2
    above = points[..., 2] - 0.2 * points[..., 0] > 2
    assert (found.labels.array[bone & above] == 1).mean() > 0.99


def test_a_whole_tibia_is_one_fragment():
    whole = leg("left", COARSE)
    found = split(whole.bone)
    assert len(found.volumes_ml) == 1 and not found.crumbs
    assert np.array_equal(found.labels.array > 0, whole.bone.array)


def test_sheets_that_a_segmentation_leaves_between_fragments_are_no_part_of_the_surface():
    points, matrix = grid()
    body = rod(points, -30, 40, 12.0)
    sheet = (np.abs(points[..., 2]) < 1.5) & (np.abs(points[..., 1]) < 8) & (points[..., 0] > 0) & (points[..., 0] < 30)
    with_sheet = fragment_surface(Volume(body | sheet, matrix))
    assert with_sheet.vertices[:, 0].max() < 16
    assert volume_mm3(with_sheet) == pytest.approx(volume_mm3(fragment_surface(Volume(body, matrix))), rel=0.03)


def test_thin_fragments_keep_their_shape():
    points, matrix = grid()
    plate = (np.abs(points[..., 2]) < 2.2) & (np.hypot(points[..., 0], points[..., 1]) < 20)
    assert volume_mm3(fragment_surface(Volume(plate, matrix))) == pytest.approx(plate.sum() * 0.9 * 1.1 * 1.4, rel=0.05)


@pytest.mark.parametrize("seen_in", ["ct", "shape"])
def test_a_mask_tells_fragments_apart_that_hang_together_behind_it(seen_in):
    """Two rods grown together across most of their width: no shaving severs them, the mask and the CT do."""
    points, matrix = grid()
    bone, line = rod(points, -30, 40), points[..., 2] - 0.3 * points[..., 0]
    apart = (np.abs(line) < 0.6) & (points[..., 0] < -5)
    bone &= ~apart
    ct = Volume(np.where(bone, np.where(np.abs(line) < 1.2, 950.0, 1100.0), 60.0), matrix) if seen_in == "ct" else None
    mask = Volume(np.abs(points[..., 2]) < 12, matrix)
    assert len(split(Volume(bone, matrix), ct).volumes_ml) == 1
    found = split(Volume(bone, matrix), ct, mask)
    assert len(found.volumes_ml) == 2
    assert (found.labels.array[bone & (line > 2)] == 1).mean() > 0.97
    assert (found.labels.array[bone & (line < -2)] == 2).mean() > 0.97
