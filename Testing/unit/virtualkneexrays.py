"""X-rays of a virtual knee whose bones are known, made in no time: bones as thickness images, flesh as a cylinder."""

from functools import cache

import numpy as np

from BiplanarReconLib.fitting.kneemodel import BONES, MODEL, BoneState, load_models
from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib.frames import rotation_about, side_to_right
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose
from BoneReconstructionLib.meshthickness import thickness_image
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfaces import transformed
from BoneReconstructionLib.xraygeometry import XrayGeometry

ISOCENTRE = np.array([35.0, -60.0, 240.0])
CORTEX, INSIDE, FLESH = 0.046, 0.028, 0.022  # per mm; those of bone beyond flesh's
LIMB_MM = 62.0
SHAPE = (160, 160)


@cache
def bones(side, flexion_degrees=12.0):
    """{bone: (outer, marrow) surfaces} of a knee that is larger than usual, turned and bent, RAS mm."""
    models, generator = load_models(), np.random.default_rng(5)
    places = KneeAssembly({bone: load_prior(MODEL, bone) for bone in BONES}).assemble(
        {bone: model.mean for bone, model in models.items()}, KneePose(flexion_degrees)
    )
    pose = np.eye(4)
    pose[:3, :3] = 1.05 * rotation_about((0, 0, 1), np.radians(8)) @ rotation_about((1, 0, 0), np.radians(-4))
    pose[:3, 3] = ISOCENTRE * [1 if side == "right" else -1, 1, 1] + [4.0, -6.0, 3.0]
    found = {}
    for bone, model in models.items():
        weights = np.zeros(len(model.basis))
        weights[:4] = generator.normal(0, 0.8, 4)
        state = BoneState(model, pose @ places[bone], weights)
        back = side_to_right(side)
        found[bone] = transformed(state.surface, back), transformed(state.marrow, back)
    return found


def views(angle_deg=90.0, preset="ssr-kd", shape=SHAPE) -> tuple[XrayGeometry, XrayGeometry]:
    """Frontal and lateral geometry about the knee, with few pixels."""
    return tuple(view.resized(shape) for view in standard_views(preset, ISOCENTRE, angle_deg=angle_deg))


def xrays(geometries, side="left", seed=1):
    """(rows, columns) float32 line integrals of the knee in each view, with a little noise."""
    generator = np.random.default_rng(seed)
    images = []
    for geometry in geometries:
        image = FLESH * _limb(geometry)
        for outer, marrow in bones(side).values():
            inside = thickness_image(marrow, geometry)
            image = image + CORTEX * (thickness_image(outer, geometry) - inside) + INSIDE * inside
        images.append((image + generator.normal(0, 0.01, image.shape)).astype(np.float32))
    return images


def _limb(geometry):
    """(rows, columns) mm of each ray within an upright cylinder about the isocentre."""
    row, column = np.indices(geometry.shape)
    rays = geometry.pixel_positions(np.stack([column.ravel(), row.ravel()], -1)) - geometry.source
    flat, start = rays[:, :2], (geometry.source - ISOCENTRE)[:2]
    a, b = (flat**2).sum(1), flat @ start
    root = np.maximum(b**2 - a * (start @ start - LIMB_MM**2), 0)
    return (2 * np.sqrt(root) / a * np.linalg.norm(rays, axis=1)).reshape(geometry.shape)
