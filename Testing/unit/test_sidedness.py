"""The side of a tibia: by its shape, as given, as its segment is called, and when these disagree."""

from functools import cache

import numpy as np
import pytest
from phantoms import frame
from tibiae import leg

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import Volume
from TibiaCompletionLib import sidedness
from TibiaCompletionLib.case import make_case
from TibiaCompletionLib.plausibility import likeness
from TibiaCompletionLib.sidedness import detect_side, named_side

COARSE = frame((2.2, 2.4, 3.0), (12, -9, 28), "j")
OTHER = {"left": "right", "right": "left"}
PARTS_MM = {"whole": (-400.0, 400.0), "knee": (40.0, 400.0), "ankle": (-400.0, -50.0)}


@cache
def case(side, part="whole"):
    """A tibia or one of its ends."""
    one = leg(side, COARSE, shown_mm=PARTS_MM[part])
    nothing = Volume(np.zeros(one.bone.shape, dtype=bool), one.bone.ijk_to_ras)
    return make_case(one.bone, nothing, None, whole=True)


@pytest.fixture(autouse=True)
def looked_at_once(monkeypatch):
    """Several tests look at the same bone."""
    monkeypatch.setattr(sidedness, "likeness", lambda visible: looked_at(visible.surface.vertices.tobytes(), visible))


KNOWN = {}


def looked_at(key, visible):
    if key not in KNOWN:
        KNOWN[key] = likeness(visible)
    return KNOWN[key]


@pytest.mark.parametrize("side, part", [("left", "whole"), ("right", "whole"), ("left", "knee"), ("right", "ankle")])
def test_the_shape_tells_the_side(side, part):
    assert detect_side(case(side, part), "auto")[0] == side


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_given_side_that_the_shape_confirms_is_kept_without_a_word(side):
    found, likeness, warnings = detect_side(case(side), side)
    assert (found, warnings) == (side, [])
    assert likeness.distance_mm < 1.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_given_side_that_the_shape_contradicts_is_asked_about(side):
    with pytest.raises(InputError) as error:
        detect_side(case(side), OTHER[side])
    sentence = str(error.value)
    assert sentence.startswith(f"The shape is that of a {side} tibia although {OTHER[side]} was given")
    assert "mirrored" in sentence and "--accept-side" in sentence
    assert sentence.endswith(".") and sentence.count(". ") == 0


def test_a_side_that_was_confirmed_is_kept_and_noted():
    found, likeness, warnings = detect_side(case("left"), "right", accept_side=True)
    assert found == "right" and likeness.distance_mm > 1.0
    assert len(warnings) == 1 and "left tibia although right was given and accepted" in warnings[0]


def test_confirming_a_side_changes_nothing_where_the_shape_agrees():
    assert detect_side(case("left"), "left", accept_side=True)[::2] == ("left", [])


@pytest.mark.parametrize(
    "name, side",
    [
        ("leg.seg.nrrd:Left tibia", "left"),
        ("leg.seg.nrrd:tibia_right", "right"),
        ("leg.seg.nrrd:TIBIA (LEFT)", "left"),
        ("leg.seg.nrrd:Tibia", None),
        ("leg.seg.nrrd:left and right tibia", None),
        ("leg.seg.nrrd:bright tibia", None),
        ("left leg/tibia.nii.gz", None),
        ("left leg/tibia.nii.gz:1", None),
    ],
)
def test_the_name_of_a_segment_may_say_the_side(name, side):
    assert named_side(name) == side
