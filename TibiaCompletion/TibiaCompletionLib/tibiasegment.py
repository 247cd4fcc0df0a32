"""The tibia's voxels: those inside the fitted bone where the CT shows its wall, its displaced pieces, its fragments.

The fitted surface follows the CT's edges and says where bones that touch part from each other. Where the CT shows no
wall, as in a fracture's gap, nothing but bone is taken. A piece that lies elsewhere is looked for with the part of the
surface that it left behind; bone beside the surface that belongs to no other bone is a fragment.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from BoneReconstructionLib.frames import similarity_from_points, transform_points
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_normals
from TibiaCompletionLib.tibiafit import OFFSET_MM, diffused, edges_along_normals, mesh_mean, smoothed
from TibiaCompletionLib.tibiasearch import NORMAL_MM, evidence

# Share of the wall that must be seen around a place, over rounds of averaging on the mesh.
WALL_SHARE, WALL_ROUNDS = 0.5, 40
PRESENT_HU, PRESENT_DEPTH_MM = 200.0, 3.0
# Articular surfaces: proximal ones look up, distal ones down (cosine), this far from the ends.
ARTICULAR_COSINE, ARTICULAR_MM = 0.5, 18.0
# Displaced pieces: what is missing for one to be looked for, how far away, how well it must be found.
LEAST_MISSING, MOST_PIECES = 0.04, 3
STARTS_MM, PIECE_STEPS, PIECE_POINTS = (-11.0, 0.0, 11.0), 14, 300
PIECE_EVIDENCE, PIECE_GAIN = 0.3, 0.2
BEYOND_PIECE_MM = 25.0
# Fragments beside the bone.
FRAGMENT_HU, FRAGMENT_MM, LEAST_FRAGMENT_ML = 300.0, 10.0, 0.15


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the bone as it lies in the CT.

    Attributes:
        surface: the whole tibia, RAS mm, moved so that this part fits.
        wall: (n,) bool, vertices around which the CT shows the bone's wall.
    """

    surface: Surface
    wall: np.ndarray


def segment(prior, leg, ct, edges, tree):
    """The tibia's voxels.

    Args:
        prior: of tibia and fibula.
        leg: `tibiafit.LegFit`.
        ct: `Volume` of the leg's surroundings, HU.
        edges: `tibiasearch.BoneEdges`.
        tree: from `tibiasearch.edge_tree`.

    Returns:
        (K, J, I) bool on the grid of `ct`.
    """
    smooth = smoothed(ct)
    count = np.count_nonzero(prior.part == 0)
    tibia = Surface(leg.surface.vertices[:count], prior.faces[(prior.faces < count).all(1)])
    fibula = Surface(leg.surface.vertices[count:], prior.faces[(prior.faces >= count).all(1)] - count)
    articular = articular_surface(prior.mean[:count], tibia.faces)
    scanned = leg.scanned[:count]
    seen = _share(leg.seen[:count], scanned, tibia.faces)
    present = articular & (_share(_present(smooth, tibia), scanned, tibia.faces) > WALL_SHARE)
    pieces = [Piece(tibia, (seen > WALL_SHARE) | present)]
    pieces += _displaced(tibia, scanned & ~pieces[0].wall, smooth, edges, tree)

    bone = smooth.array > PRESENT_HU
    found = np.zeros(ct.shape, dtype=bool)
    for number, piece in enumerate(pieces):
        inside = voxelize(piece.surface, ct.shape, ct.ijk_to_ras).array
        if number == 0:
            found |= inside & bone
        place = np.nonzero(inside & ~found)
        nearest = cKDTree(piece.surface.vertices).query(transform_points(ct.ijk_to_ras, np.stack(place[::-1], 1)))[1]
        found[place] = piece.wall[nearest]
    found |= _fragments(found, smooth, tibia, fibula, articular)
    return _without_specks(found, np.prod(ct.spacing) / 1000)


def articular_surface(mean, faces):
    """(n,) bool: vertices of the plateau and of the plafond with the malleolus' inner face."""
    normals = vertex_normals(Surface(mean, faces))
    low, high = mean[:, 2].min(), mean[:, 2].max()
    proximal = (mean[:, 2] > high - ARTICULAR_MM) & (normals[:, 2] > ARTICULAR_COSINE)
    inwards = (normals[:, 2] < -ARTICULAR_COSINE) | (normals[:, 0] > ARTICULAR_COSINE)
    return proximal | (inwards & (mean[:, 2] < low + ARTICULAR_MM))


def _share(flags, known, faces):
    """(n,) share of flagged vertices around each, out of those known."""
    mean = mesh_mean(faces, len(flags))
    both = np.stack([flags & known, known], 1).astype(float)
    for _ in range(WALL_ROUNDS):
        both = mean @ both
    return both[:, 0] / np.maximum(both[:, 1], 1e-6)


