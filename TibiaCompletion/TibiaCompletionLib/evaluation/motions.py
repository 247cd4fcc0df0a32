"""`bonerecon evaluate motions`: what motions of their own save pieces that are displaced, and pieces that lie in place.

Training people's tibiae are broken or masked and segmented; a prior of the others is fitted with the pieces as they lie
and with a motion for each, as the completion does. Its `COST_OF_A_MOTION` has to stand between what both kinds save.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from BoneReconstructionLib.evaluationruns import outcomes_of, positive, reason
from BoneReconstructionLib.jobs import Progress
from BoneReconstructionLib.meshing import voxelize
from BoneReconstructionLib.shapefitting import fit, start
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.virtualfractures import KINDS, displaced_labels, draw_fracture
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.evaluation.confidence import prior_of, smooth_tibiae
from TibiaCompletionLib.evaluation.tibia import DEFAULT_JOBS
from TibiaCompletionLib.shapecompletion import COST_OF_A_MOTION

SPACING_MM = np.array([0.6, 0.6, 1.0])
MARGIN_MM = 30.0
# Masked bones in place: the end of the bone that heights count from, how much of it the scan shows and between which
# heights it is masked, mm.
GAPS = {
    "shaft, 60 mm": ("distal", np.inf, (150.0, 210.0)),
    "distal 150 mm": ("distal", 150.0, (60.0, 90.0)),
    "proximal 150 mm": ("proximal", 150.0, (60.0, 90.0)),
}
PEOPLE = 9
DISPLACED, IN_PLACE = "displaced", "in place"


def tasks_of(bones, people):
    """Arguments of `saving` for some people: each of their fractures displaced and in place, and their gaps.

    Args:
        bones: folder of the training bones.
        people: numbers of the people.

    Returns:
        list of (folder, person, kind of fracture or gap, `DISPLACED` or `IN_PLACE`).
    """
    cases = [(kind, how) for kind in KINDS for how in (DISPLACED, IN_PLACE)] + [(gap, IN_PLACE) for gap in GAPS]
    return [(str(bones), person, *case) for person in people for case in cases]


def saving(bones, person, kind, how):
    """What motions of their own save the visible pieces of one case.

    Args:
        bones: folder of the training bones.
        person: number of the person.
        kind: a kind of `virtualfractures.KINDS`, or of `GAPS`.
        how: `DISPLACED` or `IN_PLACE`.

    Returns:
        Negative log evidence saved for each piece beside the first, or None where the mask leaves one piece.
    """
    people = _people(bones)
    prior = prior_of(np.delete(people.shapes, person, 0), people.faces)
    truth = Surface(people.shapes[person] * people.scales[person], people.faces)
    tibia, mask = _masked(truth, kind) if kind in GAPS else _broken(truth, kind, person, how == DISPLACED)
    visible = make_case(tibia, mask, None).visible("right")
    if visible.pieces == 1:
        return None
    begin = start(replace(prior, kernels=()), visible)
    still, moved = (fit(prior, visible, begin, displaced).cost for displaced in (False, True))
    return (still - moved) / (visible.pieces - 1)


def table(savings):
    """What the cases of each kind save, and how many lie on the wrong side of the limit, as text.

    Args:
        savings: {(kind, `DISPLACED` or `IN_PLACE`): list of savings}.
    """
    lines = [f"{'':26}{'':11}{'n':>4}{'least':>8}{'median':>8}{'most':>8}   wrong by {COST_OF_A_MOTION:g}"]
    for how in (DISPLACED, IN_PLACE):
        own = {kind: values for (kind, found), values in savings.items() if found == how}
        for kind, values in [*own.items(), ("all", sum(own.values(), []))]:
            if values:
                wrong = sum((value > COST_OF_A_MOTION) != (how == DISPLACED) for value in values)
                figures = "".join(f"{figure:8.1f}" for figure in (min(values), np.median(values), max(values)))
                lines.append(f"{kind:26}{how:11}{len(values):4}{figures}{wrong:8}")
    return "\n".join(lines)


@lru_cache(maxsize=1)
def _people(bones):
    return smooth_tibiae(Path(bones))


def _grid(truth):
    """(shape k j i, (4, 4) IJK-to-RAS) of an upright volume around a bone."""
    ijk_to_ras = np.diag([*SPACING_MM, 1.0])
    ijk_to_ras[:3, 3] = truth.vertices.min(0) - MARGIN_MM
    shape = np.ceil((np.ptp(truth.vertices, axis=0) + 2 * MARGIN_MM) / SPACING_MM).astype(int)
    return tuple(shape[::-1]), ijk_to_ras


def _broken(truth, kind, seed, displaced):
    """(tibia, mask) of a bone with a fracture, bool volumes."""
    fracture = draw_fracture(truth, "right", kind, seed, displaced)
    labels, mask = displaced_labels(voxelize(truth, *_grid(truth)), fracture)
    return Volume(labels.array > 0, labels.ijk_to_ras), mask


def _masked(truth, gap):
    """(tibia, mask) of a healthy bone with a gap in a scan that may end inside it, bool volumes."""
    bone, (end, shown_mm, (low, high)) = voxelize(truth, *_grid(truth)), GAPS[gap]
    z = bone.ijk_to_ras[2, 3] + SPACING_MM[2] * np.arange(bone.shape[0])
    height = z - truth.vertices[:, 2].min() if end == "distal" else truth.vertices[:, 2].max() - z
    shown, masked = height <= shown_mm, (height > low) & (height < high)
    mask = np.zeros(bone.shape, dtype=bool)
    mask[masked] = True
    ijk_to_ras = bone.ijk_to_ras.copy()
    ijk_to_ras[2, 3] = z[shown][0]
    return Volume((bone.array & ~mask)[shown], ijk_to_ras), Volume(mask[shown], ijk_to_ras)


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate motions`."""
    parser.add_argument("--bones", required=True, type=Path, metavar="FOLDER", help="the folder of the training bones")
    parser.add_argument("--people", type=positive, default=PEOPLE, metavar="N", help=f"how many (default {PEOPLE})")
    parser.add_argument("--jobs", type=positive, default=DEFAULT_JOBS, metavar="N", help="processes (default 2)")


def run(arguments):
    """Run `bonerecon evaluate motions`."""
    count = len(_people(str(arguments.bones)).scales)
    people = np.linspace(0, count - 1, min(arguments.people, count)).astype(int).tolist()
    tasks, savings = tasks_of(arguments.bones, people), {}
    progress = Progress({"fitting": 1})
    for done, (number, outcome) in enumerate(outcomes_of(tasks, arguments.jobs, saving), start=1):
        _, person, *case = tasks[number]
        if isinstance(outcome, Exception):
            print(f"FAILED person {person}, {', '.join(case)}: {reason(outcome)}")
        elif outcome is not None:
            savings.setdefault(tuple(case), []).append(outcome)
        progress.report("fitting", done / len(tasks))
    print(table({case: savings[case] for case in sorted(savings)}))
