"""What the panel says about X-rays, their geometry and what was made of them."""

import json

from slicer.i18n import tr as _

from BiplanarReconLib.xrayrecords import MISSING, TYPED
from BoneReconstructionLib.projection import installed_engines
from BoneReconstructionLib.xraygeometry import angle_between


def viewWords(view):
    """A view, one of `xraygeometry.VIEWS`, for the user."""
    return {
        "AP": _("AP: beam from the front"),
        "PA": _("PA: beam from the back"),
        "left lateral": _("Left lateral: left side at the detector"),
        "right lateral": _("Right lateral: right side at the detector"),
    }[view]


def stepsWords(record):
    """What was done to an X-ray's values and what its tags say about view and side; record may be None."""
    if record is None:
        return _("No X-ray.")
    image = _("Image: {steps}.").format(steps="; ".join(record.steps))
    side = _("{side} side").format(side=record.stated_side) if record.stated_side else None
    said = ", ".join(filter(None, (record.stated_view, side)))
    tags = _("The file's tags say: {said}; confirm it.") if said else _("The file says neither view nor side.")
    return f"{image} {tags.format(said=said)}"


def reasonWords(record):
    """Why an X-ray has no geometry, or that it has one; record may be None."""
    if record is None:
        return ""
    return record.reason or _("The geometry is complete.")


def originWords(record, name):
    """Where a value is from."""
    if record is None:
        return ""
    origin = record.origins.get(name, MISSING)
    return {MISSING: _("missing"), TYPED: _("typed")}.get(origin, origin)


def shapeWords(record):
    """The image's size."""
    if record is None:
        return ""
    return _("{columns} x {rows} pixels").format(columns=record.values.shape[1], rows=record.values.shape[0])


def angleWords(records):
    """The angle between two X-rays with a geometry, {"frontal", "lateral": XrayRecord}."""
    if len(records) < 2:
        return _("The angle between the views is not known yet.")
    angle = angle_between(*(record.geometry for record in records.values()))
    return _("Angle between the views: {angle:.1f} degrees (30 to 150 are possible).").format(angle=angle)


def engineWords():
    """Which projection engine is installed."""
    engines = installed_engines()
    if not engines:
        return _("X-rays are simulated by numba or torch: neither is installed.")
    return _("X-rays are simulated by {engine}.").format(engine=engines[0])


def endWords(state, message, done):
    """How a job ended: done if it succeeded; state and message as scenejob.SceneJob gives them."""
    if state == "succeeded":
        return done
    cancelled = _("Cancelled; the scene is as it was.")
    return cancelled if state == "cancelled" else _("Failed: {message}").format(message=message)


def summary(recordNode):
    """What came out, with its warnings; recordNode may be None."""
    if recordNode is None:
        return _("No reconstruction yet.")
    record = json.loads(recordNode.GetText())
    text = _("PREDICTED {side} knee: {bones}. Every surface is predicted from two projections. Not for clinical use.")
    first = text.format(side=record["side"], bones=", ".join(record["bones"]) or _("no bone"))
    return "\n".join([first, *record["warnings"]])
