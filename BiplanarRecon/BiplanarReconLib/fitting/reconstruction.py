"""Femur, tibia, fibula and patella out of two X-rays, by fitting the shape and pose model of the knee."""

import time
from dataclasses import dataclass, replace

import numpy as np

from BiplanarReconLib.fieldofview import in_both
from BiplanarReconLib.fitting import kneefit
from BiplanarReconLib.fitting.kneemodel import BONES, MODEL, coarser, load_models
from BiplanarReconLib.fitting.kneestart import placed_anew, starts
from BiplanarReconLib.fitting.landmarks import check_landmarks, rays_of
from BiplanarReconLib.fitting.outlines import residual
from BiplanarReconLib.fitting.shadows import make_view
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES, side_to_right
from BoneReconstructionLib.kneemeasurements import height_along
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.xraygeometry import check_views, common_point

METHOD = "shape-model"
# The search runs on meshes of this size.
SEARCH_CELL_MM = 6.0
# Starting poses that are fitted for a few steps, and those of them that are fitted on.
GLANCED, KEPT = 16, 3
OUTLINE_PIXEL_MM = 1.0
# Without these bones there is no knee. Of their ends, this share of the whole length, both views must show so much; of
# their outlines so much must lie where each X-ray has it (0.2 to 0.4 do by chance, 0.7 in bad X-rays, 1 in good ones).
NEEDED, END_SHARE, LEAST_SEEN, LEAST_HELD = ("femur", "tibia"), 0.08, 0.6, 0.45


@dataclass(frozen=True, eq=False)
class KneeReconstruction:
    """A knee that was fitted to two X-rays.

    Attributes:
        side: "left" or "right".
        surfaces: {bone: closed surface}, RAS mm; shafts end in a flat cap, see `caps`.
        caps: {bone: (m,) bool faces that close the cut shaft and are no bone's surface}.
        residuals: {bone: (frontal, lateral) `outlines.Residual`}.
        deviation_mm: {bone: (n,) standard deviation of each vertex along its normal}, by the posterior.
        seen: {bone: share of its end at the knee that lies in both views}.
        correlation: of the band-passed X-rays with the model's.
        seconds: it took.
    """

    side: str
    surfaces: dict
    caps: dict
    residuals: dict
    deviation_mm: dict
    seen: dict
    correlation: float
    seconds: float


def reconstruct(images, seen, geometries, side, landmarks=(), report=lambda stage, fraction: None):
    """Fit the knee model, started from the frusta, or from landmarks where there are some.

    Args:
        images: (frontal, lateral) line integrals, (rows, columns) each, in any common unit.
        seen: (frontal, lateral) bool of the same shapes, False where a collimator covers the patient.
        geometries: (frontal, lateral) `XrayGeometry` in the patient's RAS frame.
        side: "left" or "right"; None: whichever agrees better with the X-rays.
        landmarks: `Landmark`s in both X-rays, or none.
        report: called with (stage, fraction done).

    Returns:
        KneeReconstruction.

    Raises:
        InputError: the landmarks cannot be used, the views are impossible, are not in the patient's frame, or do not show a knee.
    """
    began = time.perf_counter()
    check_views(*geometries)
    check_landmarks(landmarks, [image.shape for image in images])
    if not all(geometry.anatomical for geometry in geometries):
        raise InputError(
            "The geometry is in the frame of a calibration object, which does not tell the patient's axes: say which "
            "of its axes point to the patient's right, front and head."
        )
    models, priors = load_models(), {bone: load_prior(MODEL, bone) for bone in BONES}
    sides = {one: _Sided(images, seen, geometries, one) for one in (SIDES if side is None else (side,))}
    side, best = _found(models, priors, sides, landmarks, report)
    views_at = sides[side].views
    for number, stage in enumerate(kneefit.SHAPES):
        best = kneefit.fit(
            best.state,
            views_at(stage.pixel_mm),
            stage,
            lambda fraction, n=number: report("fitting the bones", (n + fraction) / len(kneefit.SHAPES)),
        )
    shown = {bone: _seen_share(state, sides[side].geometries) for bone, state in best.state.bones.items()}
    missed = [bone for bone in NEEDED if shown[bone] < LEAST_SEEN]
    if missed:
        raise InputError(
            f"The field of view of one X-ray misses the {' and the '.join(missed)} at the knee: take X-rays that both "
            "show the joint."
        )
    views = views_at(OUTLINE_PIXEL_MM)
    residuals = {bone: tuple(residual(view, best.state, bone) for view in views) for bone in BONES}
    if any(one.held < LEAST_HELD for bone in NEEDED for one in residuals[bone]):
        raise InputError(
            "The two X-rays do not show a knee as their geometry has it: check side, views and geometry, and that the "
            "field of view holds the joint."
        )
    back = side_to_right(side)
    return KneeReconstruction(
        side,
        {bone: transformed(best.state.bones[bone].surface, back) for bone in BONES},
        {bone: models[bone].cap for bone in BONES},
        residuals,
        kneefit.deviations(best),
        shown,
        best.correlation,
        time.perf_counter() - began,
    )


