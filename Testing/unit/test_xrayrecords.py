"""What is known of an X-ray: values with their origins, views and sides that a user confirms, and refusals."""

from dataclasses import replace

import numpy as np
import pytest

from BiplanarReconLib.xrayrecords import cautions, from_json, reason_not_to_reconstruct, record_of, to_json
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.radiographs import Radiograph
from BoneReconstructionLib.xraygeometry import from_carm, preset_view

SHAPE = (96, 72)
DICOM = {
    "Modality": "DX", "ViewPosition": "AP", "ImageLaterality": "R", "ImagerPixelSpacing": "0.2\\0.3",
    "DistanceSourceToDetector": "1150", "DistanceSourceToPatient": "1000",
}  # fmt: skip


def image(spacing=None, tags=None, side=None):
    values = np.zeros(SHAPE, np.float32)
    return Radiograph(values, values == 0, spacing, side, tags or {}, ("values are linear (as the file says)",))


def known(view, side="right", isocentre=(10.0, -20.0, 300.0), preset="c-arm", turn=0.0):
    geometry = preset_view(preset, view, isocentre, turn).resized(SHAPE)
    record = record_of(image()).from_geometry(geometry, "a file")
    return replace(record, view=view, side=side)


def test_an_image_without_tags_says_what_it_lacks():
    record = record_of(image())
    assert record.origins["spacing"] == record.origins["source_detector"] == "missing"
    assert "source to detector is missing" in record.reason
    with pytest.raises(InputError):
        record.geometry  # noqa: B018
    with pytest.raises(InputError, match="no DICOM tags"):
        record.from_dicom()


def test_dicom_tags_fill_the_values_and_nothing_is_confirmed_by_them():
    record = record_of(image((0.3, 0.2), DICOM, "right"))
    assert record.values.source_detector_mm == 1150 and record.values.spacing_uv == (0.3, 0.2)
    assert record.origins["source_detector"] == "DICOM DistanceSourceToDetector"
    assert (record.stated_view, record.stated_side, record.view, record.side) == ("AP", "right", "", "")
    assert record.reason == "" and record.geometry.beam[1] == pytest.approx(-1)
    assert "not calibrated" in cautions({"frontal": record})[0]


def test_angles_that_only_the_view_tells_follow_it_and_typed_ones_contradict_it():
    record = record_of(image((0.3, 0.2), DICOM, "right")).seen_as("PA")
    assert record.values.primary_deg == 0 and record.reason == "" and record.geometry.beam[1] == pytest.approx(1)
    typed = record.changed("primary_deg", 170.0)
    assert typed.origins["angles"] == "typed"
    assert "not those of the view PA" in typed.reason and "170" in typed.reason
    assert typed.seen_as("AP").values.primary_deg == 170 and typed.seen_as("AP").reason == ""


def test_a_typed_value_is_labelled_and_an_impossible_one_refused():
    record = known("AP").changed("source_isocentre_mm", 5000.0)
    assert record.origins["source_isocentre"] == "typed" and record.origins["spacing"].startswith("a file")
    assert "isocentre must lie between" in record.reason
    assert "300 to 5000" in known("AP").changed("source_isocentre_mm", 5.0).changed("source_detector_mm", 9.0).reason


def test_pixels_that_contradict_the_file_are_refused():
    record = replace(known("AP"), spacing_uv=(0.1, 0.1))
    assert "check which is right" in record.reason


def test_a_preset_needs_a_view_and_brings_its_pixels_only_where_they_fit():
    record = record_of(image())
    with pytest.raises(InputError, match="Choose the view first"):
        record.from_preset("ssr-kd")
    placed = record.seen_as("left lateral").from_preset("ssr-kd")
    assert placed.values.source_detector_mm == pytest.approx(2000) and placed.values.primary_deg == pytest.approx(90)
    assert placed.values.shape == SHAPE and "other pixels" in placed.origins["spacing"]
    assert "pixel spacing" in placed.reason
    own = record_of(image((0.5, 0.6))).seen_as("left lateral").from_preset("ssr-kd")
    assert own.origins["spacing"] == "the image's file" and tuple(own.geometry.spacing_uv) == (0.5, 0.6)


@pytest.mark.parametrize("anatomical", [True, False])
def test_a_geometry_comes_back_from_the_record_and_from_its_text(anatomical):
    geometry = replace(preset_view("c-arm", "AP", (40, -900, 1500), 17.0).resized(SHAPE), anatomical=anatomical)
    other = preset_view("c-arm", "left lateral", (40, -900, 1500))
    for partner in (None, other):
        record = record_of(image()).from_geometry(geometry, "a file", partner)
        again = from_json(to_json(record))
        assert again == record and again.geometry.anatomical == anatomical
        points = np.array([[60.0, -880, 1490], [20, -930, 1530]])
        assert np.allclose(again.geometry.project(points), geometry.project(points), atol=1e-8)
    assert record.values.isocentre == pytest.approx((40, -900, 1500))


def test_what_is_not_confirmed_is_asked_for_in_the_order_of_the_panel():
    frontal, lateral = known("AP"), known("left lateral")
    assert reason_not_to_reconstruct(None, None) == "Load or select the frontal X-ray."
    assert reason_not_to_reconstruct(frontal, None) == "Load or select the lateral X-ray."
    assert "AP or PA" in reason_not_to_reconstruct(replace(frontal, view=""), lateral)
    assert "left or a right knee" in reason_not_to_reconstruct(frontal, replace(lateral, side=""))
    assert "left or a right knee" in reason_not_to_reconstruct(frontal, replace(lateral, side="left"))
    assert "tagged as of a left knee" in reason_not_to_reconstruct(frontal, replace(lateral, stated_side="left"))
    assert reason_not_to_reconstruct(frontal, lateral) == ""


def test_views_that_cannot_be_used_together_are_refused():
    frontal, lateral = known("AP"), known("left lateral")
    assert "nearly parallel" in reason_not_to_reconstruct(frontal, known("left lateral", turn=75.0))
    assert "same place" in reason_not_to_reconstruct(frontal, known("left lateral", isocentre=(10, -20, 900)))
    assert reason_not_to_reconstruct(frontal, lateral.changed("source_detector_mm", None)).startswith("Lateral X-ray: ")
    for turn in (-55.0, 55.0):
        assert reason_not_to_reconstruct(frontal, known("left lateral", turn=turn)) == ""


def test_a_calibration_asks_for_the_patients_axes():
    frontal, lateral = (replace(known(view), anatomical=False) for view in ("AP", "left lateral"))
    assert "calibration object" in reason_not_to_reconstruct(frontal, lateral)
    assert reason_not_to_reconstruct(frontal, lateral, "-y,x,z") == ""


def test_a_record_is_what_from_carm_makes_of_its_values():
    record = known("PA", turn=12.0)
    assert np.allclose(from_carm(record.values).source, record.geometry.source)
