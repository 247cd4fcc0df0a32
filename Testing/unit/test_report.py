"""The report: complete, self-contained, escaped, and silent about the patient unless told otherwise."""

import base64
import struct
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from BoneReconstructionLib.modelzoo import find_model
from TibiaCompletionLib.report import NOT_CLINICAL, Picture, Report, html


def png():
    """A grey PNG of one pixel."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")
    )


@pytest.fixture
def report():
    card = find_model("tibia-prior").card
    record = {
        "version": "0.4.0",
        "side": "left",
        "method": "shape-prior",
        "model": {"id": card["id"], "version": card["version"], "sha256": card["sha256"]},
        "settings": {"side": "auto", "fixed_piece": 1},
        "warnings": ["Only 90 mm <b>of the tibia</b> are visible."],
    }
    tables = {"Measurements": [["Measurement", "Value"], ["Length", "351.2"], ["Torsion", "24.0"]]}
    made = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
    return Report(record, card, tables, [Picture("Axial & more", png())], {}, made)


class Page(HTMLParser):
    """What a browser would find: tags, texts, images and everything that is fetched from elsewhere."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images, self.fetched = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                (self.images if value.startswith("data:image/png;base64,") else self.fetched).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(report):
    page = Page(html(report))
    assert not page.open and not page.fetched
    assert [base64.b64decode(image.partition(",")[2]) for image in page.images] == [png()]


def test_it_says_what_was_predicted_and_that_it_is_not_for_clinical_use(report):
    text = "\n".join(Page(html(report)).texts)
    assert text.count(NOT_CLINICAL) == 2 and "not for clinical use" in NOT_CLINICAL.lower()
    for said in ("PREDICTED left tibia", "351.2", "Torsion", "2026-03-04 05:06 UTC", "shape-prior", "fixed_piece"):
        assert said in text


def test_the_model_card_is_told(report):
    text = "\n".join(Page(html(report)).texts)
    for said in (report.card["licence"], report.card["attribution"], *report.card["limits"]):
        assert said in text


def test_a_missing_card_and_another_version_are_told(report):
    assert "was not found" in html(replace(report, card=None))
    older = report.record | {"model": report.record["model"] | {"version": "0.0.1"}}
    assert "Predicted by version 0.0.1" in html(replace(report, record=older))
    assert "Predicted by version" not in html(report)


def test_what_others_wrote_is_text_and_not_markup(report):
    text = html(replace(report, patient={"name": "<script>alert(1)</script>"}))
    assert "<script>" not in text and "<b>of" not in text
    assert "Only 90 mm <b>of the tibia</b> are visible." in Page(text).texts


def test_the_patient_is_named_only_where_given(report):
    assert "Patient" not in html(report)
    named = "\n".join(Page(html(replace(report, patient={"name": "Smith^Jane", "ID": "4711"}))).texts)
    assert "Smith^Jane" in named and "4711" in named and "Patient and input" in named


def test_without_pictures_and_warnings_there_are_no_empty_headings(report):
    bare = html(replace(report, pictures=[], record=report.record | {"warnings": []}))
    assert "Pictures" not in bare and "Warnings" not in bare
