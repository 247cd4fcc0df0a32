"""The completion panel in the test host: input, mask, job, and predictions that are never mixed with measurements."""

import json
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from paneljobs import finish, replaceWorker

CONTROLS = ("QPushButton", "QCheckBox", "QComboBox", "QSpinBox", "ctkSliderWidget", "qMRMLNodeComboBox", "qMRMLTableView",
            "qMRMLSegmentSelectorWidget", "QProgressBar")
UI = Path(__file__).parents[2] / "TibiaCompletion" / "Resources" / "UI" / "TibiaCompletion.ui"
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
deviations = np.linspace(0.2, 2, len(distances))
write_surface(folder / "tibia.vtp", surface, {"DistanceToVisibleBone_mm": distances, "StandardDeviation_mm": deviations})
with open(folder / "distances.csv", "w", newline="") as file:
    csv.writer(file).writerows([["Measure", "Value", "Unit"], ["ASSD", 0.25, "mm"]])
low, high = surface.vertices.min(0), surface.vertices.max(0)
line = {"name": "Mechanical axis of the tibia", "kind": "line", "points": [low.tolist(), high.tolist()],
        "colour": [0.9, 0.7, 0.1]}
plane = {"name": "Coronal plane", "kind": "plane", "colour": [0.9, 0.2, 0.2],
         "points": (low + [[0, 0, 0], [30, 0, 0], [0, 0, 50]]).tolist()}
angle = {"name": "Torsion", "kind": "angle", "colour": [0.2, 0.4, 0.9],
         "points": (low + [[20, 0, 0], [0, 0, 0], [0, 20, 0]]).tolist()}
(folder / "measurements.json").write_text(json.dumps({"side": "left", "coordinates": "RAS, mm", "measurements": {
    name: {"title": title, "value": value, "unit": unit, "interval_95": width, "definition": "How it is read.",
           "source": "A paper", "published": {"mean": 100.04, "sd": 3.0, "source": "Another"}, "markups": markups}
    for name, title, value, unit, width, markups in (
        ("length", "Length", 351.26, "mm", 2.04, [line]), ("torsion", "Torsion", 24.0, "degrees", None, [angle, plane]))}}))
