"""Landmarks on the X-rays as a point list: to be placed one after the other on the images, and read for the search."""

import numpy as np
import slicer
import slicer.util
from slicer.i18n import tr as _

from BiplanarReconLib.fitting.landmarks import LANDMARKS
from BiplanarReconLib.scene import xrays
from BoneReconstructionLib import scene

# A point further than this from both images was not placed on one, mm.
ON_IMAGE_MM = 25.0


def words(name):
    """A landmark's name for users."""
    return {
        "tibial-eminence": _("tip of the tibial eminence"),
        "fibular-head": _("tip of the fibular head"),
        "patella": _("middle of the patella"),
    }[name]


def addLandmarks():
    """Add a point list with each landmark twice, for either X-ray, none of them placed yet; return its node."""
    title = scene.uniqueName(_("Knee landmarks"), "vtkMRMLMarkupsFiducialNode")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", title)
    node.CreateDefaultDisplayNodes()
    for name in LANDMARKS:
        for text in (_("{landmark}, frontal"), _("{landmark}, lateral")):
            number = node.AddControlPoint([0.0, 0.0, 0.0], text.format(landmark=words(name)))
            node.SetNthControlPointDescription(number, name)
            node.UnsetNthControlPointPosition(number)
    return node


def placeNext(node):
    """Let the next clicks in the views place the points of a list that are not placed yet."""
    slicer.modules.markups.logic().SetActiveList(node)
    node.SetControlPointPlacementStartIndex(0)
    slicer.modules.markups.logic().StartPlaceMode(True)


def placed(node, frontal, lateral):
    """Landmarks for `bonerecon reconstruct-knee`.

    Args:
        node: point list from `addLandmarks`, or None.
        frontal, lateral: X-rays with a geometry.

    Returns:
        list of (number of the X-ray: 0 frontal, 1 lateral, name, column, row).
    """
    found = []
    for number in range(node.GetNumberOfControlPoints() if node is not None else 0):
        if node.GetNthControlPointPositionStatus(number) != node.PositionDefined:
            continue
        place = np.array(node.GetNthControlPointPositionWorld(number))
        geometries = [xrays.recordOf(one).geometry for one in (frontal, lateral)]
        away = [abs((place - one.detector_centre) @ one.normal) for one in geometries]
        view = int(np.argmin(away))
        if away[view] <= ON_IMAGE_MM:
            column, row = geometries[view].project(place[None])[0]
            found.append((view, node.GetNthControlPointDescription(number), float(column), float(row)))
    return found


def reasonNotToStart(node, frontal, lateral):
    """Why landmarks cannot start the search, as a sentence, or "" if they can or there are none."""
    found = placed(node, frontal, lateral)
    if node is None:
        return ""
    if any(name not in LANDMARKS for _view, name, *_pixel in found):
        return _("A landmark has no name: make the point list by the button beside it.")
    if len({(view, name) for view, name, *_pixel in found}) < len(found):
        return _("A landmark is placed twice on one X-ray: remove one.")
    if {view for view, *_rest in found} != {0, 1}:
        return _("Place at least one landmark on each X-ray, or select no landmarks.")
    return ""
