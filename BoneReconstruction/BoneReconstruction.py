"""Module BoneReconstruction: how far two bones differ, in mm, with sign. Its base panel serves all modules."""

import enum
import functools
import json
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
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from BoneReconstructionLib import scene
from BoneReconstructionLib.comparison import SIGNED_ARRAY
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.meshing import from_polydata
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.volumes import write_volume

POLL_INTERVAL_MS = 100
CLOSING_PATIENCE_S = 15
FIRST_COLOR, SECOND_COLOR = (0.87, 0.76, 0.55), (0.55, 0.71, 0.85)


class BoneReconstruction(ScriptedLoadableModule):
    """Description of the module for Slicer's module list."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Bone Comparison")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Planning")]
        parent.contributors = ["BoneReconstruction contributors"]
        parent.helpText = _("Measures how far two bones, models or segments, differ: surface distances in mm with "
                            "sign and statistics, a heatmap with legend, a table. Not for clinical use.")
        parent.acknowledgementText = _("Distances are measured from point to triangle, as the literature defines them.")
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        """Make the extension's terms (tibia, fibula, L1-L5, sides) known to Slicer."""
        scene.loadTerminology(self.resourcePath("BoneReconstruction.term.json"))


class Alignment(enum.Enum):
    """How the bones are brought together before they are compared; values as on the command line."""

    NONE = "none"
    RIGID = "rigid"

    def label(self):
        return {Alignment.NONE: _("None"), Alignment.RIGID: _("Rigid, never scaled")}[self]


@parameterNodeWrapper
class BoneReconstructionParameterNode:
    """What the panel asks for, saved with the scene.

    Attributes:
        region: the part of the second bone that the alignment uses; None: all of it.
        heatmapRange: colours run from minus to plus this distance, mm.
        opacity: of the result models, 0 to 1.
    """

    firstBone: slicer.vtkMRMLModelNode | slicer.vtkMRMLSegmentationNode | None
    firstSegmentID: str
    secondBone: slicer.vtkMRMLModelNode | slicer.vtkMRMLSegmentationNode | None
    secondSegmentID: str
    alignment: Alignment = Alignment.NONE
    region: slicer.vtkMRMLMarkupsROINode | slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode | None
    regionSegmentID: str
    heatmapVisible: bool = True
    secondVisible: bool = False
    heatmapRange: Annotated[float, WithinRange(0.1, 20.0)] = 2.0
    opacity: Annotated[float, WithinRange(0.0, 1.0)] = 1.0
    firstResult: slicer.vtkMRMLModelNode
    secondResult: slicer.vtkMRMLModelNode
    resultTable: slicer.vtkMRMLTableNode


class JobPanelWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Panel around one background job: Apply that becomes Cancel, progress, remaining time, and why it cannot run.

    Subclasses give makeLogic, reasonNotToApply, startJob, storeResults and updateDisplay, and name:

    Attributes:
        SEGMENTS: (node parameter, segment ID parameter, name of the segment selector) of each bone or region.
        APPLY_TOOLTIP: what Apply does.
    """

    SEGMENTS = ()
    APPLY_TOOLTIP = ""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.job = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._updatingSegments = False
        self._shownReason = ""

    def setup(self):
        """Build the panel from its .ui file."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath(f"UI/{self.moduleName}.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.ui.progressBar.visible = False
        self.logic = self.makeLogic()
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_INTERVAL_MS)
        self._timer.connect("timeout()", self.onTimer)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.ui.exportButton.connect("clicked(bool)", self.onExportButton)
        for _nodeName, idName, selectorName in self.SEGMENTS:
            selector = getattr(self.ui, selectorName)
            selector.connect("currentSegmentChanged(QString)", functools.partial(self.onSegmentChanged, idName))
        self.initializeParameterNode()

    def cleanup(self):
        """Called when the panel is destroyed: end the job, observe nothing any more."""
        self.endJob()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        """Called each time the user opens the module."""
        self.initializeParameterNode()

    def exit(self):
        """Called each time the user opens another module; a running job goes on."""
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        """Called just before the scene closes: nothing may be imported into the next one."""
        self.endJob()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Called just after the scene was closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event):
        """Called after a scene was loaded."""
        scene.restoreHeatmaps()
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        """Make sure that the parameter node exists and is observed."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode):
        """Bind the panel to a parameter node, or to none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameterNodeModified)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameterNodeModified)
            self._onParameterNodeModified()

    def _onParameterNodeModified(self, caller=None, event=None):
        self._updateSegmentSelectors()
        self._checkCanApply()
        self.updateDisplay()

    def _updateSegmentSelectors(self):
        # While a scene is loaded, the segments that the settings name may not be there yet.
        if self._updatingSegments or slicer.mrmlScene.IsImporting():
            return
        self._updatingSegments = True
        for nodeName, idName, selectorName in self.SEGMENTS:
            selector = getattr(self.ui, selectorName)
            node = self._parameterNode.getValue(nodeName)
            isSegmentation = node is not None and node.IsA("vtkMRMLSegmentationNode")
            selector.visible = isSegmentation
            selector.setCurrentNode(node if isSegmentation else None)
            if isSegmentation:
                segmentID = self._parameterNode.getValue(idName)
                if scene.hasSegment(node, segmentID):
                    selector.setCurrentSegmentID(segmentID)
                elif selector.currentSegmentID():
                    self._parameterNode.setValue(idName, selector.currentSegmentID())
        self._updatingSegments = False

    def onSegmentChanged(self, idName, segmentID):
        """The user, or the scene, chose another segment."""
        if self._parameterNode and not self._updatingSegments and not slicer.mrmlScene.IsImporting():
            self._parameterNode.setValue(idName, segmentID)

    def _checkCanApply(self, caller=None, event=None):
        if self.job is not None:
            self.ui.applyButton.text = _("Cancel")
            self.ui.applyButton.toolTip = _("End the running job; the scene stays as it is.")
            return
        reason = self.reasonNotToApply()
        self.ui.applyButton.text = _("Apply")
        self.ui.applyButton.enabled = not reason
        self.ui.applyButton.toolTip = reason or self.APPLY_TOOLTIP
        if reason or self.ui.statusLabel.text == self._shownReason:
            self.ui.statusLabel.text = reason
        self._shownReason = reason

    def onApplyButton(self, checked=False):
        """Apply, or Cancel while a job runs."""
        if self.job is not None:
            self.job.cancel()
            self.ui.applyButton.enabled = False
            self.ui.statusLabel.text = _("Cancelling...")
            return
        try:
            with slicer.util.WaitCursor():
                self.job = self.startJob()
        except InputError as error:
            self.ui.statusLabel.text = str(error)
            return
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self.ui.statusLabel.text = _("Starting...")
        self._checkCanApply()
        self._timer.start()

    def onTimer(self):
        """Follow the running job."""
        if self.job is not None:
            self.job.poll()

    def onProgress(self, stage, progress, remaining):
        """The job reported: its stage, 0..1 of the whole job, remaining seconds or None."""
        if not self.ui.applyButton.enabled:
            return  # being cancelled
        self.ui.progressBar.value = round(100 * progress)
        text = _("Running: {stage}") if remaining is None else _("Running: {stage}, about {seconds} s left")
        self.ui.statusLabel.text = text.format(stage=stage, seconds=max(1, round(remaining or 0)))

    def onJobFinished(self, state, message):
        """The job ended: "succeeded", "failed" with a message, or "cancelled"."""
        job, self.job = self.job, None
        self._timer.stop()
        self.ui.progressBar.visible = False
        self.ui.statusLabel.text = {"succeeded": _("Done."), "cancelled": _("Cancelled; the scene is as it was.")}.get(
            state, _("Failed: {message}").format(message=message))
        if state == "succeeded":
            self.storeResults(job.results)
        if self._parameterNode:
            self._checkCanApply()

    def endJob(self):
        """Cancel a running job and wait for its end."""
        if self.job is not None:
            self.job.cancel()
            self.job.wait(CLOSING_PATIENCE_S)

    def showTable(self, tableNode):
        """Show the figures, or nothing."""
        self.showTableIn(self.ui.tableView, self.ui.exportButton, tableNode)

    @staticmethod
    def showTableIn(tableView, exportButton, tableNode):
        """Show a table in a view of the panel, with a button that exports it; None: nothing."""
        exportButton.enabled = tableView.visible = tableNode is not None
        if tableView.mrmlTableNode() is not tableNode:
            tableView.setMRMLTableNode(tableNode)
            tableView.resizeColumnsToContents()

    def onExportButton(self, checked=False):
        """Ask for a file and save the table of figures."""
        self.exportTable(self._parameterNode.resultTable, self.ui.statusLabel)

    def exportTable(self, tableNode, label):
        """Ask for a file, save a table, and say in a label what came of it."""
        path = qt.QFileDialog.getSaveFileName(self.parent, _("Export table"), "", _("Comma-separated values (*.csv)"))
        if path:
            try:
                scene.tableToCsv(tableNode, path)
                label.text = _("Table saved as {path}").format(path=path)
            except OSError as error:
                label.text = _("The table was not saved: {error}").format(error=error)


