"""The demo, which is the README's tutorials, in the test host: two broken tibiae completed, a knee from two X-rays.

Run by `python3 Testing/run.py demo`. Leaves in its output folder pictures of the panels and views, the exported
predictions with their reports, the comparison with the truth, and a scene that it has loaded again.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from host import application, qtcompat, views  # the host comes before everything of Slicer
from pictures import nine_fractures, random_knees, random_legs, side_by_side

JOB_PATIENCE_S = 300
SHOWN_MEASUREMENT = "Medial proximal tibial angle (MPTA)"
MOVED_MM, DRAG_STEPS = (12.0, 0.0, -10.0), 8  # by which the demo drags a fragment, RAS


def say(text):
    """Print a line with the seconds since the start."""
    print(f"{time.perf_counter() - BEGAN:6.1f} s  {text}", flush=True)


def press_and_wait(panel, button="applyButton"):
    """Press a button that starts a job and let the panel follow it to the end."""
    getattr(panel.ui, button).click()
    deadline = time.monotonic() + JOB_PATIENCE_S
    while panel.job is not None:
        if time.monotonic() > deadline:
            raise TimeoutError("The job took too long.")
        application.process(0.1)
    if panel.ui.statusLabel.text != "Done.":
        raise RuntimeError(panel.ui.statusLabel.text)


def complete(name):
    """Load a sample and complete its tibia, as a user does.

    Args:
        name: of the sample.

    Returns:
        (panel, the sample's nodes by name without the sample's).
    """
    import SampleData

    nodes = {node.GetName().removeprefix(name).strip(): node for node in SampleData.downloadSamples(name)}
    if not nodes:
        raise RuntimeError(application.messages[-1][1])
    say(f"{name} made")
    panel = application.openModule("TibiaCompletion")
    segmentation = nodes[""]
    tibia, mask = segmentation.GetSegmentation().GetSegmentIDs()
    panel.ui.ctSelector.setCurrentNode(nodes["CT"])
    for node_selector, segment_selector, segment in (
        (panel.ui.tibiaSelector, panel.ui.tibiaSegmentSelector, tibia),
        (panel.ui.fractureSelector, panel.ui.fractureSegmentSelector, mask),
    ):
        node_selector.setCurrentNode(segmentation)
        segment_selector.setCurrentSegmentID(segment)
    panel.ui.otherTibiaSelector.setCurrentNode(nodes.get("other leg's tibia"))
    panel.ui.confirmSideButton.click()
    press_and_wait(panel)
    say(f"{name} completed")
    return panel, nodes


def clear():
    """Close panels, views and scene, unless something went wrong in them."""
    if application.slotErrors:
        raise RuntimeError("\n".join(application.slotErrors))
    application.clear()


def choose(selector, text):
    """Choose an entry of a combo box by its text."""
    selector.currentIndex = [selector.itemText(index) for index in range(selector.count)].index(text)


def plan(folder, panel):
    """Bring the fragments to the PREDICTED bone, drag one and take that back, as a user does."""
    import slicer

    from BoneReconstructionLib import scene
    from TibiaCompletionLib.scene import fragments, predictions

    press_and_wait(panel, "reduceButton")
    panel.ui.fragmentsCollapsibleButton.collapsed = False
    panel.ui.fragmentSelector.currentIndex = panel.ui.fragmentSelector.count - 1
    picture(folder / "planned.png", panel.ui.slicesButton, (0,))
    views.grab(panel.parent, folder / "panel.png")
    reduced = fragments.newestFor(predictions.fromRecord(panel.logic.getParameterNode().resultRecord))
    say(f"{len(reduced.models)} fragments brought to the PREDICTED bone")
    matrix, waits = slicer.util.arrayFromTransformMatrix(reduced.transforms[-1]), []
    for _step in range(DRAG_STEPS):
        matrix[:3, 3] += np.array(MOVED_MM) / DRAG_STEPS
        told, began = scene.tableRows(reduced.table), time.perf_counter()
        slicer.util.updateTransformMatrixFromArray(reduced.transforms[-1], matrix)
        while scene.tableRows(reduced.table) == told:
            application.process(0.001)
        waits.append(time.perf_counter() - began)
    say(f"figures followed a dragged fragment after {1000 * min(waits):.0f} to {1000 * max(waits):.0f} ms")
    picture(folder / "dragged.png", panel.ui.slicesButton, (0,))
    panel.ui.undoButton.click()
    side_by_side([folder / "planned.png", folder / "dragged.png"], folder / "TutorialFragments.png")


def export(folder, panel):
    """Export a prediction through the panel."""
    qtcompat.fileDialogAnswers.append(str(folder))
    panel.ui.outputButton.click()
    say(panel.ui.outputLabel.text)


def picture(path, button, shown):
    """Press a layout's button and put its views, named slices or numbered 3D views, side by side."""
    import slicer

    from BoneReconstructionLib import scene

    button.click()
    manager = slicer.app.layoutManager()
    paths = []
    for which in shown:
        isSlice = isinstance(which, str)
        view = manager.sliceWidget(which).sliceView() if isSlice else manager.threeDWidget(which).threeDView()
        paths.append(path.with_name(f"{path.stem}-{which}.png"))
        paths[-1].write_bytes(scene.viewPicture(view))
    side_by_side(paths, path)
    for part in paths:
        part.unlink()


