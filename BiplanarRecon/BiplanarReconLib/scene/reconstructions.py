"""A reconstructed knee in the scene: its nodes, all named PREDICTED, made of a job's files and found by their record."""

import functools
import json
from dataclasses import dataclass

import numpy as np
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from BiplanarReconLib.scene import landmarks, xrays
from BiplanarReconLib.xrayrecords import reason_not_to_reconstruct
from BoneReconstructionLib import scene
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.volumes import Volume, read_volume
from BoneReconstructionLib.xraygeometryfiles import read_geometry

COLORS = {
    "femur": (1.0, 0.67, 0.24),
    "tibia": (0.35, 0.75, 1.0),
    "fibula": (0.51, 0.92, 0.47),
    "patella": (1.0, 0.43, 0.71),
}
# As `bonerecon reconstruct-knee` names its files, views and arrays.
LABELMAP, OUTLINES, SIGMA_ARRAY = "bones.nii.gz", "outlines.json", "StandardDeviation_mm"
VIEWS = {"frontal": "ap", "lateral": "lateral"}
ROLES = {name: f"BiplanarRecon.result.{name}" for name in ("segmentation", "table")}
MODEL_ROLE = "BiplanarRecon.result.model"
OUTLINE_ROLE = "BiplanarRecon.result.outline."
BONE_ATTRIBUTE = "BiplanarRecon.Bone"
# Of the record: an X-ray's geometry at the time, which says where bones were cut off.
GEOMETRY_ATTRIBUTE = "BiplanarRecon.Geometry."
DEVIATION_TITLE = _("PREDICTED bones,\nstandard deviation (mm)")
# Outlines lie this share of the way from the image to the source: before the image, seen from both sides of it alike.
BEFORE_IMAGE = 0.002


@dataclass
class Reconstruction:
    """Nodes of one reconstruction; `record` keeps inputs, versions, figures and warnings (JSON).

    The record refers to the other nodes, so that they are found again in a loaded scene.

    Attributes:
        segmentation: a coded segment for each bone.
        models: {bone: model}.
        outlines: {"frontal" or "lateral": [model of a bone's projected outline]}.
        table: figures of each bone.
    """

    segmentation: slicer.vtkMRMLSegmentationNode
    models: dict
    outlines: dict
    table: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode

    def xray(self, name):
        """The "frontal" or "lateral" X-ray that it was made of; None where it was removed."""
        return self.record.GetNodeReference(scene.inputRole(name))

    def geometryText(self, name):
        """The geometry file of the "frontal" or "lateral" X-ray as it was; bones end where that ends."""
        return self.record.GetAttribute(GEOMETRY_ATTRIBUTE + name)

    @property
    def nodes(self):
        """All nodes that are drawn."""
        return [self.segmentation, *self.models.values(), *self.outlines["frontal"], *self.outlines["lateral"]]


def reasonNotToReconstruct(frontal, lateral, axes="", landmarkList=None):
    """Why the reconstruction cannot run, as a sentence, or "" if it can; looks at no pixels.

    Args:
        frontal, lateral: X-rays, see `xrays`, or None.
        axes: of the patient in a calibration's frame.
        landmarkList: point list of `landmarks`, or None.
    """
    if frontal is not None and frontal is lateral:
        return _("Both X-rays are the same: select two different ones.")
    if frontal is not None and lateral is not None and scene.ofDifferentPatients(frontal, lateral):
        return _("The two X-rays are of different patients: select them of one.")
    for node in (frontal, lateral):
        if node is not None and node.GetParentTransformNode() is not None:
            text = _('"{name}" is under a transform, but lies where its geometry says: take it out of the transform.')
            return text.format(name=node.GetName())
    reason = reason_not_to_reconstruct(xrays.recordOf(frontal), xrays.recordOf(lateral), axes)
    return reason or landmarks.reasonNotToStart(landmarkList, frontal, lateral)


