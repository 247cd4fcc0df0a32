"""Completion by the shape prior: the classical floor, which needs neither network nor torch."""

from dataclasses import dataclass, replace

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.shapefitting import fit, start, with_residual
from BoneReconstructionLib.shapeprior import ShapePrior, load_prior
from BoneReconstructionLib.surfaces import Surface

MODEL_ID = "tibia-prior"
# A bone of the other side fits the prior worse by this factor or more; below it the side is anybody's guess.
CLEAR_SIDE_RATIO = 1.1


@dataclass(frozen=True, eq=False)
class Completion:
    """A predicted healthy tibia.

    Attributes:
        surface: the bone as a right one, RAS mm (a left one mirrored in x).
        matrix: (4, 4) from the standard frame to that surface.
        model: {"id", "version", "sha256"} of what predicted it.
        rms_mm: how far visible bone and model were apart in the end.
    """

    surface: Surface
    matrix: np.ndarray
    model: dict
    rms_mm: float


def detect_side(case, side):
    """Find the side of the tibia by its shape.

    Args:
        case: a `TibiaCase`.
        side: "left", "right" or "auto".

    Returns:
        (side, start matrix data_from_standard, warnings): a given side is kept, with a warning when the other one
        would fit clearly better.

    Raises:
        InputError: side "auto", and the visible bone fits both sides alike.
    """
    prior = load_prior(MODEL_ID, "tibia")
    tried = {name: start(prior, case.visible(name)) for name in ("left", "right")}
    better, worse = sorted(tried, key=lambda name: tried[name][1])
    clear = tried[worse][1] > CLEAR_SIDE_RATIO * tried[better][1]
    if side == "auto":
        if not clear:
            raise InputError("The side cannot be told from the visible bone: choose left or right.")
        side = better
    warnings = []
    if clear and side != better:
        warnings.append(f"The visible bone looks like a {better} tibia although {side} was given: check the side.")
    return side, tried[side][0], warnings


def complete_by_prior(case, side, matrix, report):
    """Fit the prior to the visible bone, then continue the cross-sections across the gap.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity from `detect_side`.
        report: called with the fraction done.

    Returns:
        Completion.
    """
    prior = load_prior(MODEL_ID, "tibia")
    visible = case.visible(side)
    fitted = fit(prior, visible, matrix, report=lambda fraction: report(0.7 * fraction))
    return _completion(prior, with_residual(prior, fitted, visible))


def complete_by_prototype(case, side, matrix, report):
    """Register the prototype, the prior's mean bone, by a similarity alone (the paper's method P)."""
    prior = load_prior(MODEL_ID, "tibia")
    rigid = replace(prior, modes=prior.modes[:0], kernels=())
    return _completion(prior, fit(rigid, case.visible(side), matrix, report=report))


def _completion(prior: ShapePrior, fitted):
    card = prior.card
    model = {"id": card["id"], "version": card["version"], "sha256": card["sha256"]}
    return Completion(fitted.surface, fitted.matrix, model, fitted.rms_mm)

