"""What the panel says about a tibia, its side, a prediction and its confidence; translated."""

import json

import slicer.util
from slicer.i18n import tr as _

from BoneReconstructionLib.tibiameasurements import DEFINITIONS
from TibiaCompletionLib.completion import METHODS
from TibiaCompletionLib.scene.inputs import FOUND_ATTRIBUTE
from TibiaCompletionLib.scene.predictions import fromRecord


def signWords():
    """What the sign and the grey of the heatmap mean."""
    return _(
        "Heatmap in mm. Positive: the prediction lies outside the visible bone; negative: inside it; "
        "grey: no visible bone to compare with."
    )


def checkWords(tibia):
    """What to do with a tibia that was found and not drawn; "" for any other node."""
    if tibia is None or not tibia.GetAttribute(FOUND_ATTRIBUTE):
        return ""
    text = _(
        "This tibia was found automatically and is a proposal: look at it in all slices and correct it "
        '("Edit tibia") before you use it.'
    )
    if tibia.GetSegmentation().GetNumberOfSegments() > 1:
        text = _("Both tibiae were found: select the segment of the fractured one.") + " " + text
    return text


def inPanelWords(sentence):
    """A sentence of the command line with the panel's control in place of the option that it names."""
    return sentence.replace("--beyond-scan", _('"Predict past the scan\'s end"'))


def sideQuestion(side):
    """What to ask when the given side, "left" or "right", contradicts the shape."""
    words = {"left": _("left"), "right": _("right")}
    given = words.pop(side)
    (shape,) = words.values()
    text = _(
        "The shape is that of a {shape} tibia, but it is given as a {given} one. The image may be mirrored or "
        "the side wrong: check both.\n\nPredict it as a {given} tibia all the same?"
    )
    return text.format(shape=shape, given=given)


def sideWords(chosen, detected):
    """What is known of the side; arguments as the side's value and what detectedSide returns."""
    words = {"left": _("left"), "right": _("right")}
    sources = {"name": _("as the tibia's name or terms say"), "shape": _("by the shape of the bone")}
    if chosen == "auto" and detected is None:
        return _("Side: nothing says it yet. It is told by the shape of the bone when the tibia is predicted.")
    if chosen == "auto":
        return _("Side: {side}, {source}; not confirmed.").format(side=words[detected[0]], source=sources[detected[1]])
    if detected is not None and detected[0] != chosen:
        return _("Side: {side}, as you chose, but {other} {source}: check it.").format(
            side=words[chosen], other=words[detected[0]], source=sources[detected[1]]
        )
    return _("Side: {side}, confirmed.").format(side=words[chosen])


def timeWords():
    """How long each method took, as far as this scene's predictions tell; all work on the processor."""
    measured = {}
    for node in slicer.util.getNodesByClass("vtkMRMLTextNode"):
        if fromRecord(node) is not None:
            record = json.loads(node.GetText())
            measured[record["method"]] = record["seconds"]
    lines = [_("Device: processor (CPU); no method here uses a graphics card (GPU). Measured in this scene:")]
    for name, method in METHODS.items():
        line = _("{method}: {seconds:.0f} s") if name in measured else _("{method}: not run yet")
        lines.append(line.format(method=method.title, seconds=measured.get(name, 0)))
    return "\n".join(lines)


def summary(recordNode):
    """Side, method, model and warnings of a prediction in words."""
    if recordNode is None:
        return _("No prediction yet.")
    record = json.loads(recordNode.GetText())
    text = _("PREDICTED from the {side} tibia by {method}, model {model} {version}. Not for clinical use.")
    lines = [
        text.format(
            side=record["side"],
            method=record["method"],
            model=record["model"]["id"],
            version=record["model"]["version"],
        )
    ]
    warnings = [inPanelWords(text) for text in record["warnings"]]
    return "\n".join(lines + [_("Warning: {warning}").format(warning=text) for text in warnings])


def measurementsWords(recordNode, table):
    """What the table of measurements holds, or why there is none."""
    if recordNode is None:
        return _("No prediction yet.")
    if table is None:
        return _("No measurements: they need the shape prior and both joint ends within the scan.")
    return _(
        "Of the PREDICTED tibia, in mm and degrees. The interval is half of the range that holds 95 %; "
        "people: mean and standard deviation as published. Definitions are in the markups' descriptions."
    )


def confidenceWords(recordNode):
    """The intervals of a prediction, and how uncertain its surface is, in words."""
    if recordNode is None:
        return _("No prediction yet.")
    record = json.loads(recordNode.GetText())
    lines = [
        _("{title}: ± {width:.1f} {unit} (95 %)").format(
            title=DEFINITIONS[name].title, width=width, unit=DEFINITIONS[name].unit
        )
        for name, width in (record.get("intervals_95") or {}).items()
    ]
    unseen = record["metrics"].get("unseen_deviation")
    if unseen is not None:
        lines.append(
            _("Surface without visible bone: ± {deviation:.1f} mm (one standard deviation)").format(
                deviation=unseen["value"]
            )
        )
    return "\n".join(lines) or _("This prediction comes without intervals.")