(folder / "result.json").write_text(json.dumps({
    "side": "left", "method": options["--method"], "model": {"id": "tibia-prior", "version": "1.0", "sha256": "0"},
    "ras_to_standard": [[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]], "mirrored": True, "pieces": [],
    "metrics": {"unseen_deviation": {"value": 1.24, "unit": "mm"}},
    "inputs": {}, "settings": given | dict.fromkeys(flags, ""), "seconds": 1, "version": "0",
    "intervals_95": {"length": 2.04, "torsion": 6.5},
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

# The same for the mask's proposal, for the split and for the reduction, by a shift of the second fragment.
SUGGESTER = """
import pathlib, sys
import numpy as np
from BoneReconstructionLib.volumes import Volume, read_mask, read_volume, write_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "suggest-mask" and set(options) == {"--ct", "--tibia", "--output"}
ct, tibia = read_volume(options["--ct"]), read_mask(options["--tibia"])
mask = np.zeros(ct.shape, dtype=bool)
mask[12:25] = True
folder = pathlib.Path(options["--output"])
folder.mkdir()
write_volume(folder / "fracture.nii.gz", Volume(mask, ct.ijk_to_ras))
(folder / "result.json").write_text("{}")
"""
SPLITTER = """
import json, pathlib, sys
import numpy as np
from BoneReconstructionLib.volumes import Volume, read_mask, read_volume, resample, write_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "split-fragments" and set(options) - {"--fracture"} == {"--ct", "--tibia", "--output"}
ct = read_volume(options["--ct"])
labels = resample(read_mask(options["--tibia"]), ct.shape, ct.ijk_to_ras, "nearest").array.astype(np.uint8)
labels[18:][labels[18:] > 0] = 2
folder = pathlib.Path(options["--output"])
folder.mkdir()
write_volume(folder / "fragments.nii.gz", Volume(labels, ct.ijk_to_ras))
(folder / "result.json").write_text(json.dumps({"volumes_ml": [1.0, 1.0], "crumbs": []}))
"""
REDUCER = """
import json, pathlib, sys
import numpy as np
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfacefiles import read_surface, write_surface
from BoneReconstructionLib.volumes import Volume, read_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "reduce-fragments" and set(options) == {
    "--ct", "--fragments", "--fracture", "--completion", "--output"}
assert read_volume(options["--fracture"]).array.any()
completion = pathlib.Path(options["--completion"])
record = json.loads((completion / "result.json").read_text())
assert record["side"] == "left" and "ras_to_standard" in record and record["pieces"] == []
bone = read_surface(completion / "tibia.ply")
read_volume(options["--ct"])
labels = read_volume(options["--fragments"])
folder = pathlib.Path(options["--output"])
folder.mkdir()
top = bone.vertices[:, 2] > bone.vertices[:, 2].mean()
write_surface(folder / "target.vtp", bone, {"Joint": top.astype(float)})
fragments = []
for number in range(1, labels.array.max() + 1):
    surface = mask_surface(Volume(labels.array == number, labels.ijk_to_ras))
    nothing = np.full(len(surface.vertices), np.nan)
    write_surface(folder / f"fragment-{number}.vtp", surface, {"Step_mm": nothing, "Gap_mm": nothing})
    motion = np.eye(4)
    motion[:3, 3] = (number - 1) * np.array([3, -2, 5])
    fragments.append({"name": f"Piece {number}", "surface": f"fragment-{number}.vtp", "motion_ras": motion.tolist()})
(folder / "result.json").write_text(json.dumps({
    "version": "0", "side": "left", "axes_from_ras": np.diag([-1.0, 1, 1, 1]).tolist(), "fragments": fragments,
    "inputs": {}, "warnings": [], "seconds": 1}))
"""


@pytest.fixture
def panel(application):
    return application.openModule("TibiaCompletion")


@pytest.fixture
def slicer(application):
    import slicer
    return slicer


def of(panel):
    """The prediction that the panel shows."""
    from TibiaCompletionLib.scene import predictions
    return predictions.fromRecord(panel._parameterNode.resultRecord)


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


def content(slicer):
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]
    return sorted(nodes), scene.GetSubjectHierarchyNode().GetNumberOfItems()


def test_every_control_tells_what_it_does(panel):
    for name, widget in vars(panel.ui).items():
        if widget.className() in CONTROLS and not name.startswith("qt_"):
            assert widget.toolTip, f"{name} has no tool tip"


def test_the_tab_key_goes_through_every_control_in_the_order_of_the_work():
    root = ElementTree.parse(UI).getroot()
    controls = [widget.get("name") for widget in root.iter("widget")
                if widget.get("class") in CONTROLS and widget.get("class") != "QProgressBar"]
    assert [stop.text for stop in root.find("tabstops")] == controls


def test_every_length_and_share_names_its_unit():
    for widget in ElementTree.parse(UI).getroot().iter("widget"):
        if widget.get("class") in ("ctkSliderWidget", "QSpinBox"):
            words = " ".join(widget.itertext())
            assert any(unit in words for unit in (" mm", "degrees", "from 0", "number")), widget.get("name")


def test_the_panel_has_three_steps_and_then_what_came_out(panel):
    root = ElementTree.parse(UI).getroot()
    titles = [widget.findtext("property[@name='text']/string")
              for widget in root.findall("widget/layout/item/widget[@class='ctkCollapsibleButton']")]
    assert titles[:3] == ["1. CT and side", "2. Fracture mask", "3. Predict"]
    assert titles[3:] == ["PREDICTED tibia", "Confidence", "Fragments", "Measurements", "Export"]
    assert panel.ui.advancedCollapsibleButton.collapsed and panel.ui.contextCollapsibleButton.collapsed


def test_the_detected_side_is_shown_and_confirmed_by_a_button(chosen, patient):
    assert chosen.ui.sideStateLabel.text == "Side: left, as the tibia's name or terms say; not confirmed."
    chosen.ui.confirmSideButton.click()
    assert chosen.ui.sideSelector.currentText == "Left" and not chosen.ui.confirmSideButton.enabled
    assert chosen.ui.sideStateLabel.text == "Side: left, confirmed."
    chosen.ui.sideSelector.currentIndex = 2
    assert "but left as the tibia's name or terms say: check it" in chosen.ui.sideStateLabel.text
    chosen.ui.tibiaSelector.setCurrentNode(None)
    assert chosen.ui.sideStateLabel.text == ""


def test_the_side_of_one_patient_is_not_that_of_the_next(chosen, patient):
    chosen.ui.confirmSideButton.click()
    chosen.ui.ctSelector.setCurrentNode(otherPatient(patient)[0])
    assert chosen.ui.sideSelector.currentText == "Automatic"


def test_a_side_that_nothing_names_is_told_by_the_shape_once_it_is_predicted(
        application, monkeypatch, chosen, patient):
    segment = patient[1].GetSegmentation().GetSegment(patient[2])
    segment.SetTerminology("")
    chosen.ui.sideSelector.currentIndex = 0
    chosen._onParameterNodeModified()
    assert "nothing says it yet" in chosen.ui.sideStateLabel.text and not chosen.ui.confirmSideButton.enabled
    replaceWorker(monkeypatch, WORKER)
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen.ui.sideStateLabel.text == "Side: left, by the shape of the bone; not confirmed."
    chosen.ui.confirmSideButton.click()
    assert chosen.ui.sideSelector.currentText == "Left"


def test_a_box_is_drawn_over_the_middle_of_the_tibia(chosen, patient, slicer):
    from BoneReconstructionLib import scene
    chosen.ui.boxMaskButton.click()
    box = chosen.ui.fractureSelector.currentNode()
    assert box.IsA("vtkMRMLMarkupsROINode") and chosen.ui.applyButton.enabled
    tibia = scene.segmentMask(patient[1], patient[2])
    covered = scene.maskInGeometry(scene.roiMask(box), tibia).array & tibia.array
    assert 0.1 < covered.sum() / tibia.array.sum() < 0.5
    lower, upper = scene.boundsOf(patient[1], patient[2])
    assert np.allclose(box.GetCenterWorld(), (lower + upper) / 2)


def test_device_and_measured_time_of_each_method_are_shown(predicted):
    device, *methods = predicted.ui.timeLabel.text.splitlines()
    assert "processor (CPU)" in device
    assert methods[:2] == ["Shape prior: 1 s", "Prototype: not run yet"]


def test_bones_of_another_patient_than_the_ct_are_refused(chosen, patient, slicer):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    for name, node in (("Somebody", patient[0]), ("Somebody else", patient[1])):
        item = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), name)
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), item)
    chosen._onParameterNodeModified()
    assert chosen.ui.statusLabel.text == "The tibia and the CT are of different patients: select them of one."
    assert not chosen.ui.applyButton.enabled
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(patient[1]),
                            hierarchy.GetItemParent(hierarchy.GetItemByDataNode(patient[0])))
    chosen._onParameterNodeModified()
    assert chosen.ui.applyButton.enabled


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
    from TibiaCompletionLib.scene import inputs
    node, segmentID = inputs.prepareMask(ct, None, "")
    assert node is not segmentation and segmentation.GetSegmentation().GetNumberOfSegments() == segments
    assert node.GetSegmentation().GetSegment(segmentID).GetName() == "Fracture mask"
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is ct
    assert inputs.prepareMask(ct, node, segmentID) == (node, segmentID)


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


def test_the_standard_deviation_takes_the_place_of_the_distance_and_back(predicted, slicer):
    model = predicted._parameterNode.resultModel
    display, legend = model.GetDisplayNode(), slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model)
    predicted.ui.deviationCheckBox.checked = True
    assert display.GetActiveScalarName() == "StandardDeviation_mm" and display.GetScalarVisibility()
    assert not predicted.ui.heatmapCheckBox.checked and display.GetScalarRange() == (0.0, 3.0)
    assert "standard deviation (mm)" in legend.GetTitleText() and "PREDICTED" in legend.GetTitleText()
    predicted.ui.deviationRangeSlider.value = 1.5
    assert display.GetScalarRange() == (0.0, 1.5)
    light, dark = (np.array(display.GetColorNode().GetColorTransferFunction().GetColor(value)) for value in (0.0, 1.5))
    assert light.sum() > dark.sum() + 1
    predicted.ui.heatmapCheckBox.checked = True
    assert display.GetActiveScalarName() == "DistanceToVisibleBone_mm" and not predicted.ui.deviationCheckBox.checked
    assert display.GetScalarRange() == (-2.0, 2.0) and "outside" in legend.GetTitleText()


