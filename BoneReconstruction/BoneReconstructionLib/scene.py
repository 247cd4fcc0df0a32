"""Bridge between the Slicer scene and the ground library.

Everything that leaves the scene is in world RAS millimetres: parent transforms are applied on the way out, and what
comes back is added in world coordinates without a parent transform. No function overwrites a node that it did not
make itself.
"""

import csv
import itertools
import json
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.markups import Markup
from BoneReconstructionLib.meshing import from_polydata, to_polydata
from BoneReconstructionLib.scenejob import SceneJob
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_normals
from BoneReconstructionLib.volumes import Volume, bounding_box, check_geometry, crop, resample, write_volume

TERMINOLOGY_NAME = "Bone reconstruction"
CATEGORY_CODE = "SCT^123037004^Anatomical Structure"
BONE_CODES = {
    "tibia": "SCT^12611008^Tibia",
    "fibula": "SCT^87342007^Fibula",
    "femur": "SCT^71341001^Femur",
    "patella": "SCT^64234005^Patella",
    "L1": "SCT^66794005^L1 vertebra",
    "L2": "SCT^14293000^L2 vertebra",
    "L3": "SCT^36470004^L3 vertebra",
    "L4": "SCT^11994002^L4 vertebra",
    "L5": "SCT^49668003^L5 vertebra",
}
SIDE_CODES = {"left": "SCT^7771000^Left", "right": "SCT^24028007^Right", None: "^^"}

# Blue inside, white on the surface, red outside: told apart by the colour-blind too.
HEATMAP_COLORS = (
    (-1.0, (0.02, 0.19, 0.58)),
    (-0.5, (0.26, 0.58, 0.86)),
    (0.0, (0.97, 0.97, 0.97)),
    (0.5, (0.96, 0.62, 0.47)),
    (1.0, (0.70, 0.05, 0.10)),
)
# For what has no sign, from light to dark.
UNSIGNED_COLORS = (
    (0.0, (1.0, 1.0, 0.85)),
    (0.5, (0.95, 0.55, 0.25)),
    (1.0, (0.35, 0.02, 0.30)),
)
PLANE_OPACITY = 0.3
NO_VALUE_COLOR = (0.45, 0.45, 0.45)
HEATMAP_ATTRIBUTE = "BoneReconstruction.Heatmap"


# Transforms


def worldMatrix(node) -> np.ndarray:
    """The linear transform that takes a node's own coordinates to world RAS.

    Args:
        node: any transformable node.

    Returns:
        (4, 4) float64.

    Raises:
        InputError: the node is under a transform that is not linear.
    """
    transformNode = node.GetParentTransformNode()
    if transformNode is None:
        return np.eye(4)
    if not transformNode.IsTransformToWorldLinear():
        raise InputError(f'"{node.GetName()}" is under a transform that is not linear: harden it first.')
    matrix = vtk.vtkMatrix4x4()
    transformNode.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def addTransform(matrix: np.ndarray, name: str):
    """Add a linear transform node (4x4, to parent, RAS mm)."""
    node = _addNode("vtkMRMLLinearTransformNode", name)
    slicer.util.updateTransformMatrixFromArray(node, np.asarray(matrix, dtype=float))
    return node


# Volumes and masks


def volumeFromNode(volumeNode) -> Volume:
    """A scalar or labelmap volume node as Volume in world RAS; the array is the node's own memory, not a copy.

    Raises:
        InputError: no image, several components, a transform that is not linear, sheared or singular geometry.
    """
    image = volumeNode.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise InputError(f'"{volumeNode.GetName()}" holds no image: load or select another volume.')
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(f'"{volumeNode.GetName()}" has {components} components per voxel: select a scalar volume.')
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    ijkToRas = worldMatrix(volumeNode) @ slicer.util.arrayFromVTKMatrix(matrix)
    check_geometry(ijkToRas)
    return Volume(slicer.util.arrayFromVolume(volumeNode), ijkToRas)


