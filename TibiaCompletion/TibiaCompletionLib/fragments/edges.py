"""Where the CT shows the surfaces of fragments.

Next to another fragment, and where a broken face opens on marrow or sparse cancellous bone, a segmentation is a guess:
it leaks across cracks and gnaws at what is as dark as muscle. The grey values tell more: along a normal there is an
edge or there is none, and behind the edge of broken cortex lies bone as dense as cortex is. A break through cancellous
bone that is brighter than muscle is a step, with the same bone far behind it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.boneedges import STEP_MM, STEPS, bone_edges
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import joined, vertex_normals
from BoneReconstructionLib.volumes import crop

# Depths behind an edge at which its density is read, mm, and how dense it must be relative to cortex: on virtual
# fractures such edges of broken faces are within 0.5 mm of the truth (quartiles), all others up to 3 mm too deep.
BEHIND_MM, DENSE = (0.75, 1.25, 1.75), 0.65
CORTEX_PERCENTILE = 90
# Broken faces are taken so much farther in than their edges: blur shows them 0.15 mm too far out (median there, too),
# and with this fragments came nearest to their places.
FACE_OUT_MM = 0.45
# A segmentation that lies this near to most edges was made with care and is right where the CT shows none, too.
CAREFUL_PERCENTILE, CAREFUL_MM = 80, 0.4
# A step is looked for within this reach of a vertex, mm outwards, between means on both sides of it; it is one of a
# broken face if bright enough, and if the bone is as bright deeper inside: in joints of virtual fractures whose
# cancellous bone is brighter than muscle within 0.4 mm of the truth (quartiles).
REACH_MM, BESIDE_MM, DEEPER_MM = (-2.5, 1.0), (0.5, 2.0), (2.0, 4.0)
STEP_HU, SOLID = 150.0, 0.6
MARGIN_MM = 10.0  # of the CT around the fragments
# What a step, and what any other vertex tells of a broken face, relative to a dense edge.
STEP_TRUST, SPARSE_TRUST = 0.5, 0.02


@dataclass(frozen=True, eq=False)
class FragmentEdges:
    """A fragment's vertices as the CT shows them.

    Attributes:
        points: (n, 3) the vertices moved along their normals to the edge, where there is one, mm.
        faces: (n, 3) the vertices as points of broken faces; as segmented where the CT shows none, mm.
        trust: (n,) what each tells where fragments meet, 0 to 1: 1 where there is dense bone behind an edge,
            `STEP_TRUST` at a step, `SPARSE_TRUST` elsewhere.
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
    # All at once: cortex's density and the CT's blur are known from thick cortex, of which a piece of a joint has none.
    bounds = np.cumsum([len(surface.vertices) for surface in surfaces])[:-1]
    surface = joined(surfaces)
    place = transform_points(ct.ras_to_ijk, surface.vertices)[:, ::-1]
    margin = MARGIN_MM / ct.spacing[::-1]
    ct = crop(ct, np.floor(place.min(0) - margin).astype(int), np.ceil(place.max(0) + margin).astype(int) + 1)
    normals = vertex_normals(surface)
    edges = bone_edges(ct, surface, normals, np.ones(len(normals), dtype=bool))
    offsets = np.abs(edges.offset[edges.known])
    if len(offsets) and np.percentile(offsets, CAREFUL_PERCENTILE) < CAREFUL_MM:
        return [None] * len(surfaces)
    points = surface.vertices + edges.offset[:, None] * normals
    behind = _behind(ct, points, normals)
    cortex = max(np.percentile(values, CORTEX_PERCENTILE) for values in np.split(behind, bounds))
    dense = edges.known & (behind > DENSE * cortex)
    step, solid = _steps(edges.profiles)
    stepped = surface.vertices + np.where(solid, step, 0.0)[:, None] * normals
    faces = np.where(dense[:, None], points - FACE_OUT_MM * normals, stepped)
    trust = np.select([dense, solid], [1.0, STEP_TRUST], SPARSE_TRUST)
    parts = (np.split(values, bounds) for values in (points, faces, trust))
    return [FragmentEdges(*own) for own in zip(*parts, strict=True)]


def _behind(ct, points, normals):
    """(n,) HU behind edges at `points` (n, 3) with outward `normals`."""
    image = np.asarray(ct.array, dtype=np.float32)
    inside = [transform_points(ct.ras_to_ijk, points - depth * normals)[:, ::-1].T for depth in BEHIND_MM]
    return np.mean([ndimage.map_coordinates(image, place, order=1, mode="nearest") for place in inside], 0)


def _steps(profiles):
    """Steps of cancellous bone in profiles (n, s) at `STEPS`: ((n,) where, mm, (n,) bool whether there is one)."""
    places = np.arange(REACH_MM[0], REACH_MM[1] + STEP_MM / 2, STEP_MM)

    def means(nearest, farthest):
        """(n, places) over what lies so far from each place, outwards."""
        away = STEPS - places[:, None]
        chosen = (away > nearest - STEP_MM / 2) & (away < farthest + STEP_MM / 2)
        return profiles @ (chosen / chosen.sum(1, keepdims=True)).T

    near, far = BESIDE_MM
    outside, inside, deeper = means(near, far), means(-far, -near), means(-DEEPER_MM[1], -DEEPER_MM[0])
    best, rows = (inside - outside).argmax(1), np.arange(len(profiles))
    within = (best > 0) & (best < len(places) - 1)
    outside, inside, deeper = (part[rows, best] for part in (outside, inside, deeper))
    height = inside - outside
    return places[best], within & (height > STEP_HU) & (deeper - outside > SOLID * height)
