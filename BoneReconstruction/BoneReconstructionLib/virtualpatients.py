"""Virtual people and CTs of their lower legs, made in torch from the learned prior, without meshes or vtk.

A bone is the signed distance field of the mean bone, warped: a smooth displacement field on a coarse grid, linear in
the prior's weights, says where each point of the mean bone lies in the person. To render, the field is inverted by
fixed-point iteration and the mean distance is looked up; the person's own surface points come from the same field, so
that picture and truth agree. Everything random comes from one seed. Soft tissue and the bones beyond the joints are
given in the mean bone's space and warped by the same field.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.jointphantoms import JointPhantoms
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights
from BoneReconstructionLib.randomfields import PeriodicField, scanned
from BoneReconstructionLib.shapeprior import Kernel, load_prior
from BoneReconstructionLib.softtissue import OUTLINE_CORRELATION_MM, SEPTUM_CORRELATION_MM, soft_tissue, soft_tissue_hu
from BoneReconstructionLib.surfaces import Surface

BONES = ("tibia", "fibula")
# Bones that stand beyond the joints, without a prior.
NEIGHBOURS = ("femur", "talus")
FIELD_SPACING_MM = 5.0
DISTANCE_SPACING_MM = 1.5
COARSE = 3
EXACT_MM = 6.0
MARGIN_MM = 24.0
INVERSION_STEPS = 12
# Soft tissue is smooth and told at the middles of blocks of voxels of about this size; they also say where bone can be.
BLOCK_MM = 4.0
# How much faster than 1 mm per mm the distance may change, because the warp squeezes the mean bone's space.
STEEPEST = 1.3
SUBSLICE_MM = 1.25
# Thickness of the cortex varies around the bone over this many mm, texture is longer along the bone than across.
CORTEX_CORRELATION_MM = (9.0, 9.0, 25.0)
TEXTURE_STRETCH = 1.6
# The empirical modes are known on the bone; this smooth kernel carries them into the space around it.
# Weaker smoothing follows the modes closer, but overshoots between bone and air until the field folds.
EXTENSION = Kernel(1.0, (16.0, 16.0, 16.0))
EXTENSION_RIDGE = 0.01


@dataclass(frozen=True)
class PatientRanges:
    """What varies between virtual patients and their scans beside shape: (lowest, highest), drawn uniformly.

    HU are those at 120 kV. Zero switches off what is said so below.

    Attributes:
        shaft_cortex_mm, end_cortex_mm: cortical thickness of the shaft and at the joint ends (tibial mid-shaft 4-6 mm
            anteriorly, under 1.5 mm at the metaphyses).
        cortical_hu, cancellous_hu, marrow_hu: of the shaft's cortex, of the ends' inside and of the shaft's inside.
        soft_tissue_hu: of muscle (mid-calf and mid-thigh 49 +/- 3 HU in lean people, less in others: Goodpaster et al.,
            J Appl Physiol 89:104-110, 2000).
        blur_mm: standard deviation of the scanner's blur.
        noise_hu: standard deviation of its noise; 0: none.
        cortex_variation: by which share the cortex is thicker or thinner around the bone at most; 0: even.
        texture_hu, texture_mm: standard deviation of the cancellous bone's density, full at the ends, and its
            correlation length across the bone; 0 HU: even.
        fat_hu: within -190 to -30 HU, as adipose tissue is defined in CT.
        fat_mm: under the skin of the calf, less in front (means over a lean body 3-10 mm: Stoerchle et al., Sci Rep
            8:16268, 2018).
        septum_mm: thickness of the fat between muscles; 0: none.
        skin_hu, skin_mm: skin (1.5 mm at the thigh: Laurent et al., Vaccine 25:6423-6430, 2007).
        calf_size: width of the muscles relative to the usual; 0: muscle everywhere, neither fat, skin nor air.
        outline_mm: standard deviation of the muscles' outline.
        knee_gap_mm, ankle_gap_mm: about the gap between the bones of a joint (medial knee 4.8 +/- 0.7 mm in women,
            5.7 +/- 0.8 mm in men: Beattie et al., BMC Musculoskelet Disord 9:119, 2008; ankle 2.5 +/- 0.5 mm: Goker et
            al., Clin Orthop 467:2083-2089, 2009), down to bones that touch, as in worn joints.
        knee_flexion_degrees: in the scanner.
        femur_size, talus_size: relative to the tibia; 0: the bone is not there.
        slice_mm: thickness of the slices that the scan was reconstructed with; thinner than the grid's: as thick.
        noise_peak_per_mm: cycles per mm at which the noise has most power.
    """

    shaft_cortex_mm: tuple[float, float] = (3.5, 5.5)
    end_cortex_mm: tuple[float, float] = (0.9, 1.6)
    cortical_hu: tuple[float, float] = (1150.0, 1600.0)
    cancellous_hu: tuple[float, float] = (120.0, 320.0)
    marrow_hu: tuple[float, float] = (-80.0, 20.0)
    soft_tissue_hu: tuple[float, float] = (30.0, 70.0)
    blur_mm: tuple[float, float] = (0.4, 0.7)
    noise_hu: tuple[float, float] = (10.0, 30.0)
    cortex_variation: tuple[float, float] = (0.0, 0.25)
    texture_hu: tuple[float, float] = (20.0, 80.0)
    texture_mm: tuple[float, float] = (0.8, 1.6)
    fat_hu: tuple[float, float] = (-120.0, -80.0)
    fat_mm: tuple[float, float] = (2.0, 14.0)
    septum_mm: tuple[float, float] = (0.5, 2.0)
    skin_hu: tuple[float, float] = (20.0, 80.0)
    skin_mm: tuple[float, float] = (1.0, 2.0)
    calf_size: tuple[float, float] = (0.88, 1.12)
    outline_mm: tuple[float, float] = (0.0, 2.0)
    knee_gap_mm: tuple[float, float] = (0.0, 5.0)
    ankle_gap_mm: tuple[float, float] = (0.0, 5.0)
    knee_flexion_degrees: tuple[float, float] = (0.0, 15.0)
    femur_size: tuple[float, float] = (0.94, 1.06)
    talus_size: tuple[float, float] = (0.92, 1.08)
    slice_mm: tuple[float, float] = (0.6, 3.0)
    noise_peak_per_mm: tuple[float, float] = (0.15, 0.4)


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
        locator = SurfaceLocator(Surface(self.prior.mean, self.prior.faces))
        points, upper = self._grid(COARSE * DISTANCE_SPACING_MM)
        coarse = self._tensor(locator.signed(points.reshape(-1, 3)).reshape(points.shape[:3]))
        shape = [COARSE * (size - 1) + 1 for size in coarse.shape]
        distance = functional.interpolate(coarse[None, None], shape, mode="trilinear", align_corners=True)
        near = (distance[0, 0].abs() < EXACT_MM).nonzero()  # where voxels can be partly bone or cortex
        exact = locator.signed(self.low + DISTANCE_SPACING_MM * near.flip(1).cpu().numpy())
        distance[0, 0, near[:, 0], near[:, 1], near[:, 2]] = self._tensor(exact)
        return distance, upper

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
        # In blocks that stay in the processor's cache.
        kernels = np.concatenate([self.prior.kernel_basis(block) for block in np.array_split(flat, 64)])
        return self._tensor(modes), self._tensor(kernels), points.shape[:3], upper

    def displacement(self, mode_weights, kernel_weights):
        """(1, 3, K, J, I) displacement of each point of the mean bone's space, mm."""
        modes, kernels, shape, _ = self.bases
        field = torch.tensordot(self._tensor(mode_weights), modes, 1) + (kernels @ self._tensor(kernel_weights)).T
        return field.reshape(1, 3, *shape)

    def look_up(self, field, upper, points):
        """Trilinear values (c, n) of a (1, c, K, J, I) field at (n, 3) standard points; the border outside."""
        slope = 2 / (upper - self.low)
        place = torch.addcmul(self._tensor(-1 - slope * self.low), points, self._tensor(slope))
        place = place[None, None, None]
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
        self._phantoms = JointPhantoms(self.priors["tibia"].mean, self.priors["tibia"].faces)

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
        return self._sampled(person, bone, self._inverse(person, bone), points)[:2]

    def _inverse(self, person, bone):
        field = self._fields[bone]
        return field.inverse(field.displacement(person.mode_weights, person.kernel_weights[bone]))

    def _sampled(self, person, bone, inverse, points):
        """Distance and height as `signed_distances` has them, and the points (n, 3) in the mean bone's space."""
        field = self._fields[bone]
        local = points / person.scale
        source = local + field.look_up(inverse, field.bases[3], local).T
        distance, upper = field.distance
        low, high = self.priors[bone].mean[:, 2].min(), self.priors[bone].mean[:, 2].max()
        height = (source[:, 2] - low) / (high - low)
        return person.scale * field.look_up(distance, upper, source)[0], height, source

    def ct(self, person, shape_kji, ijk_to_standard, missing=None):
        """Render the person's CT: bones with cortex and texture, muscle, fat, skin and air, blur, noise.

        Args:
            person: whose leg.
            shape_kji: (K, J, I) of the volume; k counts the slices along the scanner's table.
            ijk_to_standard: (4, 4) from voxel indices (i, j, k, 1) to the standard frame, mm; it may mirror.
            missing: optional (K, J, I) bool array; bone there gives way to soft tissue before the scanner's blur.

        Returns:
            (hu, labels): (K, J, I) float32 tensor, and {bone: (K, J, I) bool tensor} of the healthy bones: of `BONES`,
            and of `NEIGHBOURS` what the volume shows.
        """
        return _Rendering(self, person, shape_kji, ijk_to_standard).ct(missing)


