"""`bonerecon evaluate confidence`: calibrates and measures the completion's standard deviations on training people.

Each of the smooth people is completed by a prior of the others, and the sharper surfaces of single people by a prior of
the smooth ones. Half of the people calibrate what the other half is measured on, and the other way round; all of them
together give the constants of `confidence.CALIBRATION`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.frames import side_to_right
from BoneReconstructionLib.jobs import Progress
from BoneReconstructionLib.priortraining import (
    FRAMES,
    KERNELS,
    LOG_SCALE_SD,
    MODES,
    TEMPLATE_SPACING_MM,
    people_archive,
    principal_modes,
    sharp_files,
    upright_people,
)
from BoneReconstructionLib.shapefitting import VisibleSurface, fit, spread_over, start, with_residual
from BoneReconstructionLib.shapeprior import ShapePrior, with_torsion
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from TibiaCompletionLib.confidence import (
    CALIBRATION,
    Calibration,
    away_from_visible,
    between_visible,
    posterior_deviations,
)
from TibiaCompletionLib.crosssections import continued
from TibiaCompletionLib.evaluation.people import SIDES
from TibiaCompletionLib.visiblebone import EDGE_SD_MM

# (lowest, highest) height of what is hidden as (share of the length, mm from there).
GAPS = {
    "shaft 60 mm": ((0.5, -30.0), (0.5, 30.0)),
    "shaft 30 mm": ((0.35, -15.0), (0.35, 15.0)),
    "plateau 40 mm": ((1.0, -40.0), (1.0, 1.0)),
    "pilon 40 mm": ((0.0, -1.0), (0.0, 40.0)),
}
# In the shaft it is detail that is guessed wrong, which the smooth people lack.
SMOOTH_GAPS = ("plateau 40 mm", "pilon 40 mm")
POINTS = 1500
START = (1.5, 0.8, 0.3, 10.0, 0.1)
LIMITS = ((0.1, 10.0), (0.1, 10.0), (0.01, 3.0), (1.0, 60.0), (0.02, 1.0))
# Of each 100 errors this many should lie within one and two standard deviations.
NORMAL = (68.3, 95.4)


class Errors:
    """What is known of one completed person at vertices in the gap.

    Attributes:
        gap: key of `GAPS`.
        error, posterior, away: (n,) mm: signed distance to the true bone, `posterior_deviations`, `away_from_visible`.
        between: (n,) bool, `between_visible`.
    """

    def __init__(self, gap, error, posterior, away, between):
        self.gap, self.error, self.posterior, self.away, self.between = gap, error, posterior, away, between

    def sigma(self, calibration):
        """(n,) mm."""
        return calibration.deviations(self.posterior, self.away, self.between)


def smooth_errors(people, report):
    """`Errors` of every smooth person in one of `SMOOTH_GAPS`, completed by a prior of the others.

    Args:
        people: `priortraining.People`.
        report: called with the fraction done.

    Returns:
        {name of the person: list of `Errors`}.
    """
    found = {}
    for person, scale in enumerate(people.scales):
        prior = prior_of(np.delete(people.shapes, person, 0), people.faces)
        truth = Surface(people.shapes[person] * scale, people.faces)
        found[f"smooth {person}"] = [_completed(prior, truth, SMOOTH_GAPS[person % len(SMOOTH_GAPS)])]
        report((person + 1) / len(people.scales))
    return found


def sharp_errors(people, files, report):
    """`Errors` of the sharper surfaces in every gap, completed by a prior of the smooth people.

    Args:
        people: `priortraining.People`.
        files: <subject>_<L|R>.ply.
        report: called with the fraction done.

    Returns:
        {name of the person: list of `Errors`}.
    """
    found, prior = {}, prior_of(people.shapes, people.faces)
    for number, path in enumerate(files):
        right = transformed(read_surface(path), side_to_right(SIDES[path.stem[-1]]))
        matrix = start(prior, VisibleSurface.whole(right))
        matrix[:3, :3] /= np.cbrt(np.linalg.det(matrix[:3, :3]))
        upright = transformed(right, np.linalg.inv(matrix))
        found.setdefault(path.stem[:-2], []).extend(_completed(prior, upright, gap) for gap in GAPS)
        report((number + 1) / len(files))
    return found


def smooth_tibiae(bones):
    """The smooth people's tibiae, `priortraining.People`, out of the folder of the training bones.

    Raises:
        InputError: the folder lacks them.
    """
    with np.load(people_archive(bones), allow_pickle=False) as file:
        return upright_people(file, "tibia", FRAMES["tibia"], TEMPLATE_SPACING_MM["tibia"])


def prior_of(shapes, faces):
    """`ShapePrior` of some smooth people's shapes (p, n, 3), with the mode of torsion."""
    mean, modes = principal_modes(shapes, MODES)
    return with_torsion(ShapePrior(mean, faces, modes, KERNELS, LOG_SCALE_SD))


