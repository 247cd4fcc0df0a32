"""What the knee model looks like in an X-ray, and how that changes with its parameters.

A bone adds to the line integrals a cortex and an inside: a (t - s) + b s, where t and s are the lengths of the ray
within the bone's surface and within that of the marrow. A surface that moves outwards by d over an area A adds the
volume A d to the image where that area is seen; spread over a pixel's footprint, this is the derivative, without the
singularity that a ray's own derivative has at the outline.

Soft tissue and scatter are smooth. Both the X-ray and the model pass through the same band-pass (a difference of
Gaussians), which leaves edges: outlines and the bright rims of the cortex.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter1d, map_coordinates
from scipy.sparse import csr_matrix

from BiplanarReconLib.fitting.kneemodel import MOTION
from BoneReconstructionLib.meshthickness import thickness_image
from BoneReconstructionLib.xraygeometry import XrayGeometry

# Standard deviations of the band-pass at the isocentre: the finer one, and the coarser one at least. What lies between
# is mostly bone; a wider band lets in the flesh.
FINE_PIXELS, COARSE_PIXELS, COARSE_MM = 1.0, 2.0, 4.0
# Line integrals below this share of the largest are air's; so far from it the skin shows, mm.
AIR, SKIN_MM = 0.12, 5.0
# Beyond the cut end of a shaft the model shows nothing: pixels from so far before it on do not count, mm.
CUT_MARGIN_MM = 8.0
# Pixels that a matrix of a Gaussian makes at a time.
BLOCK = 24


@dataclass(frozen=True, eq=False)
class View:
    """One X-ray at one resolution, right-sided.

    Attributes:
        geometry: with square pixels of about `pixel_mm` at the isocentre.
        pixel_mm: size of a pixel at the isocentre.
        observed: (rows, columns) float32, the band-passed line integrals.
        valid: (rows, columns) bool, pixels that show the patient rather than collimator, marker or nothing.
    """

    geometry: XrayGeometry
    pixel_mm: float
    observed: np.ndarray
    valid: np.ndarray

    @cached_property
    def _band(self):
        return BandPass(self.geometry.shape, self.pixel_mm)

    def band_pass(self, images):
        """Band-passed (…, rows, columns) images."""
        return self._band(images)


class BandPass:
    """A difference of two Gaussians, for images of one shape.

    Args:
        shape: (rows, columns).
        pixel_mm: size of a pixel at the isocentre.
    """

    def __init__(self, shape, pixel_mm):
        sigmas = FINE_PIXELS, max(COARSE_MM / pixel_mm, COARSE_PIXELS)
        self._gaussians = [[_blocks(size, sigma) for size in shape] for sigma in sigmas]

    def __call__(self, images):
        """Images (…, rows, columns) after the finer Gaussian, minus what the coarser one leaves of them."""
        fine, coarse = (_smoothed(images, *gaussian) for gaussian in self._gaussians)
        return fine - coarse


def _blocks(size, sigma):
    """A Gaussian as matrices for blocks of a row's pixels: [(pixels that a block takes, (block, pixels))].

    A pixel's neighbours are few, and small products need no threads, which wait longer than they work.
    """
    whole = gaussian_filter1d(np.eye(size, dtype=np.float32), sigma, axis=0, mode="nearest")
    blocks = []
    for first in range(0, size, BLOCK):
        rows = whole[first : first + BLOCK]
        taken = np.flatnonzero(rows.any(axis=0))
        taken = slice(taken[0], taken[-1] + 1)
        blocks.append((taken, np.ascontiguousarray(rows[:, taken])))
    return blocks


def _smoothed(images, along_rows, along_columns):
    """Images after a Gaussian of the `_blocks` for both directions."""
    images = np.concatenate([weights @ images[..., taken, :] for taken, weights in along_rows], axis=-2)
    return np.concatenate([images[..., taken] @ weights.T for taken, weights in along_columns], axis=-1)


def make_view(line_integrals, valid, geometry, isocentre, pixel_mm):
    """Resample an X-ray to square pixels of about `pixel_mm` at the isocentre, and band-pass it.

    Args:
        line_integrals: (rows, columns).
        valid: (rows, columns) bool.
        geometry: of the X-ray.
        isocentre: (3,) mm.
        pixel_mm: wanted pixel size there.

    Returns:
        View.
    """
    magnification = geometry.source_detector_mm / float(geometry.depths(isocentre[None])[0])
    size = np.array(geometry.shape) * geometry.spacing_uv[::-1] / magnification  # mm at the isocentre
    shape = tuple(int(n) for n in np.maximum(np.rint(size / pixel_mm), 8))
    resized = geometry.resized(shape)
    step = np.array(geometry.shape) / shape
    smooth = np.where(valid, line_integrals, np.median(line_integrals[valid])).astype(np.float32)
    for axis in (0, 1):
        smooth = gaussian_filter1d(smooth, max(0.45 * step[axis] - 0.3, 0.01), axis=axis, mode="nearest")
    place = np.meshgrid(*((np.arange(n) + 0.5) * s - 0.5 for n, s in zip(shape, step, strict=True)), indexing="ij")
    image = map_coordinates(smooth, place, order=1, mode="nearest")
    shown = map_coordinates(valid.astype(np.float32), place, order=1, mode="nearest") > 0.99
    real = float(size[0] / shape[0])
    observed = BandPass(shape, real)(image)
    # The skin's edge is the strongest of all and tells nothing of bones.
    flesh = binary_erosion(image > AIR * np.percentile(image[shown], 95), iterations=max(round(SKIN_MM / real), 1))
    return View(resized, real, observed, shown & flesh)


@dataclass(frozen=True, eq=False)
class Shadow:
    """One bone in one view.

    Attributes:
        cortex, inside: (rows, columns) band-passed lengths within the cortex and within the marrow, mm.
        changes: (parameters, rows, columns) band-passed derivatives of the bone's image by its own parameters.
    """

    cortex: np.ndarray
    inside: np.ndarray
    changes: np.ndarray | None


def shadow(view, state, attenuation, components=None):
    """A bone's shadow.

    Args:
        view: a `View`.
        state: a `BoneState`.
        attenuation: (of the cortex, of the inside) per mm beyond that of soft tissue.
        components: how many of the basis' components have derivatives; None: no derivatives at all.

    Returns:
        Shadow.
    """
    outer, inner = thickness_image(state.surface, view.geometry), thickness_image(state.marrow, view.geometry)
    cortex, inside = view.band_pass(np.stack([outer - inner, inner]))
    if components is None:
        return Shadow(cortex, inside, None)
    density, hollow = attenuation[0], attenuation[0] - attenuation[1]
    changes = _changes(view, state, state.surface, density, components)
    changes -= _changes(view, state, state.marrow, hollow, components)
    return Shadow(cortex, inside, view.band_pass(changes))


def _changes(view, state, surface, attenuation, components):
    """(parameters, rows, columns): how the image changes as a surface moves with the bone's own parameters."""
    geometry, faces = view.geometry, surface.faces
    a, b, c = (surface.vertices[faces[:, corner]] for corner in range(3))
    centres, areas = (a + b + c) / 3, np.cross(b - a, c - a) / 2
    rows, columns = geometry.shape
    depths = geometry.depths(centres)
    footprint = np.prod(geometry.spacing_uv) * (depths / geometry.source_detector_mm) ** 2
    rays = centres - geometry.source
    weight = attenuation / footprint * np.linalg.norm(rays, axis=1) / depths
    # The cap does not move: the shaft goes on.
    weight = np.where(state.model.cap, 0.0, weight)
    arms = centres - state.centre
    flux = np.empty((MOTION + components, len(faces)), dtype=np.float32)
    flux[:3] = areas.T
    flux[3:6] = np.cross(arms, areas).T
    flux[6] = (arms * areas).sum(1)
    local = (areas @ state.matrix[:3, :3]).astype(np.float32)
    flux[MOTION:] = np.einsum("kmc,mc->km", state.model.face_basis[:components], local)
    flux *= weight.astype(np.float32)
    place = geometry.project(centres)
    corner = np.floor(place).astype(int)
    share = place - corner
    index, amount, face = [], [], []
    for right in (0, 1):
        for down in (0, 1):
            x, y = corner[:, 0] + right, corner[:, 1] + down
            here = np.flatnonzero((x >= 0) & (x < columns) & (y >= 0) & (y < rows))
            part = np.abs(1 - right - share[here, 0]) * np.abs(1 - down - share[here, 1])
            index.append(y[here] * columns + x[here])
            amount.append(part)
            face.append(here)
    splat = csr_matrix(
        (np.concatenate(amount).astype(np.float32), (np.concatenate(index), np.concatenate(face))),
        shape=(rows * columns, len(faces)),
    )
    return np.ascontiguousarray((splat @ flux.T).T).reshape(-1, rows, columns)


def beyond_the_cut(view, state):
    """(rows, columns) bool: pixels at or beyond the cut end of a bone's shaft, where the model shows nothing."""
    rows, columns = view.geometry.shape
    if state.model.name == "patella":
        return np.zeros((rows, columns), dtype=bool)
    end, middle = view.geometry.project(np.stack([state.surface.vertices[-1], state.centre]))
    axis = (end - middle) / np.linalg.norm(end - middle)
    row, column = np.mgrid[:rows, :columns]
    along = (column - end[0]) * axis[0] + (row - end[1]) * axis[1]
    across = np.abs((row - end[1]) * axis[0] - (column - end[0]) * axis[1])
    # Other bones may lie beside a bent knee's shaft.
    return (along > -CUT_MARGIN_MM / view.pixel_mm) & (across < 40.0 / view.pixel_mm)