def startReconstruction(frontal, lateral, side, axes="", landmarkList=None, onProgress=None, onFinished=None):
    """Start `bonerecon reconstruct-knee` in a process of its own.

    Args:
        frontal, lateral: X-rays, see `xrays`.
        side: "left" or "right".
        axes: of the patient in a calibration's frame, for geometries that are in one.
        landmarkList: point list of `landmarks` to start from, or None.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are a Reconstruction.

    Raises:
        InputError: an X-ray has no image or no geometry; nothing was started.
    """
    nodes = {"frontal": frontal, "lateral": lateral}
    with scene.starting(functools.partial(importReconstruction, nodes), onProgress, onFinished) as job:
        arguments = ["reconstruct-knee", "--side", side]
        for name, node in nodes.items():
            image, geometry = xrays.write(job.folder, VIEWS[name], node)
            arguments += [f"--{VIEWS[name]}", image, f"--{VIEWS[name]}-geometry", geometry]
        if not xrays.recordOf(frontal).anatomical:
            arguments.append(f"--patient-axes={axes.strip()}")  # one word: it may begin with a minus
        for view, name, column, row in landmarks.placed(landmarkList, frontal, lateral):
            arguments += ["--landmark", list(VIEWS.values())[view], name, f"{column:.2f}", f"{row:.2f}"]
        job.start(*arguments)
    return job


def importReconstruction(nodes, output):
    """Add the files of a finished `reconstruct-knee` to the scene.

    Args:
        nodes: {"frontal" or "lateral": X-ray}.
        output: folder, beside the geometry files that the job was given.

    Returns:
        Reconstruction.
    """
    result = json.loads((output / RESULT).read_text(encoding="utf-8"))
    lines = json.loads((output / OUTLINES).read_text(encoding="utf-8"))
    labels, side = read_volume(output / LABELMAP), result["side"]
    title = _("PREDICTED {side} knee").format(side=side)
    with scene.importing(nodes["frontal"], title):
        segmentation = scene.addSegmentation(title)
        models, outlines = {}, {name: [] for name in VIEWS}
        for bone, figures in result["bones"].items():
            name = _("PREDICTED {bone}").format(bone=bone)
            mask = Volume(labels.array == figures["label"], labels.ijk_to_ras)
            scene.addSegment(segmentation, mask, name, COLORS[bone], bone, side)
            surface, scalars = scene.readSurfaceWithScalars(output / f"{bone}.vtp")
            models[bone] = model = scene.surfaceToModel(surface, name, COLORS[bone], scalars=scalars)
            model.SetAttribute(BONE_ATTRIBUTE, bone)
            scene.addHeatmap(model, SIGMA_ARRAY, 1.0, DEVIATION_TITLE)
        segmentation.GetDisplayNode().SetVisibility3D(False)  # the models are there
        for name, stem in VIEWS.items():
            geometry = read_geometry(output.parent / f"{stem}.json")
            outlines[name] = [_addOutline(bone, name, geometry, lines[stem].get(bone, [])) for bone in models]
        table = scene.addTable(_columns(result["bones"]), title)
        record = scene.recordFromJson(
            output / RESULT,
            _("{title}, record").format(title=title),
            {name: (node, "") for name, node in nodes.items()},
        )
        for name, stem in VIEWS.items():
            record.SetAttribute(GEOMETRY_ATTRIBUTE + name, (output.parent / f"{stem}.json").read_text("utf-8"))
        record.SetNodeReferenceID(ROLES["segmentation"], segmentation.GetID())
        record.SetNodeReferenceID(ROLES["table"], table.GetID())
        for model in models.values():
            record.AddNodeReferenceID(MODEL_ROLE, model.GetID())
        for name, drawn in outlines.items():
            for outline in drawn:
                record.AddNodeReferenceID(OUTLINE_ROLE + name, outline.GetID())
    return Reconstruction(segmentation, models, outlines, table, record)


