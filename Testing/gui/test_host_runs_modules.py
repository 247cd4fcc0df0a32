"""The test host runs a scripted module: panel, parameter node, self-test, sample data and jobs' interpreter."""

import subprocess
import sys

import pytest

MODULE = '''
import enum
from typing import Annotated
import qt
import slicer
import vtk
from slicer import vtkMRMLModelNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Choice, Default, Minimum, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Side(enum.Enum):
    LEFT = "left"
    RIGHT = "right"


@parameterNodeWrapper
class HostSampleParameterNode:
    volume: vtkMRMLScalarVolumeNode
    bone: vtkMRMLModelNode | vtkMRMLSegmentationNode | None
    model: vtkMRMLModelNode
    side: Side = Side.RIGHT
    method: Annotated[str, Choice(["prior", "prototype"])] = "prior"
    opacity: Annotated[float, WithinRange(0, 1)] = 0.5
    count: Annotated[int, Minimum(1), Default(3)]
    smooth: bool = True
    comment: str = "none"


class HostSample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Host {what}").format(what="sample")
        slicer.app.connect("startupCompleted()", self.onStartup)

    def onStartup(self):
        self.started = True


class HostSampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.tag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/HostSample.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = HostSampleLogic()
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.bind()

    def bind(self):
        self.parameters = HostSampleParameterNode(self.logic.getParameterNode())
        self.tag = self.parameters.connectGui(self.ui)

    def onSceneEndClose(self, caller, event):
        self.parameters.disconnectGui(self.tag)
        self.bind()

    def onApply(self, _checked):
        self.ui.statusLabel.text = "applied"

    def cleanup(self):
        self.parameters.disconnectGui(self.tag)
        self.removeObservers()


class HostSampleLogic(ScriptedLoadableModuleLogic):
    pass


class HostSampleTest(ScriptedLoadableModuleTest):
    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def test_panel(self):
        widget = slicer.util.getModuleWidget("HostSample")
        self.assertIs(slicer.util.getModuleLogic("HostSample"), widget.logic)
        widget.ui.applyButton.click()
        self.assertEqual(widget.ui.statusLabel.text, "applied")
        self.delayDisplay("Test passed")
'''

PROPERTY = '<property name="SlicerParameterName" stdset="0"><string>{}</string></property>'
NONE = '<property name="noneEnabled"><bool>true</bool></property>'
VOLUMES = '<property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>'
FILES = '<property name="filters"><set>ctkPathLineEdit::Files|ctkPathLineEdit::Readable</set></property>'
WIDGETS = [("qMRMLNodeComboBox", "volumeSelector", "volume", NONE + VOLUMES),
           ("qMRMLNodeComboBox", "modelSelector", "model", ""), ("QComboBox", "sideBox", "side", ""),
           ("ctkComboBox", "methodBox", "method", ""), ("ctkSliderWidget", "opacitySlider", "opacity", ""),
           ("QSpinBox", "countBox", "count", ""), ("QCheckBox", "smoothBox", "smooth", ""),
           ("QLineEdit", "commentEdit", "comment", ""), ("qMRMLSegmentEditorWidget", "editor", None, ""),
           ("QLabel", "statusLabel", None, ""), ("ctkPathLineEdit", "pathEdit", None, FILES),
           ("QPushButton", "applyButton", None, '<property name="text"><string>Apply</string></property>')]


def _ui():
    rows = "".join(f'<item><widget class="{kind}" name="{name}">{extra}{PROPERTY.format(parameter) if parameter else ""}'
                   "</widget></item>" for kind, name, parameter, extra in WIDGETS)
    connections = "".join(
        "<connection><sender>HostSample</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>"
        f"<receiver>{name}</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection>"
        for kind, name, _, _ in WIDGETS if kind.startswith("qMRML"))
    customs = "".join(f"<customwidget><class>{kind}</class><extends>QWidget</extends><header>{kind}.h</header>"
                      "<container>1</container></customwidget>"
                      for kind in sorted({kind for kind, *_ in WIDGETS if not kind.startswith("Q")} | {"qMRMLWidget"}))
    return ('<ui version="4.0"><class>HostSample</class><widget class="qMRMLWidget" name="HostSample">'
            '<layout class="QVBoxLayout" name="verticalLayout"><item><widget class="ctkCollapsibleButton" name="inputs">'
            '<property name="text"><string>Inputs</string></property>'
            f'<layout class="QVBoxLayout" name="inputsLayout">{rows}</layout></widget></item></layout></widget>'
            f"<customwidgets>{customs}</customwidgets><connections>{connections}</connections></ui>")


@pytest.fixture
def widget(application, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("module")
    (folder / "HostSample.py").write_text(MODULE)
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Resources" / "UI" / "HostSample.ui").write_text(_ui())
    monkeypatch.syspath_prepend(str(folder))
    yield application.openModule("HostSample")
    application.clear()
    application.unloadModule("HostSample")


def test_the_panel_shows_the_defaults(widget):
    ui = widget.ui
    assert (ui.opacitySlider.value, ui.countBox.value, ui.smoothBox.checked) == (0.5, 3, True)
    assert (ui.sideBox.currentText, ui.methodBox.currentText, ui.commentEdit.text) == ("RIGHT", "prior", "none")


def test_the_module_object_is_registered(widget):
    import slicer
    assert slicer.modules.hostsample.title == "Host sample"
    assert slicer.modules.HostSampleInstance.started
    assert slicer.util.modulePath("HostSample").endswith("HostSample.py")


def test_what_the_user_does_reaches_the_parameters(widget):
    widget.ui.opacitySlider.value = 0.25
    widget.ui.smoothBox.click()
    widget.ui.sideBox.currentIndex = 0
    widget.ui.methodBox.currentIndex = 1
    widget.ui.commentEdit.text = "écrasé"
    parameters = widget.parameters
    assert (parameters.opacity, parameters.smooth, parameters.method) == (0.25, False, "prototype")
    assert (parameters.side.value, parameters.comment) == ("left", "écrasé")


def test_what_the_parameters_say_reaches_the_panel(widget):
    import slicer
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "tibia")
    widget.parameters.model = model
    widget.parameters.count = 7
    assert (widget.ui.modelSelector.currentNode().GetID(), widget.ui.countBox.value) == (model.GetID(), 7)