def volumeToNode(volume: Volume, name: str, nodeClass: str = "vtkMRMLScalarVolumeNode"):
    """Add a volume node (bool arrays as uint8) with a unique name."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    return slicer.util.addVolumeFromArray(array, volume.ijk_to_ras, uniqueName(name, nodeClass), nodeClass)


def hasSegment(segmentationNode, segmentId: str) -> bool:
    """Whether a segmentation has a segment of this ID."""
    return bool(segmentId) and segmentationNode.GetSegmentation().GetSegment(segmentId) is not None


def hasMask(node, segmentId: str = "") -> bool:
    """Whether a node can stand for a bone or region: a segmentation only with a segment of this ID."""
    return not node.IsA("vtkMRMLSegmentationNode") or hasSegment(node, segmentId)


def segmentMask(segmentationNode, segmentId: str) -> Volume:
    """A segment as bool Volume, in the grid that the segmentation keeps it in, moved to world RAS.

    Raises:
        InputError: no such segment, an empty one, or a geometry that volumes refuse.
    """
    if not hasSegment(segmentationNode, segmentId):
        raise InputError(f'"{segmentationNode.GetName()}" has no such segment: select one.')
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    image = slicer.vtkOrientedImageData()
    labelmap = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    if segmentationNode.GetSegmentation().ContainsRepresentation(labelmap):
        # Segments share labelmaps: only this call tells them apart.
        segmentationNode.GetBinaryLabelmapRepresentation(segmentId, image)
    else:
        slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentBinaryLabelmapRepresentation(
            segmentationNode, segmentId, image, False)
    if image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise InputError(f'The segment "{segment.GetName()}" is empty.')
    extent = image.GetExtent()
    shape = (extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1)
    mask = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape) != 0
    if not mask.any():
        raise InputError(f'The segment "{segment.GetName()}" is empty.')
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    firstVoxel = np.eye(4)
    firstVoxel[:3, 3] = extent[0], extent[2], extent[4]
    ijkToRas = worldMatrix(segmentationNode) @ slicer.util.arrayFromVTKMatrix(matrix) @ firstVoxel
    check_geometry(ijkToRas)
    return Volume(mask, ijkToRas)


def roiMask(roiNode) -> Volume:
    """A box ROI as bool Volume along the ROI's own axes: all voxels set, their outer faces on the ROI's faces.

    Resampled to another grid (nearest), it marks exactly the voxels whose centres lie in the ROI.

    Raises:
        InputError: a ROI without volume, or one under a transform that is not linear.
    """
    size = np.array(roiNode.GetSize(), dtype=float)
    if not (size > 0).all():
        raise InputError(f'The ROI "{roiNode.GetName()}" has no volume: place it or give it a size.')
    # Voxels of about 1 mm: region tests that look at voxel neighbours see the same box.
    counts = np.clip(np.ceil(size), 1, 512).astype(int)
    objectFromIjk = np.diag([*(size / counts), 1.0])
    objectFromIjk[:3, 3] = (size / counts - size) / 2
    nodeFromObject = slicer.util.arrayFromVTKMatrix(roiNode.GetObjectToNodeMatrix())
    ijkToRas = worldMatrix(roiNode) @ nodeFromObject @ objectFromIjk
    check_geometry(ijkToRas)
    return Volume(np.ones(counts[::-1], dtype=bool), ijkToRas)


def maskFromNode(node, segmentId: str = "") -> Volume:
    """A bone or region named in a panel as bool Volume in world RAS, in its own grid.

    Args:
        node: segmentation (with segmentId), labelmap volume (nonzero voxels) or ROI node.
        segmentId: the segment, for segmentations.

    Raises:
        InputError: as segmentMask, volumeFromNode and roiMask; a labelmap with no voxel set or with several labels.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        return segmentMask(node, segmentId)
    if node.IsA("vtkMRMLMarkupsROINode"):
        return roiMask(node)
    volume = volumeFromNode(node)
    values = np.unique(volume.array)
    labels = values[values != 0]
    if len(labels) == 0:
        raise InputError(f'The labelmap "{node.GetName()}" is empty.')
    if len(labels) > 1:
        raise InputError(f'The labelmap "{node.GetName()}" holds {len(labels)} labels: import it as segmentation and '
                         "select the segment.")
    return Volume(volume.array != 0, volume.ijk_to_ras)


