"""Landmarks that somebody points at in the X-rays: they tell the search where the knee is, and then are forgotten."""

from dataclasses import dataclass

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points

# What can be seen from the front and from the side, and the bone it belongs to.
LANDMARKS = {"tibial-eminence": "tibia", "fibular-head": "fibula", "patella": "patella"}
# Tips are the mean of what lies so near to the bone's highest vertex, mm.
TIP_MM = 3.0


@dataclass(frozen=True)
class Landmark:
    """A landmark seen in one X-ray.

    Attributes:
        view: number of the X-ray, 0 frontal, 1 lateral.
        name: of `LANDMARKS`: the tip of the tibial eminence, the tip of the fibular head, or the patella's middle.
        pixel: (column, row) in the image.
    """

    view: int
    name: str
    pixel: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Ray:
    """Where a landmark must lie.

    Attributes:
        name: of `LANDMARKS`.
        source: (3,) mm.
        direction: (3,) unit vector.
    """

    name: str
    source: np.ndarray
    direction: np.ndarray


def check_landmarks(landmarks, shapes):
    """Refuse landmarks that cannot start a search.

    Args:
        landmarks: list of `Landmark`; may be empty.
        shapes: (rows, columns) of each X-ray.

    Raises:
        InputError: an unknown name, a pixel beside its image, a landmark named twice, or an X-ray without any.
    """
    for one in landmarks:
        if one.name not in LANDMARKS:
            raise InputError(f"There is no landmark {one.name!r}: choose one of {', '.join(LANDMARKS)}.")
        rows, columns = shapes[one.view]
        if not (-0.5 <= one.pixel[0] <= columns - 0.5 and -0.5 <= one.pixel[1] <= rows - 0.5):
            raise InputError(
                f"The landmark {one.name} lies beside the image of {columns} x {rows} pixels: give its column and row."
            )
    if len({(one.view, one.name) for one in landmarks}) < len(landmarks):
        raise InputError("A landmark is given twice in one X-ray: give each once.")
    if landmarks and len({one.view for one in landmarks}) < len(shapes):
        raise InputError("Landmarks in one X-ray do not tell how deep the knee lies: give one in the other X-ray, too.")


def rays_of(landmarks, geometries):
    """list of `Ray` through the landmarks' pixels."""
    rays = []
    for one in landmarks:
        geometry = geometries[one.view]
        direction = geometry.pixel_positions(np.array([one.pixel]))[0] - geometry.source
        rays.append(Ray(one.name, geometry.source, direction / np.linalg.norm(direction)))
    return rays


def shift_onto(rays, bones):
    """(3,) shift in mm that brings bones' landmarks nearest to their rays, in least squares.

    Args:
        rays: list of `Ray`, of two X-rays.
        bones: {bone: `kneemodel.BoneState`}.
    """
    matrix, right = np.zeros((3, 3)), np.zeros(3)
    for ray in rays:
        across = np.eye(3) - np.outer(ray.direction, ray.direction)
        matrix += across
        right += across @ (ray.source - _place(bones, ray.name))
    return np.linalg.solve(matrix, right)


def _place(bones, name):
    """(3,) position of a landmark on the bones, mm."""
    state = bones[LANDMARKS[name]]
    height = state.model.mean[:, 2]
    chosen = slice(None) if name == "patella" else height > height.max() - TIP_MM
    return transform_points(state.matrix, state.model.mean[chosen].mean(0)[None])[0]