def test_a_parameter_can_be_one_of_several_kinds_of_nodes(widget):
    import slicer
    parameters = widget.parameters
    assert parameters.bone is None
    for kind in ("vtkMRMLSegmentationNode", "vtkMRMLModelNode"):
        parameters.bone = slicer.mrmlScene.AddNewNodeByClass(kind)
        assert parameters.bone.GetClassName() == kind
    with pytest.raises(TypeError):
        parameters.bone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    parameters.bone = None
    assert parameters.bone is None


def test_leaving_and_opening_a_module_exits_and_enters_its_panel(widget, application):
    assert widget.parent.isEntered and widget.parent.visible
    application.leaveModule()
    assert not widget.parent.isEntered and not widget.parent.visible
    assert application.openModule("HostSample").parent.isEntered


def test_values_outside_the_limits_are_refused(widget):
    with pytest.raises(ValueError):
        widget.parameters.opacity = 1.5
    with pytest.raises(ValueError):
        widget.parameters.method = "magic"
    with pytest.raises(TypeError):
        widget.parameters.count = "many"


def test_settings_are_saved_with_the_scene(widget, application, tmp_path):
    import slicer
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "tibia")
    widget.parameters.model = slicer.util.getNode("tibia")
    widget.parameters.opacity = 0.75
    widget.parameters.side = type(widget.parameters.side).LEFT
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    assert (widget.ui.opacitySlider.value, widget.parameters.model) == (0.5, None)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    application.process()
    assert widget.parameters.model.GetName() == "tibia"
    assert (widget.parameters.opacity, widget.parameters.side.name) == (0.75, "LEFT")
    assert widget.ui.modelSelector.currentNode().GetName() == "tibia"
    assert (widget.ui.opacitySlider.value, widget.ui.sideBox.currentText) == (0.75, "LEFT")


def test_a_parameter_cannot_be_bound_to_an_unfit_widget(widget):
    import qt
    with pytest.raises(RuntimeError, match="opacity"):
        widget.parameters.connectParametersToGui({"opacity": qt.QLineEdit()})


def test_the_self_test_runs_unchanged(widget, application):
    application.runSelfTest("HostSample")


def test_printed_errors_fail_the_self_test(widget, application):
    application.slotErrors.append("Traceback")
    with pytest.raises(AssertionError, match="Traceback"):
        application.runSelfTest("HostSample")
    application.slotErrors.clear()


def test_the_panel_can_be_pictured(widget, tmp_path):
    from host import views
    pixels = views.grab(widget.parent, tmp_path / "panel.png")
    assert pixels.shape == (900, 520, 3) and pixels.std() > 5
    assert (tmp_path / "panel.png").stat().st_size > 1000


def test_a_collapsed_section_hides_its_contents(widget, application):
    assert widget.ui.applyButton.visible
    widget.ui.inputs.collapsed = True
    application.process()
    assert not widget.ui.applyButton.visible


def test_the_jobs_interpreter_is_found_where_slicer_has_it(application):
    import slicer
    command = [f"{slicer.app.slicerHome}/bin/PythonSlicer", "-c", "import sys; print(sys.version)"]
    output = subprocess.run(command, env=slicer.util.startupEnvironment(), capture_output=True, text=True, check=True)
    assert output.stdout.strip() == sys.version


def test_a_console_process_reports_without_blocking(application):
    import slicer
    lines, codes = [], []
    slicer.util.launchConsoleProcess([sys.executable, "-c", "print('one'); print('two')"], blocking=False,
                                     logCallback=lines.append, completedCallback=codes.append)
    for _ in range(100):
        application.process(0.1)
        if codes:
            break
    assert (lines, codes) == (["one", "two"], [0])


def test_flags_of_a_ui_file_reach_the_widget(widget):
    import ctk
    assert widget.ui.pathEdit.filters == ctk.ctkPathLineEdit.Files | ctk.ctkPathLineEdit.Readable


def test_sample_data_opens_registered_local_files_and_checks_them(application, tmp_path):
    import hashlib

    import numpy as np
    import SampleData
    import slicer
    path = tmp_path / "sample.nrrd"
    volume = slicer.util.addVolumeFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    assert slicer.util.saveNode(volume, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for name, checksum in (("good", digest), ("bad", "0" * 64)):
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="Bone", sampleName=name, uris=path.as_uri(), fileNames="sample.nrrd", nodeNames="CT",
            checksums=f"SHA256:{checksum}")
    assert SampleData.downloadSample("good").GetName() == "CT"
    with pytest.raises(ValueError, match="checksum"):
        SampleData.downloadSample("bad")
