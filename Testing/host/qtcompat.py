"""The `qt` module of the test host: PySide6 behind the rules of PythonQt.

Every Qt object is shown through a proxy that knows its properties, signals and methods and nothing else.
It refuses what PythonQt refuses and PySide6 would accept: unknown attributes, getters of properties called as
functions, keyword arguments, connections to signals that do not exist. Exceptions in slots are kept in `slotErrors`.
"""

import ctypes
import dataclasses
import inspect
import re
import sys
import traceback
import types
import weakref

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

slotErrors = []
"""Formatted tracebacks of exceptions that nobody could catch: slots, timers, observers."""

fileDialogAnswers = []
"""Paths that the next file dialogs return, first come first served."""

_MODULES = (QtCore, QtGui, QtWidgets, QtUiTools)
_NOT_IN_PYTHONQT = {"Signal", "Slot", "Property"}
_FILE_DIALOGS = {"getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory"}
_BLOCKING_STATICS = {"QMessageBox": {"about", "critical", "information", "question", "warning"},
                     "QInputDialog": {"getDouble", "getInt", "getItem", "getMultiLineText", "getText"}}
_proxies = weakref.WeakValueDictionary()
_proxyClasses = {}
_valueClasses = {}
_descriptions = {}
_connections = {}

if sys.version_info < (3, 12):
    # PySide6 6.12 gives back None without taking a reference to it, from setters for one: after some ten thousand calls
    # the interpreter would end. From Python 3.12 on None is immortal.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 30


def recordSlotError(exceptionType, exception, trace):
    """Keep and print an exception that Slicer would only print; usable as `sys.excepthook`."""
    text = "".join(traceback.format_exception(exceptionType, exception, trace))
    slotErrors.append(text)
    print(text, file=sys.stderr)


def toNative(value):
    """Return what PySide6 wants for a value that came from module code."""
    if isinstance(value, QtObject):
        return value._native
    if isinstance(value, (_ObjectType, _ValueType)):
        return value._nativeClass
    if isinstance(value, (list, tuple)):
        return type(value)(toNative(item) for item in value)
    if isinstance(value, dict):
        return {key: toNative(item) for key, item in value.items()}
    if callable(value) and not isinstance(value, (type, QtCore.QObject)):
        return _guarded(value)
    return value


def fromNative(value):
    """Return what module code may see of a value that came from PySide6: proxies, and tuples for lists."""
    if isinstance(value, QtCore.QObject):
        return proxyOf(value)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return tuple(fromNative(item) for item in value)
    return value


def proxyOf(native):
    """Return the one proxy of a Qt object."""
    proxy = _proxies.get(id(native))
    if proxy is None or proxy._native is not native:
        proxy = object.__new__(proxyClass(type(native)))
        object.__setattr__(proxy, "_native", native)
        _proxies[id(native)] = proxy
    return proxy


def proxyClass(nativeClass):
    """Return the proxy class of a PySide6 class; as in PythonQt it derives from no other Qt class."""
    if nativeClass not in _proxyClasses:
        _proxyClasses[nativeClass] = _ObjectType(nativeClass.__name__, (QtObject,),
                                                 {"_nativeClass": nativeClass, "__slots__": ()})
    return _proxyClasses[nativeClass]


@dataclasses.dataclass
class Description:
    """What a Qt class declares: properties (name: can be written), signals (signature: number of arguments)."""

    className: str
    properties: dict
    signals: dict

    def signalNamed(self, name):
        """Return the first signature of the signals of a name, or None."""
        return next((signature for signature in self.signals if signature.split("(")[0] == name), None)


def describe(native):
    """Return the Description of an object's class, taken once because meta-objects do not outlive their objects."""
    kind = type(native)
    if kind not in _descriptions:
        meta = native.metaObject()
        properties = [meta.property(index) for index in range(meta.propertyCount())]
        methods = [meta.method(index) for index in range(meta.methodCount())]
        _descriptions[kind] = Description(
            meta.className(), {entry.name(): entry.isWritable() for entry in properties},
            {bytes(method.methodSignature()).decode(): method.parameterCount() for method in methods
             if method.methodType() == QtCore.QMetaMethod.MethodType.Signal})
    return _descriptions[kind]


