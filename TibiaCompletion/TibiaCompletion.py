"""Module TibiaCompletion: the healthy shape of a fractured tibia, predicted from its CT."""

import enum
import functools
import itertools
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
from BoneReconstructionLib.frames import SIDES
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.volumes import Volume, read_volume, write_volume
from TibiaCompletionLib.completion import DEFAULT_METHOD, DISTANCE_ARRAY, METHODS
from TibiaCompletionLib.sidedness import named_side

PREDICTED_COLOR, MASK_COLOR, FOUND_COLOR = (0.30, 0.80, 0.76), (0.90, 0.35, 0.20), (0.95, 0.75, 0.25)
PREDICTED_ATTRIBUTE, FOUND_ATTRIBUTE = "BoneReconstruction.Predicted", "BoneReconstruction.Found"
# The command line's refusal of a given side that the shape contradicts names the option that overrules it.
SIDE_REFUSAL = "--accept-side"


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
        fibula, femur, talus: bones of the same leg that say where the joints are; None: not used.
        otherTibia: the other leg's healthy tibia, also as model; None: not used.
        fixedPiece: number of the visible piece that fixes the pose, counted from the largest, 1.
        beyondScan: whether the model goes on where the scan ends.
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
    fibula: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    fibulaSegmentID: str
    femur: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    femurSegmentID: str
    talus: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    talusSegmentID: str
    otherTibia: slicer.vtkMRMLModelNode | slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    otherTibiaSegmentID: str
    method: Method = Method(DEFAULT_METHOD)
    fixedPiece: Annotated[int, WithinRange(1, 9)] = 1
    beyondScan: bool = False
    heatmapVisible: bool = True
    heatmapRange: Annotated[float, WithinRange(0.1, 20.0)] = 2.0
    predictedOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 1.0
    measuredOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.3
    resultSegmentation: slicer.vtkMRMLSegmentationNode
    resultModel: slicer.vtkMRMLModelNode
    resultTable: slicer.vtkMRMLTableNode
    resultRecord: slicer.vtkMRMLTextNode


