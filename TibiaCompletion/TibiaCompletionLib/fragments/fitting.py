"""One fragment brought to its place: its outer cortex onto the healthy bone, its broken faces against its neighbours.

A point of a fragment's surface is explained where it lies on the healthy bone and looks the same way, or where it lies
beside a neighbour and looks against it. Which points are cortex and which are broken is not asked before: broken faces
lie inside the healthy bone and look elsewhere. Nothing of a fragment may stick out of the healthy bone or into a
neighbour.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.threads import in_blocks
from TibiaCompletionLib.fragments.bodies import inverse

# Cosine between normals from which on two surfaces look the same way.
AGREEMENT = 0.6
# Broken faces that fit lie this far apart, as bone is lost between them.
FACES_APART_MM = 0.5
# Deeper inside a neighbour the closest point of its surface no longer tells the way out.
DEEPEST_MM = 8.0
# Standard deviations of the distances, mm, in each step of a search with few points and of the fit with many. What is
# as large as a small fragment itself would wash it out.
SEARCH_MM = (8.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 2.0)
SMALL_SEARCH_MM = (3.0, 2.5, 2.0, 2.0, 2.0, 2.0)
FIT_MM = (2.0, 1.5, 1.2, 1.0, 0.8, 0.7, 0.7, 0.7)
SEARCH_POINTS, FIT_POINTS = 300, 800
POINTS_AT_ONCE = 2400  # of all poses that one thread settles at a time
# The search starts from each given motion, moved along and turned about the bone's long axis.
SHIFTS_MM, TURNS_DEGREES, SMALL_TURNS_DEGREES = (-12.0, -4.0, 4.0, 12.0), (-20.0, -7.0, 7.0, 20.0), (-8.0, 8.0)
# A fragment of this many times its width is first laid along the bone.
ELONGATED, SECTION_MM = 2.0, 10.0
# After the first steps of the search only so many poses go on, and so many of these are fitted with many points.
LOOK_STEPS, PROMISING_POSES, FITTED_POSES, SAME_POSE = 3, 16, 5, 0.5
# Where distances may err by more, the planes of the closest vertices tell them well enough.
EXACT_BELOW_MM = 1.0
# Distance, mm, at which half of a point is explained; how much a neighbour explains of it, as a fragment that is
# pressed into another must not be content there; what sticking out costs.
EXPLAINED_MM, NEIGHBOUR_WORTH, STICKING_OUT = 1.5, 0.4, 0.3
# How far fractures displace fragments, and what such a motion costs.
MOTION_MM, MOTION_DEGREES, MOTION_COST = 12.0, 10.0, 0.01
LARGEST_TURN = 0.3  # radians in one step
STEADINESS = 1e-3


def robust(residual, sd):
    """Weight 0 to 1 of residuals of which most err by a standard deviation and some by anything."""
    return 1 / (1 + (residual / sd) ** 2) ** 2


def rows_on_bone(bone, points, normals, sd):
    """Residuals of a fragment's points against the healthy bone.

    Args:
        bone: `Body`.
        points, normals: (n, 3) of the fragment at its pose.
        sd: standard deviation of the distance, mm; exact below `EXACT_BELOW_MM`.

    Returns:
        (directions (n, 3) along which the residual grows, residuals (n,) in mm, weights (n,) in 1 / mm^2).
    """
    distance, outward = bone.nearest(points, sd < EXACT_BELOW_MM)
    agree = (normals * outward).sum(1) > AGREEMENT
    weight = np.where(agree, robust(distance, sd), 0.0)
    weight = np.where(~agree & (distance > 0), 1 / (1 + (distance / (3 * sd)) ** 2), weight)
    return outward, distance, weight / sd**2


def rows_on_neighbour(body, pose, points, normals, trust, sd):
    """The same against a neighbour at its pose; points beside it without looking against it do not count.

    Args:
        body, pose: the neighbour.
        points, normals, sd: as in `rows_on_bone`.
        trust: of the points, see `FragmentEdges`; the neighbour's edges that are trusted less do not count.
    """
    distance, outward = body.nearest_edge(transform_points(inverse(pose), points), trust, sd < EXACT_BELOW_MM)
    outward = outward @ pose[:3, :3].T
    against = (normals * outward).sum(1) < -AGREEMENT
    apart = distance - FACES_APART_MM
    residual = np.where(against, apart, np.minimum(apart, 0.0))
    weight = np.where(against, robust(residual, sd), 0.0)
    inside = (apart < 0) & (apart > -DEEPEST_MM)
    weight = np.where(inside, np.maximum(weight, 1 / (1 + (residual / (3 * sd)) ** 2)), weight)
    return outward, residual, trust * weight / sd**2


def lever(points, centre, directions):
    """(..., 6) how residuals along directions (..., 3) at points change with a shift and a turn about a centre."""
    return np.concatenate([directions, np.cross(points - centre, directions)], -1)


def settled(bone, neighbours, body, chosen, poses, steps):
    """Let a fragment settle from several poses by robust point-to-plane steps.

    Args:
        bone: `Body` of the healthy bone.
        neighbours: list of (`Body`, pose) that stay where they are.
        body: `Body` of the fragment.
        chosen: indices of its vertices that count.
        poses: (p, 4, 4) rigid, where it starts.
        steps: standard deviation of the distances in each step, mm.

    Returns:
        (p, 4, 4) poses.
    """
    points, faces, trust = body.edges.points[chosen], body.edges.faces[chosen], body.edges.trust[chosen]
    normals = body.normals[chosen]
    levels = [(level, trust == level) for level in np.unique(trust)]

    def each(rows):  # those of one pose after the other
        return rows.reshape(len(poses), -1, *rows.shape[1:])

    for sd in steps:
        parts = []
        here, looking = _placed(points, normals, poses)
        parts.append((here, *rows_on_bone(bone, here, looking, sd)))
        for other, place in neighbours:
            for level, own in levels:
                here, looking = _placed(faces[own], normals[own], poses)
                parts.append((here, *rows_on_neighbour(other, place, here, looking, level, sd)))
        places, directions, residual, weight = (np.concatenate([*map(each, part)], 1) for part in zip(*parts))
        centre = places.mean(1)
        arm = places - centre[:, None]
        jacobian = lever(arm, 0.0, directions)
        weighted = (jacobian * weight[:, :, None]).swapaxes(1, 2)
        normal = weighted @ jacobian
        # What slides without a gap, as a piece of a shaft does along it, stays.
        size = np.repeat(np.stack([np.ones(len(poses)), (arm**2).mean((1, 2)) * 3], 1), 3, axis=1)
        normal[:, range(6), range(6)] += STEADINESS * weight.sum(1)[:, None] * size + 1e-9
        step = np.linalg.solve(normal, -weighted @ residual[:, :, None])[:, :, 0]
        turn = step[:, 3:] * np.minimum(1.0, LARGEST_TURN / np.linalg.norm(step[:, 3:], axis=1).clip(1e-12))[:, None]
        poses = turned_about(turn, centre, step[:, :3]) @ poses
    return poses


def misfit(bone, neighbours, body, chosen, poses, exact=True):
    """(p,) share of a fragment's points that nothing explains, with what sticks out on top; as in `settled`."""
    points, normals = _placed(body.edges.points[chosen], body.normals[chosen], poses)
    distance, outward = bone.nearest(points, exact)
    agree = (normals * outward).sum(1) > AGREEMENT
    cost = np.where(agree, 1 - 1 / (1 + (distance / EXPLAINED_MM) ** 2), 1.0)
    out = np.clip(distance / EXPLAINED_MM, 0, 3)
    for other, place in neighbours:
        distance, outward = other.nearest(transform_points(inverse(place), points), exact)
        against = (normals * (outward @ place[:3, :3].T)).sum(1) < -AGREEMENT
        apart = (distance - FACES_APART_MM) / EXPLAINED_MM
        cost = np.where(against, np.minimum(cost, 1 - NEIGHBOUR_WORTH / (1 + apart**2)), cost)
        out += np.clip(-distance / EXPLAINED_MM, 0, 3)
    return (cost + STICKING_OUT * out).reshape(len(poses), -1).mean(1)


