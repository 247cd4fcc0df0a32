"""Knees of real people to be X-rayed: bones in place or bent, and a CT by a renderer that no training imports.

It differs from the virtual knees' renderer: voxels instead of fields, cortex and densities outside their ranges, a
limb that follows the bones at a distance, fat around it, no septa.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import rotation_about, side_to_right, transform_points
from BoneReconstructionLib.kneepriortraining import femur_frame
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume

BONES = ("femur", "tibia", "fibula", "patella")
SIDES = {"L": "left", "R": "right"}
PATELLA_SHARE = 0.35  # of the knee's flexion that the patella turns beside the tibia
# Half the CT's width about the knee and its voxels; depths are told on them.
HALF_MM, SPACING_MM = 105.0, 0.7
# Two ranges each, below and above those of `virtualpatients.PatientRanges`; which of the two is drawn, too.
OUTSIDE_RANGES = {
    "shaft_cortex_mm": ((2.4, 3.2), (5.8, 6.8)),
    "end_cortex_mm": ((0.6, 0.8), (1.9, 2.4)),
    "cortical_hu": ((950.0, 1100.0), (1700.0, 1950.0)),
    "cancellous_hu": ((60.0, 100.0), (350.0, 450.0)),
    "marrow_hu": ((-120.0, -90.0), (40.0, 80.0)),
}
MUSCLE_HU, FAT_HU, AIR_HU = 60.0, -90.0, -1000.0
FLESH_MM, FAT_MM, LIMB_STEP_MM, LIMB_SMOOTH_MM = 24.0, (4.0, 12.0), 3.5, 14.0
TEXTURE_MM, TEXTURE_HU = 2.0, 100.0
# Beyond so far from the joint a long bone is shaft, mm.
END_MM, SHAFT_MM = 30.0, 110.0


@dataclass(frozen=True, eq=False)
class RealKnee:
    """One knee in the frame in which its person was scanned, RAS mm.

    Attributes:
        subject: who.
        side: "left" or "right".
        bones: {bone: closed surface}.
        middle: (3,) of the joint, on the flexion axis.
        axis: (3,) unit vector of the flexion axis; turning the femur about it by the right hand bends the knee.
    """

    subject: str
    side: str
    bones: dict
    middle: np.ndarray
    axis: np.ndarray


def knee_names(folder):
    """(subject, side) of every knee in a folder with all four bones: <bone>/<subject>_<L|R>.ply.

    Raises:
        InputError: there is none.
    """
    stems = [{path.stem for path in (Path(folder) / bone).glob("*_[LR].ply")} for bone in BONES]
    names = sorted(set.intersection(*stems))
    if not names:
        raise InputError(f"{folder} holds nobody with {', '.join(BONES)}: name a folder of <bone>/<subject>_<L|R>.ply.")
    return [(name[:-2], SIDES[name[-1]]) for name in names]


def read_knee(folder, subject, side):
    """Read a knee; its femur is whole and roughly upright.

    Raises:
        InputError: a file cannot be read.
    """
    bones = {bone: read_surface(Path(folder) / bone / f"{subject}_{side[0].upper()}.ply") for bone in BONES}
    mirror = side_to_right(side)
    frame = np.linalg.inv(femur_frame(transform_points(mirror, bones["femur"].vertices)))
    middle = transform_points(mirror, frame[None, :3, 3])[0]
    # A mirror turns the sense of a rotation round.
    axis = np.linalg.det(mirror[:3, :3]) * (mirror[:3, :3] @ frame[:3, 0])
    return RealKnee(subject, side, bones, middle, axis)


def bent(knee, degrees):
    """The bones {bone: surface} with the knee flexed further; the patella keeps its distance from the femur."""
    if degrees == 0:
        return dict(knee.bones)
    before = _gap(knee.bones["patella"], knee.bones["femur"])
    bones = dict(knee.bones)
    for bone, share in (("femur", 1.0), ("patella", PATELLA_SHARE)):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_about(knee.axis, np.radians(share * degrees))
        matrix[:3, 3] = knee.middle - matrix[:3, :3] @ knee.middle
        bones[bone] = transformed(bones[bone], matrix)
    outward = bones["patella"].vertices.mean(0) - knee.middle
    outward -= (outward @ knee.axis) * knee.axis
    outward /= np.linalg.norm(outward)
    for _ in range(20):
        error = before - _gap(bones["patella"], bones["femur"])
        bones["patella"] = Surface(bones["patella"].vertices + error * outward, bones["patella"].faces)
        if abs(error) < 0.05:
            break
    return bones


def _gap(surface, other):
    return float(SurfaceLocator(other).signed(surface.vertices).min())


def knee_ct(bones, middle, seed):
    """Render bones in a limb.

    Args:
        bones: {bone: closed surface}, RAS mm.
        middle: (3,) of the joint.
        seed: of tissue and texture.

    Returns:
        `Volume` of HU, float32.
    """
    generator = np.random.default_rng(seed)
    tissue = {name: generator.uniform(*limits[generator.integers(2)]) for name, limits in OUTSIDE_RANGES.items()}
    size = round(2 * HALF_MM / SPACING_MM)
    matrix = np.diag([SPACING_MM] * 3 + [1.0])
    matrix[:3, 3] = middle - HALF_MM
    masks = {bone: voxelize(surface, (size,) * 3, matrix).array for bone, surface in bones.items()}
    hu = _limb(np.logical_or.reduce(list(masks.values())), generator)
    for bone, mask in masks.items():
        if mask.any():
            _draw(hu, mask, bone, matrix, middle, tissue, generator)
    return Volume(ndimage.gaussian_filter(hu, 0.6 / SPACING_MM), matrix)


def _limb(bone, generator):
    """(K, J, I) float32 HU of muscle and fat around bones, and air."""
    every = round(LIMB_STEP_MM / SPACING_MM)
    away = ndimage.distance_transform_edt(~bone[::every, ::every, ::every], LIMB_STEP_MM)
    # Smoothed, so that the skin bridges what lies between the bones.
    away = ndimage.gaussian_filter(away, LIMB_SMOOTH_MM / LIMB_STEP_MM, mode="nearest")
    away = ndimage.zoom(
        away.astype(np.float32), np.array(bone.shape) / away.shape, order=1, grid_mode=True, mode="nearest"
    )
    fat = generator.uniform(*FAT_MM)
    hu = np.where(away < FLESH_MM, MUSCLE_HU, FAT_HU).astype(np.float32)
    hu[away > FLESH_MM + fat] = AIR_HU
    return hu


def _draw(hu, mask, bone, matrix, middle, tissue, generator):
    """Put a bone into the HU."""
    places = np.nonzero(mask.any((1, 2)))[0], np.nonzero(mask.any((0, 2)))[0], np.nonzero(mask.any((0, 1)))[0]
    box = tuple(slice(max(place[0] - 1, 0), place[-1] + 2) for place in places)
    inside = mask[box]
    # At the volume's border the bone goes on.
    depth = ndimage.distance_transform_edt(np.pad(inside, 1, mode="edge"), SPACING_MM)[1:-1, 1:-1, 1:-1]
    texture = ndimage.gaussian_filter(
        generator.standard_normal(inside.shape).astype(np.float32), TEXTURE_MM / 2 / SPACING_MM
    )
    texture *= TEXTURE_HU / max(float(texture.std()), 1e-6)
    index = np.argwhere(inside)
    away = np.linalg.norm(
        transform_points(matrix, index[:, ::-1] + [part.start for part in box[::-1]]) - middle, axis=1
    )
    shaft = np.clip((away - END_MM) / (SHAFT_MM - END_MM), 0, 1) * (bone != "patella")
    thickness = tissue["end_cortex_mm"] + (tissue["shaft_cortex_mm"] - tissue["end_cortex_mm"]) * shaft
    core = tissue["cancellous_hu"] * (1 - shaft) + tissue["marrow_hu"] * shaft + (1 - shaft) * texture[inside]
    cortex = tissue["cortical_hu"] * (0.75 + 0.25 * shaft)
    share = np.clip((depth[inside] - thickness) / 1.0, 0, 1)
    hu[box][inside] = cortex + share * (core - cortex)