def _guarded(function):
    def call(*arguments):
        try:
            return toNative(function(*(fromNative(argument) for argument in arguments)))
        except Exception:  # noqa: BLE001 - whatever a slot raises, Qt must not see it
            recordSlotError(*sys.exc_info())
    return call


def _refuseKeywords(name, keywords):
    if keywords:
        raise TypeError(f"{name}: PythonQt takes no keyword arguments ({', '.join(keywords)})")


def _checkBlocking(owner, name):
    if name in _BLOCKING_STATICS.get(owner.__name__, ()):
        raise RuntimeError(f"{owner.__name__}.{name} would wait for a user; use slicer.util's message functions")


class QtMethod:
    """A method of a Qt object or class that takes positional arguments only."""

    def __init__(self, function, name):
        self._function, self.__name__ = function, name

    def __call__(self, *arguments, **keywords):
        _refuseKeywords(self.__name__, keywords)
        return fromNative(self._function(*(toNative(argument) for argument in arguments)))


class _ObjectType(type):
    """Metaclass of the proxies: construction, class attributes (enums, static functions), no subclassing."""

    def __new__(mcs, name, bases, namespace):
        if "_nativeClass" not in namespace and bases:
            raise TypeError(f"{name}: the test host has no Python subclasses of Qt classes")
        return super().__new__(mcs, name, bases, namespace)

    def __call__(cls, *arguments, **keywords):
        _refuseKeywords(cls.__name__, keywords)
        return proxyOf(cls._nativeClass(*(toNative(argument) for argument in arguments)))

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        native = cls._nativeClass
        if native is QtWidgets.QFileDialog and name in _FILE_DIALOGS:
            return _answerFileDialog
        _checkBlocking(native, name)
        attribute = getattr(native, name)
        return QtMethod(attribute, name) if callable(attribute) and not isinstance(attribute, type) else attribute


def _answerFileDialog(*_arguments):
    if not fileDialogAnswers:
        raise RuntimeError("A file dialog would wait for a user; append its answer to qtcompat.fileDialogAnswers")
    return fileDialogAnswers.pop(0)


class QtSignal:
    """A signal as an attribute of its object: it can be connected, disconnected and emitted."""

    def __init__(self, owner, name):
        self._owner, self._name = owner, name
        self._signature = describe(owner._native).signalNamed(name)

    def connect(self, handler):
        return self._owner.connect(self._signature, handler)

    def disconnect(self, handler):
        return self._owner.disconnect(self._signature, handler)

    def emit(self, *arguments):
        getattr(self._owner._native, self._name).emit(*(toNative(argument) for argument in arguments))

    __call__ = emit


