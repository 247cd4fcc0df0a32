"""Surface files: PLY, STL, OBJ and VTP, with the coordinate system marked as Slicer marks it."""

import os
import re
import uuid
from pathlib import Path

import numpy as np
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkStringArray
from vtkmodules.vtkCommonDataModel import vtkPolyData
from vtkmodules.vtkIOGeometry import vtkOBJReader, vtkSTLReader, vtkSTLWriter
from vtkmodules.vtkIOPLY import vtkPLYReader, vtkPLYWriter
from vtkmodules.vtkIOXML import vtkXMLPolyDataReader, vtkXMLPolyDataWriter

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import from_polydata, to_polydata
from BoneReconstructionLib.surfaces import Surface

SURFACE_SUFFIXES = (".ply", ".stl", ".obj", ".vtp")

# Slicer looks for "SPACE=LPS" or "SPACE=RAS" in PLY comments, STL headers and OBJ comments, and for a field array
# SPACE in VTP files; without it a file is taken for LPS.
SPACE_HEADER = "SPACE=LPS"

HEADER = f"BoneReconstruction output. {SPACE_HEADER}"

LPS_SIGNS = np.array([-1.0, -1.0, 1.0])


def read_surface(path: str | os.PathLike) -> Surface:
    """Reads a surface into RAS.

    Args:
        path: A .ply, .stl, .obj or .vtp file. A header SPACE=RAS or SPACE=LPS is honoured as in Slicer; without one
            the file is taken for LPS. Polygons are cut into triangles.

    Returns:
        The surface; faces keep the file's winding.

    Raises:
        InputError: The file is missing, unreadable, of another ending or holds no triangles.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path.")
    reader = {".ply": vtkPLYReader, ".stl": vtkSTLReader, ".obj": vtkOBJReader, ".vtp": vtkXMLPolyDataReader}[suffix]()
    messages = []
    reader.AddObserver("ErrorEvent", lambda *_: messages.append(True))
    reader.SetFileName(str(path))
    reader.Update()
    surface = None if messages else from_polydata(reader.GetOutput())
    if surface is None or len(surface.faces) == 0:
        raise InputError(f"{path.name} cannot be read as a surface: it is damaged, in another format or has no faces.")
    if "RAS" in _space(reader, suffix):
        return surface
    return Surface(surface.vertices * LPS_SIGNS, surface.faces)


def read_scalars(path: str | os.PathLike, name: str) -> np.ndarray:
    """Reads values at the vertices, in the order of `read_surface`.

    Args:
        path: A .vtp file.
        name: Of the array.

    Returns:
        (n,) values.

    Raises:
        InputError: The file holds no such array.
    """
    reader = vtkXMLPolyDataReader()
    reader.AddObserver("ErrorEvent", lambda *_: None)
    reader.SetFileName(str(path))
    reader.Update()
    array = reader.GetOutput().GetPointData().GetArray(name)
    if array is None:
        raise InputError(f"{Path(path).name} holds no values {name} at its vertices: choose another file.")
    return vtk_to_numpy(array)


def write_surface(path: str | os.PathLike, surface: Surface, scalars: dict[str, np.ndarray] | None = None) -> None:
    """Writes a surface in LPS millimetres, marked SPACE=LPS; a file of that name is replaced when all is written.

    Coordinates are float32; PLY, STL and VTP are binary.

    Args:
        path: A .ply, .stl, .obj or .vtp file in an existing folder.
        surface: The surface.
        scalars: Values at the vertices, (n,) each, by name; for .vtp only.

    Raises:
        InputError: Another ending, scalars in a format that cannot hold them, or a folder that is missing or
            read-only.
    """
    path = Path(path)
    suffix = _suffix(path)
    if scalars and suffix != ".vtp":
        raise InputError(f"{path.name} cannot hold values at the vertices: choose a name that ends in .vtp.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: check that its folder exists and is writable.")
    lps = Surface((surface.vertices * LPS_SIGNS).astype(np.float32), surface.faces)
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        {".ply": _write_ply, ".stl": _write_stl, ".obj": _write_obj, ".vtp": _write_vtp}[suffix](
            str(temporary), lps, scalars or {}
        )
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: check that its folder is writable and not full.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SURFACE_SUFFIXES:
        raise InputError(f"{path.name} has none of the endings {' '.join(SURFACE_SUFFIXES)}: choose one of these.")
    return suffix


def _space(reader, suffix: str) -> str:
    """What the file says of its coordinate system, found where Slicer looks for it."""
    if suffix == ".vtp":
        array = reader.GetOutput().GetFieldData().GetAbstractArray("SPACE")
        return array.GetValue(0) if isinstance(array, vtkStringArray) and array.GetNumberOfValues() else ""
    if suffix == ".ply":
        comments = reader.GetComments()
        header = "\n".join(comments.GetValue(index) for index in range(comments.GetNumberOfValues()))
    else:
        header = (reader.GetHeader() if suffix == ".stl" else reader.GetComment()) or ""
    match = re.search("SPACE=(RAS|LPS)", header)
    return match.group(1) if match else ""


def _write_ply(path: str, surface: Surface, _) -> None:
    writer = vtkPLYWriter()
    writer.AddComment(SPACE_HEADER)
    writer.SetFileTypeToBinary()
    writer.SetDataByteOrderToLittleEndian()
    _run(writer, path, surface)


def _write_stl(path: str, surface: Surface, _) -> None:
    writer = vtkSTLWriter()
    writer.SetHeader(HEADER)
    writer.SetFileTypeToBinary()
    _run(writer, path, surface)


def _write_vtp(path: str, surface: Surface, scalars: dict[str, np.ndarray]) -> None:
    polydata = to_polydata(surface)
    space = vtkStringArray()
    space.SetName("SPACE")
    space.InsertNextValue("LPS")
    polydata.GetFieldData().AddArray(space)
    for name, values in scalars.items():
        array = numpy_to_vtk(np.ascontiguousarray(values, dtype=np.float32), deep=True)
        array.SetName(name)
        polydata.GetPointData().AddArray(array)
    if scalars:
        polydata.GetPointData().SetActiveScalars(next(iter(scalars)))
    writer = vtkXMLPolyDataWriter()
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()
    _run(writer, path, polydata)


def _write_obj(path: str, surface: Surface, _) -> None:
    with open(path, "w", encoding="ascii", newline="\n") as file:
        file.write(f"# {HEADER}\n")
        np.savetxt(file, surface.vertices, fmt="v %.9g %.9g %.9g")
        np.savetxt(file, surface.faces + 1, fmt="f %d %d %d")


def _run(writer, path: str, data: Surface | vtkPolyData) -> None:
    """Raises OSError where VTK only prints."""
    messages = []
    writer.AddObserver("ErrorEvent", lambda *_: messages.append(True))
    writer.SetInputData(to_polydata(data) if isinstance(data, Surface) else data)
    writer.SetFileName(path)
    if not writer.Write() or messages:
        raise OSError(f"VTK could not write {path}")
