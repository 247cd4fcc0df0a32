"""Fit of the knee model to two X-rays: Levenberg-Marquardt from coarse to fine over the bones' shadows.

The fit minimises robustly weighted differences between the band-passed X-rays and the model's, plus the negative log
prior: of the shapes, of the sizes, which the bones share, and of how far the bones have moved to each other since they
were assembled. First the knee moves as a whole and bends, then each bone by itself, then with a few components of its
shape, then with all. What the bones attenuate is fitted, too.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from BiplanarReconLib.fitting.kneemodel import BONES, MOTION
from BiplanarReconLib.fitting.shadows import beyond_the_cut, shadow
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.surfaces import vertex_normals

# Attenuation per mm beyond soft tissue's of a usual cortex and of what it surrounds, at about 65 keV: 0.02 per mm of
# water times 1.1 and 0.25, after the Hounsfield units in `virtualpatients.PatientRanges`. True ones differ by a share.
ATTENUATION = np.array([0.022, 0.005])
ATTENUATION_SD = np.array([0.008, 0.002])
GAIN_SD = 0.1
COMMON_LOG_SCALE_SD, OWN_LOG_SCALE_SD = 0.075, 0.025
# How far a bone may have moved beside another since the knee was assembled: (child, parent): mm and degrees.
TIES = {
    ("fibula", "tibia"): ((2.5, 2.5, 4.0), (2.0, 2.0, 5.0)),
    ("patella", "femur"): ((6.0, 6.0, 6.0), (8.0, 8.0, 8.0)),
    ("femur", "tibia"): ((6.0, 6.0, 6.0), (8.0, 8.0, 8.0)),
}
# Neighbouring pixels share their errors, as neighbouring points do in `shapefitting`: an area of the X-ray, at the
# isocentre, that counts as one observation.
INDEPENDENT_MM2 = 12.0
# Residuals beyond so many standard deviations lose their weight (Cauchy).
ROBUST = 2.5
DAMPING, EASED, TIGHTENED, TRIES = 1e-3, 0.3, 8.0, 4
STILL = 3e-4
# Bending of the patella with the knee, as in `kneeassembly`: it lags behind.
PATELLA_SHARE = 0.35


@dataclass(frozen=True)
class Stage:
    """One level of the fit.

    Attributes:
        pixel_mm: of the X-rays at the isocentre.
        steps: at most.
        components: of each bone's shape; None: the knee moves as a whole and bends.
    """

    pixel_mm: float
    steps: int
    components: int | None


# Of many starts, a glance tells which are worth more.
GLANCE, WHOLE, APART = Stage(3.0, 4, None), Stage(3.0, 12, None), Stage(3.0, 8, 0)
SHAPES = Stage(2.0, 15, 12), Stage(1.3, 15, 45)


@dataclass(frozen=True, eq=False)
class KneeState:
    """The knee that is fitted.

    Attributes:
        bones: {bone: `BoneState`}.
        attenuation: {bone: (2,) per mm beyond soft tissue's, of cortex and inside}, in the first X-ray's unit.
        gains: (views,) unit of each X-ray relative to the first.
        unit: line integrals per usual line integral, of both X-rays.
        assembled: {bone: (4, 4)} where the bones lay when they last moved as one.
    """

    bones: dict
    attenuation: dict
    gains: np.ndarray
    unit: float
    assembled: dict


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a stage.

    Attributes:
        state: `KneeState`.
        cost: negative log posterior up to a constant, for comparing fits to the same views.
        precision: (p, p) inverse posterior covariance of the bones' own parameters in the order of BONES, then of
            attenuations and gains.
        correlation: between the X-rays and the model's, band-passed, over the bones.
    """

    state: KneeState
    cost: float
    precision: np.ndarray
    correlation: float


def begin(bones, views):
    """The state of freshly assembled bones, with the X-rays' unit from regression.

    Args:
        bones: {bone: `BoneState`}.
        views: the first stage's `View`s.
    """
    attenuation = {bone: ATTENUATION for bone in bones}
    state = KneeState(bones, attenuation, np.ones(len(views)), 1.0, {bone: one.matrix for bone, one in bones.items()})
    pairs = [(view.observed[view.valid], model_image(view, state)[view.valid]) for view in views]
    unit = sum((seen * model).sum() for seen, model in pairs) / max(sum((model**2).sum() for _, model in pairs), 1e-12)
    unit = max(float(unit), 1e-6)
    return replace(state, unit=unit, attenuation={bone: unit * ATTENUATION for bone in bones})


def bone_image(view, state, bone):
    """(rows, columns) band-passed image of one bone, without the view's gain."""
    seen = shadow(view, state.bones[bone], state.attenuation[bone])
    return state.attenuation[bone][0] * seen.cortex + state.attenuation[bone][1] * seen.inside


def model_image(view, state):
    """(rows, columns) band-passed image of all bones, without the view's gain."""
    return sum(bone_image(view, state, bone) for bone in state.bones)


def fit(state, views, stage, report=lambda fraction: None):
    """Improve a state by one stage.

    Args:
        state: `KneeState`.
        views: `View`s at the stage's resolution.
        stage: `Stage`.
        report: called with the fraction done.

    Returns:
        Fitted.
    """
    components = 0 if stage.components is None else stage.components
    damping, problem = DAMPING, _Problem(views, state, components)
    for step in range(stage.steps):
        linear = problem.linearised(state)
        reduction = _whole_knee(state, linear.size) if stage.components is None else np.eye(linear.size)
        hessian, gradient = reduction.T @ linear.hessian @ reduction, reduction.T @ linear.gradient
        for _ in range(TRIES):
            damped = hessian + damping * np.diag(np.diag(hessian))
            change = reduction @ np.linalg.solve(damped, -gradient)
            moved = problem.moved(state, change, stage.components is None)
            cost = problem.cost(moved, linear)
            if cost < linear.cost:
                break
            damping *= TIGHTENED
        else:
            break
        damping *= EASED
        gain = (linear.cost - cost) / max(abs(cost), 1e-9)
        state = moved
        report((step + 1) / stage.steps)
        if gain < STILL:
            break
    final = problem.linearised(state)
    return Fitted(state, final.cost, final.hessian, final.correlation)


@dataclass(frozen=True, eq=False)
class _Linear:
    """The problem near a state: Gauss-Newton matrix, gradient, cost, and the weights that the cost was told with."""

    hessian: np.ndarray
    gradient: np.ndarray
    cost: float
    weights: list
    correlation: float

    @property
    def size(self):
        return len(self.gradient)


class _Problem:
    """Two views and the priors. Parameters: own ones of each bone in turn, attenuations in turn, gains but the first."""

    def __init__(self, views, state, components):
        self.views = views
        # A bone may have fewer components than the stage asks for.
        self.counts = [min(components, len(state.bones[bone].weights)) for bone in BONES]
        self.starts = np.concatenate([[0], np.cumsum([MOTION + count for count in self.counts])])
        self.own = int(self.starts[-1])
        self.size = self.own + 2 * len(BONES) + len(views) - 1

    def linearised(self, state):
        hessian, gradient = self._prior(state)
        cost, weights, dots = self._prior_cost(state), [], np.zeros(3)
        for number, view in enumerate(self.views):
            columns = np.zeros((self.size, *view.geometry.shape), dtype=np.float32)
            model, valid = np.zeros(view.geometry.shape, dtype=np.float32), view.valid.copy()
            for k, bone in enumerate(BONES):
                attenuation = state.attenuation[bone]
                seen = shadow(view, state.bones[bone], attenuation, self.counts[k])
                first = self.own + 2 * k
                columns[self.starts[k] : self.starts[k + 1]] = seen.changes
                columns[first], columns[first + 1] = seen.cortex, seen.inside
                model += attenuation[0] * seen.cortex + attenuation[1] * seen.inside
                valid &= ~beyond_the_cut(view, state.bones[bone])
            columns *= state.gains[number]
            if number:
                columns[self.own + 2 * len(BONES) + number - 1] = model
            residual = (state.gains[number] * model - view.observed)[valid]
            touched = np.abs(model[valid]) > 0.02 * np.abs(model).max()
            sigma = 1.4826 * np.median(np.abs(residual[touched])) + 1e-9
            weight = np.zeros(valid.shape)
            weight[valid] = view.pixel_mm**2 / INDEPENDENT_MM2 / sigma**2 / (1 + (residual / (ROBUST * sigma)) ** 2)
            jacobian = columns[:, valid]
            weighted = jacobian * weight[valid].astype(np.float32)
            hessian += (weighted @ jacobian.T).astype(float)
            gradient += weighted @ residual
            cost += 0.5 * (weight[valid] * residual**2).sum()
            weights.append(weight)
            seen, shown = view.observed[valid][touched], model[valid][touched]
            dots += [seen @ shown, seen @ seen, shown @ shown]
        return _Linear(hessian, gradient, float(cost), weights, float(dots[0] / np.sqrt(dots[1] * dots[2] + 1e-12)))

    def cost(self, state, linear):
        total = self._prior_cost(state)
        for number, view in enumerate(self.views):
            residual = state.gains[number] * model_image(view, state) - view.observed
            total += 0.5 * (linear.weights[number] * residual**2).sum()
        return float(total)

    def moved(self, state, change, as_one):
        bones, attenuation = {}, {}
        for k, bone in enumerate(BONES):
            own = change[self.starts[k] : self.starts[k + 1]]
            weights = np.zeros(len(state.bones[bone].weights))
            weights[: self.counts[k]] = own[MOTION:]
            bones[bone] = state.bones[bone].moved(own[:MOTION], weights)
            first = self.own + 2 * k
            attenuation[bone] = np.maximum(state.attenuation[bone] + change[first : first + 2], 0)
        gains = state.gains.copy()
        gains[1:] = np.maximum(gains[1:] + change[self.own + 2 * len(BONES) :], 0.2)
        assembled = {bone: one.matrix for bone, one in bones.items()} if as_one else state.assembled
        return replace(state, bones=bones, attenuation=attenuation, gains=gains, assembled=assembled)

    def _terms(self, state):
        """The priors as (rows, deviation): quadratic in rows @ change + deviation, already in standard deviations."""
        logs = np.log([state.bones[bone].scale for bone in BONES])
        covariance = COMMON_LOG_SCALE_SD**2 + OWN_LOG_SCALE_SD**2 * np.eye(len(BONES))
        root = np.linalg.cholesky(np.linalg.inv(covariance)).T
        rows = np.zeros((len(BONES), self.size))
        rows[:, self.starts[:-1] + 6] = root
        yield rows, root @ logs
        for k, bone in enumerate(BONES):
            count = self.counts[k]
            rows = np.zeros((count, self.size))
            first = self.starts[k] + MOTION
            rows[:, first : first + count] = np.eye(count)
            yield rows, state.bones[bone].weights[:count]
            rows = np.zeros((2, self.size))
            sd = state.unit * ATTENUATION_SD
            first = self.own + 2 * k
            rows[:, first : first + 2] = np.diag(1 / sd)
            yield rows, (state.attenuation[bone] - state.unit * ATTENUATION) / sd
        rows = np.zeros((len(self.views) - 1, self.size))
        rows[:, self.own + 2 * len(BONES) :] = np.eye(len(self.views) - 1) / GAIN_SD
        yield rows, (state.gains[1:] - 1) / GAIN_SD
        for (child, parent), sds in TIES.items():
            yield self._tie(state, child, parent, np.array([*sds[0], *np.radians(sds[1])]))

    def _tie(self, state, child, parent, sds):
        centre = transform_points(
            state.assembled[child] @ np.linalg.inv(state.bones[child].matrix), state.bones[child].centre[None]
        )
        of_child = state.bones[child].matrix @ np.linalg.inv(state.assembled[child])
        of_parent = state.bones[parent].matrix @ np.linalg.inv(state.assembled[parent])
        relative = np.linalg.inv(of_parent) @ of_child
        turn = Rotation.from_matrix(relative[:3, :3] / np.cbrt(np.linalg.det(relative[:3, :3]))).as_rotvec()
        deviation = np.concatenate([(transform_points(relative, centre) - centre)[0], turn])
        rows = np.zeros((6, self.size))
        c, p = self.starts[BONES.index(child)], self.starts[BONES.index(parent)]
        rows[:, c : c + 6] = np.eye(6)
        rows[:, p : p + 6] = -np.eye(6)
        arm = state.bones[child].centre - state.bones[parent].centre
        rows[:3, p + 3 : p + 6] = -np.cross(np.eye(3), arm).T
        return rows / sds[:, None], deviation / sds

    def _prior(self, state):
        hessian, gradient = np.zeros((self.size, self.size)), np.zeros(self.size)
        for rows, deviation in self._terms(state):
            hessian += rows.T @ rows
            gradient += rows.T @ deviation
        return hessian, gradient

    def _prior_cost(self, state):
        return 0.5 * sum(float(deviation @ deviation) for _, deviation in self._terms(state))


def _whole_knee(state, size):
    """(parameters, 8 + rest) matrix: shift, turn and size of the whole knee and its flexion, then what is no motion."""
    centre = np.mean([one.centre for one in state.bones.values()], axis=0)
    femur = state.bones["femur"]
    axis, origin = femur.matrix[:3, 0] / femur.scale, femur.matrix[:3, 3]
    rest = size - MOTION * len(BONES)
    reduction = np.zeros((size, 8 + rest))
    for k, bone in enumerate(BONES):
        first = MOTION * k
        arm = state.bones[bone].centre - centre
        reduction[first : first + 3, :3] = np.eye(3)
        reduction[first : first + 3, 3:6] = np.cross(np.eye(3), arm).T
        reduction[first + 3 : first + 6, 3:6] = np.eye(3)
        reduction[first : first + 3, 6], reduction[first + 6, 6] = arm, 1.0
        share = {"femur": 1.0, "patella": PATELLA_SHARE}.get(bone, 0.0)
        reduction[first : first + 3, 7] = share * np.cross(axis, state.bones[bone].centre - origin)
        reduction[first + 3 : first + 6, 7] = share * axis
    reduction[MOTION * len(BONES) :, 8:] = np.eye(rest)
    return reduction


def deviations(fitted):
    """{bone: (n,) standard deviation in mm, along the normal, of each vertex}, by the posterior's Laplace approximation."""
    covariance = np.linalg.inv(fitted.precision)
    found, first = {}, 0
    counts = _counts(fitted)
    for bone, count in zip(BONES, counts, strict=True):
        state = fitted.state.bones[bone]
        own = covariance[first : first + MOTION + count, first : first + MOTION + count]
        first += MOTION + count
        vertices, normals = state.surface.vertices, vertex_normals(state.surface)
        arms = vertices - state.centre
        rows = np.empty((len(vertices), MOTION + count))
        rows[:, :3], rows[:, 3:6], rows[:, 6] = normals, np.cross(arms, normals), (arms * normals).sum(1)
        rows[:, MOTION:] = np.einsum("knc,nc->nk", state.model.basis[:count], normals @ state.matrix[:3, :3])
        found[bone] = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", rows, own, rows, optimize=True), 0))
    return found


def _counts(fitted):
    """How many components of each bone the precision tells of."""
    rest = len(fitted.precision) - 2 * len(BONES) - (len(fitted.state.gains) - 1) - MOTION * len(BONES)
    whole = [len(fitted.state.bones[bone].weights) for bone in BONES]
    return next(counts for n in range(max(whole) + 1) if sum(counts := [min(n, own) for own in whole]) == rest)
