"""Where the CT shows the surfaces of fragments.

Next to another fragment, and where a broken face opens on marrow or sparse cancellous bone, a segmentation is a guess:
it leaks across cracks and gnaws at what is as dark as muscle. The grey values tell more: along a normal there is an
edge or there is none, and behind the edge of broken cortex lies bone as dense as cortex is.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.boneedges import bone_edges
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import vertex_normals
from BoneReconstructionLib.volumes import crop

# Depths behind an edge at which its density is read, mm, and how dense it must be relative to cortex: on virtual
# fractures such edges of broken faces are within 0.3 mm of the truth (quartiles), all others 1 to 3 mm too deep.
BEHIND_MM, DENSE = (0.75, 1.25, 1.75), 0.65
CORTEX_PERCENTILE = 90
# How much too far out a CT's blur shows broken faces, whose density fades at their rough surface; found there, too.
FACE_OUT_MM = 0.45
# A segmentation that lies this near to most edges was made with care and is right where the CT shows none, too.
CAREFUL_PERCENTILE, CAREFUL_MM = 80, 0.4
MARGIN_MM = 10.0  # of the CT around the fragments
# What any other vertex tells of a broken face, relative to a dense edge.
SPARSE_TRUST = 0.1


@dataclass(frozen=True, eq=False)
class FragmentEdges:
    """A fragment's vertices as the CT shows them.

    Attributes:
        points: (n, 3) the vertices moved along their normals to the edge, where there is one, mm.
        faces: (n, 3) the same taken for points of broken faces, where these lie, mm.
        trust: (n,) what each tells where fragments meet, 0 to 1: 1 where there is dense bone behind an edge.
    """

    points: np.ndarray
    faces: np.ndarray
    trust: np.ndarray

    @classmethod
    def exact(cls, surface):
        """The edges of a surface that is known exactly."""
        return cls(surface.vertices, surface.vertices, np.ones(len(surface.vertices)))

    def transformed(self, matrix):
        """The same in another frame."""
        return FragmentEdges(transform_points(matrix, self.points), transform_points(matrix, self.faces), self.trust)


def fragment_edges(surfaces, ct):
    """Find the edges of fragments in a CT.

    Args:
        surfaces: of the fragments, RAS mm.
        ct: volume in HU.

    Returns:
        list of FragmentEdges; of None where the surfaces were segmented with care and are taken as they are.
    """
    place = transform_points(ct.ras_to_ijk, np.concatenate([surface.vertices for surface in surfaces]))[:, ::-1]
    margin = MARGIN_MM / ct.spacing[::-1]
    ct = crop(ct, np.floor(place.min(0) - margin).astype(int), np.ceil(place.max(0) + margin).astype(int) + 1)
    image = np.asarray(ct.array, dtype=np.float32)
    found, behind, offsets = [], [], []
    for surface in surfaces:
        normals = vertex_normals(surface)
        edges = bone_edges(ct, surface, normals, np.ones(len(normals), dtype=bool))
        points = surface.vertices + edges.offset[:, None] * normals
        inside = [transform_points(ct.ras_to_ijk, points - depth * normals)[:, ::-1].T for depth in BEHIND_MM]
        behind.append(np.mean([ndimage.map_coordinates(image, place, order=1, mode="nearest") for place in inside], 0))
        found.append((points, points - FACE_OUT_MM * normals, edges.known))
        offsets.append(np.abs(edges.offset[edges.known]))
    offsets = np.concatenate(offsets)
    if len(offsets) and np.percentile(offsets, CAREFUL_PERCENTILE) < CAREFUL_MM:
        return [None] * len(surfaces)
    cortex = max(np.percentile(values, CORTEX_PERCENTILE) for values in behind)
    return [
        FragmentEdges(points, faces, np.where(known & (values > DENSE * cortex), 1.0, SPARSE_TRUST))
        for (points, faces, known), values in zip(found, behind, strict=True)
    ]
