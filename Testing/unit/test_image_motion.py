"""Derivatives of a bone's image by its pose, most of which need no projection, against differences of projections."""

from dataclasses import replace

import numpy as np
import pytest
from ctphantoms import ct, mask, pose, views
from scipy.ndimage import gaussian_filter

from BiplanarReconLib.fitting.shadows import BandPass
from BiplanarReconLib.registration.bone import bone_of
from BiplanarReconLib.registration.motion import ImageMotion
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.volumes import Volume

STEP_MM = 0.3


@pytest.fixture(scope="module")
def bone():
    """Of soft edges, since differences over those of a phantom are those of its voxels."""
    sharp = bone_of(ct(), mask())
    padded = np.pad(sharp.density.array, 6)
    frame = sharp.density.ijk_to_ras.copy()
    frame[:3, 3] -= 6 * frame[:3, :3].sum(axis=1)
    return replace(sharp, density=Volume(gaussian_filter(padded, 1.5), frame))


@pytest.mark.parametrize("number", [0, 1], ids=["frontal", "lateral"])
def test_every_move_across_the_rays_changes_the_image_as_projections_say(bone, number):
    rows, columns = views()[number].shape
    view = views()[number].resized((rows // 2, columns // 2))
    projector, truth = bone.projector(1.0), pose()
    band = BandPass(view.shape, 1.0)
    centre = transform_points(truth, bone.centre[None])[0]
    calls = []

    def turned(rotation_vector):
        calls.append(rotation_vector)
        return projector(view, bone.turned(truth, rotation_vector, np.zeros(3)))

    parts, shares = ImageMotion(view).changes(projector(view, truth), turned, centre, bone.radius_mm, STEP_MM)
    assert len(calls) == 2
    found = np.tensordot(shares, band(parts), 1)
    along = view.beam
    for k, move in enumerate(np.eye(6)):
        there, back = (
            projector(view, bone.turned(truth, step * move[:3] / bone.radius_mm, step * move[3:]))
            for step in (STEP_MM, -STEP_MM)
        )
        true = band((there - back) / (2 * STEP_MM))
        if k >= 3 and abs(along[k - 3]) > 0.7:
            # Along the rays next to nothing changes.
            assert np.linalg.norm(found[k]) < 0.1 * np.linalg.norm(found[3:], axis=(1, 2)).max()
            continue
        cosine = (found[k] * true).sum() / np.linalg.norm(found[k]) / np.linalg.norm(true)
        assert cosine > 0.97, k
        assert np.linalg.norm(found[k]) == pytest.approx(np.linalg.norm(true), rel=0.15), k


def test_a_turn_about_the_source_moves_the_image_and_leaves_its_values(bone):
    view = views()[0]
    rows, columns = view.shape
    row, column = np.mgrid[:rows, :columns]
    # An image that rises along its rows by one each pixel: its change is minus the pixels' flow.
    image = np.broadcast_to(np.arange(columns, dtype=np.float32), view.shape)
    parts, _ = ImageMotion(view).changes(image, lambda _: image, np.zeros(3), 20.0, STEP_MM)
    pixels = np.column_stack([column.ravel(), row.ravel()])[:: 97 * columns + 13]
    points = view.pixel_positions(pixels)
    for axis, part in zip(np.eye(3), parts[:3], strict=True):
        small = 1e-5
        moved = view.project(points + small * np.cross(axis, points - view.source))
        flow = (moved - pixels)[:, 0] / small
        inside = (pixels[:, 0] > 2) & (pixels[:, 0] < columns - 3)
        assert np.allclose(-part[tuple(pixels[inside].T[::-1])], flow[inside], rtol=1e-3, atol=0.5)
