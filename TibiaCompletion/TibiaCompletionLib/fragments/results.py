"""The files of a planned reduction: written once, read by whoever shows it."""

import csv
import json
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.surfacefiles import read_scalars, read_surface, write_surface
from BoneReconstructionLib.surfaces import volume_mm3
from BoneReconstructionLib.transformfiles import write_transform
from TibiaCompletionLib.fragments.assessment import FIGURES, Assessment
from TibiaCompletionLib.fragments.reduction import Reduction
from TibiaCompletionLib.fragments.target import Target

TABLE, TARGET, SPLIT = "fragments.csv", "target.vtp", "fragments.nii.gz"
STEP_ARRAY, GAP_ARRAY, JOINT_ARRAY = "Step_mm", "Gap_mm", "Joint"


def write_reduction(folder, names, reduction):
    """Write target, fragments, transforms and table into a folder.

    Args:
        folder: where target.vtp, fragments.csv and for each fragment, from 1, fragment-N.vtp (where it lies in the CT,
            with step and gap at its planned place) and fragment-N.tfm (which moves it there) go.
        names: of the fragments.
        reduction: `Reduction`.

    Returns:
        list of dict, one for each fragment, for result.json.
    """
    target = reduction.target
    write_surface(folder / TARGET, target.surface, {JOINT_ARRAY: target.joint.astype(np.float32)})
    figures = Assessment(reduction).figures(reduction.motions)
    records = []
    for number, (name, surface, motion, told) in enumerate(
        zip(names, reduction.surfaces, reduction.motions, figures, strict=True), start=1
    ):
        write_transform(folder / f"fragment-{number}.tfm", motion)
        write_surface(folder / f"fragment-{number}.vtp", surface, {STEP_ARRAY: told.step, GAP_ARRAY: told.gap})
        records.append(
            {
                "name": name,
                "surface": f"fragment-{number}.vtp",
                "transform": f"fragment-{number}.tfm",
                "volume_ml": round(volume_mm3(surface) / 1000, 2),
                "motion_ras": motion.tolist(),
                "figures": {key: round(value, 3) if np.isfinite(value) else None for key, value in told.values.items()},
            }
        )
    with open(folder / TABLE, "w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("fragment", "volume_ml", *FIGURES))
        for record in records:
            values = ("" if value is None else f"{value:.2f}" for value in record["figures"].values())
            rows.writerow((record["name"], record["volume_ml"], *values))
    return records


def read_reduction(folder):
    """Read what `bonerecon reduce-fragments` has written.

    Args:
        folder: its output folder.

    Returns:
        (names of the fragments, Reduction).

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        axes, records = np.array(result["axes_from_ras"], dtype=float), result["fragments"]
        names, files = [record["name"] for record in records], [record["surface"] for record in records]
        motions = np.array([record["motion_ras"] for record in records], dtype=float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds no reduced fragments: name an output folder of reduce-fragments.") from error
    target = Target.at(axes, read_surface(folder / TARGET), read_scalars(folder / TARGET, JOINT_ARRAY) > 0.5)
    return names, Reduction.at(target, [read_surface(folder / name) for name in files], motions)
