"""DICOM X-rays written by hand, with the tags that a test wants."""

import struct

import numpy as np

CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
}


def write_dicom(path, values, modality="DX", photometric="MONOCHROME2", frames=None, tags=()):
    """Writes 16-bit values [row, column] as explicit little endian; tags are {(group, element, VR): text}."""
    unsigned = np.ascontiguousarray(values, dtype="<u2")
    rows, columns = unsigned.shape[-2:]
    elements = {
        (0x0008, 0x0016, "UI"): CLASSES[modality],
        (0x0008, 0x0018, "UI"): "1.2.3.4.5",
        (0x0008, 0x0060, "CS"): modality,
        (0x0010, 0x0010, "PN"): "Nobody",
        (0x0028, 0x0002, "US"): 1,
        (0x0028, 0x0004, "CS"): photometric,
        (0x0028, 0x0010, "US"): rows,
        (0x0028, 0x0011, "US"): columns,
        (0x0028, 0x0100, "US"): 16,
        (0x0028, 0x0101, "US"): 16,
        (0x0028, 0x0102, "US"): 15,
        (0x0028, 0x0103, "US"): 0,
        (0x7FE0, 0x0010, "OW"): unsigned.tobytes(),
        **dict(tags),
    }
    if frames:
        elements[0x0028, 0x0008, "IS"] = str(frames)
    meta = _elements(
        {
            (0x0002, 0x0001, "OB"): b"\x00\x01",
            (0x0002, 0x0002, "UI"): CLASSES[modality],
            (0x0002, 0x0003, "UI"): "1.2.3.4.5",
            (0x0002, 0x0010, "UI"): "1.2.840.10008.1.2.1",
            (0x0002, 0x0012, "UI"): "1.2.3.4",
        }
    )
    length = _elements({(0x0002, 0x0000, "UL"): len(meta)})
    path.write_bytes(b"\0" * 128 + b"DICM" + length + meta + _elements(elements))
    return path


def _elements(elements):
    return b"".join(_element(*key, value) for key, value in sorted(elements.items(), key=lambda item: item[0][:2]))


def _element(group, element, kind, value):
    if kind in ("US", "SS"):
        data = struct.pack("<h" if kind == "SS" else "<H", value)
    elif kind == "UL":
        data = struct.pack("<I", value)
    else:
        data = value if isinstance(value, bytes) else value.encode()
    if len(data) % 2:
        data += b"\0" if kind in ("UI", "OB") else b" "
    head = struct.pack("<HH", group, element) + kind.encode()
    if kind in ("OB", "OW"):
        return head + struct.pack("<HI", 0, len(data)) + data
    return head + struct.pack("<H", len(data)) + data
