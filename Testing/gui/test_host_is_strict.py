"""The test host refuses what PythonQt refuses, so that a mistake in a panel fails a test and not a surgeon."""

import pytest


@pytest.fixture
def qt(application):
    import qt
    return qt


@pytest.fixture
def button(qt):
    return qt.QPushButton("Apply")


def test_properties_are_attributes(button):
    button.text = "Cancel"
    button.enabled = False
    assert (button.text, button.enabled, button.name) == ("Cancel", False, "")


def test_reading_a_misspelt_property_raises(button):
    with pytest.raises(AttributeError, match="txt"):
        _ = button.txt


def test_writing_a_misspelt_property_raises(button):
    with pytest.raises(AttributeError, match="enabeld"):
        button.enabeld = False


def test_a_read_only_property_cannot_be_written(button):
    with pytest.raises(AttributeError, match="read-only"):
        button.width = 100


def test_a_value_of_the_wrong_type_is_refused(qt):
    with pytest.raises(TypeError):
        qt.QSpinBox().value = "many"


def test_calling_a_property_raises(button):
    with pytest.raises(TypeError):
        button.text()


def test_keyword_arguments_are_refused(qt, button):
    with pytest.raises(TypeError, match="keyword"):
        qt.QPushButton(text="Apply")
    with pytest.raises(TypeError, match="keyword"):
        button.setText(text="Apply")
    with pytest.raises(TypeError, match="keyword"):
        qt.QSize(w=1, h=2)


def test_python_subclasses_of_qt_classes_are_refused(qt):
    with pytest.raises(TypeError, match="subclass"):
        type("Panel", (qt.QWidget,), {})


def test_a_button_is_no_instance_of_its_base_class(qt, button):
    assert not isinstance(button, qt.QWidget)
    assert button.inherits("QWidget")


def test_connecting_a_missing_signal_raises(button):
    for signature in ("clickd()", "clicked(int)", "valueChanged(double)"):
        with pytest.raises(ValueError, match="no signal"):
            button.connect(signature, lambda *_: None)


def test_a_handler_takes_exactly_the_arguments_of_the_signal(button):
    clicks = []
    with pytest.raises(TypeError, match="1 argument"):
        button.connect("clicked(bool)", lambda: None)
    button.connect("clicked(bool)", clicks.append)
    button.connect("clicked()", lambda: clicks.append("without argument"))
    button.click()
    assert clicks == [False, "without argument"]


def test_a_disconnected_handler_is_not_called(button):
    clicks = []
    button.connect("clicked(bool)", clicks.append)
    assert button.disconnect("clicked(bool)", clicks.append)
    assert not button.disconnect("clicked(bool)", clicks.append)
    button.click()
    assert clicks == []


def test_an_exception_in_a_slot_is_recorded(application, button):
    def fail(_checked):
        raise RuntimeError("broken slot")
    button.connect("clicked(bool)", fail)
    button.click()
    assert len(application.slotErrors) == 1 and "broken slot" in application.slotErrors.pop()


def test_an_exception_in_a_timer_is_recorded(application, qt):
    def fail():
        raise RuntimeError("broken timer")
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.connect("timeout()", fail)
    timer.start(0)
    qt.QTimer.singleShot(0, fail)
    application.process(0.05)
    assert len(application.slotErrors) == 2
    application.slotErrors.clear()


def test_an_exception_in_an_observer_is_recorded(application):
    import slicer

    def fail(_caller, _event):
        raise RuntimeError("broken observer")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    node.AddObserver("ModifiedEvent", fail)
    node.Modified()
    assert len(application.slotErrors) == 1
    application.slotErrors.clear()


def test_modal_windows_are_refused_instead_of_waiting_for_ever(application, qt):
    with pytest.raises(RuntimeError, match="wait for a user"):
        qt.QDialog().exec_()
    with pytest.raises(RuntimeError, match="wait for a user"):
        qt.QMessageBox.question(None, "Title", "Question?")
    with pytest.raises(RuntimeError, match="wait for a user"):
        qt.QFileDialog.getSaveFileName()


def test_messages_are_kept_instead_of_shown(application):
    import logging

    import slicer
    slicer.util.errorDisplay("No mask")
    slicer.util.messageBox("Done")
    assert application.messages == [(logging.ERROR, "No mask"), (logging.INFO, "Done")]


def test_short_names_of_slicer_core_are_hidden(application):
    import slicer
    assert hasattr(slicer.util, "arrayFromVolume") and not hasattr(slicer, "arrayFromVolume")


def test_a_list_property_comes_back_as_a_tuple(application):
    import slicer
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLModelNode"]
    assert selector.nodeTypes == ("vtkMRMLModelNode",)


def test_a_collapsible_button_has_no_text_in_its_constructor(application):
    import ctk
    with pytest.raises(TypeError):
        ctk.ctkCollapsibleButton("Inputs")


UI = """<ui version="4.0"><class>Panel</class><widget class="qMRMLWidget" name="Panel">
<layout class="QVBoxLayout" name="verticalLayout"><item><widget class="{widget}" name="child">
<property name="{property}"><string>Apply</string></property></widget></item></layout></widget>
<connections><connection><sender>Panel</sender><signal>{signal}</signal><receiver>{receiver}</receiver>
<slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
GOOD = {"widget": "QPushButton", "property": "text", "signal": "mrmlSceneChanged(vtkMRMLScene*)", "receiver": "Panel"}


@pytest.mark.parametrize("part, value", [("widget", "qMRMLMagicWidget"), ("property", "txet"),
                                         ("signal", "sceneChanged(vtkMRMLScene*)"), ("receiver", "child"),
                                         ("receiver", "nobody")])
def test_mistakes_in_a_ui_file_raise(application, tmp_path, part, value):
    import slicer
    path = tmp_path / "Panel.ui"
    path.write_text(UI.format(**GOOD))
    assert slicer.util.childWidgetVariables(slicer.util.loadUI(str(path))).child.text == "Apply"
    path.write_text(UI.format(**{**GOOD, part: value}))
    with pytest.raises(ValueError):
        slicer.util.loadUI(str(path))
