"""The few qMRML widgets that the panels use, over the real scene.

Only what Slicer declares to Qt (properties, signals, slots, invokable methods) has a public name.
"""

import shiboken6
import slicer
import vtk
from PySide6 import QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from host import qtcompat
from host.ctkwidgets import oneLine, stored


class _Observing:
    """Mixin of widgets that observe VTK objects as long as they live."""

    _observations = ()

    def _observe(self, subject, events, callback):
        def call(*arguments):
            if shiboken6.isValid(self):
                callback(*arguments)
            else:
                self._stopObserving(subject)
        self._observations += tuple((subject, subject.AddObserver(event, call)) for event in events)

    def _stopObserving(self, subject):
        for observed, tag in self._observations:
            if observed is subject:
                subject.RemoveObserver(tag)
        self._observations = tuple(entry for entry in self._observations if entry[0] is not subject)


class qMRMLWidget(_Observing, QtWidgets.QWidget):
    """Widget that knows the scene."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self._sceneChanged()
            self.mrmlSceneChanged.emit(scene)

    def _sceneChanged(self):
        """Hook of the subclasses, called when another scene was set."""


class qMRMLNodeComboBox(qMRMLWidget):
    """Selector of a node of the scene."""

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    currentNodeRenamed = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAboutToBeRemoved = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._types, self._attributes, self._nodes, self._currentID = [], [], [], ""
        self._none, self._hidden, self._childTypes, self._noneText = False, False, True, "None"
        self._box = QtWidgets.QComboBox()
        oneLine(self, self._box)
        self._box.activated.connect(self._onActivated)

    def _sceneChanged(self):
        self._refresh()
        if self._scene is None:
            return
        self._observe(self._scene, (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeRemovedEvent,
                                    slicer.vtkMRMLScene.EndBatchProcessEvent, slicer.vtkMRMLScene.EndCloseEvent),
                      self._refresh)

    def _eligible(self, node):
        matches = any(node.IsA(kind) if self._childTypes else node.GetClassName() == kind for kind in self._types)
        if not matches or (node.GetHideFromEditors() and not self._hidden):
            return False
        return all(node.GetAttribute(name) is not None and (value is None or node.GetAttribute(name) == str(value))
                   for kind, name, value in self._attributes if node.IsA(kind))

    def _refresh(self, *_):
        if self._scene is not None and self._scene.IsBatchProcessing():
            return
        before = self._nodes
        nodes = [] if self._scene is None else [self._scene.GetNthNode(index)
                                                for index in range(self._scene.GetNumberOfNodes())]
        self._nodes = [node for node in nodes if self._eligible(node)]
        for node in (node for node in self._nodes if node not in before):
            self._stopObserving(node)
            self._observe(node, (vtk.vtkCommand.ModifiedEvent,), self._onNodeModified)
        for node in (node for node in before if node not in self._nodes):
            self._stopObserving(node)
        self._show()
        if self._currentID and self._nodeByID(self._currentID) is None:
            self._select(None if self._none or not self._nodes else self._nodes[0])
        elif not self._currentID and not self._none and not before and self._nodes:
            self._select(self._nodes[0])

    def _show(self):
        self._box.blockSignals(True)
        self._box.clear()
        if self._none:
            self._box.addItem(self._noneText, "")
        for node in self._nodes:
            self._box.addItem(node.GetName() or "", node.GetID())
        self._box.setCurrentIndex(self._box.findData(self._currentID))
        self._box.blockSignals(False)

    def _onNodeModified(self, node, _event):
        index = self._box.findData(node.GetID())
        if index >= 0 and self._box.itemText(index) != (node.GetName() or ""):
            self._box.setItemText(index, node.GetName() or "")
            if node.GetID() == self._currentID:
                self.currentNodeRenamed.emit(node.GetName())

    def _onActivated(self, index):
        self._select(self._nodeByID(self._box.itemData(index)))
        self.nodeActivated.emit(self.currentNode())

    def _nodeByID(self, nodeID):
        return next((node for node in self._nodes if node.GetID() == nodeID), None)

    def _select(self, node):
        nodeID = node.GetID() if node is not None and self._nodeByID(node.GetID()) is not None else ""
        changed, self._currentID = nodeID != self._currentID, nodeID
        self._box.setCurrentIndex(self._box.findData(nodeID))
        if changed:
            self.currentNodeChanged[object].emit(self.currentNode())
            self.currentNodeChanged[bool].emit(bool(nodeID))
            self.currentNodeIDChanged.emit(nodeID)

    def _setAndRefresh(self, name, value):
        setattr(self, name, value)
        self._refresh()

    nodeTypes = Property("QStringList", lambda self: self._types,
                         lambda self, value: self._setAndRefresh("_types", list(value)))
    noneEnabled = Property(bool, lambda self: self._none, lambda self, value: self._setAndRefresh("_none", value))
    noneDisplay = Property(str, lambda self: self._noneText,
                           lambda self, value: self._setAndRefresh("_noneText", value))
    showHidden = Property(bool, lambda self: self._hidden, lambda self, value: self._setAndRefresh("_hidden", value))
    showChildNodeTypes = Property(bool, lambda self: self._childTypes,
                                  lambda self, value: self._setAndRefresh("_childTypes", value))
    currentNodeID = Property(str, lambda self: self._currentID,
                             lambda self, value: self._select(self._nodeByID(value)))
    addEnabled = stored(bool, True)
    removeEnabled = stored(bool, True)
    editEnabled = stored(bool, False)
    renameEnabled = stored(bool, False)
    selectNodeUponCreation = stored(bool, True)
    baseName = stored(str, "")
    interactionNodeSingletonTag = stored(str, "")

    def currentNode(self):
        return self._nodeByID(self._currentID)

    def setCurrentNode(self, node):
        self._select(self._nodeByID(node) if isinstance(node, str) else node)

    def setCurrentNodeID(self, nodeID):
        self._select(self._nodeByID(nodeID))

    def setCurrentNodeIndex(self, index):
        self._select(self.nodeFromIndex(index))

    def nodeCount(self):
        return len(self._nodes)

    def nodeFromIndex(self, index):
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def addAttribute(self, nodeType, attributeName, attributeValue=None):
        self._attributes.append((nodeType, attributeName, attributeValue))
        self._refresh()

    def removeAttribute(self, nodeType, attributeName):
        self._attributes = [entry for entry in self._attributes if entry[:2] != (nodeType, attributeName)]
        self._refresh()

    def addNode(self, nodeType=None):
        """Do what the entry "Create new ..." does; return the new node."""
        nodeType = nodeType or self._types[0]
        node = self._scene.CreateNodeByClass(nodeType)
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(self.baseName or node.GetNodeTagName()))
        self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self._select(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self):
        if self.currentNode() is not None:
            self._scene.RemoveNode(self.currentNode())


class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """Selector of a segmentation and one of its segments."""

    currentNodeChanged = Signal((object,), (bool,))
    currentSegmentChanged = Signal(str)
    segmentSelectionChanged = Signal("QStringList")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._none, self._segmentID, self._observed = False, "", None
        self._nodeBox = qMRMLNodeComboBox()
        self._nodeBox.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._nodeBox.noneEnabled = True
        self._nodeBox.currentNodeChanged[object].connect(self._onNodeChanged)
        self._box = QtWidgets.QComboBox()
        self._box.activated.connect(lambda index: self.setCurrentSegmentID(self._box.itemData(index)))
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._nodeBox)
        layout.addWidget(self._box)

    def _sceneChanged(self):
        self._nodeBox.setMRMLScene(self._scene)

    def _onNodeChanged(self, node):
        if self._observed is not None:
            self._stopObserving(self._observed)
        self._observed = node
        if node is not None:
            self._observe(node, (slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved,
                                 slicer.vtkSegmentation.SegmentModified), self._populate)
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)
        self._populate()

    def _populate(self, *_):
        node = self.currentNode()
        self._box.clear()
        if self._none:
            self._box.addItem("None", "")
        for segmentID in self.segmentIDs():
            self._box.addItem(node.GetSegmentation().GetSegment(segmentID).GetName(), segmentID)
        if self._segmentID not in self.segmentIDs():
            self.setCurrentSegmentID("" if self._none or not self.segmentIDs() else self.segmentIDs()[0])
        self._box.setCurrentIndex(self._box.findData(self._segmentID))

    def _setNone(self, value):
        self._none = value
        self._populate()

    noneEnabled = Property(bool, lambda self: self._none, _setNone)
    editEnabled = stored(bool, False)
    multiSelection = stored(bool, False)
    horizontalLayout = stored(bool, False)
    selectNodeUponCreation = stored(bool, True)
    segmentationNodeSelectorVisible = Property(bool, lambda self: not self._nodeBox.isHidden(),
                                               lambda self, value: self._nodeBox.setVisible(value))

    def currentNode(self):
        return self._nodeBox.currentNode()

    def currentNodeID(self):
        return self._nodeBox.currentNodeID

    def currentSegmentID(self):
        return self._segmentID

    def segmentIDs(self):
        node = self.currentNode()
        return [] if node is None else list(node.GetSegmentation().GetSegmentIDs())

    def setCurrentNode(self, node):
        self._nodeBox.setCurrentNode(node)

    def setCurrentNodeID(self, nodeID):
        self._nodeBox.setCurrentNodeID(nodeID)

    def setCurrentSegmentID(self, segmentID):
        segmentID = segmentID if segmentID in self.segmentIDs() else ""
        self._box.setCurrentIndex(self._box.findData(segmentID))
        if segmentID != self._segmentID:
            self._segmentID = segmentID
            self.currentSegmentChanged.emit(segmentID)


class qMRMLTableView(_Observing, QtWidgets.QTableView):
    """Table of a table node's columns, as text."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self._scene = None, None
        self.setModel(QtGui.QStandardItemModel(self))

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlTableNode(self):
        return self._node

    def setMRMLTableNode(self, node):
        if self._node is not None:
            self._stopObserving(self._node)
        self._node = node
        if node is not None:
            self._observe(node, (vtk.vtkCommand.ModifiedEvent,), self._show)
        self._show()

    def _show(self, *_):
        model = self.model()
        model.clear()
        if self._node is None:
            return
        columns = range(self._node.GetNumberOfColumns())
        model.setHorizontalHeaderLabels([self._node.GetColumnName(column) for column in columns])
        for row in range(self._node.GetNumberOfRows()):
            model.appendRow([QtGui.QStandardItem(self._node.GetCellText(row, column)) for column in columns])


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Labelled placeholder for the Segment Editor: it keeps its nodes and has no effects."""

    currentSegmentIDChanged = Signal(str)
    segmentationNodeChanged = Signal(object)
    sourceVolumeNodeChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._editorNode = None
        label = QtWidgets.QLabel("Segment Editor (in 3D Slicer; the test host shows this placeholder)")
        label.setWordWrap(True)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(label)

    segmentationNodeSelectorVisible = stored(bool, True)
    sourceVolumeNodeSelectorVisible = stored(bool, True)
    maskingSectionVisible = stored(bool, True)
    specifyGeometryButtonVisible = stored(bool, True)
    show3DButtonVisible = stored(bool, True)
    addRemoveSegmentButtonsVisible = stored(bool, True)
    switchToSegmentationsButtonVisible = stored(bool, True)
    autoShowSourceVolumeNode = stored(bool, True)
    unorderedEffectsVisible = stored(bool, True)
    maximumNumberOfUndoStates = stored(int, 0)
    readOnly = stored(bool, False)

    def mrmlSegmentEditorNode(self):
        return self._editorNode

    def setMRMLSegmentEditorNode(self, node):
        self._editorNode = node

    def segmentationNode(self):
        return None if self._editorNode is None else self._editorNode.GetSegmentationNode()

    def setSegmentationNode(self, node):
        self._editorNode.SetAndObserveSegmentationNode(node)
        self.segmentationNodeChanged.emit(node)

    def sourceVolumeNode(self):
        return None if self._editorNode is None else self._editorNode.GetSourceVolumeNode()

    def setSourceVolumeNode(self, node):
        self._editorNode.SetAndObserveSourceVolumeNode(node)
        self.sourceVolumeNodeChanged.emit(node)

    def currentSegmentID(self):
        return "" if self._editorNode is None else self._editorNode.GetSelectedSegmentID() or ""

    def setCurrentSegmentID(self, segmentID):
        self._editorNode.SetSelectedSegmentID(segmentID)
        self.currentSegmentIDChanged.emit(segmentID)

    def availableEffectNames(self):
        return []

    def setEffectNameOrder(self, _names):
        """Accepted; there are no effects."""

    def activeEffect(self):
        return None

    def setActiveEffectByName(self, name):
        """Accepted; there are no effects."""

    def setupViewObservations(self):
        """Accepted; the host has no views."""

    def removeViewObservations(self):
        """Accepted; the host has no views."""


WIDGETS = {widget.__name__: widget for widget in (
    qMRMLNodeComboBox, qMRMLSegmentEditorWidget, qMRMLSegmentSelectorWidget, qMRMLTableView, qMRMLWidget)}
"""PySide6 class by Slicer's name."""


def install():
    """Put the widgets' proxy classes where module code looks for them: on `slicer`."""
    for name, widget in WIDGETS.items():
        setattr(slicer, name, qtcompat.proxyClass(widget))
