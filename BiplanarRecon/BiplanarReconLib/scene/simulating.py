"""X-rays of a CT, made by `bonerecon simulate-xrays` and added to the scene with their geometry."""

import functools
import json
from dataclasses import dataclass, replace

import slicer
from slicer.i18n import tr as _

from BiplanarReconLib.scene import xrays
from BiplanarReconLib.xrayrecords import record_of
from BoneReconstructionLib import scene
from BoneReconstructionLib.jobs import RESULT
from BoneReconstructionLib.radiographs import read_radiograph
from BoneReconstructionLib.xraygeometry import LATERAL_VIEWS
from BoneReconstructionLib.xraygeometryfiles import read_geometry


@dataclass
class SimulatedXrays:
    """The nodes of one simulation; `engine` is what has projected."""

    frontal: slicer.vtkMRMLScalarVolumeNode
    lateral: slicer.vtkMRMLScalarVolumeNode
    engine: str


def reasonNotToSimulate(ct):
    """Why X-rays of a volume cannot be simulated, as a sentence, or "" if they can."""
    if ct is None:
        return _("Select the CT.")
    if xrays.isXray(ct):
        return _('"{name}" is an X-ray: select a CT.').format(name=ct.GetName())
    return ""


def startSimulation(ct, preset, frontalView, lateralView, angleDeg, conditions, seed, onProgress=None, onFinished=None):
    """Start `bonerecon simulate-xrays` in a process of its own.

    Args:
        ct: scalar volume node, HU.
        preset, frontalView, lateralView, angleDeg, conditions, seed: as the command line takes them.
        onProgress, onFinished: see scenejob.SceneJob.

    Returns:
        The running SceneJob; after success its `results` are SimulatedXrays.

    Raises:
        InputError: the CT cannot be read out of the scene; nothing was started.
    """
    with scene.starting(functools.partial(importSimulation, ct), onProgress, onFinished) as job:
        options = {
            "--ct": scene.writeCT(job, ct),
            "--preset": preset,
            "--frontal": frontalView,
            "--lateral": lateralView,
            "--angle": angleDeg,
            "--conditions": conditions,
            "--seed": seed,
        }
        job.start("simulate-xrays", *(word for option in options.items() for word in option))
    return job


def importSimulation(ct, output):
    """Add the files of a finished `simulate-xrays` to the scene.

    Args:
        ct: volume node.
        output: folder.

    Returns:
        SimulatedXrays.
    """
    result = json.loads((output / RESULT).read_text(encoding="utf-8"))
    views = result["views"]
    stems = [("lateral" if view in LATERAL_VIEWS else view.lower()) for view in views]
    geometries = [read_geometry(output / f"{stem}.json") for stem in stems]
    with scene.importing(ct, _("Simulated X-rays of {ct}").format(ct=ct.GetName())):
        nodes = []
        for stem, view, geometry, other in zip(stems, views, geometries, geometries[::-1]):
            radiograph = read_radiograph(output / f"{stem}.nrrd")
            record = record_of(radiograph).from_geometry(geometry, _("the simulation"), other)
            # From where it was taken nobody needs to confirm: it was asked for.
            record = replace(record, view=view, steps=(_("simulated"), *record.steps))
            nodes.append(xrays.addXray(radiograph, _("{view} of {ct}").format(view=view, ct=ct.GetName()), record))
    xrays.nest(nodes)
    return SimulatedXrays(*nodes, result["engine"])
