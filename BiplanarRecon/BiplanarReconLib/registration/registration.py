"""Rigid registration of a CT to two calibrated X-rays: render and compare, from coarse to fine.

The bone of the CT is projected into both views and moved until its projections agree with the X-rays: first turned in
many ways and shifted to where the correlations are best, then by Levenberg-Marquardt at three resolutions. Only edges
are compared (X-rays and projections pass the same band-pass), so that soft tissue and scatter hardly count.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.ndimage import distance_transform_edt

from BiplanarReconLib.registration.bone import bone_of
from BiplanarReconLib.registration.fit import fit
from BiplanarReconLib.registration.search import REACH_MM, places
from BiplanarReconLib.registration.views import views_of
from BiplanarReconLib.spectra import best_shift
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.threads import together
from BoneReconstructionLib.xraygeometry import check_views, common_point

METHOD = "render-and-compare"


@dataclass(frozen=True)
class Level:
    """One resolution.

    Attributes:
        pixel_mm: of the X-rays at the isocentre.
        voxel_mm: of the bone.
        steps: of the fit, at most.
    """

    pixel_mm: float
    voxel_mm: float
    steps: int


COARSE, MIDDLE, FINE = Level(4.0, 5.0, 4), Level(2.0, 2.5, 3), Level(1.0, 1.0, 8)
# Pixels of the finest level in a voxel of the CT, at most.
FINEST_PIXELS = 1.5
# Places of the search that are fitted coarsely, so many steps at first; then those that are fitted on, and those at the
# middle level. Poses nearer than this are one place.
GLANCED, GLANCE_STEPS, TAKEN, KEPT = 8, 2, 4, 2
ONE_PLACE_MM, ONE_PLACE_DEGREES = 5.0, 10.0
# So much of the bone must lie in each X-ray, or so much of the X-ray show the bone.
LEAST_SHOWN = 0.5
# Along the border of what is seen, so much is left out of the views.
RIM_MM = 6.0
# Correlations of band-passed X-rays with the bone's: refused where the mean of both views or either view lies below the
# first, doubted below the second. Right poses of real CTs reach 0.6 to 0.95 in the mean, lost ones 0.1 to 0.55.
LEAST_MEAN, LEAST_VIEW = 0.42, 0.25
DOUBTFUL_MEAN, DOUBTFUL_VIEW = 0.6, 0.5
# Another place that agrees so much as well, by its score, is told; wrong ones reach 0.8 of the right one's.
AMBIGUOUS = 0.87
# In each view the bone's image alone is tried so far from its place; where it then agrees best should be its place.
TRIED_MM, TRIED_STEP_MM, FAR_MM = 10.0, 0.25, 2.0
# Starts are meant to be right to so much; what lies further away than the second, was found by luck.
MEANT_MM, MEANT_DEGREES = 25.0, 20.0
TRUSTED_MM, TRUSTED_DEGREES = 35.0, 30.0


@dataclass(frozen=True, eq=False)
class CtRegistration:
    """Where a CT's bone lies in the world of two X-rays.

    Attributes:
        pose: (4, 4) rigid, from the CT's RAS to the X-rays' world, mm.
        correlations: (frontal, lateral) of the band-passed X-ray with the bone's projection, around the bone; 1 at best.
        residuals_mm: (frontal, lateral) how far the bone's image by itself would have to be shifted to agree best with
            that X-ray, at the isocentre.
        shown: (frontal, lateral) share of the bone that lies in the X-ray.
        moved: (mm, degrees) of the bone from the start.
        warnings: sentences for the user; empty where nothing speaks against the result.
        seconds: it took.
    """

    pose: np.ndarray
    correlations: tuple
    residuals_mm: tuple
    shown: tuple
    moved: tuple
    warnings: tuple
    seconds: float


class CtRegistrar:
    """Registers one bone of a CT; what depends on the CT alone is prepared once, for any number of X-rays.

    Args:
        ct: `Volume` of HU.
        mask: bool `Volume` of the bone to be registered, of any grid; all of the CT's bone when None.

    Raises:
        InputError: the CT shows hardly any bone, or none in the mask.
    """

    def __init__(self, ct, mask=None):
        self.bone = bone_of(ct, mask)
        # Pixels much smaller than the CT's voxels show nothing more.
        finest = replace(FINE, pixel_mm=max(FINE.pixel_mm, float(ct.spacing.min()) / FINEST_PIXELS))
        self._levels = COARSE, MIDDLE, finest
        self._projectors = {level: self.bone.projector(level.voxel_mm) for level in self._levels}

    @property
    def engine(self):
        """Name of the projection engine, for the user to know."""
        return self._projectors[COARSE].engine

    def start(self, geometries):
        """(4, 4): the CT's axes as they are, the bone's centre where the central rays meet.

        Raises:
            InputError: the geometry is not in a patient's frame, which alone tells how the CT is turned.
        """
        if not all(geometry.anatomical for geometry in geometries):
            raise InputError(
                "The geometry is in the frame of a calibration object, which does not tell the patient's axes: give a "
                "starting transform from the CT to that frame."
            )
        pose = np.eye(4)
        pose[:3, 3] = common_point(*geometries) - self.bone.centre
        return pose

    def register(self, radiographs, geometries, start=None, report=lambda stage, fraction: None):
        """Find the bone in two X-rays.

        Args:
            radiographs: (frontal, lateral) `Radiograph`s; what a collimator covers does not count.
            geometries: (frontal, lateral) their `XrayGeometry`s.
            start: (4, 4) rigid, from the CT to the world, within about 25 mm and 20 degrees of the truth; `start` of
                the geometries when None.
            report: called with (stage, fraction done).

        Returns:
            CtRegistration.

        Raises:
            InputError: the views are impossible, the start is not rigid or puts the bone outside an X-ray, or the bone
                cannot be found in the X-rays.
        """
        began = time.perf_counter()
        check_views(*geometries)
        start = self.start(geometries) if start is None else _rigid(start)
        isocentre = common_point(*geometries)
        sizes = [level.pixel_mm for level in self._levels]
        both = together(
            partial(views_of, *one, isocentre, sizes) for one in zip(radiographs, geometries, strict=True)
        )
        views = dict(zip(self._levels, zip(*both, strict=True), strict=True))
        for shown in self._shown(views[COARSE], start, REACH_MM):
            if shown < LEAST_SHOWN:
                raise InputError(
                    "The starting position puts the bone outside an X-ray's field of view: move the CT to within "
                    f"{MEANT_MM:.0f} mm of where it belongs, or take X-rays that show the bone."
                )
        report("finding the bone", 0.2)
        found = places(self._projectors[COARSE], self.bone, views[COARSE], start)
        report("finding the bone", 1.0)
        fits = self._fits(COARSE, views, [pose for _, pose in found[:GLANCED]], GLANCE_STEPS)
        fits = self._fits(COARSE, views, [one.pose for one in fits[:TAKEN]])
        report("fitting the pose", 0.4)
        fits = self._fits(MIDDLE, views, [one.pose for one in fits[:KEPT]])
        report("fitting the pose", 0.7)
        best = self._fit(self._levels[-1], views, fits[0].pose)
        report("fitting the pose", 1.0)
        shown = self._shown(views[MIDDLE], best.pose, RIM_MM)
        residuals = tuple(together(partial(self._residual, view, best.pose) for view in views[MIDDLE]))
        moved = self.bone.apart(best.pose, start)
        warnings = _judged(best.correlations, residuals, shown)
        if moved[0] > TRUSTED_MM or moved[1] > TRUSTED_DEGREES:
            warnings.append(
                f"The bone lies {moved[0]:.0f} mm and {moved[1]:.0f} degrees from the start, which should be right to "
                f"{MEANT_MM:.0f} mm and {MEANT_DEGREES:.0f} degrees: check it by eye."
            )
        for other in fits[1:]:
            if other.score > AMBIGUOUS * fits[0].score:
                gap, angle = self.bone.apart(other.pose, best.pose)
                warnings.append(
                    f"Another pose, {gap:.0f} mm and {angle:.0f} degrees away, agrees nearly as well: check by eye."
                )
        return CtRegistration(
            best.pose, best.correlations, residuals, shown, moved, tuple(warnings), time.perf_counter() - began
        )

    def projection(self, geometry, pose):
        """The bone's projection (rows, columns) in a view, and the size of a pixel at the bone, mm."""
        centre = transform_points(pose, self.bone.centre[None])
        magnification = geometry.source_detector_mm / float(geometry.depths(centre)[0])
        return self._projectors[self._levels[-1]](geometry, pose), float(geometry.spacing_uv.mean()) / magnification

    def _fit(self, level, views, pose, steps=None):
        return fit(self._projectors[level], self.bone, views[level], pose, steps or level.steps)

    def _fits(self, level, views, poses, steps=None):
        """Fits from some poses to different places, the best first."""
        fits = together(partial(self._fit, level, views, pose, steps) for pose in poses)
        kept = []
        for one in sorted(fits, key=lambda one: -one.score):
            gaps = [self.bone.apart(one.pose, other.pose) for other in kept]
            if all(mm > ONE_PLACE_MM or degrees > ONE_PLACE_DEGREES for mm, degrees in gaps):
                kept.append(one)
        return kept

    def _shown(self, views, pose, margin_mm):
        """Per view the share of the bone in what is seen, and so far around it, or of that which shows bone if more."""
        points, weight = self.bone.samples
        points = transform_points(pose, points)
        shares = []
        for view in views:
            place = view.geometry.project(points)[:, ::-1]
            within = np.clip(np.nan_to_num(place), 0, np.array(view.geometry.shape) - 1)
            away = np.linalg.norm(place - within, axis=1)
            away += distance_transform_edt(~view.valid)[tuple(np.rint(within).astype(int).T)]
            covered = (self._projectors[COARSE](view.geometry, pose) > 0)[view.valid].mean()
            shares.append(float(max(weight[away <= margin_mm / view.pixel_mm].sum(), covered)))
        return tuple(shares)

    def _residual(self, view, pose):
        """How far the bone's image would have to be shifted to agree best with an X-ray, mm."""
        return best_shift(view, self._projectors[MIDDLE](view.geometry, pose), TRIED_MM, TRIED_STEP_MM)


