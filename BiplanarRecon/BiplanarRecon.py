"""Module BiplanarRecon: the bones of a knee in 3D out of two X-rays with a geometry, and X-rays simulated from CTs."""

import enum
import functools
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from BiplanarReconLib.scene import comparisons, landmarks, layouts, reconstructions, samples, simulating, words, xrays
from BiplanarReconLib.xrayrecords import FRONTAL, LATERAL, VIEWS_OF, cautions
from BoneReconstruction import Alignment, JobPanelWidget
from BoneReconstructionLib import scene
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import SIDES
from BoneReconstructionLib.xraygeometry import PRESETS
from BoneReconstructionLib.xraygeometryfiles import read_geometry

NAMES = (FRONTAL, LATERAL)
# The machine's value, and which of its numbers, behind each spin box of a view.
FIELDS = {
    "SourceDetector": ("source_detector_mm", None),
    "SourceIsocentre": ("source_isocentre_mm", None),
    "SpacingU": ("spacing_uv", 0),
    "SpacingV": ("spacing_uv", 1),
    "Primary": ("primary_deg", None),
    "Secondary": ("secondary_deg", None),
    "Roll": ("roll_deg", None),
    "IsocentreR": ("isocentre", 0),
    "IsocentreA": ("isocentre", 1),
    "IsocentreS": ("isocentre", 2),
    "OffsetU": ("offset_uv", 0),
    "OffsetV": ("offset_uv", 1),
}
# The label beside a value that says where it is from.
ORIGIN_LABELS = {
    "SourceDetector": "source_detector",
    "SourceIsocentre": "source_isocentre",
    "Spacing": "spacing",
    "Angles": "angles",
    "Isocentre": "isocentre",
    "Offset": "offset",
    "Shape": "shape",
}