def compare(folder, panel, truth):
    """The comparison's main job: prediction against truth."""
    import slicer

    from BoneReconstructionLib import scene

    predicted = panel.logic.getParameterNode().resultModel
    panel = application.openModule("BoneReconstruction")
    panel.ui.firstSelector.setCurrentNode(predicted)
    panel.ui.secondSelector.setCurrentNode(truth)
    press_and_wait(panel)
    say("prediction compared with the truth")
    views.grab(panel.parent, folder / "comparison-panel.png")
    for model in slicer.util.getNodesByClass("vtkMRMLModelNode"):
        if model.GetDisplayNode():
            model.GetDisplayNode().SetVisibility(model is panel.logic.getParameterNode().firstResult)
    for segmentation in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        segmentation.GetDisplayNode().SetVisibility(False)
    views.threeDView(folder / "comparison-3d.png", "anterior", (500, 700))
    scene.tableToCsv(panel.logic.getParameterNode().resultTable, folder / "comparison.csv")


def knee_from_xrays(folder):
    """The biplanar module's main job: a virtual knee out of its two X-rays."""
    import SampleData

    from BoneReconstructionLib import scene

    application.loadModule("BiplanarRecon")
    nodes = SampleData.downloadSamples("KneeBiplanarXrays")
    if not nodes:
        raise RuntimeError(application.messages[-1][1])
    say("KneeBiplanarXrays made")
    panel = application.openModule("BiplanarRecon")
    application.openViews()
    parameters = panel.logic.getParameterNode()
    parameters.frontal, parameters.lateral = nodes[:2]
    choose(panel.ui.sideSelector, "Right knee")
    press_and_wait(panel)
    say("knee reconstructed from two X-rays")
    picture(folder / "KneeXrays.png", panel.ui.bothButton, ("Red", "Green", 0))
    views.grab(panel.parent, folder / "biplanar-panel.png")
    scene.tableToCsv(parameters.resultTable, folder / "knee.csv")
    for row in scene.tableRows(parameters.resultTable):
        say(", ".join(map(str, row)))
    clear()


def save_and_reload(path):
    """Save the scene, load it into an empty one and check that the results are there."""
    import slicer

    names = [
        node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLDisplayableNode") if node.GetSaveWithScene()
    ]
    if not slicer.util.saveScene(str(path)):
        raise RuntimeError("The scene was not saved.")
    clear()
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
    application.start()
    application.loadModule("TibiaCompletion")
    application.openViews()
    panel, _nodes = complete("TibiaShaftFracture")
    panel.ui.heatmapCheckBox.checked = False
    choose(panel.ui.shownMeasurementSelector, SHOWN_MEASUREMENT)
    picture(folder / "TutorialBeforeAfter.png", panel.ui.beforeAfterButton, (0, 1))
    panel.ui.shownMeasurementSelector.currentIndex = 0
    plan(folder, panel)
    export(folder, panel)
    panel, nodes = complete("TibiaPlateauFracture")
    picture(folder / "TutorialSlices.png", panel.ui.slicesButton, ("Red", "Yellow", "Green"))
    panel.ui.deviationCheckBox.checked = True
    picture(folder / "confidence.png", panel.ui.slicesButton, (0,))
    export(folder, panel)
    compare(folder, panel, nodes["true healthy tibia"])
    save_and_reload(folder / "scene.mrb")
    clear()
    knee_from_xrays(folder)
    random_legs(folder / "RandomLegs.png")
    random_knees(folder / "RandomKnees.png")
    nine_fractures(folder / "Fractures.png")
    say("random legs, knees and fractures pictured")
    print((folder / "comparison.csv").read_text(encoding="utf-8"))
    print(f"Pictures, exports, tables and scene: {folder}")


if __name__ == "__main__":
    BEGAN = time.perf_counter()
    main()
