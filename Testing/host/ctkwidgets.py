"""The few CTK widgets that the panels use, with CTK's property, signal and slot names.

Only what CTK declares to Qt (properties, signals, slots) has a public name; the rest starts with an underscore.
"""

import itertools
import types

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from host import qtcompat

_keys = itertools.count()


def stored(valueType, default):
    """Return a Qt property that is only kept, without an effect in the host."""
    key = f"_stored{next(_keys)}"
    return Property(valueType, lambda self: self.__dict__.get(key, default),
                    lambda self, value: self.__dict__.__setitem__(key, value))


def forwarded(valueType, child, getter, setter):
    """Return a Qt property that is read and written through a child widget."""
    return Property(valueType, lambda self: getattr(getattr(self, child), getter)(),
                    lambda self, value: getattr(getattr(self, child), setter)(value))


def oneLine(widget, *children):
    """Put children side by side into a widget that does not grow in height; the first child takes spare width."""
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for index, child in enumerate(children):
        layout.addWidget(child, 1 if index == 0 else 0)
    widget.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """Section with a header that hides its contents when clicked."""

    _HEADER_HEIGHT = 24
    contentsCollapsed = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed = False
        self.setContentsMargins(0, self._HEADER_HEIGHT, 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Minimum)
        self.clicked.connect(lambda: self._setCollapsed(not self._collapsed))

    def _setCollapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(not collapsed)
        self.setMaximumHeight(self._HEADER_HEIGHT if collapsed else 16777215)
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, lambda self: self._collapsed, lambda self, value: self._setCollapsed(value))
    collapsedHeight = stored(int, 0)
    flat = stored(bool, False)

    def paintEvent(self, event):
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.width(), self._HEADER_HEIGHT - 2)
        painter.fillRect(header, self.palette().midlight())
        painter.drawText(header.adjusted(8, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter,
                         f"{'▸' if self._collapsed else '▾'}  {self.text().replace('&', '')}")
        painter.end()


class ctkDoubleSpinBox(QtWidgets.QWidget):
    """Spin box for real numbers."""

    valueChanged = Signal((float,), (str,))
    editingFinished = Signal()
    decimalsChanged = Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QtWidgets.QDoubleSpinBox()
        oneLine(self, self._box)
        self._box.valueChanged.connect(self.valueChanged[float].emit)
        self._box.textChanged.connect(self.valueChanged[str].emit)
        self._box.editingFinished.connect(self.editingFinished.emit)

    def _setDecimals(self, decimals):
        if decimals != self._box.decimals():
            self._box.setDecimals(decimals)
            self.decimalsChanged.emit(decimals)

    value = forwarded(float, "_box", "value", "setValue")
    minimum = forwarded(float, "_box", "minimum", "setMinimum")
    maximum = forwarded(float, "_box", "maximum", "setMaximum")
    singleStep = forwarded(float, "_box", "singleStep", "setSingleStep")
    prefix = forwarded(str, "_box", "prefix", "setPrefix")
    suffix = forwarded(str, "_box", "suffix", "setSuffix")
    readOnly = forwarded(bool, "_box", "isReadOnly", "setReadOnly")
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, value: self._setDecimals(value))

    def setValue(self, value):
        self._box.setValue(value)

    def setRange(self, minimum, maximum):
        self._box.setRange(minimum, maximum)


class ctkSliderWidget(QtWidgets.QWidget):
    """Slider and spin box for one real number."""

    _STEPS = 1000
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setRange(0, self._STEPS)
        self._box = QtWidgets.QDoubleSpinBox()
        self._box.setRange(0.0, 99.0)
        oneLine(self, self._slider, self._box)
        self._box.valueChanged.connect(self._onBoxChanged)
        self._slider.sliderMoved.connect(self._onSliderMoved)

    def _onBoxChanged(self, value):
        extent = self._box.maximum() - self._box.minimum()
        self._slider.setValue(round((value - self._box.minimum()) / extent * self._STEPS) if extent else 0)
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def _onSliderMoved(self, position):
        extent = self._box.maximum() - self._box.minimum()
        self._box.setValue(self._box.minimum() + extent * position / self._STEPS)

    def _setDecimals(self, decimals):
        if decimals != self._box.decimals():
            self._box.setDecimals(decimals)
            self.decimalsChanged.emit(decimals)

    value = forwarded(float, "_box", "value", "setValue")
    minimum = forwarded(float, "_box", "minimum", "setMinimum")
    maximum = forwarded(float, "_box", "maximum", "setMaximum")
    singleStep = forwarded(float, "_box", "singleStep", "setSingleStep")
    prefix = forwarded(str, "_box", "prefix", "setPrefix")
    suffix = forwarded(str, "_box", "suffix", "setSuffix")
    spinBoxVisible = Property(bool, lambda self: not self._box.isHidden(),
                              lambda self, value: self._box.setVisible(value))
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, value: self._setDecimals(value))
    pageStep = stored(float, 10.0)
    tickInterval = stored(float, 0.0)
    tracking = stored(bool, True)

    def setValue(self, value):
        self._box.setValue(value)

    def setRange(self, minimum, maximum):
        self._box.setRange(minimum, maximum)

    def reset(self):
        self._box.setValue(self._box.minimum())


class ctkComboBox(QtWidgets.QComboBox):
    """Combo box."""

    defaultText = stored(str, "")
    forceDefault = stored(bool, False)


class ctkPathLineEdit(QtWidgets.QWidget):
    """Line edit for the path of a file or folder."""

    Dirs, Files, Readable, Writable, Executable, NoDot = 0x1, 0x2, 0x10, 0x20, 0x40, 0x2000
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._edit = QtWidgets.QLineEdit()
        oneLine(self, self._edit, QtWidgets.QToolButton(text="…"))
        self._edit.textChanged.connect(self.currentPathChanged.emit)

    currentPath = forwarded(str, "_edit", "text", "setText")
    filters = stored(int, Dirs | Files)
    label = stored(str, "")
    nameFilters = stored("QStringList", [])
    settingKey = stored(str, "")
    showBrowseButton = stored(bool, True)
    showHistoryButton = stored(bool, True)
    minimumContentsLength = stored(int, 0)

    def setCurrentPath(self, path):
        self._edit.setText(path)

    def addCurrentPathToHistory(self):
        """Accepted; the host keeps no history."""


WIDGETS = {widget.__name__: widget for widget in (
    ctkCollapsibleButton, ctkComboBox, ctkDoubleSpinBox, ctkPathLineEdit, ctkSliderWidget)}
"""PySide6 class by CTK name."""


def makeModule():
    """Return the module to install as `ctk`."""
    module = types.ModuleType("ctk", "Stand-in for Slicer's ctk module (test host).")
    vars(module).update({name: qtcompat.proxyClass(widget) for name, widget in WIDGETS.items()})
    return module
