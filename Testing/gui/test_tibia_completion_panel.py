"""The completion panel in the test host: input, mask, job, and predictions that are never mixed with measurements."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

CONTROLS = ("QPushButton", "QCheckBox", "QComboBox", "QSpinBox", "ctkSliderWidget", "qMRMLNodeComboBox", "qMRMLTableView",
            "qMRMLSegmentSelectorWidget", "QProgressBar")
# A worker with the command line's contract and a result that is known: the tibia filled inside the mask.
WORKER = """
import csv, json, pathlib, sys
import numpy as np
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.volumes import Volume, read_mask, read_volume, resample, write_volume
flags = [word for word in sys.argv[2:] if word in ("--beyond-scan", "--accept-side")]
words = [word for word in sys.argv[2:] if word not in flags]
options = dict(zip(words[::2], words[1::2]))
assert sys.argv[1] == "complete-tibia" and set(options) >= {
    "--ct", "--tibia", "--fracture", "--side", "--method", "--fixed-piece", "--output"}
given = {option: pathlib.Path(value).name for option, value in options.items()}
assert all(pathlib.Path(value).is_file() for option, value in options.items() if "." in given[option])
if options["--side"] == "right" and "--accept-side" not in flags:
    print("bonerecon: The shape is that of a left tibia although right was given: keep it with --accept-side.",
          file=sys.stderr)
    sys.exit(2)
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
    "inputs": {}, "settings": given | dict.fromkeys(flags, ""), "seconds": 1, "version": "0",
    "warnings": ["Only 90 mm of the tibia are visible.", "It ends there, and --beyond-scan keeps the mesh whole."]}))
"""
# The same for the search: both tibiae, of which the left one is a box and the right one is thinner.
FINDER = """
import json, pathlib, sys
import numpy as np
from BoneReconstructionLib.volumes import Volume, read_volume, write_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "find-tibia" and set(options) == {"--ct", "--side", "--output"}
ct = read_volume(options["--ct"])
labels = np.zeros(ct.shape, dtype=np.uint8)
labels[5:35, 4:8, 3:6], labels[5:35, 4:12, 12:20] = 1, 2
found = [{"side": side, "label": label, "seen_share": 0.9, "rms_mm": 0.4}
         for side, label in (("right", 1), ("left", 2)) if options["--side"] in ("auto", side)]
labels[~np.isin(labels, [tibia["label"] for tibia in found])] = 0
folder = pathlib.Path(options["--output"])
folder.mkdir()
write_volume(folder / "tibiae.nii.gz", Volume(labels, ct.ijk_to_ras))
(folder / "result.json").write_text(json.dumps({
    "version": "0", "inputs": {}, "settings": {}, "found": found, "warnings": ["A proposal."], "seconds": 1}))
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


@pytest.fixture
def neighbours(patient):
    """Further segments of the patient: {bone: segment ID}."""
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.volumes import Volume
    segments, bone = {}, patient[4]
    for number, name in enumerate(("fibula", "femur", "talus")):
        array = np.zeros(bone.shape, dtype=bool)
        array[5:10, 2:5, 2 + 4 * number:5 + 4 * number] = True
        segments[name] = scene.addSegment(patient[1], Volume(array, bone.ijk_to_ras), name, (0.8, 0.8, 0.8), "fibula")
    return segments


@pytest.fixture
def otherTibia(patient):
    """A model of the other leg's tibia."""
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.meshing import mask_surface
    return scene.surfaceToModel(mask_surface(patient[4]), "Other tibia", (0.8, 0.8, 0.8))


def chooseContext(panel, patient, neighbours, otherTibia):
    for name, segmentID in neighbours.items():
        getattr(panel.ui, f"{name}Selector").setCurrentNode(patient[1])
        getattr(panel.ui, f"{name}SegmentSelector").setCurrentSegmentID(segmentID)
    panel.ui.otherTibiaSelector.setCurrentNode(otherTibia)