class QtObject(metaclass=_ObjectType):
    """Proxy of a QObject."""

    __slots__ = ("__weakref__", "_native")
    _nativeClass = QtCore.QObject

    def __bool__(self):
        return shiboken6.isValid(self._native)

    def __repr__(self):
        return f"<{type(self).__name__} of the test host>"

    def __dir__(self):
        return sorted({name for name in dir(type(self._native)) if not name.startswith("_")})

    def __getattr__(self, name):
        native = self._native
        name = "objectName" if name == "name" else name
        description = describe(native)
        if name in description.properties or name.encode() in native.dynamicPropertyNames():
            return fromNative(native.property(name))
        if description.signalNamed(name):
            return QtSignal(self, name)
        if name in ("exec", "exec_"):
            if isinstance(native, (QtWidgets.QDialog, QtWidgets.QMenu)):
                raise RuntimeError(f"{type(self).__name__}.{name} would wait for a user")
            name = "exec"
        _checkBlocking(type(native), name)
        method = None if name.startswith("_") else getattr(type(native), name, None)
        if isinstance(method, type) or (method is not None and not callable(method)):
            return method
        if method is None:
            raise AttributeError(f"{type(self).__name__} has no property, signal or method '{name}'")
        return QtMethod(getattr(native, name), name)

    def __setattr__(self, name, value):
        native = self._native
        name = "objectName" if name == "name" else name
        properties = describe(native).properties
        if name not in properties and name.encode() not in native.dynamicPropertyNames():
            raise AttributeError(f"{type(self).__name__} has no property '{name}', and new attributes cannot be made")
        if not properties.get(name, True):
            raise AttributeError(f"{type(self).__name__}.{name} is read-only")
        if not native.setProperty(name, toNative(value)) and name in properties:
            raise TypeError(f"{type(self).__name__}.{name} cannot be set to {value!r}")

    def className(self):
        return describe(self._native).className

    def findChildren(self, kind, name=""):
        """Return the descendants of a class (a class of `qt` or its name), as PythonQt does."""
        className = kind if isinstance(kind, str) else kind.__name__
        return tuple(proxyOf(child) for child in self._native.findChildren(QtCore.QObject)
                     if child.inherits(className) and (not name or child.objectName() == name))

    def findChild(self, kind, name=""):
        return next(iter(self.findChildren(kind, name)), None)

    def connect(self, signature, handler):
        """Connect a signal given as "clicked(bool)" to a handler that takes exactly the signal's arguments."""
        signature = checkedSignature(self._native, signature)
        count = describe(self._native).signals[signature]
        if not callable(handler):
            raise TypeError(f"{signature}: the handler is not callable")
        try:
            inspect.signature(handler).bind(*[None] * count)
        except TypeError:
            raise TypeError(f"{signature}: the handler must take the signal's {count} argument(s)") from None
        except ValueError:
            pass
        connection = QtCore.QObject.connect(self._native, QtCore.SIGNAL(signature), _guarded(handler))
        _connections.setdefault((shiboken6.getCppPointer(self._native)[0], signature), []).append(
            (handler, connection))
        return True

    def disconnect(self, signature, handler):
        """Undo `connect`; false when there was no such connection."""
        signature = checkedSignature(self._native, signature)
        connections = _connections.get((shiboken6.getCppPointer(self._native)[0], signature), [])
        for entry in connections:
            if entry[0] == handler:
                connections.remove(entry)
                return QtCore.QObject.disconnect(entry[1])
        return False


def nativeSignature(signature):
    """Return a signature with VTK pointers written as PySide6 declares them."""
    signature = re.sub(r"\bvtk\w+\s*\*", "PyObject", signature)
    return bytes(QtCore.QMetaObject.normalizedSignature(signature)).decode()


def checkedSignature(native, signature):
    normalized = nativeSignature(signature)
    if normalized not in describe(native).signals:
        raise ValueError(f"{describe(native).className} has no signal '{signature}'")
    return normalized


class _ValueType(type):
    """A Qt class that is no QObject (QIcon, QColor, QDir): its objects are PySide6's own."""

    def __call__(cls, *arguments, **keywords):
        _refuseKeywords(cls.__name__, keywords)
        return cls._nativeClass(*(toNative(argument) for argument in arguments))

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._nativeClass, name)

    def __instancecheck__(cls, value):
        return isinstance(value, cls._nativeClass)


def _lookUp(name):
    if name.startswith("_") or name in _NOT_IN_PYTHONQT:
        raise AttributeError(f"module 'qt' has no attribute '{name}'")
    for module in _MODULES:
        found = getattr(module, name, None)
        if found is not None:
            break
    else:
        raise AttributeError(f"module 'qt' has no attribute '{name}'")
    if not isinstance(found, type) or name == "Qt":
        return found
    if issubclass(found, QtCore.QObject):
        return proxyClass(found)
    if name not in _valueClasses:
        _valueClasses[name] = _ValueType(name, (), {"_nativeClass": found})
    return _valueClasses[name]


def makeModule(**extra):
    """Return the module to install as `qt`; `extra` names take precedence over Qt's."""
    module = types.ModuleType("qt", "Stand-in for Slicer's qt module (test host).")
    vars(module).update(extra)
    module.__getattr__ = _lookUp
    return module
