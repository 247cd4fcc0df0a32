"""A prediction in the scene: its nodes, all named PREDICTED, made of a job's files and found again by their record."""

import functools
import json
from dataclasses import dataclass

import numpy as np
import slicer
import slicer.util
from slicer.i18n import tr as _

from BoneReconstructionLib import scene
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.markups import Markup
from BoneReconstructionLib.volumes import Volume, read_volume
from TibiaCompletionLib.completion import DEFAULT_METHOD, DISTANCE_ARRAY, SIGMA_ARRAY
from TibiaCompletionLib.measuring import GEOMETRY
from TibiaCompletionLib.scene.inputs import givenSide

PREDICTED_COLOR = (0.30, 0.80, 0.76)
PREDICTED_ATTRIBUTE = "BoneReconstruction.Predicted"
DISTANCE_TITLE = _("PREDICTED tibia (mm)\n+ outside, - inside")
DEVIATION_TITLE = _("PREDICTED tibia,\nstandard deviation (mm)")
# In these roles a prediction's record refers to its other nodes.
RESULT_ROLES = {
    name: f"BoneReconstruction.result.{name}"
    for name in ("segmentation", "model", "transform", "table", "measurements")
}
MARKUP_ROLE = "BoneReconstruction.result.markup"
MEASUREMENT_ATTRIBUTE = "BoneReconstruction.Measurement"
MEASUREMENT_COLUMNS = (_("Measurement"), _("Value"), _("95 % interval ±"), _("Unit"), _("People"))


@dataclass
class Prediction:
    """Nodes of one prediction, all named PREDICTED; `record` keeps inputs, settings, versions and warnings (JSON).

    It also refers to the other nodes, so that a prediction is found again in a loaded scene. Measurements and markups,
    the lines, angles and planes that they are read from, are missing where a joint end is not seen.
    """

    segmentation: slicer.vtkMRMLSegmentationNode
    model: slicer.vtkMRMLModelNode
    transform: slicer.vtkMRMLTransformNode
    table: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode
    measurements: slicer.vtkMRMLTableNode | None = None
    markups: tuple = ()

    def input(self, name):
        """(node or None, segment ID) of an input: "ct", "tibia", "fracture" or one of the context."""
        described = json.loads(self.record.GetText())["inputs"].get(name, {})
        return self.record.GetNodeReference(scene.inputRole(name)), described.get("segment_id", "")

    @property
    def ct(self):
        """The CT's node, None where it was removed."""
        return self.input("ct")[0]


def startCompletion(
    ct,
    tibia,
    fracture,
    side="auto",
    method=DEFAULT_METHOD,
    context=None,
    fixedPiece=1,
    beyondScan=False,
    acceptSide=False,
    onProgress=None,
    onFinished=None,
):
    """Start `bonerecon complete-tibia` in a process of its own.

    Args:
        ct: scalar volume node, HU.
        tibia: (segmentation or labelmap node, segment ID).
        fracture: (segmentation, labelmap or ROI node, segment ID).
        side: "left", "right" or "auto": what the tibia's terms or name say, else by its shape.
        method: a name of METHODS.
        context: bones that help, by name: "fibula", "femur" and "talus" of the same leg (segmentation or labelmap) and
            "other_tibia", the other leg's healthy one (model, too).
        fixedPiece: number of the visible piece that lies where it belongs, counted from the largest, 1.
        beyondScan: whether the model goes on where the scan ends.
        acceptSide: keep a side although the shape is clearly the other's.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are a Prediction.

    Raises:
        InputError: an input that cannot be read out of the scene; nothing was started.
    """
    bones = {"tibia": tibia, "fracture": fracture} | (context or {})
    importResults = functools.partial(importPrediction, {"ct": (ct, "")} | bones)
    with scene.starting(importResults, onProgress, onFinished) as job:
        arguments = [
            "complete-tibia",
            "--side",
            givenSide(tibia, side),
            "--method",
            method,
            "--fixed-piece",
            fixedPiece,
            "--ct",
            scene.writeCT(job, ct),
        ]
        for name, bone in bones.items():
            arguments += [f"--{name.replace('_', '-')}", scene.writeBone(job.folder / name, *bone)]
        job.start(*arguments, *["--beyond-scan"] * beyondScan, *["--accept-side"] * acceptSide)
    return job