class _Rendering:
    """One person on one grid."""

    def __init__(self, patients, person, shape_kji, ijk_to_standard):
        self.patients, self.person, self.tissue, self.shape = patients, person, person.tissue, tuple(shape_kji)
        self.device = patients.device
        self.matrix = torch.as_tensor(np.asarray(ijk_to_standard), dtype=torch.float32, device=self.device)
        self.spacing = np.linalg.norm(np.asarray(ijk_to_standard)[:3, :3], axis=0)[::-1]  # k, j, i
        self.ramp = float(self.spacing.min())
        self.block = np.maximum(np.rint(BLOCK_MM / self.spacing), 1).astype(int)
        self.blocks = tuple(int(n) for n in -(-np.array(self.shape) // self.block))
        self.inverses = {bone: patients._inverse(person, bone) for bone in BONES}
        generator = torch.Generator().manual_seed(person.seed)
        texture_mm = self.tissue["texture_mm"]
        self.texture, self.cortex, self.septa, self.bulges = (
            PeriodicField(generator, correlation, self.device)
            for correlation in (
                (texture_mm, texture_mm, TEXTURE_STRETCH * texture_mm),
                CORTEX_CORRELATION_MM,
                SEPTUM_CORRELATION_MM,
                OUTLINE_CORRELATION_MM,
            )
        )

    def ct(self, missing):
        """(HU, labels) as `VirtualPatients.ct` returns them."""
        points = self._block_middles()
        distances = {bone: self._bone(bone, points)[0] for bone in self._bones()}
        hu = self._soft_tissue(points, torch.stack(list(distances.values())).amin(0))
        labels = {bone: torch.zeros(self.shape, dtype=torch.bool, device=self.device) for bone in BONES + NEIGHBOURS}
        reach = STEEPEST * float(np.linalg.norm(self.block * self.spacing)) / 2 + self.spacing[0]
        for bone, distance in distances.items():
            self._draw(bone, (distance < reach).nonzero()[:, 0], hu, labels[bone], missing)
        # Slices have been averaged over the grid's own thickness already.
        slab = np.sqrt(max(self.tissue["slice_mm"] ** 2 - self.spacing[0] ** 2, 0) / 12)
        blur = self.tissue["blur_mm"]
        blurs = (float(np.hypot(blur, slab)), blur, blur)
        noise, peak = self.tissue["noise_hu"], self.tissue["noise_peak_per_mm"]
        return scanned(hu, self.spacing.tolist(), blurs, noise, peak, self.person.seed), labels

    def _bones(self):
        return BONES + tuple(bone for bone in NEIGHBOURS if self.tissue[f"{bone}_size"] > 0)

    def _block_middles(self):
        """(n, 3) points in the middles of the blocks, mm."""
        k, j, i = (
            torch.arange(count, device=self.device) * float(size) + (float(size) - 1) / 2
            for count, size in zip(self.blocks, self.block)
        )
        return self._points(torch.stack(torch.meshgrid(k, j, i, indexing="ij")[::-1], -1).reshape(-1, 3))

    def _points(self, index):
        """(n, 3) points, mm, of voxel indices (n, 3), i j k."""
        return index @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def _bone(self, bone, points):
        """(distance in mm, height) of a bone at (n, 3) points, mm."""
        if bone in BONES:
            return self.patients._sampled(self.person, bone, self.inverses[bone], points)[:2]
        scale, phantoms = self.person.scale, self.patients._phantoms
        near, _, source = self.patients._sampled(self.person, "tibia", self.inverses["tibia"], points)
        if bone == "femur":
            distance, height = phantoms.femur(source, self.tissue["femur_size"], self.tissue["knee_flexion_degrees"])
            return torch.maximum(scale * distance, self.tissue["knee_gap_mm"] - near), height
        near = torch.minimum(near, self.patients._sampled(self.person, "fibula", self.inverses["fibula"], points)[0])
        distance = scale * phantoms.talus(source, self.tissue["talus_size"])
        return torch.maximum(distance, self.tissue["ankle_gap_mm"] - near), torch.zeros_like(distance)

    def _soft_tissue(self, points, bone_distance):
        """(K, J, I) HU of everything but bone, from the blocks' middles (n, 3) and their distance to bone (n,)."""
        if self.tissue["calf_size"] == 0:
            return torch.full(self.shape, self.tissue["soft_tissue_hu"], device=self.device)
        source = self.patients._sampled(self.person, "tibia", self.inverses["tibia"], points)[2]
        fields = soft_tissue(self.tissue, points, source, bone_distance, self.septa, self.bulges)
        whole = tuple(int(n) for n in self.block * self.blocks)
        hu = soft_tissue_hu(self.tissue, fields.view(3, *self.blocks), whole, self.ramp)
        return hu[: self.shape[0], : self.shape[1], : self.shape[2]].contiguous()

    def _voxels(self, blocks):
        """Flat index (n,) and index (n, 3), i j k, of the volume's voxels in flat blocks."""
        size = torch.as_tensor(self.block, device=self.device)
        first = torch.stack(torch.unravel_index(blocks, self.blocks), -1) * size
        within = torch.cartesian_prod(*(torch.arange(int(n), device=self.device) for n in self.block))
        index = (first[:, None] + within).reshape(-1, 3)
        index = index[(index < torch.tensor(self.shape, device=self.device)).all(1)]
        flat = (index[:, 0] * self.shape[1] + index[:, 1]) * self.shape[2] + index[:, 2]
        return flat, index.flip(1).float()

    def _draw(self, bone, blocks, hu, label, missing):
        """Put a bone that lies in the given blocks into HU and its label; slices average over their thickness."""
        flat, index = self._voxels(blocks)
        points = self._points(index)
        distance, height = self._bone(bone, points)
        label.view(-1)[flat[distance < 0]] = True
        close = distance < STEEPEST * self.spacing[0] / 2 + self.ramp / 2
        if missing is not None:
            close &= ~torch.as_tensor(missing, device=self.device).reshape(-1)[flat]
        flat, points, distance, height = flat[close], points[close], distance[close], height[close]
        thicker = 1 + self.tissue["cortex_variation"] * (self.cortex.at(points) / 2).clamp(-1, 1)
        texture = self.tissue["texture_hu"] * self.texture.at(points)
        filled, total = torch.zeros_like(distance), torch.zeros_like(distance)
        count = int(np.ceil(self.spacing[0] / SUBSLICE_MM))
        for step in range(count):
            offset = (step + 0.5) / count - 0.5
            if count > 1:
                distance, height = self._bone(bone, points + offset * self.matrix[:3, 2])
            share = torch.clamp(0.5 - distance / self.ramp, 0, 1) / count  # of the voxel that the bone fills
            filled += share
            total += share * _bone_hu(self.tissue, distance, height, thicker, texture)
        hu.view(-1)[flat] += total - filled * hu.view(-1)[flat]


def _bone_hu(tissue, distance, height, thicker=1.0, texture=0.0):
    """HU inside a bone from the depth below its surface (mm) and the height along it (0-1).

    `thicker` is the factor of the cortex's thickness, `texture` (HU) is added to cancellous bone.
    """
    shaft = torch.clamp((height - 0.06) / 0.2, 0, 1) * torch.clamp((0.93 - height) / 0.22, 0, 1)
    shaft = shaft * shaft * (3 - 2 * shaft)
    thickness = (tissue["end_cortex_mm"] + (tissue["shaft_cortex_mm"] - tissue["end_cortex_mm"]) * shaft) * thicker
    cortex = tissue["cortical_hu"] * (0.7 + 0.3 * shaft)
    inside = tissue["cancellous_hu"] + texture * (1 - shaft) + (tissue["marrow_hu"] - tissue["cancellous_hu"]) * shaft
    depth = torch.clamp((-distance - thickness) / 1.0 + 0.5, 0, 1)  # endosteal transition of 1 mm
    return cortex + depth * (inside - cortex)