class BiplanarRecon(ScriptedLoadableModule):
    """Description of the module for Slicer's module list."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Biplanar Reconstruction")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Planning")]
        parent.dependencies = ["BoneReconstruction"]
        parent.contributors = ["BoneReconstruction contributors"]
        parent.helpText = _(
            "Reconstructs femur, tibia, fibula and patella from a frontal and a lateral X-ray whose "
            "geometry is known, and simulates X-rays of CTs. What comes out is named PREDICTED. Not "
            "for clinical use."
        )
        parent.acknowledgementText = _("The model's licence and training data are named in its model card.")
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self):
        """Offer virtual knees in the module Sample Data; follow scenes that are loaded, whichever panel is open."""
        import SampleData

        slicer.mrmlScene.AddObserver(slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        for name in samples.SAMPLES:
            SampleData.SampleDataLogic.registerCustomSampleDataSource(
                category=_("Bone Reconstruction"),
                sampleName=name,
                uris="",
                fileNames=name,
                nodeNames=name,
                thumbnailFileName=self.resourcePath("Icons/BiplanarRecon.png"),
                customDownloader=self.makeSample,
            )

    @staticmethod
    def makeSample(source):
        """Make the virtual knee of a sample data source; returns its nodes, the X-rays first, none if it failed."""
        try:
            with slicer.util.WaitCursor():
                return samples.makeSample(source.sampleName)
        except RuntimeError as error:
            slicer.util.errorDisplay(str(error), windowTitle=_("Biplanar Reconstruction"))
            return []

    @staticmethod
    def onSceneEndImport(caller, event):
        """X-rays of a loaded scene get their images back on their planes."""
        xrays.restoreTextures()


class _PresetBase(enum.Enum):
    def label(self):
        preset = PRESETS[self.value]
        return _("{name}: {distance:g} mm, {columns} x {rows} pixels of {spacing:g} mm").format(
            name=self.value,
            distance=preset.source_detector_mm,
            columns=preset.shape[1],
            rows=preset.shape[0],
            spacing=preset.spacing_uv[0],
        )


Preset = _PresetBase("Preset", {name.upper().replace("-", "_"): name for name in PRESETS}, module=__name__)


class Relation(enum.Enum):
    """How values of an image file depend on the beam; values as `radiographs.read_radiograph` takes them."""

    AS_STATED = ""
    LINE_INTEGRALS = "line integrals"
    LINEAR = "linear"
    LOG = "log"

    def label(self):
        return {
            Relation.AS_STATED: _("as the file says"),
            Relation.LINE_INTEGRALS: _("line integrals"),
            Relation.LINEAR: _("linear in the beam"),
            Relation.LOG: _("logarithmic, or for display"),
        }[self]


class BoneLooks(enum.Enum):
    """How bone looks in an image file; values as `radiographs.read_radiograph` takes them."""

    AS_STATED = ""
    BRIGHT = "bright"
    DARK = "dark"

    def label(self):
        return {BoneLooks.AS_STATED: _("as the file says"), BoneLooks.BRIGHT: _("bright"), BoneLooks.DARK: _("dark")}[
            self
        ]


class FrontalView(enum.Enum):
    """Frontal views; values as on the command line."""

    AP = "AP"
    PA = "PA"

    def label(self):
        return words.viewWords(self.value)


class LateralView(enum.Enum):
    """Lateral views; values as on the command line."""

    LEFT = "left lateral"
    RIGHT = "right lateral"

    def label(self):
        return words.viewWords(self.value)


class Conditions(enum.Enum):
    """What disturbs simulated X-rays; values as on the command line."""

    DRAWN = "drawn"
    SSR_KD = "ssr-kd"
    IDEAL = "ideal"

    def label(self):
        return {
            Conditions.DRAWN: _("noise, scatter, collimation by chance"),
            Conditions.SSR_KD: _("noise as SSR-KD"),
            Conditions.IDEAL: _("none"),
        }[self]


class Bone(enum.Enum):
    """Bones of the knee."""

    FEMUR = "femur"
    TIBIA = "tibia"
    FIBULA = "fibula"
    PATELLA = "patella"

    def label(self):
        return {Bone.FEMUR: _("Femur"), Bone.TIBIA: _("Tibia"), Bone.FIBULA: _("Fibula"), Bone.PATELLA: _("Patella")}[
            self
        ]


@parameterNodeWrapper
class BiplanarReconParameterNode:
    """What the panel asks for, saved with the scene; an X-ray's geometry, view and side are kept with the X-ray.

    Attributes:
        frontal, lateral: the X-rays.
        relation, boneLooks: of image files to be loaded.
        frontalPreset, lateralPreset: to be taken at the press of a button.
        patientAxes: which axes of a calibration's frame point to the patient's right, front and head.
        landmarks: where the search for the knee begins, see `scene.landmarks`; None: it finds the knee by itself.
        boneOpacity: of the bones, 0 to 1.
        outlinesVisible: whether projected outlines are drawn on the X-rays.
        deviationVisible: whether bones are coloured by their standard deviation, from 0 to deviationRange mm.
        reference: what the bones are compared with; comparedBone: the bone of a reference that is a model.
        comparisonAlignment: how each bone is brought to its reference before.
        heatmapVisible: whether compared bones are drawn in their distance to the reference, in place of the plain ones.
        heatmapRange: its colours run from minus to plus this distance, mm.
        ct: HU, to make X-rays of; simulationAngle: between the views, degrees; simulationSeed: of noise and conditions.
        resultTable, resultRecord: of the reconstruction that is shown; comparisonRecord: of its comparison.
    """

    frontal: slicer.vtkMRMLScalarVolumeNode
    lateral: slicer.vtkMRMLScalarVolumeNode
    relation: Relation = Relation.AS_STATED
    boneLooks: BoneLooks = BoneLooks.AS_STATED
    frontalPreset: Preset = Preset("ssr-kd")
    lateralPreset: Preset = Preset("ssr-kd")
    patientAxes: str
    landmarks: slicer.vtkMRMLMarkupsFiducialNode
    boneOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 1.0
    outlinesVisible: bool = True
    deviationVisible: bool = False
    deviationRange: Annotated[float, WithinRange(0.1, 20.0)] = 2.0
    reference: slicer.vtkMRMLModelNode | slicer.vtkMRMLSegmentationNode | None
    comparedBone: Bone = Bone.FEMUR
    comparisonAlignment: Alignment = Alignment.NONE
    heatmapVisible: bool = True
    heatmapRange: Annotated[float, WithinRange(0.1, 20.0)] = comparisons.HEATMAP_RANGE_MM
    ct: slicer.vtkMRMLScalarVolumeNode
    simulationPreset: Preset = Preset("ssr-kd")
    simulationFrontal: FrontalView = FrontalView.AP
    simulationLateral: LateralView = LateralView.LEFT
    simulationAngle: Annotated[float, WithinRange(30.0, 150.0)] = 90.0
    simulationConditions: Conditions = Conditions.DRAWN
    simulationSeed: Annotated[int, WithinRange(0, 999999)] = 1
    resultTable: slicer.vtkMRMLTableNode
    resultRecord: slicer.vtkMRMLTextNode
    comparisonRecord: slicer.vtkMRMLTextNode


class BiplanarReconWidget(JobPanelWidget):
    """Panel of the reconstruction, in the order of the work.

    One job runs at a time: a reconstruction, a simulation or a comparison; Apply and the job's own button cancel it.
    """

    APPLY_TOOLTIP = _("Reconstruct the bones in a process of its own; the window stays free.")

    def __init__(self, parent=None):
        JobPanelWidget.__init__(self, parent)
        self._starter = None
        self._kind = ""
        self._showing = False
        self._idleComparisonText = ""
        self._followed = None

    def setup(self):
        """Build the panel."""
        JobPanelWidget.setup(self)
        for name in NAMES:
            self._of(name, "Selector").addAttribute("vtkMRMLScalarVolumeNode", xrays.ATTRIBUTE)
            for suffix, handler in (
                ("LoadButton", self.onLoadButton),
                ("DicomButton", self.onDicomButton),
                ("FileButton", self.onFileButton),
                ("PresetButton", self.onPresetButton),
                ("SaveButton", self.onSaveButton),
                ("CameraButton", self.onCameraButton),
            ):
                self._of(name, suffix).connect("clicked(bool)", functools.partial(handler, name))
            self._of(name, "ViewSelector").connect("currentIndexChanged(int)", functools.partial(self.onView, name))
            self._of(name, "MirroredCheckBox").connect("toggled(bool)", functools.partial(self.onMirrored, name))
            for field in FIELDS:
                self._of(name, f"{field}SpinBox").connect(
                    "valueChanged(double)", functools.partial(self.onValue, name, field)
                )
        self.ui.sideSelector.connect("currentIndexChanged(int)", self.onSide)
        self.ui.landmarksButton.connect("clicked(bool)", self.onLandmarksButton)
        self.ui.bothButton.connect("clicked(bool)", self.onBothButton)
        self.ui.simulateButton.connect("clicked(bool)", self.onSimulateButton)
        self.ui.compareButton.connect("clicked(bool)", self.onCompareButton)
        self.ui.comparisonExportButton.connect("clicked(bool)", self.onComparisonExportButton)
        self._say("")

    def makeLogic(self):
        return BiplanarReconLogic()

    def onSceneEndClose(self, caller, event):
        """Called just after the scene was closed."""
        self._say("")
        self.ui.xraysStateLabel.text = self.ui.comparisonLabel.text = ""
        JobPanelWidget.onSceneEndClose(self, caller, event)

    def _of(self, name, suffix):
        """The widget of the frontal or the lateral X-ray."""
        return getattr(self.ui, f"{name}{suffix}")

    def _record(self, name):
        return xrays.recordOf(self._parameterNode.getValue(name))

    # X-rays and what the user confirms

    def onLoadButton(self, name, checked=False):
        """Ask for an image file and load it."""
        path = qt.QFileDialog.getOpenFileName(
            self.parent, _("Load X-ray"), "", _("X-rays (*.dcm *.png *.tif *.tiff *.nrrd);;All files (*)")
        )
        if not path:
            return
        node = self._parameterNode
        try:
            with slicer.util.WaitCursor():
                loaded = xrays.load(path, node.relation.value or None, node.boneLooks.value or None)
        except InputError as error:
            self.ui.xraysStateLabel.text = str(error)
            return
        self.ui.xraysStateLabel.text = ""
        node.setValue(name, loaded)

    def onView(self, name, index):
        """The user said from where an X-ray was taken."""
        self._change(name, lambda record: record.seen_as(("", *VIEWS_OF[name])[index]))

    def onSide(self, index):
        """The user said which knee it is."""
        for name in NAMES:
            self._change(name, lambda record: replace(record, side=("", *SIDES)[index]))

    # Geometry

    def onValue(self, name, field, value):
        """The user typed a value."""
        attribute, number = FIELDS[field]
        box = self._of(name, f"{field}SpinBox")
        typed = None if box.specialValueText and value == box.minimum else value

        def change(record):
            if number is None:
                return record.changed(attribute, typed)
            numbers = list(getattr(record.values, attribute) or (typed, typed))  # pixels are mostly square
            numbers[number] = typed
            return record.changed(attribute, None if None in numbers else tuple(numbers))

        self._change(name, change)

    def onMirrored(self, name, checked):
        """The user said from which side the image shows the patient."""
        self._change(name, lambda record: record.changed("mirrored", checked))

    def onDicomButton(self, name, checked=False):
        """Take the geometry from the file's DICOM tags."""
        self._change(name, lambda record: record.from_dicom())

    def onPresetButton(self, name, checked=False):
        """Take the geometry of the chosen preset."""
        preset = self._parameterNode.getValue(f"{name}Preset").value
        self._change(name, lambda record: record.from_preset(preset))

    def onFileButton(self, name, checked=False):
        """Ask for a geometry file and read it."""
        path = qt.QFileDialog.getOpenFileName(
            self.parent, _("Read geometry"), "", _("X-ray geometry, JSON or MayaCam 2.0 (*.json *.txt);;All files (*)")
        )
        if path:
            other = self._record(NAMES[name == FRONTAL])
            place = None if other is None or other.reason else other.geometry
            self._change(
                name,
                lambda record: record.from_geometry(
                    read_geometry(path, record.values.shape), _("the file {name}").format(name=Path(path).name), place
                ),
            )

    def onSaveButton(self, name, checked=False):
        """Ask for a file and save the geometry."""
        path = qt.QFileDialog.getSaveFileName(self.parent, _("Save geometry"), "", _("X-ray geometry (*.json)"))
        if path:
            try:
                xrays.saveGeometry(self._parameterNode.getValue(name), path)
                self._of(name, "ReasonLabel").text = _("Geometry saved as {path}").format(path=path)
            except InputError as error:
                self._of(name, "ReasonLabel").text = str(error)

    def _change(self, name, change):
        """Change what is known of an X-ray, unless the panel itself is being filled; a refusal is said beside it."""
        node = self._parameterNode.getValue(name) if self._parameterNode and not self._showing else None
        if not xrays.isXray(node):
            return
        refusal = ""
        try:
            xrays.keep(node, change(xrays.recordOf(node)))
        except InputError as error:
            refusal = str(error)
        self._checkCanApply()
        self.updateDisplay()
        if refusal:
            self._of(name, "ReasonLabel").text = refusal

    # Jobs

    def reasonNotToApply(self):
        node = self._parameterNode
        return reconstructions.reasonNotToReconstruct(node.frontal, node.lateral, node.patientAxes, node.landmarks)

    def _checkCanApply(self, caller=None, event=None):
        JobPanelWidget._checkCanApply(self)
        node = self._parameterNode
        self._showButton(
            "simulating",
            self.ui.simulateButton,
            _("Simulate X-rays"),
            _("Make both X-rays in a process of its own; the window stays free."),
            simulating.reasonNotToSimulate(node.ct),
        )
        result, compared = self._shown(node)
        reason = comparisons.reasonNotToCompare(result, node.reference, node.comparedBone.value)
        self._showButton(
            "comparing",
            self.ui.compareButton,
            _("Compare"),
            _("Measure each bone's distance to its reference in a process of its own; the window stays free."),
            reason,
        )
        label, idle = self.ui.comparisonLabel, reason or (comparisons.signWords() if compared is not None else "")
        if self.job is None and (reason or label.text == self._idleComparisonText):
            label.text = idle
        self._idleComparisonText = idle

    def _showButton(self, kind, button, text, toolTip, reason):
        """The button of one kind of job: what it starts, why it cannot, or Cancel while its job runs."""
        if self.job is not None and self._kind == kind:
            button.text, button.toolTip, button.enabled = _("Cancel"), self.ui.applyButton.toolTip, True
            return
        button.text, button.toolTip = text, reason or toolTip
        button.enabled = self.job is None and not reason

    def onApplyButton(self, checked=False):
        """Apply, or Cancel while a job runs."""
        self._run(self._startReconstruction)

    def onSimulateButton(self, checked=False):
        """Simulate X-rays, or Cancel."""
        self._say(self._run(self._startSimulation))

    def onCompareButton(self, checked=False):
        """Compare the bones with the reference, or Cancel."""
        self.ui.comparisonLabel.text = self._run(self._startComparison)

    def _run(self, starter):
        """Start a job, or cancel the running one; returns what the panel says of it."""
        self._starter = starter
        self.ui.applyButton.enabled = True  # it becomes Cancel, whatever is missing for a reconstruction
        JobPanelWidget.onApplyButton(self)
        said = self.ui.statusLabel.text
        self._checkCanApply()
        return said

    def startJob(self):
        return self._starter()

    def _startReconstruction(self):
        node = self._parameterNode
        self._kind = "reconstructing"
        return reconstructions.startReconstruction(
            node.frontal,
            node.lateral,
            self._record(FRONTAL).side,
            node.patientAxes,
            node.landmarks,
            self.onProgress,
            self.onJobFinished,
        )

    def _startSimulation(self):
        node = self._parameterNode
        self._kind = "simulating"
        return simulating.startSimulation(
            node.ct,
            node.simulationPreset.value,
            node.simulationFrontal.value,
            node.simulationLateral.value,
            node.simulationAngle,
            node.simulationConditions.value,
            node.simulationSeed,
            self.onSimulationProgress,
            self.onSimulationFinished,
        )

    def _startComparison(self):
        node = self._parameterNode
        self._kind = "comparing"
        return comparisons.startComparison(
            reconstructions.fromRecord(node.resultRecord),
            node.reference,
            node.comparedBone.value,
            node.comparisonAlignment.value,
            self.onComparisonProgress,
            self.onComparisonFinished,
        )

    def onSimulationProgress(self, stage, progress, remaining):
        """The simulation reported."""
        self.onProgress(stage, progress, remaining)
        self._say(self.ui.statusLabel.text)

    def onSimulationFinished(self, state, message):
        """The simulation ended."""
        engine = self.job.results.engine if state == "succeeded" else ""
        self.onJobFinished(state, message)
        self._say(words.endWords(state, message, _("Done, projected by {engine}.").format(engine=engine)))

    def onComparisonProgress(self, stage, progress, remaining):
        """The comparison reported."""
        self.onProgress(stage, progress, remaining)
        self.ui.comparisonLabel.text = self.ui.statusLabel.text

    def onComparisonFinished(self, state, message):
        """The comparison ended."""
        self.onJobFinished(state, message)
        done = _("Done. {sign}").format(sign=comparisons.signWords())
        self.ui.comparisonLabel.text = words.endWords(state, message, done)

    def _say(self, text):
        self.ui.simulationLabel.text = text or words.engineWords()

    def storeResults(self, results):
        node = self._parameterNode or self.logic.getParameterNode()
        if isinstance(results, simulating.SimulatedXrays):
            with slicer.util.NodeModify(node):
                node.frontal, node.lateral = results.frontal, results.lateral
            return
        previous, compared = self._shown(node)
        if compared is not None:
            comparisons.hide(compared)
        if isinstance(results, comparisons.KneeComparison):
            node.comparisonRecord = results.record
            return
        with slicer.util.NodeModify(node):
            node.resultTable, node.resultRecord, node.comparisonRecord = results.table, results.record, None
        if previous is not None:
            reconstructions.hide(previous)

    @staticmethod
    def _shown(node):
        """The reconstruction and its comparison that a parameter node names, each or None."""
        return reconstructions.fromRecord(node.resultRecord), comparisons.fromRecord(node.comparisonRecord)

    def onLandmarksButton(self, checked=False):
        """Make the list of landmarks where there is none, and let clicks in the views place them."""
        node = self._parameterNode
        if node.landmarks is None:
            node.landmarks = landmarks.addLandmarks()
        landmarks.placeNext(node.landmarks)

    def onLandmarksChanged(self, caller=None, event=None):
        """A landmark was placed, moved or removed, perhaps while another module's panel is open."""
        if self._parameterNode:
            self._checkCanApply()

    def _followLandmarks(self, points):
        """Whether a reconstruction can begin depends on which points of the list are placed."""
        if points is self._followed:
            return
        events = (slicer.vtkMRMLMarkupsNode.PointModifiedEvent, slicer.vtkMRMLMarkupsNode.PointRemovedEvent)
        for event in events:
            if self._followed is not None:
                self.removeObserver(self._followed, event, self.onLandmarksChanged)
            if points is not None:
                self.addObserver(points, event, self.onLandmarksChanged)
        self._followed = points

    # What is shown

    def updateDisplay(self):
        node = self._parameterNode
        self._followLandmarks(node.landmarks)
        self._showing = True
        try:
            for name in NAMES:
                self._showXray(name)
            sides = {record.side for record in map(self._record, NAMES) if record is not None}
            self.ui.sideSelector.currentIndex = ("", *SIDES).index(sides.pop() if len(sides) == 1 else "")
            self.ui.sideSelector.enabled = any(map(self._record, NAMES))
        finally:
            self._showing = False
        placed = {name: self._record(name) for name in NAMES if self._record(name) and not self._record(name).reason}
        self.ui.angleLabel.text = words.angleWords(placed)
        self.ui.cautionLabel.text = "\n".join(cautions(placed))
        self.ui.cautionLabel.visible = bool(self.ui.cautionLabel.text)
        calibrated = any(record is not None and not record.anatomical for record in map(self._record, NAMES))
        self.ui.patientAxesEdit.visible = self.ui.patientAxesLabel.visible = calibrated
        hasViews = slicer.app.layoutManager() is not None
        for name in NAMES:
            self._of(name, "CameraButton").enabled = hasViews and name in placed
        self.ui.bothButton.enabled = hasViews and bool(placed)
        result, compared = self._shown(node)
        self.ui.summaryLabel.text = words.summary(node.resultRecord)
        self.showTable(node.resultTable)
        self.ui.comparedBoneSelector.enabled = node.reference is not None and node.reference.IsA("vtkMRMLModelNode")
        self.showTableIn(
            self.ui.comparisonTableView, self.ui.comparisonExportButton, None if compared is None else compared.table
        )
        heatmap = compared is not None and node.heatmapVisible
        # One heatmap at a time, with one legend.
        self.ui.deviationCheckBox.enabled = not heatmap
        if result is not None:
            reconstructions.show(
                result,
                node.boneOpacity,
                node.outlinesVisible,
                node.deviationVisible and not heatmap,
                node.deviationRange,
                without=compared.models if heatmap else (),
            )
        if compared is not None:
            comparisons.show(compared, heatmap, node.boneOpacity, node.heatmapRange)

    def _showXray(self, name):
        """Show what is known of an X-ray, or that there is none."""
        record = self._record(name)
        self._of(name, "StepsLabel").text = words.stepsWords(record)
        self._of(name, "ReasonLabel").text = words.reasonWords(record)
        for suffix in ("ViewSelector", "DicomButton", "FileButton", "PresetButton", "SaveButton", "MirroredCheckBox"):
            self._of(name, suffix).enabled = record is not None
        for field, (attribute, number) in FIELDS.items():
            box = self._of(name, f"{field}SpinBox")
            box.enabled = record is not None
            value = getattr(record.values, attribute) if record is not None else None
            box.value = box.minimum if value is None and box.specialValueText else _number(value, number)
        for label, origin in ORIGIN_LABELS.items():
            self._of(name, f"{label}OriginLabel").text = words.originWords(record, origin)
        self._of(name, "ViewSelector").currentIndex = ("", *VIEWS_OF[name]).index(
            record.view if record is not None and record.view in VIEWS_OF[name] else ""
        )
        self._of(name, "MirroredCheckBox").checked = record is not None and record.values.mirrored
        self._of(name, "ShapeLabel").text = words.shapeWords(record)
        if record is not None:
            self._of(name, "DicomButton").enabled = bool(record.tags)
            self._of(name, "SaveButton").enabled = not record.reason

    def onCameraButton(self, name, checked=False):
        """Look through an X-ray's own camera."""
        try:
            layouts.lookThrough(self._parameterNode.getValue(name))
        except InputError as error:
            slicer.util.warningDisplay(str(error), windowTitle=_("Biplanar Reconstruction"))

    def onBothButton(self, checked=False):
        """Both X-rays and the 3D view."""
        node = self._parameterNode
        layouts.showBoth({name: node.getValue(name) for name in NAMES}, reconstructions.fromRecord(node.resultRecord))

    def onComparisonExportButton(self, checked=False):
        """Ask for a file and save the comparison's table."""
        compared = comparisons.fromRecord(self._parameterNode.comparisonRecord)
        self.exportTable(compared.table, self.ui.comparisonLabel)


