"""Virtual patients of the module Sample Data, made by `bonerecon make-sample`."""

import functools
from dataclasses import dataclass

from slicer.i18n import tr as _

from BoneReconstructionLib import scene
from BoneReconstructionLib.surfacefiles import read_surface
from BoneReconstructionLib.volumes import read_mask, read_volume
from TibiaCompletionLib.scene.inputs import MASK_COLOR

MEASURED_COLOR, TRUTH_COLOR = (0.90, 0.82, 0.60), (0.60, 0.80, 0.50)
BONE_WINDOW = 1800, 500  # HU, width and centre


@dataclass(frozen=True)
class SamplePatient:
    """A virtual patient of the module Sample Data, as `bonerecon make-sample` makes it; with or without other leg."""

    kind: str
    side: str
    seed: int
    otherLeg: bool


SAMPLES = {
    "TibiaPlateauFracture": SamplePatient("plateau-split", "left", 1, False),
    "TibiaShaftFracture": SamplePatient("spiral", "right", 2, True),
}


def makeSample(name, timeoutS=600.0):
    """Make the virtual patient of a sample, a key of SAMPLES, and wait for it.

    Returns:
        [CT, segmentation with tibia and mask, model of the healthy truth] and, where the sample has it, the model of
        the other leg's tibia; models are hidden.

    Raises:
        RuntimeError: the job failed, as without PyTorch, or took longer than timeoutS seconds.
    """
    sample = SAMPLES[name]
    job = scene.makeJob(functools.partial(_importSample, name, sample))
    job.start("make-sample", "--kind", sample.kind, "--side", sample.side, "--seed", sample.seed)
    return job.finish(timeoutS)


def _importSample(name, sample, output):
    with scene.importing(None, name) as folder:
        scene.makePatient(folder)
        ct = scene.volumeToNode(read_volume(output / "ct.nii.gz"), f"{name} CT")
        ct.CreateDefaultDisplayNodes()
        ct.GetDisplayNode().SetAutoWindowLevel(False)
        ct.GetDisplayNode().SetWindowLevel(*BONE_WINDOW)
        segmentation = scene.addSegmentation(name, ct)
        for file, title, color, side in (
            ("tibia", _("Tibia"), MEASURED_COLOR, sample.side),
            ("fracture", _("Fracture mask"), MASK_COLOR, None),
        ):
            segment = scene.addSegment(segmentation, read_mask(output / f"{file}.nii.gz"), title, color, "tibia", side)
        segmentation.CreateClosedSurfaceRepresentation()
        segmentation.GetDisplayNode().SetSegmentVisibility3D(segment, False)
        truth = scene.surfaceToModel(read_surface(output / "truth.ply"), f"{name} true healthy tibia", TRUTH_COLOR)
        models = [truth]
        if sample.otherLeg:
            other = read_surface(output / "other_tibia.ply")
            models.append(scene.surfaceToModel(other, f"{name} other leg's tibia", MEASURED_COLOR))
        for model in models:
            scene.setModelVisible(model, False)
    return [ct, segmentation, *models]
