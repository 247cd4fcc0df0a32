"""Virtual people and plain CTs of their lower legs, made in torch from the learned prior, without meshes or vtk.

A bone is the signed distance field of the mean bone, warped: a smooth displacement field on a coarse grid, linear in
the prior's weights, says where each point of the mean bone lies in the person. To render, the field is inverted by
fixed-point iteration and the mean distance is looked up; the person's own surface points come from the same field, so
that picture and truth agree. Everything random comes from one seed.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch.nn import functional

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights
from BoneReconstructionLib.shapeprior import Kernel, load_prior
from BoneReconstructionLib.surfaces import Surface, vertex_normals

BONES = ("tibia", "fibula")
FIELD_SPACING_MM = 5.0
DISTANCE_SPACING_MM = 1.5
EXACT_MM = 6.0
MARGIN_MM = 24.0
INVERSION_STEPS = 25
SLABS = 16
# The empirical modes are known on the bone; this smooth kernel carries them into the space around it.
# Weaker smoothing follows the modes closer, but overshoots between bone and air until the field folds.
EXTENSION = Kernel(1.0, (16.0, 16.0, 16.0))
EXTENSION_RIDGE = 0.01


@dataclass(frozen=True)
class PatientRanges:
    """What varies between virtual patients and their scans beside shape: (lowest, highest), drawn uniformly.

    Cortical thickness of the shaft and at the joint ends in mm (tibial mid-shaft 4-6 mm anteriorly, under 1.5 mm at
    the metaphyses), HU of cortex, cancellous bone, marrow and soft tissue, standard deviation of the scanner's blur in
    mm and of its noise in HU.
    """

    shaft_cortex_mm: tuple[float, float] = (3.5, 5.5)
    end_cortex_mm: tuple[float, float] = (0.9, 1.6)
    cortical_hu: tuple[float, float] = (1150.0, 1600.0)
    cancellous_hu: tuple[float, float] = (120.0, 320.0)
    marrow_hu: tuple[float, float] = (-80.0, 20.0)
    soft_tissue_hu: tuple[float, float] = (30.0, 70.0)
    blur_mm: tuple[float, float] = (0.4, 0.7)
    noise_hu: tuple[float, float] = (10.0, 30.0)


@dataclass(frozen=True, eq=False)
class VirtualPerson:
    """The weights of one person and of the scan, all drawn from one seed.

    Attributes:
        seed: where it came from.
        scale: size relative to the mean bone.
        mode_weights: (r,) standard deviations, shared by both bones.
        kernel_weights: {bone: (q, 3)} standard deviations.
        tissue: {field of `PatientRanges`: value}.
    """

    seed: int
    scale: float
    mode_weights: np.ndarray
    kernel_weights: dict[str, np.ndarray]
    tissue: dict[str, float]


class _BoneField:
    """One bone's mean signed distance and displacement fields on regular grids of the standard frame."""

    def __init__(self, prior, device):
        self.prior, self.device = prior, device
        self.low = prior.mean.min(0) - MARGIN_MM
        self.high = prior.mean.max(0) + MARGIN_MM

    def _grid(self, spacing):
        """Points (K, J, I, 3) of a grid that covers the bone, and the upper corner that it really reaches."""
        counts = np.ceil((self.high - self.low) / spacing).astype(int) + 1
        axes = [low + spacing * np.arange(count) for low, count in zip(self.low, counts)]
        points = np.stack(np.meshgrid(*axes[::-1], indexing="ij")[::-1], -1)
        return points, np.array([axis[-1] for axis in axes])

    def _tensor(self, array):
        return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32, device=self.device)

    @cached_property
    def distance(self):
        """((1, 1, K, J, I) mean signed distance in mm, upper corner)."""
        points, upper = self._grid(DISTANCE_SPACING_MM)
        surface = Surface(self.prior.mean, self.prior.faces)
        flat = points.reshape(-1, 3)
        values, nearest = cKDTree(surface.vertices).query(flat, workers=-1)
        # Exact only where voxels can be partly bone; beyond, the side of the nearest vertex tells in from out.
        outward = ((flat - surface.vertices[nearest]) * vertex_normals(surface)[nearest]).sum(1)
        values = np.copysign(values, outward)
        near = np.abs(values) < EXACT_MM
        values[near] = SurfaceLocator(surface).signed(flat[near])
        return self._tensor(values.reshape(points.shape[:3]))[None, None], upper

    @cached_property
    def bases(self):
        """(modes (r, 3 K J I), kernels (K J I, q), grid shape, upper corner): displacements on the coarse grid, mm."""
        points, upper = self._grid(FIELD_SPACING_MM)
        flat = points.reshape(-1, 3)
        nodes = self.prior.kernel_nodes
        nearest = ((nodes[:, None] - self.prior.mean[None]) ** 2).sum(-1).argmin(1)
        known = self.prior.modes[:, nearest].transpose(1, 0, 2).reshape(len(nodes), -1)
        ridge = EXTENSION_RIDGE * np.eye(len(nodes))
        weights = np.linalg.solve(EXTENSION(nodes, nodes) + ridge, known)
        modes = (EXTENSION(flat, nodes) @ weights).reshape(len(flat), -1, 3).transpose(1, 2, 0)
        return self._tensor(modes), self._tensor(self.prior.kernel_basis(flat)), points.shape[:3], upper

    def displacement(self, mode_weights, kernel_weights):
        """(1, 3, K, J, I) displacement of each point of the mean bone's space, mm."""
        modes, kernels, shape, _ = self.bases
        field = torch.tensordot(self._tensor(mode_weights), modes, 1) + (kernels @ self._tensor(kernel_weights)).T
        return field.reshape(1, 3, *shape)

    def look_up(self, field, upper, points):
        """Trilinear values (c, n) of a (1, c, K, J, I) field at (n, 3) standard points; the border outside."""
        low, upper = self._tensor(self.low), self._tensor(upper)
        place = (2 * (points - low) / (upper - low) - 1)[None, None, None]
        return functional.grid_sample(field, place, align_corners=True, padding_mode="border")[0, :, 0, 0]

    def inverse(self, displacement):
        """(1, 3, K, J, I) field E with p = q + E(q) the mean bone's point that the displacement takes to q."""
        points, upper = self._grid(FIELD_SPACING_MM)
        goal = self._tensor(points.reshape(-1, 3))
        source = goal
        for _ in range(INVERSION_STEPS):
            source = goal - self.look_up(displacement, upper, source).T
        return (source - goal).T.reshape(displacement.shape)


