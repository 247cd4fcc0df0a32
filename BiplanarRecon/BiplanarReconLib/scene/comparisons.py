"""A reconstructed knee compared with the bones of a CT or with another model: which bone with which, and the results."""

import functools
import json
import re
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from BiplanarReconLib.scene.reconstructions import BONE_ATTRIBUTE, COLORS, VIEWS, references
from BoneReconstructionLib import scene
from BoneReconstructionLib.comparison import SIGNED_ARRAY
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import RESULT

TABLE_ROLE, MODEL_ROLE = "BiplanarRecon.comparison.table", "BiplanarRecon.comparison.model"
HEATMAP_TITLE = _("PREDICTED to reference (mm)\n+ outside, - inside")
HEATMAP_RANGE_MM = 2.0
# What codes and words in names say.
BONE_OF_CODE = {scene.BONE_CODES[bone].split("^")[1]: bone for bone in COLORS}
SIDE_OF_CODE = {code.split("^")[1]: side for side, code in scene.SIDE_CODES.items() if side is not None}
BONE_OF_WORD = {bone: bone for bone in COLORS}
SIDE_OF_WORD = {"left": "left", "l": "left", "right": "right", "r": "right"}


@dataclass
class KneeComparison:
    """Nodes of one comparison; `record` keeps inputs, alignments and figures (JSON) and refers to the other nodes.

    Attributes:
        models: {bone: the PREDICTED bone, moved where it was aligned, with signed distances (mm) at its points}.
        table: figures of each bone.
    """

    models: dict
    table: slicer.vtkMRMLTableNode
    record: slicer.vtkMRMLTextNode


def signWords():
    """What the sign of the distances means."""
    return _("Distances in mm; positive: the PREDICTED bone lies outside the reference, negative: inside it.")


def reasonNotToCompare(result, reference, bone):
    """Why the comparison cannot run, as a sentence, or "" if it can; looks at no voxels and no points.

    Args:
        result: `reconstructions.Reconstruction`, or None.
        reference: segmentation or model node, or None.
        bone: that a model is compared with; a segmentation's segments say themselves which bones they are.
    """
    try:
        _counterparts(result, reference, bone)
    except InputError as error:
        return str(error)
    return ""


def startComparison(result, reference, bone, alignment, onProgress=None, onFinished=None):
    """Start `bonerecon compare-bones` in a process of its own; references are cut off where the X-rays end, too.

    Args:
        result, reference, bone: as reasonNotToCompare.
        alignment: "none", or "rigid" to move each PREDICTED bone onto its reference, for itself.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are a KneeComparison.

    Raises:
        InputError: the reason of reasonNotToCompare; a bone is empty, has no triangles or is under a transform that is
            not linear. Nothing was started.
    """
    pairs = _counterparts(result, reference, bone)
    with scene.starting(functools.partial(importComparison, result, pairs), onProgress, onFinished) as job:
        arguments = ["compare-bones", "--align", alignment]
        geometries = [job.folder / f"{name}.json" for name in VIEWS]
        for path in geometries:
            path.write_text(result.geometryText(path.stem), encoding="utf-8")
        arguments += ["--views", *geometries]
        for name, counterpart in pairs.items():
            predicted = scene.writeBone(job.folder / f"{name}-predicted", result.models[name])
            arguments += ["--pair", name, predicted, scene.writeBone(job.folder / f"{name}-reference", *counterpart)]
        job.start(*arguments)
    return job


def importComparison(result, pairs, output):
    """Add the files of a finished `compare-bones` to the scene; the references give way to the heatmaps in 3D.

    Args:
        result: `reconstructions.Reconstruction`.
        pairs: {bone: (reference node, segment ID or "")}.
        output: folder.

    Returns:
        KneeComparison.
    """
    bones = json.loads((output / RESULT).read_text(encoding="utf-8"))["bones"]
    reference = next(iter(pairs.values()))[0]
    title = _("{knee} compared with {reference}").format(
        knee=result.segmentation.GetName(), reference=reference.GetName()
    )
    with scene.importing(result.segmentation, title):
        models = {}
        for bone in pairs:
            surface, scalars = scene.readSurfaceWithScalars(output / f"{bone}.vtp")
            name = _("PREDICTED {bone}, compared").format(bone=bone)
            models[bone] = model = scene.surfaceToModel(surface, name, COLORS[bone], scalars=scalars)
            model.SetAttribute(BONE_ATTRIBUTE, bone)
            scene.addHeatmap(model, SIGNED_ARRAY, HEATMAP_RANGE_MM, HEATMAP_TITLE)
        table = scene.addTable(_columns(bones), title)
        inputs = {"reconstruction": (result.record, "")} | pairs
        record = scene.recordFromJson(output / RESULT, _("{title}, record").format(title=title), inputs)
        record.SetNodeReferenceID(TABLE_ROLE, table.GetID())
        for model in models.values():
            record.AddNodeReferenceID(MODEL_ROLE, model.GetID())
    for counterpart in pairs.values():
        scene.hideIn3D(*counterpart)
    return KneeComparison(models, table, record)


