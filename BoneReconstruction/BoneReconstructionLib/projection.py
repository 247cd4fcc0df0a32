"""X-rays of volumes: line integrals along the rays of an `XrayGeometry`, by the fastest engine that is installed.

The volume is linear between its voxels' centres and zero one voxel beyond the outermost ones, and the integral runs
along the whole ray. The engines are numba (`shearwarp`) and torch (`torchprojection`, which is differentiable as
well); each is imported only when it is used.
"""

import importlib.util
from collections.abc import Sequence

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import Volume, bounding_box, check_geometry, crop
from BoneReconstructionLib.xraygeometry import XrayGeometry

ENGINES = ("numba", "torch")


def installed_engines() -> tuple[str, ...]:
    """Those of `ENGINES` that are installed, the fastest first."""
    return tuple(engine for engine in ENGINES if importlib.util.find_spec(engine) is not None)


class Projector:
    """Projects one volume into many views, in many poses.

    Args:
        volume: attenuation per mm for line integrals, or 1 inside a bone for path lengths in mm, and so on; 0 is
            nothing. The box around what is not 0 is kept as float32, in the order that the views need.
        engine: one of `ENGINES`; the fastest that is installed when None.

    Attributes:
        engine: the one in use, for the user to know.

    Raises:
        InputError: the volume's geometry is sheared, or the engine is not known.
        ModuleNotFoundError: the engine, or any engine, is not installed.
    """

    def __init__(self, volume: Volume, engine: str | None = None):
        installed = installed_engines()
        if engine is not None and engine not in ENGINES:
            raise InputError(f"There is no projection engine {engine}: choose one of {', '.join(ENGINES)}.")
        if engine not in installed and (engine is not None or not installed):
            raise ModuleNotFoundError(f"No module named {engine or ENGINES[0]!r}", name=engine or ENGINES[0])
        check_geometry(volume.ijk_to_ras)
        self.engine = engine or installed[0]
        box = bounding_box(volume.array) if volume.array.any() else (np.zeros(3, int), np.ones(3, int))
        self._volume = _thickened(crop(volume, *box))
        self._slices: dict[int, np.ndarray] = {}

    def __call__(self, geometry: XrayGeometry, ras_from_volume: np.ndarray | None = None) -> np.ndarray:
        """One X-ray.

        Args:
            geometry: of the view.
            ras_from_volume: (4, 4) motion of the volume in the world; where it is when None.

        Returns:
            (rows, columns) float32: the integral of the volume along each ray, in the volume's unit times mm.

        Raises:
            InputError: the source lies within or beside the volume, so that rays run through it both ways.
        """
        ijk_to_ras = self._volume.ijk_to_ras
        if ras_from_volume is not None:
            ijk_to_ras = np.asarray(ras_from_volume, dtype=float) @ ijk_to_ras
        if self.engine == "numba":
            from BoneReconstructionLib import shearwarp

            axis, homography, source, rays = rays_in_voxels(self._volume.shape, ijk_to_ras, geometry)
            return shearwarp.project(self._slices_across(axis), homography, source, rays, geometry.shape)
        import torch

        from BoneReconstructionLib import torchprojection

        with torch.inference_mode():
            values = torch.from_numpy(np.ascontiguousarray(self._volume.array, dtype=np.float32))
            return torchprojection.project(values, torch.from_numpy(ijk_to_ras), geometry).numpy()

    def _slices_across(self, axis: int) -> np.ndarray:
        """(S, Y, X) slices across an array axis (0 is k), in the order of `rays_in_voxels`."""
        if axis not in self._slices:
            order = slice_order(axis)
            self._slices[axis] = np.ascontiguousarray(self._volume.array.transpose(order), dtype=np.float32)
        return self._slices[axis]


def _thickened(volume: Volume) -> Volume:
    """The volume with at least two voxels along each axis, which interpolation needs."""
    missing = [(0, max(0, 2 - size)) for size in volume.shape]
    return Volume(np.pad(volume.array, missing), volume.ijk_to_ras) if np.any(missing) else volume


def slice_order(axis: int) -> tuple[int, int, int]:
    """Array axes (slices, y, x) of a [k, j, i] volume that is cut across one of them."""
    return (axis, *(other for other in range(3) if other != axis))


def slicing_axis(shape_kji: Sequence[int], ijk_to_ras: np.ndarray, geometry: XrayGeometry) -> int:
    """Array axis (0 is k) of a volume along which a view's rays run fastest through the voxels.

    Args:
        shape_kji: of the volume.
        ijk_to_ras: (4, 4) of the volume.
        geometry: of the view.

    Raises:
        InputError: the source is not clear of the volume along that axis.
    """
    to_voxels = np.linalg.inv(ijk_to_ras)
    beam = to_voxels[:3, :3] @ geometry.beam
    # Index n of (i, j, k) is array axis 2 - n.
    index = int(np.abs(beam).argmax())
    axis = 2 - index
    source = to_voxels[index, :3] @ geometry.source + to_voxels[index, 3]
    clear = -source if beam[index] > 0 else source - (shape_kji[axis] - 1)
    if clear < 1:
        raise InputError(
            "The X-ray source lies within or beside the volume: check the distances, and that the volume is where it "
            "should be."
        )
    return axis


def rays_in_voxels(
    shape_kji: Sequence[int], ijk_to_ras: np.ndarray, geometry: XrayGeometry
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """A view's rays in the voxels of a volume that is cut into slices across the axis that they follow most.

    Args:
        shape_kji: of the volume.
        ijk_to_ras: (4, 4) of the volume.
        geometry: of the view.

    Returns:
        axis: array axis (0 is k) across which the slices lie; x, y and s are the axes of `slice_order`, backwards.
        homography: (3, 3); (dx/ds * w, dy/ds * w, w) of (column, row, 1).
        source: (3,) position (x, y, s) of the source in voxels.
        rays: (3, 3); vector in mm from the source to the pixel (column, row, 1).

    Raises:
        InputError: the source lies within or beside the volume along that axis.
    """
    axis = slicing_axis(shape_kji, ijk_to_ras, geometry)
    to_voxels = np.linalg.inv(ijk_to_ras)
    xys = [2 - n for n in slice_order(axis)[::-1]]
    source = (to_voxels[:3, :3] @ geometry.source + to_voxels[:3, 3])[xys]
    rays = geometry.pixel_to_ras[:3, [0, 1, 3]]
    rays[:, 2] -= geometry.source
    return axis, (to_voxels[:3, :3] @ rays)[xys], source, rays