def test_a_method_that_knows_no_standard_deviation_offers_none(application, monkeypatch, chosen):
    replaceWorker(monkeypatch, WORKER.replace(', "StandardDeviation_mm": deviations', ""))
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert not chosen.ui.deviationCheckBox.enabled and not chosen.ui.deviationRangeSlider.enabled


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


def test_the_measurements_are_tabulated_with_unit_interval_and_people(predicted, slicer):
    from BoneReconstructionLib import scene
    rows = scene.tableRows(predicted._parameterNode.resultMeasurements)
    assert rows[0] == ["Measurement", "Value", "95 % interval ±", "Unit", "People"]
    assert rows[1:] == [["Length", "351.3", "2.0", "mm", "100.0 ± 3.0"], ["Torsion", "24.0", "", "degrees", "100.0 ± 3.0"]]
    assert predicted.ui.measurementsTableView.mrmlTableNode() is predicted._parameterNode.resultMeasurements
    assert predicted._parameterNode.resultMeasurements.GetName() == "PREDICTED tibia measurements"
    assert predicted.ui.confidenceLabel.text.splitlines() == [
        "Length: ± 2.0 mm (95 %)", "Torsion: ± 6.5 degrees (95 %)",
        "Surface without visible bone: ± 1.2 mm (one standard deviation)"]


def markupsOf(slicer):
    nodes = [node for node in slicer.util.getNodesByClass("vtkMRMLMarkupsNode") if not node.IsA("vtkMRMLMarkupsROINode")]
    return {node.GetName(): node for node in nodes}


def test_axes_and_planes_are_switched_on_by_measurement_and_lie_in_a_folder(predicted, slicer):
    markups = markupsOf(slicer)
    assert set(markups) == {"PREDICTED Mechanical axis of the tibia", "PREDICTED Torsion", "PREDICTED Coronal plane"}
    line, angle, plane = (markups[f"PREDICTED {name}"] for name in (
        "Mechanical axis of the tibia", "Torsion", "Coronal plane"))
    choices = [predicted.ui.shownMeasurementSelector.itemText(index)
               for index in range(predicted.ui.shownMeasurementSelector.count)]
    assert choices[:3] == ["nothing", "all lines, angles and planes", "Length"]

    def visible():
        return [bool(node.GetDisplayNode().GetVisibility()) for node in (line, angle, plane)]
    assert visible() == [False, False, False]
    for choice, expected in (("Length", [True, False, False]), ("Torsion", [False, True, True]),
                             ("all lines, angles and planes", [True] * 3), ("nothing", [False] * 3)):
        predicted.ui.shownMeasurementSelector.currentIndex = choices.index(choice)
        assert visible() == expected
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    (folder,) = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in markups.values()}
    model = hierarchy.GetItemByDataNode(predicted._parameterNode.resultModel)
    assert "PREDICTED" in hierarchy.GetItemName(folder)
    assert hierarchy.GetItemParent(folder) == hierarchy.GetItemParent(model)
    assert all(node.GetLocked() for node in markups.values())


def test_markups_lie_where_the_job_says(predicted, slicer):
    from BoneReconstructionLib import scene
    markups = markupsOf(slicer)
    vertices = scene.surfaceFromModel(predicted._parameterNode.resultModel).vertices
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    ends = slicer.util.arrayFromMarkupsControlPoints(markups["PREDICTED Mechanical axis of the tibia"], True)
    assert np.allclose(ends, [low, high], atol=1e-3)
    plane = markups["PREDICTED Coronal plane"]
    assert np.allclose(plane.GetCenterWorld(), low, atol=1e-3) and np.allclose(plane.GetSize(), (60, 100), atol=1e-3)
    assert abs(plane.GetNormalWorld()[1]) == pytest.approx(1)
    assert markups["PREDICTED Torsion"].GetAngleDegrees() == pytest.approx(90)


def test_markups_go_with_the_prediction(predicted, slicer):
    slicer.mrmlScene.RemoveNode(predicted._parameterNode.resultModel)
    assert not markupsOf(slicer)


def test_markups_of_a_replaced_prediction_are_hidden(application, predicted, slicer):
    predicted.ui.shownMeasurementSelector.currentIndex = 1
    first = list(markupsOf(slicer).values())
    predicted.ui.applyButton.click()
    finish(application, predicted)
    shown = [node for node in markupsOf(slicer).values() if node.GetDisplayNode().GetVisibility()]
    assert len(shown) == 3 and not set(shown) & set(first)


def test_a_prediction_without_measurements_says_why(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, WORKER.replace('"measurements.json"', '"nothing.json"'))
    chosen.ui.applyButton.click()
    finish(application, chosen)
    assert chosen._parameterNode.resultMeasurements is None and not markupsOf(slicer)
    assert "No measurements" in chosen.ui.measurementsLabel.text
    assert not chosen.ui.shownMeasurementSelector.enabled


@pytest.fixture
def named(patient, slicer):
    """The patient of the subject hierarchy, with what DICOM says: (name, ID, date of birth)."""
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    item = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Roe^Richard")
    words = "Roe^Richard", "PID-4711", "19500102"
    for attribute, word in zip((constants.GetDICOMPatientNameAttributeName(), constants.GetDICOMPatientIDAttributeName(),
                                constants.GetDICOMPatientBirthDateAttributeName()), words):
        hierarchy.SetItemAttribute(item, attribute, word)
    for node in patient[:2]:
        node.SetName(f"{words[0]} {node.GetName()}")
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), item)
    return words


def exported(application, panel, folder):
    """Export through the panel; the new folder's files by name."""
    from host import qtcompat
    before = set(folder.iterdir())
    qtcompat.fileDialogAnswers.append(str(folder))
    panel.ui.outputButton.click()
    application.process()
    (made,) = set(folder.iterdir()) - before
    assert panel.ui.outputLabel.text == f"Exported to {made}"
    return {path.name: path for path in made.iterdir()}