def boundsOf(node, segmentId: str = ""):
    """Lowest and highest world coordinates, (3,) RAS mm each, of a bone or region as maskFromNode takes it.

    Raises:
        InputError: as maskFromNode.
    """
    mask = maskFromNode(node, segmentId)
    lower, upper = bounding_box(mask.array)
    corners = np.array(list(itertools.product(*zip(lower - 0.5, upper - 0.5))))[:, ::-1]
    placed = transform_points(mask.ijk_to_ras, corners)
    return placed.min(axis=0), placed.max(axis=0)


def addRoi(lower: np.ndarray, upper: np.ndarray, name: str, color):
    """Add a box ROI between two world corners, (3,) RAS mm each, with handles to drag."""
    node = _addNode("vtkMRMLMarkupsROINode", name)
    node.CreateDefaultDisplayNodes()
    node.SetCenterWorld(*((lower + upper) / 2))
    node.SetSize(*(upper - lower))
    node.GetDisplayNode().SetSelectedColor(*color)
    node.GetDisplayNode().SetHandlesInteractive(True)
    return node


def maskInGeometry(mask: Volume, reference: Volume) -> Volume:
    """A bool Volume brought to another volume's grid: copied where the grids agree, else antialiased.

    Args:
        mask: bool Volume in any grid.
        reference: the volume whose shape and geometry the result has.

    Returns:
        bool Volume with reference's shape and ijk_to_ras.
    """
    referenceFromMask = np.linalg.solve(reference.ijk_to_ras, mask.ijk_to_ras)
    shift = np.round(referenceFromMask[:3, 3]).astype(int)
    expected = np.eye(4)
    expected[:3, 3] = shift
    # 0.01 voxel at the far corner: finer than any mask is drawn.
    corner = np.append(np.array(mask.array.shape[::-1]) - 1, 1)
    sameGrid = np.allclose(referenceFromMask[:3, :3], np.eye(3), atol=1e-2) and np.allclose(
        referenceFromMask @ corner, expected @ corner, atol=1e-2)
    if not sameGrid:
        method = "nearest" if mask.array.all() else "antialiased"
        return resample(mask, reference.array.shape, reference.ijk_to_ras, interpolation=method)
    result = np.zeros(reference.array.shape, dtype=bool)
    source, target = [], []
    for start, length, limit in zip(shift[::-1], mask.array.shape, reference.array.shape):
        lower, upper = max(start, 0), min(start + length, limit)
        target.append(slice(lower, max(upper, lower)))
        source.append(slice(lower - start, max(upper, lower) - start))
    result[tuple(target)] = mask.array[tuple(source)]
    return Volume(result, reference.ijk_to_ras)


# Segments


def terminologyEntry(bone: str, side: str | None = None) -> str:
    """The serialized terminology entry of a bone (key of BONE_CODES) and a side ("left", "right" or None)."""
    return "~".join((TERMINOLOGY_NAME, CATEGORY_CODE, BONE_CODES[bone], SIDE_CODES[side], "", "^^", "^^"))


def loadTerminology(path: str) -> str:
    """Load the extension's terminology file into Slicer's list, once.

    Args:
        path: the .term.json file.

    Returns:
        The terminology's name.

    Raises:
        InputError: the file is missing or Slicer cannot read it.
    """
    logic = slicer.modules.terminologies.logic()
    if logic.IsTerminologyContextLoaded(TERMINOLOGY_NAME):
        return TERMINOLOGY_NAME
    name = logic.LoadTerminologyFromFile(str(path))
    if not name:
        raise InputError(f"The terminology file {path} cannot be read: install the extension again.")
    return name


