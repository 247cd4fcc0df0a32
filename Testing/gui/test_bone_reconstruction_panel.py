"""The comparison panel in the test host: what it asks for, what it shows, and what it leaves behind."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paneljobs import finish, replaceWorker

ROOT = Path(__file__).resolve().parents[2]
SHIFT = (1.5, 0.4, -0.3)
CONTROLS = ("QPushButton", "QCheckBox", "QComboBox", "ctkSliderWidget", "qMRMLNodeComboBox", "qMRMLTableView",
            "qMRMLSegmentSelectorWidget", "QProgressBar")


@pytest.fixture
def panel(application):
    return application.openModule("BoneReconstruction")


@pytest.fixture
def slicer(application):
    import slicer
    return slicer


@pytest.fixture
def bones(panel):
    """Two models of one bone, the second moved by SHIFT mm."""
    import BoneReconstruction
    make = BoneReconstruction.BoneReconstructionTest.makeModel
    return make("Tibia now"), make("Tibia then", SHIFT)


@pytest.fixture
def chosen(panel, bones):
    panel.ui.firstSelector.setCurrentNode(bones[0])
    panel.ui.secondSelector.setCurrentNode(bones[1])
    return panel


def content(slicer):
    """What a user finds in the scene: nodes (without the panel's settings) and hierarchy items."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]
    hierarchy = scene.GetSubjectHierarchyNode()
    return sorted(nodes), hierarchy.GetNumberOfItems()


def test_every_control_tells_what_it_does(panel):
    for name, widget in vars(panel.ui).items():
        if widget.className() in CONTROLS and not name.startswith("qt_"):
            assert widget.toolTip, f"{name} has no tool tip"


def test_apply_waits_until_two_different_bones_are_chosen_and_says_so(panel, bones):
    assert not panel.ui.applyButton.enabled and panel.ui.statusLabel.text == "Select the first bone."
    panel.ui.firstSelector.setCurrentNode(bones[0])
    assert panel.ui.statusLabel.text == "Select the second bone."
    panel.ui.secondSelector.setCurrentNode(bones[0])
    assert "same" in panel.ui.statusLabel.text and not panel.ui.applyButton.enabled
    panel.ui.secondSelector.setCurrentNode(bones[1])
    assert panel.ui.statusLabel.text == "" and panel.ui.applyButton.enabled


def test_a_segmentation_asks_for_its_segment(panel, bones, slicer):
    from BoneReconstructionLib import scene
    assert not panel.ui.firstSegmentSelector.visible
    segmentation = scene.addSegmentation("Patient")
    panel.ui.firstSelector.setCurrentNode(segmentation)
    assert panel.ui.firstSegmentSelector.visible
    assert "no segment" in panel.ui.statusLabel.text
    tibia, fibula = (scene.addEmptySegment(segmentation, name, (1, 1, 0)) for name in ("Tibia", "Fibula"))
    assert panel._parameterNode.firstSegmentID == tibia
    panel.ui.firstSegmentSelector.setCurrentSegmentID(fibula)
    assert panel._parameterNode.firstSegmentID == fibula
    panel.ui.secondSelector.setCurrentNode(segmentation)
    panel.ui.secondSegmentSelector.setCurrentSegmentID(fibula)
    assert "same" in panel.ui.statusLabel.text
    panel.ui.secondSegmentSelector.setCurrentSegmentID(tibia)
    assert panel.ui.applyButton.enabled


def test_settings_are_saved_with_the_scene(application, chosen, slicer, tmp_path):
    from BoneReconstructionLib import scene
    segmentation = scene.addSegmentation("Patient")
    scene.addEmptySegment(segmentation, "Tibia", (1, 1, 0))
    fibula = scene.addEmptySegment(segmentation, "Fibula", (1, 1, 0))
    chosen.ui.secondSelector.setCurrentNode(segmentation)
    chosen.ui.secondSegmentSelector.setCurrentSegmentID(fibula)
    chosen.ui.alignmentSelector.currentIndex = 1
    chosen.ui.rangeSlider.value = 3.5
    path = str(tmp_path / "plan é.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    panel = application.openModule("BoneReconstruction")
    assert panel.ui.firstSelector.currentNode().GetName() == "Tibia now"
    assert panel.ui.secondSegmentSelector.currentSegmentID() == fibula
    assert panel.ui.alignmentSelector.currentText == "Rigid, never scaled"
    assert panel.ui.rangeSlider.value == 3.5


def test_the_region_counts_only_for_a_rigid_alignment(panel):
    assert not panel.ui.regionSelector.enabled
    panel.ui.alignmentSelector.currentIndex = 1
    assert panel.ui.regionSelector.enabled


@pytest.fixture
def compared(application, chosen):
    chosen.ui.applyButton.click()
    assert chosen.ui.applyButton.text == "Cancel" and chosen.ui.applyButton.enabled
    assert chosen.ui.progressBar.visible
    finish(application, chosen)
    assert chosen.ui.statusLabel.text == "Done."
    return chosen


def test_a_comparison_shows_signed_distances_with_unit_and_words(compared, slicer):
    model = compared._parameterNode.firstResult
    distances = slicer.util.arrayFromModelPointData(model, model.GetDisplayNode().GetActiveScalarName())
    size = np.linalg.norm(SHIFT)
    assert distances.max() == pytest.approx(size, abs=0.1) and distances.min() == pytest.approx(-size, abs=0.1)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model)
    assert "mm" in legend.GetTitleText() and "+ outside" in legend.GetTitleText()
    assert "first bone lies outside the second" in compared.ui.signLabel.text
    assert compared.ui.tableView.mrmlTableNode() is compared._parameterNode.resultTable
    assert compared.ui.applyButton.text == "Apply" and not compared.ui.progressBar.visible


def test_the_panel_and_the_command_line_give_the_same_figures(compared, bones, slicer, tmp_path):
    from BoneReconstructionLib import cli, scene
    from BoneReconstructionLib.surfacefiles import write_surface
    for name, bone in zip(("a.vtp", "b.vtp"), bones):
        write_surface(tmp_path / name, scene.surfaceFromModel(bone))
    assert cli.main(["compare", str(tmp_path / "a.vtp"), str(tmp_path / "b.vtp"),
                     "--output", str(tmp_path / "out")]) == 0
    scene.tableToCsv(compared._parameterNode.resultTable, tmp_path / "panel.csv")
    panelRows, lineRows = (list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
                           for path in (tmp_path / "panel.csv", tmp_path / "out" / "distances.csv"))
    assert panelRows[0] == lineRows[0] and len(panelRows) == len(lineRows) > 1
    for ours, theirs in zip(panelRows[1:], lineRows[1:]):
        for mine, other in zip(ours, theirs):
            assert mine == other or float(mine) == pytest.approx(float(other), nan_ok=True)


def test_a_rigid_alignment_on_a_region_brings_the_bones_together_and_is_recorded(application, chosen, slicer):
    from BoneReconstructionLib.comparison import SIGNED_ARRAY
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetSize(60, 60, 16)
    chosen.ui.alignmentSelector.currentIndex = 1
    chosen.ui.regionSelector.setCurrentNode(roi)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.statusLabel.text == "Done."
    distances = slicer.util.arrayFromModelPointData(chosen._parameterNode.firstResult, SIGNED_ARRAY)
    assert np.abs(distances).max() < 0.1
    motion = slicer.util.getFirstNodeByClassByName("vtkMRMLLinearTransformNode", "First bone onto second")
    assert np.allclose(slicer.util.arrayFromTransformMatrix(motion)[:3, 3], SHIFT, atol=0.1)


def test_segments_are_compared_like_models(application, chosen, bones, slicer):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.meshing import voxelize
    segmentation = scene.addSegmentation("Patient")
    frame = np.diag([0.5, 0.5, 0.5, 1.0])
    frame[:3, 3] = -20
    for bone, selector in zip(bones, ("first", "second")):
        mask = voxelize(scene.surfaceFromModel(bone), (80, 80, 80), frame)
        segmentID = scene.addSegment(segmentation, mask, bone.GetName(), (1, 1, 0), "tibia")
        getattr(chosen.ui, f"{selector}Selector").setCurrentNode(segmentation)
        getattr(chosen.ui, f"{selector}SegmentSelector").setCurrentSegmentID(segmentID)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.statusLabel.text == "Done."
    model = chosen._parameterNode.firstResult
    distances = slicer.util.arrayFromModelPointData(model, model.GetDisplayNode().GetActiveScalarName())
    assert distances.max() == pytest.approx(np.linalg.norm(SHIFT), abs=0.2)


def test_heatmap_controls_change_what_is_drawn(compared, slicer):
    first, second = compared._parameterNode.firstResult, compared._parameterNode.secondResult
    assert first.GetDisplayNode().GetVisibility() and not second.GetDisplayNode().GetVisibility()
    compared.ui.rangeSlider.value = 0.5
    assert first.GetDisplayNode().GetScalarRange() == (-0.5, 0.5)
    compared.ui.opacitySlider.value = 0.25
    assert first.GetDisplayNode().GetOpacity() == 0.25
    compared.ui.heatmapCheckBox.checked = False
    assert not first.GetDisplayNode().GetScalarVisibility()
    compared.ui.secondHeatmapCheckBox.checked = True
    compared.ui.heatmapCheckBox.checked = True
    assert second.GetDisplayNode().GetVisibility() and second.GetDisplayNode().GetScalarVisibility()


def test_the_picture_is_red_where_the_first_bone_lies_outside_and_blue_where_inside(compared, tmp_path):
    from host import views
    pixels = views.threeDView(tmp_path / "heatmap.png").astype(int)
    red = pixels[..., 0] > pixels[..., 2] + 40
    blue = pixels[..., 2] > pixels[..., 0] + 90
    middle = pixels.shape[1] // 2
    # Seen from the front, the patient's right (+x, where the second bone moved to) is on the left.
    bone = slice(pixels.shape[1] // 6, -pixels.shape[1] // 6)
    assert red[:, middle:].sum() > 1000 > 10 * red[:, bone.start:middle].sum()
    assert blue[:, bone.start:middle].sum() > 1000 > 10 * blue[:, middle:bone.stop].sum()


def test_a_second_run_adds_results_and_replaces_none(application, compared):
    first = compared._parameterNode.firstResult
    compared.ui.applyButton.click()
    finish(application, compared)
    assert compared._parameterNode.firstResult is not first
    assert first.GetScene() is not None and not first.GetDisplayNode().GetVisibility()


def test_the_table_is_exported_where_the_user_says(compared, tmp_path):
    from host import qtcompat
    path = tmp_path / "distances ü.csv"
    qtcompat.fileDialogAnswers.append(str(path))
    compared.ui.exportButton.click()
    assert len(path.read_text(encoding="utf-8").splitlines()) > 1
    assert str(path) in compared.ui.statusLabel.text


def test_nothing_is_exported_when_the_user_thinks_better_of_it(compared, tmp_path):
    from host import qtcompat
    qtcompat.fileDialogAnswers.append("")
    compared.ui.exportButton.click()
    assert list(tmp_path.iterdir()) == []


def test_progress_and_remaining_time_are_shown(application, monkeypatch, chosen):
    replaceWorker(monkeypatch, """
import json, time
print(json.dumps({"stage": "distances", "progress": 0.42, "eta_s": 12.4}), flush=True)
time.sleep(60)
""")
    chosen.ui.applyButton.click()
    deadline = time.monotonic() + 20
    while chosen.ui.progressBar.value != 42 and time.monotonic() < deadline:
        application.process(0.05)
    assert chosen.ui.progressBar.value == 42
    assert chosen.ui.statusLabel.text == "Running: distances, about 12 s left"
    chosen.ui.applyButton.click()
    finish(application, chosen)


def test_cancel_leaves_no_process_no_node_and_no_file(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    before = content(slicer)
    chosen.ui.applyButton.click()
    folder = chosen.job.folder
    application.process(0.3)
    chosen.ui.applyButton.click()
    assert chosen.ui.statusLabel.text == "Cancelling..." and not chosen.ui.applyButton.enabled
    finish(application, chosen)
    assert "Cancelled" in chosen.ui.statusLabel.text and chosen.ui.applyButton.text == "Apply"
    assert content(slicer) == before and not folder.exists()


def test_closing_the_scene_ends_the_job(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    chosen.ui.applyButton.click()
    folder = chosen.job.folder
    slicer.mrmlScene.Clear(0)
    assert chosen.job is None and not folder.exists()


def test_closing_the_panel_ends_the_job(application, monkeypatch, chosen):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    chosen.ui.applyButton.click()
    folder = chosen.job.folder
    chosen.cleanup()
    assert chosen.job is None and not folder.exists()


def test_a_job_goes_on_while_another_module_is_open(application, chosen):
    chosen.ui.applyButton.click()
    chosen.exit()
    finish(application, chosen)
    chosen.enter()
    assert chosen.ui.tableView.mrmlTableNode() is not None


def test_a_refusal_of_the_job_is_shown_word_for_word(application, monkeypatch, chosen, slicer):
    before = content(slicer)
    replaceWorker(monkeypatch, "import sys; print('bonerecon: The bones are a mirrored pair: mirror one first.', "
                               "file=sys.stderr); sys.exit(2)")
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.statusLabel.text == "Failed: The bones are a mirrored pair: mirror one first."
    assert content(slicer) == before


def test_input_that_cannot_be_read_is_refused_before_anything_starts(application, chosen, slicer):
    from BoneReconstructionLib import scene
    segmentation = scene.addSegmentation("Patient")
    scene.addEmptySegment(segmentation, "Tibia", (1, 1, 0))
    chosen.ui.firstSelector.setCurrentNode(segmentation)
    before = content(slicer)
    chosen.ui.applyButton.click()
    assert chosen.job is None and "empty" in chosen.ui.statusLabel.text
    assert content(slicer) == before and not list(Path(slicer.app.temporaryPath).iterdir())


def test_a_broken_result_leaves_the_scene_as_it_was(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, """
import pathlib, sys
folder = pathlib.Path(sys.argv[-1]); folder.mkdir()
(folder / "first.vtp").write_text("not a surface")
(folder / "result.json").write_text('{"alignment": null}')
""")
    before = content(slicer)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.statusLabel.text.startswith("Failed: ") and content(slicer) == before


def test_the_self_test_passes(application):
    application.runSelfTest("BoneReconstruction")


@pytest.mark.parametrize("module", ("BoneReconstruction", "TibiaCompletion"))
def test_the_panel_loads_without_torch(module):
    script = f"""
import json, sys
sys.modules["torch"] = None
sys.path[:0] = {json.dumps([str(ROOT / name) for name in ("Testing", "BoneReconstruction", "TibiaCompletion")])}
from host import application
application.start()
assert application.openModule({module!r}).ui.applyButton
assert not application.slotErrors, application.slotErrors
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
