"""Virtual people and CTs of their lower legs, made in torch from the learned prior, without meshes or vtk.

A bone is the signed distance field of the mean bone, warped (see `bonefields`). Everything random comes from one seed.
Soft tissue and the bones beyond the joints are given in the mean bone's space and warped by the same field.
"""

from dataclasses import dataclass

import numpy as np
import torch

from BoneReconstructionLib.bonefields import BoneField
from BoneReconstructionLib.ctrendering import VirtualLeg, render_ct
from BoneReconstructionLib.jointphantoms import JointPhantoms
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, load_prior
from BoneReconstructionLib.softtissue import SOLE_MM, muscle_depth

BONES = ("tibia", "fibula")
# Bones that stand beyond the joints, without a prior.
NEIGHBOURS = ("femur", "talus")


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


class VirtualPatients:
    """Draws people and renders their scans.

    Args:
        model_id: the prior's model.
        device: torch device.
        ranges: what varies beside shape.

    Raises:
        InputError: the model's weights are missing or altered.
    """

    def __init__(self, model_id=TIBIA_PRIOR, device="cpu", ranges=PatientRanges()):
        self.device = torch.device(device)
        self.ranges = ranges
        self.priors = {bone: load_prior(model_id, bone) for bone in BONES}
        self._sampling = find_model(model_id).tensors()["sampling"].astype(float)
        self._fields = {bone: BoneField(prior, self.device) for bone, prior in self.priors.items()}
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
        return person.scale * field.vertices(displacement)

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
        source = field.source(inverse, points / person.scale)
        low, high = self.priors[bone].mean[:, 2].min(), self.priors[bone].mean[:, 2].max()
        height = (source[:, 2] - low) / (high - low)
        return person.scale * field.mean_distance(source), height, source

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
        leg = _Leg(self, person)
        hu, labels = render_ct(leg, person.tissue, person.seed, shape_kji, ijk_to_standard, self.device, missing)
        nothing = torch.zeros(tuple(shape_kji), dtype=torch.bool, device=self.device)
        return hu, {bone: labels.get(bone, nothing) for bone in BONES + NEIGHBOURS}


class _Leg(VirtualLeg):
    """One person's lower leg."""

    def __init__(self, patients, person):
        self.patients, self.person, self.tissue = patients, person, person.tissue
        self.inverses = {bone: patients._inverse(person, bone) for bone in BONES}
        self.bones = BONES + tuple(bone for bone in NEIGHBOURS if self.tissue[f"{bone}_size"] > 0)

    def bone(self, name, points):
        if name in BONES:
            return self.patients._sampled(self.person, name, self.inverses[name], points)[:2]
        scale, phantoms = self.person.scale, self.patients._phantoms
        near, _, source = self.patients._sampled(self.person, "tibia", self.inverses["tibia"], points)
        if name == "femur":
            distance, height = phantoms.femur(source, self.tissue["femur_size"], self.tissue["knee_flexion_degrees"])
            return torch.maximum(scale * distance, self.tissue["knee_gap_mm"] - near), height
        near = torch.minimum(near, self.patients._sampled(self.person, "fibula", self.inverses["fibula"], points)[0])
        distance = scale * phantoms.talus(source, self.tissue["talus_size"])
        return torch.maximum(distance, self.tissue["ankle_gap_mm"] - near), torch.zeros_like(distance)

    def muscle(self, points):
        source = self.patients._sampled(self.person, "tibia", self.inverses["tibia"], points)[2]
        depth, behind = muscle_depth(source, self.tissue["calf_size"])
        return torch.minimum(depth, source[:, 2] - SOLE_MM), behind
