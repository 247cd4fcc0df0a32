"""Scans of both legs of real people, to find the tibia in: bones in contact, air, a table and a plaster cast."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import MIRROR, rotation_about
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.evaluation import foreignrenderer, scans
from TibiaCompletionLib.evaluation.people import Leg, read_leg

RENDERERS = {
    "trained": (scans.trained_scan, scans.SPACING_MM, "ij"),
    "foreign": (foreignrenderer.foreign_scan, foreignrenderer.SPACING_MM, "i"),
}
# Both legs take a wider field of view, and with it wider voxels, than one.
WIDER = 1.2
# How much of the femur the scan shows above the knee.
FEMUR_MM = 100.0
# A leg that is not there is the other's mirror image: its distance, size, turn, and how much higher it lies.
LEG_DISTANCE_MM, OTHER_SIZE, OTHER_TURN_DEGREES, OTHER_UP_MM = 180.0, 0.98, 6.0, 12.0
# Femur and talus travel this far at most until they touch the tibia.
FARTHEST_CONTACT_MM, BISECTIONS = 20.0, 12
FLESH_MM, CAST_MM, CAST_HU, AIR_HU = 38.0, 6.0, 700.0, -1000.0
TABLE_MM, TABLE_SKIN_MM, TABLE_SKIN_HU, TABLE_FOAM_HU = 28.0, 2.5, 150.0, -900.0
COARSE_STEP = 4


@dataclass(frozen=True, eq=False)
class LegScene:
    """One scan of both legs.

    Attributes:
        ct: HU, int16.
        legs: {side: `Leg`} of the real legs as they were rendered.
        tibiae: {side: bool volume} of these legs' tibiae on the CT's grid.
    """

    ct: Volume
    legs: dict[str, Leg]
    tibiae: dict[str, Volume]


def make_scene(folder, subject, sides, renderer, seed):
    """Render both legs of a person.

    Args:
        folder: of the bones, see `people.leg_names`.
        subject: who.
        sides: the sides whose tibiae are there; the other leg is made.
        renderer: a key of `RENDERERS`.
        seed: integers.

    Returns:
        LegScene.
    """
    scan_leg, spacing, flipped = RENDERERS[renderer]
    real = {side: _in_contact(_with_patella(folder, read_leg(folder, subject, side))) for side in sides}
    first = next(iter(real.values()))
    second = real[sides[1]] if len(sides) > 1 else _mirrored(first)
    others = {f"other {bone}": surface for bone, surface in {"tibia": second.tibia, **second.neighbours}.items()}
    held = replace(first, tibia=Surface(np.concatenate([_seen(first), _seen(second)]), first.tibia.faces[:0]))
    grid = scans.oblique_grid(held, WIDER * np.array(spacing), np.random.default_rng([*seed, 5]), flipped)
    scan = scan_leg(replace(first, neighbours=first.neighbours | others), seed, grid)
    tibiae = {first.side: scan.tibia, second.side: scan.neighbours["other tibia"]}
    bone = np.logical_or.reduce([scan.tibia.array, *(mask.array for mask in scan.neighbours.values())])
    _surround(scan.sharp, bone, scan.tibia.ijk_to_ras)
    hu = np.rint(scan.scanned(scan.sharp)).clip(-1024, 3071).astype(np.int16)
    return LegScene(Volume(hu, scan.tibia.ijk_to_ras), real, {side: tibiae[side] for side in real})


def _with_patella(folder, leg):
    path = Path(folder) / "patella" / f"{leg.name}.ply"
    return replace(leg, neighbours=leg.neighbours | {"patella": read_surface(path)}) if path.exists() else leg


def _in_contact(leg):
    """The leg with its joint spaces closed: its neighbours moved until they touch the tibia."""
    across = {"femur": -leg.axes[2], "talus": leg.axes[2]}
    if "fibula" in leg.neighbours:
        towards = leg.tibia.vertices.mean(0) - leg.neighbours["fibula"].vertices.mean(0)
        across["fibula"] = towards - (towards @ leg.axes[2]) * leg.axes[2]
    locator = SurfaceLocator(leg.tibia)
    moved = dict(leg.neighbours)
    for bone in moved.keys() & across.keys():
        direction = across[bone] / np.linalg.norm(across[bone])
        moved[bone] = _touching(moved[bone], direction, locator)
    return replace(leg, neighbours=moved)


def _touching(surface, direction, locator):
    """A surface moved along a direction, forwards or back, until it just touches another."""
    near = surface.vertices[locator.closest(surface.vertices)[1] < 2 * FARTHEST_CONTACT_MM]
    low, high = -FARTHEST_CONTACT_MM, FARTHEST_CONTACT_MM
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        apart = locator.signed(near + middle * direction).min() > 0
        low, high = (middle, high) if apart else (low, middle)
    return Surface(surface.vertices + low * direction, surface.faces)


def _mirrored(leg):
    """The other leg: a mirror image beside the leg, somewhat smaller, turned and moved."""
    centre = leg.tibia.vertices.mean(0)
    matrix = MIRROR.copy()
    matrix[:3, :3] = OTHER_SIZE * rotation_about(leg.axes[2], np.radians(OTHER_TURN_DEGREES)) @ MIRROR[:3, :3]
    outwards = np.array([1.0 if leg.side == "left" else -1.0, 0.0, 0.0])
    goal = centre + LEG_DISTANCE_MM * outwards + OTHER_UP_MM * leg.axes[2]
    matrix[:3, 3] = goal - matrix[:3, :3] @ centre
    return replace(
        leg,
        side="left" if leg.side == "right" else "right",
        tibia=transformed(leg.tibia, matrix),
        neighbours={bone: transformed(surface, matrix) for bone, surface in leg.neighbours.items()},
    )


def _seen(leg):
    """Vertices (n, 3) of a leg's bones up to where the scan cuts the femur off."""
    vertices = np.concatenate([leg.tibia.vertices, *(surface.vertices for surface in leg.neighbours.values())])
    top = (leg.tibia.vertices @ leg.axes[2]).max()
    return vertices[vertices @ leg.axes[2] < top + FEMUR_MM]