def _placed(points, normals, poses):
    """Points and normals (n, 3) at each of (p, 4, 4) poses, (p * n, 3) each."""
    turns = poses[:, :3, :3].swapaxes(1, 2)
    return (points @ turns + poses[:, None, :3, 3]).reshape(-1, 3), (normals @ turns).reshape(-1, 3)


def place(bone, neighbours, body, motions):
    """Find a fragment's place from several starts.

    Args:
        bone: `Body` of the healthy bone, +z along it.
        neighbours: list of (`Body`, pose) of fragments that are in their places.
        body: `Body` of the fragment.
        motions: (4, 4) rigid motions that may have brought it nearly there, the identity among them.

    Returns:
        (4, 4) pose.
    """
    few, many = body.spread(SEARCH_POINTS), body.spread(FIT_POINTS)
    motions = _different(motions)
    centre = body.surface.vertices[many].mean(0)

    def costs(poses, chosen, exact):
        # The first fragment goes where the healthy bone is, the others not far from it.
        far = [min(_travel(pose, motion, centre) for motion in motions) if neighbours else 0.0 for pose in poses]
        return misfit(bone, neighbours, body, chosen, poses, exact) + MOTION_COST * np.array(far)

    def best_of(poses, count):
        return np.array(_different(poses[np.argsort(costs(poses, few, False), kind="stable")])[:count])

    def all_settled(chosen, poses, steps):
        parts = in_blocks(
            lambda block: settled(bone, neighbours, body, chosen, poses[block], steps),
            len(poses),
            POINTS_AT_ONCE // len(chosen),
        )
        return np.concatenate(parts)

    elongated = _elongated(body)
    steps = SEARCH_MM if elongated else SMALL_SEARCH_MM
    found = all_settled(few, np.array(_starts(bone, body, motions, elongated)), steps[:LOOK_STEPS])
    found = all_settled(few, best_of(found, PROMISING_POSES), steps[LOOK_STEPS:])
    fitted = all_settled(many, best_of(found, FITTED_POSES), FIT_MM)
    return fitted[np.argmin(costs(fitted, many, True))]


