"""Fragments of a broken tibia in the scene: each a measured model under a transform that brings it to the PREDICTED bone.

The models lie as in the CT; a transform of identity leaves a fragment there. Figures follow the transforms.
"""

import functools
import json
import time
from dataclasses import dataclass

import numpy as np
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _

from BoneReconstructionLib import scene
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.volumes import Volume, read_volume, write_volume
from TibiaCompletionLib.fragments.assessment import FIGURES, Assessment
from TibiaCompletionLib.fragments.reduction import Reduction
from TibiaCompletionLib.fragments.results import GAP_ARRAY, JOINT_ARRAY, SPLIT, STEP_ARRAY, TARGET
from TibiaCompletionLib.fragments.target import Target
from TibiaCompletionLib.scene.predictions import PREDICTED_ATTRIBUTE, PREDICTED_COLOR

COLORS = ((0.93, 0.87, 0.72), (0.36, 0.56, 0.80), (0.86, 0.45, 0.32), (0.45, 0.68, 0.42), (0.70, 0.55, 0.80))
# In these roles the record of a plan refers to its other nodes; models and transforms in the order of the fragments.
TARGET_ROLE, TABLE_ROLE, MODEL_ROLE, TRANSFORM_ROLE = (
    f"BoneReconstruction.plan.{name}" for name in ("target", "table", "model", "transform")
)
PREDICTION_ROLE = "BoneReconstruction.plan.prediction"
LOCKED_ATTRIBUTE = "BoneReconstruction.Locked"
HEATMAPS = {"step": STEP_ARRAY, "gap": GAP_ARRAY}
HEATMAP_TITLES = {
    "step": _("Step in the joint (mm)\n+ stands out, - lies deep"),
    "gap": _("Gap below the joint (mm)\n+ apart, - overlapping"),
}
SAME = 1e-6  # mm, and of direction cosines: rounding
SETTLED_S = 0.5  # a transform at rest for so long has come to the end of one movement


@dataclass
class FoundFragments:
    """A bone split into its fragments, one segment each, to be corrected in the Segment Editor."""

    segmentation: slicer.vtkMRMLSegmentationNode


@dataclass
class Plan:
    """Nodes of one reduction; `record` keeps inputs, the planned motions, figures and versions (JSON).

    Attributes:
        target: the PREDICTED bone that the fragments are brought to, hidden; its points know the joint.
        table: a row for each figure, after its title and unit a column for each fragment.
        models: where each fragment lies in the CT.
        transforms: the one over each model.
    """

    record: slicer.vtkMRMLTextNode
    target: slicer.vtkMRMLModelNode
    table: slicer.vtkMRMLTableNode
    models: tuple
    transforms: tuple

    @property
    def names(self):
        """The fragments' names."""
        return [model.GetName() for model in self.models]

    @property
    def planned(self):
        """(k, 4, 4) the motions that were computed, RAS mm."""
        return np.array([fragment["motion_ras"] for fragment in json.loads(self.record.GetText())["fragments"]])

    def holds(self, node):
        """Whether a node is one of the plan's."""
        return node in (self.record, self.target, self.table, *self.models, *self.transforms)

    @property
    def matrices(self):
        """(k, 4, 4) the motions that the transforms hold, RAS mm."""
        return np.array([scene.worldMatrix(model) for model in self.models])


def startSplitting(ct, tibia, fracture, onProgress=None, onFinished=None):
    """Start `bonerecon split-fragments` in a process of its own.

    Args:
        ct: scalar volume node, HU.
        tibia: (segmentation or labelmap node, segment ID).
        fracture: the same of the coarse mask; no node: it is not used.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are FoundFragments.

    Raises:
        InputError: CT or tibia cannot be read out of the scene; nothing was started.
    """
    with scene.starting(functools.partial(importSplit, ct), onProgress, onFinished) as job:
        bone = scene.writeBone(job.folder / "tibia", *tibia)
        job.start("split-fragments", "--ct", scene.writeCT(job, ct), "--tibia", bone, *_writeFracture(job, fracture))
    return job


