"""`bonerecon suggest-mask`: a proposal of the coarse fracture mask, around the lines between a tibia's fragments.

Broken faces are those that look at another fragment; they and the crumbs are masked with what lies around them. The
proposal is to be looked at: fragments that hang together, and bone that is crushed, are not seen in a segmentation.
"""

import json
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfaces import vertex_normals
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import Volume, bounding_box, crop, read_mask, read_volume, resample, write_volume
from TibiaCompletionLib.fragments.splitting import split

# A broken face looks at another fragment that is at most so far away; what lies around it is masked.
SIGHT_MM, STEP_MM, MARGIN_MM = 20.0, 0.7, 8.0
ADVICE = "This mask is a proposal: look at it in all slices and correct it before you use it."
STAGES = {"reading": 2, "telling the fragments apart": 6, "writing": 1}
FILES = ("fracture.nii.gz", RESULT)


def suggest_mask(tibia, ct):
    """Mask the fracture lines of a segmented tibia.

    Args:
        tibia: bool volume of the broken bone, solid, not empty.
        ct: HU on the same grid.

    Returns:
        bool Volume on the same grid.

    Raises:
        InputError: the bone is in one piece.
    """
    found = split(tibia, ct)
    count = len(found.volumes_ml)
    if count < 2 and not found.crumbs:
        raise InputError(
            "The tibia's segment is in one piece, so no fracture line can be told: draw the mask by hand, or separate "
            "the fragments first."
        )
    margin = np.ceil(MARGIN_MM / tibia.spacing[::-1]).astype(int) + 1
    lower, upper = bounding_box(tibia.array)
    lower, upper = np.maximum(lower - margin, 0), np.minimum(upper + margin, tibia.shape)
    bone, labels = crop(tibia, lower, upper).array, crop(found.labels, lower, upper)
    broken = bone & (labels.array == 0)
    for number in range(1, count + 1):
        broken[tuple(_broken_face(labels, number).T)] = True
    mask = np.zeros(tibia.shape, dtype=bool)
    mask[tuple(map(slice, lower, upper))] = ndimage.distance_transform_edt(~broken, tibia.spacing[::-1]) < MARGIN_MM
    return Volume(mask, tibia.ijk_to_ras)


def _broken_face(labels, number):
    """(n, 3) voxels, k j i, of a fragment's surface from which another fragment is seen."""
    surface = mask_surface(Volume(labels.array == number, labels.ijk_to_ras))
    normals = vertex_normals(surface)
    seen = np.zeros(len(normals), dtype=labels.array.dtype)
    for distance in np.arange(STEP_MM, SIGHT_MM, STEP_MM):
        place = _voxels(labels, surface.vertices + distance * normals)
        here = ndimage.map_coordinates(labels.array, place.T, order=0, mode="constant")
        seen = np.where(seen == 0, here, seen)
    return _voxels(labels, surface.vertices[(seen > 0) & (seen != number)]).clip(0, np.array(labels.shape) - 1)


def _voxels(volume, points):
    return np.rint(transform_points(volume.ras_to_ijk, points)[:, ::-1]).astype(int)


def write_suggestion(ct_file, tibia_name, folder, report):
    """Suggest a mask for a CT file and write fracture.nii.gz, in the CT's geometry, and result.json.

    Args:
        ct_file: volume file, HU.
        tibia_name: FILE[:LABEL|SEGMENT] of the broken bone.
        folder: empty, where the files go.
        report: called with (stage, fraction).

    Returns:
        The contents of result.json.

    Raises:
        InputError: a file cannot be read, the tibia is empty, beside the CT or in one piece.
    """
    began = time.perf_counter()
    report("reading", 0.0)
    ct = read_volume(ct_file)
    tibia = resample(read_mask(tibia_name), ct.shape, ct.ijk_to_ras, "antialiased")
    if not tibia.array.any():
        raise InputError("The tibia is empty or lies outside the CT: name the tibia that was segmented in this CT.")
    report("telling the fragments apart", 0.0)
    mask = suggest_mask(tibia, ct)
    report("writing", 0.0)
    write_volume(Path(folder) / FILES[0], mask)
    result = {
        "version": VERSION,
        "inputs": {"ct": ct_file, "tibia": tibia_name},
        "masked_share": round(np.count_nonzero(mask.array & tibia.array) / np.count_nonzero(tibia.array), 4),
        "warnings": [ADVICE],
        "seconds": round(time.perf_counter() - began, 2),
    }
    (Path(folder) / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def add_arguments(parser):
    """Declare the arguments of `bonerecon suggest-mask`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT volume (.nrrd, .nii, .nii.gz, .mha)")
    parser.add_argument("--tibia", required=True, metavar="FILE[:LABEL|SEGMENT]", help="the segmented broken tibia")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for fracture.nii.gz and result.json")


def run(arguments):
    """Run `bonerecon suggest-mask`."""
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = write_suggestion(arguments.ct, arguments.tibia, folder, progress.report)
    print(f"The mask covers {100 * result['masked_share']:.0f} % of the segmented bone. {ADVICE}")
