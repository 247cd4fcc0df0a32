"""Test bones: random tibiae out of the bundled prior, and their masks on oblique, anisotropic, left-handed grids."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from phantoms import frame
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_normals
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks
from BoneReconstructionLib.volumes import Volume, crop

COARSE = frame((1.6, 1.8, 2.5), (12, -9, 28), "j")


@cache
def tibia_prior():
    return load_prior("tibia-prior", "tibia")


@cache
def landmarks():
    return TibiaLandmarks(tibia_prior().mean, tibia_prior().faces)


def random_tibiae(seed, count):
    """(count, n, 3) vertices of random right tibiae in the standard frame and the template's correspondence, mm."""
    prior = tibia_prior()
    sampling = find_model("tibia-prior").tensors()["sampling"].astype(float)
    log_scale, modes, kernels = random_weights(
        np.random.default_rng(seed), count, len(prior.modes), prior.vertex_basis.shape[1], sampling
    )
    sizes = np.exp(prior.log_scale_sd * log_scale)
    return np.array([size * prior.shape(*weights) for size, *weights in zip(sizes, modes, kernels, strict=True)])


@cache
def unseen_tibia(seed=11):
    """A random right tibia with waves of 0.3 mm on it, which neither modes nor kernels of the prior describe."""
    vertices, faces = random_tibiae(seed, 1)[0], tibia_prior().faces
    waves = 0.3 * np.sin(vertices @ np.array([0.31, 0.22, 0.17]) + 1.0)
    return Surface(vertices + waves[:, None] * vertex_normals(Surface(vertices, faces)), faces)


def pose(rotation_degrees=(0, 0, 0), translation=(0.0, 0.0, 0.0), scale=1.0):
    """(4, 4) similarity: turned about x, y, z, then scaled and moved."""
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_euler("xyz", rotation_degrees, degrees=True).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def ct_of(bone):
    """Reader of the CT that a bool volume would make, 1200 HU in the bone and 40 HU elsewhere, as `make_case` takes."""

    def read_ct(lower, upper):
        return crop(Volume(np.where(bone.array, 1200, 40).astype(np.int16), bone.ijk_to_ras), lower, upper)

    return read_ct


def heights(shape_kji, matrix):
    """(K, J, I) third coordinate of a grid's voxel centres in the frame that the (4, 4) matrix leads to."""
    k, j, i = np.ogrid[: shape_kji[0], : shape_kji[1], : shape_kji[2]]
    return matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 2] * k + matrix[2, 3]


@dataclass(frozen=True, eq=False)
class Leg:
    """A healthy tibia in a scanner, and what is left of it.

    Attributes:
        side: "left" or "right".
        ras_from_standard: (4, 4), mirroring for a left leg.
        truth: the healthy tibia, RAS mm, its vertices in the template's order.
        bone: bool volume of the healthy tibia.
        gap: bool volume of a band across it.
    """

    side: str
    ras_from_standard: np.ndarray
    truth: Surface
    bone: Volume
    gap: Volume

    @property
    def tibia(self):
        """Bool volume of the bone outside the gap."""
        return Volume(self.bone.array & ~self.gap.array, self.bone.ijk_to_ras)

    @property
    def ct(self):
        """int16 volume, 1200 HU in the bone that is left and 40 HU elsewhere."""
        return Volume(np.where(self.tibia.array, 1200, 40).astype(np.int16), self.bone.ijk_to_ras)

    def heights(self, points):
        """(n,) standard height of (n, 3) RAS points, mm."""
        matrix = np.linalg.inv(self.ras_from_standard)
        return points @ matrix[2, :3] + matrix[2, 3]


def leg(side="left", axes=COARSE, gap_mm=(-30.0, 30.0), shown_mm=(-np.inf, np.inf), margin_mm=20.0, surface=None):
    """A leg on a grid with given axes; gap and scanned part are bands of standard height.

    Args:
        side: "left" or "right"; a left leg on mirrored axes has the same voxels as a right one.
        axes: (4, 4) IJK-to-RAS whose axes the grid has.
        gap_mm: lower and upper end of the fracture.
        shown_mm: lower and upper end of the scan.
        margin_mm: of the grid around the bone.
        surface: a right tibia in the standard frame; `unseen_tibia` when None.
    """
    right = unseen_tibia() if surface is None else surface
    ras_from_standard = side_to_right(side) @ pose((8, -5, 20), (95.0, 20.0, -600.0))
    axes = side_to_right(side) @ axes
    truth = transformed(right, ras_from_standard)
    within = right.vertices[(right.vertices[:, 2] >= shown_mm[0]) & (right.vertices[:, 2] <= shown_mm[1])]
    seen = within @ ras_from_standard[:3, :3].T + ras_from_standard[:3, 3]
    ijk = seen @ np.linalg.inv(axes[:3, :3]).T
    margin = margin_mm / np.linalg.norm(axes[:3, :3], axis=0)
    ijk_to_ras = axes.copy()
    ijk_to_ras[:3, 3] = axes[:3, :3] @ (ijk.min(0) - margin)
    shape = tuple(int(size) for size in np.ceil(np.ptp(ijk, axis=0) + 2 * margin)[::-1] + 1)
    height = heights(shape, np.linalg.inv(ras_from_standard) @ ijk_to_ras)
    bone = voxelize(truth, shape, ijk_to_ras)
    shown = (height >= shown_mm[0]) & (height <= shown_mm[1])
    gap = (height >= gap_mm[0]) & (height <= gap_mm[1])
    return Leg(side, ras_from_standard, truth, Volume(bone.array & shown, ijk_to_ras), Volume(gap, ijk_to_ras))
