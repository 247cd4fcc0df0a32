"""Tibia, side and mask before a prediction: what they are, whether they fit, and proposals for them."""

import functools
import itertools
import json
from dataclasses import dataclass

import numpy as np
import slicer
from slicer.i18n import tr as _

from BoneReconstructionLib import scene
from BoneReconstructionLib.frames import SIDES
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.volumes import Volume, read_mask, read_volume
from TibiaCompletionLib.sidedness import named_side

MASK_COLOR, FOUND_COLOR = (0.90, 0.35, 0.20), (0.95, 0.75, 0.25)
FOUND_ATTRIBUTE = "BoneReconstruction.Found"
BOX_MARGIN_MM = 10.0  # by which a new box reaches past the tibia across


@dataclass
class FoundTibiae:
    """Nodes of one search: a segment for each tibia, right before left; `record` keeps figures and versions (JSON)."""

    segmentation: slicer.vtkMRMLSegmentationNode
    record: slicer.vtkMRMLTextNode


@dataclass
class SuggestedMask:
    """A proposal of the fracture mask, to be corrected in the Segment Editor."""

    segmentation: slicer.vtkMRMLSegmentationNode
    segmentID: str


def givenSide(tibia, side="auto"):
    """The side to hold the shape against: the chosen one, else what the tibia's terms and name say.

    Args:
        tibia: (segmentation or labelmap node, segment ID).
        side: "left", "right" or "auto".

    Returns:
        "left", "right", or "auto" where nothing says it or terms and name disagree.
    """
    if side != "auto":
        return side
    (node, segmentID), said = tibia, set()
    name = node.GetName()
    if node.IsA("vtkMRMLSegmentationNode") and scene.hasSegment(node, segmentID):
        segment = node.GetSegmentation().GetSegment(segmentID)
        name, terms = segment.GetName(), segment.GetTerminology().split("~")
        said = {word for word in SIDES if scene.SIDE_CODES[word] in terms}
    said |= {named_side(f":{name}")} - {None}
    return said.pop() if len(said) == 1 else "auto"


def detectedSide(tibia, recordNode=None):
    """The side of a tibia, without its user's choice.

    Args:
        tibia: (segmentation or labelmap node or None, segment ID).
        recordNode: of the last prediction, which knows the side by the shape if it is of this tibia; or None.

    Returns:
        ("left" or "right", "name" or "shape": from what it was told), or None.
    """
    node, segmentID = tibia
    if node is None:
        return None
    if recordNode is not None:
        record = json.loads(recordNode.GetText())
        predicted = recordNode.GetNodeReference(scene.inputRole("tibia"))
        if predicted is node and record["inputs"]["tibia"].get("segment_id", "") == segmentID:
            return record["side"], "shape"
    side = givenSide(tibia)
    return None if side == "auto" else (side, "name")


def startFinding(ct, side="auto", onProgress=None, onFinished=None):
    """Start `bonerecon find-tibia` in a process of its own.

    Args:
        ct: scalar volume node, HU.
        side: "left", "right" or "auto" for every tibia that is there.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are FoundTibiae.

    Raises:
        InputError: the CT cannot be read out of the scene; nothing was started.
    """
    with scene.starting(functools.partial(importFound, ct), onProgress, onFinished) as job:
        job.start("find-tibia", "--side", side, "--ct", scene.writeCT(job, ct))
    return job


def startSuggesting(ct, tibia, onProgress=None, onFinished=None):
    """Start `bonerecon suggest-mask` in a process of its own.

    Args:
        ct: scalar volume node, HU.
        tibia: (segmentation or labelmap node, segment ID).
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are SuggestedMask.

    Raises:
        InputError: CT or tibia cannot be read out of the scene; nothing was started.
    """
    with scene.starting(functools.partial(importMask, ct), onProgress, onFinished) as job:
        job.start(
            "suggest-mask", "--ct", scene.writeCT(job, ct), "--tibia", scene.writeBone(job.folder / "tibia", *tibia)
        )
    return job


