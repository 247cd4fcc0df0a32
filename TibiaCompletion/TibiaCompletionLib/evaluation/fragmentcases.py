"""Displaced fractures of real tibiae in CTs that hold all of the fragments, and where these belong."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.fracturekinds import KINDS
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.virtualfractures import Fracture, displaced_labels, draw_fracture, fracture_ct
from BoneReconstructionLib.volumes import Volume, bounding_box, crop
from TibiaCompletionLib.case import TibiaCase, make_case
from TibiaCompletionLib.evaluation import scans
from TibiaCompletionLib.evaluation.cases import CaseKey, case_leg
from TibiaCompletionLib.evaluation.legscenes import RENDERERS
from TibiaCompletionLib.evaluation.people import Leg, leg_names

FRACTURES = 20
QUICK_FRACTURES = 2


@dataclass(frozen=True, eq=False)
class FractureCase:
    """A fractured tibia in a CT.

    Attributes:
        key: its `CaseKey`.
        leg: the healthy leg.
        fracture: `Fracture`, the truth.
        tibia: bool volume of the segmented bone on the CT's grid.
        labels: uint8 volume, the same bone with its fragments told apart, 1 to k as in `fracture`.
        completion_input: what the completion is given.
    """

    key: CaseKey
    leg: Leg
    fracture: Fracture
    tibia: Volume
    labels: Volume
    completion_input: TibiaCase


def fracture_keys(folder, quick=False):
    """The cases of a folder of bones: of each tibia a number of fractures, every kind in turn, the renderers in turn.

    Args:
        folder: as in `people.leg_names`.
        quick: two fractures of the first leg.

    Returns:
        list of CaseKey; the case is the fracture's kind and its number.

    Raises:
        InputError: the folder holds no tibia.
    """
    legs = leg_names(folder)
    kinds, renderers = list(KINDS), list(RENDERERS)
    return [
        CaseKey(
            subject,
            side,
            renderers[number % len(renderers)],
            None,
            f"{kinds[number % len(kinds)]}-{number}",
            False,
            (subject, "left" if side == "right" else "right") in legs,
        )
        for number in range(QUICK_FRACTURES if quick else FRACTURES)
        for subject, side in (legs[:1] if quick else legs)
    ]


def build_fracture(folder, key):
    """Make a case.

    Args:
        folder: of the bones.
        key: `CaseKey` from `fracture_keys`.

    Returns:
        FractureCase.

    Raises:
        InputError: a bone cannot be read or broken.
    """
    leg = case_leg(folder, key)
    kind, _, number = key.case.rpartition("-")
    seed = zlib.crc32(leg.name.encode()) + int(number)
    fracture = draw_fracture(leg.tibia, leg.side, kind, seed)
    scan_leg, spacing, flipped = RENDERERS[key.renderer]
    held = replace(leg, tibia=Surface(np.concatenate([leg.tibia.vertices, _displaced(leg, fracture)]), leg.tibia.faces))
    grid = scans.oblique_grid(held, np.array(spacing), np.random.default_rng([seed, 6]), flipped)
    scan = scan_leg(leg, [seed], grid)
    matrix = scan.tibia.ijk_to_ras
    true, mask = displaced_labels(scan.tibia, fracture)
    ct = scan.scanned(fracture_ct(Volume(scan.sharp, matrix), scan.tibia, fracture, scan.soft_tissue_hu).array)
    tibia = Volume(scan.segmented(true.array > 0, lambda: ct), matrix)
    image = Volume(ct, matrix)
    given = make_case(tibia, mask, lambda lower, upper: crop(image, lower, upper))
    if key.other_leg:
        given = replace(given, other_tibia=leg.other_tibia)
    return FractureCase(key, leg, fracture, tibia, _told_apart(tibia, true), given)


def _displaced(leg, fracture):
    """Vertices (n, 3) of the bone where its fragments lie, RAS mm."""
    vertices = leg.tibia.vertices.copy()
    fragment = fracture.fragment_and_depth(vertices)[0]
    for number, motion in enumerate(fracture.motions):
        vertices[fragment == number] = transform_points(motion, vertices[fragment == number])
    return vertices


def _told_apart(tibia, true):
    """The segmented bone with the nearest true fragment's label in each voxel, as a user would correct a split."""
    labels = np.zeros(tibia.shape, dtype=np.uint8)
    box = tuple(slice(low, high) for low, high in zip(*bounding_box(tibia.array | (true.array > 0)), strict=True))
    nearest = ndimage.distance_transform_edt(
        true.array[box] == 0, tibia.spacing[::-1], return_distances=False, return_indices=True
    )
    labels[box] = np.where(tibia.array[box], true.array[box][tuple(nearest)], 0)
    return Volume(labels, tibia.ijk_to_ras)
