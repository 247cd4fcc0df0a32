"""Real CTs to be X-rayed and registered: read with their bones, and put into a body where they are small crops."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter, map_coordinates

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.volumes import READABLE_SUFFIXES, Volume, read_mask, read_volume

LABELS = "_labels"
# A CT narrower than this is a crop: about it a body of these half axes (right, front) and half height, mm.
CROP_MM, BODY_MM = 250.0, (150.0, 110.0, 120.0)
# Beyond a crop its border goes on, smoothed by so much; along the body it is mirrored, so that there is bone.
SMOOTH_MM = 6.0
AIR_HU, BONE_HU = -1000.0, 200.0


@dataclass(frozen=True, eq=False)
class Subject:
    """One CT.

    Attributes:
        name: the file's, without its ending.
        ct: `Volume` of HU.
        mask: bool `Volume` of the bone that is registered; None: all of the CT.
        targets: (n, 3) RAS mm of the CT, the bone's surface: centres of voxels at its border.
    """

    name: str
    ct: Volume
    mask: Volume | None
    targets: np.ndarray


def ct_files(paths):
    """CT files among files and folders; those whose name ends in `_labels` are not CTs.

    Raises:
        InputError: there is none.
    """
    found = []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        found += [one for one in inside if path.is_file() or one.name.lower().endswith(READABLE_SUFFIXES)]
    found = [one for one in found if not stem(one).endswith(LABELS)]
    if not found:
        raise InputError(f"{', '.join(map(str, paths))} holds no CT: name a folder of {', '.join(READABLE_SUFFIXES)}.")
    return found


def read_subject(path, labels=()):
    """Read a CT and its bone.

    Args:
        path: of the CT. Its labelmap, where there is one, lies beside it as NAME_labels with any ending.
        labels: those that make up the bone; without any, or without a labelmap, all of the CT is registered.

    Raises:
        InputError: a file cannot be read, a label is missing, or the CT holds no bone.
    """
    path, ct = Path(path), read_volume(path)
    mask = None
    if labels:
        beside = [one for one in path.parent.iterdir() if stem(one) == stem(path) + LABELS]
        if not beside:
            raise InputError(f"There is no {stem(path)}{LABELS} beside {path.name}: add it, or leave its labels out.")
        masks = [read_mask(f"{beside[0]}:{label}") for label in labels]
        mask = Volume(np.logical_or.reduce([one.array for one in masks]), masks[0].ijk_to_ras)
    shown = mask or Volume(ct.array > BONE_HU, ct.ijk_to_ras)
    rim = shown.array & ~binary_erosion(shown.array)
    if not rim.any():
        raise InputError(f"{path.name} holds no bone: check that it is in HU.")
    return Subject(stem(path), ct, mask, transform_points(shown.ijk_to_ras, np.argwhere(rim)[:, ::-1]))


def in_a_body(ct):
    """A CT as a whole: a crop inside a body of soft tissue, on an upright grid; any other as it is.

    The X-rays then show more than the CT: its border is not seen in them, and beyond it bone goes on.

    Args:
        ct: `Volume` of HU.
    """
    extent = np.abs(ct.ijk_to_ras[:3, :3]) @ np.array(ct.shape[::-1])
    if extent[:2].min() > CROP_MM:
        return ct
    spacing = float(ct.spacing.min())
    middle = transform_points(ct.ijk_to_ras, (np.array(ct.shape[::-1])[None] - 1) / 2)[0]
    half = np.rint(np.array(BODY_MM) / spacing)
    matrix = np.diag([spacing] * 3 + [1.0])
    matrix[:3, 3] = middle - spacing * half
    shape = tuple(int(n) for n in 2 * half[::-1] + 1)
    upright = int(np.abs(ct.ijk_to_ras[2, :3]).argmax())
    to_voxels = ct.ras_to_ijk @ matrix
    hu, inside = np.empty(shape, np.float32), np.empty(shape, bool)
    values = ct.array.astype(np.float32)
    j, i = np.mgrid[: shape[1], : shape[2]].reshape(2, -1)
    for k in range(shape[0]):
        index = transform_points(to_voxels, np.column_stack([i, j, np.full(len(i), k)]))
        last = np.array(ct.shape[::-1]) - 1
        inside[k] = ((index > -0.5) & (index < last + 0.5)).all(1).reshape(shape[1:])
        index[:, upright] = last[upright] - np.abs(last[upright] - index[:, upright] % (2 * last[upright]))
        hu[k] = map_coordinates(values, index[:, ::-1].T, order=1, mode="nearest").reshape(shape[1:])
    smooth = gaussian_filter(hu, SMOOTH_MM / spacing)
    beside = ~inside.any(0)
    hu[:, beside] = smooth[:, beside]
    x, y = (spacing * (np.arange(n) - n // 2) for n in shape[:0:-1])
    hu[:, (x[None] / BODY_MM[0]) ** 2 + (y[:, None] / BODY_MM[1]) ** 2 > 1] = AIR_HU
    return Volume(hu, matrix)


def stem(path):
    """A file's name without an ending of volumes."""
    name = Path(path).name
    return next((name[: -len(end)] for end in READABLE_SUFFIXES[::-1] if name.lower().endswith(end)), name)