class VirtualPatients:
    """Draws people and renders their scans.

    Args:
        model_id: the prior's model.
        device: torch device.
        ranges: what varies beside shape.

    Raises:
        InputError: the model's weights are missing or altered.
    """

    def __init__(self, model_id="tibia-prior", device="cpu", ranges=PatientRanges()):
        self.device = torch.device(device)
        self.ranges = ranges
        self.priors = {bone: load_prior(model_id, bone) for bone in BONES}
        self._sampling = find_model(model_id).tensors()["sampling"].astype(float)
        self._fields = {bone: _BoneField(prior, self.device) for bone, prior in self.priors.items()}

    def person(self, seed):
        """Draw the person of a seed."""
        generator = np.random.default_rng(seed)
        tibia, fibula = self.priors["tibia"], self.priors["fibula"]
        log_scale, modes, kernels = random_weights(
            generator, 1, len(tibia.modes), tibia.vertex_basis.shape[1], self._sampling
        )
        fibula_kernels = generator.standard_normal((fibula.vertex_basis.shape[1], 3))
        tissue = {name: float(generator.uniform(*limits)) for name, limits in vars(self.ranges).items()}
        return VirtualPerson(
            seed,
            float(np.exp(tibia.log_scale_sd * log_scale[0])),
            modes[0],
            {"tibia": kernels[0], "fibula": fibula_kernels},
            tissue,
        )

    def vertices(self, person, bone):
        """The person's bone in the standard frame, in correspondence with the prior's template: (n, 3) mm."""
        field = self._fields[bone]
        displacement = field.displacement(person.mode_weights, person.kernel_weights[bone])
        mean = field._tensor(self.priors[bone].mean)
        moved = mean + field.look_up(displacement, field.bases[3], mean).T
        return person.scale * moved.cpu().numpy().astype(float)

    def signed_distances(self, person, bone, points):
        """Approximate signed distance, mm, positive outside; exact in sign and at the surface.

        Args:
            person: whose bone.
            bone: "tibia" or "fibula".
            points: (n, 3) tensor in the standard frame, mm.

        Returns:
            (distances (n,), height (n,)): mm, and the place along the mean bone from 0 (distal) to 1 (proximal).
        """
        return self._sampled(person, bone, self._inverse(person, bone), points)

    def _inverse(self, person, bone):
        field = self._fields[bone]
        return field.inverse(field.displacement(person.mode_weights, person.kernel_weights[bone]))

    def _sampled(self, person, bone, inverse, points):
        field = self._fields[bone]
        local = points / person.scale
        source = local + field.look_up(inverse, field.bases[3], local).T
        distance, upper = field.distance
        low, high = self.priors[bone].mean[:, 2].min(), self.priors[bone].mean[:, 2].max()
        height = (source[:, 2] - low) / (high - low)
        return person.scale * field.look_up(distance, upper, source)[0], height

    def ct(self, person, shape_kji, ijk_to_standard, missing=None):
        """Render the person's CT: cortical shell, inside, outside, blur, noise.

        Args:
            person: whose leg.
            shape_kji: (K, J, I) of the volume.
            ijk_to_standard: (4, 4) from voxel indices (i, j, k, 1) to the standard frame, mm; it may mirror.
            missing: optional (K, J, I) bool array; bone there gives way to soft tissue before the scanner's blur.

        Returns:
            (hu, labels): (K, J, I) float32 tensor, and {bone: (K, J, I) bool tensor} of the healthy bones.
        """
        matrix = torch.as_tensor(np.asarray(ijk_to_standard), dtype=torch.float32, device=self.device)
        spacing = torch.linalg.norm(matrix[:3, :3], dim=0)  # i, j, k
        ramp = float(spacing.min())
        hu = torch.full(shape_kji, person.tissue["soft_tissue_hu"], device=self.device)
        labels = {bone: torch.zeros(shape_kji, dtype=torch.bool, device=self.device) for bone in BONES}
        inverses = {bone: self._inverse(person, bone) for bone in BONES}
        j, i = (torch.arange(count, device=self.device) for count in shape_kji[1:])
        for first in range(0, shape_kji[0], SLABS):
            k = torch.arange(first, min(first + SLABS, shape_kji[0]), device=self.device)
            index = torch.stack(torch.meshgrid(k, j, i, indexing="ij")[::-1], -1).float()
            points = (index @ matrix[:3, :3].T + matrix[:3, 3]).reshape(-1, 3)
            slab = hu[first : first + SLABS].view(-1)
            if missing is not None:
                gone = torch.as_tensor(missing[first : first + SLABS], device=self.device).reshape(-1)
            for bone in BONES:
                field = self._fields[bone]
                low, high = (person.scale * field._tensor(corner) for corner in (field.low, field.high))
                inside = ((points > low) & (points < high)).all(1).nonzero()[:, 0]
                distance, height = self._sampled(person, bone, inverses[bone], points[inside])
                labels[bone][first : first + SLABS].view(-1)[inside[distance < 0]] = True
                filled = distance < 0.5 * ramp
                if missing is not None:
                    filled &= ~gone[inside]
                inside, distance, height = inside[filled], distance[filled], height[filled]
                share = torch.clamp(0.5 - distance / ramp, 0, 1)  # of the voxel that the bone fills
                slab[inside] += share * (_bone_hu(person.tissue, distance, height) - slab[inside])
        noise = torch.Generator(device=self.device).manual_seed(person.seed)
        hu = _blurred(hu, (person.tissue["blur_mm"] / spacing).flip(0).tolist())
        hu += person.tissue["noise_hu"] * torch.randn(shape_kji, generator=noise, device=self.device)
        return hu, labels


