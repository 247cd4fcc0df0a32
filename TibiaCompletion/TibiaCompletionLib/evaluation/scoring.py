"""Figures of one prediction against the healthy bone."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.imagemetrics import psnr, windowed
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.overlap import dice
from BoneReconstructionLib.shapefitting import VisibleSurface, fit, start, with_residual
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.surfaces import transformed, vertex_areas
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks
from BoneReconstructionLib.volumes import Volume, resample
from TibiaCompletionLib.evaluation.registration import laid_on
from TibiaCompletionLib.evaluation.scans import TRAINED_RANGES, bone_hu

FIGURES = (
    "assd_gap_mm",
    "hd95_gap_mm",
    "assd_mm",
    "hd95_mm",
    "rmsd_mm",
    "dice",
    "psnr_db",
    "length_error_mm",
    "torsion_error_deg",
    "angulation_error_deg",
)
# How the standard deviations of the predicted bone's vertices in the gap compare with their errors.
DEVIATIONS = ("rms_gap_mm", "sigma_gap_mm", "within_1_sd", "within_2_sd")
REFERENCE_SPACING_MM, REFERENCE_MARGIN_MM = 1.0, 10.0
# How far a bone's own grey values reach beyond its surface; farther out the reference image shows soft tissue only.
BLURRED_MM = 2.0
# Share of the bone's length at either end that says how the ends lie to each other.
END_SHARE = 0.15
END_POINTS = 1500


@dataclass(frozen=True, eq=False)
class Truth:
    """A healthy bone to measure against.

    Attributes:
        leg: the `Leg`.
        scan: its `Scan`.
    """

    leg: object
    scan: object

    @cached_property
    def locator(self):
        """Finds closest points of the true surface."""
        return SurfaceLocator(self.leg.tibia)

    @cached_property
    def areas(self):
        """(n,) area of each vertex of the true surface, mm^2."""
        return vertex_areas(self.leg.tibia)

    @cached_property
    def ends(self):
        """(distal, proximal): evenly spread true vertices of the bone's ends, (m, 3) RAS mm."""
        height = self.leg.places(self.leg.tibia.vertices)[:, 2] / self.leg.length
        generator = np.random.default_rng(1)
        points = []
        for chosen in (height < END_SHARE, height > 1 - END_SHARE):
            index = np.flatnonzero(chosen)
            share = self.areas[index] / self.areas[index].sum()
            points.append(self.leg.tibia.vertices[generator.choice(index, END_POINTS, p=share)])
        return tuple(points)

    @cached_property
    def measurements(self):
        """{name of `PUBLISHED`: value} of the true bone, by the prior fitted to all of it."""
        prior = load_prior(TIBIA_PRIOR, "tibia")
        right = transformed(self.leg.tibia, side_to_right(self.leg.side))
        visible = VisibleSurface.whole(right)
        fitted = with_residual(prior, fit(prior, visible, start(prior, visible)), visible)
        return TibiaLandmarks(prior.mean, prior.faces).measure(fitted.surface.vertices)

    @cached_property
    def reference(self):
        """(mask, image): true bone, and its CT mapped from the HU window to [0, 1], on a 1 mm grid along the bone."""
        places = self.leg.places(self.leg.tibia.vertices)
        low, high = places.min(0) - REFERENCE_MARGIN_MM, places.max(0) + REFERENCE_MARGIN_MM
        matrix = np.eye(4)
        matrix[:3, :3] = self.leg.axes.T * REFERENCE_SPACING_MM
        matrix[:3, 3] = self.leg.origin + self.leg.axes.T @ low
        shape = tuple(np.ceil((high - low) / REFERENCE_SPACING_MM).astype(int)[::-1])
        mask = voxelize(self.leg.tibia, shape, matrix)
        grid = self.scan.tibia.ijk_to_ras
        ct = resample(Volume(self.scan.scanned(self.scan.sharp), grid), shape, matrix, "linear").array
        distance = resample(Volume(self.scan.distance, grid), shape, matrix, "linear", BLURRED_MM).array
        ct[distance >= BLURRED_MM] = self.scan.soft_tissue_hu
        return mask, windowed(ct)