def addSegmentation(name: str, referenceVolumeNode=None):
    """Add an empty segmentation node with display and, where given, a reference image geometry."""
    node = _addNode("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    if referenceVolumeNode is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(referenceVolumeNode)
    return node


def addSegment(segmentationNode, mask: Volume, name: str, color, bone: str, side: str | None = None) -> str:
    """Add a bool Volume as a new segment coded by our terminology.

    Args:
        segmentationNode: a segmentation without parent transform.
        mask: bool Volume in world RAS; voxels that are not set at the borders are cropped away.
        name: the segment's name.
        color: red, green, blue in 0..1.
        bone: key of BONE_CODES.
        side: "left", "right" or None.

    Returns:
        The segment's ID.

    Raises:
        InputError: the mask is empty.
    """
    if not mask.array.any():
        raise InputError(f'"{name}" is empty.')
    part = crop(mask, *bounding_box(mask.array))
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(part.array.shape[::-1])
    scalars = numpy_to_vtk(part.array.astype(np.uint8).ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(part.ijk_to_ras))
    segmentId = segmentationNode.AddSegmentFromBinaryLabelmapRepresentation(image, name, list(color))
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    segment.SetTerminology(terminologyEntry(bone, side))
    return segmentId


def addEmptySegment(segmentationNode, name: str, color) -> str:
    """Add a segment to draw in, with a name that no other segment of the node has; returns its ID."""
    segmentation = segmentationNode.GetSegmentation()
    segmentId = segmentation.AddEmptySegment(segmentation.GenerateUniqueSegmentID(name), name, list(color))
    return segmentId


# Models and heatmaps


def surfaceFromModel(modelNode, inWorld: bool = True) -> Surface:
    """A model node's triangles as Surface in world RAS, or without its transforms.

    Raises:
        InputError: no mesh, or a transform that is not linear.
    """
    polyData = modelNode.GetPolyData()
    if polyData is None or polyData.GetNumberOfPolys() + polyData.GetNumberOfStrips() == 0:
        raise InputError(f'The model "{modelNode.GetName()}" has no triangles: select another one.')
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(polyData)
    triangles.PassLinesOff()
    triangles.PassVertsOff()
    triangles.Update()
    surface = from_polydata(triangles.GetOutput())
    return transformed(surface, worldMatrix(modelNode)) if inWorld else surface


def surfaceToModel(surface: Surface, name: str, color, opacity: float = 1.0, scalars: dict | None = None):
    """Add a model node in world RAS.

    Args:
        surface: the triangles.
        name: node name, made unique.
        color: red, green, blue in 0..1.
        opacity: 0 (invisible) to 1.
        scalars: point arrays by name, each (n,).

    Returns:
        The vtkMRMLModelNode with its display node.
    """
    polyData = to_polydata(surface)
    normals = numpy_to_vtk(vertex_normals(surface).astype(np.float32), deep=True)
    polyData.GetPointData().SetNormals(normals)
    for key, values in (scalars or {}).items():
        array = numpy_to_vtk(np.asarray(values, dtype=np.float32), deep=True)
        array.SetName(key)
        polyData.GetPointData().AddArray(array)
    node = _addNode("vtkMRMLModelNode", name)
    node.SetAndObservePolyData(polyData)
    node.CreateDefaultDisplayNodes()
    displayNode = node.GetDisplayNode()
    displayNode.SetColor(*color)
    displayNode.SetOpacity(opacity)
    displayNode.SetVisibility2D(True)
    displayNode.SetSliceIntersectionThickness(2)
    return node


def readSurfaceWithScalars(path) -> tuple[Surface, dict]:
    """Read a .vtp file's triangles (RAS mm) and its scalar point arrays by name, each (n,).

    Raises:
        InputError: the file is missing or unreadable.
    """
    surface = read_surface(path)
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    pointData = reader.GetOutput().GetPointData()
    arrays = [pointData.GetArray(index) for index in range(pointData.GetNumberOfArrays())]
    return surface, {array.GetName(): vtk_to_numpy(array) for array in arrays if array.GetNumberOfComponents() == 1}


def setModelVisible(modelNode, visible: bool, opacity: float | None = None) -> None:
    """Show a model with an opacity (0 to 1; None: as it is), or hide it together with its legend."""
    displayNode = modelNode.GetDisplayNode()
    displayNode.SetVisibility(visible)
    if opacity is not None:
        displayNode.SetOpacity(opacity)
    if not visible:
        setHeatmapVisible(modelNode, False)


def writeBone(path: Path, node, segmentId: str = "") -> Path:
    """Write a model (.vtp) or a segment or labelmap (.nrrd) for the command line, in world coordinates.

    Args:
        path: the file without its ending.
        node: model, or what maskFromNode takes.
        segmentId: the segment, for segmentations.

    Returns:
        The file with its ending.

    Raises:
        InputError: as surfaceFromModel and maskFromNode.
    """
    if node.IsA("vtkMRMLModelNode"):
        path = path.with_suffix(".vtp")
        write_surface(path, surfaceFromModel(node))
    else:
        path = path.with_suffix(".nrrd")
        write_volume(path, maskFromNode(node, segmentId))
    return path


def hideIn3D(node, segmentId: str = "") -> None:
    """Hide a model or a segment in 3D views, where a result takes its place."""
    displayNode = node.GetDisplayNode()
    if displayNode is None:
        return
    if node.IsA("vtkMRMLSegmentationNode"):
        displayNode.SetSegmentVisibility3D(segmentId, False)
    else:
        displayNode.SetVisibility3D(False)


def addHeatmap(modelNode, arrayName: str, rangeMm: float, title: str):
    """Colour a model by signed distances, with a colour node of its own and a legend.

    Args:
        modelNode, arrayName, rangeMm, title: see setHeatmap.

    Returns:
        The vtkMRMLProceduralColorNode.
    """
    colorNode = _addNode("vtkMRMLProceduralColorNode", modelNode.GetName() + " distance colors")
    colorNode.SetAttribute(HEATMAP_ATTRIBUTE, "1")
    _fillColors(colorNode, rangeMm, signed=True)
    displayNode = modelNode.GetDisplayNode()
    displayNode.SetAndObserveColorNodeID(colorNode.GetID())
    displayNode.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(modelNode)
    legend.SetLabelFormat("%.1f")
    legend.SetNumberOfLabels(5)
    legend.GetTitleTextProperty().SetFontSize(16)
    legend.GetLabelTextProperty().SetFontSize(14)
    setHeatmap(modelNode, arrayName, rangeMm, title)
    setHeatmapVisible(modelNode, True)
    return colorNode


def setHeatmap(modelNode, arrayName: str, rangeMm: float, title: str, signed: bool = True) -> None:
    """Let a model's heatmap show a point array.

    Args:
        modelNode: a model with heatmap and the point array arrayName, mm, NaN where there is no value (drawn grey).
        arrayName: the point array.
        rangeMm: colours run from -rangeMm, or 0 for what has no sign, to +rangeMm.
        title: legend title; it must name the unit and the sign.
        signed: whether values have a sign.
    """
    modelNode.GetDisplayNode().SetActiveScalar(arrayName, vtk.vtkAssignAttribute.POINT_DATA)
    slicer.modules.colors.logic().GetColorLegendDisplayNode(modelNode).SetTitleText(title)
    setHeatmapRange(modelNode, rangeMm, signed)


def setHeatmapRange(modelNode, rangeMm: float, signed: bool = True) -> None:
    """Let a heatmap's colours run from -rangeMm, or 0 for what has no sign, to +rangeMm (mm, above 0)."""
    displayNode = modelNode.GetDisplayNode()
    _fillColors(displayNode.GetColorNode(), rangeMm, signed)
    displayNode.SetScalarRange(-rangeMm if signed else 0.0, rangeMm)


def _fillColors(colorNode, rangeMm, signed):
    function = vtk.vtkColorTransferFunction()
    for position, color in HEATMAP_COLORS if signed else UNSIGNED_COLORS:
        function.AddRGBPoint(position * rangeMm, *color)
    colorNode.GetColorTransferFunction().DeepCopy(function)  # at once: views are drawn at each change
    colorNode.GetLookupTable().SetNanColor(*NO_VALUE_COLOR, 1.0)


def hasScalars(modelNode, arrayName: str) -> bool:
    """Whether a model has a point array of this name."""
    return modelNode.GetPolyData().GetPointData().HasArray(arrayName) == 1


def hasHeatmap(modelNode) -> bool:
    """Whether addHeatmap was called for a model."""
    return slicer.modules.colors.logic().GetColorLegendDisplayNode(modelNode) is not None


def setHeatmapVisible(modelNode, visible: bool, withLegend: bool = True) -> None:
    """Show a model in its distance colours, with legend unless another model's speaks for it, or in its plain colour."""
    modelNode.GetDisplayNode().SetScalarVisibility(visible)
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(modelNode)
    if legend is not None:
        legend.SetVisibility(visible and withLegend)


def restoreHeatmaps() -> None:
    """Give heatmaps of a loaded scene their grey for "no value" back: scene files do not keep it."""
    for colorNode in slicer.util.getNodesByClass("vtkMRMLProceduralColorNode"):
        if colorNode.GetAttribute(HEATMAP_ATTRIBUTE):
            colorNode.GetLookupTable().SetNanColor(*NO_VALUE_COLOR, 1.0)
            colorNode.Modified()


# Tables, records and files


def addTable(columns: dict, name: str, units: dict | None = None):
    """Add a table node.

    Args:
        columns: column name to list of numbers or of strings.
        name: node name, made unique.
        units: column name to unit.

    Returns:
        The vtkMRMLTableNode.
    """
    node = _addNode("vtkMRMLTableNode", name)
    for columnName, values in columns.items():
        isText = any(isinstance(value, str) for value in values)
        array = vtk.vtkStringArray() if isText else vtk.vtkDoubleArray()
        array.SetName(columnName)
        for value in values:
            array.InsertNextValue(str(value) if isText else float(value))
        node.AddColumn(array)
    for columnName, unit in (units or {}).items():
        node.SetColumnUnitLabel(columnName, unit)
    node.SetUseColumnTitleAsColumnHeader(True)
    return node


def tableFromCsv(path, name: str):
    """Add a table node from a comma-separated file with a header row; columns of numbers become numbers."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return addTable({title: _numbersOrText(values) for title, values in zip(header, zip(*rows))}, name)


def _numbersOrText(values):
    try:
        return [float(value) if value else float("nan") for value in values]
    except ValueError:
        return [str(value) for value in values]


def tableToCsv(tableNode, path) -> None:
    """Write a table node as a comma-separated file with a header row; a file of that name is replaced at the end.

    Raises:
        OSError: the file cannot be written.
    """
    partial = Path(f"{path}.partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(tableRows(tableNode))
    os.replace(partial, path)


def tableRows(tableNode) -> list:
    """A table node's header and rows as lists of texts."""
    table = tableNode.GetTable()
    columns = range(table.GetNumberOfColumns())
    rows = [[table.GetValue(row, column).ToString() for column in columns] for row in range(table.GetNumberOfRows())]
    return [[table.GetColumnName(column) for column in columns], *rows]


@contextmanager
def newFolder(parent, name: str):
    """Deliver a folder of files all at once, or none: written under a hidden name, renamed at the end.

    Args:
        parent: an existing folder.
        name: the new folder's name; it gets a number where that is taken, so that nothing is overwritten.

    Yields:
        (Path of the hidden folder to write into, Path that it will have).

    Raises:
        InputError: the parent cannot be written to.
    """
    parent = Path(parent)
    partial, final, number = parent / f".{uuid.uuid4().hex}.partial", parent / name, 1
    while final.exists():
        number += 1
        final = parent / f"{name} {number}"
    try:
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{parent} cannot be written to ({error.strerror}): choose another folder.") from error
    try:
        yield partial, final
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def recordFromJson(path, name: str, inputs: dict):
    """Add a text node that keeps a job's result.json (inputs, settings, versions, figures) with the scene.

    Args:
        path: the result.json.
        name: the text node's name.
        inputs: (node, segment ID) by the input's name; the job's temporary files give way to what these are called.
    """
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    record["inputs"] = {key: describeInput(*bone) for key, bone in inputs.items()}
    node = _addNode("vtkMRMLTextNode", name)
    node.SetText(json.dumps(record, indent=2, ensure_ascii=False))
    for key, bone in inputs.items():
        node.SetNodeReferenceID(inputRole(key), bone[0].GetID())
    return node


def inputRole(key: str) -> str:
    """The role in which a record refers to the node that was an input; key as in recordFromJson."""
    return f"BoneReconstruction.input.{key}"


def putInFolder(nodes, folderName: str) -> None:
    """Move nodes into a new subject-hierarchy folder where the first of them lies."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = [hierarchy.GetItemByDataNode(node) for node in nodes]
    folder = hierarchy.CreateFolderItem(hierarchy.GetItemParent(items[0]), folderName)
    for item in items:
        hierarchy.SetItemParent(item, folder)


def describeInput(node, segmentId: str = "") -> dict:
    """Names and IDs that tell later which node, and which of its segments, an input was."""
    description = {"node": node.GetName(), "id": node.GetID()}
    if segmentId and hasSegment(node, segmentId):
        segment = node.GetSegmentation().GetSegment(segmentId)
        description |= {"segment": segment.GetName(), "segment_id": segmentId}
    return description


# Patients


def _patientItem(node):
    """The subject hierarchy's patient that a node belongs to, or None."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
    item = hierarchy.GetItemAncestorAtLevel(hierarchy.GetItemByDataNode(node), level)
    return None if item == hierarchy.GetInvalidItemID() else item


def ofDifferentPatients(first, second) -> bool:
    """Whether two nodes lie under different patients of the subject hierarchy; False where one lies under none."""
    patients = _patientItem(first), _patientItem(second)
    return None not in patients and patients[0] != patients[1]


def makePatient(item: int) -> None:
    """Let a folder of the subject hierarchy stand for a patient."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    hierarchy.SetItemLevel(item, slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient())


def patientIdentity(node) -> dict:
    """What the subject hierarchy says about the patient a node belongs to: {"name", "ID", "date of birth": text}.

    Only what is known is in it; the name of the patient's item stands in for a DICOM name.
    """
    item = _patientItem(node)
    if item is None:
        return {}
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    identity = {
        "name": hierarchy.GetItemAttribute(item, constants.GetDICOMPatientNameAttributeName())
        or hierarchy.GetItemName(item),
        "ID": hierarchy.GetItemAttribute(item, constants.GetDICOMPatientIDAttributeName()),
        "date of birth": hierarchy.GetItemAttribute(item, constants.GetDICOMPatientBirthDateAttributeName()),
    }
    return {word: text for word, text in identity.items() if text}


# Markups


def addMarkup(markup: Markup, name: str, description: str = ""):
    """Add a line, angle or plane as a locked markups node, hidden until it is switched on.

    Args:
        markup: what to draw, RAS mm.
        name: node name, made unique.
        description: what it tells.

    Returns:
        The vtkMRMLMarkupsNode.
    """
    node = _addNode(f"vtkMRMLMarkups{markup.kind.capitalize()}Node", name)
    node.CreateDefaultDisplayNodes()
    if markup.kind == "plane":
        first, second, normal = markup.plane_axes.T
        node.SetAxesWorld(first, second, normal)
        node.SetCenterWorld(*markup.points[0])
        node.SetSizeMode(node.SizeModeAbsolute)
        node.SetSize(*markup.plane_size)
    else:
        for point in markup.points:
            node.AddControlPointWorld(vtk.vtkVector3d(*point))
    node.SetDescription(description)
    node.SetLocked(True)
    display = node.GetDisplayNode()
    display.SetColor(*markup.colour)
    display.SetSelectedColor(*markup.colour)
    display.SetOpacity(PLANE_OPACITY if markup.kind == "plane" else 1.0)
    display.SetPointLabelsVisibility(False)
    display.SetHandlesInteractive(False)
    display.SetVisibility(False)
    return node


# Views


def showLayout(arrangement: int) -> None:
    """Arrange the views; arrangement is one of vtkMRMLLayoutNode's."""
    slicer.app.layoutManager().setLayout(arrangement)


def onlyIn3DView(node, viewNode=None) -> None:
    """Draw a node with its legend in every slice view but in one 3D view only; None: in all views again."""
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    for display in filter(None, (node.GetDisplayNode(), legend)):
        display.RemoveAllViewNodeIDs()
        if viewNode is not None:
            for view in (viewNode, *slicer.util.getNodesByClass("vtkMRMLSliceNode")):
                display.AddViewNodeID(view.GetID())


def lookAtSlices(background, lower: np.ndarray, upper: np.ndarray) -> None:
    """Show a volume in all slice views, through the middle of a box and as large as the box in each view's plane.

    Args:
        background: volume node.
        lower, upper: corners of the box, (3,) RAS mm each.
    """
    slicer.util.setSliceViewerLayers(background=background, fit=True)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByCentering(*((lower + upper) / 2))
        directions = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())[:3, :2]
        width, height, depth = node.GetFieldOfView()
        zoom = max(np.abs(directions).T @ (upper - lower) / (width, height))
        node.SetFieldOfView(width * zoom, height * zoom, depth)


