"""Bones drawn on the X-rays: their projected outlines, as lines in pixels and as pictures."""

import os

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshthickness import thickness_image

COLORS = {"femur": (255, 170, 60), "tibia": (90, 190, 255), "fibula": (130, 235, 120), "patella": (255, 110, 180)}
# Pictures show the values between these percentiles of what is seen.
WINDOW_PERCENTILES = (1.0, 99.5)


def outline(surface, geometry):
    """The outline of a bone in a view.

    Args:
        surface: closed, RAS mm, in front of the source.
        geometry: `XrayGeometry`.

    Returns:
        list of (n, 2) lines of pixel positions (column, row); closed ones end where they begin. Empty where the bone
        is not seen.
    """
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges2D, vtkStripper

    shown = silhouette(surface, geometry)
    image = vtkImageData()
    image.SetDimensions(shown.shape[1], shown.shape[0], 1)
    image.GetPointData().SetScalars(numpy_to_vtk(shown.astype(np.uint8).ravel(), deep=True))
    edges = vtkFlyingEdges2D()
    edges.SetInputData(image)
    edges.SetValue(0, 0.5)
    strips = vtkStripper()
    strips.SetInputConnection(edges.GetOutputPort())
    strips.SetMaximumLength(shown.size)
    strips.JoinContiguousSegmentsOn()
    strips.Update()
    found = strips.GetOutput()
    if found.GetNumberOfLines() == 0:
        return []
    points = vtk_to_numpy(found.GetPoints().GetData())[:, :2]
    lines = found.GetLines()
    offsets = vtk_to_numpy(lines.GetOffsetsArray())
    return [points[part] for part in np.split(vtk_to_numpy(lines.GetConnectivityArray()), offsets[1:-1])]


def silhouette(surface, geometry):
    """(rows, columns) bool: where a bone is seen."""
    return thickness_image(surface, geometry) > 0


def picture(radiograph, geometry, surfaces):
    """An X-ray with the outlines of bones.

    Args:
        radiograph: `Radiograph`.
        geometry: its `XrayGeometry`.
        surfaces: {bone of `COLORS`: closed surface, RAS mm}.

    Returns:
        (rows, columns, 3) uint8, bone bright.
    """
    values = radiograph.line_integrals
    low, high = np.percentile(values[radiograph.seen], WINDOW_PERCENTILES)
    grey = np.where(radiograph.seen, np.clip((values - low) / max(high - low, 1e-6), 0, 1), 0) * 255
    image = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    width = max(1, round(max(geometry.shape) / 600))
    for bone, surface in surfaces.items():
        shown = silhouette(surface, geometry)
        rim = shown & ~binary_erosion(shown, border_value=1)
        if width > 1:
            rim = binary_dilation(rim, iterations=width - 1)
        image[rim] = COLORS[bone]
    return image


def write_picture(path, image):
    """Write a (rows, columns, 3) uint8 picture as PNG, under a temporary name first.

    Raises:
        InputError: the file cannot be written.
    """
    import SimpleITK as sitk

    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        sitk.WriteImage(sitk.GetImageFromArray(image, isVector=True), str(temporary))
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path} cannot be written: check that its folder is writable and not full.") from error
    finally:
        temporary.unlink(missing_ok=True)
