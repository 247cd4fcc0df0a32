"""Stand-in for Slicer's application: real scene and logics of `slicer-core`, windows of PySide6 without a screen.

It is for tests, the demo and pictures and is no 3D Slicer. Use, with the folder `Testing` on the Python path:

    from host import application, views
    application.start()                                    # before any `import qt`, `import ctk` or module
    widget = application.openModule("BoneReconstruction")  # the module's Python widget, after setup() and enter()
    widget.ui.applyButton.click()
    application.process(0.5)                               # let timers and events run
    views.grab(widget.parent, "panel.png")
    application.runSelfTest("BoneReconstruction")
    assert not application.slotErrors                      # checked by conftest.py after every test
    application.clear()                                    # modules closed, scene empty
"""

import ctypes
import importlib.util
import inspect
import os
import stat
import sys
import tempfile
import time
import types
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtWidgets

from host import ctkwidgets, iomanager, qmrmlwidgets, qtcompat, uiloader

slotErrors = qtcompat.slotErrors
"""Tracebacks of exceptions in slots, timers and observers since the last `clear()`."""

messages = []
"""(level, text) of the messages the user would have seen since the last `clear()`; level as in `logging`."""

_LOGICS = {"Colors": "vtkSlicerColorLogic", "Volumes": "vtkSlicerVolumesLogic", "Models": "vtkSlicerModelsLogic",
           "Markups": "vtkSlicerMarkupsLogic", "Segmentations": "vtkSlicerSegmentationsModuleLogic",
           "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic", "Transforms": "vtkSlicerTransformLogic",
           "Tables": "vtkSlicerTablesLogic", "Texts": "vtkSlicerTextsLogic", "Units": "vtkSlicerUnitsLogic",
           "Terminologies": "vtkSlicerTerminologiesModuleLogic", "Cameras": "vtkSlicerCamerasModuleLogic",
           "Plots": "vtkSlicerPlotsLogic", "CropVolume": "vtkSlicerCropVolumeLogic",
           "VolumeRendering": "vtkSlicerVolumeRenderingLogic"}
_IN_SUBJECT_HIERARCHY = ("vtkMRMLVolumeNode", "vtkMRMLModelNode", "vtkMRMLSegmentationNode", "vtkMRMLMarkupsNode",
                         "vtkMRMLTransformNode", "vtkMRMLTableNode", "vtkMRMLTextNode", "vtkMRMLPlotChartNode")


class Application:
    """The part of `slicer.app` that modules ask for."""

    applicationName = "BoneReconstruction test host (not 3D Slicer)"
    majorVersion, minorVersion = 5, 13
    os = {"win32": "win", "darwin": "macosx"}.get(sys.platform, "linux")

    def __init__(self, folder):
        self._folder = Path(folder)
        self.slicerHome = str(self._folder)
        self.temporaryPath = str(self._makeFolder("temporary"))
        self.cachePath = str(self._makeFolder("cache"))
        self._startupCallbacks, self._modules, self._layoutManager = [], {}, None
        self._native = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["host"])
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._writeInterpreter()

    def _makeFolder(self, name):
        folder = self._folder / name
        folder.mkdir()
        return folder

    def _writeInterpreter(self):
        """Put an executable where a module looks for Slicer's Python: this interpreter under Slicer's name."""
        script = self._makeFolder("bin") / "PythonSlicer"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def connect(self, signature, handler):
        if signature != "startupCompleted()":
            raise ValueError(f"The test host's application has no signal '{signature}'")
        self._startupCallbacks.append(handler)
        return True

    def completeStartup(self):
        callbacks, self._startupCallbacks = self._startupCallbacks, []
        for callback in callbacks:
            callback()

    def applicationLogic(self):
        return self._logic

    def mrmlScene(self):
        return slicer.mrmlScene

    def coreIOManager(self):
        return iomanager.CoreIOManager(slicer.mrmlScene, slicer.modules)

    ioManager = coreIOManager

    def moduleManager(self):
        return self

    def factoryManager(self):
        return self

    def module(self, name):
        return self._modules.get(name.lower())

    def loadedModuleNames(self):
        return tuple(module.name for module in self._modules.values())

    def scriptedModules(self):
        return [module for module in self._modules.values()
                if isinstance(module, slicer.qSlicerScriptedLoadableModule)]

    def layoutManager(self):
        return self._layoutManager

    def pythonConsole(self):
        return None

    def topLevelWidgets(self):
        return ()

    def testingEnabled(self):
        return True

    def processEvents(self):
        self._native.processEvents()

    def palette(self):
        return self._native.palette()

    def setOverrideCursor(self, cursor):
        self._native.setOverrideCursor(cursor)

    def restoreOverrideCursor(self):
        self._native.restoreOverrideCursor()

    def settings(self):
        return qtcompat.proxyOf(QtCore.QSettings())

    userSettings = settings

    def startupEnvironment(self):
        return QtCore.QProcessEnvironment.systemEnvironment()

    def translate(self, _context, text):
        return text

    def registerModule(self, module):
        self._modules[module.name.lower()] = module
        setattr(slicer.modules, module.name.lower(), module)

    def forgetModule(self, name):
        del self._modules[name.lower()]
        delattr(slicer.modules, name.lower())


