"""The shape and pose model of a knee's four bones that is fitted to X-rays.

Each bone has a similarity knee-to-world and coefficients of one basis: the principal components of what the prior's
modes and kernels say together, each of one standard deviation. Inside its surface lies that of the marrow, a usual
cortex deep. Everything is right-sided; a left knee is seen through mirrored views.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.kneemeasurements import height_along
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import Surface, vertex_normals

MODEL = "knee-prior"
BONES = ("femur", "tibia", "fibula", "patella")
# Share of the prior's variance that the basis keeps, and the most components of it.
VARIANCE, COMPONENTS = 0.99, 45
# A usual cortex at the joint and at the shaft, mm; its true thickness goes into the fitted attenuation.
END_CORTEX_MM, SHAFT_CORTEX_MM = 1.25, 4.5
# Own parameters of each bone before the coefficients: shift along x, y, z (mm), turn about x, y, z (rad), log-scale.
MOTION = 7


@dataclass(frozen=True, eq=False)
class BoneModel:
    """One bone's mean, basis and cortex.

    Attributes:
        name: the bone.
        mean: (n, 3) mm, standard frame.
        faces: (m, 3).
        basis: (k, n, 3) float32 mm, one standard deviation each.
        cortex_mm: (n,) thickness of a usual cortex below each vertex at scale 1.
    """

    name: str
    mean: np.ndarray
    faces: np.ndarray
    basis: np.ndarray
    cortex_mm: np.ndarray

    @cached_property
    def cap(self):
        """(m,) bool, the faces of the fan that closes the cut shaft, about the last vertex; none of the patella."""
        cut = self.name != "patella"
        return (self.faces == len(self.mean) - 1).any(1) & cut

    @cached_property
    def face_basis(self):
        """(k, m, 3) float32, the basis at the faces' centres."""
        return self.basis[:, self.faces].mean(2)


@dataclass(frozen=True, eq=False)
class BoneState:
    """Where a bone is and what it looks like.

    Attributes:
        model: its `BoneModel`.
        matrix: (4, 4) similarity world_from_standard.
        weights: (k,) standard deviations along the basis.
    """

    model: BoneModel
    matrix: np.ndarray
    weights: np.ndarray

    @cached_property
    def surface(self):
        """The bone's surface in the world, mm."""
        shape = self.model.mean + np.tensordot(self.weights, self.model.basis, 1)
        return Surface(transform_points(self.matrix, shape), self.model.faces)

    @cached_property
    def marrow(self):
        """The surface of what the cortex surrounds, mm."""
        outer = self.surface
        depth = self.scale * self.model.cortex_mm
        return Surface(outer.vertices - depth[:, None] * vertex_normals(outer), outer.faces)

    @cached_property
    def centre(self):
        """(3,) mean of the vertices: what turns and scale are about."""
        return self.surface.vertices.mean(0)

    @property
    def scale(self):
        """Size relative to the mean bone."""
        return float(np.cbrt(np.linalg.det(self.matrix[:3, :3])))

    def moved(self, motion, change):
        """The state after own parameters (7,) and a change (k,) of the weights."""
        linear = np.exp(motion[6]) * Rotation.from_rotvec(motion[3:6]).as_matrix()
        step = np.eye(4)
        step[:3, :3] = linear
        step[:3, 3] = self.centre + motion[:3] - linear @ self.centre
        return BoneState(self.model, step @ self.matrix, self.weights + change)

    def carried(self, step):
        """The state after a (4, 4) similarity of the world."""
        return replace(self, matrix=step @ self.matrix)


def load_models(model_id=MODEL):
    """{bone: BoneModel} of the knee prior.

    Raises:
        InputError: the model's weights are missing or altered.
    """
    return {bone: bone_model(bone, load_prior(model_id, bone)) for bone in BONES}


def bone_model(name, prior):
    """A bone's model out of its prior."""
    height = height_along(name, prior.mean, prior.mean)
    shaft = np.clip((height - 0.06) / 0.2, 0, 1)
    shaft = shaft * shaft * (3 - 2 * shaft)
    cortex = END_CORTEX_MM + (SHAFT_CORTEX_MM - END_CORTEX_MM) * shaft
    return BoneModel(name, prior.mean, prior.faces, principal_basis(prior), cortex)


def coarser(model, cell_mm):
    """The model with the vertices in each cell of a grid drawn together: a closed mesh stays one.

    Args:
        model: a `BoneModel`.
        cell_mm: size of the cells.

    Returns:
        BoneModel of the same basis; poses and weights mean the same for both.
    """
    cells = np.floor(model.mean / cell_mm).astype(int)
    _, group = np.unique(cells[:-1], axis=0, return_inverse=True)
    # The middle of the cap stays the last vertex, by itself.
    group = np.append(group.ravel(), group.max() + 1)
    share = csr_matrix((1 / np.bincount(group)[group], (group, np.arange(len(group)))))
    faces = group[model.faces]
    apart = (faces != np.roll(faces, 1, axis=1)).all(1)
    basis = np.stack([share @ component for component in model.basis]).astype(np.float32)
    return BoneModel(model.name, share @ model.mean, faces[apart], basis, share @ model.cortex_mm)


def principal_basis(prior):
    """(k, n, 3) float32 principal components of modes and kernels together, one standard deviation each, mm."""
    modes, kernels = prior.modes.reshape(len(prior.modes), -1), prior.vertex_basis.T
    along = [np.kron(kernels, np.eye(3)[axis]) for axis in range(3)]
    rows = np.concatenate([modes, *along]).astype(np.float32)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    values, vectors = values[::-1], vectors[:, ::-1]
    count = min(int(np.searchsorted(np.cumsum(values) / values.sum(), VARIANCE)) + 1, COMPONENTS)
    return (vectors[:, :count].T @ rows).reshape(count, -1, 3)