class TibiaCompletionWidget(JobPanelWidget):
    """Panel of the completion, in the order of the work.

    One job runs at a time, a prediction or a search for the tibia, and either button cancels it.
    """

    SEGMENTS = (("tibia", "tibiaSegmentID", "tibiaSegmentSelector"),
                ("fracture", "fractureSegmentID", "fractureSegmentSelector"),
                ("fibula", "fibulaSegmentID", "fibulaSegmentSelector"),
                ("femur", "femurSegmentID", "femurSegmentSelector"),
                ("talus", "talusSegmentID", "talusSegmentSelector"),
                ("otherTibia", "otherTibiaSegmentID", "otherTibiaSegmentSelector"))
    APPLY_TOOLTIP = _("Predict the healthy tibia in a process of its own; the window stays free.")

    def __init__(self, parent=None):
        JobPanelWidget.__init__(self, parent)
        self._starter = None
        self._request = None
        self._finding = False

    def setup(self):
        """Build the panel."""
        JobPanelWidget.setup(self)
        self.ui.findButton.connect("clicked(bool)", self.onFindButton)
        self.ui.editTibiaButton.connect("clicked(bool)", self.onEditTibiaButton)
        self.ui.editMaskButton.connect("clicked(bool)", self.onEditMaskButton)
        self._sayFinding("")

    def makeLogic(self):
        return TibiaCompletionLogic()

    def onSceneEndClose(self, caller, event):
        """Called just after the scene was closed."""
        self._sayFinding("")
        JobPanelWidget.onSceneEndClose(self, caller, event)

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
                                              (node.fracture, node.fractureSegmentID), self._context())

    def _context(self):
        node = self._parameterNode
        bones = {"fibula": (node.fibula, node.fibulaSegmentID), "femur": (node.femur, node.femurSegmentID),
                 "talus": (node.talus, node.talusSegmentID),
                 "other_tibia": (node.otherTibia, node.otherTibiaSegmentID)}
        return {name: bone for name, bone in bones.items() if bone[0] is not None}

    def _checkCanApply(self, caller=None, event=None):
        JobPanelWidget._checkCanApply(self)
        button = self.ui.findButton
        if self.job is not None and self._finding:
            button.text, button.toolTip, button.enabled = _("Cancel"), self.ui.applyButton.toolTip, True
            return
        button.text = _("Find tibia")
        button.toolTip = _("Find the tibia of the chosen side, or with \"Automatic\" every tibia, in the CT and "
                           "segment it as a proposal, in a process of its own; the window stays free.")
        button.enabled = self.job is None and self._parameterNode.ct is not None

    def onApplyButton(self, checked=False):
        """Apply, or Cancel while a job runs."""
        self._run(self._startPrediction)

    def onFindButton(self, checked=False):
        """Find the tibia, or Cancel while it is being found."""
        self._run(self._startFinding)
        self._sayFinding(self.ui.statusLabel.text)
        self._checkCanApply()

    def _run(self, starter):
        self._starter = starter
        self.ui.applyButton.enabled = True  # it becomes Cancel, whatever is missing for a prediction
        JobPanelWidget.onApplyButton(self)

    def startJob(self):
        return self._starter()

    def _startPrediction(self):
        node = self._parameterNode
        tibia = node.tibia, node.tibiaSegmentID
        self._request = {
            "ct": node.ct, "tibia": tibia, "fracture": (node.fracture, node.fractureSegmentID),
            "side": self.logic.givenSide(tibia, node.side.value), "method": node.method.value,
            "context": self._context(), "fixedPiece": node.fixedPiece, "beyondScan": node.beyondScan}
        return self._startRequest()

    def _startRequest(self, acceptSide=False):
        self._finding = False
        return self.logic.startCompletion(**self._request, acceptSide=acceptSide, onProgress=self.onProgress,
                                          onFinished=self.onPredictionFinished)

    def onPredictionFinished(self, state, message):
        """The prediction ended; a side that the shape contradicts becomes a question."""
        refused = state == "failed" and SIDE_REFUSAL in message
        self.onJobFinished("cancelled" if refused else state, self.logic.inPanelWords(message))
        if refused and slicer.util.confirmYesNoDisplay(self.logic.sideQuestion(self._request["side"]),
                                                       _("Tibia Completion")):
            # What was asked about is predicted, even if the panel shows something else by now.
            self._run(functools.partial(self._startRequest, acceptSide=True))
        else:
            self._request = None

    def _startFinding(self):
        self._finding = True
        node = self._parameterNode
        return self.logic.startFinding(node.ct, node.side.value, self.onFindingProgress, self.onFindingFinished)

    def onFindingProgress(self, stage, progress, remaining):
        """The search for the tibia reported."""
        self.onProgress(stage, progress, remaining)
        self._sayFinding(self.ui.statusLabel.text)

    def onFindingFinished(self, state, message):
        """The search for the tibia ended."""
        self.onJobFinished(state, message)
        self._sayFinding({"succeeded": "", "cancelled": _("Cancelled; the scene is as it was.")}.get(
            state, _("Failed: {message}").format(message=message)))

    def _sayFinding(self, text):
        self.ui.findingLabel.text = text
        self.ui.findingLabel.visible = bool(text)

    def storeResults(self, results):
        if isinstance(results, FoundTibiae):
            self._storeFound(results)
        else:
            self._storePrediction(results)

    def _storeFound(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        previous = node.tibia
        with slicer.util.NodeModify(node):
            node.tibia = results.segmentation
            node.tibiaSegmentID = results.segmentation.GetSegmentation().GetNthSegmentID(0)
        if previous is not None and previous.GetAttribute(FOUND_ATTRIBUTE):
            previous.GetDisplayNode().SetVisibility(False)

    def _storePrediction(self, results):
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
        self.ui.checkLabel.text = self.logic.checkWords(node.tibia)
        self.ui.checkLabel.visible = bool(self.ui.checkLabel.text)
        self.ui.editMaskButton.enabled = node.ct is not None
        self.ui.methodDescriptionLabel.text = METHODS[node.method.value].description
        self.ui.summaryLabel.text = self.logic.summary(node.resultRecord)
        self.ui.signLabel.text = self.logic.signWords()
        self.ui.signLabel.visible = node.resultModel is not None
        self.showTable(node.resultTable)
        isSegment = node.tibia is not None and node.tibia.IsA("vtkMRMLSegmentationNode")
        self.ui.editTibiaButton.enabled = isSegment and scene.hasSegment(node.tibia, node.tibiaSegmentID)
        self.ui.measuredOpacitySlider.enabled = isSegment and node.resultModel is not None
        if node.resultModel is not None:
            if isSegment and node.tibia.GetDisplayNode() and scene.hasSegment(node.tibia, node.tibiaSegmentID):
                node.tibia.GetDisplayNode().SetSegmentOpacity3D(node.tibiaSegmentID, node.measuredOpacity)
            scene.setModelVisible(node.resultModel, True, node.predictedOpacity)
            scene.setHeatmapRange(node.resultModel, node.heatmapRange)
            scene.setHeatmapVisible(node.resultModel, node.heatmapVisible)

    def onEditTibiaButton(self, checked=False):
        """Open the Segment Editor on the tibia."""
        self._editSegment(self._parameterNode.tibia, self._parameterNode.tibiaSegmentID)

    def onEditMaskButton(self, checked=False):
        """Open the Segment Editor on the mask."""
        node = self._parameterNode
        fracture, segmentID = self.logic.prepareMask(node.ct, node.fracture, node.fractureSegmentID)
        node.fracture = fracture
        node.fractureSegmentID = segmentID
        self._editSegment(fracture, segmentID)

    def _editSegment(self, segmentation, segmentID):
        ct = self._parameterNode.ct  # the module that is left has no parameter node
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(segmentation)
        editor.setSourceVolumeNode(ct)
        editor.setCurrentSegmentID(segmentID)


@dataclass
class CompletionResults:
    """Nodes of one prediction, all named PREDICTED; `record` keeps inputs, settings, versions and warnings (JSON)."""

    segmentation: slicer.vtkMRMLSegmentationNode
    model: slicer.vtkMRMLModelNode
    transform: slicer.vtkMRMLTransformNode
    table: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode


@dataclass
class FoundTibiae:
    """Nodes of one search: a segment for each tibia, right before left; `record` keeps figures and versions (JSON)."""

    segmentation: slicer.vtkMRMLSegmentationNode
    record: slicer.vtkMRMLTextNode


class TibiaCompletionLogic(ScriptedLoadableModuleLogic):
    """Completion without a panel; a bone or mask is a pair (node, segment ID or "").

    The context of a completion is a dict of bones that help: "fibula", "femur" and "talus" of the same leg
    (segmentation or labelmap) and "other_tibia", the other leg's healthy one (model, too).
    """

    def getParameterNode(self):
        return TibiaCompletionParameterNode(super().getParameterNode())

    @staticmethod
    def signWords():
        """What the sign and the grey of the heatmap mean."""
        return _("Heatmap in mm. Positive: the prediction lies outside the visible bone; negative: inside it; "
                 "grey: no visible bone to compare with.")

    @staticmethod
    def checkWords(tibia):
        """What to do with a tibia that was found and not drawn; "" for any other node."""
        if tibia is None or not tibia.GetAttribute(FOUND_ATTRIBUTE):
            return ""
        text = _("This tibia was found automatically and is a proposal: look at it in all slices and correct it "
                 "(\"Edit tibia\") before you use it.")
        if tibia.GetSegmentation().GetNumberOfSegments() > 1:
            text = _("Both tibiae were found: select the segment of the fractured one.") + " " + text
        return text

    @staticmethod
    def inPanelWords(sentence):
        """A sentence of the command line with the panel's control in place of the option that it names."""
        return sentence.replace("--beyond-scan", _("\"Predict past the scan's end\""))

    @staticmethod
    def sideQuestion(side):
        """What to ask when the given side, "left" or "right", contradicts the shape."""
        words = {"left": _("left"), "right": _("right")}
        given = words.pop(side)
        (shape,) = words.values()
        text = _("The shape is that of a {shape} tibia, but it is given as a {given} one. The image may be mirrored or "
                 "the side wrong: check both.\n\nPredict it as a {given} tibia all the same?")
        return text.format(shape=shape, given=given)

    @staticmethod
    def givenSide(tibia, side="auto"):
        """The side to hold the shape against: the chosen one, else what the tibia's terms and name say.

        Args:
            tibia: (segmentation or labelmap node, segment ID).
            side: "left", "right" or "auto".

        Returns:
            "left", "right", or "auto" where nothing says it or terms and name disagree.
        """
        if side != "auto":
            return side
        (node, segmentID), said = tibia, set()
        name = node.GetName()
        if node.IsA("vtkMRMLSegmentationNode") and scene.hasSegment(node, segmentID):
            segment = node.GetSegmentation().GetSegment(segmentID)
            name, terms = segment.GetName(), segment.GetTerminology().split("~")
            said = {word for word in SIDES if scene.SIDE_CODES[word] in terms}
        said |= {named_side(f":{name}")} - {None}
        return said.pop() if len(said) == 1 else "auto"

    @staticmethod
    def summary(recordNode):
        """Side, method, model and warnings of a prediction in words."""
        if recordNode is None:
            return _("No prediction yet.")
        record = json.loads(recordNode.GetText())
        text = _("PREDICTED from the {side} tibia by {method}, model {model} {version}. Not for clinical use.")
        lines = [text.format(side=record["side"], method=record["method"], model=record["model"]["id"],
                             version=record["model"]["version"])]
        warnings = [TibiaCompletionLogic.inPanelWords(text) for text in record["warnings"]]
        return "\n".join(lines + [_("Warning: {warning}").format(warning=text) for text in warnings])

    @staticmethod
    def reasonNotToComplete(ct, tibia, fracture, context=None):
        """Why the completion cannot run, as a sentence, or "" if it can; looks at no voxels and no points."""
        if ct is None:
            return _("Select the CT.")
        missing = {"tibia": _("Select the fractured tibia."),
                   "fracture": _("Select the fracture mask, or press \"Edit mask\".")}
        names = {"tibia": _("tibia"), "fracture": _("fracture mask"), "fibula": _("fibula"), "femur": _("femur"),
                 "talus": _("talus"), "other_tibia": _("other leg's tibia")}
        bones = {"tibia": tibia, "fracture": fracture} | (context or {})
        for name, (node, segmentID) in bones.items():
            if node is None:
                return missing[name]
            if node.IsA("vtkMRMLSegmentationNode") and not scene.hasSegment(node, segmentID):
                return _("\"{name}\" has no segment: add one or select another.").format(name=node.GetName())
            if node is ct:
                return _("The CT is also selected as {bone}: select another CT.").format(bone=names[name])
        for (first, (node, segmentID)), (second, (other, otherID)) in itertools.combinations(bones.items(), 2):
            if node is other and (segmentID == otherID or not node.IsA("vtkMRMLSegmentationNode")):
                return _("The {second} is the {first} itself: select another one.").format(
                    first=names[first], second=names[second])
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

    def startFinding(self, ct, side="auto", onProgress=None, onFinished=None):
        """Start `bonerecon find-tibia` in a process of its own.

        Args:
            ct: scalar volume node, HU.
            side: "left", "right" or "auto" for every tibia that is there.
            onProgress, onFinished: see scenejob.SceneJob.

        Returns:
            The running SceneJob; after success its `results` are FoundTibiae.

        Raises:
            InputError: the CT cannot be read out of the scene; nothing was started.
        """
        job = scene.makeJob(functools.partial(self._importFound, ct), onProgress, onFinished)
        try:
            job.start("find-tibia", "--side", side, "--ct", self._writeCT(job, ct))
        except BaseException:
            job.discard()
            raise
        return job

    def findTibia(self, ct, side="auto", timeoutS=600.0):
        """Find the tibiae of a CT and wait for the result, FoundTibiae; no dialogs. Arguments as startFinding.

        Raises:
            InputError: the CT cannot be read out of the scene.
            RuntimeError: the job found none, failed or took longer than timeoutS seconds.
        """
        return self.startFinding(ct, side).finish(timeoutS)

    @staticmethod
    def _writeCT(job, ct):
        # .nii is not compressed: a CT is written in a second instead of ten.
        path = job.folder / "ct.nii"
        write_volume(path, scene.volumeFromNode(ct))
        return path

    def _importFound(self, ct, output):
        record = json.loads((output / RESULT).read_text(encoding="utf-8"))
        labels = read_volume(output / "tibiae.nii.gz")
        names = {"right": _("Right tibia"), "left": _("Left tibia")}
        with scene.importing(ct, _("Tibia (found)")):
            segmentation = scene.addSegmentation(_("Tibia (found)"), ct)
            segmentation.SetAttribute(FOUND_ATTRIBUTE, "1")
            for found in record["found"]:
                mask = Volume(labels.array == found["label"], labels.ijk_to_ras)
                scene.addSegment(segmentation, mask, names[found["side"]], FOUND_COLOR, "tibia", found["side"])
            segmentation.CreateClosedSurfaceRepresentation()
            recordNode = scene.recordFromJson(output / RESULT, _("Tibia (found) record"), {"ct": (ct, "")})
            segmentation.SetNodeReferenceID("BoneReconstruction.Record", recordNode.GetID())
        return FoundTibiae(segmentation, recordNode)

    def startCompletion(
        self, ct, tibia, fracture, side="auto", method=DEFAULT_METHOD, context=None, fixedPiece=1, beyondScan=False,
        acceptSide=False, onProgress=None, onFinished=None
    ):
        """Start `bonerecon complete-tibia` in a process of its own.

        Args:
            ct: scalar volume node, HU.
            tibia: (segmentation or labelmap node, segment ID).
            fracture: (segmentation, labelmap or ROI node, segment ID).
            side: "left", "right" or "auto": what the tibia's terms or name say, else by its shape.
            method: a name of METHODS.
            context: further bones by name, see the class.
            fixedPiece: number of the visible piece that lies where it belongs, counted from the largest, 1.
            beyondScan: whether the model goes on where the scan ends.
            acceptSide: keep a side although the shape is clearly the other's.
            onProgress, onFinished: see scenejob.SceneJob.

        Returns:
            The running SceneJob; after success its `results` are CompletionResults.

        Raises:
            InputError: an input that cannot be read out of the scene; nothing was started.
        """
        bones = {"tibia": tibia, "fracture": fracture} | (context or {})
        job = scene.makeJob(functools.partial(self._importResults, {"ct": (ct, "")} | bones), onProgress, onFinished)
        try:
            arguments = ["complete-tibia", "--side", self.givenSide(tibia, side), "--method", method,
                         "--fixed-piece", fixedPiece, "--ct", self._writeCT(job, ct)]
            for name, bone in bones.items():
                arguments += [f"--{name.replace('_', '-')}", scene.writeBone(job.folder / name, *bone)]
            arguments += ["--beyond-scan"] * beyondScan + ["--accept-side"] * acceptSide
            job.start(*arguments)
        except BaseException:
            job.discard()
            raise
        return job

    def complete(
        self, ct, tibia, fracture, side="auto", method=DEFAULT_METHOD, context=None, fixedPiece=1, beyondScan=False,
        acceptSide=False, timeoutS=600.0
    ):
        """Predict and wait for the result; no dialogs. Arguments as startCompletion.

        Returns:
            CompletionResults.

        Raises:
            InputError: an input cannot be read out of the scene.
            RuntimeError: the job refused its input, such as a side that the shape contradicts unless acceptSide is
                set, failed or took longer than timeoutS seconds.
        """
        return self.startCompletion(
            ct, tibia, fracture, side, method, context, fixedPiece, beyondScan, acceptSide).finish(timeoutS)

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
    """Self-test: the prior's mean leg in an oblique CT, a gap in its tibia's shaft, through the jobs and back."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        self.setUp()
        self.test_GapInShaft()
        self.setUp()
        self.test_FindTibia()

    @staticmethod
    def makePatient():
        """A plain CT of the mean right leg, turned by 20 degrees, with 40 mm of its tibia's shaft fractured.

        Returns:
            (CT node, segmentation node, {"tibia", "mask" or "fibula": segment ID}, true tibia as bool Volume).
        """
        from BoneReconstructionLib.frames import rotation_about, transform_points
        from BoneReconstructionLib.meshing import voxelize
        from BoneReconstructionLib.shapeprior import load_leg_prior
        from BoneReconstructionLib.surfaces import Surface

        prior = load_leg_prior("tibia-prior")
        rasFromStandard = np.eye(4)
        rasFromStandard[:3, :3] = rotation_about((1.0, 0.0, 0.0), np.deg2rad(20))
        rasFromStandard[:3, 3] = 80, -40, 30
        vertices = transform_points(rasFromStandard, prior.mean)
        spacing, margin = np.array([1.0, 1.0, 2.0]), 8.0
        shape = np.ceil((np.ptp(vertices, axis=0) + 2 * margin) / spacing).astype(int)[::-1]
        ijkToRas = np.diag([*spacing, 1.0])
        ijkToRas[:3, 3] = vertices.min(axis=0) - margin
        tibia, fibula = (voxelize(Surface(vertices, prior.faces[prior.part[prior.faces[:, 0]] == part]), tuple(shape),
                                  ijkToRas) for part in (0, 1))
        middle = slice(shape[0] // 2 - 10, shape[0] // 2 + 10)
        mask = tibia.array.copy()
        mask[:middle.start] = mask[middle.stop:] = False
        visible = tibia.array & ~mask
        hounsfield = np.where(visible | fibula.array, 900, 40).astype(np.int16)
        ct = scene.volumeToNode(Volume(hounsfield, ijkToRas), "CT")
        segmentation = scene.addSegmentation("Patient", ct)
        segments = {name: scene.addSegment(segmentation, Volume(array, ijkToRas), title, color, bone, "right")
                    for name, array, title, color, bone in (
                        ("tibia", visible, "Tibia", (0.9, 0.8, 0.6), "tibia"),
                        ("mask", mask, "Fracture mask", MASK_COLOR, "tibia"),
                        ("fibula", fibula.array, "Fibula", (0.8, 0.8, 0.7), "fibula"))}
        return ct, segmentation, segments, tibia

    @staticmethod
    def dice(segmentation, truth):
        """Dice of a segmentation's first segment and the truth, a bool Volume."""
        segmentID = segmentation.GetSegmentation().GetNthSegmentID(0)
        found = scene.maskInGeometry(scene.segmentMask(segmentation, segmentID), truth).array
        return 2 * np.count_nonzero(found & truth.array) / (found.sum() + truth.array.sum())

    def test_GapInShaft(self):
        self.delayDisplay("Completing a tibia with a gap in its shaft")
        ct, segmentation, segments, truth = self.makePatient()
        logic = TibiaCompletionLogic()
        mask = segmentation, segments["mask"]
        with self.assertRaises(InputError):
            logic.complete(ct, (segmentation, "no such segment"), mask, "right")
        results = logic.complete(ct, (segmentation, segments["tibia"]), mask, "right",
                                 context={"fibula": (segmentation, segments["fibula"])})
        self.assertIn("PREDICTED", results.segmentation.GetSegmentation().GetNthSegment(0).GetName())
        self.assertGreater(self.dice(results.segmentation, truth), 0.95)
        self.delayDisplay("Test passed")

    def test_FindTibia(self):
        self.delayDisplay("Finding a tibia in a CT")
        ct, segmentation, segments, _truth = self.makePatient()
        found = TibiaCompletionLogic().findTibia(ct).segmentation
        self.assertEqual(TibiaCompletionLogic.givenSide((found, found.GetSegmentation().GetNthSegmentID(0))), "right")
        self.assertGreater(self.dice(found, scene.segmentMask(segmentation, segments["tibia"])), 0.9)
        self.delayDisplay("Test passed")