def _bone_hu(tissue, distance, height):
    """HU inside a bone from the depth below its surface (mm) and the height along it (0-1)."""
    shaft = torch.clamp((height - 0.06) / 0.2, 0, 1) * torch.clamp((0.93 - height) / 0.22, 0, 1)
    shaft = shaft * shaft * (3 - 2 * shaft)
    thickness = tissue["end_cortex_mm"] + (tissue["shaft_cortex_mm"] - tissue["end_cortex_mm"]) * shaft
    cortex = tissue["cortical_hu"] * (0.7 + 0.3 * shaft)
    inside = tissue["cancellous_hu"] + (tissue["marrow_hu"] - tissue["cancellous_hu"]) * shaft
    depth = torch.clamp((-distance - thickness) / 1.0 + 0.5, 0, 1)  # endosteal transition of 1 mm
    return cortex + depth * (inside - cortex)


def _blurred(volume, sigmas):
    """Gaussian blur of a (K, J, I) tensor; sigmas in voxels along K, J, I; the border is repeated."""
    volume = volume[None, None]
    for axis, sigma in enumerate(sigmas):
        radius = max(1, int(np.ceil(3 * sigma)))
        steps = torch.arange(-radius, radius + 1, device=volume.device, dtype=volume.dtype)
        kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]
        shape[2 + axis] = len(steps)
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = radius
        padded = functional.pad(volume, padding, mode="replicate")
        volume = functional.conv3d(padded, (kernel / kernel.sum()).view(shape))
    return volume[0, 0]