def startReduction(prediction, node=None, onProgress=None, onFinished=None):
    """Start `bonerecon reduce-fragments` in a process of its own.

    Args:
        prediction: `predictions.Prediction` whose CT and tibia are in the scene.
        node: segmentation with a segment, or labelmap with a label, for each fragment; None: the tibia that the
            prediction is of is split automatically.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are a Plan.

    Raises:
        InputError: an input is gone, of another patient or cannot be read out of the scene; nothing was started.
    """
    ct, tibia = prediction.ct, prediction.input("tibia")
    if ct is None or tibia[0] is None:
        raise InputError(_("The CT or the tibia of this prediction is not in the scene any more: predict again."))
    if node is not None and scene.ofDifferentPatients(ct, node):
        raise InputError(_("The fragments and the CT are of different patients: select them of one."))
    given = {"ct": (ct, ""), "fragments": tibia if node is None else (node, "")}
    names = None
    if node is not None and node.IsA("vtkMRMLSegmentationNode"):
        segments = node.GetSegmentation()
        names = [segments.GetNthSegment(number).GetName() for number in range(segments.GetNumberOfSegments())]
    importResults = functools.partial(importPlan, given, prediction, names)
    with scene.starting(importResults, onProgress, onFinished) as job:
        path = scene.writeBone(job.folder / "fragments", *tibia) if node is None else _writeFragments(job, node, ct)
        job.start(
            "reduce-fragments",
            "--ct",
            scene.writeCT(job, ct),
            "--fragments",
            path,
            "--completion",
            _writeCompletion(job, prediction),
            *_writeFracture(job, prediction.input("fracture")),
        )
    return job


def _writeFracture(job, fracture):
    """The arguments that name the mask of the fracture, as far as it is in the scene."""
    node, _segment = fracture
    return () if node is None else ("--fracture", scene.writeBone(job.folder / "fracture", *fracture))


def _writeFragments(job, node, ct):
    path = job.folder / "fragments.nrrd"
    if not node.IsA("vtkMRMLSegmentationNode"):
        write_volume(path, scene.volumeFromNode(node))
        return path
    # Where segments overlap, the later one counts.
    grid, segments = scene.volumeFromNode(ct), node.GetSegmentation()
    labels = np.zeros(grid.array.shape, dtype=np.uint8)
    for number in range(segments.GetNumberOfSegments()):
        mask = scene.segmentMask(node, segments.GetNthSegmentID(number))
        labels[scene.maskInGeometry(mask, grid).array] = number + 1
    write_volume(path, Volume(labels, grid.ijk_to_ras))
    return path


def _writeCompletion(job, prediction):
    """What `reduce-fragments` reads of a prediction, in a folder."""
    folder = job.folder / "completion"
    folder.mkdir()
    write_surface(folder / "tibia.ply", scene.surfaceFromModel(prediction.model))
    (folder / RESULT).write_text(prediction.record.GetText(), encoding="utf-8")
    return folder


def importSplit(ct, output):
    """Add the files of a finished `split-fragments` to the scene.

    Args:
        ct: volume node.
        output: folder.

    Returns:
        FoundFragments.
    """
    labels = read_volume(output / SPLIT)
    with scene.importing(ct, _("Fragments")):
        segmentation = scene.addSegmentation(_("Fragments"), ct)
        for number in range(1, int(labels.array.max()) + 1):
            scene.addSegment(
                segmentation,
                Volume(labels.array == number, labels.ijk_to_ras),
                _("Fragment {number}").format(number=number),
                _color(number - 1),
                "tibia",
            )
        segmentation.GetDisplayNode().SetVisibility3D(False)
    return FoundFragments(segmentation)


