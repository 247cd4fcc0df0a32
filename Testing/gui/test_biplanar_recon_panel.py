"""The biplanar panel in the test host: X-rays, what a user must confirm, geometry, jobs, results kept with the scene."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from paneljobs import finish, replaceWorker

CONTROLS = ("QPushButton", "QCheckBox", "QComboBox", "QSpinBox", "QDoubleSpinBox", "QLineEdit", "ctkSliderWidget",
            "qMRMLNodeComboBox", "qMRMLTableView", "QProgressBar")
UI = Path(__file__).parents[2] / "BiplanarRecon" / "Resources" / "UI" / "BiplanarRecon.ui"
BONES = ("femur", "tibia", "fibula", "patella")
ISOCENTRE = (25.0, -60.0, 410.0)
SHAPE = (96, 72)
# Workers with the command line's contract and results that are known: balls, and X-rays with a bright ramp.
SIMULATOR = """
import json, pathlib, sys
import numpy as np
from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib.radiographs import Radiograph, write_radiograph
from BoneReconstructionLib.volumes import read_volume
from BoneReconstructionLib.xraygeometryfiles import write_geometry
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "simulate-xrays" and set(options) == {
    "--ct", "--preset", "--frontal", "--lateral", "--angle", "--conditions", "--seed", "--output"}
assert read_volume(options["--ct"]).array.max() == 900
views = standard_views(options["--preset"], (25, -60, 410), options["--frontal"], options["--lateral"],
                       float(options["--angle"]))
folder = pathlib.Path(options["--output"])
folder.mkdir()
for stem, view in zip((options["--frontal"].lower(), "lateral"), views):
    view = view.resized((96, 72))
    ramp = np.add.outer(np.linspace(0, 1, 96), np.linspace(0, 2, 72)).astype(np.float32)
    write_radiograph(folder / f"{stem}.nrrd", Radiograph(ramp, ramp >= 0, tuple(view.spacing_uv)))
    write_geometry(folder / f"{stem}.json", view)
(folder / "result.json").write_text(json.dumps({
    "views": [options["--frontal"], options["--lateral"]], "engine": "numba"}))
"""
KNEE_MAKER = """
import pathlib, sys
import numpy as np
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.volumes import Volume, write_volume
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "make-knee" and set(options) == {"--side", "--seed", "--output"} and options["--side"] == "left"
folder = pathlib.Path(options["--output"])
folder.mkdir()
block = np.zeros((12, 10, 14), bool)
block[3:8, 3:8, 3:8] = True
write_volume(folder / "ct.nii.gz", Volume(np.where(block, 900, -1000).astype(np.int16), np.eye(4)))
for bone in ("femur", "tibia", "fibula", "patella"):
    write_surface(folder / f"{bone}.ply", mask_surface(Volume(block, np.eye(4))))