def lookAt(viewNode, lower: np.ndarray, upper: np.ndarray, direction=(0.0, 1.0, 0.0)) -> None:
    """Turn a 3D view's camera to a box.

    Args:
        viewNode: vtkMRMLViewNode in the layout.
        lower, upper: corners of the box, (3,) RAS mm each.
        direction: where the camera is, seen from the box, unit vector in RAS; default: in front of the patient.
    """
    camera = slicer.modules.cameras.logic().GetViewActiveCameraNode(viewNode)
    centre = (lower + upper) / 2
    distance = np.linalg.norm(upper - lower) / 2 / np.sin(np.radians(camera.GetViewAngle() / 2))
    camera.SetFocalPoint(*centre)
    camera.SetPosition(*(centre + distance * np.array(direction)))
    camera.SetViewUp(0, 0, 1)
    camera.ResetClippingRange()


def viewPicture(view) -> bytes:
    """A PNG of what a slice view or a 3D view of the layout shows."""
    view.forceRender()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(view.renderWindow())
    grabber.ReadFrontBufferOff()
    writer = vtk.vtkPNGWriter()
    writer.SetInputConnection(grabber.GetOutputPort())
    writer.WriteToMemoryOn()
    writer.Write()
    return vtk_to_numpy(writer.GetResult()).tobytes()


