"""Loading of `.ui` files: checked against the classes the host knows before Qt sees them, as Qt only warns."""

from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from host import ctkwidgets, qmrmlwidgets, qtcompat

_CUSTOM = {**ctkwidgets.WIDGETS, **qmrmlwidgets.WIDGETS, "qSlicerWidget": qmrmlwidgets.qMRMLWidget}


class QUiLoader:
    """Stand-in for `qt.QUiLoader`."""

    def load(self, file):
        """Return the widget described by an open `qt.QFile`.

        Raises:
            ValueError: for unknown classes, properties, signals or slots, of which Qt would only warn.
        """
        root = ElementTree.fromstring(bytes(file.readAll()))
        assignments = _checkWidgets(root)
        connections = root.find("connections")
        if connections is not None:
            root.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        loader = QtUiTools.QUiLoader()
        for name, widgetClass in _CUSTOM.items():
            if name == widgetClass.__name__:
                loader.registerCustomWidget(widgetClass)
        widget = loader.load(buffer, None)
        if widget is None:
            raise ValueError(f"{file.fileName()}: {loader.errorString()}")
        for objectName, propertyName, value in assignments:
            setattr(qtcompat.proxyOf(_named(widget, objectName)), propertyName, value)
        for connection in [] if connections is None else connections.findall("connection"):
            _connect(widget, *(connection.findtext(part) for part in ("sender", "signal", "receiver", "slot")))
        return qtcompat.proxyOf(widget)


def _checkWidgets(root):
    """Check classes and properties; return (object, property, value) of enumerations that only Python can set."""
    assignments = []
    for widget in root.iter("widget"):
        name = widget.get("class")
        widgetClass = _CUSTOM.get(name) or getattr(QtWidgets, name, None)
        if widgetClass is None:
            raise ValueError(f"The .ui file uses the class {name}, which the test host does not have")
        widget.set("class", widgetClass.__name__)
        properties = qtcompat.describe(widgetClass()).properties
        for entry in widget.findall("property"):
            propertyName = entry.get("name")
            if entry.get("stdset") != "0" and propertyName not in properties:
                raise ValueError(f"The .ui file sets {name}.{propertyName}, which does not exist")
            value = entry.findtext("set") or entry.findtext("enum")
            if value and name in _CUSTOM and value.startswith(f"{name}::"):
                widget.remove(entry)
                flags = [getattr(widgetClass, flag.split("::")[-1]) for flag in value.split("|")]
                assignments.append((widget.get("name"), propertyName, sum(set(flags))))
    return assignments


def _named(widget, name):
    found = widget if widget.objectName() == name else widget.findChild(QtCore.QObject, name)
    if found is None:
        raise ValueError(f"The .ui file connects {name}, which it does not contain")
    return found


def _connect(widget, sender, signal, receiver, slot):
    receiver = _named(widget, receiver)
    slotName = slot.split("(")[0]
    if not callable(getattr(type(receiver), slotName, None)) or slotName.startswith("_"):
        raise ValueError(f"{type(receiver).__name__} has no slot '{slot}'")
    count = slot.count(",") + 1 if slot.split("(")[1].strip(")").strip() else 0
    sender = qtcompat.proxyOf(_named(widget, sender))
    bound = getattr(receiver, slotName)
    QtCore.QObject.connect(sender._native, QtCore.SIGNAL(qtcompat.checkedSignature(sender._native, signal)),
                           lambda *arguments: bound(*arguments[:count]))
