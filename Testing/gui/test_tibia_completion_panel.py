"""The completion panel in the test host: input, mask, job, and predictions that are never mixed with measurements."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

CONTROLS = ("QPushButton", "QCheckBox", "QComboBox", "ctkSliderWidget", "qMRMLNodeComboBox", "qMRMLTableView",
            "qMRMLSegmentSelectorWidget", "QProgressBar")
# A worker with the command line's contract and a result that is known: the tibia filled inside the mask.
WORKER = """
import csv, json, pathlib, sys
import numpy as np
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.volumes import Volume, read_mask, read_volume, resample, write_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "complete-tibia" and set(options) == {
    "--ct", "--tibia", "--fracture", "--side", "--method", "--output"}
ct = read_volume(options["--ct"])
tibia, mask = (resample(read_mask(options[name]), ct.shape, ct.ijk_to_ras, "nearest") for name in (
    "--tibia", "--fracture"))
whole = Volume(tibia.array | mask.array, ct.ijk_to_ras)
surface = mask_surface(whole)
distances = np.full(len(surface.vertices), np.nan)
distances[::2] = np.linspace(-1, 1, len(distances[::2]))
folder = pathlib.Path(options["--output"])
folder.mkdir()
write_volume(folder / "tibia.nii.gz", whole)
write_surface(folder / "tibia.vtp", surface, {"DistanceToVisibleBone_mm": distances})
with open(folder / "distances.csv", "w", newline="") as file:
    csv.writer(file).writerows([["Measure", "Value", "Unit"], ["ASSD", 0.25, "mm"]])
(folder / "result.json").write_text(json.dumps({
    "side": "left", "method": options["--method"], "model": {"id": "tibia-prior", "version": "1.0", "sha256": "0"},
    "ras_to_standard": [[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]], "mirrored": True, "metrics": {},
    "inputs": {}, "settings": {}, "warnings": ["Only 90 mm of the tibia are visible."], "seconds": 1, "version": "0"}))