def importPrediction(inputs, output):
    """Add the files of a finished `complete-tibia` to the scene.

    Args:
        inputs: (node, segment ID) by name, of which "ct" is one.
        output: folder.

    Returns:
        Prediction.
    """
    ct = inputs["ct"][0]
    record = json.loads((output / RESULT).read_text(encoding="utf-8"))
    volume = read_volume(output / "tibia.nii.gz")
    surface, scalars = scene.readSurfaceWithScalars(output / "tibia.vtp")
    name = _("PREDICTED tibia")
    with scene.importing(ct, name):
        segmentation = scene.addSegmentation(name, ct)
        scene.addSegment(
            segmentation, Volume(volume.array > 0, volume.ijk_to_ras), name, PREDICTED_COLOR, "tibia", record["side"]
        )
        display = segmentation.GetDisplayNode()
        # The outline in slices and the model in 3D: measured bone stays visible beneath both.
        display.SetVisibility3D(False)
        display.SetVisibility2DFill(False)
        display.SetSliceIntersectionThickness(2)
        model = scene.surfaceToModel(surface, name, PREDICTED_COLOR, scalars=scalars)
        model.GetDisplayNode().SetVisibility2D(False)
        scene.addHeatmap(model, DISTANCE_ARRAY, 2.0, DISTANCE_TITLE)
        transform = scene.addTransform(record["ras_to_standard"], _("PREDICTED tibia to standard frame"))
        table = scene.tableFromCsv(output / "distances.csv", _("PREDICTED tibia figures"))
        recordNode = scene.recordFromJson(output / RESULT, _("PREDICTED tibia record"), inputs)
        measurements, markups = _importMeasurements(output / GEOMETRY)
        prediction = Prediction(segmentation, model, transform, table, recordNode, measurements, markups)
        for node in (segmentation, model, transform, table, *filter(None, [measurements]), *markups):
            node.SetAttribute(PREDICTED_ATTRIBUTE, "1")
            node.SetNodeReferenceID("BoneReconstruction.Record", recordNode.GetID())
        for name, role in RESULT_ROLES.items():
            if getattr(prediction, name) is not None:
                recordNode.SetNodeReferenceID(role, getattr(prediction, name).GetID())
        for markup in markups:
            recordNode.AddNodeReferenceID(MARKUP_ROLE, markup.GetID())
    if markups:
        scene.putInFolder(markups, _("PREDICTED axes and planes"))
    return prediction


def _importMeasurements(path):
    """The table node and the markups nodes of a prediction's measurements; (None, ()) where it has none."""
    if not path.is_file():
        return None, ()
    measured = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    columns = {title: [] for title in MEASUREMENT_COLUMNS}
    markups = []
    for name, one in measured.items():
        people = one["published"]
        interval = "" if one["interval_95"] is None else f"{one['interval_95']:.1f}"
        row = (one["title"], f"{one['value']:.1f}", interval, one["unit"], f"{people['mean']:.1f} ± {people['sd']:.1f}")
        for column, text in zip(columns.values(), row):
            column.append(text)
        for drawn in one["markups"]:
            markup = Markup(drawn["name"], drawn["kind"], np.array(drawn["points"]), tuple(drawn["colour"]))
            node = scene.addMarkup(markup, _("PREDICTED {name}").format(name=markup.name), one["definition"])
            node.SetAttribute(MEASUREMENT_ATTRIBUTE, name)
            markups.append(node)
    return scene.addTable(columns, _("PREDICTED tibia measurements")), tuple(markups)


def fromRecord(recordNode):
    """The `Prediction` of a record; None for no record or where one is gone."""
    if recordNode is None:
        return None
    nodes = {name: recordNode.GetNodeReference(role) for name, role in RESULT_ROLES.items()}
    if None in [nodes[name] for name in ("segmentation", "model", "transform", "table")]:
        return None
    markups = tuple(
        recordNode.GetNthNodeReference(MARKUP_ROLE, index)
        for index in range(recordNode.GetNumberOfNodeReferences(MARKUP_ROLE))
    )
    return Prediction(record=recordNode, markups=tuple(filter(None, markups)), **nodes)


def newestOf(ct):
    """The newest `Prediction` from a CT, or None."""
    found = [
        fromRecord(node)
        for node in slicer.util.getNodesByClass("vtkMRMLTextNode")
        if node.GetNodeReference(scene.inputRole("ct")) is ct
    ]
    found = [prediction for prediction in found if prediction is not None]
    return found[-1] if found else None


def hasDeviations(model):
    """Whether a predicted model, or None, knows how uncertain its surface is."""
    return model is not None and scene.hasScalars(model, SIGMA_ARRAY)


def showDistances(model, rangeMm):
    """Colour a predicted model by its distance to the visible bone, from -rangeMm to +rangeMm."""
    scene.setHeatmap(model, DISTANCE_ARRAY, rangeMm, DISTANCE_TITLE)
    scene.setHeatmapVisible(model, True)


def showDeviations(model, rangeMm):
    """Colour a predicted model that `hasDeviations` by its standard deviation, from 0 to rangeMm."""
    scene.setHeatmap(model, SIGMA_ARRAY, rangeMm, DEVIATION_TITLE, signed=False)
    scene.setHeatmapVisible(model, True)


def hide(prediction):
    """Hide all that a prediction shows."""
    scene.setModelVisible(prediction.model, False)
    prediction.segmentation.GetDisplayNode().SetVisibility(False)
    showMarkups(prediction, "none")


def showMarkups(prediction, shown):
    """Show the lines, angles and planes of one measurement, of "all" or of "none"; prediction may be None."""
    for markup in prediction.markups if prediction is not None else ():
        markup.GetDisplayNode().SetVisibility(shown in ("all", markup.GetAttribute(MEASUREMENT_ATTRIBUTE)))


def removeMarkupsOf(model):
    """Remove the lines, angles and planes that were read from a predicted model."""
    record = model.GetNodeReference("BoneReconstruction.Record")
    prediction = fromRecord(record) if model.GetAttribute(PREDICTED_ATTRIBUTE) else None
    for markup in prediction.markups if prediction is not None else ():
        slicer.mrmlScene.RemoveNode(markup)
