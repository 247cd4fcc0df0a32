"""`slicer.ScriptedLoadableModule` of the test host, and the module objects that Slicer's application makes."""

import importlib
import os
import unittest

import qt
import slicer
from PySide6 import QtWidgets
from PySide6.QtCore import Property

from host import qmrmlwidgets, qtcompat


class ScriptedLoadableModule:
    """Description of a module; `parent` is its `qSlicerScriptedLoadableModule`."""

    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        icon = self.resourcePath(f"Icons/{self.moduleName}.png")
        if os.path.isfile(icon):
            parent.icon = qt.QIcon(icon)
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return ""

    def runTest(self, msec=100, **kwargs):
        testCase = getattr(importlib.import_module(self.__module__), f"{self.moduleName}Test")()
        testCase.messageDelay = msec
        testCase.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """Panel of a module; `parent` is the Qt widget it fills."""

    def __init__(self, parent):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self):
        """Extended by the modules."""

    def cleanup(self):
        """Overridden by the modules."""


class ScriptedLoadableModuleLogic:
    """Computations of a module and its parameter node."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        nodes = self.getAllParameterNodes()
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None:
                node.SetAttribute("ModuleName", self.moduleName)
                return node
        elif nodes:
            return nodes[0]
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self):
        return [node for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
                if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Self-test of a module: `runTest` runs every method whose name contains "test"."""

    def __init__(self, *arguments, **keywords):
        self.moduleTestNames = []
        super().__init__(*arguments, **keywords)
        if not self.moduleTestNames:
            self.moduleTestNames = [name for name in dir(self) if "test" in name and callable(getattr(self, name))]

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.util.delayDisplay(message, msec or requestedDelay or 100)

    def runTest(self):
        self.setUpClass()
        for name in self.moduleTestNames:
            self.setUp()
            getattr(self, name)()
            self.tearDown()
        self.tearDownClass()


class LoadableModule:
    """A C++ module of Slicer, of which the host has only the logic."""

    def __init__(self, name, logic):
        self.name, self.title, self.path = name, name, ""
        self._logic = logic

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        return None


class qSlicerScriptedLoadableModule:
    """The object behind `slicer.modules.<name>` of a scripted module."""

    __slots__ = (
        "_class",
        "_representation",
        "acknowledgementText",
        "categories",
        "contributors",
        "dependencies",
        "helpText",
        "hidden",
        "icon",
        "index",
        "name",
        "path",
        "title",
        "widgetVisible",
    )

    def __init__(self, name, path, pythonModule):
        self.name = self.title = name
        self.path = path
        self.categories, self.dependencies, self.contributors = [], [], []
        self.helpText = self.acknowledgementText = ""
        self.icon, self.hidden, self.index, self.widgetVisible = None, False, -1, True
        self._class, self._representation = getattr(pythonModule, f"{name}Widget"), None

    def logic(self):
        return None

    def hasWidgetRepresentation(self):
        return self._representation is not None

    def takeRepresentation(self):
        """Give away the panel, so that the next one asked for is new."""
        representation, self._representation = self._representation, None
        return representation

    def widgetRepresentation(self):
        if self._representation is None:
            self._representation = qtcompat.proxyOf(qSlicerScriptedLoadableModuleWidget(self._class))
        return self._representation


class qSlicerScriptedLoadableModuleWidget(qmrmlwidgets.qMRMLWidget):
    """The Qt widget that a module's Python widget fills."""

    def __init__(self, widgetClass):
        super().__init__()
        self._entered = False
        QtWidgets.QVBoxLayout(self)
        self.setMRMLScene(slicer.mrmlScene)
        self._widget = widgetClass(qtcompat.proxyOf(self))
        self._widget.setup()

    isEntered = Property(bool, lambda self: self._entered)

    def self(self):
        return self._widget

    def enter(self):
        self._entered = True
        if hasattr(self._widget, "enter"):
            self._widget.enter()

    def exit(self):
        self._entered = False
        if hasattr(self._widget, "exit"):
            self._widget.exit()


def install():
    """Put the names where module code looks for them."""
    slicer.selfTests = {}
    slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = qtcompat.proxyClass(qSlicerScriptedLoadableModuleWidget)
