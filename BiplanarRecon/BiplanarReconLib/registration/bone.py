"""The bone of a CT that is registered: its density, at the resolutions that projecting it from coarse to fine needs."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.alignment import turned_about
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.projection import Projector
from BoneReconstructionLib.volumes import Volume, bounding_box, crop, resample
from BoneReconstructionLib.xraysimulation import densities

# A mask's voxels end within the cortex, whose other half is in the next voxels.
MARGIN_MM = 1.0
# Less bone than this leaves no edges in an X-ray, g.
LEAST_G = 1.0
# Blocks of voxels that stand for the bone where only its whereabouts count.
SAMPLE_MM = 5.0


@dataclass(frozen=True, eq=False)
class Bone:
    """What of a CT is projected.

    Attributes:
        density: `Volume` of bone beyond soft tissue, g/cm^3, cropped to where it is.
        centre: (3,) its centre of mass, about which it turns, RAS mm of the CT.
        radius_mm: root mean square distance of its mass from the centre; what a turn moves by.
    """

    density: Volume
    centre: np.ndarray
    radius_mm: float

    def projector(self, voxel_mm):
        """A `Projector` of the bone in voxels of about so many mm, not finer than the CT's."""
        return Projector(_binned(self.density, voxel_mm))

    def apart(self, first, second):
        """How far two (4, 4) poses of the bone are apart: (mm between its centres, degrees)."""
        gap = transform_points(first, self.centre[None]) - transform_points(second, self.centre[None])
        turn = Rotation.from_matrix(first[:3, :3] @ second[:3, :3].T)
        return float(np.linalg.norm(gap)), float(np.degrees(turn.magnitude()))

    def turned(self, pose, rotation_vector, shift):
        """A pose of the bone, followed by a turn about where its centre lies, and a shift.

        Args:
            pose: (4, 4) from the CT's RAS to the X-rays' world, mm.
            rotation_vector: (3,) radians, in the world's axes.
            shift: (3,) mm, in the world's axes.

        Returns:
            (4, 4).
        """
        centre = transform_points(pose, self.centre[None])[0]
        return turned_about(rotation_vector, centre, shift) @ pose

    @cached_property
    def samples(self):
        """((n, 3) points of the CT in RAS mm, (n,) their shares of the bone's mass)."""
        coarse = _binned(self.density, SAMPLE_MM)
        kji = np.argwhere(coarse.array)
        mass = coarse.array[tuple(kji.T)].astype(float)
        return transform_points(coarse.ijk_to_ras, kji[:, ::-1]), mass / mass.sum()


def bone_of(ct, mask=None):
    """The bone of a CT.

    Args:
        ct: `Volume` of HU.
        mask: bool `Volume` of the one bone to be registered, of any grid; all that is bone by its HU when None.

    Returns:
        Bone.

    Raises:
        InputError: the CT shows hardly any bone, or none in the mask.
    """
    if mask is not None:
        inside = resample(mask, ct.shape, ct.ijk_to_ras, "antialiased").array
        low, high = bounding_box(inside)
        low, high = low - 2, high + 2
        ct, inside = crop(ct, low, high), crop(Volume(inside, ct.ijk_to_ras), low, high).array
        inside = binary_dilation(inside, iterations=max(round(MARGIN_MM / float(ct.spacing.mean())), 1))
    bone = densities(ct.array)[1]
    if mask is not None:
        bone *= inside
    grams = float(bone.sum(dtype=float) * np.prod(ct.spacing) / 1000)
    if grams < LEAST_G:
        raise InputError(
            "The CT shows hardly any bone"
            + (" in the mask: check that both are of one patient." if mask is not None else ": check that it is in HU.")
        )
    density = crop(Volume(bone, ct.ijk_to_ras), *bounding_box(bone))
    kji = np.argwhere(density.array)
    weight = density.array[tuple(kji.T)].astype(float)
    points = transform_points(density.ijk_to_ras, kji[:, ::-1])
    centre = weight @ points / weight.sum()
    spread = weight @ ((points - centre) ** 2).sum(1) / weight.sum()
    return Bone(density, centre, float(np.sqrt(spread)))


def _binned(volume, voxel_mm):
    """Means over blocks of voxels that are about `voxel_mm` wide."""
    block = np.maximum(np.rint(voxel_mm / volume.spacing[::-1]), 1).astype(int)
    if (block == 1).all():
        return volume
    padded = np.pad(volume.array, [(0, -size % n) for size, n in zip(volume.shape, block, strict=True)])
    counts = np.array(padded.shape) // block
    means = padded.reshape(np.column_stack([counts, block]).ravel()).mean(axis=(1, 3, 5))
    matrix = volume.ijk_to_ras.copy()
    matrix[:3, 3] += matrix[:3, :3] @ ((block[::-1] - 1) / 2)
    matrix[:3, :3] *= block[::-1]
    return Volume(means, matrix)
