"""Real CTs to learn from in place of virtual people: <folder>/<subject>_<L|R>/ct.* and tibia.*, checked and read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import side_to_right, transform_points
from BoneReconstructionLib.imagemetrics import windowed
from BoneReconstructionLib.volumes import Volume, bounding_box, crop, read_mask, read_volume, resample
from TibiaCompletionLib.standardgrid import CENTRE_MM, STANDARD_GRID
from TibiaCompletionLib.trainingdata import on_grid

SIDES = {"_L": "left", "_R": "right"}
SUFFIXES = (".nrrd", ".nii", ".nii.gz", ".mha", ".mhd")
# A whole adult tibia, oblique in the scanner or not.
LENGTH_MM = (240.0, 500.0)
# Air is about -1000 HU: an image in HU holds values far below zero.
AIR_BELOW_HU = -200.0
# Fatty marrow makes the median of a porotic bone that of soft tissue: its cortex, more than a twentieth of any tibia,
# tells it from flesh.
BRIGHTEST_PERCENTILE, BONE_ABOVE_HU = 95.0, 500.0
# Nothing in a leg is darker than fat, at most -30 and at least -190 HU.
MARROW_ABOVE_HU = -190.0
# Every so many people, in the order of their names, one is left out of the training.
LEFT_OUT_EVERY = 8
FEWEST_CASES = 4


@dataclass(frozen=True)
class CtCase:
    """One leg of one person.

    Attributes:
        folder: with the files.
    """

    folder: Path

    @property
    def subject(self):
        """The person: both legs share the name up to _L or _R."""
        return self.folder.name[:-2]

    @property
    def side(self):
        """ "left" or "right"."""
        return SIDES[self.folder.name[-2:]]

    def file(self, stem):
        """The one volume file of that name without ending.

        Raises:
            InputError: there is none, or there are several.
        """
        found = [self.folder / f"{stem}{suffix}" for suffix in SUFFIXES if (self.folder / f"{stem}{suffix}").is_file()]
        if len(found) != 1:
            number = "no file" if not found else f"{len(found)} files"
            raise InputError(f"there is {number} named {stem} with one of the endings {', '.join(SUFFIXES)}.")
        return found[0]


def find_cases(folder):
    """All cases of a folder, by name.

    Raises:
        InputError: the folder does not exist or holds no case folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist: name a folder with one folder for each leg.")
    cases = [CtCase(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    if not cases:
        raise InputError(f"{folder} holds no case folder: put each leg into <subject>_L or <subject>_R.")
    return cases


def read_case(case):
    """Read and check a case.

    Returns:
        (CT volume in HU, tibia's bool volume on its grid), cropped to the bone.

    Raises:
        InputError: the one thing that is wrong with it.
    """
    if case.folder.name[-2:] not in SIDES:
        raise InputError("the side is not told: let the folder's name end in _L or _R.")
    ct = read_volume(case.file("ct"))
    tibia = resample(read_mask(case.file("tibia")), ct.shape, ct.ijk_to_ras, "antialiased")
    if not tibia.array.any():
        raise InputError("the tibia mask is empty where the CT is: check that the two belong together.")
    lower, upper = bounding_box(tibia.array)
    if (lower == 0).any() or (upper == ct.shape).any():
        raise InputError("the tibia reaches the end of the scan: only whole bones can be learned from.")
    if ct.array.min() > AIR_BELOW_HU:
        raise InputError(f"the CT's lowest value is {ct.array.min():.4g}, so that it is not in HU: convert it to HU.")
    inside = float(np.percentile(ct.array[tibia.array], BRIGHTEST_PERCENTILE))
    if inside < BONE_ABOVE_HU:
        raise InputError(
            f"only a twentieth of the tibia mask is above {inside:.0f} HU, less than cortical bone: check that it lies "
            "on the bone and that the CT is in HU."
        )
    inside = float(np.median(ct.array[tibia.array]))
    if inside < MARROW_ABOVE_HU:
        raise InputError(f"half of the tibia mask is below {inside:.0f} HU, in air: check that it lies on the bone.")
    ct, tibia = crop(ct, lower - 1, upper + 1), crop(tibia, lower - 1, upper + 1)
    corners = np.argwhere(tibia.array)[:, ::-1]
    length = float(np.ptp(transform_points(tibia.ijk_to_ras, corners) @ _long_axis(tibia)))
    if not LENGTH_MM[0] <= length <= LENGTH_MM[1]:
        raise InputError(
            f"the tibia is {length:.0f} mm long, a whole adult one {LENGTH_MM[0]:.0f}-{LENGTH_MM[1]:.0f} mm: "
            "check the mask and the spacing."
        )
    return ct, tibia


def _long_axis(mask):
    points = transform_points(mask.ijk_to_ras, np.argwhere(mask.array)[::97, ::-1])
    return np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]


def check_cases(cases, report=lambda fraction: None):
    """What is wrong with each case.

    Args:
        cases: from `find_cases`.
        report: called with the fraction done.

    Returns:
        [(name of the case's folder, sentence; empty where nothing is wrong)].
    """
    found = []
    for number, case in enumerate(cases):
        try:
            read_case(case)
            found.append((case.folder.name, ""))
        except InputError as error:
            found.append((case.folder.name, str(error)))
        report((number + 1) / len(cases))
    return found


def raw_image(ct, tibia, side, grid):
    """(1, K, J, I) float16 array of a case: the paper's x * m, see `trainingdata`.

    Args:
        ct: volume in HU, RAS.
        tibia: bool volume on its grid.
        side: "left" or "right".
        grid: `StandardGrid`.
    """
    mirror = side_to_right(side)
    places = transform_points(mirror @ tibia.ijk_to_ras, np.argwhere(tibia.array)[:, ::-1])
    raw_to_right = np.eye(4)
    raw_to_right[:3, 3] = (places.min(0) + places.max(0)) / 2 - CENTRE_MM
    bone = Volume(windowed(ct.array) * tibia.array, tibia.ijk_to_ras)
    matrix = mirror @ raw_to_right @ STANDARD_GRID.ijk_to_standard
    image = resample(bone, STANDARD_GRID.shape_kji, matrix).array[None]
    return on_grid(torch.from_numpy(image), grid).half().numpy()


def split(cases):
    """(training, left out) cases, by person."""
    subjects = sorted({case.subject for case in cases})
    left_out = set(subjects[LEFT_OUT_EVERY - 1 :: LEFT_OUT_EVERY] or subjects[-1:])
    return (
        [case for case in cases if case.subject not in left_out],
        [case for case in cases if case.subject in left_out],
    )


def check_number(cases):
    """Refuse to learn from too few cases.

    Raises:
        InputError: there are too few.
    """
    if len(cases) < FEWEST_CASES:
        raise InputError(
            f"There are {len(cases)} cases to learn from and at least {FEWEST_CASES} are needed: add more."
        )


def real_image(case, grid):
    """(1, K, J, I) float16 array of a case, see `raw_image`.

    Raises:
        InputError: something is wrong with the case.
    """
    try:
        return raw_image(*read_case(case), case.side, grid)
    except InputError as error:
        raise InputError(f"{case.folder.name}: {error} Check all cases with --dry-run.") from error
