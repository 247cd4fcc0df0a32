"""Lines, angles and planes to be drawn over a bone, and the `.mrk.json` files in which Slicer keeps them."""

import json
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points

KINDS = ("line", "angle", "plane")
MARKUPS_SUFFIX = ".mrk.json"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_LPS_SIGNS = np.array([-1.0, -1.0, 1.0])
_MEASURED = {"line": ("length", "mm"), "angle": ("angle", "deg")}
_PLANE_OPACITY = 0.3


@dataclass(frozen=True, eq=False)
class Markup:
    """What a scene needs to draw one markup; no Slicer node.

    Attributes:
        name: what it shows.
        kind: "line", "angle" or "plane".
        points: (k, 3) RAS mm. Line: its two ends. Angle: end of the first arm, vertex, end of the second arm. Plane:
            its centre and the middles of two neighbouring edges, which lie at right angles from it.
        colour: red, green and blue, 0 to 1.
    """

    name: str
    kind: str
    points: np.ndarray
    colour: tuple[float, float, float]

    def transformed(self, matrix):
        """The same moved by a (4, 4) affine matrix, which may mirror it."""
        return replace(self, points=transform_points(matrix, self.points))

    @property
    def plane_axes(self):
        """Columns (3, 3): unit vectors along the two sides of a plane and its normal, right-handed."""
        first, second = (edge / np.linalg.norm(edge) for edge in self.points[1:] - self.points[0])
        return np.stack([first, second, np.cross(first, second)], 1)

    @property
    def plane_size(self):
        """(2,) lengths of the two sides of a plane, mm."""
        return 2 * np.linalg.norm(self.points[1:] - self.points[0], axis=1)


def angle_degrees(points):
    """Angle at the second of three points (3, 3) between the first and the third, 0 to 180 degrees."""
    first, second = points[0] - points[1], points[2] - points[1]
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), first @ second)))


def write_markup(path, markup, description=""):
    """Write one markup as Slicer does, in LPS mm as the file says; a file of that name is replaced.

    Args:
        path: a file that ends in `.mrk.json`, in an existing folder.
        markup: `Markup`.
        description: what it tells, which Slicer shows beside its points.

    Raises:
        InputError: another ending, or a folder that is missing, read-only or full.
    """
    path = Path(path)
    if not path.name.endswith(MARKUPS_SUFFIX):
        raise InputError(f"{path.name} does not end in {MARKUPS_SUFFIX}: choose a name that does.")
    temporary = path.with_name(f".{uuid.uuid4().hex}{MARKUPS_SUFFIX}")
    try:
        text = json.dumps({"@schema": _SCHEMA, "markups": [_contents(markup, description)]}, indent=2)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: check that its folder exists, is writable and not full."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _contents(markup, description):
    contents = {
        "type": markup.kind.capitalize(),
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "labelFormat": "%N-%d",
    }
    placed = markup.points
    if markup.kind == "plane":
        placed = markup.points[:1]
        axes, width, height = _LPS_SIGNS[:, None] * markup.plane_axes, *markup.plane_size
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = axes, _LPS_SIGNS * markup.points[0]
        contents |= {
            "planeType": "pointNormal",
            "sizeMode": "absolute",
            "center": matrix[:3, 3].tolist(),
            "normal": axes[:, 2].tolist(),
            "objectToBase": np.diag([*_LPS_SIGNS, 1.0]).ravel().tolist(),  # Slicer turns it, too, from LPS to RAS
            "baseToNode": matrix.ravel().tolist(),
            "orientation": axes.ravel().tolist(),
            "size": [width, height, 0.0],
            "planeBounds": [-width / 2, width / 2, -height / 2, height / 2],
        }
    contents["controlPoints"] = [
        {
            "id": str(number),
            "label": f"{markup.name}-{number}",
            "description": description,
            "position": (_LPS_SIGNS * point).tolist(),
            "selected": True,
            "locked": True,
            "visibility": True,
            "positionStatus": "defined",
        }
        for number, point in enumerate(placed, 1)
    ]
    if markup.kind in _MEASURED:
        name, units = _MEASURED[markup.kind]
        contents["measurements"] = [{"name": name, "enabled": True, "units": units, "printFormat": "%-#4.4g%s"}]
    contents["display"] = {
        "visibility": True,
        "opacity": _PLANE_OPACITY if markup.kind == "plane" else 1.0,
        "color": list(markup.colour),
        "selectedColor": list(markup.colour),
        "propertiesLabelVisibility": True,
        "pointLabelsVisibility": False,
    }
    return contents
