"""Completion by the shape prior: the classical floor, which needs neither network nor torch."""

from dataclasses import dataclass, field, replace

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.shapefitting import JointContact, both, fit, start, with_residual
from BoneReconstructionLib.shapeposterior import intervals
from BoneReconstructionLib.shapeprior import ShapePrior, load_leg_prior, load_prior
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks

MODEL_ID = "tibia-prior"
# A bone of the other side fits the prior worse by this factor or more; below it the side is anybody's guess.
CLEAR_SIDE_RATIO = 1.25
# Half the log evidence that a rigid motion costs: it must explain the visible bone better than by chance, six numbers
# each known a few dozen times better from the data than before.
COST_OF_A_MOTION = 20.0
KNEE_GAP_MM = (3.5, 1.5)  # mean, standard deviation
ANKLE_GAP_MM = (2.3, 1.0)
REPORTED = ("length", "torsion")


@dataclass(frozen=True, eq=False)
class Completion:
    """A predicted healthy tibia.

    Attributes:
        surface: the bone as a right one, RAS mm (a left one mirrored in x).
        matrix: (4, 4) from the standard frame to that surface.
        model: {"id", "version", "sha256"} of what predicted it.
        rms_mm: how far visible bone and model were apart in the end.
        motions: (p, 4, 4) rigid motions, mm, right-sided frame, that bring the visible pieces to their places; None
            where they lie as they should.
        measured: {name: (value, half width of its 95 % interval)} of what one leg may not show, see
            `tibiameasurements`.
    """

    surface: Surface
    matrix: np.ndarray
    model: dict
    rms_mm: float
    motions: np.ndarray | None = None
    measured: dict = field(default_factory=dict)


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
    tibia = load_prior(MODEL_ID, "tibia")
    landmarks = TibiaLandmarks(tibia.mean, tibia.faces)
    shown, fibula = case.visible(side), case.neighbour("fibula", side)
    prior, visible = (tibia, shown) if fibula is None else (load_leg_prior(MODEL_ID), both(shown, fibula))
    contacts = joint_contacts(case, side, landmarks)
    displaced = False
    share = 0.35 if visible.pieces > 1 else 0.7
    fitted = fit(prior, visible, matrix, contacts=contacts, report=lambda fraction: report(share * fraction))
    if visible.pieces > 1:
        apart = fit(prior, visible, matrix, True, contacts, report=lambda fraction: report(share * (1 + fraction)))
        displaced = fitted.cost - apart.cost > COST_OF_A_MOTION * (visible.pieces - 1)
        fitted = apart if displaced else fitted
    own = Surface(fitted.surface.vertices[: len(tibia.mean)], tibia.faces)
    completed = with_residual(tibia, replace(fitted, surface=own), shown)
    report(0.9)
    values = landmarks.measure(completed.surface.vertices)
    widths = intervals(prior, fitted, landmarks.measure)
    measured = {name: (values[name], widths[name]) for name in REPORTED}
    completion = _completion(tibia, completed)
    return replace(completion, motions=fitted.motions if displaced else None, measured=measured)


def joint_contacts(case, side, landmarks):
    """Contacts of the tibia with femur and talus, where they are given.

    The gap between the bones, measured along the tibia where they are closest, is filled by cartilage: about 2 mm on
    each side of the knee and 1 mm on each side of the ankle, with fluid and flexion on top; people and scans differ by
    half of it.
    """
    contacts = []
    femur, talus = case.neighbour("femur", side), case.neighbour("talus", side)
    if femur is not None:
        for plateau in (landmarks.medial_plateau, landmarks.lateral_plateau):
            contacts.append(JointContact(plateau, femur.surface.vertices[femur.trusted], 1, *KNEE_GAP_MM))
    if talus is not None:
        contacts.append(JointContact(landmarks.plafond, talus.surface.vertices[talus.trusted], -1, *ANKLE_GAP_MM))
    return contacts


def complete_by_prototype(case, side, matrix, report):
    """Register the prototype, the prior's mean bone, by a similarity alone (the paper's method P)."""
    prior = load_prior(MODEL_ID, "tibia")
    rigid = replace(prior, modes=prior.modes[:0], kernels=())
    return _completion(prior, fit(rigid, case.visible(side), matrix, report=report))


def _completion(prior: ShapePrior, fitted):
    card = prior.card
    model = {"id": card["id"], "version": card["version"], "sha256": card["sha256"]}
    return Completion(fitted.surface, fitted.matrix, model, fitted.rms_mm)