def fromRecord(record):
    """The Reconstruction that a record belongs to; None where the record is None or a node of it was removed."""
    if record is None:
        return None
    segmentation, table = (record.GetNodeReference(role) for role in ROLES.values())
    models = {model.GetAttribute(BONE_ATTRIBUTE): model for model in references(record, MODEL_ROLE)}
    if segmentation is None or table is None or not models:
        return None
    outlines = {name: references(record, OUTLINE_ROLE + name) for name in VIEWS}
    return Reconstruction(segmentation, models, outlines, table, record)


def show(reconstruction, opacity, outlinesVisible, deviationVisible, rangeMm, without=()):
    """Draw a reconstruction.

    Args:
        reconstruction: Reconstruction.
        opacity: of the bones, 0 to 1.
        outlinesVisible: whether the projected outlines are drawn on the X-rays.
        deviationVisible: whether bones are coloured by the standard deviation, from 0 to rangeMm.
        rangeMm: mm.
        without: bones that are not drawn, as others stand for them.
    """
    for number, (bone, model) in enumerate(reconstruction.models.items()):
        scene.setModelVisible(model, bone not in without, opacity)
        # One legend holds for all bones.
        scene.setHeatmapVisible(model, False)
        if deviationVisible and number == 0:
            scene.setHeatmapVisible(model, True)
        model.GetDisplayNode().SetScalarVisibility(deviationVisible)
        if deviationVisible:
            scene.setHeatmap(model, SIGMA_ARRAY, rangeMm, DEVIATION_TITLE, signed=False)
    for drawn in reconstruction.outlines.values():
        for outline in drawn:
            outline.GetDisplayNode().SetVisibility(outlinesVisible)


def hide(reconstruction):
    """Hide all that a reconstruction shows."""
    for model in reconstruction.models.values():
        scene.setModelVisible(model, False)
    for node in reconstruction.nodes:
        node.GetDisplayNode().SetVisibility(False)


def references(record, role):
    """The nodes that a record refers to in a role, as far as they are there."""
    nodes = [record.GetNthNodeReference(role, number) for number in range(record.GetNumberOfNodeReferences(role))]
    return [node for node in nodes if node is not None]


def _addOutline(bone, name, geometry, lines):
    """A model of a bone's projected outline, [(n, 2) pixel positions], on an X-ray."""
    points, cells = vtk.vtkPoints(), vtk.vtkCellArray()
    pixels = np.concatenate([np.asarray(line, dtype=float).reshape(-1, 2) for line in [*lines, np.empty((0, 2))]])
    placed = geometry.pixel_positions(pixels)
    placed = placed + BEFORE_IMAGE * (geometry.source - placed)
    points.SetData(numpy_to_vtk(placed.astype(np.float32), deep=True))
    begin = 0
    for line in lines:
        cells.InsertNextCell(len(line), range(begin, begin + len(line)))
        begin += len(line)
    mesh = vtk.vtkPolyData()
    mesh.SetPoints(points)
    mesh.SetLines(cells)
    title = scene.uniqueName(_("PREDICTED {bone}, {view} outline").format(bone=bone, view=name), "vtkMRMLModelNode")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", title)
    node.SetAndObservePolyData(mesh)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetColor(*COLORS[bone])
    display.SetLighting(False)
    display.SetLineWidth(2)
    # Slices show all of it: the outline lies before the image, not in it.
    display.SetVisibility2D(True)
    display.SetSliceDisplayModeToProjection()
    display.SetSliceIntersectionThickness(2)
    return node


def _columns(bones):
    """The table's columns."""

    def values(read):
        found = [read(figures) for figures in bones.values()]
        return [float("nan") if value is None else value for value in found]

    return {
        _("Bone"): list(bones),
        _("Frontal residual (mm)"): values(lambda figures: figures["residual_mm"]["ap"]),
        _("Lateral residual (mm)"): values(lambda figures: figures["residual_mm"]["lateral"]),
        _("Std. deviation (mm)"): values(lambda figures: figures["deviation_mm"]),
        _("Joint end in both (%)"): values(lambda figures: 100 * figures["end_in_both_views"]),
        _("Volume (mL)"): values(lambda figures: figures["volume_ml"]),
    }