def test_the_export_holds_bone_segmentation_tables_and_report(application, named, predicted, tmp_path, slicer):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.surfacefiles import read_surface
    application.openViews()
    files = exported(application, predicted, tmp_path)
    assert set(files) == {"PREDICTED-tibia-left-mm-LPS.stl", "PREDICTED-tibia.seg.nrrd", "PREDICTED-tibia-figures.csv",
                          "PREDICTED-tibia-measurements.csv", "PREDICTED-tibia-report.html"}
    header = files["PREDICTED-tibia-left-mm-LPS.stl"].read_bytes()[:80]
    assert b"SPACE=LPS" in header
    model = scene.surfaceFromModel(predicted._parameterNode.resultModel)
    printed = read_surface(files["PREDICTED-tibia-left-mm-LPS.stl"])
    assert np.allclose(printed.vertices.min(axis=0), model.vertices.min(axis=0), atol=1e-3)
    assert len(printed.faces) == len(model.faces)
    loaded = slicer.util.loadSegmentation(str(files["PREDICTED-tibia.seg.nrrd"]))
    segment = loaded.GetSegmentation().GetNthSegment(0)
    assert segment.GetName() == "PREDICTED tibia" and "12611008" in segment.GetTerminology()
    page = files["PREDICTED-tibia-report.html"].read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5 and page.count("Not for clinical use") >= 2
    assert "Length" in page and "351.3" in page and "MPL-2.0" in page and "Only 90 mm" in page


def test_nothing_exported_says_who_the_patient_is_unless_it_is_ticked(application, named, predicted, tmp_path):
    assert not predicted.ui.identityCheckBox.checked and not predicted.ui.sceneCheckBox.enabled
    for path in exported(application, predicted, tmp_path).values():
        content = path.read_bytes()
        assert not [word for word in (*named, "Richard") if word.encode() in content], path.name
    predicted.ui.identityCheckBox.checked = True
    page = exported(application, predicted, tmp_path)["PREDICTED-tibia-report.html"].read_text(encoding="utf-8")
    assert all(word in page for word in (*named, "Fracture mask"))


def test_the_scene_is_exported_only_with_the_patient(application, named, predicted, tmp_path, slicer):
    predicted.ui.identityCheckBox.checked = True
    predicted.ui.sceneCheckBox.checked = True
    files = exported(application, predicted, tmp_path)
    assert files["scene.mrb"].stat().st_size > 1000
    predicted.ui.identityCheckBox.checked = False
    assert not predicted.ui.sceneCheckBox.checked and not predicted.ui.sceneCheckBox.enabled
    from BoneReconstructionLib.errors import InputError
    from TibiaCompletionLib.scene import exporting
    with pytest.raises(InputError, match="names the patient"):
        exporting.export(of(predicted), tmp_path, withScene=True)


def test_a_second_export_overwrites_nothing_and_a_failed_one_leaves_nothing(
        application, monkeypatch, predicted, tmp_path, slicer):
    from host import qtcompat
    first = exported(application, predicted, tmp_path)
    before = {path: path.read_bytes() for path in first.values()}
    exported(application, predicted, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"PREDICTED tibia", "PREDICTED tibia 2"}
    assert {path: path.read_bytes() for path in first.values()} == before
    monkeypatch.setattr(slicer.util, "exportNode", lambda *arguments: False)
    qtcompat.fileDialogAnswers.append(str(tmp_path))
    predicted.ui.outputButton.click()
    assert predicted.ui.outputLabel.text.startswith("Nothing was exported")
    assert {path.name for path in tmp_path.iterdir()} == {"PREDICTED tibia", "PREDICTED tibia 2"}


def test_without_a_prediction_there_is_nothing_to_export_and_nothing_to_show(chosen):
    for name in ("outputButton", "slicesButton", "beforeAfterButton", "exportButton"):
        assert not getattr(chosen.ui, name).enabled


def pixels(view):
    """What a view shows: (height, width, 3) uint8."""
    from PySide6 import QtGui

    from BoneReconstructionLib import scene
    data = scene.viewPicture(view)
    image = QtGui.QImage.fromData(data).convertToFormat(QtGui.QImage.Format.Format_RGB888)
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, :3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def near(picture, color, tolerance=60):
    """How many pixels have about a colour, 0 to 1 each."""
    return int((abs(picture.astype(int) - 255 * np.array(color)).max(axis=-1) < tolerance).sum())


def test_before_and_after_are_two_linked_3d_views(application, predicted, patient, slicer):
    application.openViews()
    predicted._onParameterNodeModified()
    predicted.ui.heatmapCheckBox.checked = False
    predicted.ui.measuredOpacitySlider.value = 1.0
    predicted.ui.beforeAfterButton.click()
    manager = slicer.app.layoutManager()
    assert manager.threeDViewCount == 2
    assert all(manager.threeDWidget(index).mrmlViewNode().GetLinkedControl() for index in range(2))
    before, after = (pixels(manager.threeDWidget(index).threeDView()) for index in range(2))
    predictedHue = after[..., 1].astype(int) - after[..., 0] > 60
    assert predictedHue.sum() > 500
    assert (before[..., 1].astype(int) - before[..., 0] > 60).sum() == 0
    assert (before[..., 0].astype(int) - before[..., 2] > 30).sum() > 500  # the measured bone's yellow


def test_slices_show_the_outlines_of_measured_and_predicted_bone(application, predicted, patient, slicer):
    from BoneReconstructionLib import scene
    from TibiaCompletionLib.scene.predictions import PREDICTED_COLOR
    application.openViews()
    predicted.ui.beforeAfterButton.enabled = True
    predicted.ui.beforeAfterButton.click()
    predicted._onParameterNodeModified()
    predicted.ui.slicesButton.click()
    lower, upper = scene.boundsOf(patient[1], patient[3])
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        matrix = node.GetSliceToRAS()
        centre = [matrix.GetElement(row, 3) for row in range(3)]
        assert np.allclose(centre, (lower + upper) / 2, atol=0.01)
        seen = abs(slicer.util.arrayFromVTKMatrix(matrix)[:3, :2].T) @ (upper - lower + 50)
        assert min(node.GetFieldOfView()[:2] - seen) == pytest.approx(0, abs=0.01)
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert composite.GetBackgroundVolumeID() == patient[0].GetID()
    picture = pixels(slicer.app.layoutManager().sliceWidget("Yellow").sliceView())
    assert near(picture, PREDICTED_COLOR) > 50
    assert near(picture, (0.8, 0.8, 0.8), 20) > 50  # bone in the CT
    assert near(picture, (0.9, 0.8, 0.6), 30) > 50
    assert not patient[1].GetDisplayNode().GetNumberOfViewNodeIDs()