"""


@pytest.fixture
def panel(application):
    return application.openModule("TibiaCompletion")


@pytest.fixture
def slicer(application):
    import slicer
    return slicer


@pytest.fixture
def patient(panel):
    """A small oblique CT with a broken stick of bone: (CT node, segmentation node, tibia's ID, mask's ID, frame)."""
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.frames import rotation_about
    from BoneReconstructionLib.volumes import Volume
    frame = np.eye(4)
    frame[:3, :3] = rotation_about(np.array([0.6, 0.8, 0.0]), 0.4) @ np.diag([1.0, 1.2, 2.0])
    frame[:3, 3] = -30, 20, 700
    k, j, i = np.indices((40, 20, 24))
    bone = (abs(i - 10 - k / 10) < 4) & (abs(j - 9) < 3)
    gap = bone & (abs(k - 18) < 5)
    ct = scene.volumeToNode(Volume(np.where(bone & ~gap, 900, 40).astype(np.int16), frame), "CT left leg")
    segmentation = scene.addSegmentation("Patient", ct)
    tibia = scene.addSegment(segmentation, Volume(bone & ~gap, frame), "Tibia", (0.9, 0.8, 0.6), "tibia", "left")
    mask = scene.addSegment(segmentation, Volume(gap, frame), "Fracture mask", (0.9, 0.3, 0.2), "tibia")
    return ct, segmentation, tibia, mask, Volume(bone, frame)


@pytest.fixture
def chosen(panel, patient):
    ct, segmentation, tibia, mask, _bone = patient
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.tibiaSelector.setCurrentNode(segmentation)
    panel.ui.tibiaSegmentSelector.setCurrentSegmentID(tibia)
    panel.ui.fractureSelector.setCurrentNode(segmentation)
    panel.ui.fractureSegmentSelector.setCurrentSegmentID(mask)
    return panel


def replaceWorker(monkeypatch, script):
    from BoneReconstructionLib import scenejob
    monkeypatch.setattr(scenejob, "python_command", lambda interpreter, *arguments: [
        interpreter, "-c", script, *map(str, arguments)])


def finish(application, panel, seconds=90):
    deadline = time.monotonic() + seconds
    while panel.job is not None and time.monotonic() < deadline:
        application.process(0.05)
    assert panel.job is None, "the job did not end"


def content(slicer):
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]
    return sorted(nodes), scene.GetSubjectHierarchyNode().GetNumberOfItems()


def test_every_control_tells_what_it_does(panel):
    for name, widget in vars(panel.ui).items():
        if widget.className() in CONTROLS and not name.startswith("qt_"):
            assert widget.toolTip, f"{name} has no tool tip"


def test_apply_waits_for_ct_tibia_and_mask_and_says_which_is_missing(panel, patient):
    ct, segmentation, tibia, mask, _bone = patient
    panel.ui.ctSelector.setCurrentNode(None)
    assert panel.ui.statusLabel.text == "Select the CT." and not panel.ui.applyButton.enabled
    panel.ui.ctSelector.setCurrentNode(ct)
    assert panel.ui.statusLabel.text == "Select the fractured tibia."
    panel.ui.tibiaSelector.setCurrentNode(segmentation)
    assert "Edit mask" in panel.ui.statusLabel.text
    panel.ui.fractureSelector.setCurrentNode(segmentation)
    panel.ui.fractureSegmentSelector.setCurrentSegmentID(tibia)
    assert "the tibia itself" in panel.ui.statusLabel.text
    panel.ui.fractureSegmentSelector.setCurrentSegmentID(mask)
    assert panel.ui.statusLabel.text == "" and panel.ui.applyButton.enabled


def test_the_only_ct_of_a_scene_is_selected_by_itself(application, patient):
    panel = application.openModule("TibiaCompletion")
    assert panel.ui.ctSelector.currentNode() is patient[0]


def test_edit_mask_makes_an_empty_mask_of_its_own_beside_the_tibia(panel, patient, slicer):
    ct, segmentation, _tibia, _mask, _bone = patient
    segments = segmentation.GetSegmentation().GetNumberOfSegments()
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.tibiaSelector.setCurrentNode(segmentation)
    node, segmentID = panel.logic.prepareMask(ct, None, "")
    assert node is not segmentation and segmentation.GetSegmentation().GetNumberOfSegments() == segments
    assert node.GetSegmentation().GetSegment(segmentID).GetName() == "Fracture mask"
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is ct
    assert panel.logic.prepareMask(ct, node, segmentID) == (node, segmentID)


def test_edit_mask_opens_the_segment_editor_on_mask_and_ct(application, chosen, patient, slicer, monkeypatch):
    opened = []
    monkeypatch.setattr(slicer.util, "selectModule", opened.append)
    ct, segmentation, _tibia, mask, _bone = patient
    chosen.ui.editMaskButton.click()
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    assert opened == ["SegmentEditor"]
    assert editor.segmentationNode() is segmentation and editor.sourceVolumeNode() is ct
    assert editor.currentSegmentID() == mask


def test_every_method_is_offered_with_its_description(panel):
    from TibiaCompletionLib.completion import METHODS
    titles = [panel.ui.methodSelector.itemText(index) for index in range(panel.ui.methodSelector.count)]
    assert titles == [method.title for method in METHODS.values()]
    for index, method in enumerate(METHODS.values()):
        panel.ui.methodSelector.currentIndex = index
        assert panel.ui.methodDescriptionLabel.text == method.description


@pytest.fixture
def predicted(application, monkeypatch, chosen):
    replaceWorker(monkeypatch, WORKER)
    chosen.ui.applyButton.click()
    assert chosen.ui.applyButton.text == "Cancel"
    finish(application, chosen)
    assert chosen.ui.statusLabel.text == "Done."
    return chosen


def test_the_prediction_lies_where_the_bone_is(predicted, patient):
    from BoneReconstructionLib import scene
    ct, bone = patient[0], patient[4]
    segmentation = predicted._parameterNode.resultSegmentation
    segmentID = segmentation.GetSegmentation().GetNthSegmentID(0)
    mask = scene.maskInGeometry(scene.segmentMask(segmentation, segmentID), scene.volumeFromNode(ct))
    assert np.array_equal(mask.array, bone.array)
    corner = (bone.ijk_to_ras @ np.append(np.argwhere(bone.array)[:, ::-1].mean(axis=0), 1))[:3]
    surface = scene.surfaceFromModel(predicted._parameterNode.resultModel)
    assert np.allclose((surface.vertices.min(axis=0) + surface.vertices.max(axis=0)) / 2, corner, atol=3)


def test_everything_predicted_says_so_and_lies_in_a_folder_of_its_own(predicted, patient, slicer):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    node = predicted._parameterNode
    results = node.resultSegmentation, node.resultModel, node.resultTable, node.resultRecord
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) for result in results}
    assert len(folders) == 1 and "PREDICTED" in hierarchy.GetItemName(folders.pop())
    assert all("PREDICTED" in result.GetName() for result in results)
    assert patient[1].GetSegmentation().GetNumberOfSegments() == 2


def test_the_predicted_segment_is_coded_as_tibia_of_the_side_found(predicted, slicer):
    segment = predicted._parameterNode.resultSegmentation.GetSegmentation().GetNthSegment(0)
    assert segment.GetName() == "PREDICTED tibia"
    assert "12611008" in segment.GetTerminology() and "7771000" in segment.GetTerminology()


def test_record_and_warnings_stay_with_the_scene(predicted):
    record = json.loads(predicted._parameterNode.resultRecord.GetText())
    assert record["model"]["id"] == "tibia-prior"
    assert record["inputs"]["ct"]["node"] == "CT left leg"
    assert record["inputs"]["fracture"]["segment"] == "Fracture mask"
    assert "Only 90 mm of the tibia are visible." in predicted.ui.summaryLabel.text
    assert "left tibia" in predicted.ui.summaryLabel.text and "1.0" in predicted.ui.summaryLabel.text


def test_the_transform_to_the_standard_frame_is_in_the_scene(predicted, slicer):
    transforms = slicer.util.getNodesByClass("vtkMRMLLinearTransformNode")
    assert [node.GetName() for node in transforms] == ["PREDICTED tibia to standard frame"]
    assert np.allclose(slicer.util.arrayFromTransformMatrix(transforms[0])[:3, 3], (5, 6, 7))


def test_heatmap_and_opacity_controls_change_what_is_drawn(predicted, patient, slicer):
    display = predicted._parameterNode.resultModel.GetDisplayNode()
    assert display.GetScalarVisibility() and display.GetActiveScalarName() == "DistanceToVisibleBone_mm"
    predicted.ui.rangeSlider.value = 1.0
    assert display.GetScalarRange() == (-1.0, 1.0)
    predicted.ui.heatmapCheckBox.checked = False
    assert not display.GetScalarVisibility()
    predicted.ui.predictedOpacitySlider.value = 0.4
    assert display.GetOpacity() == pytest.approx(0.4)
    predicted.ui.measuredOpacitySlider.value = 0.3
    assert patient[1].GetDisplayNode().GetSegmentOpacity3D(patient[2]) == pytest.approx(0.3)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(predicted._parameterNode.resultModel)
    assert not legend.GetVisibility() and "PREDICTED" in legend.GetTitleText() and "mm" in legend.GetTitleText()
    assert "Positive" in predicted.ui.signLabel.text and "grey" in predicted.ui.signLabel.text


def test_a_second_prediction_replaces_none(application, predicted):
    first = predicted._parameterNode.resultModel
    predicted.ui.applyButton.click()
    finish(application, predicted)
    second = predicted._parameterNode.resultModel
    assert second is not first and first.GetScene() is not None and not first.GetDisplayNode().GetVisibility()
    assert second.GetName() != first.GetName()


def test_inputs_under_a_transform_are_predicted_where_they_are_seen(application, monkeypatch, chosen, patient):
    from BoneReconstructionLib import scene
    replaceWorker(monkeypatch, WORKER)
    matrix = np.array([[0, -1, 0, 12], [1, 0, 0, -8], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    transform = scene.addTransform(matrix, "registration")
    for node in patient[:2]:
        node.SetAndObserveTransformNodeID(transform.GetID())
    chosen.ui.applyButton.click()
    finish(application, chosen)
    segmentation = chosen._parameterNode.resultSegmentation
    mask = scene.segmentMask(segmentation, segmentation.GetSegmentation().GetNthSegmentID(0))
    found = (mask.ijk_to_ras @ np.append(np.argwhere(mask.array)[:, ::-1].mean(axis=0), 1))[:3]
    bone = patient[4]
    expected = matrix @ bone.ijk_to_ras @ np.append(np.argwhere(bone.array)[:, ::-1].mean(axis=0), 1)
    assert np.allclose(found, expected[:3], atol=0.01)


def test_cancel_leaves_no_process_no_node_and_no_file(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    before = content(slicer)
    chosen.ui.applyButton.click()
    folder = chosen.job.folder
    assert {path.name for path in folder.iterdir()} >= {"ct.nii", "tibia.nrrd", "fracture.nrrd"}
    application.process(0.3)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert "Cancelled" in chosen.ui.statusLabel.text
    assert content(slicer) == before and not folder.exists()


def test_an_empty_mask_is_refused_before_anything_starts(chosen, patient, slicer):
    from BoneReconstructionLib import scene
    empty = scene.addEmptySegment(patient[1], "Empty mask", (1, 0, 0))
    chosen.ui.fractureSegmentSelector.setCurrentSegmentID(empty)
    before = content(slicer)
    chosen.ui.applyButton.click()
    assert chosen.job is None and "empty" in chosen.ui.statusLabel.text
    assert content(slicer) == before and not list(Path(slicer.app.temporaryPath).iterdir())


def test_a_refusal_of_the_job_is_shown_word_for_word(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, "import sys; print('bonerecon: The mask lies beside the tibia: draw it on the bone.', "
                               "file=sys.stderr); sys.exit(2)")
    before = content(slicer)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.statusLabel.text == "Failed: The mask lies beside the tibia: draw it on the bone."
    assert content(slicer) == before


def test_a_broken_result_leaves_the_scene_as_it_was(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, WORKER.replace("DistanceToVisibleBone_mm", "x").replace(
        '[["Measure", "Value", "Unit"], ["ASSD", 0.25, "mm"]]', "[]"))
    before = content(slicer)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.statusLabel.text.startswith("Failed: ") and content(slicer) == before
    application.slotErrors.clear()


def test_settings_and_results_are_saved_with_the_scene(application, predicted, patient, slicer, tmp_path):
    predicted.ui.sideSelector.currentIndex = 1
    path = str(tmp_path / "résultat.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    panel = application.openModule("TibiaCompletion")
    assert panel.ui.ctSelector.currentNode().GetName() == "CT left leg"
    assert panel.ui.tibiaSegmentSelector.currentSegmentID() == patient[2]
    assert panel.ui.fractureSegmentSelector.currentSegmentID() == patient[3]
    assert panel.ui.sideSelector.currentText == "Left"
    assert "Only 90 mm" in panel.ui.summaryLabel.text
    assert panel._parameterNode.resultModel.GetName() == "PREDICTED tibia"


def test_the_self_test_passes(application):
    application.runSelfTest("TibiaCompletion")
