"""Where a bone's surface lies in a CT, finer than its voxels and better than a segmentation.

Along a normal of a roughly known surface the CT shows soft tissue, cortex and what lies inside, blurred by the scanner.
Thin cortex never reaches its own density there, so that neither a threshold nor the steepest slope finds its surface.
A model of the blurred cortex does, whose density and blur are known from thick places (Treece, Gee, Mayhew, Poole,
"High resolution cortical bone thickness measurement from clinical CT data", Medical Image Analysis 14(3), 2010). The
density of thin cortex, which is more porous, is free within limits here.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.special import ndtr

from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.threads import in_blocks

INSIDE_MM, OUTSIDE_MM, STEP_MM = 5.0, 3.0, 0.25
STEPS = np.arange(-INSIDE_MM, OUTSIDE_MM + 1e-6, STEP_MM)
AVERAGINGS = 2
OUTSIDE_HU = -1024.0  # of voxels that the scanner did not see
NOISE_HU = 40.0
ITERATIONS = 12
CONVERGED = 0.99  # an edge whose cost falls less than this in a step has been found
# Density of the thinnest cortex relative to thick cortex; where the image is brighter, the cortex is denser.
THIN = 0.7
# Soft tissue outside and bone inside in HU, place in mm, log thickness in mm, log density relative to thick cortex.
EXPECTED = np.array([50.0, 150.0, 0.0, np.log(1.5), np.log(THIN)])
SPREAD = np.array([80.0, 250.0, 2.0, 0.8, 0.15])
LARGEST_STEP = np.array([np.inf, np.inf, 0.7, 0.7, 0.3])
# Beyond this much from where the edge was looked for, or with residuals as large, something else was found.
REACH_MM = 2.6
POOR_FIT_HU = 120.0
LEAST_CONTRAST_HU = 150.0
BLURS_MM = np.arange(0.4, 1.61, 0.1)
BLUR_POINTS = 250
FLAT, STEEP = 0.2, 0.4
BLOCK = 1000  # profiles that one thread fits at a time: as many as the processor's caches hold


@dataclass(frozen=True, eq=False)
class Edges:
    """Places of the bone's edge along the normals.

    Attributes:
        offset: (n,) mm from each point along its normal.
        known: (n,) bool, whether an edge was found there.
        profiles: (m, s) HU at `STEPS` along the normals of those m where bone was looked for, averaged with their
            neighbours'.
    """

    offset: np.ndarray
    known: np.ndarray
    profiles: np.ndarray


def bone_edges(ct, surface, normals, seen):
    """Find the bone's outer edge near a surface.

    Args:
        ct: volume in HU.
        surface: roughly where the bone's surface is, RAS mm.
        normals: (n, 3) outward unit vectors of its vertices.
        seen: (n,) bool, where there is bone to be looked for.

    Returns:
        Edges.
    """
    index = np.flatnonzero(seen)
    if not len(index):
        return Edges(np.zeros(len(seen)), np.zeros(len(seen), dtype=bool), np.zeros((0, len(STEPS))))
    values = _averaged(_profiles(ct, surface.vertices[index], normals[index]), surface.faces, normals, index)
    upright = (normals[index] @ (ct.ijk_to_ras[:3, 2] / ct.spacing[2])) ** 2
    cortex = np.percentile(values.max(1), 90)
    blur = _blur(values, cortex, upright)
    state, rms = _fit(values, cortex, blur)
    contrast = values.max(1) - state[:, 0]
    good = (np.abs(state[:, 2]) < REACH_MM) & (rms < POOR_FIT_HU) & (contrast > LEAST_CONTRAST_HU)
    offset, known = np.zeros(len(seen)), np.zeros(len(seen), dtype=bool)
    offset[index], known[index] = state[:, 2], good
    return Edges(offset, known, values)


def _profiles(ct, points, normals):
    """HU (n, s) at `STEPS` along the normals."""
    place = transform_points(ct.ras_to_ijk, points)[:, ::-1]
    along = (normals @ ct.ras_to_ijk[:3, :3].T)[:, ::-1]
    image = ct.array if ct.array.dtype.kind in "iu" else np.nan_to_num(ct.array, nan=OUTSIDE_HU)
    columns = [
        ndimage.map_coordinates(image, (place + x * along).T, np.float32, order=1, mode="nearest") for x in STEPS
    ]
    return np.stack(columns, 1)


def _averaged(values, faces, normals, index):
    """Profiles averaged with those of neighbouring vertices that face the same way: less noise."""
    number = np.full(len(normals), -1)
    number[index] = np.arange(len(index))
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = pairs[(number[pairs] >= 0).all(1)]
    agree = np.clip((normals[pairs[:, 0]] * normals[pairs[:, 1]]).sum(1), 0, 1) ** 2
    first, second = number[pairs].T
    weight = sparse.coo_matrix((agree, (first, second)), (len(index), len(index))).tocsr()
    weight = weight + weight.T + 2 * sparse.identity(len(index), format="csr")
    weight = sparse.diags(1 / np.asarray(weight.sum(1))[:, 0]) @ weight
    for _ in range(AVERAGINGS):
        values = weight @ values
    return values


def _blur(values, cortex, upright):
    """Standard deviation (n,) of the blur along each normal, mm: one in the slices, one across them.

    Args:
        values: (n, s) profiles.
        cortex: HU of thick cortex.
        upright: (n,) squared cosine of the normal with the slices' axis.
    """

    def best(chosen):
        chosen = np.flatnonzero(chosen)
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(BLUR_POINTS, len(chosen))).astype(int)]
        rms = _fit(np.tile(values[chosen], (len(BLURS_MM), 1)), cortex, np.repeat(BLURS_MM, len(chosen)))[1]
        return BLURS_MM[np.argmin(np.median(rms.reshape(len(BLURS_MM), -1), axis=1))]

    thick = values.max(1) > 0.8 * cortex
    within = best(thick & (upright < FLAT))
    across = best(upright > STEEP) if np.count_nonzero(upright > STEEP) > 100 else within
    return np.sqrt(within**2 + (across**2 - within**2) * upright)


def _fit(values, cortex, blur):
    """Fit soft tissue, cortex and inside to profiles by Levenberg-Marquardt.

    Args:
        values: (n, s) HU at `STEPS`.
        cortex: HU of thick cortex.
        blur: (n,) standard deviations in mm.

    Returns:
        ((n, 5) parameters as `EXPECTED`, (n,) root mean square residual in HU).
    """
    parts = in_blocks(lambda block: _fit_block(values[block], cortex, blur[block]), len(values), BLOCK)
    return tuple(np.concatenate(part) for part in zip(*parts))


def _fit_block(values, cortex, blur):
    blur = blur[:, None]
    slope = -np.gradient(values, STEP_MM, axis=1) * np.exp(-0.5 * (STEPS / 2.0) ** 2)
    start = np.argmax(slope, 1)
    # From the darkest spot outside on, another bone or fat may follow.
    outside = np.arange(len(STEPS)) - start[:, None]
    valley = np.argmin(np.where((outside >= 0) & (outside * STEP_MM < 2.5), values, np.inf), 1)
    weight = (np.arange(len(STEPS)) <= valley[:, None] + 1) / NOISE_HU**2
    expected = np.tile(EXPECTED, (len(values), 1))
    expected[:, 4] = np.log(np.clip(values.max(1) / cortex, THIN, 1.0))
    state = expected.copy()
    state[:, 2] = STEPS[start]

    def model(state, rows):
        """Curves and their derivatives of some rows, and what these cost."""
        soft, inner, edge, thickness, density = (state[:, k, None] for k in range(5))
        width = blur[rows]
        thickness, density = np.exp(thickness), cortex * np.exp(density)
        outer, endosteal = (edge - STEPS) / width, (edge - thickness - STEPS) / width
        step, back = ndtr(outer), ndtr(endosteal)
        pulse, back_pulse = (np.exp(-0.5 * x * x) / (np.sqrt(2 * np.pi) * width) for x in (outer, endosteal))
        curve = soft + (density - soft) * step - (density - inner) * back
        shift = (density - inner) * back_pulse
        slopes = [1 - step, back, (density - soft) * pulse - shift, shift * thickness, density * (step - back)]
        misfit = (weight[rows] * (values[rows] - curve) ** 2).sum(1)
        return curve, np.stack(slopes, 2), misfit + (((state - expected[rows]) / SPREAD) ** 2).sum(1)

    running = np.arange(len(values))
    damping = np.full(len(values), 1e-2)
    curve, jacobian, best = model(state, running)
    for _ in range(ITERATIONS):
        weighted = jacobian[running] * weight[running, :, None]
        normal = weighted.transpose(0, 2, 1) @ jacobian[running] + np.diag(SPREAD**-2)
        residual = (values - curve)[running, :, None]
        right = (weighted * residual).sum(1) - (state - expected)[running] / SPREAD**2
        damped = normal + damping[running, None, None] * normal * np.eye(5)
        step = np.linalg.solve(damped, right[:, :, None])[:, :, 0]
        trial = state[running] + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        new_curve, new_jacobian, new = model(trial, running)
        better = new < best[running]
        changed = running[better]
        ended = better & (new > CONVERGED * best[running])
        state[changed], curve[changed], jacobian[changed] = trial[better], new_curve[better], new_jacobian[better]
        best[changed] = new[better]
        damping[running] *= np.where(better, 1 / 3, 5.0)
        running = running[~ended]
        if not len(running):
            break
    used = weight > 0
    return state, np.sqrt((used * (values - curve) ** 2).sum(1) / used.sum(1))