(folder / "result.json").write_text("{}")
"""
RECONSTRUCTOR = """
import json, pathlib, sys
import numpy as np
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.radiographs import read_radiograph
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.volumes import Volume, write_volume
from BoneReconstructionLib.xraygeometryfiles import read_geometry
words = [part for word in sys.argv[2:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
landmarks = []
while "--landmark" in words:
    at = words.index("--landmark")
    landmarks.append(words[at + 1 : at + 5])
    del words[at : at + 5]
options = dict(zip(words[::2], words[1::2]))
assert sys.argv[1] == "reconstruct-knee" and set(options) - {"--patient-axes"} == {
    "--ap", "--ap-geometry", "--lateral", "--lateral-geometry", "--side", "--output"}
views = {}
for view in ("ap", "lateral"):
    image = read_radiograph(options[f"--{view}"])
    views[view] = read_geometry(options[f"--{view}-geometry"], image.shape)
if options["--side"] == "left":
    print("bonerecon: The X-rays are tagged as of a right knee, not a left one: check the side.", file=sys.stderr)
    sys.exit(2)
folder = pathlib.Path(options["--output"])
folder.mkdir()
frame = np.diag([2.0, 2.0, 2.0, 1.0])
frame[:3, 3] = 5, -80, 390
k, j, i = np.indices((21, 21, 41))
labels, bones, lines = np.zeros(k.shape, np.uint8), {}, {"ap": {}, "lateral": {}}
for number, bone in enumerate(("femur", "tibia", "fibula"), start=1):
    ball = (i - 10 * number) ** 2 + (j - 10) ** 2 + (k - 10) ** 2 < 16
    labels[ball] = number
    surface = mask_surface(Volume(ball, frame))
    write_surface(folder / f"{bone}.vtp", surface,
                  {"StandardDeviation_mm": np.linspace(0.2, 1.5, len(surface.vertices))})
    for view, geometry in views.items():
        middle = geometry.project(surface.vertices.mean(0)[None])[0]
        lines[view][bone] = [(middle + [[-2, -2], [2, -2], [2, 2], [-2, -2]]).tolist()]
    bones[bone] = {"label": number, "residual_mm": {"ap": 0.4 * number, "lateral": None}, "deviation_mm": 0.8,
                   "outline_shown": {"ap": 1.0, "lateral": 0.0}, "end_in_both_views": 0.9, "volume_ml": 2.0}
write_volume(folder / "bones.nii.gz", Volume(labels, frame))
(folder / "outlines.json").write_text(json.dumps(lines))
(folder / "result.json").write_text(json.dumps({
    "side": options["--side"], "bones": bones, "warnings": ["The patella lies outside the field: it is left out."],
    "inputs": {}, "version": "0", "patient_axes": options.get("--patient-axes"),
    "landmarks": landmarks, "model": "knee-prior"}))
"""


@pytest.fixture
def panel(application):
    return application.openModule("BiplanarRecon")


@pytest.fixture
def slicer(application):
    import slicer
    return slicer


def answer(path):
    from host import qtcompat
    qtcompat.fileDialogAnswers.append(str(path))


def views(lateralTurn=0.0):
    from BoneReconstructionLib.xraygeometry import preset_view
    return {"frontal": preset_view("c-arm", "AP", ISOCENTRE).resized(SHAPE),
            "lateral": preset_view("c-arm", "right lateral", ISOCENTRE, lateralTurn).resized(SHAPE)}


@pytest.fixture
def files(tmp_path):
    """Image files without any geometry, and geometry files: {"frontal", "lateral": (image, geometry)}."""
    import SimpleITK as sitk

    from BoneReconstructionLib.xraygeometryfiles import write_geometry
    found = {}
    for name, geometry in views().items():
        ramp = np.add.outer(np.linspace(9000, 30000, SHAPE[0]), np.linspace(0, 9000, SHAPE[1])).astype(np.uint16)
        paths = tmp_path / f"{name} X-ray.png", tmp_path / f"{name}.json"
        sitk.WriteImage(sitk.GetImageFromArray(ramp), str(paths[0]))
        write_geometry(paths[1], geometry)
        found[name] = paths
    return found


@pytest.fixture
def loaded(panel, files):
    """The panel with both images loaded, nothing known of their geometry."""
    for name, (image, _geometry) in files.items():
        answer(image)
        getattr(panel.ui, f"{name}LoadButton").click()
    return panel


@pytest.fixture
def ready(loaded, files):
    """The panel with geometry, views and side: Apply is possible."""
    for name, (_image, geometry) in files.items():
        answer(geometry)
        getattr(loaded.ui, f"{name}FileButton").click()
    loaded.ui.frontalViewSelector.currentIndex = 1
    loaded.ui.lateralViewSelector.currentIndex = 2
    loaded.ui.sideSelector.currentIndex = 2
    return loaded


@pytest.fixture
def reconstructed(application, monkeypatch, ready):
    replaceWorker(monkeypatch, RECONSTRUCTOR)
    ready.ui.applyButton.click()
    assert ready.ui.applyButton.text == "Cancel"
    finish(application, ready)
    assert ready.ui.statusLabel.text == "Done."
    return ready


def of(panel):
    """The reconstruction that the panel shows."""
    from BiplanarReconLib.scene import reconstructions
    return reconstructions.fromRecord(panel._parameterNode.resultRecord)


def test_every_control_tells_what_it_does(panel):
    for name, widget in vars(panel.ui).items():
        if widget.className() in CONTROLS and not name.startswith("qt_"):
            assert widget.toolTip, f"{name} has no tool tip"


def test_the_tab_key_goes_through_every_control_in_the_order_of_the_work():
    root = ElementTree.parse(UI).getroot()
    controls = [widget.get("name") for widget in root.iter("widget")
                if widget.get("class") in CONTROLS and widget.get("class") != "QProgressBar"]
    assert [stop.text for stop in root.find("tabstops")] == controls


def test_every_number_names_its_unit_and_its_sign_or_range():
    for widget in ElementTree.parse(UI).getroot().iter("widget"):
        if widget.get("class") in ("ctkSliderWidget", "QSpinBox", "QDoubleSpinBox"):
            tip = widget.findtext("property[@name='toolTip']/string")
            assert any(unit in tip for unit in ("mm", "degrees", "from 0", "number")), widget.get("name")
            if widget.findtext("property[@name='minimum']/double", "0").startswith("-"):
                assert "positive" in tip, widget.get("name")


def test_the_sections_follow_the_work():
    root = ElementTree.parse(UI).getroot()
    titles = [widget.findtext("property[@name='text']/string")
              for widget in root.findall("widget/layout/item/widget[@class='ctkCollapsibleButton']")]
    assert titles == ["1. X-rays", "2. Geometry", "3. Reconstruct", "PREDICTED bones", "Comparison", "Views",
                      "Simulate X-rays"]


def test_choices_of_the_panel_are_those_of_the_library(panel):
    from BoneReconstructionLib.xraygeometry import FRONTAL_VIEWS, LATERAL_VIEWS, PRESETS
    for name, choices in (("frontal", FRONTAL_VIEWS), ("lateral", LATERAL_VIEWS)):
        selector = getattr(panel.ui, f"{name}ViewSelector")
        texts = [selector.itemText(index).lower() for index in range(selector.count)]
        assert len(texts) == 1 + len(choices)
        assert all(text.startswith(view.lower()) for text, view in zip(texts[1:], choices))
    assert panel.ui.frontalPresetSelector.count == len(PRESETS)


def test_a_loaded_image_says_what_was_done_to_it_and_what_it_lacks(loaded):
    ui = loaded.ui
    assert "values are log (assumed); bone is bright (assumed); scaled" in ui.frontalStepsLabel.text
    assert "The file says neither view nor side." in ui.frontalStepsLabel.text
    assert ui.frontalSourceDetectorOriginLabel.text == "missing" and ui.frontalShapeOriginLabel.text == "the image"
    assert ui.frontalShapeLabel.text == "72 x 96 pixels" and "missing" in ui.frontalReasonLabel.text
    assert not ui.applyButton.enabled and "AP or PA" in ui.statusLabel.text
    assert not ui.frontalDicomButton.enabled and not ui.frontalSaveButton.enabled


def test_dicom_tags_are_taken_and_shown_but_confirm_nothing(panel, tmp_path):
    from dicomfiles import write_dicom
    ramp = np.add.outer(np.linspace(900, 3000, SHAPE[0]), np.linspace(0, 900, SHAPE[1])).astype(np.uint16)
    path = tmp_path / "knee.dcm"
    write_dicom(path, ramp, tags={(0x0018, 0x5101, "CS"): "AP", (0x0020, 0x0062, "CS"): "L",
                                  (0x0018, 0x1164, "DS"): "0.2\\0.3", (0x0018, 0x1110, "DS"): "1150",
                                  (0x0018, 0x1111, "DS"): "1000"})
    answer(path)
    panel.ui.frontalLoadButton.click()
    assert "The file's tags say: AP, left side; confirm it." in panel.ui.frontalStepsLabel.text
    assert panel.ui.frontalViewSelector.currentIndex == 0 and panel.ui.sideSelector.currentIndex == 0
    assert panel.ui.frontalSourceDetectorOriginLabel.text == "DICOM DistanceSourceToDetector"
    assert panel.ui.frontalSpacingUSpinBox.value == pytest.approx(0.3)
    panel.ui.frontalSourceDetectorSpinBox.value = 1200.0
    assert panel.ui.frontalSourceDetectorOriginLabel.text == "typed"
    panel.ui.frontalDicomButton.click()
    assert panel.ui.frontalSourceDetectorSpinBox.value == 1150
    assert "not calibrated" in panel.ui.cautionLabel.text


def test_image_file_options_hold_for_the_next_file(panel, files):
    panel.ui.relationSelector.currentIndex = 2
    panel.ui.boneLooksSelector.currentIndex = 2
    answer(files["frontal"][0])
    panel.ui.frontalLoadButton.click()
    assert "values are linear (as chosen); bone is dark (as chosen); p = -ln(I / I0)" in panel.ui.frontalStepsLabel.text


def test_what_is_no_x_ray_is_refused_in_one_sentence(panel, tmp_path, slicer):
    import SimpleITK as sitk
    path = tmp_path / "mask.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.tile(np.uint8([[0, 1]]), (70, 40))), str(path))
    answer(path)
    panel.ui.frontalLoadButton.click()
    assert "2 grey levels" in panel.ui.xraysStateLabel.text
    assert panel._parameterNode.frontal is None and not slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")


def test_side_and_views_are_confirmed_by_the_user_and_not_taken_over_by_other_x_rays(ready, files):
    assert ready.ui.statusLabel.text == "" and ready.ui.applyButton.enabled
    ready.ui.sideSelector.currentIndex = 0
    assert "left or a right knee" in ready.ui.statusLabel.text and not ready.ui.applyButton.enabled
    ready.ui.sideSelector.currentIndex = 1
    assert ready.ui.applyButton.enabled
    answer(files["frontal"][0])
    ready.ui.frontalLoadButton.click()
    assert ready.ui.frontalViewSelector.currentIndex == 0 and ready.ui.sideSelector.currentIndex == 0
    assert not ready.ui.applyButton.enabled


def test_an_x_ray_under_a_transform_is_refused(ready, slicer):
    from BoneReconstructionLib import scene
    ready._parameterNode.lateral.SetAndObserveTransformNodeID(scene.addTransform(np.eye(4), "moved").GetID())
    ready._onParameterNodeModified()
    assert '"lateral X-ray" is under a transform' in ready.ui.statusLabel.text and not ready.ui.applyButton.enabled


def test_two_x_rays_of_one_patient_are_needed(ready, slicer):
    node = ready._parameterNode
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    for name in ("frontal", "lateral"):
        item = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), f"Patient of the {name} X-ray")
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node.getValue(name)), item)
    ready._onParameterNodeModified()
    assert ready.ui.statusLabel.text == "The two X-rays are of different patients: select them of one."
    node.lateral = node.frontal
    assert ready.ui.statusLabel.text == "Both X-rays are the same: select two different ones."


def test_a_view_that_the_geometry_contradicts_is_refused(ready):
    ready.ui.frontalViewSelector.currentIndex = 2
    assert "not those of the view PA" in ready.ui.frontalReasonLabel.text
    assert ready.ui.statusLabel.text.startswith("Frontal X-ray: The angles are not those of the view PA")


def test_each_value_says_where_it_is_from(ready):
    from BiplanarReconLib.scene import xrays
    assert ready.ui.lateralSpacingOriginLabel.text == "the file lateral.json (preset c-arm)"
    assert ready.ui.lateralSourceDetectorSpinBox.value == pytest.approx(1124)
    assert ready.ui.lateralReasonLabel.text == "The geometry is complete."
    ready.ui.lateralPrimarySpinBox.value = -60.0
    assert ready.ui.lateralAnglesOriginLabel.text == "typed"
    assert ready.ui.angleLabel.text.startswith("Angle between the views: 120.0 degrees")
    record = xrays.recordOf(ready._parameterNode.lateral)
    assert record.values.primary_deg == -60 and record.values.source_isocentre_mm == pytest.approx(700)
    assert ready.ui.applyButton.enabled
    ready.ui.lateralPrimarySpinBox.value = -175.0
    assert "nearly parallel" in ready.ui.statusLabel.text and not ready.ui.applyButton.enabled


def test_impossible_and_missing_values_are_refused_where_they_stand(ready):
    ready.ui.frontalSourceIsocentreSpinBox.value = 2000.0
    assert "isocentre must lie between" in ready.ui.frontalReasonLabel.text
    assert not ready.ui.applyButton.enabled and not ready.ui.frontalSaveButton.enabled
    ready.ui.frontalSourceIsocentreSpinBox.value = ready.ui.frontalSourceIsocentreSpinBox.minimum
    assert "source to isocentre is missing" in ready.ui.frontalReasonLabel.text
    ready.ui.frontalSourceIsocentreSpinBox.value = 700.0
    assert ready.ui.frontalReasonLabel.text == "The geometry is complete." and ready.ui.applyButton.enabled


def test_a_geometry_is_typed_in_whole(loaded, slicer):
    ui = loaded.ui
    ui.frontalViewSelector.currentIndex = 1
    assert ui.frontalAnglesOriginLabel.text == "assumed from the view AP"
    ui.frontalSourceDetectorSpinBox.value = 1150.0
    ui.frontalSourceIsocentreSpinBox.value = 1000.0
    ui.frontalSpacingUSpinBox.value = 0.4
    assert ui.frontalSpacingVSpinBox.value == pytest.approx(0.4)
    for axis, value in zip("RAS", ISOCENTRE):
        getattr(ui, f"frontalIsocentre{axis}SpinBox").value = value
    assert ui.frontalReasonLabel.text == "The geometry is complete."
    assert "Frontal: This X-ray is not calibrated, its angles, offset are assumed" in ui.cautionLabel.text
    assert ui.frontalIsocentreOriginLabel.text == ui.frontalSpacingOriginLabel.text == "typed"
    from BiplanarReconLib.scene import xrays
    assert np.allclose(xrays.recordOf(loaded._parameterNode.frontal).geometry.source, np.add(ISOCENTRE, (0, 1000, 0)))
    ui.frontalMirroredCheckBox.checked = True
    assert xrays.recordOf(loaded._parameterNode.frontal).geometry.mirrored


def test_a_preset_asks_for_the_view_and_then_fills_the_values(loaded):
    loaded.ui.frontalPresetButton.click()
    assert "Choose the view first" in loaded.ui.frontalReasonLabel.text
    loaded.ui.frontalViewSelector.currentIndex = 2
    loaded.ui.frontalPresetButton.click()
    assert loaded.ui.frontalSourceDetectorSpinBox.value == 2000
    assert loaded.ui.frontalAnglesOriginLabel.text == "preset ssr-kd" and loaded.ui.frontalPrimarySpinBox.value == 0
    assert "other pixels" in loaded.ui.frontalSpacingOriginLabel.text


def test_a_geometry_of_another_image_size_is_refused_and_the_old_one_kept(ready, tmp_path):
    from BoneReconstructionLib.xraygeometryfiles import write_geometry
    path = tmp_path / "other.json"
    write_geometry(path, views()["frontal"].resized((50, 40)))
    answer(path)
    ready.ui.frontalFileButton.click()
    assert "40 x 50 pixels" in ready.ui.frontalReasonLabel.text and ready.ui.applyButton.enabled


def test_a_geometry_is_saved_as_it_can_be_read_again(ready, tmp_path):
    from BoneReconstructionLib.xraygeometryfiles import read_geometry
    answer(tmp_path / "saved.json")
    ready.ui.lateralSaveButton.click()
    assert np.allclose(read_geometry(tmp_path / "saved.json", SHAPE).matrix, views()["lateral"].matrix)


def test_a_calibration_asks_for_the_patients_axes_and_hands_them_over(application, monkeypatch, ready):
    from dataclasses import replace

    from BiplanarReconLib.scene import xrays
    assert not ready.ui.patientAxesEdit.visible
    for name in ("frontal", "lateral"):
        ready._change(name, lambda record: replace(record, anatomical=False))
    assert ready.ui.patientAxesEdit.visible and "calibration object" in ready.ui.statusLabel.text
    ready.ui.patientAxesEdit.text = "-y,x,z"
    assert ready.ui.applyButton.enabled
    replaceWorker(monkeypatch, RECONSTRUCTOR)
    ready.ui.applyButton.click()
    finish(application, ready)
    assert json.loads(ready._parameterNode.resultRecord.GetText())["patient_axes"] == "-y,x,z"
    assert not xrays.recordOf(ready._parameterNode.frontal).geometry.anatomical


def test_landmarks_on_both_x_rays_reach_the_job(application, monkeypatch, ready, slicer):
    from BiplanarReconLib.scene import landmarks, xrays

    placing = []
    monkeypatch.setattr(landmarks, "placeNext", placing.append)
    ready.ui.landmarksButton.click()
    points = ready._parameterNode.landmarks
    assert placing == [points] and ready.ui.landmarksSelector.currentNode() is points
    assert "at least one landmark on each X-ray" in ready.ui.statusLabel.text and not ready.ui.applyButton.enabled

    labels = [points.GetNthControlPointLabel(n) for n in range(points.GetNumberOfControlPoints())]
    for name, label, pixel in (
        ("frontal", "tip of the fibular head, frontal", (20.0, 50.0)),
        ("lateral", "middle of the patella, lateral", (31.5, 12.25)),
    ):
        geometry = xrays.recordOf(getattr(ready._parameterNode, name)).geometry
        points.SetNthControlPointPosition(labels.index(label), geometry.pixel_positions(np.array([pixel]))[0])
    slicer.app.processEvents()
    assert ready.ui.applyButton.enabled
    ready.ui.landmarksButton.click()
    assert ready._parameterNode.landmarks is points

    replaceWorker(monkeypatch, RECONSTRUCTOR)
    ready.ui.applyButton.click()
    finish(application, ready)
    record = json.loads(ready._parameterNode.resultRecord.GetText())
    assert record["landmarks"] == [
        ["ap", "fibular-head", "20.00", "50.00"],
        ["lateral", "patella", "31.50", "12.25"],
    ]


def test_bones_come_as_coded_segments_and_models_named_predicted(reconstructed, slicer):
    result = of(reconstructed)
    segmentation = result.segmentation.GetSegmentation()
    segments = [segmentation.GetNthSegment(index) for index in range(segmentation.GetNumberOfSegments())]
    assert [segment.GetName() for segment in segments] == ["PREDICTED femur", "PREDICTED tibia", "PREDICTED fibula"]
    codes = ["71341001", "12611008", "87342007"]
    assert all(code in segment.GetTerminology() and "24028007" in segment.GetTerminology()
               for code, segment in zip(codes, segments))
    assert list(result.models) == ["femur", "tibia", "fibula"]
    assert all("PREDICTED" in node.GetName() for node in (*result.nodes, result.table, result.record))
    centre = slicer.util.arrayFromModelPoints(result.models["femur"]).mean(axis=0)
    assert np.allclose(centre, (25, -60, 410), atol=0.5)
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in (*result.nodes, result.record)}
    assert len(folders) == 1 and "PREDICTED right knee" in hierarchy.GetItemName(folders.pop())
    assert "The patella lies outside" in reconstructed.ui.summaryLabel.text
    assert "two projections" in reconstructed.ui.summaryLabel.text


def test_outlines_lie_on_their_x_rays(reconstructed, slicer):
    result = of(reconstructed)
    for name, geometry in views().items():
        points = slicer.util.arrayFromModelPoints(result.outlines[name][0]).astype(float)
        spot = geometry.project(np.array([[25.0, -60, 410]]))[0]
        assert np.abs(geometry.project(points).mean(axis=0) - spot).max() < 2
        beyond = geometry.source_detector_mm - geometry.depths(points)
        assert (beyond > 0).all() and beyond.max() < 0.01 * geometry.source_detector_mm
    reconstructed.ui.outlinesCheckBox.checked = False
    assert not any(node.GetDisplayNode().GetVisibility() for drawn in result.outlines.values() for node in drawn)


def test_residuals_are_listed_and_exported(reconstructed, tmp_path):
    from BoneReconstructionLib import scene
    header, *rows = scene.tableRows(of(reconstructed).table)
    assert header[:3] == ["Bone", "Frontal residual (mm)", "Lateral residual (mm)"]
    assert rows[1][:3] == ["tibia", "0.8", "nan"] and float(rows[0][4]) == 90
    assert reconstructed.ui.tableView.visible
    answer(tmp_path / "table.csv")
    reconstructed.ui.exportButton.click()
    assert (tmp_path / "table.csv").read_text().startswith("Bone,")


def test_opacity_and_standard_deviation_change_what_is_drawn(reconstructed, slicer):
    models = of(reconstructed).models
    reconstructed.ui.boneOpacitySlider.value = 0.4
    assert models["tibia"].GetDisplayNode().GetOpacity() == pytest.approx(0.4)
    reconstructed.ui.deviationCheckBox.checked = True
    reconstructed.ui.deviationRangeSlider.value = 1.5
    legends = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model) for model in models.values()]
    assert [legend.GetVisibility() for legend in legends] == [1, 0, 0]
    for model in models.values():
        display = model.GetDisplayNode()
        assert display.GetScalarVisibility() and display.GetActiveScalarName() == "StandardDeviation_mm"
        assert display.GetScalarRange() == (0.0, 1.5)


def test_everything_is_found_again_in_a_saved_scene(application, reconstructed, slicer, tmp_path):
    from BiplanarReconLib.scene import xrays
    path = str(tmp_path / "knee.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    application.process()
    slicer.util.loadScene(path)
    panel = application.openModule("BiplanarRecon")
    assert panel.ui.frontalViewSelector.currentIndex == 1 and panel.ui.lateralViewSelector.currentIndex == 2
    assert panel.ui.sideSelector.currentIndex == 2 and panel.ui.applyButton.enabled
    assert panel.ui.lateralSpacingOriginLabel.text == "the file lateral.json (preset c-arm)"
    node = panel._parameterNode
    for name, geometry in views().items():
        xray = node.getValue(name)
        assert np.allclose(xrays.recordOf(xray).geometry.matrix, geometry.matrix)
        assert xray.GetNodeReference(xrays.PLANE_ROLE).GetDisplayNode().GetTextureImageDataConnection() is not None
    result = of(panel)
    assert list(result.models) == ["femur", "tibia", "fibula"] and len(result.outlines["lateral"]) == 3
    assert result.xray("frontal") is node.frontal and panel.ui.tableView.visible
    panel.ui.outlinesCheckBox.checked = False
    assert not result.outlines["frontal"][0].GetDisplayNode().GetVisibility()


def test_a_refusal_of_the_job_reaches_the_panel_and_leaves_the_scene_as_it_was(
        application, monkeypatch, ready, slicer):
    replaceWorker(monkeypatch, RECONSTRUCTOR)
    ready.ui.sideSelector.currentIndex = 1
    count = slicer.mrmlScene.GetNumberOfNodes()
    ready.ui.applyButton.click()
    finish(application, ready)
    assert ready.ui.statusLabel.text == (
        "Failed: The X-rays are tagged as of a right knee, not a left one: check the side.")
    assert slicer.mrmlScene.GetNumberOfNodes() == count and ready.ui.applyButton.enabled


def test_a_running_job_is_cancelled_by_the_same_button(application, monkeypatch, ready, slicer):
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    count = slicer.mrmlScene.GetNumberOfNodes()
    ready.ui.applyButton.click()
    assert ready.ui.applyButton.text == "Cancel" and not ready.ui.simulateButton.enabled
    ready.ui.applyButton.click()
    finish(application, ready, 20)
    assert "Cancelled" in ready.ui.statusLabel.text and slicer.mrmlScene.GetNumberOfNodes() == count
    assert ready.ui.applyButton.text == "Apply"


def test_a_second_reconstruction_hides_the_first_and_replaces_none(application, reconstructed):
    first = of(reconstructed)
    reconstructed.ui.applyButton.click()
    finish(application, reconstructed)
    assert of(reconstructed).record is not first.record
    assert not any(node.GetDisplayNode().GetVisibility() for node in first.nodes)
    assert of(reconstructed).models["femur"].GetDisplayNode().GetVisibility()


@pytest.fixture
def ct(panel):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.volumes import Volume
    frame = np.diag([3.0, 3.0, 3.0, 1.0])
    frame[:3, 3] = -5, -90, 380
    array = np.full((20, 20, 20), -1000, np.int16)
    array[5:15, 5:12, 4:16] = 900
    return scene.volumeToNode(Volume(array, frame), "Knee CT")


def test_simulated_x_rays_are_chosen_with_their_geometry(application, monkeypatch, panel, ct, slicer):
    from BiplanarReconLib.scene import xrays
    replaceWorker(monkeypatch, SIMULATOR)
    assert not panel.ui.simulateButton.enabled
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.simulationPresetSelector.currentIndex = 2
    panel.ui.simulationLateralSelector.currentIndex = 1
    panel.ui.simulationAngleSlider.value = 60.0
    panel.ui.simulateButton.click()
    assert panel.ui.simulateButton.text == "Cancel"
    finish(application, panel)
    assert panel.ui.simulationLabel.text == "Done, projected by numba."
    assert panel.ui.frontalViewSelector.currentIndex == 1 and panel.ui.lateralViewSelector.currentIndex == 2
    assert panel.ui.angleLabel.text.startswith("Angle between the views: 60.0 degrees")
    assert panel.ui.frontalAnglesOriginLabel.text == "the simulation (preset c-arm)"
    assert "simulated" in panel.ui.frontalStepsLabel.text and "left or a right knee" in panel.ui.statusLabel.text
    node = panel._parameterNode
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    items = [hierarchy.GetItemByDataNode(one) for one in (node.frontal, node.lateral)]
    assert len({hierarchy.GetItemParent(item) for item in items}) == 1
    plane = node.frontal.GetNodeReference(xrays.PLANE_ROLE)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(plane)) == items[0]
    panel.ui.ctSelector.setCurrentNode(node.frontal)
    assert "is an X-ray" in panel.ui.simulateButton.toolTip and not panel.ui.simulateButton.enabled


def test_virtual_knees_are_offered_as_sample_data(application, monkeypatch, panel, slicer):
    import SampleData

    from BiplanarReconLib.scene import samples, xrays
    from BoneReconstructionLib import scenejob
    offered = [source.sampleName for source in slicer.modules.sampleDataSources["Bone Reconstruction"]]
    assert set(samples.SAMPLES) <= set(offered)
    monkeypatch.setattr(scenejob, "python_command", lambda interpreter, *arguments: [
        interpreter, "-c", KNEE_MAKER if arguments[0] == "make-knee" else SIMULATOR, *map(str, arguments)])
    frontal, lateral, ct, *bones = SampleData.downloadSamples("KneeBiplanarXrays60")
    assert xrays.isXray(frontal) and xrays.recordOf(lateral).view == "left lateral" and not xrays.isXray(ct)
    assert len(bones) == 4 and not any(bone.GetDisplayNode().GetVisibility() for bone in bones)
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(ct))
    assert hierarchy.GetItemLevel(folder) == "Patient" and hierarchy.GetItemAncestorAtLevel(
        hierarchy.GetItemByDataNode(frontal), "Patient") == folder
    monkeypatch.setattr(scenejob, "python_command", lambda interpreter, *arguments: [
        interpreter, "-c", "import sys; print('bonerecon: torch is missing.', file=sys.stderr); sys.exit(3)"])
    assert SampleData.downloadSamples("KneeBiplanarXrays") == []
    assert "torch is missing" in application.messages[-1][1]


def test_views_are_arranged_where_there_are_some(application, reconstructed, slicer):
    assert not reconstructed.ui.bothButton.enabled and not reconstructed.ui.frontalCameraButton.enabled
    application.openViews()
    reconstructed.updateDisplay()
    reconstructed.ui.bothButton.click()
    manager = slicer.app.layoutManager()
    red = manager.sliceWidget("Red")
    assert red.sliceLogic().GetSliceCompositeNode().GetBackgroundVolumeID() == reconstructed._parameterNode.frontal.GetID()
    outline = of(reconstructed).outlines["frontal"][0].GetDisplayNode()
    assert red.mrmlSliceNode().GetID() in outline.GetViewNodeIDs()
    assert manager.sliceWidget("Green").mrmlSliceNode().GetID() not in outline.GetViewNodeIDs()
    reconstructed.ui.lateralCameraButton.click()
    assert not application.messages
    camera = slicer.modules.cameras.logic().GetViewActiveCameraNode(manager.threeDWidget(0).mrmlViewNode())
    assert np.allclose(camera.GetPosition(), views()["lateral"].source)
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    reconstructed.ui.lateralCameraButton.click()
    assert "There is no 3D view" in application.messages[-1][1]


SHIFT = np.array([3.0, 0, 0])


def addBones(name, bones, shift=SHIFT):
    """A segmentation of a CT with the balls of RECONSTRUCTOR, moved by a shift, mm.

    Args:
        bones: (number of the ball, segment's name, bone of its code or None, side of its code or None) of each segment.
    """
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.volumes import Volume
    frame = np.diag([2.0, 2.0, 2.0, 1.0])
    frame[:3, 3] = (5, -80, 390) + shift
    k, j, i = np.indices((21, 21, 41))
    node = scene.addSegmentation(name)
    for number, title, bone, side in bones:
        ball = (i - 10 * number) ** 2 + (j - 10) ** 2 + (k - 10) ** 2 < 16
        segmentID = scene.addSegment(node, Volume(ball, frame), title, (1.0, 1.0, 1.0), bone or "L1", side)
        if bone is None:
            node.GetSegmentation().GetSegment(segmentID).SetTerminology("")
    return node


CODED_KNEE = ((2, "Segment_1", "tibia", "right"), (1, "Knochen 2", "femur", None), (3, "Fibula_R", None, None),
              (3, "left fibula", None, None), (3, "skin", None, None))


def letCompare(monkeypatch):
    """Let jobs run the command line again."""
    from BoneReconstructionLib import jobs, scenejob
    monkeypatch.setattr(scenejob, "python_command", jobs.python_command)


def compared(panel):
    from BiplanarReconLib.scene import comparisons
    return comparisons.fromRecord(panel._parameterNode.comparisonRecord)


def legends(slicer, models):
    return [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model).GetVisibility() for model in models.values()]


def test_bones_are_compared_with_a_segmentation_and_the_comparison_is_found_again(
        application, monkeypatch, reconstructed, slicer, tmp_path):
    from BoneReconstructionLib import scene
    ui = reconstructed.ui
    assert not ui.compareButton.enabled and "Select what to compare with" in ui.comparisonLabel.text
    letCompare(monkeypatch)
    reference = addBones("CT bones", CODED_KNEE)
    ui.referenceSelector.setCurrentNode(reference)
    assert not ui.comparedBoneSelector.enabled and ui.comparisonLabel.text == "" and ui.heatmapCheckBox.checked
    ui.compareButton.click()
    assert ui.compareButton.text == "Cancel" and not ui.simulateButton.enabled
    finish(application, reconstructed)
    assert ui.comparisonLabel.text.startswith("Done. Distances in mm; positive: the PREDICTED bone lies outside")
    assert ui.compareButton.text == "Compare" and ui.compareButton.enabled
    found, result = compared(reconstructed), of(reconstructed)
    header, *rows = scene.tableRows(found.table)
    assert found.table.GetName() == "PREDICTED right knee compared with CT bones"
    assert header == ["Bone", "DSC", "ASSD (mm)", "HD (mm)", "HD95 (mm)", "Mean signed (mm)",
                      "PREDICTED volume (mL)", "Reference volume (mL)"]
    assert [row[0] for row in rows] == ["femur", "tibia", "fibula"]
    for row in rows:
        dsc, assd, hd, hd95, signed, predicted, real = map(float, row[1:])
        # A ball of 8 mm and itself, moved by d = 3 mm: 1 - 1.5 a + 0.5 a³ of it is common, a = d / 16 mm; its surface's
        # mean signed distance is d² / 24 mm.
        assert dsc == pytest.approx(1 - 1.5 * 3 / 16 + 0.5 * (3 / 16) ** 3, abs=0.03)
        assert signed == pytest.approx(3**2 / 24, abs=0.1)
        assert hd == pytest.approx(3, abs=0.1) and 1.2 < assd < 1.8 and 2.5 < hd95 <= hd
        assert predicted == pytest.approx(real, rel=0.01)
    for bone, model in found.models.items():
        display = model.GetDisplayNode()
        assert model.GetName() == f"PREDICTED {bone}, compared" and display.GetVisibility()
        assert display.GetScalarVisibility() and display.GetActiveScalarName() == "SignedDistance_mm"
        # Moved to the patient's right, +x: the predicted bone lies outside the reference on its left, -x.
        points = slicer.util.arrayFromModelPoints(model)
        distances = slicer.util.arrayFromModelPointData(model, "SignedDistance_mm")
        assert distances[points[:, 0].argmin()] == pytest.approx(3, abs=0.1)
        assert distances[points[:, 0].argmax()] == pytest.approx(-3, abs=0.1)
        assert not result.models[bone].GetDisplayNode().GetVisibility()
    assert legends(slicer, found.models) == [1, 0, 0] and legends(slicer, result.models) == [0, 0, 0]
    ui.heatmapRangeSlider.value = 3.5
    assert found.models["fibula"].GetDisplayNode().GetScalarRange() == (-3.5, 3.5)
    answer(tmp_path / "comparison.csv")
    ui.comparisonExportButton.click()
    assert (tmp_path / "comparison.csv").read_text().startswith("Bone,DSC,")

    path = str(tmp_path / "compared.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    application.process()
    assert not ui.comparisonTableView.visible and not ui.comparisonExportButton.enabled
    slicer.util.loadScene(path)
    panel = application.openModule("BiplanarRecon")
    again, result = compared(panel), of(panel)
    assert list(again.models) == ["femur", "tibia", "fibula"] and panel.ui.comparisonTableView.visible
    assert panel._parameterNode.reference.GetName() == "CT bones" and panel.ui.heatmapRangeSlider.value == 3.5
    assert "positive: the PREDICTED bone" in panel.ui.comparisonLabel.text
    assert legends(slicer, again.models) == [1, 0, 0]
    record = json.loads(again.record.GetText())
    assert len(record["settings"]["views"]) == 2
    assert record["inputs"]["tibia"]["segment"] == "Segment_1" and record["inputs"]["fibula"]["segment"] == "Fibula_R"
    assert again.record.GetNodeReference(scene.inputRole("reconstruction")) is result.record
    panel.ui.heatmapCheckBox.checked = False
    assert not any(model.GetDisplayNode().GetVisibility() for model in again.models.values())
    assert all(model.GetDisplayNode().GetVisibility() for model in result.models.values())
    assert legends(slicer, again.models) == [0, 0, 0]


def test_a_model_is_compared_with_the_chosen_bone_after_alignment(application, monkeypatch, reconstructed, slicer):
    from BoneReconstructionLib import scene
    ui = reconstructed.ui
    letCompare(monkeypatch)
    surface = scene.surfaceFromModel(of(reconstructed).models["tibia"])
    reference = scene.surfaceToModel(type(surface)(surface.vertices + SHIFT, surface.faces), "Other", (1.0, 1.0, 1.0))
    ui.referenceSelector.setCurrentNode(reference)
    assert ui.comparedBoneSelector.enabled
    ui.comparedBoneSelector.currentIndex = 3
    assert ui.comparisonLabel.text == "The reconstruction has no patella: choose another bone."
    assert not ui.compareButton.enabled and "patella" in ui.compareButton.toolTip
    ui.comparedBoneSelector.currentIndex = 1
    ui.comparisonAlignmentSelector.currentIndex = 1
    ui.deviationCheckBox.checked = True
    ui.compareButton.click()
    finish(application, reconstructed)
    found, result = compared(reconstructed), of(reconstructed)
    header, row = scene.tableRows(found.table)
    assert header[-1] == "Alignment RMS (mm)" and row[0] == "tibia" and float(row[1]) > 0.99 and float(row[3]) < 0.1
    middle = slicer.util.arrayFromModelPoints(found.models["tibia"]).mean(axis=0)
    assert np.allclose(middle, surface.vertices.mean(axis=0) + SHIFT, atol=0.1)
    # The other bones stay as they were; the one legend is the heatmap's.
    assert [bool(model.GetDisplayNode().GetVisibility()) for model in result.models.values()] == [True, False, True]
    assert legends(slicer, found.models) == [1] and legends(slicer, result.models) == [0, 0, 0]
    assert not reference.GetDisplayNode().GetVisibility3D() and not ui.deviationCheckBox.enabled
    ui.heatmapCheckBox.checked = False
    assert legends(slicer, found.models) == [0] and legends(slicer, result.models) == [1, 0, 0]
    ui.heatmapCheckBox.checked = True
    replaceWorker(monkeypatch, RECONSTRUCTOR)
    ui.applyButton.click()
    finish(application, reconstructed)
    assert compared(reconstructed) is None and not found.models["tibia"].GetDisplayNode().GetVisibility()
    assert all(model.GetDisplayNode().GetVisibility() for model in of(reconstructed).models.values())


def test_a_reference_ends_for_the_comparison_where_the_x_rays_ended(application, monkeypatch, reconstructed):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.meshing import mask_surface
    from BoneReconstructionLib.volumes import Volume
    letCompare(monkeypatch)
    # A shaft from the predicted tibia, a ball of 8 mm about (45, -60, 410), down far beyond both X-rays.
    shaft = np.zeros((160, 12, 12), bool)
    shaft[2:-2, 2:-2, 2:-2] = True
    frame = np.diag([2.0, 2.0, 2.0, 1.0])
    frame[:3, 3] = 45 - 11, -60 - 11, 420 - 310
    reference = scene.surfaceToModel(mask_surface(Volume(shaft, frame)), "Long tibia", (1.0, 1.0, 1.0))
    line = np.column_stack([np.full(600, 45.0), np.full(600, -60.0), np.linspace(110, 410, 600)])
    seen = np.all([geometry.contains(line) for geometry in views().values()], axis=0)
    lowest = line[seen, 2].min()
    assert 300 < lowest < 330
    reconstructed.ui.frontalRollSpinBox.value = 20.0  # what was, counts
    ui = reconstructed.ui
    ui.referenceSelector.setCurrentNode(reference)
    ui.comparedBoneSelector.currentIndex = 1
    ui.compareButton.click()
    finish(application, reconstructed)
    row = scene.tableRows(compared(reconstructed).table)[1]
    assert float(row[3]) == pytest.approx(402 - lowest, abs=3)
    assert float(row[7]) == pytest.approx(16 * 16 * (424 - lowest) / 1000, rel=0.05)


def test_a_running_comparison_is_cancelled_by_its_button(application, monkeypatch, reconstructed, slicer):
    ui = reconstructed.ui
    ui.referenceSelector.setCurrentNode(addBones("CT bones", CODED_KNEE))
    replaceWorker(monkeypatch, "import time; time.sleep(60)")
    count = slicer.mrmlScene.GetNumberOfNodes()
    ui.compareButton.click()
    assert ui.compareButton.text == "Cancel" and ui.applyButton.text == "Cancel"
    ui.compareButton.click()
    assert ui.comparisonLabel.text == "Cancelling..."
    finish(application, reconstructed, 20)
    assert ui.comparisonLabel.text == "Cancelled; the scene is as it was." and ui.compareButton.text == "Compare"
    assert slicer.mrmlScene.GetNumberOfNodes() == count and compared(reconstructed) is None


def test_a_comparison_that_fails_says_why_beside_its_button(application, monkeypatch, reconstructed, slicer):
    ui = reconstructed.ui
    ui.referenceSelector.setCurrentNode(addBones("CT bones", CODED_KNEE))
    replaceWorker(monkeypatch, "import sys; print('bonerecon: The bones are odd.', file=sys.stderr); sys.exit(2)")
    ui.compareButton.click()
    finish(application, reconstructed)
    assert ui.comparisonLabel.text == "Failed: The bones are odd."
    ui.referenceSelector.setCurrentNode(reconstructed._parameterNode.frontal.GetNodeReference("BiplanarRecon.beam"))
    ui.compareButton.click()
    assert "has no triangles" in ui.comparisonLabel.text and reconstructed.job is None


@pytest.mark.parametrize("name, bones, sentence", [
    ("CT bones", [(1, "skin", None, None), (2, "femur and tibia", None, None)],
     'No segment of "CT bones" is coded or named as one of the bones femur, tibia, fibula: name the segments so.'),
    ("CT bones", [(1, "LeftFemur", None, None), (2, "tibia", "tibia", "left")],
     '"CT bones" is of the other side, but the reconstruction is of a right knee: select bones of that side.'),
    ("Left leg", [(1, "femur", None, None)],
     '"Left leg" is of the other side, but the reconstruction is of a right knee: select bones of that side.'),
    ("CT bones", [(1, "femur", None, None), (2, "Femur 2", None, None)],
     '"CT bones" has 2 segments that may be the femur: name or code one of them only.'),
])
def test_a_segmentation_without_a_counterpart_is_refused_in_one_sentence(reconstructed, name, bones, sentence):
    reconstructed.ui.referenceSelector.setCurrentNode(addBones(name, bones))
    assert reconstructed.ui.comparisonLabel.text == sentence and not reconstructed.ui.compareButton.enabled
    assert reconstructed.ui.compareButton.toolTip == sentence


def test_nothing_is_compared_with_itself_with_the_other_side_or_before_there_is_something(reconstructed, slicer):
    from BiplanarReconLib.scene import comparisons
    from BoneReconstruction import BoneReconstructionTest
    ui, result = reconstructed.ui, of(reconstructed)
    ui.referenceSelector.setCurrentNode(result.segmentation)
    assert ui.comparisonLabel.text == '"PREDICTED right knee" is the reconstruction itself: select what to compare it with.'
    ui.referenceSelector.setCurrentNode(BoneReconstructionTest.makeModel("Tibia, left"))
    assert '"Tibia, left" is of the other side' in ui.comparisonLabel.text
    assert comparisons.reasonNotToCompare(None, result.segmentation, "femur").startswith("There are no PREDICTED bones")


def test_the_self_test_passes(application):
    application.runSelfTest("BiplanarRecon")


def test_closing_the_scene_empties_the_panel(application, reconstructed, slicer):
    slicer.mrmlScene.Clear(0)
    application.process()
    assert reconstructed.ui.frontalStepsLabel.text == "No X-ray." and not reconstructed.ui.tableView.visible
    assert reconstructed.ui.summaryLabel.text == "No reconstruction yet."
    assert reconstructed.ui.statusLabel.text == "Load or select the frontal X-ray."
