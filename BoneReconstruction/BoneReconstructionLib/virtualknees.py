"""Virtual knees and their CTs, made in torch from the learned prior, as `virtualpatients` makes lower legs.

Femur, tibia, fibula and patella of one person share their size and modes. Where they lie to each other is drawn from
published ranges (see `kneeassembly`). Everything random comes from one seed.
"""

from dataclasses import dataclass, field, fields

import numpy as np
import torch

from BoneReconstructionLib.bonefields import BoneField
from BoneReconstructionLib.ctrendering import VirtualLeg, render_ct
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose
from BoneReconstructionLib.kneemeasurements import height_along
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.priorsampling import random_weights
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.softtissue import OUTLINE, joined, muscle_depth
from BoneReconstructionLib.virtualpatients import PatientRanges

MODEL = "knee-prior"
BONES = ("femur", "tibia", "fibula", "patella")
# The outline of the shank is that of `softtissue`, whose heights count from the tibia's centroid; it ends as a dome
# inside the knee, as the thigh's does, so that no edge shows however the knee is bent.
PLATEAU_MM = 150.0
SHANK = np.array(
    [row - [PLATEAU_MM, 0, 0, 0, 0] for row in OUTLINE if row[0] < PLATEAU_MM - 20]
    + [(-25.0, 1, -20, 43, 48), (10.0, 0, -15, 40, 42), (30.0, 0, -12, 28, 30), (45.0, 0, -10, 8, 10)]
)
# Muscles of a usual right thigh about the femur, heights above the flexion axis; rows as in `softtissue.OUTLINE`.
# Girths with fat and skin: above the knee about 38 cm, at mid-thigh 55 cm (ANSUR II: Gordon et al., 2014).
THIGH = np.array(
    [
        (-50.0, 0, -2, 8, 10),
        (-35.0, 0, -2, 28, 30),
        (-12.0, 0, -2, 41, 42),
        (20.0, 0, -3, 47, 50),
        (60.0, 0, 0, 52, 56),
        (120.0, 0, 2, 62, 68),
        (190.0, 0, 2, 74, 80),
    ]
)
# Tendons, bursae and fat in front of the knee: half their thickness at tuberosity, patella and thigh, and how widely
# they blend into the limb, mm.
EXTENSOR_MM, EXTENSOR_BLEND_MM = (8.0, 17.0, 16.0), 25.0


@dataclass(frozen=True)
class KneeRanges:
    """What varies between virtual knees and their scans beside shape: (lowest, highest), drawn uniformly.

    Attributes:
        flexion_degrees, turn_degrees, forward_mm, sideways_mm, patella_tilt_degrees: see `kneeassembly.KneePose`.
        medial_gap_mm: about that of adults (4.8 +/- 0.7 mm in women, 5.7 +/- 0.8 mm in men: Beattie et al., BMC
            Musculoskelet Disord 9:119, 2008), and narrower, as in worn joints.
        lateral_gap_mm: somewhat wider than the medial one.
        fibula_gap_mm: of the proximal tibiofibular joint.
        patella_gap_mm: cartilage of both bones (the patella's alone 4.1 +/- 1.3 mm where it is thickest: How thick is
            the patella?, Orthop Proc 95-B Supp 14, 2013).
        tendon_ratio: 1.02 +/- 0.13 (Insall and Salvati, Radiology 101:101-104, 1971), within two standard deviations.
        patella_lag: the patella lags behind the flexion by 30-40 % (Yu et al., J Healthc Eng 2019:9159267).
        tissue: tissue and scanner; what is said there of neighbouring bones does not apply.
    """

    flexion_degrees: tuple[float, float] = (0.0, 90.0)
    turn_degrees: tuple[float, float] = (-5.0, 5.0)
    medial_gap_mm: tuple[float, float] = (2.0, 6.5)
    lateral_gap_mm: tuple[float, float] = (2.5, 7.5)
    forward_mm: tuple[float, float] = (-3.0, 3.0)
    sideways_mm: tuple[float, float] = (-2.0, 2.0)
    fibula_gap_mm: tuple[float, float] = (0.5, 2.5)
    patella_gap_mm: tuple[float, float] = (2.5, 7.0)
    tendon_ratio: tuple[float, float] = (0.76, 1.28)
    patella_lag: tuple[float, float] = (0.6, 0.7)
    patella_tilt_degrees: tuple[float, float] = (-5.0, 5.0)
    tissue: PatientRanges = field(default_factory=PatientRanges)


@dataclass(frozen=True, eq=False)
class VirtualKnee:
    """The weights of one person, how the bones lie, and tissue and scan, all drawn from one seed; a right knee.

    Attributes:
        seed: where it came from.
        scale: size relative to the mean.
        mode_weights: (r,) standard deviations, shared by all bones.
        kernel_weights: {bone: (q, 3)} standard deviations.
        pose: what the assembly was asked for.
        tissue: {field of `PatientRanges`: value}.
        places: {bone: (4, 4) rigid knee_from_bone}; the knee's frame is the tibia's standard frame.
    """

    seed: int
    scale: float
    mode_weights: np.ndarray
    kernel_weights: dict[str, np.ndarray]
    pose: KneePose
    tissue: dict[str, float]
    places: dict[str, np.ndarray]


