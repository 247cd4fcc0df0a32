"""Module TibiaCompletion: the healthy shape of a fractured tibia, predicted from its CT."""

import enum
import functools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import qt
import slicer
import vtk
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
from BoneReconstructionLib.tibiameasurements import DEFINITIONS
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.completion import DEFAULT_METHOD, METHODS
from TibiaCompletionLib.scene import exporting, fragments, inputs, layouts, predictions, samples, words

# The command line's refusal of a given side that the shape contradicts names the option that overrules it.
SIDE_REFUSAL = "--accept-side"
# Of the PREDICTED and of the measured bone: alone, and around fragments that take the measured bone's place.
OPACITIES, PLANNING_OPACITIES = (1.0, 0.3), (0.3, 0.0)
FOLLOW_MS = 10  # after a fragment moved, its figures follow


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
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        """Offer the virtual patients in the module Sample Data."""
        import SampleData

        for name in samples.SAMPLES:
            SampleData.SampleDataLogic.registerCustomSampleDataSource(
                category=_("Bone Reconstruction"), sampleName=name, uris="", fileNames=name, nodeNames=name,
                thumbnailFileName=self.resourcePath("Icons/TibiaCompletion.png"), customDownloader=self.makeSample)

    @staticmethod
    def makeSample(source):
        """Make the virtual patient of a sample data source; returns its nodes, the CT first, none if it failed."""
        try:
            with slicer.util.WaitCursor():
                return samples.makeSample(source.sampleName)
        except RuntimeError as error:
            slicer.util.errorDisplay(str(error), windowTitle=_("Tibia Completion"))
            return []


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


class _ShownBase(enum.Enum):
    def label(self):
        titles = {"none": _("nothing"), "all": _("all lines, angles and planes")}
        return titles.get(self.value) or DEFINITIONS[self.value].title


ShownMeasurement = _ShownBase("ShownMeasurement", {name.upper(): name for name in ("none", "all", *DEFINITIONS)},
                              module=__name__)
Method = _MethodBase("Method", {name.upper().replace("-", "_"): name for name in METHODS}, module=__name__)


class FragmentHeatmap(enum.Enum):
    """What fragments are coloured by."""

    NONE = "none"
    STEP = "step"
    GAP = "gap"

    def label(self):
        return {FragmentHeatmap.NONE: _("none"), FragmentHeatmap.STEP: _("step in the joint"),
                FragmentHeatmap.GAP: _("gap below the joint")}[self]


@dataclass(frozen=True)
class SideJob:
    """A job beside the prediction: its button becomes Cancel while it runs, and its label says how it goes."""

    button: str
    label: str
    text: str
    toolTip: str


SIDE_JOBS = {
    "finding": SideJob("findButton", "findingLabel", _("Find tibia"), _(
        "Find the tibia of the chosen side, or with \"Automatic\" every tibia, in the CT and segment it as a proposal, "
        "in a process of its own; the window stays free.")),
    "suggesting": SideJob("suggestMaskButton", "maskStateLabel", _("Suggest mask"), _(
        "Propose a mask around the fracture lines between the tibia's fragments, in a process of its own; look at it "
        "and correct it with \"Edit mask\".")),
    "splitting": SideJob("splitButton", "fragmentsStateLabel", _("Split tibia"), _(
        "Split the tibia into its fragments as a proposal, in a process of its own; correct it with \"Edit "
        "fragments\".")),
    "reducing": SideJob("reduceButton", "fragmentsStateLabel", _("Bring to PREDICTED bone"), _(
        "Compute where each fragment fits the PREDICTED bone and its neighbours, in a process of its own.")),
}


