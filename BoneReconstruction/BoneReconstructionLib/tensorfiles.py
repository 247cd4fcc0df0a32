"""Safetensors files with numpy alone, since 3D Slicer bundles no reader for them.

The format: an unsigned 64-bit little-endian header length, a JSON header of that length
{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}, then the raw little-endian
row-major values; offsets count from the first byte after the header. Nothing in such a file is ever executed.
"""

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError

_DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("bool"),
}  # fmt: skip
_LARGEST_HEADER = 100_000_000  # bytes; the reference implementation's limit


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a safetensors file.

    Args:
        path: the file.

    Returns:
        The arrays by name, in the file's shapes and types, writable and in the machine's byte order.

    Raises:
        InputError: the file is missing, cannot be read or is not a valid safetensors file.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}).") from error
    return parse_tensors(data, path)


def parse_tensors(data: bytes, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the bytes of a safetensors file.

    Args:
        data: the whole file's bytes.
        path: the file that they came from, for messages only.

    Returns:
        The arrays by name, as read_tensors returns them.

    Raises:
        InputError: the bytes are not a valid safetensors file.
    """
    try:
        header, values = _split(data)
        return _arrays(header, values)
    except _Malformed as error:
        raise InputError(f"The file {path} is not a valid safetensors file: {error}.") from error


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file under a temporary name and renames it; equal input gives equal bytes.

    Args:
        path: the file.
        tensors: the arrays by name; their types are kept, so the caller chooses fp16 by passing fp16.
        metadata: texts for the header.

    Raises:
        InputError: the file cannot be written.
        TypeError: an array's type has no place in the format.
    """
    write_atomically(path, format_tensors(tensors, metadata))


def format_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Makes the bytes of a safetensors file; see write_tensors.

    Raises:
        TypeError: an array's type has no place in the format.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    arrays = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        little_endian = array.dtype.newbyteorder("<")
        if little_endian not in names:
            raise TypeError(f"{name}: safetensors cannot hold {array.dtype}")
        arrays[name] = array.astype(little_endian)
    header = {"__metadata__": dict(metadata)} if metadata else {}
    begin, parts = 0, []
    # Wide types first: every array then lies on a multiple of its own item size.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        end = begin + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        parts.append(array.tobytes())
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under a temporary name in the same folder and renames it, so that nobody sees half of it.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"The file {path} cannot be written ({error.strerror}).") from error


class _Malformed(Exception):
    """What is wrong with a file, as the end of a sentence."""


def _split(data: bytes) -> tuple[dict, memoryview]:
    if len(data) < 8:
        raise _Malformed("it is too short")
    length = int.from_bytes(data[:8], "little")
    if length > min(_LARGEST_HEADER, len(data) - 8):
        raise _Malformed(f"its header would be {length} bytes long")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_without_repeats)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _Malformed("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _Malformed("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Malformed("its metadata are not texts")
    return header, memoryview(data)[8 + length :]


def _without_repeats(pairs: list[tuple]) -> dict:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise _Malformed("its header names an entry twice")
    return entries


def _arrays(header: dict, values: memoryview) -> dict[str, np.ndarray]:
    extents = {name: _extent(name, entry) for name, entry in header.items()}
    position = 0
    for name, (begin, end) in sorted(extents.items(), key=lambda item: item[1]):
        if begin != position:
            raise _Malformed(f"the values of {name!r} overlap others or leave a gap")
        position = end
    if position != len(values):
        raise _Malformed(f"it holds {len(values)} bytes of values where its header says {position}")
    arrays = {}
    for name, entry in header.items():
        begin, end = extents[name]
        dtype = _DTYPES[entry["dtype"]]
        try:
            array = np.frombuffer(values[begin:end], dtype).reshape(entry["shape"])
        except ValueError as error:
            raise _Malformed(f"the shape of {name!r} is beyond what an array can have") from error
        arrays[name] = array.astype(dtype.newbyteorder("="), copy=True)
    return arrays


def _extent(name: str, entry: object) -> tuple[int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"the entry {name!r} is not made of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _Malformed(f"the type {dtype!r} of {name!r} is not supported")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _Malformed(f"shape or offsets of {name!r} are not whole numbers from 0")
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise _Malformed(f"the offsets of {name!r} do not fit its shape and type")
    return offsets[0], offsets[1]


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
