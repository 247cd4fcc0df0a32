"""`slicer.parameterNodeWrapper` of the test host: typed access to a parameter node and binding to widgets.

Values are stored as Slicer stores them, so that a scene saved here loads there. Supported types: str, bool, int,
float, pathlib paths, enumerations and node classes; anything else is refused. The pairs of type and widget are Slicer's.
"""

import enum
import pathlib
import types
import typing

import slicer
import vtk

SlicerParameterNamePropertyName = "SlicerParameterName"


class Default:
    """Annotation: value of a parameter that was never set."""

    def __init__(self, value):
        self.value = value


class Decimals(Default):
    """Annotation: decimals that a spin box or slider shows."""


class SingleStep(Default):
    """Annotation: step of a spin box or slider."""


class Validator:
    """Base of the annotations that refuse values with a ValueError."""


class WithinRange(Validator):
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be between {self.minimum} and {self.maximum}, not {value}")


class Minimum(Validator):
    def __init__(self, minimum):
        self.minimum = minimum

    def validate(self, value):
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, not {value}")


class Maximum(Validator):
    def __init__(self, maximum):
        self.maximum = maximum

    def validate(self, value):
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, not {value}")


class Choice(Validator):
    def __init__(self, choices):
        self.choices = choices

    def validate(self, value):
        if value not in self.choices:
            raise ValueError(f"Value must be one of {self.choices}, not {value!r}")


