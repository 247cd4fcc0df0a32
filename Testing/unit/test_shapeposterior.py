"""What a fit leaves open: draws around the fitted bone, and intervals that are wide where the bone is not seen."""

from functools import cache

import numpy as np
import pytest
from tibiae import landmarks, pose, random_tibiae, tibia_prior

from BoneReconstructionLib.frames import similarity_from_points, transform_points
from BoneReconstructionLib.shapefitting import VisibleSurface, fit, without_band
from BoneReconstructionLib.shapeposterior import draw_bones, intervals
from BoneReconstructionLib.surfaces import Surface, transformed

PLACED = pose((10, -20, 40), (60, -200, 300))
GAPS_MM = {"whole": (1000.0, 1001.0), "plateau": (100.0, 1000.0), "pilon": (-1000.0, -150.0)}


@cache
def tibia():
    return Surface(random_tibiae(21, 1)[0], tibia_prior().faces)


@cache
def fitted(gap):
    """The prior fitted to a tibia of which a band is hidden."""
    height = tibia().vertices[:, 2]
    shown = without_band(tibia(), height, *GAPS_MM[gap])
    placed = VisibleSurface(transformed(shown.surface, PLACED), shown.trusted)
    return fit(tibia_prior(), placed, PLACED)


@cache
def widths(gap):
    return intervals(tibia_prior(), fitted(gap), landmarks().measure, draws=32)


def test_draws_lie_around_the_fitted_bone():
    one = fitted("whole")
    draws = np.array(list(draw_bones(tibia_prior(), one, 24)))
    size = np.cbrt(np.linalg.det(one.matrix[:3, :3]))
    local = size * transform_points(np.linalg.inv(one.matrix), one.surface.vertices)
    aligned = transform_points(similarity_from_points(local, draws.mean(0), scaled=False), local)
    assert np.linalg.norm(draws.mean(0) - aligned, axis=1).mean() < 0.5
    assert 0.05 < draws.std(0).mean() < 1.5


def test_draws_are_those_of_their_seed():
    first, again, other = (next(draw_bones(tibia_prior(), fitted("whole"), 1, seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_every_measurement_has_an_interval():
    assert widths("whole").keys() == landmarks().measure(tibia().vertices).keys()
    assert all(0 < width < 20 for width in widths("whole").values())


@pytest.mark.parametrize(
    "gap, hidden, shown",
    [
        ("plateau", ("length", "mpta", "medial_slope", "lateral_slope", "plateau_width"), "ldta"),
        ("pilon", ("length", "ldta", "torsion"), "medial_slope"),
    ],
)
def test_what_is_hidden_is_known_less_well(gap, hidden, shown):
    for name in hidden:
        assert widths(gap)[name] > 1.5 * widths("whole")[name], name
    assert widths(gap)[shown] < 1.5 * widths("whole")[shown]


@pytest.mark.parametrize("gap", list(GAPS_MM))
def test_the_true_values_lie_in_the_intervals(gap):
    true, found = (landmarks().measure(points) for points in (tibia().vertices, fitted(gap).surface.vertices))
    held = [abs(true[name] - found[name]) <= width for name, width in widths(gap).items()]
    assert sum(held) >= len(held) - 1