def _seen_share(state, geometries):
    """Share of a bone's end at the knee that lies in both views."""
    height = height_along(state.model.name, state.model.mean, state.model.mean)
    return float(in_both(state.surface.vertices[height < END_SHARE], geometries).mean())


class _Sided:
    """The X-rays seen in the frame in which a knee of one side is a right one; the images stay as they are."""

    def __init__(self, images, seen, geometries, side):
        self._images, self._seen = images, seen
        self.geometries = [_right_sided(geometry, side) for geometry in geometries]
        self.isocentre = common_point(*self.geometries)
        self._views = {}

    def views(self, pixel_mm):
        if pixel_mm not in self._views:
            both = zip(self._images, self._seen, self.geometries, strict=True)
            self._views[pixel_mm] = [make_view(*one, self.isocentre, pixel_mm) for one in both]
        return self._views[pixel_mm]


def _found(models, priors, sides, landmarks, report):
    """(side, `Fitted`) of the knee that agrees best with the X-rays, of mean shape, at the search's resolution."""
    coarse = {bone: coarser(model, SEARCH_CELL_MM) for bone, model in models.items()}
    glances = []
    for number, (side, sided) in enumerate(sides.items()):
        views = sided.views(kneefit.GLANCE.pixel_mm)
        found = starts(
            coarse,
            priors,
            views,
            sided.isocentre,
            rays_of(landmarks, sided.geometries),
            lambda fraction, n=number: report("finding the knee", (n + fraction) / len(sides)),
        )
        for start in found[:GLANCED]:
            glances.append((side, kneefit.fit(kneefit.begin(start.bones, views), views, kneefit.GLANCE)))
            report("moving the knee", 0.7 * len(glances) / GLANCED / len(sides))
    glances.sort(key=lambda pair: -pair[1].correlation)
    fits = []
    for side, glance in glances[:KEPT]:
        views = sides[side].views(kneefit.WHOLE.pixel_mm)
        state = kneefit.fit(glance.state, views, kneefit.WHOLE).state
        state = placed_anew(state, views)
        fits.append((side, kneefit.fit(state, views, kneefit.APART)))
        report("moving the knee", 0.7 + 0.3 * len(fits) / KEPT)
    side, best = max(fits, key=lambda pair: pair[1].correlation)
    bones = {bone: replace(state, model=models[bone]) for bone, state in best.state.bones.items()}
    return side, replace(best, state=replace(best.state, bones=bones))


def _right_sided(geometry, side):
    """The view in the frame in which a knee of `side` is a right one; the image stays as it is."""
    mirror = np.diag(side_to_right(side))[:3]
    return replace(
        geometry,
        source=geometry.source * mirror,
        detector_centre=geometry.detector_centre * mirror,
        u=geometry.u * mirror,
        v=geometry.v * mirror,
    )