def test_layouts_need_views_and_the_panel_lives_without_them(predicted):
    assert not predicted.ui.slicesButton.enabled and not predicted.ui.beforeAfterButton.enabled
    assert predicted.ui.outputButton.enabled


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
    from TibiaCompletionLib.scene import inputs
    tibia = scene.addSegment(patient[1], patient[4], name, (1, 1, 1), "tibia", terms)
    assert inputs.givenSide((patient[1], tibia), chosenSide) == given


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
    choices = [predicted.ui.shownMeasurementSelector.itemText(index)
               for index in range(predicted.ui.shownMeasurementSelector.count)]
    predicted.ui.shownMeasurementSelector.currentIndex = choices.index("Torsion")
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
    results = of(panel)
    assert results.ct is panel.ui.ctSelector.currentNode() and results.measurements is not None
    assert {markup.GetName() for markup in results.markups} == set(markupsOf(slicer)) and len(results.markups) == 3
    visible = {markup.GetName() for markup in results.markups if markup.GetDisplayNode().GetVisibility()}
    assert visible == {"PREDICTED Torsion", "PREDICTED Coronal plane"}
    assert panel.ui.shownMeasurementSelector.currentText == "Torsion"
    assert panel.ui.measurementsTableView.mrmlTableNode() is results.measurements
    files = exported(application, panel, tmp_path)
    assert "PREDICTED-tibia-measurements.csv" in files


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


