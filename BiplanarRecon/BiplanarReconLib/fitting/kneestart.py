"""Where a knee may be, from the frusta or from landmarks: assembled mean knees in many poses, correlated with both X-rays."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.signal import fftconvolve

from BiplanarReconLib.fitting.kneefit import ATTENUATION, bone_image
from BiplanarReconLib.fitting.kneemodel import BoneState
from BiplanarReconLib.fitting.landmarks import shift_onto
from BiplanarReconLib.fitting.shadows import shadow
from BoneReconstructionLib.frames import rotation_about
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose

# Flexion of the knee, share of it that the thigh leans forward rather than the shank backwards, turn of the leg about
# its long axis (positive: foot outwards), and size.
FLEXIONS_DEGREES = (0.0, 25.0, 50.0, 75.0, 100.0, 120.0)
LEANS = (0.0, 0.5, 1.0)
TURNS_DEGREES = (-20.0, 0.0, 20.0)
SIZES = (0.93, 1.0, 1.07, 1.14)
REACH_MM, NEAR_LANDMARKS_MM, STEP_MM = 44.0, 12.0, 4.0
# Edges are levelled to so many times the median of all that reach a share of the strongest.
LEVEL, LEAST_EDGE = 1.5, 0.02
# How thigh and shank are tried once more: bent and turned about the long axis, and shifted.
BEND_DEGREES, TWIST_DEGREES = np.arange(-24.0, 25.0, 8.0), (-10.0, 0.0, 10.0)
PART_REACH_MM = 24.0
# Where the patella is tried on its track: turned about the femur's flexion axis, nearer to it or further away.
TRACK_DEGREES, AWAY_MM = np.arange(-36.0, 37.0, 4.0), (-4.0, 0.0, 4.0)


@dataclass(frozen=True, eq=False)
class Start:
    """A pose worth fitting from.

    Attributes:
        bones: {bone: `BoneState`} of mean shape.
        correlation: with the band-passed X-rays, the mean of both.
    """

    bones: dict
    correlation: float


def starts(models, priors, views, isocentre, rays=(), report=lambda fraction: None):
    """Mean knees in many poses, each shifted to where it agrees best with both X-rays, the best first.

    Args:
        models: {bone: `BoneModel`}, coarse ones.
        priors: {bone: `ShapePrior`} of the same bones, for the assembly.
        views: two coarse `View`s, right-sided.
        isocentre: (3,) mm, where the views' central rays meet.
        rays: `landmarks.Ray`s; where there are any, shifts are tried around them instead of around the isocentre.
        report: called with the fraction done.

    Returns:
        list of Start.
    """
    assembly, means = KneeAssembly(priors), {bone: prior.mean for bone, prior in priors.items()}
    observed = [np.where(view.valid, view.observed, 0.0) for view in views]
    found = {_plain: [], _levelled: []}
    for flexion in FLEXIONS_DEGREES:
        places = assembly.assemble(means, KneePose(flexion))
        leans = LEANS if flexion else LEANS[:1]
        for lean, turn, size in itertools.product(leans, TURNS_DEGREES, SIZES):
            pose = np.eye(4)
            upright = rotation_about((1, 0, 0), np.radians(-lean * flexion))
            pose[:3, :3] = size * rotation_about((0, 0, 1), np.radians(-turn)) @ upright
            pose[:3, 3] = isocentre
            bones = {
                bone: BoneState(model, pose @ places[bone], np.zeros(len(model.basis)))
                for bone, model in models.items()
            }
            reach = REACH_MM
            if rays:
                step, reach = np.eye(4), NEAR_LANDMARKS_MM
                step[:3, 3] = shift_onto(rays, bones)
                bones = {bone: one.carried(step) for bone, one in bones.items()}
            for shown, starts_of in found.items():
                starts_of.append(_shifted(bones, views, observed, reach, shown))
        report((FLEXIONS_DEGREES.index(flexion) + 1) / len(FLEXIONS_DEGREES))
    # Which of both tells more, depends on how dense the shafts are beside the joint: the best of each in turn.
    ranked = [sorted(starts_of, key=lambda start: -start.correlation) for starts_of in found.values()]
    return [start for both in zip(*ranked, strict=True) for start in both]


def _plain(image):
    """A band-passed image as it is."""
    return image


def _levelled(image):
    """A band-passed image whose strong edges count little more than its weak ones; dense shafts outvote joints."""
    size = np.abs(image)
    edges = size[size > LEAST_EDGE * size.max()]
    highest = LEVEL * np.median(edges) if len(edges) else 0.0
    return np.clip(image, -highest, highest)


def _shifted(bones, views, observed, reach_mm, shown=_plain):
    """The bones moved by the shift at which they correlate best with both views, as a `Start`.

    Args:
        bones: {bone: `BoneState`}.
        views: `View`s.
        observed: (rows, columns) band-passed images of the bones in each view, 0 where nothing is known.
        reach_mm: of the shifts, to either side.
        shown: what is made of both images before they are compared.
    """
    steps = np.arange(-reach_mm, reach_mm + 1e-6, STEP_MM)
    shifts = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    centre = np.mean([one.matrix[:3, 3] for one in bones.values()], axis=0)
    score = np.zeros(len(shifts))
    for view, seen in zip(views, observed, strict=True):
        image = 0.0
        for one in bones.values():
            own = shadow(view, one, ATTENUATION)
            image = image + ATTENUATION[0] * own.cortex + ATTENUATION[1] * own.inside
        image, seen = shown(image), shown(seen)
        norm = np.linalg.norm(image) * np.linalg.norm(seen) + 1e-12
        correlation = fftconvolve(seen, image[::-1, ::-1], mode="full") / norm
        moved = view.geometry.project(centre + shifts) - view.geometry.project(centre[None])
        middle = np.array(image.shape) - 1
        score += map_coordinates(correlation, (moved[:, ::-1] + middle).T, order=1, cval=-1.0) / len(views)
    best = int(np.argmax(score))
    step = np.eye(4)
    step[:3, 3] = shifts[best]
    return Start({bone: one.carried(step) for bone, one in bones.items()}, float(score[best]))


def _without(state, views, bones):
    """(rows, columns) per view: what the X-rays show beside the other bones of a state."""
    others = [name for name in state.bones if name not in bones]
    return [
        np.where(view.valid, view.observed - gain * sum(bone_image(view, state, name) for name in others), 0.0)
        for view, gain in zip(views, state.gains, strict=True)
    ]


def placed_anew(state, views):
    """The state with thigh, shank and patella, in turn, put to where the X-rays agree best with them.

    While the knee moves as a whole, edges of one part can hold another where it does not belong.

    Args:
        state: `kneefit.KneeState`, roughly in place.
        views: coarse `View`s.

    Returns:
        KneeState.
    """
    for part in (("femur",), ("tibia", "fibula")):
        state = _turned(state, views, part)
    return _on_track(state, views)


def _turned(state, views, part):
    """The state with some bones bent, turned about their long axis and shifted as one."""
    rests, frame, tried = _without(state, views, part), state.bones[part[0]].matrix, []
    for about_x, about_z in itertools.product(BEND_DEGREES, TWIST_DEGREES):
        own = np.eye(4)
        own[:3, :3] = rotation_about((1, 0, 0), np.radians(about_x)) @ rotation_about((0, 0, 1), np.radians(about_z))
        step = frame @ own @ np.linalg.inv(frame)
        tried.append(_shifted({bone: state.bones[bone].carried(step) for bone in part}, views, rests, PART_REACH_MM))
    return _replaced(state, max(tried, key=lambda start: start.correlation).bones)


def _replaced(state, found):
    assembled = state.assembled | {bone: one.matrix for bone, one in found.items()}
    return replace(state, bones=state.bones | found, assembled=assembled)


def _on_track(state, views):
    """The state with its patella where, on its track along the femur, the X-rays agree best with it.

    How long the patellar tendon is, nobody knows before.
    """
    femur, patella = state.bones["femur"], state.bones["patella"]
    axis, origin = femur.matrix[:3, 0] / femur.scale, femur.matrix[:3, 3]
    rests, tried = _without(state, views, ("patella",)), []
    for degrees in TRACK_DEGREES:
        step = np.eye(4)
        step[:3, :3] = rotation_about(axis, np.radians(degrees))
        step[:3, 3] = origin - step[:3, :3] @ origin
        turned = patella.carried(step)
        outward = turned.centre - origin
        outward -= (outward @ axis) * axis
        for away in AWAY_MM:
            shift = np.eye(4)
            shift[:3, 3] = away * outward / np.linalg.norm(outward)
            moved = turned.carried(shift)
            one = replace(state, bones=state.bones | {"patella": moved})
            misfit = sum(
                float(((rest - gain * bone_image(view, one, "patella"))[view.valid] ** 2).sum())
                for view, rest, gain in zip(views, rests, state.gains, strict=True)
            )
            tried.append((misfit, moved))
    best = min(tried, key=lambda pair: pair[0])[1]
    return _replaced(state, {"patella": best})
