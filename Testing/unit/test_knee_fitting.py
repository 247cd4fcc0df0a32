"""The knee's fit: its meshes, derivatives, starts and residuals, each against what is known."""

from dataclasses import replace

import numpy as np
import pytest
from virtualkneexrays import ISOCENTRE, SHAPE, views, xrays

from BiplanarReconLib.fitting import kneefit
from BiplanarReconLib.fitting.kneemodel import BONES, BoneState, coarser, load_models
from BiplanarReconLib.fitting.kneestart import placed_anew
from BiplanarReconLib.fitting.outlines import residual
from BiplanarReconLib.fitting.shadows import make_view, shadow
from BoneReconstructionLib.frames import rotation_about
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose
from BoneReconstructionLib.meshthickness import thickness_image
from BoneReconstructionLib.shapeprior import load_prior

MODELS = load_models()
COARSE = {bone: coarser(model, 6.0) for bone, model in MODELS.items()}
SEEN = np.ones(SHAPE, dtype=bool)


def upright(models, flexion=12.0):
    """{bone: `BoneState`} of a mean right knee about the isocentre, as large as the virtual one."""
    priors = {bone: load_prior("knee-prior", bone) for bone in BONES}
    places = KneeAssembly(priors).assemble({bone: prior.mean for bone, prior in priors.items()}, KneePose(flexion))
    pose = np.eye(4)
    pose[:3, :3] = 1.05 * rotation_about((0, 0, 1), np.radians(8)) @ rotation_about((1, 0, 0), np.radians(-4))
    pose[:3, 3] = ISOCENTRE + [4.0, -6.0, 3.0]
    return {bone: BoneState(model, pose @ places[bone], np.zeros(len(model.basis))) for bone, model in models.items()}


def views_at(pixel_mm, images=None):
    images = xrays(views(), "right") if images is None else images
    return [make_view(image, SEEN, view, ISOCENTRE, pixel_mm) for image, view in zip(images, views(), strict=True)]