class VirtualKnees:
    """Draws knees and renders their scans. A left knee is a right one seen in a mirrored frame, see `frames`.

    Args:
        model_id: the knee prior's model.
        device: torch device.
        ranges: what varies beside shape.

    Raises:
        InputError: the model's weights are missing or altered.
    """

    def __init__(self, model_id=MODEL, device="cpu", ranges=KneeRanges()):
        self.device = torch.device(device)
        self.ranges = ranges
        self.priors = {bone: load_prior(model_id, bone) for bone in BONES}
        self.assembly = KneeAssembly(self.priors)
        self._sampling = find_model(model_id).tensors()["sampling"].astype(float)
        self._fields = {bone: BoneField(prior, self.device) for bone, prior in self.priors.items()}

    def knee(self, seed):
        """Draw the knee of a seed."""
        generator = np.random.default_rng(seed)
        ranks = [prior.vertex_basis.shape[1] for prior in self.priors.values()]
        modes = len(self.priors["femur"].modes)
        log_scale, mode_weights, kernels = random_weights(generator, 1, modes, sum(ranks), self._sampling)
        kernel_weights = dict(zip(BONES, np.split(kernels[0], np.cumsum(ranks)[:-1]), strict=True))
        drawn = {
            one.name: float(generator.uniform(*getattr(self.ranges, one.name)))
            for one in fields(KneeRanges)
            if one.name != "tissue"
        }
        tissue = {name: float(generator.uniform(*limits)) for name, limits in vars(self.ranges.tissue).items()}
        scale = float(np.exp(self.priors["femur"].log_scale_sd * log_scale[0]))
        return self.knee_of(seed, scale, mode_weights[0], kernel_weights, KneePose(**drawn), tissue)

    def knee_of(self, seed, scale, mode_weights, kernel_weights, pose, tissue):
        """The knee of given weights, assembled; arguments as in `VirtualKnee`."""
        bones = {bone: self._own_vertices(bone, scale, mode_weights, kernel_weights) for bone in BONES}
        places = self.assembly.assemble(bones, pose)
        return VirtualKnee(seed, scale, mode_weights, kernel_weights, pose, tissue, places)

    def bones(self, knee):
        """{bone: (n, 3) vertices in the bone's standard frame at the person's size, mm}."""
        return {bone: self._own_vertices(bone, knee.scale, knee.mode_weights, knee.kernel_weights) for bone in BONES}

    def vertices(self, knee):
        """{bone: (n, 3) vertices in the knee's frame, in correspondence with the prior's template, mm}."""
        return {bone: transform_points(knee.places[bone], own) for bone, own in self.bones(knee).items()}

    def ct(self, knee, shape_kji, ijk_to_knee):
        """Render the knee's CT; see `ctrendering.render_ct`.

        The bones end at the prior's reach: the volume should, too.

        Args:
            knee: whose.
            shape_kji: (K, J, I) of the volume; k counts the slices along the scanner's table.
            ijk_to_knee: (4, 4) from voxel indices (i, j, k, 1) to the knee's frame, mm; it may mirror.

        Returns:
            (hu, labels): (K, J, I) float32 tensor, and {bone: (K, J, I) bool tensor}.
        """
        return render_ct(_Leg(self, knee), knee.tissue, knee.seed, shape_kji, ijk_to_knee, self.device)

    def _own_vertices(self, bone, scale, mode_weights, kernel_weights):
        own = self._fields[bone]
        return scale * own.vertices(own.displacement(mode_weights, kernel_weights[bone]))


class _Leg(VirtualLeg):
    """One knee with shank and thigh."""

    bones = BONES

    def __init__(self, knees, knee):
        self.scale, self.size = knee.scale, knee.tissue["calf_size"]
        self.fields = knees._fields
        self.inverses = {
            bone: one.inverse(one.displacement(knee.mode_weights, knee.kernel_weights[bone]))
            for bone, one in self.fields.items()
        }
        course = knees.assembly.extensor(knees.bones(knee), knee.places)
        self.course = self.fields["tibia"].tensor(course)
        self.bone_from_knee = {
            bone: self.fields[bone].tensor(np.linalg.inv(place)) for bone, place in knee.places.items()
        }

    def bone(self, name, points):
        bone_field, source = self.fields[name], self._source(name, points)
        return self.scale * bone_field.mean_distance(source), height_along(name, bone_field.prior.mean, source)

    def muscle(self, points):
        shank, thigh = self._source("tibia", points), self._source("femur", points)
        depth, behind = muscle_depth(shank, self.size, SHANK)
        depth = torch.minimum(depth, SHANK[-1, 0] - shank[:, 2])
        above, behind_above = muscle_depth(thigh, self.size, THIGH)
        above = torch.minimum(above, thigh[:, 2] - THIGH[0, 0])
        limb = joined(joined(depth, above), self._extensor(points), EXTENSOR_BLEND_MM)
        return limb, torch.where(depth > above, behind, behind_above)

    def _extensor(self, points):
        """Depth (n,) in mm within the tendons in front of the knee: rods between three places."""
        depths = []
        for k in (0, 1):
            start, way = self.course[k], self.course[k + 1] - self.course[k]
            along = (((points - start) @ way) / (way @ way)).clamp(0, 1)
            thickness = EXTENSOR_MM[k] + along * (EXTENSOR_MM[k + 1] - EXTENSOR_MM[k])
            depths.append(thickness - torch.linalg.norm(points - start - along[:, None] * way, dim=1))
        return torch.maximum(*depths)

    def _source(self, name, points):
        """(n, 3) points of the mean bone's space."""
        matrix = self.bone_from_knee[name]
        own = (points @ matrix[:3, :3].T + matrix[:3, 3]) / self.scale
        return self.fields[name].source(self.inverses[name], own)