def start():
    """Build the environment once per process: scene, logics, `slicer.app`, `slicer.modules` and stand-in modules."""
    if isinstance(getattr(slicer, "app", None), Application):
        return
    if sys.version_info < (3, 12):
        # Each Signal.emit() of PySide6 takes one reference too many from True, which older Pythons then free: they
        # abort. Newer ones never free it.
        ctypes.c_ssize_t.from_address(id(True)).value += 1 << 30
    slicer._hostFolder = tempfile.TemporaryDirectory(prefix="testhost")
    slicer.app = Application(slicer._hostFolder.name)
    _isolateSettings(slicer._hostFolder.name)
    _startScene()
    sys.modules["qt"] = qtcompat.makeModule(QUiLoader=uiloader.QUiLoader)
    sys.modules["ctk"] = ctkwidgets.makeModule()
    qmrmlwidgets.install()
    # These files import qt, which exists only from here on.
    from host import parameternode, sampledata, scriptedmodule, segmenteditor
    scriptedmodule.install()
    slicer.modules = types.SimpleNamespace(sampleDataSources={})
    for name, logic in _makeLogics().items():
        slicer.app.registerModule(scriptedmodule.LoadableModule(name, logic))
    _keepSubjectHierarchy()
    slicer.i18n = types.ModuleType("slicer.i18n")
    slicer.i18n.tr = lambda text: text
    slicer.i18n.translate = slicer.app.translate
    slicer.parameterNodeWrapper = parameternode
    slicer.ScriptedLoadableModule = types.ModuleType("slicer.ScriptedLoadableModule")
    names = [name for name in vars(scriptedmodule) if name.startswith("ScriptedLoadableModule")]
    vars(slicer.ScriptedLoadableModule).update({name: getattr(scriptedmodule, name) for name in names},
                                               __all__=names)
    for name in ("i18n", "parameterNodeWrapper", "ScriptedLoadableModule"):
        sys.modules[f"slicer.{name}"] = getattr(slicer, name)
    sys.modules["SampleData"] = sampledata
    _registerScriptedModule("SegmentEditor", segmenteditor)
    slicer.util.selectModule = selectModule
    _replaceMessageBoxes()
    _hideShortNames()
    sys.excepthook = qtcompat.recordSlotError


def _isolateSettings(folder):
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, folder)
    QtCore.QCoreApplication.setOrganizationName("TestHost")
    QtCore.QCoreApplication.setApplicationName("TestHost")


def _startScene():
    logic = slicer.app.applicationLogic()
    logic.SetHomeDirectory(slicer.app.slicerHome)
    logic.SetShareDirectory("share")
    logic.SetTemporaryPath(slicer.app.temporaryPath)
    Path(slicer.app.slicerHome, "share", "ColorFiles").mkdir(parents=True)
    slicer.mrmlScene = slicer.vtkMRMLScene()
    logic.SetMRMLScene(slicer.mrmlScene)
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.GetCacheManager().SetRemoteCacheDirectory(slicer.app.cachePath)
    remote.SetMRMLScene(slicer.mrmlScene)
    remote.AddDataIOToScene()
    data.SetMRMLApplicationLogic(logic)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    slicer.app._remote = remote, data


def _makeLogics():
    logics = {}
    warnings = slicer.vtkMRMLScene.GetGlobalWarningDisplay()
    slicer.vtkMRMLScene.SetGlobalWarningDisplay(0)
    for name, className in _LOGICS.items():
        logics[name] = getattr(slicer, className)()
        slicer.app.applicationLogic().SetModuleLogic(name, logics[name])
        logics[name].SetMRMLApplicationLogic(slicer.app.applicationLogic())
        logics[name].SetMRMLScene(slicer.mrmlScene)
    slicer.vtkMRMLScene.SetGlobalWarningDisplay(warnings)
    return logics


def _keepSubjectHierarchy():
    """Do what Slicer's subject hierarchy plugins do: an item for every node that users see."""
    scene = slicer.mrmlScene
    scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, _onNodeAdded)
    scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, _onNodeAboutToBeRemoved)
    scene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, _onSceneImported)


def _belongsInSubjectHierarchy(node):
    return not node.GetHideFromEditors() and any(node.IsA(kind) for kind in _IN_SUBJECT_HIERARCHY)


def _addToSubjectHierarchy(scene, node):
    if not _belongsInSubjectHierarchy(node):
        return
    hierarchy = scene.GetSubjectHierarchyNode()
    if hierarchy is not None and not hierarchy.GetItemByDataNode(node):
        hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def _onNodeAdded(scene, _event, node=None):
    if node is not None and not scene.IsImporting():
        _addToSubjectHierarchy(scene, node)


