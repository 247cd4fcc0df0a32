"""`bonerecon evaluate other-leg`: what the other leg is worth, on virtual people whose legs differ as real ones do."""

import tempfile
from pathlib import Path

import numpy as np

from BoneReconstructionLib.evaluationruns import positive
from BoneReconstructionLib.frames import SIDES, side_to_right
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks
from BoneReconstructionLib.twolegs import other_tibia
from BoneReconstructionLib.virtualpatients import VirtualPatients
from TibiaCompletionLib.evaluation.cases import CaseKey
from TibiaCompletionLib.evaluation.runner import DEFAULT, evaluate, summary
from TibiaCompletionLib.evaluation.tibia import DEFAULT_JOBS

PEOPLE, FIRST_SEED = 50, 1000
CASES = ("shaft", "plateau", "pilon")
# One displaced fracture for each person, in turn.
FRACTURES = ("fracture-1", "fracture-2", "fracture-3", "fracture-4")
# What a surgeon accepts of a displaced fracture: (column, limit).
ACCEPTED = (("torsion_error_deg", 5.0), ("angulation_error_deg", 2.0), ("length_error_mm", 4.0))


def write_legs(folder, seeds):
    """Write both tibiae of virtual people as `people.leg_names` has them.

    Args:
        folder: gets tibia/V<seed>_<L|R>.ply.
        seeds: of the people.

    Returns:
        list of (length, torsion): differences of each person's legs, right minus left, mm and degrees.
    """
    patients, folder = VirtualPatients(), Path(folder) / "tibia"
    folder.mkdir()
    prior, differences = patients.priors["tibia"], []
    landmarks = TibiaLandmarks(prior.mean, prior.faces)
    for seed in seeds:
        person = patients.person(seed)
        legs = {"right": Surface(patients.vertices(person, "tibia"), prior.faces), "left": other_tibia(patients, person)}
        right, left = (landmarks.measure(legs[side].vertices) for side in ("right", "left"))
        differences.append(tuple(right[name] - left[name] for name in ("length", "torsion")))
        for side, leg in legs.items():
            write_surface(folder / f"V{seed}_{side[0].upper()}.ply", transformed(leg, side_to_right(side)))
    return differences


def case_keys(seeds):
    """The cases of virtual people: each has the gaps and one displaced fracture, on the left or on the right in turn."""
    keys = []
    for number, seed in enumerate(seeds):
        side = SIDES[number // len(FRACTURES) % 2]
        cases = (*CASES, FRACTURES[number % len(FRACTURES)])
        keys += [CaseKey(f"V{seed}", side, "trained", None, case, False, True) for case in cases]
    return keys


def accepted(rows):
    """Sentences: in how many displaced fractures the default method's errors were accepted, each and all together."""
    broken = [row for row in rows if row["case"].startswith("fracture") and row["method"] == DEFAULT]
    within = np.array([[row[name] <= limit for name, limit in ACCEPTED] for row in broken])
    lines = [
        f"{name} at most {limit:g}: {np.count_nonzero(column)} of {len(broken)} displaced fractures"
        for (name, limit), column in zip(ACCEPTED, within.T, strict=True)
    ]
    return "\n".join([*lines, f"all of these: {np.count_nonzero(within.all(1))} of {len(broken)}"])


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate other-leg`."""
    parser.add_argument("--output", required=True, type=Path, metavar="OUT.csv", help="one row for each completion")
    parser.add_argument("--people", type=positive, default=PEOPLE, metavar="N", help=f"(default {PEOPLE})")
    parser.add_argument("--jobs", type=positive, default=DEFAULT_JOBS, metavar="N", help="parallel processes (default 2)")


def run(arguments):
    """Run `bonerecon evaluate other-leg`."""
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.people)
    with tempfile.TemporaryDirectory() as folder:
        differences = np.abs(write_legs(folder, seeds))
        rows = evaluate(folder, arguments.output, (DEFAULT, "mirror"), case_keys(seeds), arguments.jobs)
    print(summary(rows))
    length, torsion = differences.mean(0)
    print(f"The two legs differ by {length:.1f} mm in length and {torsion:.1f} degrees in torsion on average.")
    print(accepted(rows))
