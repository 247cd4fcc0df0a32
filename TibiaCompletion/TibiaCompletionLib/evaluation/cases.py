"""The cases of the evaluation by name: what of a healthy leg a method is shown, and where it is measured.

A case is the base (plain renderer, the person's size, the tibia alone) with at most one thing changed: the foreign
renderer, the size, the neighbouring bones as context, or the other leg.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.virtualfractures import displaced_labels, draw_fracture, fracture_ct
from BoneReconstructionLib.volumes import Volume, crop
from TibiaCompletionLib.case import TibiaCase, make_case
from TibiaCompletionLib.evaluation.foreignrenderer import foreign_scan
from TibiaCompletionLib.evaluation.people import Leg, has_neighbours, leg_names, read_leg
from TibiaCompletionLib.evaluation.scans import Scan, trained_scan

RENDERERS = {"trained": trained_scan, "foreign": foreign_scan}
FRACTURES = tuple(f"{kind}-{number}" for kind in ("fracture", "undisplaced") for number in range(1, 5))
CASES = ("unmasked", "shaft", "plateau", "pilon", "oblique", "blocks", *FRACTURES, "proximal", "distal")
LENGTHS_MM = (300.0, 420.0)
SCALED_CASES = ("unmasked", "shaft", "plateau", "pilon")
CONTEXT_CASES = ("plateau", "pilon", "proximal", "distal", *FRACTURES)
QUICK_CASES = ("unmasked", "shaft", "fracture-1")

# What the fractures 1 to 4 of a leg are: the shaft in two, the shaft in more, the plateau, the pilon.
FRACTURE_KINDS = (
    ("transverse", "oblique", "spiral"),
    ("butterfly", "segmental"),
    ("plateau-split", "plateau-depression", "plateau-split-depression"),
    ("pilon",),
)
SHAFT_GAP_MM, END_GAP_MM, OBLIQUE_GAP_MM = 60.0, 40.0, 40.0
# Scans of 150 mm beside the knee or the ankle have their gap in the middle.
PARTIAL_MM, PARTIAL_GAP_MM = 150.0, 30.0
# Lateral, anterior, proximal; the oblique gap is cut at 45 degrees to the shaft, at two fifths of its height.
LONG_AXIS = np.array([0.0, 0.0, 1.0])
OBLIQUE_NORMAL, OBLIQUE_HEIGHT = np.array([0.6, 0.8, 1.0]) / np.sqrt(2), 0.42
# The masked tibia completion paper: blocks of random size between 10 and 20 voxels of 1 mm; it gives no share.
BLOCK_MM, BLOCK_SHARE = (10.0, 20.0), 0.25
# A coarse mask covers the broken bone and this much around it.
MASK_MARGIN_MM = 10.0
# Bone reaches into voxels whose centres lie this far outside.
EDGE_MM = 1.5
# Bone as close as this to the scan's end is not measured: a prediction may be closed there.
SCAN_END_MM = 3.0


@dataclass(frozen=True)
class CaseKey:
    """Which case; everything in it follows from this.

    Attributes:
        subject: who.
        side: "left" or "right".
        renderer: a key of `RENDERERS`.
        length_mm: length that the leg is scaled to; None keeps the person's.
        case: one of `CASES`.
        context: whether the method is given the neighbouring bones.
        other_leg: whether the method is given the other tibia.
    """

    subject: str
    side: str
    renderer: str
    length_mm: float | None
    case: str
    context: bool
    other_leg: bool


@dataclass(frozen=True, eq=False)
class Case:
    """A case ready to be completed.

    Attributes:
        key: its `CaseKey`.
        leg: the healthy leg; its tibia is the truth.
        scan: the healthy leg's scan.
        tibia: bool volume of the segmented bone on the scan's grid.
        mask: bool volume of the coarse mask on the same grid.
        completion_input: what the completion is given; with context, the neighbouring bones, too.
        other_tibia: the other leg's healthy tibia as it lies in its own scan, RAS mm, or None.
        masked: says of (n, 3) RAS points whether they lie in the masked region; None where nothing is masked.
        scanned: says of (n, 3) RAS points whether they lie in the scan, its ends left out; None for whole bones.
    """

    key: CaseKey
    leg: Leg
    scan: Scan
    tibia: Volume
    mask: Volume
    completion_input: TibiaCase
    other_tibia: Surface | None
    masked: Callable[[np.ndarray], np.ndarray] | None
    scanned: Callable[[np.ndarray], np.ndarray] | None


def case_keys(folder, quick=False):
    """All cases of a folder of bones, those that share a scan one after the other.

    Args:
        folder: as in `people.leg_names`.
        quick: three cases of the first leg, and one of them by the foreign renderer and with the other leg.

    Returns:
        list of CaseKey.

    Raises:
        InputError: the folder holds no tibia.
    """
    legs = leg_names(folder)
    keys = []
    for subject, side in legs[:1] if quick else legs:
        keys += [CaseKey(subject, side, "trained", None, case, False, False) for case in CASES]
        if has_neighbours(folder, subject, side):
            keys += [CaseKey(subject, side, "trained", None, case, True, False) for case in CONTEXT_CASES]
        if (subject, "left" if side == "right" else "right") in legs:
            keys += [CaseKey(subject, side, "trained", None, case, False, True) for case in CASES]
        keys += [CaseKey(subject, side, "foreign", None, case, False, False) for case in CASES]
        keys += [
            CaseKey(subject, side, "trained", length, case, False, False)
            for length in LENGTHS_MM
            for case in SCALED_CASES
        ]
    if quick:
        keys = [key for key in keys if key.case in QUICK_CASES and key.length_mm is None and not key.context]
        keys = [key for key in keys if key.case == "shaft" or (key.renderer == "trained" and not key.other_leg)]
    return keys


def case_leg(folder, key):
    """The healthy leg of a case, at its size.

    Raises:
        InputError: a bone cannot be read.
    """
    return _leg(folder, key.subject, key.side, key.length_mm)


def build_case(folder, key):
    """Make a case.

    Args:
        folder: of the bones.
        key: `CaseKey`.

    Returns:
        Case.

    Raises:
        InputError: a bone cannot be read or broken.
    """
    leg = case_leg(folder, key)
    scan = _scan(folder, key.subject, key.side, key.length_mm, key.renderer)
    ijk_to_ras = scan.tibia.ijk_to_ras
    whole = scan.tibia.array
    masked = scanned = None
    if key.case in FRACTURES:
        fracture = _fracture(folder, key.subject, key.side, key.case)
        labels, mask = displaced_labels(scan.tibia, fracture)
        shown, mask = labels.array > 0, mask.array
        masked = _lookup(mask, ijk_to_ras)

        def sharp():
            return fracture_ct(Volume(scan.sharp, ijk_to_ras), scan.tibia, fracture, scan.soft_tissue_hu).array
    else:
        mask = np.zeros(whole.shape, dtype=bool)
        if key.case != "unmasked":
            masked = _region(leg, key.case)
            near = np.nonzero(scan.distance < MASK_MARGIN_MM)
            mask[near] = masked(transform_points(ijk_to_ras, np.stack(near[::-1], 1)))
        shown = whole & ~mask

        def sharp():
            return np.where(mask & (scan.distance < EDGE_MM), np.float32(scan.soft_tissue_hu), scan.sharp)

    lower, upper = np.zeros(3, dtype=int), np.array(whole.shape)
    if key.case in ("proximal", "distal"):
        lower, upper, scanned = _part(leg, key.case, scan.tibia)
    box = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
    matrix = crop(scan.tibia, lower, upper).ijk_to_ras
    ct = cache(lambda: scan.scanned(sharp()[box]))
    segmented = scan.segmented(shown[box], ct)
    if key.case not in FRACTURES:  # the gap is empty: nothing of the truth may show through
        segmented = segmented & ~mask[box]
    tibia = Volume(segmented, matrix)
    hidden = Volume(mask[box], matrix)
    neighbours = {bone: crop(volume, lower, upper) for bone, volume in scan.neighbours.items()} if key.context else {}
    other_tibia = leg.other_tibia if key.other_leg else None
    completion_input = _completion_input(tibia, hidden, ct, neighbours)
    return Case(key, leg, scan, tibia, hidden, completion_input, other_tibia, masked, scanned)


def _completion_input(tibia, mask, ct, neighbours):
    def read_ct(lower, upper):
        return crop(Volume(ct(), tibia.ijk_to_ras), lower, upper)

    return make_case(tibia, mask, read_ct, neighbours=neighbours, whole=not mask.array.any())


def _region(leg, case):
    """Function of RAS points: whether they lie in the part of the bone that a case without fracture masks."""
    if case == "blocks":
        return _blocks(leg)
    length, oblique = leg.length, OBLIQUE_HEIGHT * leg.length * OBLIQUE_NORMAL[2]
    normal, low, high = {
        "shaft": (LONG_AXIS, (length - SHAFT_GAP_MM) / 2, (length + SHAFT_GAP_MM) / 2),
        "oblique": (OBLIQUE_NORMAL, oblique - OBLIQUE_GAP_MM / 2, oblique + OBLIQUE_GAP_MM / 2),
        "plateau": (LONG_AXIS, length - END_GAP_MM, np.inf),
        "pilon": (LONG_AXIS, -np.inf, END_GAP_MM),
        "proximal": (LONG_AXIS, length - (PARTIAL_MM + PARTIAL_GAP_MM) / 2, length - (PARTIAL_MM - PARTIAL_GAP_MM) / 2),
        "distal": (LONG_AXIS, (PARTIAL_MM - PARTIAL_GAP_MM) / 2, (PARTIAL_MM + PARTIAL_GAP_MM) / 2),
    }[case]

    def masked(points):
        place = leg.places(points) @ normal
        return (place > low) & (place < high)

    return masked


def _blocks(leg):
    """Random cubes of one random size along the bone's axes, as in the paper."""
    generator = np.random.default_rng([_seed(leg), 7])
    size = generator.uniform(*BLOCK_MM)
    hidden = generator.random((64, 64, 64)) < BLOCK_SHARE
    shift = generator.uniform(0, size, 3)

    def masked(points):
        index = np.floor((leg.places(points) + shift) / size).astype(int) % 64
        return hidden[tuple(index.T)]

    return masked