def _number(value, number):
    if value is None:
        return 0.0
    return float(value if number is None else value[number])


class BiplanarReconLogic(ScriptedLoadableModuleLogic):
    """The module without a panel and without dialogs."""

    def getParameterNode(self):
        return BiplanarReconParameterNode(super().getParameterNode())

    @staticmethod
    def simulate(
        ct,
        preset="ssr-kd",
        frontalView="AP",
        lateralView="left lateral",
        angleDeg=90.0,
        conditions="drawn",
        seed=1,
        timeoutS=600.0,
    ):
        """Make X-rays of a CT and wait for simulating.SimulatedXrays. Arguments as simulating.startSimulation.

        Raises:
            InputError: the CT cannot be read out of the scene.
            RuntimeError: the job failed or took longer than timeoutS seconds.
        """
        return simulating.startSimulation(ct, preset, frontalView, lateralView, angleDeg, conditions, seed).finish(
            timeoutS
        )

    @staticmethod
    def reconstruct(frontal, lateral, side, axes="", landmarkList=None, timeoutS=600.0):
        """Reconstruct and wait for the reconstructions.Reconstruction. Arguments as startReconstruction there.

        Raises:
            InputError: an X-ray has no image or no geometry.
            RuntimeError: the job refused its input, failed or took longer than timeoutS seconds.
        """
        return reconstructions.startReconstruction(frontal, lateral, side, axes, landmarkList).finish(timeoutS)

    @staticmethod
    def compare(result, reference, bone="", alignment="none", timeoutS=600.0):
        """Compare and wait for the comparisons.KneeComparison. Arguments as comparisons.startComparison.

        Raises:
            InputError: nothing can be compared, or a bone cannot be read out of the scene.
            RuntimeError: the job failed or took longer than timeoutS seconds.
        """
        return comparisons.startComparison(result, reference, bone, alignment).finish(timeoutS)