STAGE_WORKER = """
import json, pathlib, sys, time
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
pathlib.Path(options["--output"]).mkdir()
pathlib.Path(options["--output"], "tibia.vtp").write_text("half a file")
print(json.dumps({"stage": STAGE, "progress": 0.4, "eta_s": 7}), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stage", ["reading", "finding the pose", "completing", "writing"])
def test_cancel_in_the_middle_of_a_stage_leaves_the_scene_as_it_was(application, monkeypatch, predicted, slicer, stage):
    """Beside a prediction that is there already, which stays as it is."""
    replaceWorker(monkeypatch, STAGE_WORKER.replace("STAGE", repr(stage)))
    before, shown = content(slicer), predicted._parameterNode.resultRecord
    predicted.ui.applyButton.click()
    folder = predicted.job.folder
    deadline = time.monotonic() + 60
    while stage not in predicted.ui.statusLabel.text and time.monotonic() < deadline:
        application.process(0.05)
    assert predicted.ui.statusLabel.text == f"Running: {stage}, about 7 s left" and predicted.ui.progressBar.value == 40
    predicted.ui.applyButton.click()
    finish(application, predicted)
    assert predicted.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert content(slicer) == before and not folder.exists() and predicted._parameterNode.resultRecord is shown


def otherPatient(patient):
    """A second patient's CT, tibia and mask, beside the first one's: (CT, segmentation, tibia's ID, mask's ID)."""
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.volumes import Volume
    frame = patient[4].ijk_to_ras.copy()
    frame[0, 3] += 200
    k, j, i = np.indices((30, 18, 18))
    bone = (abs(i - 9) < 4) & (abs(j - 8) < 3) & (k > 2) & (k < 27)
    gap = bone & (abs(k - 14) < 3)
    ct = scene.volumeToNode(Volume(np.where(bone & ~gap, 800, 30).astype(np.int16), frame), "Another CT")
    segmentation = scene.addSegmentation("Another patient", ct)
    tibia = scene.addSegment(segmentation, Volume(bone & ~gap, frame), "Left tibia", (0.9, 0.8, 0.6), "tibia", "left")
    return ct, segmentation, tibia, scene.addSegment(segmentation, Volume(gap, frame), "Mask", (1, 0, 0), "tibia")


def test_predictions_of_two_patients_are_never_mixed(application, predicted, patient, slicer):
    from BoneReconstructionLib import scene
    node = predicted._parameterNode
    first = of(predicted)
    predicted.ui.shownMeasurementSelector.currentIndex = 1
    ct, segmentation, tibia, mask = otherPatient(patient)
    predicted.ui.ctSelector.setCurrentNode(ct)
    assert node.resultRecord is None and predicted.ui.summaryLabel.text == "No prediction yet."
    assert not predicted.ui.outputButton.enabled and not first.model.GetDisplayNode().GetVisibility()
    assert not [markup for markup in first.markups if markup.GetDisplayNode().GetVisibility()]
    predicted.ui.tibiaSelector.setCurrentNode(segmentation)
    predicted.ui.tibiaSegmentSelector.setCurrentSegmentID(tibia)
    predicted.ui.fractureSelector.setCurrentNode(segmentation)
    predicted.ui.fractureSegmentSelector.setCurrentSegmentID(mask)
    predicted.ui.applyButton.click()
    finish(application, predicted)
    second = of(predicted)
    centre = scene.surfaceFromModel(second.model).vertices.mean(axis=0)
    assert centre[0] - scene.surfaceFromModel(first.model).vertices.mean(axis=0)[0] > 100
    assert second.ct is ct and first.ct is patient[0]
    predicted.ui.ctSelector.setCurrentNode(patient[0])
    assert node.resultModel is first.model and first.model.GetDisplayNode().GetVisibility()
    assert not second.model.GetDisplayNode().GetVisibility()
    assert not second.segmentation.GetDisplayNode().GetVisibility()
    assert first.segmentation.GetDisplayNode().GetVisibility()
    assert all(markup.GetDisplayNode().GetVisibility() for markup in first.markups)


def test_a_prediction_that_ends_when_another_patient_is_selected_stays_with_its_own(
        application, monkeypatch, chosen, patient, slicer):
    replaceWorker(monkeypatch, WORKER)
    ct = otherPatient(patient)[0]
    chosen.ui.applyButton.click()
    chosen.ui.ctSelector.setCurrentNode(ct)
    finish(application, chosen)
    assert chosen._parameterNode.resultRecord is None and chosen.ui.summaryLabel.text == "No prediction yet."
    from TibiaCompletionLib.scene import predictions
    results = predictions.newestOf(patient[0])
    assert results is not None and not results.model.GetDisplayNode().GetVisibility()
    chosen.ui.ctSelector.setCurrentNode(patient[0])
    assert chosen._parameterNode.resultModel is results.model and results.model.GetDisplayNode().GetVisibility()


def test_a_suggested_mask_is_selected_to_be_corrected(application, monkeypatch, chosen, patient):
    from BoneReconstructionLib import scene
    replaceWorker(monkeypatch, SUGGESTER)
    chosen.ui.suggestMaskButton.click()
    assert chosen.ui.suggestMaskButton.text == "Cancel" and not chosen.ui.findButton.enabled
    finish(application, chosen)
    assert chosen.ui.fractureSelector.currentNode().GetName() == "Fracture mask (suggested)"
    assert chosen.ui.suggestMaskButton.text == "Suggest mask" and chosen.ui.applyButton.enabled
    mask = scene.maskFromNode(chosen._parameterNode.fracture, chosen._parameterNode.fractureSegmentID)
    assert np.array_equal(scene.maskInGeometry(mask, patient[4]).array.any(axis=(1, 2)).nonzero()[0], range(12, 25))


def test_why_no_mask_is_suggested_stays_in_sight(application, monkeypatch, chosen, slicer):
    replaceWorker(monkeypatch, "import sys; print('bonerecon: The tibia is in one piece.', file=sys.stderr); sys.exit(2)")
    before = content(slicer)
    chosen.ui.suggestMaskButton.click()
    finish(application, chosen)
    assert chosen.ui.maskStateLabel.text == "Failed: The tibia is in one piece." and content(slicer) == before
    chosen.ui.tibiaSelector.setCurrentNode(None)
    assert not chosen.ui.suggestMaskButton.enabled and not chosen.ui.splitButton.enabled


@pytest.fixture
def split(application, monkeypatch, predicted):
    replaceWorker(monkeypatch, SPLITTER)
    predicted.ui.splitButton.click()
    finish(application, predicted)
    return predicted


@pytest.fixture
def planned(application, monkeypatch, predicted, patient):
    """The panel with two fragments brought to the prediction, the second one by a shift of (3, -2, 5) mm."""
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.volumes import Volume
    tibia = scene.segmentMask(patient[1], patient[2])
    node = scene.addSegmentation("Fragments", patient[0])
    for number, part in enumerate((slice(0, 15), slice(15, None)), start=1):
        array = np.zeros_like(tibia.array)
        array[part] = tibia.array[part]
        scene.addSegment(node, Volume(array, tibia.ijk_to_ras), f"Fragment {number}", (1, 1, 1), "tibia")
    predicted.ui.fragmentsSelector.setCurrentNode(node)
    replaceWorker(monkeypatch, REDUCER)
    predicted.ui.reduceButton.click()
    assert predicted.ui.reduceButton.text == "Cancel"
    finish(application, predicted)
    assert predicted.ui.statusLabel.text == "Done." and predicted.ui.fragmentsStateLabel.text == ""
    return predicted


def planOf(panel):
    from TibiaCompletionLib.scene import fragments
    return fragments.newestFor(of(panel))


def shift(slicer, transform):
    return slicer.util.arrayFromTransformMatrix(transform)[:3, 3]


def drag(application, slicer, transform, by):
    """Shift a fragment as by its handle, mm, and let the figures follow."""
    matrix = slicer.util.arrayFromTransformMatrix(transform)
    matrix[:3, 3] += by
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    application.process(0.1)


def figure(plan, name, number):
    """A figure of a fragment, counted from 0, as the table tells it."""
    from BoneReconstructionLib import scene
    from TibiaCompletionLib.fragments.assessment import FIGURES
    rows = {row[0]: row[2:] for row in scene.tableRows(plan.table)[1:]}
    return rows[FIGURES[name].title][number]


def test_the_tibia_is_split_into_segments_to_be_corrected(split, patient, slicer, monkeypatch):
    node = split.ui.fragmentsSelector.currentNode()
    segments = node.GetSegmentation()
    assert [segments.GetNthSegment(number).GetName() for number in range(2)] == ["Fragment 1", "Fragment 2"]
    assert patient[1].GetSegmentation().GetNumberOfSegments() == 2
    opened = []
    monkeypatch.setattr(slicer.util, "selectModule", opened.append)
    split.ui.editFragmentsButton.click()
    editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
    assert opened == ["SegmentEditor"] and editor.segmentationNode() is node


def test_each_fragment_is_a_measured_model_under_a_transform_of_its_own(planned, slicer):
    from BoneReconstructionLib import scene
    plan = planOf(planned)
    assert [model.GetName() for model in plan.models] == ["Fragment 1", "Fragment 2"]
    assert [model.GetParentTransformNode() for model in plan.models] == list(plan.transforms)
    assert np.allclose(shift(slicer, plan.transforms[1]), (3, -2, 5))
    assert "PREDICTED" in plan.target.GetName() and not plan.target.GetDisplayNode().GetVisibility()
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in (*plan.models, *plan.transforms)}
    assert len(folders) == 1 and "Fragments" in hierarchy.GetItemName(folders.pop())
    names = [planned.ui.fragmentSelector.itemText(index) for index in range(planned.ui.fragmentSelector.count)]
    assert names == ["Fragment 1", "Fragment 2"]
    assert planned.ui.fragmentsTableView.mrmlTableNode() is plan.table
    header, *rows = scene.tableRows(plan.table)
    assert header == ["Figure", "Unit", "Fragment 1", "Fragment 2", "Meaning"]
    assert {row[0]: "negative is varus" in row[-1] for row in rows}["Valgus"]
    assert all(row[1] in ("mm", "degrees") for row in rows)


def test_figures_follow_a_fragment_that_is_moved_by_hand(application, planned, slicer):
    plan = planOf(planned)
    assert [figure(plan, name, 1) for name in ("lateral_mm", "anterior_mm", "proximal_mm")] == ["-3.0", "-2.0", "5.0"]
    heights = slicer.util.arrayFromModelPointData(plan.models[1], "Step_mm").copy()
    assert np.isfinite(heights).any()
    drag(application, slicer, plan.transforms[1], (1, 0, 2))
    assert [figure(plan, name, 1) for name in ("lateral_mm", "anterior_mm", "proximal_mm")] == ["-4.0", "-2.0", "7.0"]
    assert figure(plan, "proximal_mm", 0) == "0.0"
    assert not np.array_equal(slicer.util.arrayFromModelPointData(plan.models[1], "Step_mm"), heights, equal_nan=True)


def test_movements_are_taken_back_one_by_one(application, monkeypatch, planned, slicer):
    from TibiaCompletionLib.scene import fragments
    monkeypatch.setattr(fragments, "SETTLED_S", 0.0)
    plan = planOf(planned)
    assert not planned.ui.undoButton.enabled
    drag(application, slicer, plan.transforms[1], (1, 0, 2))
    drag(application, slicer, plan.transforms[0], (0, 4, 0))
    planned.ui.undoButton.click()
    assert np.allclose(shift(slicer, plan.transforms[0]), 0) and figure(plan, "anterior_mm", 0) == "0.0"
    planned.ui.undoButton.click()
    assert np.allclose(shift(slicer, plan.transforms[1]), (3, -2, 5)) and figure(plan, "proximal_mm", 1) == "5.0"
    assert not planned.ui.undoButton.enabled
    application.process(0.1)
    assert not planned.ui.undoButton.enabled


def test_one_drag_of_many_events_is_one_movement(application, monkeypatch, planned, slicer):
    from TibiaCompletionLib.scene import fragments
    monkeypatch.setattr(fragments, "SETTLED_S", 60.0)
    plan = planOf(planned)
    for _step in range(3):
        drag(application, slicer, plan.transforms[1], (1, 0, 0))
    planned.ui.undoButton.click()
    assert np.allclose(shift(slicer, plan.transforms[1]), (3, -2, 5)) and not planned.ui.undoButton.enabled


def test_a_fragment_goes_back_to_its_planned_place_and_to_the_ct(application, planned, slicer):
    plan = planOf(planned)
    planned.ui.fragmentSelector.currentIndex = 1
    planned.ui.inCTButton.click()
    assert np.allclose(slicer.util.arrayFromTransformMatrix(plan.transforms[1]), np.eye(4))
    planned.ui.resetFragmentButton.click()
    assert np.allclose(shift(slicer, plan.transforms[1]), (3, -2, 5)) and figure(plan, "proximal_mm", 1) == "5.0"
    planned.ui.undoButton.click()
    assert np.allclose(shift(slicer, plan.transforms[1]), 0)


def test_a_locked_fragment_stays_where_it_is(application, planned, slicer):
    plan = planOf(planned)
    planned.ui.fragmentSelector.currentIndex = 1
    planned.ui.lockCheckBox.checked = True
    assert not planned.ui.resetFragmentButton.enabled and not planned.ui.inCTButton.enabled
    assert not plan.transforms[1].GetDisplayNode().GetEditorVisibility()
    drag(application, slicer, plan.transforms[1], (1, 0, 2))
    assert np.allclose(shift(slicer, plan.transforms[1]), (3, -2, 5)) and not planned.ui.undoButton.enabled
    planned.ui.fragmentSelector.currentIndex = 0
    assert not planned.ui.lockCheckBox.checked and plan.transforms[0].GetDisplayNode().GetEditorVisibility()
    planned.ui.fragmentSelector.currentIndex = 1
    assert planned.ui.lockCheckBox.checked
    planned.ui.lockCheckBox.checked = False
    drag(application, slicer, plan.transforms[1], (1, 0, 2))
    assert np.allclose(shift(slicer, plan.transforms[1]), (4, -2, 7))


def test_handles_are_those_of_the_selected_fragment(planned):
    plan = planOf(planned)
    for selected in (1, 0):
        planned.ui.fragmentSelector.currentIndex = selected
        shown = [bool(transform.GetDisplayNode().GetEditorVisibility()) for transform in plan.transforms]
        assert shown == [index == selected for index in range(2)]
        assert not plan.transforms[selected].GetDisplayNode().GetEditorScalingEnabled()


def test_fragments_are_coloured_by_step_or_gap(planned, slicer):
    plan = planOf(planned)
    displays = [model.GetDisplayNode() for model in plan.models]
    assert not any(display.GetScalarVisibility() for display in displays)
    for index, (name, words) in enumerate((("Step_mm", "Step"), ("Gap_mm", "Gap")), start=1):
        planned.ui.fragmentHeatmapSelector.currentIndex = index
        assert all(display.GetScalarVisibility() and display.GetActiveScalarName() == name for display in displays)
        legends = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model) for model in plan.models]
        assert [bool(legend.GetVisibility()) for legend in legends] == [True, False]
        assert words in legends[0].GetTitleText() and "mm" in legends[0].GetTitleText()
    planned.ui.fragmentRangeSlider.value = 1.0
    assert all(display.GetScalarRange() == (-1.0, 1.0) for display in displays)
    planned.ui.fragmentHeatmapSelector.currentIndex = 0
    assert not any(display.GetScalarVisibility() for display in displays)


def test_without_chosen_fragments_the_tibia_itself_is_given_to_be_split(application, monkeypatch, predicted):
    replaceWorker(monkeypatch, REDUCER)
    predicted.ui.reduceButton.click()
    finish(application, predicted)
    plan = planOf(predicted)
    inputs = json.loads(plan.record.GetText())["inputs"]
    assert inputs["fragments"]["segment"] == "Tibia" and plan.names == ["Piece 1"]


@pytest.mark.parametrize("button, label, stage", [
    ("suggestMaskButton", "maskStateLabel", "telling the fragments apart"),
    ("splitButton", "fragmentsStateLabel", "telling the fragments apart"),
    ("reduceButton", "fragmentsStateLabel", "reducing")])
def test_each_job_is_cancelled_by_its_own_button(application, monkeypatch, predicted, slicer, button, label, stage):
    replaceWorker(monkeypatch, STAGE_WORKER.replace("STAGE", repr(stage)))
    before, button, label = content(slicer), getattr(predicted.ui, button), getattr(predicted.ui, label)
    button.click()
    assert button.text == "Cancel"
    deadline = time.monotonic() + 60
    while stage not in label.text and time.monotonic() < deadline:
        application.process(0.05)
    button.click()
    finish(application, predicted)
    assert label.text == "Cancelled; the scene is as it was." and button.text != "Cancel" and button.enabled
    assert content(slicer) == before and planOf(predicted) is None and not predicted.ui.lockCheckBox.enabled


def test_fragments_of_two_patients_are_never_mixed(planned, patient, slicer):
    plan, node = planOf(planned), planned._parameterNode
    planned.ui.ctSelector.setCurrentNode(otherPatient(patient)[0])
    assert node.resultRecord is None and planned.ui.fragmentSelector.count == 0
    assert not any(model.GetDisplayNode().GetVisibility() for model in plan.models)
    assert not any(transform.GetDisplayNode().GetEditorVisibility() for transform in plan.transforms)
    assert not planned.ui.reduceButton.enabled and not planned.ui.undoButton.enabled
    planned.ui.ctSelector.setCurrentNode(patient[0])
    assert all(model.GetDisplayNode().GetVisibility() for model in plan.models)
    assert planned.ui.fragmentSelector.count == 2


def test_fragments_that_arrive_when_another_patient_is_selected_stay_with_their_own(
        application, monkeypatch, predicted, patient, slicer):
    other = otherPatient(patient)
    replaceWorker(monkeypatch, REDUCER)
    predicted.ui.reduceButton.click()
    predicted.ui.ctSelector.setCurrentNode(other[0])
    finish(application, predicted)
    (plan,) = [node for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if node.GetName() == "Piece 1"]
    assert not plan.GetDisplayNode().GetVisibility() and predicted.ui.fragmentSelector.count == 0
    predicted.ui.ctSelector.setCurrentNode(patient[0])
    assert plan.GetDisplayNode().GetVisibility() and predicted.ui.fragmentSelector.count == 1


def test_a_mask_for_another_ct_than_the_selected_one_is_not_selected(application, monkeypatch, chosen, patient, slicer):
    mask = chosen._parameterNode.fracture
    replaceWorker(monkeypatch, SUGGESTER)
    chosen.ui.suggestMaskButton.click()
    chosen.ui.ctSelector.setCurrentNode(otherPatient(patient)[0])
    finish(application, chosen)
    assert chosen._parameterNode.fracture is mask
    (found,) = [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if "suggested" in node.GetName()]
    assert not found.GetDisplayNode().GetVisibility()


def test_fragments_of_another_patient_than_the_prediction_are_refused(planned, patient, slicer):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    for name, node in (("Somebody", patient[0]), ("Somebody else", planned._parameterNode.fragments)):
        item = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), name)
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), item)
    planned.ui.reduceButton.click()
    assert planned.job is None and "different patients" in planned.ui.fragmentsStateLabel.text


def test_a_plan_that_lost_a_node_is_let_go(application, planned, slicer):
    plan = planOf(planned)
    slicer.mrmlScene.RemoveNode(plan.models[1])
    planned._onParameterNodeModified()
    assert planOf(planned) is None and planned.ui.fragmentSelector.count == 0
    drag(application, slicer, plan.transforms[0], (1, 0, 0))


def test_a_moved_fragment_is_exported_saved_and_found_again(application, planned, slicer, tmp_path):
    plan = planOf(planned)
    planned.ui.fragmentHeatmapSelector.currentIndex = 1
    planned.ui.fragmentSelector.currentIndex = 1
    drag(application, slicer, plan.transforms[1], (1, 0, 2))
    planned.ui.lockCheckBox.checked = True
    files = exported(application, planned, tmp_path)
    assert "7.0" in files["PREDICTED-tibia-fragments.csv"].read_text(encoding="utf-8")
    assert "Fragment 2" in files["PREDICTED-tibia-report.html"].read_text(encoding="utf-8")
    path = str(tmp_path / "plan.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    panel = application.openModule("TibiaCompletion")
    plan = planOf(panel)
    assert np.allclose(shift(slicer, plan.transforms[1]), (4, -2, 7)) and figure(plan, "proximal_mm", 1) == "7.0"
    assert panel.ui.fragmentsSelector.currentNode().GetName() == "Fragments"
    assert panel.ui.fragmentHeatmapSelector.currentText == "step in the joint"
    assert plan.models[0].GetDisplayNode().GetActiveScalarName() == "Step_mm"
    panel.ui.fragmentSelector.currentIndex = 1
    assert panel.ui.lockCheckBox.checked
    panel.ui.lockCheckBox.checked = False
    drag(application, slicer, plan.transforms[1], (0, 0, 1))
    assert figure(plan, "proximal_mm", 1) == "8.0"
    panel.ui.resetFragmentButton.click()
    assert np.allclose(shift(slicer, plan.transforms[1]), (3, -2, 5))


SAMPLER = """
import pathlib, sys
import numpy as np
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.volumes import Volume, write_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "make-sample" and set(options) == {"--kind", "--side", "--seed", "--output"}
bone = np.zeros((30, 12, 12), dtype=bool)
bone[5:25, 4:8, 3:9] = True
mask = bone.copy()
mask[:10] = mask[15:] = False
folder = pathlib.Path(options["--output"])
folder.mkdir()
frame = np.diag([2.0, 2.0, 3.0, 1.0])
write_volume(folder / "ct.nii.gz", Volume(np.where(bone, 900, 40).astype(np.int16), frame))
write_volume(folder / "tibia.nii.gz", Volume(bone & ~mask, frame))
write_volume(folder / "fracture.nii.gz", Volume(mask, frame))
for name in ("truth", "other_tibia"):
    write_surface(folder / f"{name}.ply", mask_surface(Volume(bone, frame)))