def _onNodeAboutToBeRemoved(scene, _event, node=None):
    if node is None or scene.IsClosing() or not _belongsInSubjectHierarchy(node):
        return
    hierarchy = scene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False, False)


def _onSceneImported(scene, _event):
    for index in range(scene.GetNumberOfNodes()):
        _addToSubjectHierarchy(scene, scene.GetNthNode(index))


_onNodeAdded.CallDataType = _onNodeAboutToBeRemoved.CallDataType = vtk.VTK_OBJECT


def _replaceMessageBoxes():
    """Messages are kept instead of shown; what Slicer answers under --testing is answered."""
    def messageDisplay(logLevel, text, testingReturnValue, *_arguments, **_keywords):
        messages.append((logLevel, text))
        return testingReturnValue

    def messageBox(text, parent=None, **_keywords):
        messages.append((20, text))
        return sys.modules["qt"].QMessageBox.Ok

    def delayDisplay(message, autoCloseMsec=1000, parent=None, **_keywords):
        slicer.app.processEvents()
    slicer.util._messageDisplay = messageDisplay
    slicer.util.messageBox = messageBox
    slicer.util.delayDisplay = delayDisplay


def _hideShortNames():
    """Remove from `slicer` what slicer-core repeats there of `slicer.util` and Slicer has not."""
    for name, value in list(vars(slicer).items()):
        if inspect.isfunction(value) and getattr(slicer.util, name, None) is value:
            delattr(slicer, name)


def process(seconds=0.0):
    """Let events and timers run for a while, at least once."""
    end = time.monotonic() + seconds
    while True:
        slicer.app.processEvents()
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
        if time.monotonic() >= end:
            return
        time.sleep(0.005)


def loadModule(name):
    """Import a scripted module and register it as `slicer.modules.<lower name>`, without its panel."""
    if slicer.app.module(name) is None:
        if importlib.util.find_spec(name) is None:
            sys.path.insert(0, str(Path(__file__).parents[2] / name))
        _registerScriptedModule(name, importlib.import_module(name))
    return slicer.app.module(name)


def _registerScriptedModule(name, pythonModule):
    from host import scriptedmodule
    module = scriptedmodule.qSlicerScriptedLoadableModule(name, pythonModule.__file__, pythonModule)
    slicer.app.registerModule(module)
    setattr(slicer.modules, f"{name}Instance", getattr(pythonModule, name)(module))
    slicer.app.completeStartup()


def openModule(name):
    """Load a module, leave the open one, make and enter a fresh panel; return the module's Python widget."""
    _closePanel(loadModule(name))
    selectModule(name)
    return slicer.app.module(name).widgetRepresentation().self()


def selectModule(module):
    """Open the panel of a module, given by name or module object, as `slicer.util.selectModule` does."""
    module = slicer.app.module(module) if isinstance(module, str) else module
    leaveModule()
    panel = module.widgetRepresentation()
    setattr(slicer.modules, f"{module.name}Widget", panel.self())
    panel.resize(520, 900)
    panel.show()
    panel.enter()
    process()


def leaveModule():
    """Do what selecting another module does to the open one: its panel is hidden and exited, not destroyed."""
    for panel in _panels():
        if panel.isEntered:
            panel.exit()
            panel.hide()
    process()


def _panels():
    return [module.widgetRepresentation() for module in slicer.app.scriptedModules()
            if module.hasWidgetRepresentation()]


def _closePanel(module):
    if module.hasWidgetRepresentation():
        panel = module.takeRepresentation()
        if panel.isEntered:
            panel.exit()
        panel.self().cleanup()
        panel.deleteLater()
        process()


def unloadModule(name):
    """Forget a module, so that another of the same name can be loaded."""
    _closePanel(slicer.app.module(name))
    slicer.app.forgetModule(name)
    sys.modules.pop(name, None)


def openViews():
    """Give the application a layout manager with views, as Slicer's main window does, until `clear()`."""
    from host.layout import LayoutManager
    slicer.app._layoutManager = LayoutManager()


def closeViews():
    """Take the views away."""
    if slicer.app._layoutManager is not None:
        slicer.app._layoutManager.close()
        slicer.app._layoutManager = None


def runSelfTest(name):
    """Run a module's Slicer self-test; raise what it raises, or AssertionError for errors that were only printed."""
    loadModule(name)
    slicer.selfTests[name](msec=0)
    process()
    if slotErrors:
        raise AssertionError("Errors were printed during the self-test:\n" + "\n".join(slotErrors))


def clear():
    """Close the panels, empty the scene, forget errors and messages."""
    for module in slicer.app.scriptedModules():
        _closePanel(module)
    closeViews()
    slicer.mrmlScene.Clear(0)
    process()
    slotErrors.clear()
    messages.clear()
    qtcompat.fileDialogAnswers.clear()
