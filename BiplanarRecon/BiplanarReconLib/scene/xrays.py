"""X-rays in the scene: an image, a textured plane at its true place, and its source with the edges of its beam."""

from pathlib import Path

import numpy as np
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from BiplanarReconLib.xrayrecords import ATTRIBUTE, from_json, record_of, to_json
from BoneReconstructionLib import scene
from BoneReconstructionLib.radiographs import Radiograph, read_radiograph, write_radiograph
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometryfiles import write_geometry

PLANE_ROLE, BEAM_ROLE = "BiplanarRecon.plane", "BiplanarRecon.beam"
BEAM_COLOR = (0.95, 0.80, 0.25)
# The source is a cross, which its own camera does not see.
SOURCE_ARM_MM = 15.0
# The image's contrast leaves out these percentiles of its values.
WINDOW_PERCENTILES = (1.0, 99.5)


def addXray(radiograph, name, record=None):
    """Add an X-ray to the scene.

    Args:
        radiograph: `Radiograph`.
        name: of the node, made unique.
        record: `XrayRecord`; what the file says when None.

    Returns:
        The vtkMRMLScalarVolumeNode of line integrals, which stands for the X-ray.
    """
    node = scene.volumeToNode(Volume(radiograph.line_integrals[None], np.eye(4)), name)
    node.CreateDefaultDisplayNodes()
    low, high = np.percentile(radiograph.line_integrals[radiograph.seen], WINDOW_PERCENTILES)
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(max(high - low, 1e-3), (high + low) / 2)
    keep(node, record or record_of(radiograph))
    return node


def load(path, relation=None, bone=None):
    """Read an X-ray image file into the scene; arguments and InputError as `radiographs.read_radiograph`."""
    radiograph = read_radiograph(path, relation, bone)
    return addXray(radiograph, Path(path).stem)


def isXray(node):
    """Whether a node, or None, stands for an X-ray."""
    return node is not None and bool(node.GetAttribute(ATTRIBUTE))


def recordOf(node):
    """What is known of an X-ray, `XrayRecord`; None where node is None or no X-ray."""
    return from_json(node.GetAttribute(ATTRIBUTE)) if isXray(node) else None


def keep(node, record):
    """Keep what is known of an X-ray with it, and put it at its place."""
    node.SetAttribute(ATTRIBUTE, to_json(record))
    place(node)


def place(node):
    """Put an X-ray's image, plane and beam where its geometry says; without one there is no plane and no beam."""
    record = recordOf(node)
    if record.reason:
        for role in (PLANE_ROLE, BEAM_ROLE):
            if node.GetNodeReference(role) is not None:
                node.GetNodeReference(role).GetDisplayNode().SetVisibility(False)
        return
    geometry = record.geometry
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(_ijkToRas(geometry)))
    plane = _model(node, PLANE_ROLE, _("{name} plane"), (1.0, 1.0, 1.0))
    plane.SetAndObservePolyData(_rectangle(geometry))
    beam = _model(node, BEAM_ROLE, _("{name} source and beam"), BEAM_COLOR)
    beam.SetAndObservePolyData(_beam(geometry))
    _texture(node)


def nest(nodes):
    """Put planes and beams of X-rays under them in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    for node in nodes:
        for role in (PLANE_ROLE, BEAM_ROLE):
            model = node.GetNodeReference(role)
            if model is not None:
                hierarchy.SetItemParent(hierarchy.GetItemByDataNode(model), hierarchy.GetItemByDataNode(node))


def restoreTextures():
    """Draw the images on the planes of a loaded scene again: scene files do not keep textures."""
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if isXray(node) and node.GetNodeReference(PLANE_ROLE) is not None:
            _texture(node)


def radiographOf(node):
    """An X-ray of the scene as `Radiograph`, what is not seen found anew when it is read from a file.

    Raises:
        InputError: the node holds no image any more.
    """
    values = scene.volumeFromNode(node).array[0]
    return Radiograph(values, np.ones(values.shape, bool), recordOf(node).spacing_uv)


def write(folder, name, node):
    """Write an X-ray and its geometry for the command line.

    Args:
        folder: `Path`.
        name: of both files, without ending.
        node: the X-ray.

    Returns:
        (image file, geometry file).

    Raises:
        InputError: it has no image or no geometry.
    """
    image, geometry = folder / f"{name}.nrrd", folder / f"{name}.json"
    write_radiograph(image, radiographOf(node))
    write_geometry(geometry, recordOf(node).geometry)
    return image, geometry


def saveGeometry(node, path):
    """Write an X-ray's geometry as JSON.

    Raises:
        InputError: it has none, or the file cannot be written.
    """
    write_geometry(path, recordOf(node).geometry)


def boundsOf(nodes):
    """Lowest and highest coordinates, (3,) RAS mm each, of the planes of X-rays with a geometry."""
    corners = np.concatenate([_corners(recordOf(node).geometry) for node in nodes])
    return corners.min(axis=0), corners.max(axis=0)


def _model(node, role, name, color):
    """The model in a role of an X-ray; made where it is missing."""
    model = node.GetNodeReference(role)
    if model is None:
        title = scene.uniqueName(name.format(name=node.GetName()), "vtkMRMLModelNode")
        model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", title)
        model.CreateDefaultDisplayNodes()
        display = model.GetDisplayNode()
        display.SetColor(*color)
        display.SetLighting(False)
        display.SetBackfaceCulling(False)
        display.SetVisibility2D(False)
        node.SetNodeReferenceID(role, model.GetID())
        nest([node])
    model.GetDisplayNode().SetVisibility(True)
    return model


def _texture(node):
    """Let the plane show what slice views show: window and level of the image hold for both."""
    display = node.GetNodeReference(PLANE_ROLE).GetDisplayNode()
    display.SetInterpolateTexture(True)
    display.SetTextureImageDataConnection(node.GetDisplayNode().GetImageDataConnection())


def _ijkToRas(geometry):
    """Of the image as a slice 1 mm thick, right-handed."""
    matrix = geometry.pixel_to_ras
    matrix[:3, 2] = np.cross(geometry.u, geometry.v)
    return matrix


def _corners(geometry):
    """(4, 3) RAS: the outer corners of the image, (column, row) low-low, high-low, high-high, low-high."""
    rows, columns = geometry.shape
    return geometry.pixel_positions(np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)]) - 0.5)


def _rectangle(geometry):
    mesh = _mesh(_corners(geometry))
    cells = vtk.vtkCellArray()
    cells.InsertNextCell(4, range(4))
    mesh.SetPolys(cells)
    positions = numpy_to_vtk(np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float32), deep=True)
    positions.SetName("TextureCoordinates")
    mesh.GetPointData().SetTCoords(positions)
    return mesh


def _beam(geometry):
    """The edges of the image, of the beam, and a cross at the source."""
    arms = SOURCE_ARM_MM * np.array([geometry.u, -geometry.u, geometry.v, -geometry.v])
    mesh = _mesh(np.concatenate([_corners(geometry), geometry.source[None], geometry.source + arms]))
    cells = vtk.vtkCellArray()
    for line in ((0, 1, 2, 3, 0), (4, 0), (4, 1), (4, 2), (4, 3), (5, 6), (7, 8)):
        cells.InsertNextCell(len(line), line)
    mesh.SetLines(cells)
    return mesh


def _mesh(points):
    mesh = vtk.vtkPolyData()
    placed = vtk.vtkPoints()
    placed.SetData(numpy_to_vtk(np.ascontiguousarray(points, dtype=np.float32), deep=True))
    mesh.SetPoints(placed)
    return mesh
