"""What a fit leaves open: bones drawn from its posterior, and intervals of anything measured on them.

The posterior is the Gaussian of the fit's last Gauss-Newton step (Laplace approximation). Where visible bone does not
show a property - the length of a tibia that lacks an end, the torsion across a complete fracture - the draws differ in
it as people do.
"""

import numpy as np
from scipy.linalg import solve_triangular

DRAWS = 64
NORMAL_95 = 1.96
# Errors of left-out people, in standard deviations of the Laplace approximation: it takes the correspondences for
# known and the prior for exact.
OVERCONFIDENCE = 2.3


def draw_bones(prior, fitted, draws=DRAWS, seed=0):
    """Draw bones from a fit's posterior.

    Args:
        prior: the shape prior.
        fitted: a `shapefitting.ShapeFit`.
        draws: how many.
        seed: of the draws.

    Yields:
        (n, 3) vertices in the standard frame at the bone's own size, mm.
    """
    modes, kernels = len(prior.modes), prior.vertex_basis.shape[1]
    lower = np.linalg.cholesky(fitted.precision)
    noise = np.random.default_rng(seed).standard_normal((len(lower), draws))
    deviations = solve_triangular(lower, noise, lower=True, trans="T").T
    scale = np.cbrt(np.linalg.det(fitted.matrix[:3, :3]))
    for deviation in deviations:
        mode_weights = fitted.mode_weights + deviation[7 : 7 + modes]
        kernel_change = deviation[7 + modes : 7 + modes + 3 * kernels].reshape(3, kernels).T
        yield scale * np.exp(deviation[6]) * prior.shape(mode_weights, fitted.kernel_weights + kernel_change)


def intervals(prior, fitted, measure, draws=DRAWS):
    """Half widths of the 95 % intervals of measurements.

    Args:
        prior: the shape prior.
        fitted: a `shapefitting.ShapeFit`.
        measure: function of (n, 3) vertices that returns {name: value}.
        draws: how many bones to draw.

    Returns:
        {name: half width}, in the measurements' units.
    """
    measured = [measure(vertices) for vertices in draw_bones(prior, fitted, draws)]
    return {
        name: float(OVERCONFIDENCE * NORMAL_95 * np.std([one[name] for one in measured], ddof=1))
        for name in measured[0]
    }
