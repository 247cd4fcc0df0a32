"""Whether the input can be what it is said to be: one adult's tibia, alone in its segment and without metal.

The shape is judged by the prior's empirical modes alone, which takes a fraction of a second, before the long fit.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from BoneReconstructionLib.distances import SurfaceLocator, closest_points
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, side_to_right, similarity_from_points, transform_each, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, fit, spread_over, start
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import Surface, transformed

# The modes' fit has only to tell bones apart, so it ends where their own inaccuracy does.
MODES_NOISE_MM = (3.0, 2.0, 1.5, 1.0, 1.0)
COMPARED_POINTS = 2000
FAR_MM = 10.0
# Tibiae of training people, by modes of the others, and of virtual people were at most 0.9 mm away and deviated by 1.7
# where a joint end shows, and by 2.4 in mere parts of the shaft. Training people's femora were 2.6 mm away or more;
# their fibulae 1.2 mm and then deviated by 3.6 where they were whole, and most ends of them were 1.4 mm away.
UNUSUAL_MM, UNUSUAL_DEVIATION = 0.9, 1.7
UNLIKE_MM = 1.4
UNLIKE_DEVIATION = 2.5
WHOLE = (0.05, 0.95)
# Published lengths between the joint surfaces less four standard deviations, and what lies beyond these surfaces.
SHORTEST_ADULT_MM, ORDINARY_ADULT_MM = 280.0, 370.0
# Where an end is not seen the length is an estimate, good to about ten percent.
SHORTEST_ESTIMATED_MM = 250.0

# The modes' fit lies within 2 mm of nine tenths of a tibia's surface, and of nearly all within 4 mm.
LEAK_MM = 4.0
SMALLEST_LEAK_ML = 0.3
# A third of a fibula, a tenth of the part of a femur that a knee scan shows.
FURTHER_BONE_ML = 15.0
COUNTED_VOXELS = 200_000

# Dense cortical bone stays below 2000 HU, titanium and steel are above 3000 where the scanner does not cut them off.
METAL_HU = 2500.0
METAL_REACH_MM = 5.0
SMALLEST_METAL_ML = 0.1
METAL_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Likeness:
    """How well the visible bone can be a tibia of one side, by the prior's empirical modes alone.

    Attributes:
        start: (4, 4) similarity, visible bone from standard frame, that the fit began with.
        surface: the fitted bone, as a right one, mm.
        motions: (p, 4, 4) rigid motions that bring the visible pieces to their places, mm.
        distance_mm: mean distance of the visible bone's outer surface to the fitted one, each cut off at `FAR_MM`.
        deviation: mean square of the mode weights; 1 in an average person.
        length_mm: extent of the fitted bone along its axis.
        shown: (lowest, highest) place along the fitted bone, 0 to 1, where bone is visible.
    """

    start: np.ndarray
    surface: Surface
    motions: np.ndarray
    distance_mm: float
    deviation: float
    length_mm: float
    shown: tuple[float, float]

    @property
    def alike(self):
        """Whether the bone can be a tibia of any size."""
        return self.distance_mm <= UNLIKE_MM and self.deviation <= UNLIKE_DEVIATION


def unusual_warnings(found):
    """Sentences where a bone is a tibia, but unlike those that the prior was learned from.

    Args:
        found: `Likeness`.
    """
    # A mere part of the shaft says little, and what it says is scattered more.
    end_shown = found.shown[0] < WHOLE[0] or found.shown[1] > WHOLE[1]
    if found.distance_mm <= UNUSUAL_MM and not (end_shown and found.deviation > UNUSUAL_DEVIATION):
        return []
    return [
        "The visible bone is unlike the tibiae that the shape prior was learned from: expect larger errors than its "
        "standard deviations and intervals say."
    ]


def likeness(visible):
    """Compare the visible bone with the tibiae that the prior's modes describe.

    Args:
        visible: `VisibleSurface` as a right bone.

    Returns:
        Likeness.
    """
    prior = replace(load_prior(TIBIA_PRIOR, "tibia"), kernels=())
    matrix = start(prior, visible)
    fitted = fit(prior, visible, matrix, visible.pieces > 1, noise_mm=MODES_NOISE_MM)
    placed = visible.reduced(fitted.motions)
    points = placed.surface.vertices[visible.trusted]
    points = points[spread_over(len(points), COMPARED_POINTS)]
    feet, distance, _ = closest_points(points, fitted.surface)
    # A segment made by a threshold is hollow: its inner surfaces have the outer one between them and the fitted bone.
    outer = placed.tree.query(feet)[0] >= 0.5 * distance
    axis = fitted.matrix[:3, 2] / np.linalg.norm(fitted.matrix[:3, 2])
    along, seen = fitted.surface.vertices @ axis, points @ axis
    length = np.ptp(along)
    return Likeness(
        matrix,
        fitted.surface,
        fitted.motions,
        float(np.minimum(distance[outer], FAR_MM).mean()),
        float(np.mean(fitted.mode_weights**2)),
        float(length),
        tuple(float((end - along.min()) / length) for end in (seen.min(), seen.max())),
    )


def check_other_tibia(surface, side):
    """Refuse what is no whole tibia of the other leg.

    Args:
        surface: said to be that, RAS mm.
        side: of the broken leg.

    Raises:
        InputError: another bone, a part of a tibia, or a tibia of the same side.
    """
    other = next(name for name in SIDES if name != side)
    found = {name: likeness(VisibleSurface.whole(transformed(surface, side_to_right(name)))) for name in SIDES}
    best = min(found, key=lambda name: found[name].distance_mm)
    whole = found[best].shown[0] < WHOLE[0] and found[best].shown[1] > WHOLE[1]
    if not found[best].alike or not whole:
        raise InputError("The other leg's bone is not a whole tibia: name the whole tibia, or leave it out.")
    if best != other:
        raise InputError(
            f"The other leg's tibia is a {side} one, as the broken one: name the {other} tibia, or leave it out."
        )


def check_tibia(case, found):
    """Refuse what is no adult's tibia.

    Args:
        case: a `TibiaCase`.
        found: {side: `Likeness` of its visible bone with a tibia of that side}.

    Raises:
        InputError: another bone, several bones, an implant; a bone as short as a child's.
    """
    better = min(found.values(), key=lambda one: one.distance_mm)
    if better.alike:
        whole = better.shown[0] < WHOLE[0] and better.shown[1] > WHOLE[1]
        length, shortest = better.length_mm, SHORTEST_ADULT_MM if whole else SHORTEST_ESTIMATED_MM
    else:
        vertices, shortest = case.surface.vertices, SHORTEST_ADULT_MM
        axis = np.linalg.svd(vertices - vertices.mean(0), full_matrices=False)[2][0]
        length = np.ptp(vertices @ axis)
        # A fit does not start that small; but made larger, a child's tibia looks like an adult's.
        grown = replace(case, surface=Surface(vertices * ORDINARY_ADULT_MM / length, case.surface.faces))
        if length >= shortest or not any(likeness(grown.visible(side)).alike for side in found):
            raise InputError(
                "The segment has not the shape of an adult tibia: choose the tibia's segment and cut off what else it "
                "holds, since other bones, children's bones and implants cannot be completed."
            )
    if length < shortest:
        raise InputError(
            f"The tibia is about {length:.0f} mm long and adult ones are {SHORTEST_ADULT_MM:.0f} mm or more: children's "
            "tibiae cannot be completed, and for an adult check the voxel size of the CT."
        )


@dataclass(frozen=True, eq=False)
class Leaks:
    """Where a segment runs out of the bone.

    Attributes:
        volume_ml: how much of the segment, outside the fracture mask, lies more than `LEAK_MM` outside the bone.
        place: where the largest leak is, in words; empty where there is none.
        vertices: (n,) bool, vertices of the case's surface that are not to be trusted: the leaks and their feet.
    """

    volume_ml: float
    place: str
    vertices: np.ndarray


def leaks(case, side, surface, motions=None):
    """Find connected patches of the segment's surface that lie outside a fitted bone.

    A piece that lies outside as a whole is a displaced fragment, not a leak, unless it is as large as a bone.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        surface: the fitted bone as a right one, RAS mm, vertices in the template's order.
        motions: (p, 4, 4) rigid motions that bring the visible pieces to their places; None: they lie there.

    Returns:
        Leaks.
    """
    shown = case.visible(side)
    placed = shown if motions is None else shown.reduced(motions)
    locator = SurfaceLocator(surface)
    outside = np.zeros(len(shown.trusted), dtype=bool)
    vertices = np.flatnonzero(shown.trusted)
    # Most lie so near to a vertex of the bone that they need not be measured to its triangles.
    near = cKDTree(surface.vertices).query(placed.surface.vertices[vertices], distance_upper_bound=LEAK_MM)[0]
    vertices = vertices[np.isinf(near)]
    outside[vertices] = locator.signed(placed.surface.vertices[vertices]) > LEAK_MM
    if not outside.any():
        return Leaks(0.0, "", outside)

    patch = _patches(shown.surface.faces, outside)
    points, voxel_ml = _visible_voxels(case, side)
    nearest = shown.tree.query(points)[1]
    points, nearest = points[outside[nearest]], nearest[outside[nearest]]
    if motions is not None:
        points = transform_each(motions[shown.piece[nearest]], points)
    far = locator.signed(points) > LEAK_MM
    volumes = np.bincount(patch[nearest[far]], minlength=patch.max() + 1) * voxel_ml
    for number in range(1, len(volumes)):
        own = patch == number
        fragment = np.bincount(shown.piece[own]).argmax()
        alone = own.sum() > 0.5 * (shown.trusted & (shown.piece == fragment)).sum()
        if volumes[number] < (FURTHER_BONE_ML if alone else SMALLEST_LEAK_ML):
            outside[own] = False
            volumes[number] = 0.0
    if not outside.any():
        return Leaks(0.0, "", outside)
    largest = placed.surface.vertices[patch == volumes.argmax()]
    # The foot of a leak lies less far outside, but beside it.
    apart = cKDTree(shown.surface.vertices[outside]).query(shown.surface.vertices, distance_upper_bound=LEAK_MM)[0]
    return Leaks(float(volumes.sum()), _place(largest, surface), np.isfinite(apart))


def leak_warnings(found):
    """Sentences about leaks, none where there are none.

    Args:
        found: `Leaks`.

    Raises:
        InputError: they are as large as a further bone.
    """
    if found.volume_ml >= FURTHER_BONE_ML:
        raise InputError(
            f"{found.volume_ml:.0f} mL of the segment lie outside the tibia ({found.place}), as a further bone would: "
            "cut everything but the tibia off the segment."
        )
    if found.volume_ml == 0:
        return []
    return [
        f"The segment leaks out of the tibia ({found.place}; {found.volume_ml:.1f} mL more than {LEAK_MM:.0f} mm "
        "outside): that part was not used; correct the segment there."
    ]


def _patches(faces, chosen):
    """Number (n,) of the connected patch of chosen vertices that each belongs to, from 1; 0 where not chosen."""
    edges = faces[chosen[faces].all(1)]
    start, end = edges.ravel(), np.roll(edges, -1, axis=1).ravel()
    count = len(chosen)
    graph = coo_array((np.ones(len(start), dtype=bool), (start, end)), shape=(count, count))
    labels = connected_components(graph)[1]
    number = np.zeros(count, dtype=np.int64)
    number[chosen] = np.unique(labels[chosen], return_inverse=True)[1] + 1
    return number


def _visible_voxels(case, side):
    """About `COUNTED_VOXELS` centres (n, 3) of visible bone, as of a right one, mm, and the volume each stands for."""
    place = np.flatnonzero(case.tibia.array & ~case.fracture.array)
    chosen = place[spread_over(len(place), COUNTED_VOXELS)]
    index = np.stack(np.unravel_index(chosen, case.tibia.shape)[::-1], 1)
    volume_ml = np.prod(case.tibia.spacing) / 1000 * len(place) / len(chosen)
    return transform_points(side_to_right(side) @ case.tibia.ijk_to_ras, index), volume_ml


def _place(points, surface):
    """Where points lie outside a fitted right tibia: "proximal third, posterior" and the like."""
    prior = load_prior(TIBIA_PRIOR, "tibia")
    to_standard = np.linalg.inv(similarity_from_points(prior.mean, surface.vertices))
    offset = (points - closest_points(points, surface)[0]) @ to_standard[:3, :3].T
    height = transform_points(to_standard, points)[:, 2].mean()
    low, high = prior.mean[:, 2].min(), prior.mean[:, 2].max()
    third = ("distal third", "shaft", "proximal third")[int(np.clip(3 * (height - low) / (high - low), 0, 2))]
    axis = np.abs(offset.mean(0)).argmax()
    names = (("medial", "lateral"), ("posterior", "anterior"), ("below the bone", "above the bone"))
    return f"{third}, {names[axis][int(offset.mean(0)[axis] > 0)]}"


def metal_warnings(case):
    """Look for metal in the CT in and beside the bone.

    Args:
        case: a `TibiaCase`.

    Returns:
        Sentences, none where there is no metal.

    Raises:
        InputError: the segment is of metal itself.
    """
    ct = case.read_ct()
    reach = tuple(2 * np.ceil(METAL_REACH_MM / case.tibia.spacing[::-1]).astype(int) + 1)
    metal = ct.array > METAL_HU
    if not metal.any():
        return []
    if np.count_nonzero(metal & case.tibia.array) > METAL_SHARE * np.count_nonzero(case.tibia.array):
        raise InputError("The segment holds metal, not bone: choose the segment of the tibia.")
    beside = ndimage.maximum_filter((case.tibia.array | case.fracture.array).view(np.uint8), reach).astype(bool)
    volume_ml = np.count_nonzero(metal & beside) * np.prod(case.tibia.spacing) / 1000
    if volume_ml < SMALLEST_METAL_ML:
        return []
    return [
        f"The CT shows {volume_ml:.1f} mL of metal in or at the bone: its streaks may mislead segment and prediction, "
        "and metal does not belong into the segment."
    ]