def test_a_bone_cannot_be_selected_twice(chosen, patient, neighbours, otherTibia):
    chooseContext(chosen, patient, neighbours, otherTibia)
    assert chosen.ui.statusLabel.text == "" and chosen.ui.applyButton.enabled
    chosen.ui.femurSegmentSelector.setCurrentSegmentID(neighbours["fibula"])
    assert chosen.ui.statusLabel.text == "The femur is the fibula itself: select another one."
    assert not chosen.ui.applyButton.enabled
    chosen.ui.femurSelector.setCurrentNode(None)
    chosen.ui.talusSegmentSelector.setCurrentSegmentID(patient[2])
    assert chosen.ui.statusLabel.text == "The talus is the tibia itself: select another one."
    chosen.ui.talusSegmentSelector.setCurrentSegmentID(neighbours["talus"])
    assert chosen.ui.statusLabel.text == ""
    chosen.ui.otherTibiaSelector.setCurrentNode(patient[1])
    chosen.ui.otherTibiaSegmentSelector.setCurrentSegmentID(patient[2])
    assert chosen.ui.statusLabel.text == "The other leg's tibia is the tibia itself: select another one."


def test_a_labelmap_cannot_be_two_bones_and_a_segmentation_needs_a_segment(chosen, patient):
    from BoneReconstructionLib import scene
    labelmap = scene.volumeToNode(patient[4], "Neighbour", "vtkMRMLLabelMapVolumeNode")
    chosen.ui.fibulaSelector.setCurrentNode(labelmap)
    assert chosen.ui.statusLabel.text == "" and not chosen.ui.fibulaSegmentSelector.visible
    chosen.ui.talusSelector.setCurrentNode(labelmap)
    assert chosen.ui.statusLabel.text == "The talus is the fibula itself: select another one."
    chosen._parameterNode.talusSegmentID = "of a segmentation that was selected before"
    assert chosen.ui.statusLabel.text == "The talus is the fibula itself: select another one."
    chosen.ui.talusSelector.setCurrentNode(scene.addSegmentation("Empty", patient[0]))
    assert chosen.ui.statusLabel.text == "\"Empty\" has no segment: add one or select another."


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


def test_edit_tibia_opens_the_segment_editor_on_tibia_and_ct(application, panel, patient, slicer, monkeypatch):
    opened = []
    # As in Slicer, the module that is left forgets its parameter node.
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: (opened.append(name), panel.exit()))
    ct, segmentation, _tibia, mask, _bone = patient
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.tibiaSelector.setCurrentNode(None)
    assert not panel.ui.editTibiaButton.enabled
    panel.ui.tibiaSelector.setCurrentNode(segmentation)
    panel.ui.tibiaSegmentSelector.setCurrentSegmentID(mask)
    panel.ui.editTibiaButton.click()
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    assert opened == ["SegmentEditor"] and editor.currentSegmentID() == mask
    assert editor.segmentationNode() is segmentation and editor.sourceVolumeNode() is ct


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
    assert "and \"Predict past the scan's end\" keeps the mesh whole" in predicted.ui.summaryLabel.text
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


def settings(panel):
    return json.loads(panel._parameterNode.resultRecord.GetText())["settings"]


def test_a_plain_run_gives_no_context_and_keeps_to_the_scan(predicted):
    given = settings(predicted)
    assert given["--fixed-piece"] == "1"
    assert not {"--fibula", "--femur", "--talus", "--other-tibia", "--beyond-scan", "--accept-side"} & set(given)


def test_context_and_settings_reach_the_job_and_the_record(
        application, monkeypatch, chosen, patient, neighbours, otherTibia):
    replaceWorker(monkeypatch, WORKER)
    chooseContext(chosen, patient, neighbours, otherTibia)
    chosen.ui.fixedPieceSpinBox.value = 2
    chosen.ui.beyondScanCheckBox.checked = True
    chosen.ui.applyButton.click()
    finish(application, chosen)
    given = settings(chosen)
    assert {given[f"--{bone}"] for bone in neighbours} == {"fibula.nrrd", "femur.nrrd", "talus.nrrd"}
    assert given["--other-tibia"] == "other_tibia.vtp"
    assert given["--fixed-piece"] == "2" and "--beyond-scan" in given and "--accept-side" not in given
    inputs = json.loads(chosen._parameterNode.resultRecord.GetText())["inputs"]
    assert inputs["femur"]["segment"] == "femur" and inputs["other_tibia"]["node"] == "Other tibia"


