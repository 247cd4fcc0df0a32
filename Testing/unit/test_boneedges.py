"""The surface of bone in a CT: shells of known place, thickness and blur, on oblique and anisotropic grids."""

import numpy as np
import pytest
from phantoms import frame, sphere_surface
from scipy.special import ndtr

from BoneReconstructionLib.boneedges import bone_edges
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import Surface, vertex_normals
from BoneReconstructionLib.volumes import Volume

RADIUS_MM, CORTEX_HU, SOFT_HU, INSIDE_HU = 24.0, 1400.0, 60.0, 180.0
OBLIQUE = frame((0.7, 0.8, 1.2), (15, -12, 30), "j")


def shell(thickness_mm, density=1.0, blur_mm=0.7, noise_hu=0.0, matrix=OBLIQUE):
    """CT of a ball of bone whose shell has its thickness on one side and 5 mm on the other, about the origin."""
    step = np.linalg.norm(matrix[:3, :3], axis=0)
    shape = tuple(np.ceil(2 * (RADIUS_MM + 8) / step).astype(int)[::-1])
    matrix = matrix.copy()
    matrix[:3, 3] = -matrix[:3, :3] @ (np.array(shape[::-1]) - 1) / 2
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")[::-1], -1).reshape(-1, 3)
    points = transform_points(matrix, index)
    distance = np.linalg.norm(points, axis=1) - RADIUS_MM
    thin = points[:, 0] > 0
    thickness, cortex = np.where(thin, thickness_mm, 5.0), CORTEX_HU * np.where(thin, density, 1.0)
    outer, inner = ndtr(-distance / blur_mm), ndtr(-(distance + thickness) / blur_mm)
    hu = SOFT_HU + (cortex - SOFT_HU) * outer - (cortex - INSIDE_HU) * inner
    hu += noise_hu * np.random.default_rng(1).standard_normal(len(hu))
    return Volume(hu.reshape(shape).astype(np.float32), matrix)


def rough(offset_mm):
    """The ball's surface as a segmentation has it: too large or too small, by as much on the whole."""
    return sphere_surface(RADIUS_MM + offset_mm, (0.0, 0.0, 0.0), subdivisions=4)


def errors(ct, surface, seen=None):
    """(mean error of the found edges where the shell is thin, outwards in mm; its spread; share of edges found)."""
    normals = vertex_normals(surface)
    seen = np.ones(len(normals), dtype=bool) if seen is None else seen
    edges = bone_edges(ct, surface, normals, seen)
    found = np.linalg.norm(surface.vertices + edges.offset[:, None] * normals, axis=1) - RADIUS_MM
    thin = edges.known & (surface.vertices[:, 0] > 4)
    return found[thin].mean(), found[thin].std(), edges.known[seen].mean()


@pytest.mark.parametrize("offset_mm", [-1.2, 0.0, 1.2])
@pytest.mark.parametrize(("thickness_mm", "density"), [(0.8, 0.75), (1.5, 0.8), (1.5, 1.0), (4.0, 1.0)])
def test_the_edge_is_found_under_thin_and_thick_cortex(thickness_mm, density, offset_mm):
    mean, spread, known = errors(shell(thickness_mm, density), rough(offset_mm))
    assert abs(mean) < 0.15 and spread < 0.1 and known > 0.97


def test_thin_cortex_as_dense_as_thick_one_is_taken_for_a_little_thicker():
    """An image of a thin shell hardly tells thickness from density; the error stays well below a voxel."""
    mean, _, _ = errors(shell(0.8, density=1.0), rough(0.6))
    assert 0 < mean < 0.25


def test_noise_is_averaged_along_the_surface():
    mean, spread, known = errors(shell(1.2, noise_hu=45.0), rough(0.6))
    assert abs(mean) < 0.15 and spread < 0.2 and known > 0.97


@pytest.mark.parametrize("blur_mm", [0.5, 0.9, 1.3])
def test_the_scanners_blur_is_found_out(blur_mm):
    mean, _, _ = errors(shell(2.0, blur_mm=blur_mm), rough(0.5))
    assert abs(mean) < 0.25 * blur_mm


def test_a_threshold_halfway_would_be_worse():
    """What the model is for: halfway between soft tissue and thick cortex, a thin shell is hardly there."""
    ct = shell(0.8, 0.75, blur_mm=0.9)
    assert ct.array.reshape(-1)[np.argmin(np.abs(ct.array.reshape(-1) - CORTEX_HU))] > 0.9 * CORTEX_HU
    thin_side = transform_points(ct.ras_to_ijk, [[RADIUS_MM - 0.4, 0, 0]])[0][::-1].round().astype(int)
    assert ct.array[tuple(thin_side)] < (CORTEX_HU + SOFT_HU) / 2
    mean, _, _ = errors(ct, rough(0.0))
    assert abs(mean) < 0.15


def test_where_there_is_no_bone_no_edge_is_known():
    ct = shell(2.0)
    surface = rough(0.0)
    away = Surface(surface.vertices + [0.0, 0.0, 14.0], surface.faces)
    normals = vertex_normals(away)
    edges = bone_edges(ct, away, normals, np.ones(len(normals), dtype=bool))
    outside = np.linalg.norm(away.vertices, axis=1) > RADIUS_MM + 6
    assert outside.any() and not edges.known[outside].any()


def test_only_what_is_seen_is_looked_at():
    surface = rough(0.5)
    seen = surface.vertices[:, 2] > 0
    edges = bone_edges(shell(2.0), surface, vertex_normals(surface), seen)
    assert edges.known[seen].mean() > 0.97 and not edges.known[~seen].any() and not edges.offset[~seen].any()