@lru_cache(maxsize=len(FRACTURES))
def _fracture(folder, subject, side, case):
    """The virtual fracture of a case, of the same kind displaced and undisplaced."""
    leg = _leg(folder, subject, side, None)
    kind, number = case.split("-")
    kinds = FRACTURE_KINDS[int(number) - 1]
    chosen = kinds[_seed(leg) % len(kinds)]
    return draw_fracture(leg.tibia, leg.side, chosen, _seed(leg) + int(number), kind == "fracture")


def _part(leg, case, volume):
    """(lower, upper, scanned): the voxels of a scan that ends 150 mm from the joint, and what of it is measured."""
    height = leg.length - PARTIAL_MM if case == "proximal" else PARTIAL_MM
    place = np.append(leg.origin + height * leg.axes[2], 1.0)
    end = int(np.rint((volume.ras_to_ijk @ place)[2]))
    upwards = volume.ijk_to_ras[:3, 2] @ leg.axes[2] > 0
    lower, upper = np.zeros(3, dtype=int), np.array(volume.shape)
    keep_after = (case == "proximal") == upwards
    if keep_after:
        lower[0] = end
    else:
        upper[0] = end
    row, step = volume.ras_to_ijk[2], SCAN_END_MM / volume.spacing[2]

    def scanned(points):
        k = points @ row[:3] + row[3]
        return k > end + step if keep_after else k < end - 1 - step

    return lower, upper, scanned


def _lookup(mask, ijk_to_ras):
    """Function of RAS points: whether they lie in a mask; beyond the grid its border goes on."""
    ras_to_ijk = np.linalg.inv(ijk_to_ras)

    def masked(points):
        index = np.rint(points @ ras_to_ijk[:3, :3].T + ras_to_ijk[:3, 3]).astype(int)
        return mask[tuple(np.clip(index, 0, np.array(mask.shape)[::-1] - 1).T[::-1])]

    return masked


def _seed(leg):
    return zlib.crc32(leg.name.encode())


@lru_cache(maxsize=4)
def _leg(folder, subject, side, length_mm):
    leg = read_leg(folder, subject, side)
    return leg if length_mm is None else leg.scaled_to(length_mm)


@lru_cache(maxsize=1)
def _scan(folder, subject, side, length_mm, renderer):
    leg = _leg(folder, subject, side, length_mm)
    return RENDERERS[renderer](leg, [_seed(leg), 0 if length_mm is None else int(length_mm)])
