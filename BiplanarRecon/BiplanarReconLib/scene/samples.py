"""Virtual knees of the module Sample Data: CT, true bones and two X-rays, made by the command line."""

import functools
from dataclasses import dataclass

from slicer.i18n import tr as _

from BiplanarReconLib.scene import simulating
from BiplanarReconLib.scene.reconstructions import COLORS
from BoneReconstructionLib import scene
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.volumes import read_volume

BONE_WINDOW = 1800, 500  # HU, width and centre


@dataclass(frozen=True)
class SampleKnee:
    """A virtual knee, as `bonerecon make-knee` and `bonerecon simulate-xrays` make it."""

    side: str
    seed: int
    preset: str
    lateral: str
    angle_deg: float


SAMPLES = {
    "KneeBiplanarXrays": SampleKnee("right", 1, "ssr-kd", "right lateral", 90.0),
    "KneeBiplanarXrays60": SampleKnee("left", 2, "c-arm", "left lateral", 60.0),
}


def makeSample(name, timeoutS=600.0):
    """Make the virtual knee of a sample, a key of SAMPLES, with its X-rays, and wait for it.

    Returns:
        [frontal X-ray, lateral X-ray, CT, hidden models of the true bones].

    Raises:
        RuntimeError: a job failed, as without PyTorch, or took longer than timeoutS seconds.
    """
    sample = SAMPLES[name]
    job = scene.makeJob(functools.partial(_importKnee, name))
    job.start("make-knee", "--side", sample.side, "--seed", sample.seed)
    ct, *bones = job.finish(timeoutS)
    made = simulating.startSimulation(
        ct, sample.preset, "AP", sample.lateral, sample.angle_deg, "drawn", sample.seed
    ).finish(timeoutS)
    return [made.frontal, made.lateral, ct, *bones]


def _importKnee(name, output):
    with scene.importing(None, name) as folder:
        scene.makePatient(folder)
        ct = scene.volumeToNode(read_volume(output / "ct.nii.gz"), f"{name} CT")
        ct.CreateDefaultDisplayNodes()
        ct.GetDisplayNode().SetAutoWindowLevel(False)
        ct.GetDisplayNode().SetWindowLevel(*BONE_WINDOW)
        nodes = [ct]
        for bone, color in COLORS.items():
            title = _("{name} true {bone}").format(name=name, bone=bone)
            model = scene.surfaceToModel(read_surface(output / f"{bone}.ply"), title, color)
            scene.setModelVisible(model, False)
            nodes.append(model)
    return nodes