# Order in the scene


def uniqueName(name: str, nodeClass: str) -> str:
    """The name itself while no node of the class has it, else the name with a number."""
    taken = {node.GetName() for node in slicer.util.getNodesByClass(nodeClass)}
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name} {number}"
    return candidate


def _addNode(nodeClass: str, name: str):
    return slicer.mrmlScene.AddNewNodeByClass(nodeClass, uniqueName(name, nodeClass))


@contextmanager
def importing(inputNode, folderName: str):
    """Add results to the scene as one step: all of them, or none.

    A subject-hierarchy folder is made beside inputNode, and every node added inside the block that has a place in
    the subject hierarchy goes there. If the block raises, all nodes added in it and the folder are removed again.

    Args:
        inputNode: the node whose subject-hierarchy parent the folder gets; None: the scene.
        folderName: the folder's name.

    Yields:
        The folder's subject-hierarchy item ID.
    """
    scene = slicer.mrmlScene
    scene.SaveStateForUndo()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parentItem = hierarchy.GetSceneItemID()
    if inputNode is not None:
        found = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(inputNode))
        parentItem = parentItem if found == hierarchy.GetInvalidItemID() else found
    folderItem = hierarchy.CreateFolderItem(parentItem, hierarchy.GenerateUniqueItemName(folderName))
    added = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(caller, event, node):
        added.append(node)

    tag = scene.AddObserver(scene.NodeAddedEvent, onNodeAdded)
    try:
        yield folderItem
    except BaseException:
        scene.RemoveObserver(tag)
        for node in reversed(added):
            if scene.IsNodePresent(node):
                scene.RemoveNode(node)
        hierarchy.RemoveItem(folderItem)
        raise
    scene.RemoveObserver(tag)
    for node in added:
        item = hierarchy.GetItemByDataNode(node)
        if item != hierarchy.GetInvalidItemID():
            hierarchy.SetItemParent(item, folderItem)