def _elongated(body):
    vertices = body.surface.vertices[body.spread(FIT_POINTS)]
    extent = np.linalg.svd(vertices - vertices.mean(0), full_matrices=False)[1]
    return extent[0] > ELONGATED * extent[1]


def _starts(bone, body, motions, elongated):
    """Poses (4, 4) from which a fragment's place is searched."""
    vertices = body.surface.vertices[body.spread(FIT_POINTS)]
    bases = list(motions)
    if elongated:
        bases += [_along_bone(bone, transform_points(motion, vertices)) @ motion for motion in motions]
    starts = []
    for base in bases:
        middle = transform_points(base, vertices).mean(0)
        for shift in SHIFTS_MM:
            for turn in TURNS_DEGREES if elongated else SMALL_TURNS_DEGREES:
                about = turned_about([0, 0, np.radians(turn)], middle, np.array([0, 0, shift]))
                starts.append(about @ base)
    return starts


def _along_bone(bone, points):
    """(4, 4) shortest motion that lays elongated points (n, 3) along z and into the middle of the bone."""
    middle = points.mean(0)
    axis = np.linalg.svd(points - middle, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[2])
    across = np.cross(axis, [0.0, 0.0, 1.0])
    turn = across / max(np.linalg.norm(across), 1e-12) * np.arccos(np.clip(axis[2], -1, 1))
    section = bone.surface.vertices[np.abs(bone.surface.vertices[:, 2] - middle[2]) < SECTION_MM]
    shift = np.zeros(3)
    if len(section):
        shift[:2] = ((section.min(0) + section.max(0)) / 2 - middle)[:2]
    return turned_about(turn, middle, shift)


def _different(poses):
    """Poses (4, 4) without those that are nearly the same as one before."""
    kept = []
    for pose in poses:
        if all(np.abs(pose - other).max() > SAME_POSE for other in kept):
            kept.append(pose)
    return kept


def _travel(pose, motion, centre):
    """How far a pose is from a motion, squared, relative to how far fractures displace fragments."""
    shift = transform_points(pose, centre[None]) - transform_points(motion, centre[None])
    turn = Rotation.from_matrix(pose[:3, :3] @ motion[:3, :3].T).magnitude()
    return (np.linalg.norm(shift) / MOTION_MM) ** 2 + (np.degrees(turn) / MOTION_DEGREES) ** 2