class _Parameter:
    """Name, type, default and checks of one parameter, and its text in the node."""

    def __init__(self, name, hint, classDefault):
        self.name, self.hint = name, hint
        self.kind, self.annotations = _split(hint)
        self.nodeKinds = _nodeKinds(name, self.kind)
        self.nodeTypes = [kind.__name__ for kind in self.nodeKinds.values() if kind is not types.NoneType]
        if not self.nodeTypes and self.kind not in (str, bool, int, float) and not self.isA(enum.Enum) \
                and not self.isA(pathlib.PurePath):
            raise TypeError(f"{name}: the test host stores no parameters of type {self.kind}")
        default = self.annotation(Default)
        self.default = classDefault if classDefault is not None else default.value if default else self._plainDefault()
        self.check(self.default)

    def isA(self, base):
        return isinstance(self.kind, type) and issubclass(self.kind, base)

    def _plainDefault(self):
        if self.nodeTypes:
            return None
        return next(iter(self.kind)) if self.isA(enum.Enum) else self.kind()

    def annotation(self, kind):
        return next((entry for entry in self.annotations if type(entry) is kind), None)

    def check(self, value):
        """Raise as Slicer does for a value of the wrong type or outside the limits."""
        if self.nodeTypes:
            self._nodeKey(value)
        elif not isinstance(value, self.kind) and not (self.kind is float and isinstance(value, int)):
            raise TypeError(f"{self.name}: {value!r} is not of type {self.kind.__name__}")
        for validator in self.annotations:
            if isinstance(validator, Validator):
                validator.validate(value)

    def _nodeKey(self, value):
        for key, kind in self.nodeKinds.items():
            if isinstance(value, kind) or (value is None and len(self.nodeKinds) == 1):
                return key
        raise TypeError(f"{self.name}: {value!r} is none of {self.kind}; to allow None, add it to the union")

    def isIn(self, node):
        keys = self.nodeKinds or [self.name]
        return any(node.HasParameter(key) for key in keys)

    def read(self, node):
        """Return the value; a parameter that the node lost (closing the scene resets it) gets its default again."""
        if not self.isIn(node):
            self.write(node, self.default)
        if self.nodeTypes:
            return node.GetNodeReference(next(key for key in self.nodeKinds if node.HasParameter(key)))
        text = node.GetParameter(self.name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if self.isA(enum.Enum) else self.kind(text)

    def write(self, node, value):
        self.check(value)
        if not self.nodeTypes:
            node.SetParameter(self.name, value.name if self.isA(enum.Enum) else str(value))
            return
        with slicer.util.NodeModify(node):
            written = self._nodeKey(value)
            for key in self.nodeKinds:
                if key != written:
                    node.UnsetParameter(key)
                    node.RemoveNodeReferenceIDs(key)
            node.SetParameter(written, "True" if self.nodeKinds[written] is types.NoneType else "")
            node.SetNodeReferenceID(written, None if value is None else value.GetID())


def _split(hint):
    if typing.get_origin(hint) is typing.Annotated:
        kind, *annotations = typing.get_args(hint)
        return kind, annotations
    return hint, []


def _nodeKinds(name, kind):
    """Return the node classes by their key in the node; as in Slicer a union has numbered keys. Empty: no node."""
    isUnion = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = typing.get_args(kind) if isUnion else (kind,)
    if not all(isinstance(entry, type) and issubclass(entry, (slicer.vtkMRMLNode, types.NoneType)) for entry in kinds):
        return {}
    return {f"{name}.{index}" if isUnion else name: entry for index, entry in enumerate(kinds)}


class _Connector:
    """Binding of one parameter to one widget: how to read, write and notice changes."""

    def __init__(self, parameter, widget):
        kind, name = parameter.kind, type(widget).__name__
        self.widget, self.callback = widget, None
        if kind is bool and name in ("QCheckBox", "QPushButton"):
            if name == "QPushButton":
                widget.checkable = True
            self.attribute, self.signal = "checked", "toggled(bool)"
        elif kind is int and name in ("QSlider", "QSpinBox"):
            self.attribute, self.signal = "value", "valueChanged(int)"
            self._limit(parameter, mustBeBounded=name == "QSlider", lowest=-2**31, highest=2**31 - 1)
        elif kind in (int, float) and name in ("QDoubleSpinBox", "ctkSliderWidget", "ctkDoubleSpinBox"):
            self.attribute, self.signal = "value", "valueChanged(double)"
            if kind is int:
                widget.decimals = 0
            elif parameter.annotation(Decimals):
                widget.decimals = parameter.annotation(Decimals).value
            self._limit(parameter, mustBeBounded=name == "ctkSliderWidget", lowest=-1e300, highest=1e300)
        elif name in ("QComboBox", "ctkComboBox") and (parameter.annotation(Choice) or parameter.isA(enum.Enum)):
            self.attribute, self.signal = "currentIndex", "currentIndexChanged(int)"
            self._fill(parameter)
        elif kind is str and name in ("QLineEdit", "QLabel"):
            self.attribute, self.signal = "text", "textChanged(QString)" if name == "QLineEdit" else None
        elif parameter.isA(pathlib.PurePath) and name == "ctkPathLineEdit":
            self.attribute, self.signal = "currentPath", "currentPathChanged(QString)"
        elif parameter.nodeTypes and name == "qMRMLNodeComboBox":
            self.attribute, self.signal = None, "currentNodeChanged(vtkMRMLNode*)"
            widget.nodeTypes = parameter.nodeTypes
        else:
            raise RuntimeError(f"Parameter {parameter.name} of type {kind} cannot be bound to a {name}")
        self.parameter = parameter

    def _limit(self, parameter, mustBeBounded, lowest, highest):
        both = parameter.annotation(WithinRange)
        minimum, maximum = both or parameter.annotation(Minimum), both or parameter.annotation(Maximum)
        if mustBeBounded and not (minimum and maximum):
            raise RuntimeError(f"Parameter {parameter.name} needs a range to be bound to a slider")
        self.widget.minimum = minimum.minimum if minimum else lowest
        self.widget.maximum = maximum.maximum if maximum else highest
        if parameter.annotation(SingleStep):
            self.widget.singleStep = parameter.annotation(SingleStep).value

    def _fill(self, parameter):
        if parameter.isA(enum.Enum):
            self.choices = list(parameter.kind)
            labels = [choice.label() if hasattr(choice, "label") else choice.name for choice in self.choices]
        else:
            self.choices = list(parameter.annotation(Choice).choices)
            labels = [str(choice) for choice in self.choices]
        self.widget.clear()
        for label in labels:
            self.widget.addItem(label)

    def read(self):
        if self.attribute is None:
            return self.widget.currentNode()
        value = getattr(self.widget, self.attribute)
        if self.attribute == "currentIndex":
            return self.choices[value]
        return self.parameter.kind(value)

    def write(self, value):
        if self.attribute is None:
            self.widget.setCurrentNode(value)
        else:
            value = self.choices.index(value) if self.attribute == "currentIndex" else value
            value = str(value) if isinstance(value, pathlib.PurePath) else value
            if getattr(self.widget, self.attribute) != value:
                setattr(self.widget, self.attribute, value)

    def connect(self, callback):
        self.callback = lambda *_: callback()
        if self.signal:
            self.widget.connect(self.signal, self.callback)

    def disconnect(self):
        if self.signal and self.widget:
            self.widget.disconnect(self.signal, self.callback)


class _Wrapper:
    """What every wrapped class can do; mixed into it by `parameterNodeWrapper`."""

    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self._guis, self._updatingGui = {}, False
        for parameter in self.allParameters.values():
            if not parameter.isIn(parameterNode):
                parameter.write(parameterNode, parameter.default)

    def _parameter(self, name):
        if name not in self.allParameters:
            raise ValueError(f"There is no parameter {name}; there are {', '.join(self.allParameters)}")
        return self.allParameters[name]

    def getValue(self, name):
        return self._parameter(name).read(self.parameterNode)

    def setValue(self, name, value):
        self._parameter(name).write(self.parameterNode, value)

    def default(self, name):
        return Default(self._parameter(name).default)

    @classmethod
    def dataType(cls, name):
        return cls.allParameters[name].hint

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModifying):
        return self.parameterNode.EndModify(wasModifying)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        self.parameterNode.Modified()

    def connectGui(self, gui):
        """Bind every widget of `gui` that has a SlicerParameterName; return the tag for `disconnectGui`."""
        widgets = gui.findChildren("QWidget") if hasattr(gui, "isWidgetType") else vars(gui).values()
        named = ((widget.property(SlicerParameterNamePropertyName), widget) for widget in widgets)
        return self.connectParametersToGui({name: widget for name, widget in named if name})

    def connectParametersToGui(self, mapping):
        connectors = {name: _Connector(self._parameter(name), widget) for name, widget in mapping.items()}
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.connect(lambda name=name, connector=connector: self._onWidgetChanged(name, connector))
        tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._updateGui())
        self._guis[tag] = connectors
        return tag

    def disconnectGui(self, tag):
        if tag in self._guis:
            self.RemoveObserver(tag)
            for connector in self._guis.pop(tag).values():
                connector.disconnect()

    def _onWidgetChanged(self, name, connector):
        if not self._updatingGui:
            with slicer.util.NodeModify(self):
                self.setValue(name, connector.read())

    def _updateGui(self):
        if self._updatingGui:
            return
        self._updatingGui = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updatingGui = False


def parameterNodeWrapper(classType=None):
    """Class decorator: the annotated members of the class become parameters of a node."""
    if classType is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(classType, include_extras=True)
    parameters = {name: _Parameter(name, hint, getattr(classType, name, None)) for name, hint in hints.items()}
    members = {name: property(lambda self, name=name: self.getValue(name),
                              lambda self, value, name=name: self.setValue(name, value)) for name in parameters}
    for name in members:
        if hasattr(_Wrapper, name) or name in ("allParameters", "parameterNode"):
            raise ValueError(f"A parameter cannot be named '{name}'")
        if name in vars(classType):
            delattr(classType, name)
    return type(classType.__name__, (classType, _Wrapper),
                {"__init__": _Wrapper.__init__, "__module__": classType.__module__, "__doc__": classType.__doc__,
                 "allParameters": parameters, "_is_parameter_node_wrapper": True, **members})


def isParameterNodeWrapper(classOrObject):
    return getattr(classOrObject, "_is_parameter_node_wrapper", False)


def findChildWidgetForParameter(widget, parameter):
    return next((child for child in widget.findChildren("QWidget")
                 if child.property(SlicerParameterNamePropertyName) == parameter), None)