# Jobs


def pythonInterpreter() -> str:
    """The Python program of this Slicer, for processes of their own.

    Raises:
        InputError: it is missing.
    """
    folder = Path(slicer.app.slicerHome) / "bin"
    path = shutil.which("PythonSlicer", path=str(folder)) or shutil.which("PythonSlicer")
    if path is None:
        raise InputError(f"PythonSlicer is missing in {folder}: install 3D Slicer again.")
    return path


@contextmanager
def starting(importResults, onProgress=None, onFinished=None):
    """A job as makeJob makes it, to be given its inputs and started inside the block; discarded if the block raises."""
    job = makeJob(importResults, onProgress, onFinished)
    try:
        yield job
    except BaseException:
        job.discard()
        raise


def writeCT(job, volumeNode) -> Path:
    """Write a CT for a job's command line.

    Raises:
        InputError: as volumeFromNode.
    """
    # .nii is not compressed: a CT is written in a second instead of ten.
    path = job.folder / "ct.nii"
    write_volume(path, volumeFromNode(volumeNode))
    return path


def makeJob(importResults, onProgress=None, onFinished=None) -> SceneJob:
    """A job of this Slicer's own Python in a folder of its own; arguments as SceneJob.

    Raises:
        InputError: Slicer's Python program is missing.
    """
    return SceneJob(pythonInterpreter(), slicer.util.startupEnvironment(), slicer.app.temporaryPath, importResults,
                    onProgress, onFinished)