def _present(ct, surface):
    """(n,) bool: whether there is bone right beneath each vertex."""
    normals = vertex_normals(surface)
    depths = np.arange(0.0, PRESENT_DEPTH_MM + 0.1, 0.5)
    points = surface.vertices[:, None] - depths[None, :, None] * normals[:, None]
    index = transform_points(ct.ras_to_ijk, points.reshape(-1, 3))[:, ::-1]
    values = ndimage.map_coordinates(ct.array, index.T, order=1, mode="nearest", prefilter=False)
    return values.reshape(len(normals), -1).max(1) > PRESENT_HU


def _displaced(tibia, missing, ct, edges, tree):
    """`Piece`s that lie elsewhere, found with connected parts of the surface that have no wall where they are."""
    count = len(missing)
    start, end = tibia.faces.ravel(), np.roll(tibia.faces, -1, axis=1).ravel()
    joined = missing[start] & missing[end]
    links = coo_array((np.ones(joined.sum(), dtype=bool), (start[joined], end[joined])), shape=(count, count))
    labels = np.where(missing, connected_components(links, directed=False)[1], -1)
    sizes = np.bincount(labels[missing], minlength=1)
    pieces = []
    for label in np.argsort(sizes)[::-1][:MOST_PIECES]:
        if sizes[label] < LEAST_MISSING * count:
            break
        own = labels == label
        motion = _motion(tibia, own, edges, tree)
        if motion is None:
            continue
        moved = transformed(tibia, motion)
        offset, seen, scanned = edges_along_normals(ct, moved, OFFSET_MM)
        near = cKDTree(tibia.vertices[own]).query(tibia.vertices, distance_upper_bound=BEYOND_PIECE_MM)[0] < np.inf
        follow = Surface(
            moved.vertices + diffused(offset, seen & near, tibia.faces)[:, None] * vertex_normals(moved), tibia.faces
        )
        pieces.append(Piece(follow, near & (_share(seen, scanned, tibia.faces) > WALL_SHARE)))
    return pieces


def _motion(tibia, own, edges, tree):
    """(4, 4) rigid motion that lays a part of the surface on bone edges nearby, or None."""
    chosen = np.flatnonzero(own)
    chosen = chosen[:: max(1, len(chosen) // PIECE_POINTS)]
    points, normals = tibia.vertices[chosen], vertex_normals(tibia)[chosen]
    before = evidence(points, normals, edges, tree)[0].mean()
    best, best_motion = -1.0, None
    for start in np.array(np.meshgrid(STARTS_MM, STARTS_MM, STARTS_MM)).reshape(3, -1).T:
        motion = np.eye(4)
        motion[:3, 3] = start
        for step in range(PIECE_STEPS):
            here = np.concatenate([transform_points(motion, points), NORMAL_MM * normals @ motion[:3, :3].T], 1)
            distance, nearest = tree.query(here)
            weight = 1 / (1 + (distance / max(12.0 * 0.75**step, 2.0)) ** 2) ** 2
            motion = similarity_from_points(points, edges.points[nearest], weight, scaled=False)
        found = evidence(transform_points(motion, points), normals @ motion[:3, :3].T, edges, tree)[0].mean()
        if found > best:
            best, best_motion = found, motion
    return best_motion if best > max(PIECE_EVIDENCE, before + PIECE_GAIN) else None


def _fragments(found, ct, tibia, fibula, articular):
    """(K, J, I) bool: bone beside what was found that belongs to no other bone."""
    bone = (ct.array > FRAGMENT_HU) & ~ndimage.binary_dilation(found, iterations=1)
    labels, count = ndimage.label(bone)
    place = np.nonzero(labels)
    points = transform_points(ct.ijk_to_ras, np.stack(place[::-1], 1))
    label = labels[place]
    distance, nearest = cKDTree(tibia.vertices).query(points, distance_upper_bound=2 * FRAGMENT_MM)
    near = np.isfinite(distance) & (distance < FRAGMENT_MM)
    nearest = np.minimum(nearest, len(tibia.vertices) - 1)
    near &= ~articular[nearest]
    near[near] = cKDTree(fibula.vertices).query(points[near])[0] > distance[near]
    size = np.bincount(label, minlength=count + 1)
    own = np.bincount(label[near], minlength=count + 1)
    voxel_ml = np.prod(ct.spacing) / 1000
    kept = (size * voxel_ml > LEAST_FRAGMENT_ML) & (own > 0.95 * size)
    kept[0] = False
    kept = kept[labels]
    # The seam of a voxel that was left around what was found.
    return kept | (ndimage.binary_dilation(kept, iterations=1) & (ct.array > PRESENT_HU))


def _without_specks(mask, voxel_ml):
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * voxel_ml
    sizes[0] = 0
    return (sizes > LEAST_FRAGMENT_ML)[labels]