(folder / "result.json").write_text("{}")
"""


def test_the_samples_are_offered_and_load_a_patient_each(application, monkeypatch, panel, slicer):
    import SampleData
    replaceWorker(monkeypatch, SAMPLER)
    sources = slicer.modules.sampleDataSources["Bone Reconstruction"]
    sources = [source for source in sources if source.sampleName.startswith("Tibia")]
    assert [source.sampleName for source in sources] == ["TibiaPlateauFracture", "TibiaShaftFracture"]
    plateau, shaft = (SampleData.downloadSamples(source.sampleName) for source in sources)
    assert [len(plateau), len(shaft)] == [3, 4]
    assert shaft[3].GetName() == "TibiaShaftFracture other leg's tibia"
    from TibiaCompletionLib.scene import inputs
    assert inputs.givenSide((plateau[1], plateau[1].GetSegmentation().GetNthSegmentID(0))) == "left"
    assert inputs.givenSide((shaft[1], shaft[1].GetSegmentation().GetNthSegmentID(0))) == "right"
    from BoneReconstructionLib import scene
    assert scene.ofDifferentPatients(plateau[0], shaft[1]) and not scene.ofDifferentPatients(plateau[0], plateau[1])
    assert not plateau[2].GetDisplayNode().GetVisibility()


def test_a_sample_that_cannot_be_made_says_why_and_leaves_nothing(application, monkeypatch, panel, slicer):
    import SampleData
    replaceWorker(monkeypatch, "import sys; print('bonerecon: The package torch is missing: install it.', "
                               "file=sys.stderr); sys.exit(3)")
    slicer.mrmlScene.GetSubjectHierarchyNode()  # it is made when it is first asked for
    before = content(slicer)
    assert SampleData.downloadSamples("TibiaPlateauFracture") == []
    assert application.messages[-1][1] == "The package torch is missing: install it."
    assert content(slicer) == before


def test_the_self_test_passes(application):
    application.runSelfTest("TibiaCompletion")