class BoneReconstructionWidget(JobPanelWidget):
    """Panel of the comparison."""

    SEGMENTS = (("firstBone", "firstSegmentID", "firstSegmentSelector"),
                ("secondBone", "secondSegmentID", "secondSegmentSelector"),
                ("region", "regionSegmentID", "regionSegmentSelector"))
    APPLY_TOOLTIP = _("Measure how far the first bone's surface lies from the second's, in mm.")

    def makeLogic(self):
        return BoneReconstructionLogic()

    def reasonNotToApply(self):
        node = self._parameterNode
        return self.logic.reasonNotToCompare(
            (node.firstBone, node.firstSegmentID), (node.secondBone, node.secondSegmentID),
            (node.region, node.regionSegmentID))

    def startJob(self):
        node = self._parameterNode
        region = (node.region, node.regionSegmentID) if node.alignment == Alignment.RIGID and node.region else None
        return self.logic.startComparison(
            (node.firstBone, node.firstSegmentID), (node.secondBone, node.secondSegmentID), node.alignment.value,
            region, self.onProgress, self.onJobFinished)

    def storeResults(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        previous = [model for model in (node.firstResult, node.secondResult) if model is not None]
        with slicer.util.NodeModify(node):
            node.firstResult, node.secondResult = results.firstModel, results.secondModel
            node.resultTable = results.table
        for model in previous:
            scene.setModelVisible(model, False)
        for bone, segmentID in ((node.firstBone, node.firstSegmentID), (node.secondBone, node.secondSegmentID)):
            if bone is not None:
                scene.hideIn3D(bone, segmentID)

    def updateDisplay(self):
        node = self._parameterNode
        self.ui.regionSelector.enabled = self.ui.regionSegmentSelector.enabled = node.alignment == Alignment.RIGID
        self.ui.signLabel.text = self.logic.signWords() if node.resultTable else _("No comparison yet.")
        self.showTable(node.resultTable)
        for model, visible in ((node.firstResult, True), (node.secondResult, node.secondVisible)):
            if model is not None:
                scene.setModelVisible(model, visible, node.opacity)
                scene.setHeatmapRange(model, node.heatmapRange)
                scene.setHeatmapVisible(model, visible and node.heatmapVisible)


@dataclass
class ComparisonResults:
    """Nodes of one comparison: both bones with signed distances (mm) at their points, figures, record."""

    firstModel: slicer.vtkMRMLModelNode
    secondModel: slicer.vtkMRMLModelNode
    table: slicer.vtkMRMLTableNode
    record: object


class BoneReconstructionLogic(ScriptedLoadableModuleLogic):
    """Comparison without a panel; a bone is a pair (model or segmentation node, segment ID or "")."""

    def getParameterNode(self):
        return BoneReconstructionParameterNode(super().getParameterNode())

    @staticmethod
    def signWords():
        """What the sign of the distances means."""
        return _("Distances in mm. Positive: the first bone lies outside the second; negative: inside it.")

    @staticmethod
    def reasonNotToCompare(first, second, region=(None, "")):
        """Why the comparison cannot run, as a sentence, or "" if it can; looks at no voxels and no points."""
        noFirst, noSecond = _("Select the first bone."), _("Select the second bone.")
        for (node, segmentID), missing in ((first, noFirst), (second, noSecond)):
            if node is None:
                return missing
            if node.IsA("vtkMRMLSegmentationNode") and not scene.hasSegment(node, segmentID):
                return _("\"{name}\" has no segment: add one or select another bone.").format(name=node.GetName())
        if first[0] is second[0] and (first[1] == second[1] or not first[0].IsA("vtkMRMLSegmentationNode")):
            return _("Both bones are the same: select two different ones.")
        if region[0] is not None and region[0].IsA("vtkMRMLSegmentationNode") and not scene.hasSegment(*region):
            return _("\"{name}\" has no segment: select another region.").format(name=region[0].GetName())
        return ""

    def startComparison(self, first, second, alignment="none", region=None, onProgress=None, onFinished=None):
        """Start `bonerecon compare` in a process of its own.

        Args:
            first, second: the bones.
            alignment: "none" or "rigid".
            region: the part of the second bone that the alignment uses, (node for scene.maskFromNode, segment ID).
            onProgress, onFinished: see scenejob.SceneJob.

        Returns:
            The running SceneJob; after success its `results` are ComparisonResults.

        Raises:
            InputError: a bone or region is empty or under a transform that is not linear; nothing was started.
        """
        inputs = {"first": first, "second": second} | ({"region": region} if region is not None else {})
        job = scene.makeJob(functools.partial(self._importResults, inputs), onProgress, onFinished)
        try:
            arguments = ["compare", scene.writeBone(job.folder / "first", *first),
                         scene.writeBone(job.folder / "second", *second), "--align", alignment]
            if region is not None:
                path = job.folder / "region.nrrd"
                write_volume(path, scene.maskFromNode(*region))
                arguments += ["--region", path]
            job.start(*arguments)
        except BaseException:
            job.discard()
            raise
        return job

    def compare(self, first, second, alignment="none", region=None, timeoutS=600.0):
        """Compare and wait, without dialogs; returns ComparisonResults. Arguments and InputError as startComparison.

        Raises:
            RuntimeError: the job failed or took longer than timeoutS seconds.
        """
        return self.startComparison(first, second, alignment, region).finish(timeoutS)

    def _importResults(self, inputs, output):
        record = json.loads((output / RESULT).read_text(encoding="utf-8"))
        with scene.importing(inputs["first"][0], _("Bone comparison")):
            models = []
            for which, color in (("first", FIRST_COLOR), ("second", SECOND_COLOR)):
                described = scene.describeInput(*inputs[which])
                name = _("{bone}, compared").format(bone=described.get("segment", described["node"]))
                surface, scalars = scene.readSurfaceWithScalars(output / f"{which}.vtp")
                model = scene.surfaceToModel(surface, name, color, scalars=scalars)
                scene.addHeatmap(model, SIGNED_ARRAY, 2.0, _("First to second (mm)\n+ outside, - inside"))
                models.append(model)
            if record["alignment"]:
                scene.addTransform(record["alignment"]["second_from_first_ras"], _("First bone onto second"))
            table = scene.tableFromCsv(output / "distances.csv", _("Bone comparison"))
            recordNode = scene.recordFromJson(output / RESULT, _("Bone comparison record"), inputs)
        return ComparisonResults(*models, table, recordNode)


class BoneReconstructionTest(ScriptedLoadableModuleTest):
    """Self-test: two shapes whose distance is known, as model and as segment, through the job and back."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        self.setUp()
        self.test_ShiftedBone()

    @staticmethod
    def makeModel(name, shift=(0.0, 0.0, 0.0)):
        """A model without any symmetry, about 24 mm wide; shift in mm (RAS)."""
        sphere = vtk.vtkSphereSource()
        sphere.SetRadius(12)
        sphere.SetThetaResolution(60)
        sphere.SetPhiResolution(60)
        sphere.Update()
        surface = from_polydata(sphere.GetOutput())
        x, y, z = surface.vertices.T / 12
        bumps = 1 + 0.15 * x * y + 0.1 * z + 0.1 * y * z**2
        vertices = surface.vertices * bumps[:, None] + shift
        return scene.surfaceToModel(Surface(vertices, surface.faces), name, FIRST_COLOR)

    def test_ShiftedBone(self):
        self.delayDisplay("Comparing a bone with itself, moved by 3 mm")
        first, second = self.makeModel("first"), self.makeModel("second", (3.0, 0.0, 0.0))
        logic = BoneReconstructionLogic()
        distances = self.distances(logic.compare((first, ""), (second, "")).firstModel)
        self.assertAlmostEqual(float(distances.max()), 3.0, delta=0.1)
        self.assertAlmostEqual(float(distances.min()), -3.0, delta=0.1)
        aligned = self.distances(logic.compare((first, ""), (second, ""), "rigid").firstModel)
        self.assertLess(float(np.abs(aligned).max()), 0.1)
        self.delayDisplay("Test passed")

    @staticmethod
    def distances(model):
        return slicer.util.arrayFromModelPointData(model, SIGNED_ARRAY)