def fromRecord(record):
    """The KneeComparison that a record belongs to; None where the record is None or a node of it was removed."""
    if record is None:
        return None
    table = record.GetNodeReference(TABLE_ROLE)
    models = {model.GetAttribute(BONE_ATTRIBUTE): model for model in references(record, MODEL_ROLE)}
    return KneeComparison(models, table, record) if table is not None and models else None


def show(comparison, visible, opacity, rangeMm):
    """Draw the compared bones as heatmaps with one legend, or nothing of them.

    Args:
        comparison: KneeComparison.
        visible: whether they are drawn.
        opacity: 0 to 1.
        rangeMm: colours run from -rangeMm to +rangeMm.
    """
    for number, model in enumerate(comparison.models.values()):
        scene.setModelVisible(model, visible, opacity)
        scene.setHeatmapVisible(model, visible, withLegend=number == 0)
        scene.setHeatmapRange(model, rangeMm)


def hide(comparison):
    """Hide all that a comparison shows."""
    for model in comparison.models.values():
        scene.setModelVisible(model, False)


def _counterparts(result, reference, bone):
    """What each bone is compared with, {bone: (node, segment ID or "")}; arguments and InputError: reasonNotToCompare."""
    if result is None:
        raise InputError(_("There are no PREDICTED bones yet: reconstruct them, then compare."))
    if any(result.geometryText(name) is None for name in VIEWS):
        raise InputError(_("The reconstruction does not say where its X-rays end: reconstruct the bones anew."))
    if reference is None:
        raise InputError(_("Select what to compare with: a segmentation, for instance of a CT, or a model."))
    if reference is result.segmentation or reference in result.models.values():
        text = _('"{name}" is the reconstruction itself: select what to compare it with.')
        raise InputError(text.format(name=reference.GetName()))
    side = json.loads(result.record.GetText())["side"]
    if reference.IsA("vtkMRMLSegmentationNode"):
        return _counterpartSegments(result.models, side, reference)
    if bone not in result.models:
        raise InputError(_("The reconstruction has no {bone}: choose another bone.").format(bone=bone))
    if _said(SIDE_OF_WORD, _words(reference.GetName())) not in (None, side):
        raise _otherSide(reference, side)
    return {bone: (reference, "")}


def _counterpartSegments(bones, side, node):
    segmentation = node.GetSegmentation()
    segments = []  # bone, side or None, segment ID
    for segmentID in map(segmentation.GetNthSegmentID, range(segmentation.GetNumberOfSegments())):
        segment = segmentation.GetSegment(segmentID)
        words, codes = _words(segment.GetName()), re.findall(r"\d+", segment.GetTerminology() or "")
        bone = _said(BONE_OF_CODE, codes) or _said(BONE_OF_WORD, words)
        if bone in bones:
            itsSide = _said(SIDE_OF_CODE, codes) or _said(SIDE_OF_WORD, words)
            segments.append((bone, itsSide or _said(SIDE_OF_WORD, _words(node.GetName())), segmentID))
    found = {}
    for bone in bones:
        sided = [segment for segment in segments if segment[:2] == (bone, side)]
        fitting = sided or [segment for segment in segments if segment[:2] == (bone, None)]
        if len(fitting) > 1:
            text = _('"{name}" has {count} segments that may be the {bone}: name or code one of them only.')
            raise InputError(text.format(name=node.GetName(), count=len(fitting), bone=bone))
        if fitting:
            found[bone] = node, fitting[0][2]
    if not found and segments:
        raise _otherSide(node, side)
    if not found:
        text = _('No segment of "{name}" is coded or named as one of the bones {bones}: name the segments so.')
        raise InputError(text.format(name=node.GetName(), bones=", ".join(bones)))
    return found


def _otherSide(node, side):
    text = _('"{name}" is of the other side, but the reconstruction is of a {side} knee: select bones of that side.')
    return InputError(text.format(name=node.GetName(), side=side))


def _words(name):
    """The words of a name, which may be run together as in LeftFemur, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def _said(meanings, words):
    """What words or codes say; None where they say nothing, or several things."""
    said = {meanings[word] for word in words if word in meanings}
    return said.pop() if len(said) == 1 else None


def _columns(bones):
    """The table's columns."""

    def values(figure):
        return [round(outcome["metrics"][figure]["value"], 3) for outcome in bones.values()]

    columns = {
        _("Bone"): list(bones),
        _("DSC"): values("DSC"),
        _("ASSD (mm)"): values("ASSD"),
        _("HD (mm)"): values("HD"),
        _("HD95 (mm)"): values("HD95"),
        _("Mean signed (mm)"): values("mean signed, first to second"),
        _("PREDICTED volume (mL)"): values("first volume"),
        _("Reference volume (mL)"): values("second volume"),
    }
    aligned = all(outcome["alignment"] for outcome in bones.values())
    return columns | ({_("Alignment RMS (mm)"): values("alignment RMS")} if aligned else {})