@parameterNodeWrapper
class TibiaCompletionParameterNode:
    """What the panel asks for, saved with the scene.

    Attributes:
        ct: HU.
        side: which leg; sideCT: the CT that it was chosen for, another one's is told anew.
        tibia: the measured tibia, segmentation (with the segment's ID) or labelmap.
        fracture: where it is not to be trusted, segmentation (with ID), labelmap or ROI.
        fibula, femur, talus: bones of the same leg that say where the joints are; None: not used.
        otherTibia: the other leg's healthy tibia, also as model; None: not used.
        fixedPiece: number of the visible piece that fixes the pose, counted from the largest, 1.
        beyondScan: whether the model goes on where the scan ends.
        heatmapRange: colours run from minus to plus this distance, mm.
        deviationVisible: the heatmap shows the standard deviation instead; deviationRange: its colours' end, mm.
        predictedOpacity, measuredOpacity: 0 to 1.
        fragments: of the tibia, a segment or label each; None: the tibia is split automatically.
        fragmentHeatmap, fragmentRange: what fragments are coloured by, from minus to plus this distance, mm.
        shownMeasurement: whose lines, angles and planes are drawn.
        resultSegmentation, resultModel, resultTable, resultMeasurements, resultRecord: the prediction of this CT that
            is shown; without measurements where a joint end is not seen.
    """

    ct: slicer.vtkMRMLScalarVolumeNode
    tibia: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    tibiaSegmentID: str
    side: Side = Side.AUTO
    sideCT: slicer.vtkMRMLScalarVolumeNode
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
    deviationVisible: bool = False
    deviationRange: Annotated[float, WithinRange(0.1, 20.0)] = 3.0
    predictedOpacity: Annotated[float, WithinRange(0.0, 1.0)] = OPACITIES[0]
    measuredOpacity: Annotated[float, WithinRange(0.0, 1.0)] = OPACITIES[1]
    fragments: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    fragmentHeatmap: FragmentHeatmap = FragmentHeatmap.NONE
    fragmentRange: Annotated[float, WithinRange(0.1, 20.0)] = 3.0
    shownMeasurement: ShownMeasurement = ShownMeasurement.NONE
    resultSegmentation: slicer.vtkMRMLSegmentationNode
    resultModel: slicer.vtkMRMLModelNode
    resultTable: slicer.vtkMRMLTableNode
    resultMeasurements: slicer.vtkMRMLTableNode
    resultRecord: slicer.vtkMRMLTextNode


