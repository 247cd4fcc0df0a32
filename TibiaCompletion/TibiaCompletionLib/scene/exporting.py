"""A prediction as files: for printing, for other programs, and as a report."""

import json
from datetime import UTC, datetime

import slicer.util
from slicer.i18n import tr as _

from BoneReconstructionLib import scene
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.modelzoo import find_model
from BoneReconstructionLib.surfacefiles import write_surface
from TibiaCompletionLib.report import Report, html
from TibiaCompletionLib.scene.fragments import newestFor
from TibiaCompletionLib.scene.layouts import pictures

EXPORT_NAME = "PREDICTED tibia"


def export(prediction, folder, withIdentity=False, withScene=False):
    """Write a prediction for printing, for other programs and as a report into a new folder.

    Args:
        prediction: `predictions.Prediction`.
        folder: where the new folder is made.
        withIdentity: whether the report names the patient and the nodes that went in.
        withScene: whether the scene is added, which holds all that identifies the patient.

    Returns:
        Path of the new folder.

    Raises:
        InputError: the folder cannot be written to, the scene is asked for without the patient's identity, or a
            file could not be written.
    """
    if withScene and not withIdentity:
        raise InputError(_("The scene names the patient: allow this first."))
    record = json.loads(prediction.record.GetText())
    patient = scene.patientIdentity(prediction.ct) if withIdentity and prediction.ct is not None else {}
    if withIdentity:
        patient |= {
            name: " / ".join(bone[key] for key in ("node", "segment") if key in bone)
            for name, bone in record["inputs"].items()
        }
    plan = newestFor(prediction)
    tables = {
        "figures": (_("Figures"), prediction.table),
        "measurements": (_("Measurements"), prediction.measurements),
        "fragments": (_("Fragments"), plan and plan.table),
    }
    tables = {name: titled for name, titled in tables.items() if titled[1] is not None}
    try:
        card = find_model(record["model"]["id"]).card
    except InputError:
        card = None
    report = Report(
        record,
        card,
        {title: scene.tableRows(table) for title, table in tables.values()},
        pictures(prediction),
        patient,
        datetime.now(UTC),
    )
    with scene.newFolder(folder, EXPORT_NAME) as (partial, made):
        write_surface(
            partial / f"PREDICTED-tibia-{record['side']}-mm-LPS.stl", scene.surfaceFromModel(prediction.model)
        )
        _exported(slicer.util.exportNode(prediction.segmentation, str(partial / "PREDICTED-tibia.seg.nrrd"), {}))
        for name, (_title, table) in tables.items():
            scene.tableToCsv(table, partial / f"PREDICTED-tibia-{name}.csv")
        (partial / "PREDICTED-tibia-report.html").write_text(html(report), encoding="utf-8")
        if withScene:
            _exported(slicer.util.saveScene(str(partial / "scene.mrb")))
    return made


def _exported(written):
    if not written:
        raise InputError(_("A file could not be written: see the error log."))