def _surround(sharp, bone, ijk_to_ras):
    """Put flesh of even thickness, air, a cast around one leg's lower half and a table into sharp HU, in place.

    Args:
        sharp: (K, J, I) float32 HU of bones in soft tissue.
        bone: (K, J, I) bool.
        ijk_to_ras: (4, 4).
    """
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)[::-1]
    coarse = ndimage.distance_transform_edt(~bone[(slice(None, None, COARSE_STEP),) * 3], COARSE_STEP * spacing)
    k, j, i = (np.arange(size, dtype=np.float32) for size in sharp.shape)
    centre, lowest = _extent(bone, ijk_to_ras)
    for number, layer in enumerate(sharp):
        middle = min(number // COARSE_STEP, len(coarse) - 1)
        distance = ndimage.zoom(coarse[middle], np.array(layer.shape) / coarse.shape[1:], order=1, mode="nearest")
        x, y, z = (
            row[0] * i + row[1] * j[:, None] + row[2] * k[number] + row[3] for row in ijk_to_ras[:3].astype(np.float32)
        )
        beyond = distance > FLESH_MM
        depth = lowest - FLESH_MM - y
        layer[beyond] = AIR_HU
        layer[beyond & (distance < FLESH_MM + CAST_MM) & (x > centre[0]) & (z < centre[2])] = CAST_HU
        table = (depth > 0) & (depth < TABLE_MM)
        skin = table & ((depth < TABLE_SKIN_MM) | (depth > TABLE_MM - TABLE_SKIN_MM))
        layer[table] = TABLE_FOAM_HU
        layer[skin] = TABLE_SKIN_HU


def _extent(bone, ijk_to_ras):
    """Middle (3,) of the bones' box and their lowest y (posterior), RAS mm."""
    index = np.argwhere(bone[(slice(None, None, COARSE_STEP),) * 3])[:, ::-1] * COARSE_STEP
    points = index @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
    return (points.min(0) + points.max(0)) / 2, points[:, 1].min()
