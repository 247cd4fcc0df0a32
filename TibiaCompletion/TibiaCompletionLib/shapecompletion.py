"""Completion by the shape prior: the classical floor, which needs neither network nor torch."""

from dataclasses import dataclass, field, replace

import numpy as np

from BoneReconstructionLib.shapefitting import (
    FIT_NOISE_MM,
    RESIDUAL_SUPPORTS_MM,
    JointContact,
    both,
    fit,
    unfitted,
    with_residual,
)
from BoneReconstructionLib.shapeposterior import intervals
from BoneReconstructionLib.shapeprior import TIBIA_PRIOR, ShapePrior, load_leg_prior, load_prior, with_torsion
from BoneReconstructionLib.surfaces import Surface
from BoneReconstructionLib.threads import together
from BoneReconstructionLib.tibiameasurements import TibiaLandmarks
from TibiaCompletionLib.confidence import deviations
from TibiaCompletionLib.crosssections import continued
from TibiaCompletionLib.otherleg import expecting, fit_other_leg
from TibiaCompletionLib.visiblebone import measured_in_ct

# Negative log evidence that a rigid motion must save: it must explain the visible bone better than by chance. On training
# people, by a prior of the others, pieces in place saved at most 11.1 each by motions of their own and displaced ones 18.9
# and more (`bonerecon evaluate motions`).
COST_OF_A_MOTION = 12.0
# Standard deviations of the distance to the bone measured in the CT, mm, in each step of the second fit.
REFINING_NOISE_MM = (0.8, 0.5, 0.4, 0.3, 0.3, 0.3)
# Share of the segmented surface that the CT must show as an edge of bone for the CT to be followed.
LEAST_KNOWN = 0.5
# Gaps between the bones, see `joint_contacts`: mean, standard deviation. In 26 knees that did not bear weight in the CT
# femur and tibia came as near as 1.8 mm medially and 2.9 mm laterally (Fritz et al., Osteoarthritis and Cartilage,
# 2022); in virtual knees with those gaps, bent by 0 to 20 degrees, they are apart by these along the tibia.
MEDIAL_GAP_MM, LATERAL_GAP_MM = (2.1, 1.0), (2.8, 1.0)
ANKLE_GAP_MM = (2.3, 1.0)


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
        warnings: sentences about what the method met.
        trusted: (n,) bool, vertices of the case's surface that were believed; None: as in the case.
        sigma_mm: (n,) standard deviation of each vertex along its normal; None where the method knows none.
    """

    surface: Surface
    matrix: np.ndarray
    model: dict
    rms_mm: float
    motions: np.ndarray | None = None
    measured: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    trusted: np.ndarray | None = None
    sigma_mm: np.ndarray | None = None

    @property
    def intervals(self):
        """{name: half width of its 95 % interval} of what was measured."""
        return {name: width for name, (_, width) in self.measured.items()}


def complete_by_prior(case, side, matrix, report):
    """Fit the prior to the visible bone, then continue the cross-sections across the gap.

    Where the other leg's tibia is known, the prior is centred on it. The first fit follows the segmentation; along the
    normals of that bone the visible surface is measured in the CT, and the second fit follows this.

    Args:
        case: a `TibiaCase`.
        side: "left" or "right".
        matrix: (4, 4) starting similarity, from `plausibility.likeness`.
        report: called with the fraction done.

    Returns:
        Completion.
    """
    tibia = with_torsion(load_prior(TIBIA_PRIOR, "tibia"))
    landmarks = TibiaLandmarks(tibia.mean, tibia.faces)
    size = np.eye(4)
    shown, fibula = case.visible(side), case.neighbour("fibula", side)
    prior = tibia if fibula is None else with_torsion(load_leg_prior())
    contacts = joint_contacts(case, side, landmarks)

    def with_fibula(bone):
        return bone if fibula is None else both(bone, fibula)

    def of_tibia(fitted):
        return replace(fitted, surface=Surface(fitted.surface.vertices[: len(tibia.mean)], tibia.faces))

    displaced = False
    visible = with_fibula(shown)
    prior.vertex_basis, visible.tree  # both fits ask for them
    fits = [lambda: fit(prior, visible, matrix, contacts=contacts, report=lambda fraction: report(0.5 * fraction))]
    if visible.pieces > 1:
        fits.append(lambda: fit(prior, visible, matrix, True, contacts))
    fitted, *others = together(fits)
    for apart in others:
        displaced = fitted.cost - apart.cost > COST_OF_A_MOTION * (visible.pieces - 1)
        fitted = apart if displaced else fitted
    roughly = with_residual(tibia, of_tibia(fitted), shown, RESIDUAL_SUPPORTS_MM[:1])
    measured, known = measured_in_ct(case, side, roughly)
    report(0.7)
    warnings = []
    if known > LEAST_KNOWN:
        shown = measured
    else:
        warnings.append(
            "Along most of the segmented surface the CT shows no edge of bone, so the segmentation alone was followed: "
            "check that both are of the same scan."
        )
    noise_mm = REFINING_NOISE_MM
    if case.other_tibia is not None:
        # Only now: where visible pieces lie as they should, they overrule the other leg, which is never quite the same.
        other = fit_other_leg(tibia, case.other_tibia, side)
        prior, tibia = expecting(prior, other), expecting(tibia, other)
        size[:3, :3] *= other.scale
        fitted = unfitted(prior, fitted.matrix @ np.linalg.inv(size), fitted.motions)
        noise_mm = FIT_NOISE_MM
    fitted = fit(prior, with_fibula(shown), fitted, displaced, contacts, noise_mm)
    report(0.8)
    completed, widths = together(
        [
            lambda: continued(with_residual(tibia, of_tibia(fitted), shown), shown),
            lambda: intervals(prior, fitted, landmarks.measure),
        ]
    )
    report(0.9)
    values = landmarks.measure(completed.surface.vertices)
    figures = {name: (values[name], widths[name]) for name in values}
    sigma = deviations(prior, fitted, completed.surface, shown)
    completion = _completion(tibia, replace(completed, matrix=completed.matrix @ size))
    motions = fitted.motions if displaced else None
    return replace(completion, motions=motions, measured=figures, warnings=tuple(warnings), sigma_mm=sigma)


def joint_contacts(case, side, landmarks):
    """Contacts of the tibia with femur and talus, where they are given.

    The gap between the bones, measured along the tibia where they are closest, is filled by cartilage and fluid; people
    and scans differ by nearly half of it.
    """
    contacts = []
    femur, talus = case.neighbour("femur", side), case.neighbour("talus", side)
    if femur is not None:
        condyles = femur.surface.vertices[femur.trusted]
        contacts.append(JointContact(landmarks.medial_plateau, condyles, 1, *MEDIAL_GAP_MM))
        contacts.append(JointContact(landmarks.lateral_plateau, condyles, 1, *LATERAL_GAP_MM))
    if talus is not None:
        contacts.append(JointContact(landmarks.plafond, talus.surface.vertices[talus.trusted], -1, *ANKLE_GAP_MM))
    return contacts


def complete_by_prototype(case, side, matrix, report):
    """Register the prototype, the prior's mean bone, by a similarity alone (the paper's method P)."""
    prior = load_prior(TIBIA_PRIOR, "tibia")
    rigid = replace(prior, modes=prior.modes[:0], kernels=())
    return _completion(prior, fit(rigid, case.visible(side), matrix, report=report))


def _completion(prior: ShapePrior, fitted):
    card = prior.card
    model = {"id": card["id"], "version": card["version"], "sha256": card["sha256"]}
    return Completion(fitted.surface, fitted.matrix, model, fitted.rms_mm)