def _rigid(matrix):
    """A (4, 4) matrix that is a rotation and a shift."""
    matrix = np.asarray(matrix, dtype=float)
    turn = matrix[:3, :3]
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
        raise InputError("The starting transform is not rigid (it scales, shears or mirrors): give a rigid one.")
    u, _, vt = np.linalg.svd(turn)
    rigid = matrix.copy()
    rigid[:3, :3] = u @ vt
    return rigid


def _judged(correlations, residuals, shown):
    """Warnings about a result.

    Raises:
        InputError: the bone is not where the result has it.
    """
    if min(shown) < LEAST_SHOWN:
        raise InputError(
            "The field of view of one X-ray misses the bone: take X-rays that both show it, or start nearer to it."
        )
    if np.mean(correlations) < LEAST_MEAN or min(correlations) < LEAST_VIEW:
        raise InputError(
            "The CT's bone was not found in the X-rays: check that both are of one patient, the geometry, the views, "
            f"and that the start is right to {MEANT_MM:.0f} mm and {MEANT_DEGREES:.0f} degrees."
        )
    warnings = []
    if np.mean(correlations) < DOUBTFUL_MEAN or min(correlations) < DOUBTFUL_VIEW:
        frontal, lateral = correlations
        warnings.append(
            f"The X-rays agree poorly with the CT's bone (correlation {frontal:.2f} frontal, {lateral:.2f} lateral): "
            "the pose may be lost, check it by eye."
        )
    for view, residual in zip(("frontal", "lateral"), residuals, strict=True):
        if residual > FAR_MM:
            warnings.append(
                f"The {view} X-ray by itself has the bone {residual:.1f} mm away: check geometry and result by eye."
            )
    return warnings
