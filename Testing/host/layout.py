"""The layout manager of the test host: Slicer's own layout logic, views drawn without a screen.

Slicer without a main window has none, and so has the host until `application.openViews()`.
"""

import slicer
import vtk

from host import views


class LayoutManager:
    """The part of `slicer.app.layoutManager()` that modules ask for."""

    tableViewCount = plotViewCount = 0

    def __init__(self):
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._sliceLogics = vtk.vtkCollection()
        self._widgets = {}
        slicer.app.applicationLogic().SetSliceLogics(self._sliceLogics)
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def close(self):
        """Let go of the scene."""
        for widget in self._widgets.values():
            widget.close()
        self._widgets.clear()
        self._sliceLogics.RemoveAllItems()
        self._logic.SetMRMLScene(None)

    @property
    def layout(self):
        return self._logic.GetLayoutNode().GetViewArrangement()

    def setLayout(self, arrangement):
        self._logic.GetLayoutNode().SetViewArrangement(arrangement)
        for node in self._shown():
            if node.GetID() not in self._widgets:
                kind = SliceWidget if node.IsA("vtkMRMLSliceNode") else ThreeDWidget
                self._widgets[node.GetID()] = kind(node, self._sliceLogics)

    def _shown(self):
        nodes = self._logic.GetViewNodes()
        return [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]

    def layoutLogic(self):
        return self._logic

    def mrmlSliceLogics(self):
        return self._sliceLogics

    @property
    def threeDViewCount(self):
        return len(self._threeDNodes())

    def _threeDNodes(self):
        return [node for node in self._shown() if node.IsA("vtkMRMLViewNode")]

    def threeDWidget(self, index):
        return self._widgets[self._threeDNodes()[index].GetID()]

    def sliceViewNames(self):
        return tuple(node.GetLayoutName() for node in self._shown() if node.IsA("vtkMRMLSliceNode"))

    def sliceWidget(self, name):
        return next(self._widgets[node.GetID()] for node in self._shown()
                    if node.IsA("vtkMRMLSliceNode") and node.GetLayoutName() == name)


class _View:
    """A view with its render window."""

    def __init__(self, window, before=lambda: None):
        self._window, self._before = window, before

    def forceRender(self):
        self._before()
        self._window.Render()

    def renderWindow(self):
        return self._window


class ThreeDWidget:
    """A 3D view of the layout."""

    SIZE = (400, 500)

    def __init__(self, node, _sliceLogics):
        self._node, self._window = node, views.newWindow(self.SIZE)
        renderer = vtk.vtkRenderer()
        self._window.AddRenderer(renderer)
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
        self._group = views.displayableManagers(slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
                                                views.THREE_D_MANAGERS, renderer, node)
        views.stampView(renderer)

    def mrmlViewNode(self):
        return self._node

    def threeDView(self):
        return _View(self._window)

    def close(self):
        self._group.SetMRMLDisplayableNode(None)
        self._window.Finalize()


class SliceWidget:
    """A slice view of the layout."""

    SIZE = (400, 400)

    def __init__(self, node, sliceLogics):
        self._node = node
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._logic.SetSliceNode(node)
        sliceLogics.AddItem(self._logic)
        node.SetDimensions(*self.SIZE, 1)
        self._logic.ResizeSliceNode(*self.SIZE)
        self._window, overlay, self._mapper = views.sliceWindow(self.SIZE)
        self._group = views.displayableManagers(slicer.vtkMRMLSliceViewDisplayableManagerFactory,
                                                views.SLICE_MANAGERS, overlay, node)
        views.stampView(overlay)

    def mrmlSliceNode(self):
        return self._node

    def sliceLogic(self):
        return self._logic

    def sliceView(self):
        return _View(self._window, self._update)

    def _update(self):
        self._logic.UpdatePipeline()
        # Without volumes there is no image, and with other volumes there is another one.
        self._mapper.SetInputConnection(self._logic.GetImageDataConnection())

    def close(self):
        self._group.SetMRMLDisplayableNode(None)
        self._window.Finalize()
