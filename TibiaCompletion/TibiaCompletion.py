"""Module TibiaCompletion: the healthy shape of a fractured tibia, predicted from its CT."""

import enum
import functools
import json
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from BoneReconstruction import JobPanelWidget
from BoneReconstructionLib import scene
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.volumes import Volume, read_volume, write_volume
from TibiaCompletionLib.completion import DEFAULT_METHOD, DISTANCE_ARRAY, METHODS

PREDICTED_COLOR, MASK_COLOR = (0.30, 0.80, 0.76), (0.90, 0.35, 0.20)
PREDICTED_ATTRIBUTE = "BoneReconstruction.Predicted"


class TibiaCompletion(ScriptedLoadableModule):
    """Description of the module for Slicer's module list."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Tibia Completion")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Planning")]
        parent.dependencies = ["BoneReconstruction"]
        parent.contributors = ["BoneReconstruction contributors"]
        parent.helpText = _("Predicts the healthy shape of a fractured tibia from its CT, the segmented tibia and a "
                            "coarse mask of the fracture. Predictions are kept apart from measured bone and are "
                            "named PREDICTED. Not for clinical use.")
        parent.acknowledgementText = _("The model's licence and training data are named in its model card.")


class Side(enum.Enum):
    """Which leg; values as on the command line."""

    AUTO = "auto"
    LEFT = "left"
    RIGHT = "right"

    def label(self):
        return {Side.AUTO: _("Automatic"), Side.LEFT: _("Left"), Side.RIGHT: _("Right")}[self]


class _MethodBase(enum.Enum):
    def label(self):
        return METHODS[self.value].title


Method = _MethodBase("Method", {name.upper().replace("-", "_"): name for name in METHODS}, module=__name__)


@parameterNodeWrapper
class TibiaCompletionParameterNode:
    """What the panel asks for, saved with the scene.

    Attributes:
        ct: HU.
        tibia: the measured tibia, segmentation (with the segment's ID) or labelmap.
        fracture: where it is not to be trusted, segmentation (with ID), labelmap or ROI.
        heatmapRange: colours run from minus to plus this distance, mm.
        predictedOpacity, measuredOpacity: 0 to 1.
        resultSegmentation, resultModel, resultTable, resultRecord: the last prediction.
    """

    ct: slicer.vtkMRMLScalarVolumeNode
    tibia: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    tibiaSegmentID: str
    side: Side = Side.AUTO
    fracture: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | slicer.vtkMRMLMarkupsROINode | None
    fractureSegmentID: str
    method: Method = Method(DEFAULT_METHOD)
    heatmapVisible: bool = True
    heatmapRange: Annotated[float, WithinRange(0.1, 20.0)] = 2.0
    predictedOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 1.0
    measuredOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.3
    resultSegmentation: slicer.vtkMRMLSegmentationNode
    resultModel: slicer.vtkMRMLModelNode
    resultTable: slicer.vtkMRMLTableNode
    resultRecord: slicer.vtkMRMLTextNode


class TibiaCompletionWidget(JobPanelWidget):
    """Panel of the completion, in the order of the work."""

    SEGMENTS = (("tibia", "tibiaSegmentID", "tibiaSegmentSelector"),
                ("fracture", "fractureSegmentID", "fractureSegmentSelector"))
    APPLY_TOOLTIP = _("Predict the healthy tibia in a process of its own; the window stays free.")

    def setup(self):
        """Build the panel."""
        JobPanelWidget.setup(self)
        self.ui.editMaskButton.connect("clicked(bool)", self.onEditMaskButton)

    def makeLogic(self):
        return TibiaCompletionLogic()

    def initializeParameterNode(self):
        """Bind the parameter node; a scene with one CT has it selected."""
        JobPanelWidget.initializeParameterNode(self)
        if self._parameterNode.ct is None:
            volumes = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
                       if not node.IsA("vtkMRMLLabelMapVolumeNode")]
            if len(volumes) == 1:
                self._parameterNode.ct = volumes[0]

    def reasonNotToApply(self):
        node = self._parameterNode
        return self.logic.reasonNotToComplete(node.ct, (node.tibia, node.tibiaSegmentID),
                                              (node.fracture, node.fractureSegmentID))

    def startJob(self):
        node = self._parameterNode
        return self.logic.startCompletion(
            node.ct, (node.tibia, node.tibiaSegmentID), (node.fracture, node.fractureSegmentID),
            node.side.value, node.method.value, self.onProgress, self.onJobFinished)

    def storeResults(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        previousModel, previousSegmentation = node.resultModel, node.resultSegmentation
        with slicer.util.NodeModify(node):
            node.resultSegmentation, node.resultModel = results.segmentation, results.model
            node.resultTable, node.resultRecord = results.table, results.record
        if previousModel is not None:
            scene.setModelVisible(previousModel, False)
        if previousSegmentation is not None:
            previousSegmentation.GetDisplayNode().SetVisibility(False)

    def updateDisplay(self):
        node = self._parameterNode
        self.ui.editMaskButton.enabled = node.ct is not None
        self.ui.methodDescriptionLabel.text = METHODS[node.method.value].description
        self.ui.summaryLabel.text = self.logic.summary(node.resultRecord)
        self.ui.signLabel.text = self.logic.signWords()
        self.ui.signLabel.visible = node.resultModel is not None
        self.showTable(node.resultTable)
        isSegment = node.tibia is not None and node.tibia.IsA("vtkMRMLSegmentationNode")
        self.ui.measuredOpacitySlider.enabled = isSegment and node.resultModel is not None
        if node.resultModel is not None:
            if isSegment and node.tibia.GetDisplayNode() and scene.hasSegment(node.tibia, node.tibiaSegmentID):
                node.tibia.GetDisplayNode().SetSegmentOpacity3D(node.tibiaSegmentID, node.measuredOpacity)
            scene.setModelVisible(node.resultModel, True, node.predictedOpacity)
            scene.setHeatmapRange(node.resultModel, node.heatmapRange)
            scene.setHeatmapVisible(node.resultModel, node.heatmapVisible)

    def onEditMaskButton(self, checked=False):
        """Open the Segment Editor on the mask."""
        node = self._parameterNode
        fracture, segmentID = self.logic.prepareMask(node.ct, node.fracture, node.fractureSegmentID)
        node.fracture = fracture
        node.fractureSegmentID = segmentID
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(fracture)
        editor.setSourceVolumeNode(node.ct)
        editor.setCurrentSegmentID(segmentID)


@dataclass
class CompletionResults:
    """Nodes of one prediction, all named PREDICTED; `record` keeps inputs, settings, versions and warnings (JSON)."""

    segmentation: slicer.vtkMRMLSegmentationNode
    model: slicer.vtkMRMLModelNode
    transform: slicer.vtkMRMLTransformNode
    table: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode


class TibiaCompletionLogic(ScriptedLoadableModuleLogic):
    """Completion without a panel; a bone or mask is a pair (node, segment ID or "")."""

    def getParameterNode(self):
        return TibiaCompletionParameterNode(super().getParameterNode())

    @staticmethod
    def signWords():
        """What the sign and the grey of the heatmap mean."""
        return _("Heatmap in mm. Positive: the prediction lies outside the visible bone; negative: inside it; "
                 "grey: no visible bone to compare with.")

    @staticmethod
    def summary(recordNode):
        """Side, method, model and warnings of a prediction in words."""
        if recordNode is None:
            return _("No prediction yet.")
        record = json.loads(recordNode.GetText())
        text = _("PREDICTED from the {side} tibia by {method}, model {model} {version}. Not for clinical use.")
        lines = [text.format(side=record["side"], method=record["method"], model=record["model"]["id"],
                             version=record["model"]["version"])]
        return "\n".join(lines + [_("Warning: {warning}").format(warning=text) for text in record["warnings"]])

    @staticmethod
    def reasonNotToComplete(ct, tibia, fracture):
        """Why the completion cannot run, as a sentence, or "" if it can; looks at no voxels."""
        if ct is None:
            return _("Select the CT.")
        for (node, segmentID), missing in ((tibia, _("Select the fractured tibia.")),
                                           (fracture, _("Select the fracture mask, or press \"Edit mask\"."))):
            if node is None:
                return missing
            if node.IsA("vtkMRMLSegmentationNode") and not scene.hasSegment(node, segmentID):
                return _("\"{name}\" has no segment: add one or select another.").format(name=node.GetName())
        if tibia[0] is fracture[0] and tibia[1] == fracture[1]:
            return _("The fracture mask is the tibia itself: select another mask.")
        if ct is tibia[0] or ct is fracture[0]:
            return _("The CT is also selected as tibia or mask: select another CT.")
        return ""

    @staticmethod
    def prepareMask(ct, fracture, segmentID):
        """Find the mask's segment, or make an empty one; the tibia's own segmentation is left alone.

        Returns:
            (segmentation node, segment ID).
        """
        if fracture is None or not fracture.IsA("vtkMRMLSegmentationNode"):
            fracture = scene.addSegmentation(_("Fracture mask"), ct)
        if not scene.hasSegment(fracture, segmentID):
            segmentID = scene.addEmptySegment(fracture, _("Fracture mask"), MASK_COLOR)
        return fracture, segmentID

    def startCompletion(
        self, ct, tibia, fracture, side="auto", method=DEFAULT_METHOD, onProgress=None, onFinished=None
    ):
        """Start `bonerecon complete-tibia` in a process of its own.

        Args:
            ct: scalar volume node, HU.
            tibia: (segmentation or labelmap node, segment ID).
            fracture: (segmentation, labelmap or ROI node, segment ID).
            side: "auto", "left" or "right".
            method: a name of METHODS.
            onProgress, onFinished: see scenejob.SceneJob.

        Returns:
            The running SceneJob; after success its `results` are CompletionResults.

        Raises:
            InputError: an input that cannot be read out of the scene; nothing was started.
        """
        inputs = {"ct": (ct, ""), "tibia": tibia, "fracture": fracture}
        job = scene.makeJob(functools.partial(self._importResults, inputs), onProgress, onFinished)
        try:
            arguments = ["complete-tibia", "--side", side, "--method", method]
            # .nii is not compressed: a CT is written in a second instead of ten.
            for option, fileName, volume in (("--ct", "ct.nii", scene.volumeFromNode(ct)),
                                             ("--tibia", "tibia.nrrd", scene.maskFromNode(*tibia)),
                                             ("--fracture", "fracture.nrrd", scene.maskFromNode(*fracture))):
                write_volume(job.folder / fileName, volume)
                arguments += [option, job.folder / fileName]
            job.start(*arguments)
        except BaseException:
            job.discard()
            raise
        return job

    def complete(self, ct, tibia, fracture, side="auto", method=DEFAULT_METHOD, timeoutS=600.0):
        """Predict and wait for the result; no dialogs. Arguments as startCompletion.

        Returns:
            CompletionResults.

        Raises:
            InputError: an input cannot be read out of the scene.
            RuntimeError: the job refused its input, failed or took longer than timeoutS seconds.
        """
        return self.startCompletion(ct, tibia, fracture, side, method).finish(timeoutS)

    def _importResults(self, inputs, output):
        ct = inputs["ct"][0]
        record = json.loads((output / RESULT).read_text(encoding="utf-8"))
        volume = read_volume(output / "tibia.nii.gz")
        surface, scalars = scene.readSurfaceWithScalars(output / "tibia.vtp")
        name = _("PREDICTED tibia")
        with scene.importing(ct, name):
            segmentation = scene.addSegmentation(name, ct)
            scene.addSegment(segmentation, Volume(volume.array > 0, volume.ijk_to_ras), name, PREDICTED_COLOR,
                             "tibia", record["side"])
            display = segmentation.GetDisplayNode()
            # The outline in slices and the model in 3D: measured bone stays visible beneath both.
            display.SetVisibility3D(False)
            display.SetVisibility2DFill(False)
            display.SetSliceIntersectionThickness(2)
            model = scene.surfaceToModel(surface, name, PREDICTED_COLOR, scalars=scalars)
            model.GetDisplayNode().SetVisibility2D(False)
            scene.addHeatmap(model, DISTANCE_ARRAY, 2.0, _("PREDICTED tibia (mm)\n+ outside, - inside"))
            transform = scene.addTransform(record["ras_to_standard"], _("PREDICTED tibia to standard frame"))
            table = scene.tableFromCsv(output / "distances.csv", _("PREDICTED tibia figures"))
            recordNode = scene.recordFromJson(output / RESULT, _("PREDICTED tibia record"), inputs)
            for node in (segmentation, model, transform, table):
                node.SetAttribute(PREDICTED_ATTRIBUTE, "1")
                node.SetNodeReferenceID("BoneReconstruction.Record", recordNode.GetID())
        return CompletionResults(segmentation, model, transform, table, recordNode)


class TibiaCompletionTest(ScriptedLoadableModuleTest):
    """Self-test: the prior's mean tibia in an oblique CT, a gap in its shaft, through the job and back."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        self.setUp()
        self.test_GapInShaft()

    @staticmethod
    def makePatient():
        """A plain CT of the mean right tibia, turned by 20 degrees, with 40 mm of shaft marked as fractured.

        Returns:
            (CT node, segmentation node, tibia's segment ID, mask's segment ID, true bool Volume).
        """
        from BoneReconstructionLib.frames import rotation_about, transform_points
        from BoneReconstructionLib.meshing import voxelize
        from BoneReconstructionLib.shapeprior import load_prior
        from BoneReconstructionLib.surfaces import Surface

        prior = load_prior("tibia-prior", "tibia")
        rasFromStandard = np.eye(4)
        rasFromStandard[:3, :3] = rotation_about((1.0, 0.0, 0.0), np.deg2rad(20))
        rasFromStandard[:3, 3] = 80, -40, 30
        vertices = transform_points(rasFromStandard, prior.mean)
        spacing, margin = np.array([1.0, 1.0, 2.0]), 8.0
        shape = np.ceil((np.ptp(vertices, axis=0) + 2 * margin) / spacing).astype(int)[::-1]
        ijkToRas = np.diag([*spacing, 1.0])
        ijkToRas[:3, 3] = vertices.min(axis=0) - margin
        truth = voxelize(Surface(vertices, prior.faces), tuple(shape), ijkToRas)
        middle = slice(shape[0] // 2 - 10, shape[0] // 2 + 10)
        mask = np.zeros(shape, dtype=bool)
        mask[middle] = True
        visible = truth.array.copy()
        visible[middle] = False
        ct = scene.volumeToNode(Volume(np.where(visible, 900, 40).astype(np.int16), ijkToRas), "CT")
        segmentation = scene.addSegmentation("Patient", ct)
        tibiaID = scene.addSegment(segmentation, Volume(visible, ijkToRas), "Tibia", (0.9, 0.8, 0.6), "tibia", "right")
        maskID = scene.addSegment(segmentation, Volume(mask, ijkToRas), "Fracture mask", MASK_COLOR, "tibia")
        return ct, segmentation, tibiaID, maskID, truth

    def test_GapInShaft(self):
        self.delayDisplay("Completing a tibia with a gap in its shaft")
        ct, segmentation, tibiaID, maskID, truth = self.makePatient()
        logic = TibiaCompletionLogic()
        with self.assertRaises(InputError):
            logic.complete(ct, (segmentation, "no such segment"), (segmentation, maskID), "right")
        results = logic.complete(ct, (segmentation, tibiaID), (segmentation, maskID), "right")
        segmentID = results.segmentation.GetSegmentation().GetNthSegmentID(0)
        self.assertIn("PREDICTED", results.segmentation.GetSegmentation().GetNthSegment(0).GetName())
        predicted = scene.maskInGeometry(scene.segmentMask(results.segmentation, segmentID), truth).array
        dice = 2 * np.count_nonzero(predicted & truth.array) / (predicted.sum() + truth.array.sum())
        self.assertGreater(dice, 0.95)
        self.delayDisplay("Test passed")