def importPlan(inputs, prediction, names, output):
    """Add the files of a finished `reduce-fragments` to the scene.

    Args:
        inputs: (node, segment ID) by name, of which "ct" is one.
        prediction: `predictions.Prediction` that the fragments were brought to.
        names: of the fragments; None: as the job calls them.
        output: folder.

    Returns:
        Plan.
    """
    record = json.loads((output / RESULT).read_text(encoding="utf-8"))
    names = names or [fragment["name"] for fragment in record["fragments"]]
    with scene.importing(inputs["ct"][0], _("Fragments to PREDICTED tibia")):
        surface, scalars = scene.readSurfaceWithScalars(output / TARGET)
        target = scene.surfaceToModel(surface, _("PREDICTED tibia (target)"), PREDICTED_COLOR, scalars=scalars)
        target.SetAttribute(PREDICTED_ATTRIBUTE, "1")
        scene.setModelVisible(target, False)
        models, transforms = [], []
        for number, (name, fragment) in enumerate(zip(names, record["fragments"], strict=True)):
            surface, scalars = scene.readSurfaceWithScalars(output / fragment["surface"])
            model = scene.surfaceToModel(surface, name, _color(number), scalars=scalars)
            transform = scene.addTransform(fragment["motion_ras"], _("{name} to PREDICTED place").format(name=name))
            transform.SetCenterOfTransformation(*surface.vertices.mean(axis=0))
            model.SetAndObserveTransformNodeID(transform.GetID())
            models.append(model)
            transforms.append(transform)
        columns = {
            _("Figure"): [figure.title for figure in FIGURES.values()],
            _("Unit"): [figure.unit for figure in FIGURES.values()],
        }
        columns |= {name: ["-"] * len(FIGURES) for name in names}
        columns[_("Meaning")] = [figure.text for figure in FIGURES.values()]
        table = scene.addTable(columns, _("Fragments to PREDICTED tibia figures"))
        recordNode = scene.recordFromJson(output / RESULT, _("Fragments to PREDICTED tibia record"), inputs)
        recordNode.SetNodeReferenceID(PREDICTION_ROLE, prediction.record.GetID())
        recordNode.SetNodeReferenceID(TARGET_ROLE, target.GetID())
        recordNode.SetNodeReferenceID(TABLE_ROLE, table.GetID())
        for role, nodes in ((MODEL_ROLE, models), (TRANSFORM_ROLE, transforms)):
            for node in nodes:
                recordNode.AddNodeReferenceID(role, node.GetID())
    return Plan(recordNode, target, table, tuple(models), tuple(transforms))


def _inTable(value):
    return f"{round(value, 1) + 0.0:.1f}" if np.isfinite(value) else "-"  # no -0.0


def _color(number):
    return COLORS[number % len(COLORS)]


def newestFor(prediction):
    """The newest `Plan` of a prediction (or None), or None; also where one of its nodes is gone."""
    if prediction is None:
        return None
    found = [
        _fromRecord(node)
        for node in slicer.util.getNodesByClass("vtkMRMLTextNode")
        if node.GetNodeReference(PREDICTION_ROLE) is prediction.record
    ]
    found = [plan for plan in found if plan is not None]
    return found[-1] if found else None


def _fromRecord(node):
    target, table = node.GetNodeReference(TARGET_ROLE), node.GetNodeReference(TABLE_ROLE)
    models, transforms = (
        tuple(node.GetNthNodeReference(role, index) for index in range(node.GetNumberOfNodeReferences(role)))
        for role in (MODEL_ROLE, TRANSFORM_ROLE)
    )
    count = len(json.loads(node.GetText())["fragments"])
    present = [part for part in (target, table, *models, *transforms) if part is not None]
    return Plan(node, target, table, models, transforms) if len(present) == 2 + 2 * count else None


def setVisible(plan, visible):
    """Show the fragments of a plan, or hide them and their handles."""
    for model in plan.models:
        scene.setModelVisible(model, visible)
    if not visible:
        showHandles(plan, None)


def showHandles(plan, number):
    """Show the handles of one fragment, counted from 0, unless it is locked; of no other, with None of none."""
    for index, transform in enumerate(plan.transforms):
        transform.CreateDefaultDisplayNodes()
        display = transform.GetDisplayNode()
        shown = index == number and not isLocked(plan, index)
        display.SetEditorScalingEnabled(False)
        display.SetEditorVisibility(shown)
        display.SetEditorSliceIntersectionVisibility(shown)