class BiplanarReconTest(ScriptedLoadableModuleTest):
    """Self-test: X-rays of a plain CT through the job, into the scene, and found again."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        self.setUp()
        self.test_SimulatedXrays()

    def test_SimulatedXrays(self):
        self.delayDisplay("Simulating X-rays of a block of bone")
        from BoneReconstructionLib.volumes import Volume
        from BoneReconstructionLib.xraygeometry import angle_between

        ijkToRas = np.diag([2.0, 2.0, 2.0, 1.0])
        ijkToRas[:3, 3] = -40, 30, 200
        hounsfield = np.full((48, 40, 36), -1000, dtype=np.int16)
        hounsfield[12:36, 10:20, 8:22] = 900
        ct = scene.volumeToNode(Volume(hounsfield, ijkToRas), "CT")
        made = BiplanarReconLogic().simulate(ct, "ssr-kd", "AP", "right lateral", 60.0, "ideal")
        views = [xrays.recordOf(node).geometry for node in (made.frontal, made.lateral)]
        self.assertAlmostEqual(angle_between(*views), 60.0, places=6)
        centre = (ijkToRas @ [14.5, 14.5, 23.5, 1.0])[:3]
        for node, view in zip((made.frontal, made.lateral), views):
            image = xrays.radiographOf(node).line_integrals
            column, row = np.round(view.project(centre[None])[0]).astype(int)
            self.assertGreater(image[row, column], 0.5 * image.max())
        self.delayDisplay("Test passed")