def _completed(prior, truth, gap):
    height = truth.vertices[:, 2]
    low, high = (height.min() + share * np.ptp(height) + offset for share, offset in GAPS[gap])
    visible = VisibleSurface(truth, (height < low) | (height > high))
    fitted = fit(prior, visible, np.eye(4))
    surface = continued(with_residual(prior, fitted, visible), visible).surface
    height = surface.vertices[:, 2]
    inside = np.flatnonzero((height > low) & (height < high))
    inside = inside[spread_over(len(inside), POINTS)]
    return Errors(
        gap,
        SurfaceLocator(truth).signed(surface.vertices[inside]),
        posterior_deviations(prior, fitted, surface)[inside],
        away_from_visible(fitted, surface, visible)[inside],
        between_visible(fitted, surface, visible)[inside],
    )


def calibrated(errors):
    """The `Calibration` under which `Errors` are likeliest, each case counting alike."""

    def unlikelihood(logarithms):
        calibration = Calibration(*np.exp(logarithms))
        return sum(
            np.mean(np.log(sigma) + 0.5 * (one.error / sigma) ** 2)
            for one, sigma in ((one, one.sigma(calibration)) for one in errors)
        )

    bounds = [tuple(np.log(limits)) for limits in LIMITS]
    found = minimize(unlikelihood, np.log(START), method="L-BFGS-B", bounds=bounds)
    return Calibration(*(float(value) for value in np.exp(found.x)))


def widened(calibration, errors, sigmas):
    """A calibration as wide as people need whom it has not seen: 95 % of their errors lie within two deviations.

    Args:
        calibration: of all people.
        errors: list of `Errors`.
        sigmas: list of (n,) mm, one for each, by calibrations on other people.
    """
    shares = [np.abs(one.error) / sigma for one, sigma in zip(errors, sigmas, strict=True)]
    wider = float(np.percentile(np.concatenate(shares), NORMAL[1])) / 2
    return Calibration(
        wider * calibration.posterior,
        wider * calibration.posterior_between,
        wider * calibration.unexplained_mm,
        calibration.reach_mm,
        wider * calibration.measured_mm,
    )


def with_edges(calibration):
    """A calibration on exact surfaces as it has to be for surfaces that were measured in a CT."""
    return replace(calibration, measured_mm=float(np.hypot(calibration.measured_mm, EDGE_SD_MM)))


def coverage(error, sigma):
    """(percent within one, within two standard deviations, mean sigma / RMS error) of (n,) errors, mm."""
    share = np.abs(error) / sigma
    return 100 * np.mean(share < 1), 100 * np.mean(share < 2), float(sigma.mean() / np.sqrt(np.mean(error**2)))


def table(errors, sigmas):
    """Coverage by kind of gap as text.

    Args:
        errors: list of `Errors`.
        sigmas: list of (n,) mm, one for each.
    """
    lines = [f"{'gap':15} cases  RMS mm  sigma mm  sigma/RMS  within 1 ({NORMAL[0]})  within 2 ({NORMAL[1]})"]
    for gap in [*GAPS, "all"]:
        chosen = [(one.error, sigma) for one, sigma in zip(errors, sigmas, strict=True) if gap in (one.gap, "all")]
        if not chosen:
            continue
        error, sigma = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        one, two, ratio = coverage(error, sigma)
        rms = np.sqrt(np.mean(error**2))
        lines.append(f"{gap:15} {len(chosen):5} {rms:7.2f} {sigma.mean():9.2f} {ratio:10.2f} {one:16.1f} {two:16.1f}")
    return "\n".join(lines)


def add_arguments(parser):
    """Declare the arguments of `bonerecon evaluate confidence`."""
    parser.add_argument("--bones", required=True, type=Path, metavar="FOLDER", help="the folder of the training bones")


def run(arguments):
    """Run `bonerecon evaluate confidence`."""
    progress = Progress({"reading": 1, "smooth people": 20, "sharp people": 10})
    people, files = smooth_tibiae(arguments.bones), sharp_files(arguments.bones)["tibia"]
    progress.report("reading", 1.0)
    found = smooth_errors(people, lambda fraction: progress.report("smooth people", fraction))
    found |= sharp_errors(people, files, lambda fraction: progress.report("sharp people", fraction))
    print_findings(found)


def print_findings(found):
    """Print the coverage of each half of the people by the other's constants, and the constants of all.

    Args:
        found: {name of the person: list of `Errors`}.
    """
    # Neighbours among the smooth people share no gap: two by two, either half has both.
    names = list(found)
    halves = [
        [one for number, name in enumerate(names) if number // 2 % 2 == half for one in found[name]] for half in (0, 1)
    ]
    errors, sigmas = [], []
    for own, other in (halves, halves[::-1]):
        calibration = calibrated(other)
        errors += own
        sigmas += [one.sigma(calibration) for one in own]
    print("People whom neither prior nor calibration has seen:")
    print(table(errors, sigmas))
    everybody = [one for person in found.values() for one in person]
    best = with_edges(widened(calibrated(everybody), errors, sigmas))
    print("Constants from all of them, as wide as the unseen need and with the CT's edges:", best)
    print("Constants in use:", CALIBRATION)
    print(table(everybody, [one.sigma(CALIBRATION) for one in everybody]))