def isLocked(plan, number):
    """Whether a fragment, counted from 0, is locked."""
    return bool(plan.transforms[number].GetAttribute(LOCKED_ATTRIBUTE))


def setLocked(plan, number, locked):
    """Lock a fragment, counted from 0, or let it go."""
    plan.transforms[number].SetAttribute(LOCKED_ATTRIBUTE, "1" if locked else None)


def showHeatmap(plan, which, rangeMm):
    """Colour the fragments by "step" or "gap" from -rangeMm to +rangeMm, or with "none" show their plain colours."""
    for number, model in enumerate(plan.models):
        if which != "none":
            colour = scene.setHeatmap if scene.hasHeatmap(model) else scene.addHeatmap
            colour(model, HEATMAPS[which], rangeMm, HEATMAP_TITLES[which])
        shown = which != "none" and bool(model.GetDisplayNode().GetVisibility())
        scene.setHeatmapVisible(model, shown, withLegend=number == 0)


class LivePlan:
    """A plan whose table and heatmaps follow its transforms, with what was before to go back to.

    Args:
        plan: `Plan`.
    """

    def __init__(self, plan):
        self.plan = plan
        record = json.loads(plan.record.GetText())
        joint = slicer.util.arrayFromModelPointData(plan.target, JOINT_ARRAY) > 0
        target = Target.at(np.array(record["axes_from_ras"]), scene.surfaceFromModel(plan.target), joint)
        surfaces = [scene.surfaceFromModel(model, inWorld=False) for model in plan.models]
        self._assessment = Assessment(Reduction.at(target, surfaces, plan.planned))
        self._seen = plan.matrices
        self._changed = -np.inf
        self._before = []
        self._show()

    @property
    def canUndo(self):
        """Whether there is a movement to take back."""
        return bool(self._before)

    def follow(self):
        """Bring figures up to the transforms; what is locked goes back to its place. Returns whether anything moved."""
        now = self.plan.matrices
        locked = [isLocked(self.plan, number) for number in range(len(now))]
        now[locked] = self._seen[locked]
        self._place(now)
        if np.allclose(now, self._seen, atol=SAME):
            return False
        if time.monotonic() - self._changed > SETTLED_S:
            self._before.append(self._seen)
        self._changed = time.monotonic()
        self._seen = now
        self._show()
        return True

    def move(self, number, matrix):
        """Bring one fragment, counted from 0, to a place, (4, 4) RAS mm, unless it is locked; Undo takes it back."""
        matrices = self._seen.copy()
        matrices[number] = matrix
        self._changed = -np.inf
        self._place(matrices)
        self.follow()
        self._changed = -np.inf

    def undo(self):
        """Take the last movement back; locked fragments stay."""
        if self._before:
            before = self._before.pop()
            self._changed = np.inf  # this is no movement to be taken back
            self._place(before)
            self.follow()
            self._changed = -np.inf

    def _place(self, matrices):
        for transform, model, matrix, now in zip(
            self.plan.transforms, self.plan.models, matrices, self.plan.matrices, strict=True
        ):
            if not np.allclose(matrix, now, atol=SAME):
                above = scene.worldMatrix(transform)  # of what the transform itself lies under
                slicer.util.updateTransformMatrixFromArray(transform, np.linalg.inv(above) @ matrix)

    def _show(self):
        figures = self._assessment.figures(self._seen)
        table = self.plan.table.GetTable()
        for number, (model, told) in enumerate(zip(self.plan.models, figures, strict=True)):
            for row, name in enumerate(FIGURES):
                value = told.values[name]
                table.SetValue(row, 2 + number, vtk.vtkVariant(_inTable(value)))
            for name, values in ((STEP_ARRAY, told.step), (GAP_ARRAY, told.gap)):
                slicer.util.arrayFromModelPointData(model, name)[:] = values
                slicer.util.arrayFromModelPointDataModified(model, name)
        table.Modified()
        self.plan.table.Modified()