def importMask(ct, output):
    """Add the files of a finished `suggest-mask` to the scene.

    Args:
        ct: volume node.
        output: folder.

    Returns:
        SuggestedMask.
    """
    mask = read_mask(output / "fracture.nii.gz")
    name = _("Fracture mask (suggested)")
    with scene.importing(ct, name):
        segmentation = scene.addSegmentation(name, ct)
        segmentID = scene.addSegment(segmentation, mask, name, MASK_COLOR, "tibia")
        segmentation.GetDisplayNode().SetVisibility3D(False)
        segmentation.GetDisplayNode().SetVisibility2DFill(False)
    return SuggestedMask(segmentation, segmentID)


def reasonNotToComplete(ct, tibia, fracture, context=None):
    """Why the completion cannot run, as a sentence, or "" if it can; looks at no voxels and no points."""
    if ct is None:
        return _("Select the CT.")
    missing = {
        "tibia": _("Select the fractured tibia."),
        "fracture": _('Select the fracture mask, or press "Edit mask".'),
    }
    names = {
        "tibia": _("tibia"),
        "fracture": _("fracture mask"),
        "fibula": _("fibula"),
        "femur": _("femur"),
        "talus": _("talus"),
        "other_tibia": _("other leg's tibia"),
    }
    bones = {"tibia": tibia, "fracture": fracture} | (context or {})
    for name, (node, segmentID) in bones.items():
        if node is None:
            return missing[name]
        if node.IsA("vtkMRMLSegmentationNode") and not scene.hasSegment(node, segmentID):
            return _('"{name}" has no segment: add one or select another.').format(name=node.GetName())
        if node is ct:
            return _("The CT is also selected as {bone}: select another CT.").format(bone=names[name])
    for name, (node, _segmentID) in bones.items():
        if scene.ofDifferentPatients(ct, node):
            return _("The {bone} and the CT are of different patients: select them of one.").format(bone=names[name])
    for (first, (node, segmentID)), (second, (other, otherID)) in itertools.combinations(bones.items(), 2):
        if node is other and (segmentID == otherID or not node.IsA("vtkMRMLSegmentationNode")):
            return _("The {second} is the {first} itself: select another one.").format(
                first=names[first], second=names[second]
            )
    return ""


def prepareMask(ct, fracture, segmentID):
    """Find the mask's segment, or make an empty one; the tibia's own segmentation is left alone.

    Returns:
        (segmentation node, segment ID).
    """
    if fracture is None or not fracture.IsA("vtkMRMLSegmentationNode"):
        fracture = scene.addSegmentation(_("Fracture mask"), ct)
    if not scene.hasSegment(fracture, segmentID):
        segmentID = scene.addEmptySegment(fracture, _("Fracture mask"), MASK_COLOR)
    return fracture, segmentID


def addBoxMask(tibia):
    """Add a ROI over the middle third of a tibia's longest extent, RAS mm, for the user to drag.

    Args:
        tibia: (segmentation or labelmap node, segment ID).

    Returns:
        The vtkMRMLMarkupsROINode.

    Raises:
        InputError: the tibia is empty.
    """
    lower, upper = scene.boundsOf(*tibia)
    margin = np.full(3, BOX_MARGIN_MM)
    longest = np.argmax(upper - lower)
    margin[longest] = -(upper - lower)[longest] / 3
    return scene.addRoi(lower - margin, upper + margin, _("Fracture mask (box)"), MASK_COLOR)


def importFound(ct, output):
    """Add the files of a finished `find-tibia` to the scene.

    Args:
        ct: volume node.
        output: folder.

    Returns:
        FoundTibiae.
    """
    record = json.loads((output / RESULT).read_text(encoding="utf-8"))
    labels = read_volume(output / "tibiae.nii.gz")
    names = {"right": _("Right tibia"), "left": _("Left tibia")}
    with scene.importing(ct, _("Tibia (found)")):
        segmentation = scene.addSegmentation(_("Tibia (found)"), ct)
        segmentation.SetAttribute(FOUND_ATTRIBUTE, "1")
        for found in record["found"]:
            mask = Volume(labels.array == found["label"], labels.ijk_to_ras)
            scene.addSegment(segmentation, mask, names[found["side"]], FOUND_COLOR, "tibia", found["side"])
        segmentation.CreateClosedSurfaceRepresentation()
        recordNode = scene.recordFromJson(output / RESULT, _("Tibia (found) record"), {"ct": (ct, "")})
        segmentation.SetNodeReferenceID("BoneReconstruction.Record", recordNode.GetID())
    return FoundTibiae(segmentation, recordNode)
