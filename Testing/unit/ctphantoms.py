"""CTs of an asymmetric bone beside another one in soft tissue, on any grid, and X-rays of them in known poses."""

import numpy as np
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.volumes import Volume
from BoneReconstructionLib.xraygeometry import preset_view
from BoneReconstructionLib.xraysimulation import XrayConditions, XraySimulator

SHAPE = (160, 152)
MIDDLE = np.array([12.0, -35.0, 140.0])
# (centre, half axes, HU) of ellipsoids, mm about `MIDDLE`: a body with a hollow, two arms of different length and a
# spine, so that no mirror image and no half turn is alike.
BONE = (
    ((0, 8, 0), (20, 14, 12), 700),
    ((0, 8, 0), (16, 10, 8), 250),
    ((-24, -6, 3), (16, 4, 5), 600),
    ((20, -8, -3), (11, 5, 4), 600),
    ((4, -24, -8), (4, 16, 6), 800),
)
NEIGHBOUR = (((3, 6, 42), (18, 13, 12), 700), ((-6, -18, 36), (4, 12, 5), 600))
FRAMES = {
    "upright": np.diag([1.4, 1.4, 1.4]),
    "anisotropic and oblique": Rotation.from_euler("xyz", (14, -11, 23), degrees=True).as_matrix()
    @ np.diag([1.1, 1.3, 2.2]),
    "flipped and permuted": np.array([[0, 0, -1.6], [-1.2, 0, 0], [0, 1.4, 0]]),
}


def ct(axes=FRAMES["upright"], solids=(*BONE, *NEIGHBOUR), half_mm=(62.0, 52.0, 62.0)):
    """HU on a grid with the columns of `axes` (3, 3) for voxel axes, about `MIDDLE`: a block of soft tissue in air."""
    spacing = np.linalg.norm(axes, axis=0)
    extent = np.abs(np.linalg.inv(axes)) @ np.array(half_mm)
    counts = 2 * np.ceil(extent).astype(int) + 1
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, MIDDLE - axes @ ((counts - 1) / 2)
    points = transform_points(matrix, np.stack(np.indices(counts[::-1])[::-1], -1).reshape(-1, 3)) - MIDDLE
    hu = np.where((np.abs(points) <= half_mm).all(1), 40.0, -1000.0)
    for centre, axes_mm, value in solids:
        depth = (1 - np.linalg.norm((points - centre) / axes_mm, axis=1)) * min(axes_mm)
        share = np.clip(0.5 + depth / spacing.mean(), 0, 1)
        hu += share * (value - hu)
    return Volume(hu.reshape(counts[::-1]).astype(np.float32), matrix)


def mask(axes=FRAMES["upright"] * 0.8):
    """bool, of `BONE` alone, on a grid of its own."""
    empty = ct(axes, ())
    points = transform_points(empty.ijk_to_ras, np.stack(np.indices(empty.shape)[::-1], -1).reshape(-1, 3)) - MIDDLE
    inside = [np.linalg.norm((points - centre) / axes_mm, axis=1) < 1 for centre, axes_mm, _ in BONE]
    return Volume(np.logical_or.reduce(inside).reshape(empty.shape), empty.ijk_to_ras)


def views(isocentre=(0.0, 0.0, 0.0)):
    """A frontal and a lateral view by a C-arm with coarse pixels."""
    return [preset_view("c-arm", name, isocentre).resized(SHAPE) for name in ("AP", "left lateral")]


def pose(degrees=(6.0, -8.0, 5.0), shift=(7.0, -4.0, 6.0)):
    """(4, 4) from a CT to the X-rays' world: turned about `MIDDLE`, which goes near the views' isocentre."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees)).as_matrix()
    matrix[:3, 3] = np.array(shift) - matrix[:3, :3] @ MIDDLE
    return matrix


def xrays(volume, truth, geometries, photons=2e5):
    """Radiographs of a CT that a pose has moved; polychromatic, with scatter and noise."""
    simulator, conditions = XraySimulator(volume), XrayConditions(photons, 10.0, 0.1, kilovolt=70.0)
    back = np.linalg.inv(truth)
    return [simulator(geometry.moved(back), conditions, n) for n, geometry in enumerate(geometries)]


def surface_points():
    """(n, 3) points of the bone's surface in the CT's RAS, mm."""
    directions = Rotation.random(60, random_state=1).apply([0, 0, 1])
    return np.concatenate([MIDDLE + np.array(centre) + directions * axes_mm for centre, axes_mm, _ in BONE])
