"""The demo: a virtual patient's fractured tibia completed and compared with the truth, in the test host.

Run by `python3 Testing/run.py demo`. Leaves in its output folder the patient's files, the prediction, tables, pictures
of both panels and of slice and 3D views, and a scene that it has loaded again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from host import application, views  # the host comes before everything of Slicer

JOB_PATIENCE_S = 300
BONE_COLOR, MASK_COLOR, TRUTH_COLOR = (0.9, 0.82, 0.6), (0.9, 0.35, 0.2), (0.6, 0.8, 0.5)


def say(text):
    """Print a line with the seconds since the start."""
    print(f"{time.perf_counter() - BEGAN:6.1f} s  {text}", flush=True)


def apply_and_wait(panel):
    """Press Apply and let the panel follow its job to the end."""
    panel.ui.applyButton.click()
    deadline = time.monotonic() + JOB_PATIENCE_S
    while panel.job is not None:
        if time.monotonic() > deadline:
            raise TimeoutError("The job took too long.")
        application.process(0.1)
    if panel.ui.statusLabel.text != "Done.":
        raise RuntimeError(panel.ui.statusLabel.text)


def complete(folder, patient):
    """TibiaCompletion's main job, as a user does it; returns the panel."""
    import slicer

    from BoneReconstructionLib import scene
    from BoneReconstructionLib.volumes import read_mask, read_volume

    panel = application.openModule("TibiaCompletion")
    ct = scene.volumeToNode(read_volume(patient / "ct.nii.gz"), "CT of a virtual patient")
    ct.GetDisplayNode().SetAutoWindowLevel(False)
    ct.GetDisplayNode().SetWindowLevel(1800, 500)
    segmentation = scene.addSegmentation("Patient", ct)
    tibia = read_mask(patient / "tibia.nii.gz")
    tibia_id = scene.addSegment(segmentation, tibia, "Tibia", BONE_COLOR, "tibia", "left")
    fracture = read_mask(patient / "fracture.nii.gz")
    mask_id = scene.addSegment(segmentation, fracture, "Fracture mask", MASK_COLOR, "tibia")
    segmentation.CreateClosedSurfaceRepresentation()
    segmentation.GetDisplayNode().SetSegmentOpacity3D(mask_id, 0.3)
    segmentation.GetDisplayNode().SetSegmentOpacity2DFill(tibia_id, 0.2)
    segmentation.GetDisplayNode().SetSegmentOpacity2DFill(mask_id, 0.25)
    views.threeDView(folder / "patient-3d.png", "anterior", (500, 700))

    panel.ui.ctSelector.setCurrentNode(ct)
    for node_selector, segment_selector, segment in (
        (panel.ui.tibiaSelector, panel.ui.tibiaSegmentSelector, tibia_id),
        (panel.ui.fractureSelector, panel.ui.fractureSegmentSelector, mask_id),
    ):
        node_selector.setCurrentNode(segmentation)
        segment_selector.setCurrentSegmentID(segment)
    views.grab(panel.parent, folder / "completion-panel-before.png")
    apply_and_wait(panel)
    say("tibia completed")
    views.grab(panel.parent, folder / "completion-panel-after.png")
    slicer.util.saveNode(panel.logic.getParameterNode().resultModel, str(folder / "predicted-tibia.stl"))

    segmentation.GetDisplayNode().SetSegmentVisibility3D(mask_id, False)
    views.threeDView(folder / "completion-3d.png", "anterior", (500, 700))
    views.threeDView(folder / "completion-3d-lateral.png", "left", (500, 700))
    centre = fracture_centre(fracture)
    for orientation, width, size in (("Axial", 110.0, (500, 500)), ("Sagittal", 140.0, (500, 700)),
                                     ("Coronal", 140.0, (500, 700))):
        views.sliceView(folder / f"completion-{orientation.lower()}.png", orientation, ct, centre=centre,
                        fieldOfView=width, size=size)
    return panel


def fracture_centre(mask):
    """RAS of the middle of a mask, mm."""
    import numpy as np

    from BoneReconstructionLib.frames import transform_points
    from BoneReconstructionLib.volumes import bounding_box

    lower, upper = bounding_box(mask.array)
    return transform_points(mask.ijk_to_ras, ((lower + upper - 1) / 2)[None, ::-1].astype(np.float64))[0]


def compare(folder, patient, predicted):
    """The comparison's main job: prediction against truth."""
    import slicer

    from BoneReconstructionLib import scene
    from BoneReconstructionLib.surfacefiles import read_surface

    truth = scene.surfaceToModel(read_surface(patient / "truth.ply"), "True healthy tibia", TRUTH_COLOR)
    panel = application.openModule("BoneReconstruction")
    panel.ui.firstSelector.setCurrentNode(predicted)
    panel.ui.secondSelector.setCurrentNode(truth)
    apply_and_wait(panel)
    say("prediction compared with the truth")
    views.grab(panel.parent, folder / "comparison-panel.png")
    for model in slicer.util.getNodesByClass("vtkMRMLModelNode"):
        if model.GetDisplayNode():
            model.GetDisplayNode().SetVisibility(model is panel.logic.getParameterNode().firstResult)
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        segmentation.GetDisplayNode().SetVisibility(False)
    views.threeDView(folder / "comparison-3d.png", "anterior", (500, 700))
    scene.tableToCsv(panel.logic.getParameterNode().resultTable, folder / "comparison.csv")


def save_and_reload(path):
    """Save the scene, load it into an empty one and check that the results are there."""
    import slicer

    names = sorted(node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode"))
    if not slicer.util.saveScene(str(path)):
        raise RuntimeError("The scene was not saved.")
    application.clear()
    slicer.util.loadScene(str(path))
    loaded = sorted(node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode"))
    missing = set(names) - set(loaded)
    if missing:
        raise RuntimeError(f"The loaded scene lacks {', '.join(sorted(missing))}.")
    panel = application.openModule("TibiaCompletion")
    record = json.loads(panel.logic.getParameterNode().resultRecord.GetText())
    say(f"scene saved and loaded again: {len(loaded)} displayable nodes, predicted side {record['side']}")


def main():
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FOLDER", required=True)
    folder = Path(parser.parse_args().output).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    patient = folder / "patient"
    subprocess.run([sys.executable, "-m", "BoneReconstructionLib", "make-sample", "--seed", "1", "--side", "left",
                    "--output", str(patient)], check=True, stdout=subprocess.DEVNULL)
    say("virtual patient made")
    application.start()
    panel = complete(folder, patient)
    node = panel.logic.getParameterNode()
    (folder / "completion.json").write_text(node.resultRecord.GetText(), encoding="utf-8")
    compare(folder, patient, node.resultModel)
    save_and_reload(folder / "scene.mrb")
    application.clear()

    from pictures import nine_fractures, random_legs, side_by_side

    shown = ("patient-3d", "completion-3d", "completion-coronal")
    side_by_side([folder / f"{name}.png" for name in shown], folder / "DemoCompletion.png")
    random_legs(folder / "RandomLegs.png")
    nine_fractures(folder / "Fractures.png")
    say("random legs and fractures pictured")
    if application.slotErrors:
        raise RuntimeError("\n".join(application.slotErrors))
    print((folder / "comparison.csv").read_text(encoding="utf-8"))
    print(f"Pictures, meshes, tables and scene: {folder}")


if __name__ == "__main__":
    BEGAN = time.perf_counter()
    main()
