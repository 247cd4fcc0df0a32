"""The visible bone as the CT shows it: the segmentation says where to look, the grey values where the surface is."""

import numpy as np

from BoneReconstructionLib.boneedges import bone_edges
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.shapefitting import MINIMUM_NORMAL_AGREEMENT, VisibleSurface
from BoneReconstructionLib.surfaces import Surface, vertex_normals

# A fitted bone and the segmentation lie this close where the one shows the other.
REACH_MM = 3.0
# What edges in a CT are wrong by, mm: found on training bones, rendered in both ways that the evaluation knows.
EDGE_SD_MM = 0.1


def measured_in_ct(case, side, fitted):
    """Measure the visible bone along the normals of a bone that was fitted to its segmentation.

    Where segmentation and grey values disagree little all over the bone, the segmentation was made with care and counts,
    too; a rough one, that leaks or is a voxel too large, hardly does.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        fitted: a `ShapeFit` of the tibia alone, with its residual, to the case's visible surface.

    Returns:
        (VisibleSurface with the fitted bone's triangles, right side; share of the segmented surface where the CT shows
        an edge, 0 to 1).
    """
    shown = case.visible(side)
    surface, normals = fitted.surface, vertex_normals(fitted.surface)
    reduced = shown.reduced(fitted.motions)
    found, distance, face = reduced.locator.closest(surface.vertices)
    corners = reduced.surface.faces[face]
    agree = (normals * reduced.normals[corners].mean(1)).sum(1)
    seen = shown.trusted[corners].all(1) & (distance < REACH_MM) & (agree > MINIMUM_NORMAL_AGREEMENT)
    piece = shown.piece[corners[:, 0]] if shown.piece is not None else np.zeros(len(seen), dtype=int)

    # Back to where the pieces lie in the CT.
    vertices, directions = surface.vertices.copy(), normals.copy()
    for number in range(1, shown.pieces):
        own = piece == number
        back = np.linalg.inv(fitted.motions[number])
        vertices[own] = transform_points(back, vertices[own])
        directions[own] = directions[own] @ back[:3, :3].T
    mirror = side_to_right(side)
    in_ct = Surface(transform_points(mirror, vertices), surface.faces)
    edges = bone_edges(case.read_ct(), in_ct, directions @ mirror[:3, :3].T, seen)

    segmented = (normals * (found - surface.vertices)).sum(1)
    difference = (segmented - edges.offset)[edges.known]
    share = min(1.0, EDGE_SD_MM**2 / max(np.mean(difference**2), 1e-6)) if len(difference) else 0.0
    offset = edges.offset + share * (segmented - edges.offset)
    measured = Surface(vertices + offset[:, None] * directions, surface.faces)
    known = np.count_nonzero(edges.known) / max(np.count_nonzero(seen), 1)
    return VisibleSurface(measured, edges.known, piece if shown.pieces > 1 else None), known
