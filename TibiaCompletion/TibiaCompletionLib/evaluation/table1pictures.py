"""Table 2 of the masked tibia completion paper: one person's reconstructions by every method, as pictures.

Each tile shows the coronal slice through the middle of an image and, beside it, its surface from in front, coloured by
the distance to the registered bone's surface; below it stands that distance's root mean square.
"""

import numpy as np
import vtk
from vtkmodules.util.numpy_support import numpy_to_vtk

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.surfaces import Surface
from TibiaCompletionLib.evaluation.pictures import bone_actor, diverging_colours, scalar_bar, write_picture
from TibiaCompletionLib.registration.inference import bright_surfaces

INPUT, TRUTH = "Input", "Registered bone"
RANGE_MM = 5.0
GAP_MM, CAPTION_MM, TITLE_MM, BAR_MM = 14.0, 40.0, 70.0, 150.0
PIXELS_PER_MM = 0.45


def contact_sheet(path, rows, columns, grid):
    """Write the PNG: a row for each registration, a column for each method between the input and the registered bone.

    Args:
        path: of the picture.
        rows: [(title, registered image, input, {column of `columns`: reconstruction})], images (K, J, I) arrays in
            [0, 1].
        columns: titles in their order.
        grid: `StandardGrid` of the images.
    """
    extent = np.multiply(grid.shape_kji[::-1], grid.spacing_ijk)
    width, height = 2 * extent[0] + GAP_MM, extent[2] + CAPTION_MM + TITLE_MM
    titles = [INPUT, *columns, TRUTH]
    renderer, colours = vtk.vtkRenderer(), diverging_colours(RANGE_MM)
    renderer.SetBackground(1, 1, 1)
    for column, title in enumerate(titles):
        renderer.AddViewProp(_text(title.replace(", ", ",\n"), column * width + extent[0], TITLE_MM / 2))
    for number, (title, target, shown, found) in enumerate(rows):
        top = -number * height
        renderer.AddViewProp(_text(title, 0.0, top - 0.7 * TITLE_MM, centred=False))
        truth = SurfaceLocator(bright_surfaces(target, grid))
        for column, image in enumerate([shown, *(found.get(name) for name in columns), target]):
            place = np.array([column * width, top - TITLE_MM - extent[2] / 2])
            if image is None:
                renderer.AddViewProp(_text("N/A", place[0] + extent[0], place[1]))
                continue
            renderer.AddViewProp(_slice(image, grid, place + [extent[0] / 2, 0]))
            surface = bright_surfaces(image, grid)
            if not len(surface.faces):
                continue
            compared = column not in (0, len(titles) - 1)
            distance = truth.signed(surface.vertices) if compared else None
            renderer.AddActor(_surface(surface, distance, colours, grid, place + [1.5 * extent[0], 0]))
            if compared:
                caption = f"{np.sqrt(np.mean(distance**2)):.1f} mm"
                renderer.AddViewProp(_text(caption, place[0] + extent[0], place[1] - extent[2] / 2 - CAPTION_MM / 2))
    whole = np.array([len(titles) * width + BAR_MM, len(rows) * height + TITLE_MM])
    bar = scalar_bar(colours)
    bar.SetPosition(1 - 0.9 * BAR_MM / whole[0], 0.3)
    bar.SetWidth(0.7 * BAR_MM / whole[0])
    bar.SetHeight(0.4)
    renderer.AddViewProp(bar)

    middle = [-whole[0] / 2, 0.0, TITLE_MM - whole[1] / 2]
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetFocalPoint(*middle)
    camera.SetPosition(middle[0], 1000.0, middle[2])
    camera.SetViewUp(0, 0, 1)
    camera.SetParallelScale(whole[1] / 2)
    renderer.ResetCameraClippingRange()
    write_picture(renderer, path, tuple(int(side) for side in PIXELS_PER_MM * whole))


def _surface(surface, distance, colours, grid, place):
    """Actor of a surface whose grid's middle comes to a place (right, up) of the sheet, mm."""
    shift = [-place[0], 0.0, place[1]] - _middle(grid)  # seen from in front, +x is at the left
    return bone_actor(Surface(surface.vertices + shift, surface.faces), distance, colours)


def _slice(image, grid, place):
    """Prop of an image's middle coronal slice, its grid's middle at a place (right, up) of the sheet, mm."""
    values = np.ascontiguousarray(image[:, image.shape[1] // 2], dtype=np.float32)
    picture = vtk.vtkImageData()
    picture.SetDimensions(values.shape[1], 1, values.shape[0])
    picture.SetSpacing(grid.spacing_ijk)
    half = grid.half_extent_ijk
    picture.SetOrigin(-place[0] - half[0], 0.0, place[1] - half[2])
    picture.GetPointData().SetScalars(numpy_to_vtk(values.ravel(), deep=True))
    mapper = vtk.vtkImageSliceMapper()
    mapper.SetInputData(picture)
    mapper.SetOrientationToY()
    prop = vtk.vtkImageSlice()
    prop.SetMapper(mapper)
    prop.GetProperty().SetColorWindow(1.0)
    prop.GetProperty().SetColorLevel(0.5)
    prop.GetProperty().SetInterpolationTypeToLinear()
    return prop


def _middle(grid):
    return grid.ijk_to_standard[:3, 3] + grid.half_extent_ijk


def _text(text, right, up, centred=True):
    """Prop of a text at a place of the sheet, mm."""
    label = vtk.vtkTextActor()
    label.SetInput(text)
    label.GetPositionCoordinate().SetCoordinateSystemToWorld()
    label.GetPositionCoordinate().SetValue(-right, 0.0, up)
    properties = label.GetTextProperty()
    properties.SetColor(0, 0, 0)
    properties.SetFontSize(13)
    properties.SetVerticalJustificationToCentered()
    if centred:
        properties.SetJustificationToCentered()
    return label
