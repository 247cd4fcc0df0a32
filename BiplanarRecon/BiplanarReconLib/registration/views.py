"""X-rays made ready for comparison: at several resolutions, without the edges of skin, collimator and CT crops.

Such edges are stronger than those of bones. Where the patient or the open field ends, the values go on as they are at
the border, so that the band-pass finds no edge there; what has been filled in does not count.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt, map_coordinates

from BiplanarReconLib.fitting.shadows import AIR, View, make_view
from BiplanarReconLib.registration.motion import ImageMotion
from BoneReconstructionLib.errors import InputError

# Pixels need not be smaller than this at the isocentre, mm.
REDUCED_MM = 0.5
# So far from a border values may be of both sides: a thick body ends gradually in a cone beam, mm.
BORDER_MM = 6.0


class RegistrationView(View):
    """One X-ray at one resolution, in which images of a moving bone are compared."""

    @cached_property
    def motion(self):
        """`ImageMotion` of the view."""
        return ImageMotion(self.geometry)


def views_of(radiograph, geometry, isocentre, pixel_sizes_mm):
    """One X-ray at several resolutions.

    Args:
        radiograph: `Radiograph`.
        geometry: its `XrayGeometry`.
        isocentre: (3,) mm.
        pixel_sizes_mm: wanted sizes of the pixels there.

    Returns:
        list of `RegistrationView`.

    Raises:
        InputError: hardly anything of the X-ray is seen.
    """
    image, seen, smaller = _reduced(radiograph, geometry, isocentre)
    shown = seen & (image > AIR * np.percentile(image[seen], 95) if seen.any() else False)
    magnification = smaller.source_detector_mm / float(smaller.depths(isocentre[None])[0])
    border = max(round(BORDER_MM * magnification / float(smaller.spacing_uv.mean())), 1)
    # The image's own border is none.
    shown = binary_erosion(shown, iterations=border, border_value=1)
    if not shown.any():
        raise InputError("An X-ray shows hardly anything, it is collimated or blank: choose another one.")
    nearest = distance_transform_edt(~shown, return_distances=False, return_indices=True)
    filled, everywhere = image[tuple(nearest)], np.ones(image.shape, dtype=bool)
    views = []
    for pixel_mm in pixel_sizes_mm:
        view = make_view(filled, everywhere, smaller, isocentre, pixel_mm)
        sizes = zip(view.valid.shape, shown.shape, strict=True)
        place = np.meshgrid(*((np.arange(n) + 0.5) * (full / n) - 0.5 for n, full in sizes), indexing="ij")
        known = map_coordinates(shown.astype(np.float32), place, order=1, mode="nearest") > 0.99
        views.append(RegistrationView(view.geometry, view.pixel_mm, view.observed, view.valid & known))
    return views


def _reduced(radiograph, geometry, isocentre):
    """(line integrals, seen, geometry) of an X-ray in blocks of its pixels."""
    magnification = geometry.source_detector_mm / float(geometry.depths(isocentre[None])[0])
    block = np.maximum((REDUCED_MM * magnification / geometry.spacing_uv[::-1]).astype(int), 1)
    rows, columns = np.array(geometry.shape) // block
    kept = (slice(rows * block[0]), slice(columns * block[1]))
    blocks = (rows, block[0], columns, block[1])
    centre = geometry.pixel_positions((np.array([[columns, rows]]) * block[::-1] - 1) / 2)[0]
    smaller = replace(
        geometry, detector_centre=centre, spacing_uv=geometry.spacing_uv * block[::-1], shape=(int(rows), int(columns))
    )
    return (
        radiograph.line_integrals[kept].reshape(blocks).mean(axis=1).mean(axis=2),
        radiograph.seen[kept].reshape(blocks).all(axis=1).all(axis=2),
        smaller,
    )