@pytest.mark.parametrize("terms, name, chosenSide, given", [
    ("left", "Tibia", "auto", "left"),
    (None, "Right tibia", "auto", "right"),
    ("left", "Right tibia", "auto", "auto"),
    (None, "Tibia", "auto", "auto"),
    ("left", "Left tibia", "right", "right"),
])
def test_the_side_is_taken_from_the_terms_and_the_name_of_the_tibia(panel, patient, terms, name, chosenSide, given):
    from BoneReconstructionLib import scene
    tibia = scene.addSegment(patient[1], patient[4], name, (1, 1, 1), "tibia", terms)
    assert panel.logic.givenSide((patient[1], tibia), chosenSide) == given


def test_the_side_of_the_segment_is_given_to_the_job(predicted):
    assert predicted.ui.sideSelector.currentText == "Automatic" and settings(predicted)["--side"] == "left"


@pytest.fixture
def refused(application, monkeypatch, chosen, slicer):
    """The panel, asked for a right tibia where the shape is a left one; answers a question with `answers`."""
    replaceWorker(monkeypatch, WORKER)
    chosen.ui.sideSelector.currentIndex = 2
    chosen.questions, chosen.answers = [], []

    def answer(text, windowTitle=None, parent=None, **_keywords):
        chosen.questions.append(text)
        return chosen.answers.pop(0)
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", answer)
    return chosen


def test_a_side_that_the_shape_contradicts_is_asked_about_and_no_changes_nothing(application, refused, slicer):
    before = content(slicer)
    refused.answers.append(False)
    refused.ui.applyButton.click()
    finish(application, refused)
    assert len(refused.questions) == 1 and "--" not in refused.questions[0]
    assert "shape is that of a left tibia, but it is given as a right one" in refused.questions[0]
    assert refused.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert content(slicer) == before and refused.ui.applyButton.text == "Apply" and refused.ui.applyButton.enabled
    assert not list(Path(slicer.app.temporaryPath).iterdir())


def test_a_side_that_only_the_segment_says_is_asked_about_too(application, refused, patient):
    from BoneReconstructionLib import scene
    patient[1].GetSegmentation().GetSegment(patient[2]).SetTerminology(scene.terminologyEntry("tibia", "right"))
    refused.ui.sideSelector.currentIndex = 0
    refused.answers.append(False)
    refused.ui.applyButton.click()
    finish(application, refused)
    assert "it is given as a right one" in refused.questions[0]


def test_a_confirmed_side_is_kept(application, refused):
    refused.answers.append(True)
    refused.ui.applyButton.click()
    finish(application, refused)
    assert len(refused.questions) == 1 and refused.ui.statusLabel.text == "Done."
    assert settings(refused)["--side"] == "right" and "--accept-side" in settings(refused)


def test_what_was_asked_about_is_predicted_even_if_another_method_is_chosen_meanwhile(application, refused):
    method = refused._parameterNode.method.value
    refused.answers.append(True)
    refused.ui.applyButton.click()
    refused.ui.methodSelector.currentIndex = 1 - refused.ui.methodSelector.currentIndex
    refused.ui.fractureSelector.setCurrentNode(None)
    finish(application, refused)
    assert settings(refused)["--method"] == method and "--accept-side" in settings(refused)


