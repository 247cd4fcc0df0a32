"""Random people out of the shape prior, with the spread of real ones.

Twenty-odd people say how bones vary together but not how far: their lengths differ half as much as published ones.
Their weights are therefore stretched along the directions that change the published measurements, and only there.
"""

import numpy as np


def random_weights(generator, people, modes, kernel_rank, sampling):
    """Draw the weights of random people.

    Args:
        generator: numpy.random.Generator.
        people: how many.
        modes: number of empirical modes r.
        kernel_rank: number q of kernel basis functions.
        sampling: (1 + r, 1 + r) stretch of log-scale and modes, from `sampling_transform`.

    Returns:
        (standardised log-scale (p,), mode weights (p, r), kernel weights (p, q, 3)), all in standard deviations.
    """
    latent = generator.standard_normal((people, 1 + modes)) @ sampling.T
    return latent[:, 0], latent[:, 1:], generator.standard_normal((people, kernel_rank, 3))


def sampling_transform(gradient, leftover, published_sd):
    """Smallest change of the weights' spread that gives measurements their published standard deviations.

    Measurements are linear in the weights to good approximation: m = gradient @ w + leftover noise. Their correlation
    stays as the people have it, each standard deviation becomes the published one, and directions of w that do not
    change any measurement keep their spread.

    Args:
        gradient: (k, d) change of each measurement per standard deviation of each weight.
        leftover: (k, k) covariance of the measurements due to everything else.
        published_sd: (k,) standard deviations wanted.

    Returns:
        (d, d) matrix to apply to standard normal weights.
    """
    present = gradient @ gradient.T
    total = present + leftover
    ratio = published_sd / np.sqrt(np.diag(total))
    wanted = ratio[:, None] * total * ratio - leftover
    values, vectors = np.linalg.eigh(wanted)
    wanted_root = vectors * np.sqrt(np.maximum(values, 1e-6 * values.max()))
    present_root = np.linalg.cholesky(present)
    rows = np.linalg.solve(present_root, gradient)  # orthonormal directions that the measurements see
    # A square root of `wanted` close to the present one changes the weights least.
    u, _, vt = np.linalg.svd(wanted_root.T @ present_root)
    root = wanted_root @ u @ vt
    return np.eye(gradient.shape[1]) + rows.T @ (np.linalg.solve(present_root, root) - np.eye(len(rows))) @ rows