@pytest.mark.parametrize("bone", BONES)
def test_a_coarse_mesh_is_closed_and_as_thick_as_the_fine_one(bone):
    fine, coarse = upright(MODELS)[bone], upright(COARSE)[bone]
    assert len(coarse.model.faces) < len(fine.model.faces) / 4
    # Each edge is run along as often one way as the other: no ray enters without leaving.
    edges = np.concatenate([coarse.model.faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
    one_way, other_way = (edges[:, columns] @ [10**6, 1] for columns in ([0, 1], [1, 0]))
    assert np.array_equal(np.sort(one_way), np.sort(other_way))
    images = [thickness_image(state.surface, views()[0]) for state in (fine, coarse)]
    assert images[1].sum() == pytest.approx(images[0].sum(), rel=0.06 if bone in ("femur", "tibia") else 0.13)
    assert coarse.model.cap.any() == fine.model.cap.any()


@pytest.mark.parametrize("bone, parameter", [("femur", 1), ("tibia", 3), ("fibula", 6), ("femur", 8)])
def test_derivatives_are_those_of_finite_differences(bone, parameter):
    view, state = views_at(1.5)[1], upright(MODELS)[bone]
    attenuation = kneefit.ATTENUATION
    step = 0.5 if parameter < 3 or parameter > 6 else 0.01

    def image(sign):
        motion, weights = np.zeros(7), np.zeros(len(state.weights))
        (motion if parameter < 7 else weights)[parameter % 7] = sign * step
        seen = shadow(view, state.moved(motion, weights), attenuation)
        return attenuation[0] * seen.cortex + attenuation[1] * seen.inside

    expected = (image(1) - image(-1)) / (2 * step)
    found = shadow(view, state, attenuation, components=3).changes[parameter]
    inner = (slice(6, -6),) * 2
    likeness = (expected[inner] * found[inner]).sum() / np.linalg.norm(expected[inner]) / np.linalg.norm(found[inner])
    assert likeness > 0.92
    assert np.linalg.norm(found[inner]) == pytest.approx(np.linalg.norm(expected[inner]), rel=0.15)


def test_oblong_pixels_give_the_same_view_as_square_ones():
    square = views_at(1.5)
    oblong = [view.resized((SHAPE[0], SHAPE[1] // 2)) for view in views()]
    images = [image.reshape(SHAPE[0], -1, 2).mean(2) for image in xrays(views(), "right")]
    for one, image, geometry in zip(square, images, oblong, strict=True):
        other = make_view(image, SEEN[:, ::2], geometry, ISOCENTRE, 1.5)
        assert other.geometry.shape == one.geometry.shape
        assert np.allclose(other.geometry.spacing_uv, other.geometry.spacing_uv[0])
        both = other.valid & one.valid
        assert np.corrcoef(other.observed[both], one.observed[both])[0, 1] > 0.98


def test_bones_that_lie_wrong_come_back():
    views_ = views_at(3.0)
    truth = kneefit.begin(upright(COARSE), views_)
    views_ = [replace(view, observed=kneefit.model_image(view, truth)) for view in views_]
    moved = {
        bone: one.moved(np.array([2.0, -1.5, 1.0, 0.03, 0.0, -0.02, 0.01]), 0 * one.weights)
        for bone, one in truth.bones.items()
    }
    before = replace(truth, bones=moved, assembled={bone: one.matrix for bone, one in moved.items()})
    fitted = kneefit.fit(before, views_, kneefit.Stage(3.0, 12, 0))
    assert fitted.correlation > 0.99
    for bone in ("femur", "tibia"):
        own, start, found = (state.bones[bone].surface.vertices for state in (truth, before, fitted.state))
        inside = np.all([view.contains(own) for view in views()], axis=0)
        far, near = (np.linalg.norm((one - own)[inside], axis=1).mean() for one in (start, found))
        assert near < 0.3 * far and near < 0.8


def test_a_thigh_that_bends_the_wrong_way_is_put_right():
    views_ = views_at(3.0)
    state = kneefit.begin(upright(COARSE), views_)
    femur = state.bones["femur"]
    wrong = np.eye(4)
    wrong[:3, :3] = rotation_about((1, 0, 0), np.radians(16))
    bent = replace(state, bones=state.bones | {"femur": replace(femur, matrix=femur.matrix @ wrong)})
    found = placed_anew(bent, views_).bones["femur"]
    turn = np.linalg.inv(femur.matrix) @ found.matrix
    assert np.degrees(np.arccos(min((np.trace(turn[:3, :3]) - 1) / 2, 1))) < 9  # the search steps by 8 degrees
    assert np.linalg.norm(turn[:3, 3]) < 5


def test_the_residual_is_how_far_the_outline_is_off():
    views_ = views_at(1.0)
    state = kneefit.begin({**upright(MODELS)}, views_)
    # The mean knee's own image stands for the X-ray.
    view = replace(views_[0], observed=kneefit.model_image(views_[0], state))
    assert residual(view, state, "tibia").rms_mm < 0.2
    shifted = state.bones["tibia"].moved(np.array([2.0, 0, 0, 0, 0, 0, 0]), 0 * state.bones["tibia"].weights)
    found = residual(view, replace(state, bones=state.bones | {"tibia": shifted}), "tibia")
    # Sideways by 2 mm: the shaft's edges move by that, the plateau's hardly.
    assert 1.0 < found.rms_mm < 2.3 and found.shown > 0.7


def test_deviations_grow_where_nothing_is_seen():
    views_ = views_at(3.0)
    fitted = kneefit.fit(kneefit.begin(upright(MODELS), views_), views_, kneefit.Stage(3.0, 1, 6))
    deviation = kneefit.deviations(fitted)
    tibia = fitted.state.bones["tibia"]
    inside = np.all([view.contains(tibia.surface.vertices) for view in views()], axis=0)
    assert set(deviation) == set(BONES) and all((value > 0).all() for value in deviation.values())
    assert deviation["tibia"][~inside].mean() > 1.5 * deviation["tibia"][inside].mean()