class TibiaCompletionWidget(JobPanelWidget):
    """Panel of the completion, in the order of the work.

    One job runs at a time, a prediction or one of SIDE_JOBS; Apply and the job's own button cancel it.
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
        self._kind = ""
        self._startedFor = None
        self._live = None

    def setup(self):
        """Build the panel."""
        JobPanelWidget.setup(self)
        self.ui.findButton.connect("clicked(bool)", self.onFindButton)
        self.ui.suggestMaskButton.connect("clicked(bool)", self.onSuggestMaskButton)
        self.ui.splitButton.connect("clicked(bool)", self.onSplitButton)
        self.ui.reduceButton.connect("clicked(bool)", self.onReduceButton)
        self.ui.editFragmentsButton.connect("clicked(bool)", self.onEditFragmentsButton)
        self.ui.fragmentSelector.connect("currentIndexChanged(int)", self.onFragmentSelected)
        self.ui.lockCheckBox.connect("toggled(bool)", self.onLockToggled)
        self.ui.resetFragmentButton.connect("clicked(bool)", self.onResetFragmentButton)
        self.ui.inCTButton.connect("clicked(bool)", self.onInCTButton)
        self.ui.undoButton.connect("clicked(bool)", self.onUndoButton)
        self.ui.heatmapCheckBox.connect("toggled(bool)", self.onHeatmapToggled)
        self.ui.deviationCheckBox.connect("toggled(bool)", self.onDeviationToggled)
        self.ui.editTibiaButton.connect("clicked(bool)", self.onEditTibiaButton)
        self.ui.editMaskButton.connect("clicked(bool)", self.onEditMaskButton)
        self.ui.boxMaskButton.connect("clicked(bool)", self.onBoxMaskButton)
        self.ui.confirmSideButton.connect("clicked(bool)", self.onConfirmSideButton)
        self.ui.slicesButton.connect("clicked(bool)", self.onSlicesButton)
        self.ui.beforeAfterButton.connect("clicked(bool)", self.onBeforeAfterButton)
        self.ui.identityCheckBox.connect("toggled(bool)", self.onIdentityToggled)
        self.ui.outputButton.connect("clicked(bool)", self.onOutputButton)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        self._followTimer = qt.QTimer()
        self._followTimer.setSingleShot(True)
        self._followTimer.setInterval(FOLLOW_MS)
        self._followTimer.connect("timeout()", self.onFragmentsMoved)
        self.onIdentityToggled(False)
        self._sayNothing()

    def makeLogic(self):
        return TibiaCompletionLogic()

    def onSceneEndClose(self, caller, event):
        """Called just after the scene was closed."""
        self._sayNothing()
        self.ui.outputLabel.text = ""
        self.ui.identityCheckBox.checked = False
        JobPanelWidget.onSceneEndClose(self, caller, event)

    def onSceneStartClose(self, caller, event):
        """Called just before the scene closes."""
        JobPanelWidget.onSceneStartClose(self, caller, event)
        self._letGoOfPlan()

    def cleanup(self):
        """Called when the panel is destroyed."""
        self._letGoOfPlan()
        JobPanelWidget.cleanup(self)

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
        return inputs.reasonNotToComplete(node.ct, (node.tibia, node.tibiaSegmentID),
                                          (node.fracture, node.fractureSegmentID), self._context())

    def _context(self):
        node = self._parameterNode
        bones = {"fibula": (node.fibula, node.fibulaSegmentID), "femur": (node.femur, node.femurSegmentID),
                 "talus": (node.talus, node.talusSegmentID),
                 "other_tibia": (node.otherTibia, node.otherTibiaSegmentID)}
        return {name: bone for name, bone in bones.items() if bone[0] is not None}

    def _checkCanApply(self, caller=None, event=None):
        JobPanelWidget._checkCanApply(self)
        node = self._parameterNode
        hasTibia = node.ct is not None and node.tibia is not None and scene.hasMask(node.tibia, node.tibiaSegmentID)
        ready = {"finding": node.ct is not None, "suggesting": hasTibia, "splitting": hasTibia,
                 "reducing": node.resultModel is not None}
        for kind, job in SIDE_JOBS.items():
            button = getattr(self.ui, job.button)
            if self.job is not None and self._kind == kind:
                button.text, button.toolTip, button.enabled = _("Cancel"), self.ui.applyButton.toolTip, True
            else:
                button.text, button.toolTip, button.enabled = job.text, job.toolTip, self.job is None and ready[kind]

    def onApplyButton(self, checked=False):
        """Apply, or Cancel while a job runs."""
        self._run(self._startPrediction)

    def onFindButton(self, checked=False):
        """Find the tibia, or Cancel while it is being found."""
        node = self._parameterNode
        self._runBeside("finding", functools.partial(inputs.startFinding, node.ct, node.side.value))

    def onSuggestMaskButton(self, checked=False):
        """Suggest a mask, or Cancel."""
        node = self._parameterNode
        self._runBeside("suggesting", functools.partial(
            inputs.startSuggesting, node.ct, (node.tibia, node.tibiaSegmentID)))

    def onSplitButton(self, checked=False):
        """Split the tibia into fragments, or Cancel."""
        node = self._parameterNode
        self._runBeside("splitting", functools.partial(
            fragments.startSplitting, node.ct, (node.tibia, node.tibiaSegmentID),
            (node.fracture, node.fractureSegmentID)))

    def onReduceButton(self, checked=False):
        """Bring the fragments to the prediction, or Cancel."""
        node = self._parameterNode
        self._runBeside("reducing", functools.partial(
            fragments.startReduction, predictions.fromRecord(node.resultRecord), node.fragments))

    def _runBeside(self, kind, start):
        self._run(functools.partial(self._startBeside, kind, start))
        self._say(kind, self.ui.statusLabel.text)
        self._checkCanApply()

    def _startBeside(self, kind, start):
        self._kind, self._startedFor = kind, self._parameterNode.ct
        return start(onProgress=functools.partial(self.onBesideProgress, kind),
                     onFinished=functools.partial(self.onBesideFinished, kind))

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
            "side": inputs.givenSide(tibia, node.side.value), "method": node.method.value,
            "context": self._context(), "fixedPiece": node.fixedPiece, "beyondScan": node.beyondScan}
        return self._startRequest()

    def _startRequest(self, acceptSide=False):
        self._kind = "predicting"
        return predictions.startCompletion(**self._request, acceptSide=acceptSide, onProgress=self.onProgress,
                                           onFinished=self.onPredictionFinished)

    def onPredictionFinished(self, state, message):
        """The prediction ended; a side that the shape contradicts becomes a question."""
        refused = state == "failed" and SIDE_REFUSAL in message
        self.onJobFinished("cancelled" if refused else state, words.inPanelWords(message))
        if refused and slicer.util.confirmYesNoDisplay(words.sideQuestion(self._request["side"]),
                                                       _("Tibia Completion")):
            # What was asked about is predicted, even if the panel shows something else by now.
            self._run(functools.partial(self._startRequest, acceptSide=True))
        else:
            self._request = None

    def onBesideProgress(self, kind, stage, progress, remaining):
        """A job of SIDE_JOBS reported."""
        self.onProgress(stage, progress, remaining)
        self._say(kind, self.ui.statusLabel.text)

    def onBesideFinished(self, kind, state, message):
        """A job of SIDE_JOBS ended."""
        self.onJobFinished(state, message)
        self._say(kind, {"succeeded": "", "cancelled": _("Cancelled; the scene is as it was.")}.get(
            state, _("Failed: {message}").format(message=message)))

    def _say(self, kind, text):
        label = getattr(self.ui, SIDE_JOBS[kind].label)
        label.text = text
        label.visible = bool(text)

    def _sayNothing(self):
        for kind in SIDE_JOBS:
            self._say(kind, "")

    def storeResults(self, results):
        store = {inputs.FoundTibiae: self._storeFound, inputs.SuggestedMask: self._storeMask,
                 fragments.FoundFragments: self._storeFragments, fragments.Plan: self._storePlan,
                 predictions.Prediction: self._storeNewPrediction}
        node = self._parameterNode or self.logic.getParameterNode()
        # What another CT than the selected one was looked through for is kept, but not shown: patients are never mixed.
        if isinstance(results, predictions.Prediction) or node.ct is self._startedFor:
            store[type(results)](results)
        elif isinstance(results, fragments.Plan):
            fragments.setVisible(results, False)
        else:
            results.segmentation.GetDisplayNode().SetVisibility(False)

    def _storeFound(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        previous = node.tibia
        with slicer.util.NodeModify(node):
            node.tibia = results.segmentation
            node.tibiaSegmentID = results.segmentation.GetSegmentation().GetNthSegmentID(0)
        if previous is not None and previous.GetAttribute(inputs.FOUND_ATTRIBUTE):
            previous.GetDisplayNode().SetVisibility(False)

    def _storeMask(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        with slicer.util.NodeModify(node):
            node.fracture, node.fractureSegmentID = results.segmentation, results.segmentID

    def _storeFragments(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        node.fragments = results.segmentation

    def _storePlan(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        # The fragments take the place of the bone as it lies in the CT, within the PREDICTED one.
        with slicer.util.NodeModify(node):
            node.predictedOpacity, node.measuredOpacity = PLANNING_OPACITIES

    def _storeNewPrediction(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        with slicer.util.NodeModify(node):
            self._storePrediction(results)
            node.predictedOpacity, node.measuredOpacity = OPACITIES

    def _storePrediction(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        previous = predictions.fromRecord(node.resultRecord)
        if previous is not None and previous.record is not (results and results.record):
            predictions.hide(previous)
        with slicer.util.NodeModify(node):
            for name, result in (("Segmentation", "segmentation"), ("Model", "model"), ("Table", "table"),
                                 ("Measurements", "measurements"), ("Record", "record")):
                node.setValue(f"result{name}", results and getattr(results, result))
        self.ui.outputLabel.text = ""

    def _onParameterNodeModified(self, caller=None, event=None):
        self._followCT()
        JobPanelWidget._onParameterNodeModified(self, caller, event)

    def _followCT(self):
        """Show the prediction and ask for the side of the CT that is selected, so that two patients are never mixed."""
        node = self._parameterNode
        if node.ct is None or slicer.mrmlScene.IsImporting():
            return
        if node.sideCT is not node.ct:
            known, node.sideCT = node.sideCT, node.ct
            if known is not None:
                node.side = Side.AUTO
        shown = predictions.fromRecord(node.resultRecord)
        if shown is None or shown.ct is not node.ct:
            results = predictions.newestOf(node.ct)
            if (results and results.record) is not node.resultRecord:
                self._storePrediction(results)
                if results is not None:
                    results.segmentation.GetDisplayNode().SetVisibility(True)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node):
        """Lines, angles and planes go with the prediction that they were read from; a plan needs all its nodes."""
        if slicer.mrmlScene.IsClosing():
            return
        if node.IsA("vtkMRMLModelNode"):
            predictions.removeMarkupsOf(node)
        if self._live is not None and self._live.plan.holds(node):
            self._letGoOfPlan()

    def _followPlan(self):
        """Show the fragments of the prediction that is shown, and let their figures follow their transforms."""
        if slicer.mrmlScene.IsImporting():
            return  # models and transforms are not joined yet
        plan = fragments.newestFor(predictions.fromRecord(self._parameterNode.resultRecord))
        if (plan and plan.record) is not (self._live and self._live.plan.record):
            self._letGoOfPlan()
            if plan is not None:
                self._live = fragments.LivePlan(plan)
                for transform in plan.transforms:
                    self.addObserver(transform, slicer.vtkMRMLTransformNode.TransformModifiedEvent, self.onFragmentMoving)
                fragments.setVisible(plan, True)
                for name in plan.names:
                    self.ui.fragmentSelector.addItem(name)
        self._showPlan()

    def _letGoOfPlan(self):
        if self._live is not None:
            plan, self._live = self._live.plan, None
            self.ui.fragmentSelector.clear()
            self._followTimer.stop()
            self.removeObservers(self.onFragmentMoving)
            if not slicer.mrmlScene.IsClosing():
                fragments.setVisible(plan, False)

    def _showPlan(self):
        ui, live = self.ui, self._live
        for name in ("fragmentSelector", "lockCheckBox", "resetFragmentButton", "inCTButton", "fragmentHeatmapSelector",
                     "fragmentRangeSlider"):
            getattr(ui, name).enabled = live is not None
        ui.undoButton.enabled = live is not None and live.canUndo
        ui.fragmentsTableView.visible = live is not None
        table = live.plan.table if live is not None else None
        if ui.fragmentsTableView.mrmlTableNode() is not table:
            ui.fragmentsTableView.setMRMLTableNode(table)
            ui.fragmentsTableView.resizeColumnsToContents()
        if live is None or ui.fragmentSelector.currentIndex < 0:
            return
        locked = fragments.isLocked(live.plan, ui.fragmentSelector.currentIndex)
        ui.lockCheckBox.checked = locked
        ui.resetFragmentButton.enabled = ui.inCTButton.enabled = not locked
        fragments.showHandles(live.plan, ui.fragmentSelector.currentIndex)
        node = self._parameterNode
        if node is not None:
            fragments.showHeatmap(live.plan, node.fragmentHeatmap.value, node.fragmentRange)

    def onFragmentMoving(self, caller, event):
        """A transform of a fragment changed, perhaps one of many changes: figures follow soon."""
        if not self._followTimer.isActive():
            self._followTimer.start()

    def onFragmentsMoved(self):
        """Let the figures follow."""
        if self._live is not None:
            self._live.follow()
            self.ui.undoButton.enabled = self._live.canUndo

    def onFragmentSelected(self, index):
        """Another fragment was selected."""
        self._showPlan()

    def onLockToggled(self, checked):
        """Lock the selected fragment or let it go."""
        if self._live is not None and self.ui.fragmentSelector.currentIndex >= 0:
            fragments.setLocked(self._live.plan, self.ui.fragmentSelector.currentIndex, checked)
            self._showPlan()

    def onResetFragmentButton(self, checked=False):
        """Bring the selected fragment to its planned place."""
        number = self.ui.fragmentSelector.currentIndex
        self._live.move(number, self._live.plan.planned[number])
        self._showPlan()

    def onInCTButton(self, checked=False):
        """Bring the selected fragment to where it lies in the CT."""
        self._live.move(self.ui.fragmentSelector.currentIndex, np.eye(4))
        self._showPlan()

    def onUndoButton(self, checked=False):
        """Take the last movement back."""
        self._live.undo()
        self._showPlan()

    def onEditFragmentsButton(self, checked=False):
        """Open the Segment Editor on the fragments."""
        segmentation = self._parameterNode.fragments
        self._editSegment(segmentation, segmentation.GetSegmentation().GetNthSegmentID(0))

    def onHeatmapToggled(self, checked):
        """A bone shows one heatmap."""
        self._showHeatmap("heatmapVisible", "deviationVisible", checked)

    def onDeviationToggled(self, checked):
        """A bone shows one heatmap."""
        self._showHeatmap("deviationVisible", "heatmapVisible", checked)

    def _showHeatmap(self, shown, other, checked):
        if checked and self._parameterNode:
            with slicer.util.NodeModify(self._parameterNode):
                self._parameterNode.setValue(shown, True)
                self._parameterNode.setValue(other, False)

    def updateDisplay(self):
        node = self._parameterNode
        self.ui.checkLabel.text = words.checkWords(node.tibia)
        self.ui.checkLabel.visible = bool(self.ui.checkLabel.text)
        self._showSide()
        self.ui.editMaskButton.enabled = node.ct is not None
        self.ui.boxMaskButton.enabled = node.tibia is not None
        self.ui.timeLabel.text = words.timeWords()
        self.ui.methodDescriptionLabel.text = METHODS[node.method.value].description
        self.ui.summaryLabel.text = words.summary(node.resultRecord)
        self.ui.signLabel.text = words.signWords()
        self.ui.signLabel.visible = node.resultModel is not None
        self.showTable(node.resultTable)
        self._showMeasurements()
        self.ui.confidenceLabel.text = words.confidenceWords(node.resultRecord)
        hasViews = node.resultModel is not None and slicer.app.layoutManager() is not None
        self.ui.slicesButton.enabled = self.ui.beforeAfterButton.enabled = hasViews
        self.ui.outputButton.enabled = node.resultModel is not None
        isSegment = node.tibia is not None and node.tibia.IsA("vtkMRMLSegmentationNode")
        self.ui.editTibiaButton.enabled = isSegment and scene.hasSegment(node.tibia, node.tibiaSegmentID)
        self.ui.measuredOpacitySlider.enabled = isSegment and node.resultModel is not None
        if node.resultModel is not None:
            if isSegment and node.tibia.GetDisplayNode() and scene.hasSegment(node.tibia, node.tibiaSegmentID):
                node.tibia.GetDisplayNode().SetSegmentOpacity3D(node.tibiaSegmentID, node.measuredOpacity)
            scene.setModelVisible(node.resultModel, True, node.predictedOpacity)
            if node.deviationVisible and predictions.hasDeviations(node.resultModel):
                predictions.showDeviations(node.resultModel, node.deviationRange)
            else:
                predictions.showDistances(node.resultModel, node.heatmapRange)
                scene.setHeatmapVisible(node.resultModel, node.heatmapVisible)
        hasDeviations = predictions.hasDeviations(node.resultModel)
        self.ui.deviationCheckBox.enabled = self.ui.deviationRangeSlider.enabled = hasDeviations
        isSegmentation = node.fragments is not None and node.fragments.IsA("vtkMRMLSegmentationNode")
        self.ui.editFragmentsButton.enabled = isSegmentation and node.fragments.GetSegmentation().GetNumberOfSegments() > 0
        self._followPlan()

    def _showMeasurements(self):
        node = self._parameterNode
        table = node.resultMeasurements
        self.ui.measurementsLabel.text = words.measurementsWords(node.resultRecord, table)
        self.ui.measurementsTableView.visible = table is not None
        self.ui.shownMeasurementSelector.enabled = table is not None
        if self.ui.measurementsTableView.mrmlTableNode() is not table:
            self.ui.measurementsTableView.setMRMLTableNode(table)
            self.ui.measurementsTableView.resizeColumnsToContents()
        predictions.showMarkups(predictions.fromRecord(node.resultRecord), node.shownMeasurement.value)

    def onSlicesButton(self, checked=False):
        """Slices with outlines."""
        layouts.showSlices(predictions.fromRecord(self._parameterNode.resultRecord))

    def onBeforeAfterButton(self, checked=False):
        """The bone before and after."""
        self._parameterNode.measuredOpacity = self._parameterNode.predictedOpacity = 1.0
        layouts.showBeforeAfter(predictions.fromRecord(self._parameterNode.resultRecord))

    def onIdentityToggled(self, checked):
        """Only who may be named may be given away with the scene."""
        self.ui.sceneCheckBox.enabled = checked
        if not checked:
            self.ui.sceneCheckBox.checked = False

    def onOutputButton(self, checked=False):
        """Ask for a folder and export."""
        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Export to a folder"))
        if not folder:
            return
        try:
            with slicer.util.WaitCursor():
                made = exporting.export(predictions.fromRecord(self._parameterNode.resultRecord), folder,
                                        self.ui.identityCheckBox.checked, self.ui.sceneCheckBox.checked)
            self.ui.outputLabel.text = _("Exported to {folder}").format(folder=made)
        except (InputError, OSError) as error:
            self.ui.outputLabel.text = _("Nothing was exported: {error}").format(error=error)

    def _showSide(self):
        node = self._parameterNode
        tibia = node.tibia, node.tibiaSegmentID
        detected = inputs.detectedSide(tibia, node.resultRecord)
        self.ui.sideStateLabel.text = words.sideWords(node.side.value, detected) if node.tibia is not None else ""
        self.ui.sideStateLabel.visible = bool(self.ui.sideStateLabel.text)
        self.ui.confirmSideButton.enabled = node.side == Side.AUTO and detected is not None

    def onConfirmSideButton(self, checked=False):
        """The user confirms the side that was detected."""
        node = self._parameterNode
        side, _source = inputs.detectedSide((node.tibia, node.tibiaSegmentID), node.resultRecord)
        node.side = Side(side)

    def onBoxMaskButton(self, checked=False):
        """Add a ROI as mask."""
        try:
            self._parameterNode.fracture = inputs.addBoxMask(
                (self._parameterNode.tibia, self._parameterNode.tibiaSegmentID))
        except InputError as error:
            self.ui.statusLabel.text = str(error)

    def onEditTibiaButton(self, checked=False):
        """Open the Segment Editor on the tibia."""
        self._editSegment(self._parameterNode.tibia, self._parameterNode.tibiaSegmentID)

    def onEditMaskButton(self, checked=False):
        """Open the Segment Editor on the mask."""
        node = self._parameterNode
        fracture, segmentID = inputs.prepareMask(node.ct, node.fracture, node.fractureSegmentID)
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


class TibiaCompletionLogic(ScriptedLoadableModuleLogic):
    """The module without a panel and without dialogs; a bone or mask is a pair (node, segment ID or "")."""

    def getParameterNode(self):
        return TibiaCompletionParameterNode(super().getParameterNode())

    @staticmethod
    def findTibia(ct, side="auto", timeoutS=600.0):
        """Find the tibiae of a CT and wait for the result, inputs.FoundTibiae. Arguments as inputs.startFinding.

        Raises:
            InputError: the CT cannot be read out of the scene.
            RuntimeError: the job found none, failed or took longer than timeoutS seconds.
        """
        return inputs.startFinding(ct, side).finish(timeoutS)

    @staticmethod
    def complete(ct, tibia, fracture, side="auto", timeoutS=600.0, **options):
        """Predict and wait for the result, predictions.Prediction. Arguments as predictions.startCompletion.

        Raises:
            InputError: an input cannot be read out of the scene.
            RuntimeError: the job refused its input, such as a side that the shape contradicts unless acceptSide is
                set, failed or took longer than timeoutS seconds.
        """
        return predictions.startCompletion(ct, tibia, fracture, side, **options).finish(timeoutS)

    @staticmethod
    def reduce(prediction, fragmentsNode=None, timeoutS=600.0):
        """Bring fragments to a prediction and wait for the fragments.Plan. Arguments as fragments.startReduction.

        Raises:
            InputError: an input is gone or cannot be read out of the scene.
            RuntimeError: the job refused its input, failed or took longer than timeoutS seconds.
        """
        return fragments.startReduction(prediction, fragmentsNode).finish(timeoutS)


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

        prior = load_leg_prior()
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
                        ("mask", mask, "Fracture mask", inputs.MASK_COLOR, "tibia"),
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
        self.delayDisplay("Bringing its two pieces, which lie where they should, to the prediction")
        plan = logic.reduce(results)
        self.assertEqual(len(plan.models), 2)
        for model, matrix in zip(plan.models, plan.matrices, strict=True):
            vertices = scene.surfaceFromModel(model, inWorld=False).vertices
            moved = scene.surfaceFromModel(model).vertices
            self.assertLess(np.linalg.norm(moved - vertices, axis=1).mean(), 2.0)
            self.assertAlmostEqual(np.linalg.det(matrix[:3, :3]), 1.0, places=4)
        self.delayDisplay("Test passed")

    def test_FindTibia(self):
        self.delayDisplay("Finding a tibia in a CT")
        ct, segmentation, segments, _truth = self.makePatient()
        found = TibiaCompletionLogic().findTibia(ct).segmentation
        self.assertEqual(inputs.givenSide((found, found.GetSegmentation().GetNthSegmentID(0))), "right")
        self.assertGreater(self.dice(found, scene.segmentMask(segmentation, segments["tibia"])), 0.9)
        self.delayDisplay("Test passed")