def test_without_a_window_a_contradicted_side_is_refused_unless_it_is_accepted(monkeypatch, panel, patient):
    replaceWorker(monkeypatch, WORKER)
    ct, segmentation, tibia, mask, _bone = patient
    bones = ct, (segmentation, tibia), (segmentation, mask), "right"
    with pytest.raises(RuntimeError, match="left tibia although right was given"):
        panel.logic.complete(*bones)
    results = panel.logic.complete(*bones, acceptSide=True)
    assert "--accept-side" in json.loads(results.record.GetText())["settings"]


@pytest.fixture
def searching(monkeypatch, panel, patient):
    """The panel with a CT only, looking for tibiae."""
    replaceWorker(monkeypatch, FINDER)
    panel.ui.ctSelector.setCurrentNode(patient[0])
    panel.ui.tibiaSelector.setCurrentNode(None)
    return panel


def test_finding_needs_the_ct_only(panel, patient):
    panel.ui.ctSelector.setCurrentNode(None)
    assert not panel.ui.findButton.enabled
    panel.ui.ctSelector.setCurrentNode(patient[0])
    assert panel.ui.findButton.enabled and not panel.ui.applyButton.enabled


def test_a_found_tibia_is_selected_as_a_coded_segment_where_the_job_found_it(application, searching, patient, slicer):
    from BoneReconstructionLib import scene
    searching.ui.sideSelector.currentIndex = 1
    searching.ui.findButton.click()
    assert searching.ui.findButton.text == "Cancel" and searching.ui.applyButton.text == "Cancel"
    finish(application, searching)
    segmentation = searching.ui.tibiaSelector.currentNode()
    assert segmentation.GetName() == "Tibia (found)" and segmentation.GetSegmentation().GetNumberOfSegments() == 1
    segmentID = searching.ui.tibiaSegmentSelector.currentSegmentID()
    segment = segmentation.GetSegmentation().GetSegment(segmentID)
    assert segment.GetName() == "Left tibia"
    assert "12611008" in segment.GetTerminology() and "7771000" in segment.GetTerminology()
    expected = np.zeros(patient[4].shape, dtype=bool)
    expected[5:35, 4:12, 12:20] = True
    mask = scene.maskInGeometry(scene.segmentMask(segmentation, segmentID), scene.volumeFromNode(patient[0]))
    assert np.array_equal(mask.array, expected)
    assert patient[1].GetSegmentation().GetNumberOfSegments() == 2
    assert searching.ui.findButton.text == "Find tibia" and searching.ui.editTibiaButton.enabled


def test_a_found_tibia_is_to_be_checked_and_a_drawn_one_is_not(application, searching, patient):
    assert searching.ui.checkLabel.text == ""
    searching.ui.findButton.click()
    finish(application, searching)
    assert "before you use it" in searching.ui.checkLabel.text and "Edit tibia" in searching.ui.checkLabel.text
    assert "select the segment of the fractured one" in searching.ui.checkLabel.text
    names = [searching.ui.tibiaSelector.currentNode().GetSegmentation().GetNthSegment(index).GetName()
             for index in range(2)]
    assert names == ["Right tibia", "Left tibia"]
    searching.ui.tibiaSelector.setCurrentNode(patient[1])
    assert searching.ui.checkLabel.text == ""


def test_a_second_search_hides_the_first_proposal_and_keeps_it(application, searching, patient):
    found = []
    for _again in range(2):
        searching.ui.findButton.click()
        finish(application, searching)
        found.append(searching.ui.tibiaSelector.currentNode())
    assert [node.GetName() for node in found] == ["Tibia (found)", "Tibia (found) 2"]
    assert [bool(node.GetDisplayNode().GetVisibility()) for node in found] == [False, True]
    assert patient[1].GetDisplayNode().GetVisibility()


@pytest.mark.parametrize("button", ["findButton", "applyButton"])
def test_either_button_cancels_the_search_and_leaves_nothing(application, monkeypatch, searching, slicer, button):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    before = content(slicer)
    searching.ui.findButton.click()
    folder = searching.job.folder
    assert folder.exists()
    application.process(0.2)
    getattr(searching.ui, button).click()
    finish(application, searching)
    assert searching.ui.findingLabel.text == "Cancelled; the scene is as it was."
    assert content(slicer) == before and not folder.exists() and searching.ui.tibiaSelector.currentNode() is None
    assert searching.ui.findButton.enabled and not searching.ui.applyButton.enabled