def figures(predicted, truth, masked=None, scanned=None):
    """Measure a prediction; distances are point to triangle, from the vertices of both surfaces, weighted by area.

    Args:
        predicted: closed surface, RAS mm.
        truth: `Truth`.
        masked: function of (n, 3) RAS points that says which lie in the masked region; None: nothing is masked.
        scanned: function of (n, 3) RAS points that says which lie in the scan; None: all.

    Returns:
        {name of `FIGURES`: value}, NaN where there is no such figure:

        - assd_gap_mm, hd95_gap_mm: over the vertices of either surface that lie in the masked region.
        - assd_mm, hd95_mm, rmsd_mm, dice: over all, for partial scans over what was scanned. Dice on a 1 mm grid.
        - psnr_db: the predicted bone rendered plainly, by the middle of the training's ranges, against the healthy CT
          with nothing but this bone, within the fixed HU window on a 1 mm grid; whole bones only.
        - length_error_mm, torsion_error_deg, angulation_error_deg: how the proximal and the distal 15 % of the bone lie
          to each other, of absolute value. The true ends are laid rigidly on the predicted surface, robustly; the
          change of the distance of their centres, the turn about the long axis and the remaining angle are the errors.
          That needs no correspondence and is the same for all methods. Whole bones only.
    """
    surfaces = predicted, truth.leg.tibia
    locators = SurfaceLocator(predicted), truth.locator
    areas = vertex_areas(predicted), truth.areas
    gap, whole = [], []
    for surface, area, locator in zip(surfaces, areas, locators[::-1], strict=True):
        distance = locator.closest(surface.vertices)[1]
        seen = np.ones(len(distance), dtype=bool) if scanned is None else scanned(surface.vertices)
        inside = np.zeros(len(distance), dtype=bool) if masked is None else seen & masked(surface.vertices)
        gap.append((distance[inside], area[inside]))
        whole.append((distance[seen], area[seen]))
    result = dict.fromkeys(FIGURES, np.nan)
    result["assd_gap_mm"], _, result["hd95_gap_mm"] = _distances(gap)
    result["assd_mm"], result["rmsd_mm"], result["hd95_mm"] = _distances(whole)

    mask, image = truth.reference
    bone = voxelize(predicted, mask.shape, mask.ijk_to_ras).array
    if scanned is None:
        result["dice"] = dice(bone, mask.array)
        result["psnr_db"] = psnr(windowed(_plain(bone, truth)), image)
        result |= _ends(predicted, locators[0], truth)
    else:
        index = np.argwhere(bone | mask.array)
        seen = scanned(transform_points(mask.ijk_to_ras, index[:, ::-1]))
        place = tuple(index[seen].T)
        result["dice"] = dice(bone[place], mask.array[place])
    return result


def deviation_figures(predicted, sigma, truth, masked):
    """Compare a prediction's standard deviations with its errors at its vertices in the masked region.

    Args:
        predicted: closed surface, RAS mm.
        sigma: (n,) standard deviation of each vertex, mm; None: the method knows none.
        truth: `Truth`.
        masked: as for `figures`.

    Returns:
        {name of `DEVIATIONS`: value}, NaN where there is none: root mean square error and mean standard deviation in
        mm, and the shares of the area within one and two standard deviations.
    """
    inside = np.flatnonzero(masked(predicted.vertices)) if sigma is not None and masked is not None else ()
    area = vertex_areas(predicted)[inside] if len(inside) else np.zeros(1)
    if area.sum() == 0:
        return dict.fromkeys(DEVIATIONS, np.nan)
    error, sigma = truth.locator.closest(predicted.vertices[inside])[1], sigma[inside]
    values = error**2, sigma, error < sigma, error < 2 * sigma
    rms, *others = (float(np.average(value, weights=area)) for value in values)
    return dict(zip(DEVIATIONS, (np.sqrt(rms), *others), strict=True))


def _distances(sides):
    """(mean, root mean square, 95th percentile of the worse side) of [(distances, areas), ...]; NaN without any."""
    distance, area = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    if area.sum() == 0:
        return np.nan, np.nan, np.nan
    mean = np.average(distance, weights=area)
    square = np.average(distance**2, weights=area)
    worst = max(_percentile(d, a, 0.95) for d, a in sides if a.sum() > 0)
    return float(mean), float(np.sqrt(square)), worst


def _percentile(distance, area, share):
    order = np.argsort(distance)
    total = np.cumsum(area[order])
    return float(distance[order[np.searchsorted(total, share * total[-1])]])


def _plain(bone, truth):
    """HU (K, J, I) float32 of a bone mask on the reference grid, as the plain renderer has it."""
    tissue = {name: (low + high) / 2 for name, (low, high) in TRAINED_RANGES.items()}
    hu = np.full(bone.shape, tissue["soft_tissue_hu"], dtype=np.float32)
    depth = ndimage.distance_transform_edt(bone, REFERENCE_SPACING_MM)[bone] - REFERENCE_SPACING_MM / 2
    height = (np.nonzero(bone)[0] * REFERENCE_SPACING_MM - REFERENCE_MARGIN_MM) / truth.leg.length
    hu[bone] = bone_hu(tissue, -depth, height)
    return ndimage.gaussian_filter(hu, tissue["blur_mm"] / REFERENCE_SPACING_MM)


def _ends(predicted, locator, truth):
    distal, proximal = (laid_on(points, predicted, locator) for points in truth.ends)
    low, high = (points.mean(0) for points in truth.ends)
    length = np.linalg.norm(transform_points(proximal, high[None]) - transform_points(distal, low[None]))
    turn = truth.leg.axes @ (proximal[:3, :3].T @ distal[:3, :3]) @ truth.leg.axes.T
    *_, z, w = Rotation.from_matrix(turn).as_quat()
    return {
        "length_error_mm": abs(float(length - np.linalg.norm(high - low))),
        "torsion_error_deg": abs(float(np.degrees(2 * np.arctan2(z, w) + np.pi) % 360 - 180)),
        "angulation_error_deg": float(np.degrees(2 * np.arccos(min(1.0, np.hypot(z, w))))),
    }
