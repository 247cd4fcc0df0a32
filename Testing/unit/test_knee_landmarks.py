"""Landmarks in the X-rays bring the search to a knee that lies far beside the central rays."""

import numpy as np
import pytest
from virtualkneexrays import SHAPE, bones, views, xrays

from BiplanarReconLib.fitting import kneefit, kneestart, reconstruction
from BiplanarReconLib.fitting.kneemodel import BONES, MODEL, load_models
from BiplanarReconLib.fitting.landmarks import Landmark, check_landmarks, rays_of, shift_onto
from BiplanarReconLib.fitting.reconstruction import reconstruct
from BoneReconstructionLib.cli import main
from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.kneeassembly import KneeAssembly, KneePose
from BoneReconstructionLib.shapeprior import load_prior

SEEN = np.ones(SHAPE, dtype=bool)


def pointed_at(geometries):
    """The landmarks as somebody finds them on the X-rays of the left knee, a few millimetres off."""
    eminence = bones("left")["tibia"][0].vertices
    eminence = eminence[eminence[:, 2] > eminence[:, 2].max() - 3].mean(0) + [2.0, -3.0, 2.0]
    fibula = bones("left")["fibula"][0].vertices
    fibula = fibula[fibula[:, 2] > fibula[:, 2].max() - 3].mean(0) + [-3.0, 2.0, 2.0]
    return [
        Landmark(number, name, tuple(geometry.project(place[None])[0]))
        for number, geometry in enumerate(geometries)
        for name, place in (("tibial-eminence", eminence), ("fibular-head", fibula))
    ]


def test_a_knee_beside_the_central_rays_is_found_by_its_landmarks(monkeypatch):
    monkeypatch.setattr(kneestart, "FLEXIONS_DEGREES", (0.0,))
    monkeypatch.setattr(kneestart, "TURNS_DEGREES", (0.0,))
    monkeypatch.setattr(kneestart, "SIZES", (1.07,))
    monkeypatch.setattr(kneefit, "SHAPES", ())
    step = np.eye(4)
    step[:3, 3] = 0, 0, -56  # further than the search without landmarks goes
    moved = [view.moved(step) for view in views()]
    images = xrays(moved)

    def misfit(landmarks):
        """Mean distance in mm of the true tibia's vertices that both X-rays show from the found one."""
        found = reconstruct(images, [SEEN, SEEN], moved, "left", landmarks).surfaces["tibia"]
        truth = bones("left")["tibia"][0].vertices
        truth = truth[np.all([view.contains(truth) for view in moved], axis=0)]
        return SurfaceLocator(found).closest(truth)[1].mean()

    monkeypatch.setattr(reconstruction, "LEAST_SEEN", 0.0)
    assert misfit(pointed_at(moved)) < 2.5
    monkeypatch.setattr(reconstruction, "LEAST_HELD", 0.0)
    assert misfit(()) > 8


@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_the_shift_brings_the_model_onto_the_rays_in_oblique_views(mirror):
    models = load_models()
    places = KneeAssembly({bone: load_prior(MODEL, bone) for bone in BONES}).assemble(
        {bone: model.mean for bone, model in models.items()}, KneePose(20.0)
    )
    from BiplanarReconLib.fitting.kneemodel import BoneState

    states = {bone: BoneState(model, places[bone], np.zeros(len(model.basis))) for bone, model in models.items()}
    true = np.array([mirror * 30.0, -55.0, 231.0])
    geometries = views(angle_deg=60.0)
    landmarks = []
    for number, geometry in enumerate(geometries):
        for name, bone in (("fibular-head", "fibula"), ("patella", "patella")):
            vertices = states[bone].surface.vertices
            if bone == "fibula":
                height = models[bone].mean[:, 2]
                vertices = vertices[height > height.max() - 3]
            landmarks.append(Landmark(number, name, tuple(geometry.project((vertices.mean(0) + true)[None])[0])))
    np.testing.assert_allclose(shift_onto(rays_of(landmarks, geometries), states), true, atol=1e-6)


@pytest.mark.parametrize(
    "landmarks, words",
    [
        ([Landmark(0, "nose", (3, 4))], "no landmark 'nose'"),
        ([Landmark(0, "patella", (3, 400))], "beside the image"),
        ([Landmark(0, "patella", (3, 4)), Landmark(0, "patella", (5, 4))], "twice"),
        ([Landmark(0, "patella", (3, 4)), Landmark(0, "fibular-head", (5, 4))], "how deep"),
    ],
)
def test_landmarks_that_cannot_start_a_search_are_refused(landmarks, words):
    with pytest.raises(InputError, match=words):
        check_landmarks(landmarks, [SHAPE, SHAPE])


@pytest.mark.parametrize("words", [("side", "patella", "3", "4"), ("ap", "patella", "three", "4")])
def test_words_that_are_no_landmark_are_refused(words, capsys, tmp_path):
    files = [part for name in ("ap", "lateral") for part in (f"--{name}", "x", f"--{name}-geometry", "y")]
    assert main(["reconstruct-knee", *files, "--output", str(tmp_path / "out"), "--landmark", *words]) == 2
    assert "is not understood" in capsys.readouterr().err
