"""The leg prior fitted to a CT: first to bone edges of a coarse copy, then to edges along the model's own normals.

Nothing is segmented before: an edge is where HU fall outwards near the model's surface, which holds as well where other
bones touch beside it. What the prior's shapes leave over is followed by a smooth field of offsets.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse import coo_array, diags_array
from scipy.spatial import cKDTree

from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, fit
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_normals
from BoneReconstructionLib.volumes import Volume, crop

# Coarse edges count that lie this near to the model and look the same way (cosine), in the first and second fit.
REACH_MM, AGREEMENT = (12.0, 7.0), 0.4
COARSE_NOISE_MM = (3.0, 2.5, 2.0, 1.5, 1.2, 1.0)
SCAN_END_MM, LEAST_EDGES = 4.0, 200
# Edges along normals: how far they are looked for in each round, in which steps, over what length HU fall, how much;
# those within this share of the reach are preferred.
SEARCH_MM, STEP_MM, EDGE_MM, LEAST_DROP_HU = (7.0, 4.0), 0.5, 1.5, 90.0
NEARNESS = 0.6
# Samples of a profile inside and outside of its steepest fall in which wall and soft tissue are looked for; density of
# the cortex at the joints relative to that of the shaft, which is among the brightest.
WALL_SAMPLES, END_CORTEX, CORTEX_PERCENTILE = (4, 6), 0.8, 90
FINE_NOISE_MM = (1.2, 0.8, 0.6, 0.5, 0.4)
SMOOTHING_MM = 0.6
# The field of offsets: how far it reaches, rounds of diffusion, weight of the neighbours, what counts as an outlier.
OFFSET_MM, DIFFUSION_ROUNDS, NEIGHBOURS_WEIGHT, OUTLIER_MM = 3.0, 30, 2.0, 1.0
BOX_MARGIN_MM = 25.0


@dataclass(frozen=True, eq=False)
class LegFit:
    """A fitted leg.

    Attributes:
        side: "left" or "right".
        matrix: (4, 4) similarity from the standard frame to RAS turned to the right side (see `frames`).
        surface: tibia and fibula, vertices in the prior's order, RAS mm.
        seen: (n,) bool, vertices at which the CT has an edge.
        scanned: (n,) bool, vertices in the scan.
        rms_mm: robust root mean square distance of the prior's shape from the edges.
    """

    side: str
    matrix: np.ndarray
    surface: Surface
    seen: np.ndarray
    scanned: np.ndarray
    rms_mm: float


def fit_coarsely(prior, candidate, edges):
    """Fit the prior to the coarse bone edges around a candidate.

    Args:
        prior: of tibia and fibula.
        candidate: `tibiasearch.Candidate`.
        edges: `tibiasearch.BoneEdges`.

    Returns:
        `ShapeFit` of a right leg, or None where there is hardly any edge.
    """
    mirror = side_to_right(candidate.side)
    matrix, vertices = candidate.matrix, transform_points(candidate.matrix, prior.mean)
    for reach in REACH_MM:
        visible = _edges_near(transformed(Surface(vertices, prior.faces), mirror), prior.part, edges, reach)
        if np.count_nonzero(visible.trusted) < LEAST_EDGES:
            return None
        turned = VisibleSurface(transformed(visible.surface, mirror), visible.trusted, None, visible.part)
        fitted = fit(prior, turned, matrix, noise_mm=COARSE_NOISE_MM)
        matrix, vertices = fitted.matrix, fitted.surface.vertices
    return fitted


def fit_finely(prior, side, fitted, ct):
    """Fit the prior to the CT's edges along the model's normals, then follow what is left over.

    Args:
        prior: of tibia and fibula.
        side: "left" or "right".
        fitted: `ShapeFit` from `fit_coarsely`.
        ct: `Volume`, HU; the whole scan or `surroundings` of the leg.

    Returns:
        LegFit.
    """
    mirror = side_to_right(side)
    smooth = smoothed(ct)
    for search in SEARCH_MM:
        surface = transformed(fitted.surface, mirror)
        offset, seen, _ = edges_along_normals(smooth, surface, search)
        vertices = surface.vertices + offset[:, None] * vertex_normals(surface)
        shown = VisibleSurface(transformed(Surface(vertices, surface.faces), mirror), seen, None, prior.part)
        fitted = fit(prior, shown, fitted.matrix, noise_mm=FINE_NOISE_MM)
    surface = transformed(fitted.surface, mirror)
    offset, seen, scanned = edges_along_normals(smooth, surface, OFFSET_MM)
    moved = diffused(offset, seen, surface.faces)
    followed = Surface(surface.vertices + moved[:, None] * vertex_normals(surface), surface.faces)
    return LegFit(side, fitted.matrix, followed, seen, scanned, fitted.rms_mm)


def surroundings(ct, points):
    """The box of a CT around points (n, 3), RAS, with a margin; a view."""
    index = transform_points(ct.ras_to_ijk, points)[:, ::-1]
    margin = BOX_MARGIN_MM / ct.spacing[::-1]
    return crop(ct, np.floor(index.min(0) - margin).astype(int), np.ceil(index.max(0) + margin).astype(int) + 1)


def edges_along_normals(ct, surface, search_mm):
    """Where HU fall outwards beside a surface.

    Args:
        ct: `Volume`, smoothed.
        surface: closed, RAS mm.
        search_mm: how far from the surface edges are looked for; near ones are preferred.

    Returns:
        ((n,) mm along the vertex normals to the edge, (n,) bool where there is one, (n,) bool in the scan).
    """
    normals = vertex_normals(surface)
    length, count, beyond = round(EDGE_MM / STEP_MM), round(search_mm / STEP_MM), max(WALL_SAMPLES)
    places = STEP_MM * np.arange(-count - beyond, count + beyond + 1)
    points = surface.vertices[:, None] + places[None, :, None] * normals[:, None]
    index = transform_points(ct.ras_to_ijk, points.reshape(-1, 3))[:, ::-1]
    scanned = ((index >= 0) & (index <= np.array(ct.shape) - 1)).all(1).reshape(points.shape[:2])
    profile = map_coordinates(ct.array, index.T, order=1, mode="nearest", prefilter=False).reshape(points.shape[:2])
    total = np.cumsum(np.pad(profile, ((0, 0), (1, 0))), axis=1)
    centre = np.arange(beyond, beyond + 2 * count + 1)
    # Mean of the samples before each place less that of those behind it; the place itself counts for neither.
    before = (total[:, centre] - total[:, centre - length]) / length
    after = (total[:, centre + length + 1] - total[:, centre + 1]) / length
    drop = before - after
    best = np.argmax(drop * np.exp(-0.5 * (places[centre] / (NEARNESS * search_mm)) ** 2), axis=1)
    rows, place = np.arange(len(best)), centre[best]
    seen = (drop[rows, best] > LEAST_DROP_HU) & scanned[rows, place - beyond] & scanned[rows, place + beyond]
    return places[place] + _outer_edge(profile, place), seen, scanned[:, count + beyond]


def _outer_edge(profile, place):
    """Where the bone ends near the sample `place` of each profile, (n,) mm from that sample.

    Blur widens thin cortex: halfway between its brightest and the soft tissue it reads up to a millimetre too thick.
    What blur keeps is the amount of bone. Outside the brightest place there is as much of it as dense cortex would
    fill up to the edge (after Treece et al., Med Image Anal 14(3), 2010).
    """
    window = np.clip(place[:, None] + np.arange(-WALL_SAMPLES[0], WALL_SAMPLES[1] + 1), 0, profile.shape[1] - 1)
    values = np.take_along_axis(profile, window, axis=1)
    inside = WALL_SAMPLES[0] + 1
    top, bottom = values[:, :inside].argmax(1), inside + values[:, inside:].argmin(1)
    peak, floor = values[:, :inside].max(1), values[:, inside:].min(1)
    step = np.arange(values.shape[1])
    dense = np.maximum(peak, END_CORTEX * np.percentile(peak, CORTEX_PERCENTILE))
    between = (step >= top[:, None]) & (step <= bottom[:, None])
    amount = ((values - floor[:, None]) * between).sum(1) - (peak - floor) / 2
    return STEP_MM * (top - WALL_SAMPLES[0] + amount / np.maximum(dense - floor, 1.0))


def _edges_near(model, part, edges, reach):
    """`VisibleSurface` of the coarse edges near a model that look the same way, and the part that each shows."""
    distance, nearest = cKDTree(model.vertices).query(edges.points, distance_upper_bound=reach)
    nearest = np.minimum(nearest, len(model.vertices) - 1)
    agree = (vertex_normals(model)[nearest] * edges.normals).sum(1) > AGREEMENT
    near = np.isfinite(distance) & agree
    index = np.cumsum(near) - 1
    faces = index[edges.faces[near[edges.faces].all(1)]]
    points = edges.points[near]
    used = np.zeros(len(points), dtype=bool)
    used[faces] = True
    return VisibleSurface(Surface(points, faces), used & edges.inside(points, SCAN_END_MM), None, part[nearest[near]])


def smoothed(ct):
    """A `Volume` in float32, less noisy."""
    sigma = SMOOTHING_MM / ct.spacing[::-1]
    return Volume(gaussian_filter(ct.array.astype(np.float32), sigma, truncate=2.5), ct.ijk_to_ras)


def mesh_mean(faces, count):
    """Sparse (n, n) matrix that averages over the neighbours of each of `count` vertices."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    ones = np.ones(2 * len(start), dtype=np.float32)
    links = coo_array((ones, (np.r_[start, end], np.r_[end, start])), shape=(count, count)).tocsr()
    return diags_array(1 / np.maximum(links.sum(1), 1)) @ links


def diffused(offset, known, faces):
    """Offsets (n,) mm smoothed over a mesh, robustly; unknown ones follow from their neighbours."""
    mean = mesh_mean(faces, len(offset))
    current = np.where(known, offset, 0.0)
    for number in range(DIFFUSION_ROUNDS):
        weight = known / (1 + ((offset - current) / OUTLIER_MM) ** 2) ** 2 if number else known.astype(float)
        current = (weight * offset + NEIGHBOURS_WEIGHT * (mean @ current)) / (weight + NEIGHBOURS_WEIGHT)
    return current