def test_why_no_tibia_was_found_stays_in_sight(application, monkeypatch, searching, slicer):
    replaceWorker(monkeypatch, "import sys; print('bonerecon: No tibia was found in the CT: segment it by hand.', "
                               "file=sys.stderr); sys.exit(2)")
    before = content(slicer)
    searching.ui.findButton.click()
    finish(application, searching)
    searching.ui.sideSelector.currentIndex = 1
    assert searching.ui.findingLabel.text == "Failed: No tibia was found in the CT: segment it by hand."
    assert searching.ui.statusLabel.text == "Select the fractured tibia." and content(slicer) == before
    slicer.mrmlScene.Clear(0)
    assert searching.ui.findingLabel.text == ""


def test_a_ct_without_an_image_is_refused_before_the_search_starts(searching, slicer):
    searching.ui.ctSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing"))
    searching.ui.findButton.click()
    assert searching.job is None and "holds no image" in searching.ui.findingLabel.text
    assert searching.ui.findButton.text == "Find tibia" and not searching.ui.applyButton.enabled


def test_one_job_runs_at_a_time(application, monkeypatch, chosen):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    chosen.ui.applyButton.click()
    assert not chosen.ui.findButton.enabled and chosen.ui.findButton.text == "Find tibia"
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.findButton.enabled


def test_a_search_that_ends_in_another_module_selects_its_tibia(application, searching):
    searching.ui.findButton.click()
    searching.exit()
    finish(application, searching)
    searching.enter()
    assert searching.ui.tibiaSelector.currentNode().GetName() == "Tibia (found)"


def test_a_virtual_legs_tibia_is_found_from_the_panel(application, panel):
    from BoneReconstructionLib import scene
    from TibiaCompletion import TibiaCompletionTest
    ct, segmentation, segments, _truth = TibiaCompletionTest.makePatient()
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.sideSelector.currentIndex = 2
    panel.ui.findButton.click()
    finish(application, panel)
    found = panel.ui.tibiaSelector.currentNode()
    assert TibiaCompletionTest.dice(found, scene.segmentMask(segmentation, segments["tibia"])) > 0.93


def test_settings_and_results_are_saved_with_the_scene(
        application, predicted, patient, neighbours, otherTibia, slicer, tmp_path):
    chooseContext(predicted, patient, neighbours, otherTibia)
    predicted.ui.fixedPieceSpinBox.value = 3
    predicted.ui.beyondScanCheckBox.checked = True
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
    assert panel.ui.fixedPieceSpinBox.value == 3 and panel.ui.beyondScanCheckBox.checked
    for name, segmentID in neighbours.items():
        assert getattr(panel.ui, f"{name}Selector").currentNode().GetName() == "Patient"
        assert getattr(panel.ui, f"{name}SegmentSelector").currentSegmentID() == segmentID
    assert panel.ui.otherTibiaSelector.currentNode().GetName() == "Other tibia"
    assert "Only 90 mm" in panel.ui.summaryLabel.text
    assert panel._parameterNode.resultModel.GetName() == "PREDICTED tibia"


def test_a_found_tibia_of_a_loaded_scene_is_still_to_be_checked(application, searching, slicer, tmp_path):
    searching.ui.findButton.click()
    finish(application, searching)
    path = str(tmp_path / "found.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    assert searching.ui.checkLabel.text == ""
    slicer.util.loadScene(path)
    panel = application.openModule("TibiaCompletion")
    assert panel.ui.tibiaSelector.currentNode().GetName() == "Tibia (found)"
    assert "before you use it" in panel.ui.checkLabel.text


def test_the_self_test_passes(application):
    application.runSelfTest("TibiaCompletion")
