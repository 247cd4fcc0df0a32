"""CTs of virtual legs, in torch: bones with cortex and texture, muscle, fat, skin and air, then the scanner."""

from abc import ABC, abstractmethod

import numpy as np
import torch

from BoneReconstructionLib.randomfields import PeriodicField, scanned
from BoneReconstructionLib.softtissue import OUTLINE_CORRELATION_MM, SEPTUM_CORRELATION_MM, soft_tissue, soft_tissue_hu

# Soft tissue is smooth and told at the middles of blocks of voxels of about this size; they also say where bone can be.
BLOCK_MM = 4.0
# How much faster than 1 mm per mm the distance may change, because the warp squeezes the mean bone's space.
STEEPEST = 1.3
SUBSLICE_MM = 1.25
# Thickness of the cortex varies around the bone over this many mm, texture is longer along the bone than across.
CORTEX_CORRELATION_MM = (9.0, 9.0, 25.0)
TEXTURE_STRETCH = 1.6


class VirtualLeg(ABC):
    """What the renderer asks of a leg. Points are (n, 3) tensors in the leg's frame, mm.

    Attributes:
        bones: names of the bones that are there.
    """

    bones: tuple[str, ...]

    @abstractmethod
    def bone(self, name, points):
        """(approximate signed distance to a bone, mm, positive outside; height along it, 0 or 1 at a joint): (n,) each."""

    @abstractmethod
    def muscle(self, points):
        """(depth below the surface of the muscles in mm, how far behind the limb's axis, relative to its width)."""


def render_ct(leg, tissue, seed, shape_kji, ijk_to_leg, device, missing=None):
    """Render a leg's CT.

    Args:
        leg: a `VirtualLeg`.
        tissue: {field of `virtualpatients.PatientRanges`: value}.
        seed: of texture, cortex, soft tissue and noise.
        shape_kji: (K, J, I) of the volume; k counts the slices along the scanner's table.
        ijk_to_leg: (4, 4) from voxel indices (i, j, k, 1) to the leg's frame, mm; it may mirror.
        device: torch device.
        missing: optional (K, J, I) bool array; bone there gives way to soft tissue before the scanner's blur.

    Returns:
        (hu, labels): (K, J, I) float32 tensor, and {bone: (K, J, I) bool tensor} of the healthy bones.
    """
    return _Rendering(leg, tissue, seed, shape_kji, ijk_to_leg, device).ct(missing)


class _Rendering:
    """One leg on one grid."""

    def __init__(self, leg, tissue, seed, shape_kji, ijk_to_leg, device):
        self.leg, self.tissue, self.seed, self.shape, self.device = leg, tissue, seed, tuple(shape_kji), device
        self.matrix = torch.as_tensor(np.asarray(ijk_to_leg), dtype=torch.float32, device=self.device)
        self.spacing = np.linalg.norm(np.asarray(ijk_to_leg)[:3, :3], axis=0)[::-1]  # k, j, i
        self.ramp = float(self.spacing.min())
        self.block = np.maximum(np.rint(BLOCK_MM / self.spacing), 1).astype(int)
        self.blocks = tuple(int(n) for n in -(-np.array(self.shape) // self.block))
        generator = torch.Generator().manual_seed(seed)
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
        """(HU, labels) as `render_ct` returns them."""
        points = self._block_middles()
        distances = {bone: self.leg.bone(bone, points)[0] for bone in self.leg.bones}
        hu = self._soft_tissue(points, torch.stack(list(distances.values())).amin(0))
        labels = {}
        reach = STEEPEST * float(np.linalg.norm(self.block * self.spacing)) / 2 + self.spacing[0]
        for bone, distance in distances.items():
            labels[bone] = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
            self._draw(bone, (distance < reach).nonzero()[:, 0], hu, labels[bone], missing)
        # Slices have been averaged over the grid's own thickness already.
        slab = np.sqrt(max(self.tissue["slice_mm"] ** 2 - self.spacing[0] ** 2, 0) / 12)
        blur = self.tissue["blur_mm"]
        blurs = (float(np.hypot(blur, slab)), blur, blur)
        noise, peak = self.tissue["noise_hu"], self.tissue["noise_peak_per_mm"]
        return scanned(hu, self.spacing.tolist(), blurs, noise, peak, self.seed), labels

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

    def _soft_tissue(self, points, bone_distance):
        """(K, J, I) HU of everything but bone, from the blocks' middles (n, 3) and their distance to bone (n,)."""
        if self.tissue["calf_size"] == 0:
            return torch.full(self.shape, self.tissue["soft_tissue_hu"], device=self.device)
        depth, behind = self.leg.muscle(points)
        depth = depth + self.tissue["outline_mm"] * self.bulges.at(points).clamp(-2, 2)
        fields = soft_tissue(self.tissue, depth, behind, bone_distance, self.septa.at(points))
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
        distance, height = self.leg.bone(bone, points)
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
                distance, height = self.leg.bone(bone, points + offset * self.matrix[:3, 2])
            share = torch.clamp(0.5 - distance / self.ramp, 0, 1) / count  # of the voxel that the bone fills
            filled += share
            total += share * bone_hu(self.tissue, distance, height, thicker, texture)
        hu.view(-1)[flat] += total - filled * hu.view(-1)[flat]


def bone_hu(tissue, distance, height, thicker=1.0, texture=0.0):
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
