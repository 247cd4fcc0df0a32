"""`bonerecon split-fragments`: the fragments of a broken tibia told apart, to be corrected in the Segment Editor."""

import json

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT, OutputFolder, Progress
from BoneReconstructionLib.version import VERSION
from BoneReconstructionLib.volumes import read_mask, read_volume, resample, write_volume
from TibiaCompletionLib.fragments.results import SPLIT
from TibiaCompletionLib.fragments.splitting import split

STAGES = {"reading": 2, "telling the fragments apart": 3, "writing": 1}
FILES = (SPLIT, RESULT)


def split_fragments(ct, tibia, folder, report, fracture=None):
    """Tell the fragments of a segmented bone apart and write them into an empty folder.

    Args:
        ct: volume file.
        tibia: FILE[:LABEL|SEGMENT] of the broken bone.
        folder: where fragments.nii.gz (labels from the largest fragment, 1, on the CT's grid) and result.json go.
        report: called with (stage, fraction).
        fracture: FILE[:LABEL|SEGMENT] of the coarse mask of the fracture, or None.

    Returns:
        The contents of result.json.

    Raises:
        InputError: a file cannot be read, or the bone lies outside the CT.
    """
    report("reading", 0.0)
    image = read_volume(ct)
    bone = resample(read_mask(tibia), image.shape, image.ijk_to_ras, "antialiased")
    if not bone.array.any():
        raise InputError("The tibia is empty or lies outside the CT: name the CT that it was segmented in.")
    report("telling the fragments apart", 0.0)
    found = split(bone, image, read_fracture(fracture, image))
    report("writing", 0.0)
    write_volume(folder / SPLIT, found.labels)
    result = {
        "version": VERSION,
        "inputs": {"ct": ct, "tibia": tibia, "fracture": fracture},
        "volumes_ml": [round(volume, 2) for volume in found.volumes_ml],
        "crumbs": [
            {"volume_ml": round(volume, 3), "centre_ras": np.round(centre, 1).tolist()}
            for volume, centre in found.crumbs
        ],
    }
    (folder / RESULT).write_text(json.dumps(result, indent=2), encoding="utf-8")
    report("writing", 1.0)
    return result


def read_fracture(name, image):
    """The coarse mask of a fracture on an image's grid, or None where no file is named."""
    return None if name is None else resample(read_mask(name), image.shape, image.ijk_to_ras)


def add_fracture_argument(parser):
    """Declare the argument that `read_fracture` reads."""
    parser.add_argument(
        "--fracture",
        metavar="FILE[:LABEL|SEGMENT]",
        help="coarse mask of the fracture, which helps to tell fragments apart that hang together behind it",
    )


def add_arguments(parser):
    """Declare the arguments of `bonerecon split-fragments`."""
    parser.add_argument("--ct", required=True, metavar="FILE", help="CT volume (.nrrd, .nii, .nii.gz, .mha)")
    parser.add_argument(
        "--tibia", required=True, metavar="FILE[:LABEL|SEGMENT]", help="labelmap or segmentation of the broken tibia"
    )
    add_fracture_argument(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")


def run(arguments):
    """Run `bonerecon split-fragments`."""
    progress = Progress(STAGES)
    with OutputFolder(arguments.output, FILES) as folder:
        result = split_fragments(arguments.ct, arguments.tibia, folder, progress.report, arguments.fracture)
    print(f"{len(result['volumes_ml'])} fragments, {', '.join(f'{volume:g}' for volume in result['volumes_ml'])} mL")
