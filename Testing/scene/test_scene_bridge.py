"""The scene bridge on slicer-core's real scene: oblique and transformed geometry, terminology, all or nothing."""

import itertools
import json

import numpy as np
import pytest

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.volumes import Volume

SHAPE = (24, 30, 36)
TURN = np.array([[0.0, -1.0, 0.0, 5.0], [0.8, 0.0, 0.6, -7.0], [-0.6, 0.0, 0.8, 11.0], [0.0, 0.0, 0.0, 1.0]])


def obliqueFrame(flipped=False):
    """IJK-to-RAS with 0.7 x 0.9 x 1.4 mm voxels, turned about a skew axis; flipped: left-handed."""
    rotation = np.linalg.qr(np.array([[3.0, 1, 0.2], [-1, 2, 1], [0.5, -1, 4]]))[0]
    rotation[:, 0] *= np.sign(np.linalg.det(rotation)) * (-1 if flipped else 1)
    frame = np.eye(4)
    frame[:3, :3] = rotation @ np.diag([0.7, 0.9, 1.4])
    frame[:3, 3] = 40, -25, 130
    return frame


def asymmetricMask(frame):
    """Bool Volume of an ellipsoid with a block on one side."""
    k, j, i = np.indices(SHAPE)
    body = ((i - 15) / 9) ** 2 + ((j - 13) / 7) ** 2 + ((k - 11) / 6) ** 2 < 1
    block = (abs(i - 25) < 3) & (abs(j - 17) < 3) & (abs(k - 14) < 2)
    return Volume(body | block, frame)


def centre(mask):
    """Centre of a bool Volume in RAS mm."""
    voxels = np.argwhere(mask.array)[:, ::-1].mean(axis=0)
    return (mask.ijk_to_ras @ np.append(voxels, 1))[:3]


@pytest.fixture
def scene(application):
    from BoneReconstructionLib import scene
    return scene


@pytest.fixture
def slicer(application):
    import slicer
    return slicer


@pytest.fixture(params=(False, True), ids=("right-handed", "left-handed"))
def bone(request):
    return asymmetricMask(obliqueFrame(request.param))


def nodeCount(slicer):
    return slicer.mrmlScene.GetNumberOfNodes()


def itemNames(slicer):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    return sorted(hierarchy.GetItemName(item) for item in hierarchyItems(slicer, hierarchy))


def hierarchyItems(slicer, hierarchy):
    import vtk
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    return [items.GetId(index) for index in range(items.GetNumberOfIds())]


def test_a_volume_comes_back_from_the_scene_with_its_voxels_and_frame(scene, bone):
    values = np.random.default_rng(1).integers(-1000, 2000, SHAPE).astype(np.int16)
    back = scene.volumeFromNode(scene.volumeToNode(Volume(values, bone.ijk_to_ras), "CT"))
    assert np.array_equal(back.array, values)
    assert np.allclose(back.ijk_to_ras, bone.ijk_to_ras)


def test_a_segment_in_the_volumes_grid_comes_back_voxel_for_voxel(scene, bone):
    ct = scene.volumeToNode(Volume(np.zeros(SHAPE, np.int16), bone.ijk_to_ras), "CT")
    segmentation = scene.addSegmentation("Patient", ct)
    segmentID = scene.addSegment(segmentation, bone, "Tibia", (1, 0, 0), "tibia", "left")
    back = scene.maskInGeometry(scene.segmentMask(segmentation, segmentID), scene.volumeFromNode(ct))
    assert np.array_equal(back.array, bone.array)


def test_segments_that_share_a_labelmap_are_told_apart(scene, bone):
    segmentation = scene.addSegmentation("Patient")
    rest = Volume(~bone.array, bone.ijk_to_ras)
    segmentIDs = [scene.addSegment(segmentation, mask, name, (1, 0, 0), "tibia") for mask, name in (
        (bone, "Tibia"), (rest, "Rest"))]
    emptyID = scene.addEmptySegment(segmentation, "Fracture mask", (1, 0, 0))
    segmentation.GetSegmentation().CollapseBinaryLabelmaps(True)
    assert segmentation.GetSegmentation().GetNumberOfLayers() == 1
    for segmentID, mask in zip(segmentIDs, (bone, rest)):
        assert np.array_equal(scene.maskInGeometry(scene.segmentMask(segmentation, segmentID), bone).array, mask.array)
    with pytest.raises(InputError, match="empty"):
        scene.segmentMask(segmentation, emptyID)


def test_a_segment_kept_as_surface_becomes_a_mask_without_changing_the_segmentation(scene, slicer, bone):
    from BoneReconstructionLib.meshing import to_polydata
    segmentation = scene.addSegmentation("Planned")
    segmentation.SetSourceRepresentationToClosedSurface()
    segmentID = segmentation.AddSegmentFromClosedSurfaceRepresentation(to_polydata(mask_surface(bone)), "Tibia")
    mask = scene.segmentMask(segmentation, segmentID)
    assert np.allclose(centre(mask), centre(bone), atol=0.5)
    assert not segmentation.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_parent_transforms_move_volume_segment_model_and_roi_alike(scene, slicer, bone):
    transform = scene.addTransform(TURN, "turn")
    segmentation = scene.addSegmentation("Patient")
    segmentID = scene.addSegment(segmentation, bone, "Tibia", (1, 0, 0), "tibia")
    labelmap = scene.volumeToNode(bone, "label", "vtkMRMLLabelMapVolumeNode")
    model = scene.surfaceToModel(mask_surface(bone), "bone", (1, 1, 1))
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(*centre(bone))
    roi.SetSize(9, 7, 5)
    modelCentre = scene.surfaceFromModel(model).vertices.mean(axis=0)
    for node in (segmentation, labelmap, model, roi):
        node.SetAndObserveTransformNodeID(transform.GetID())

    def turned(point):
        return (TURN @ np.append(point, 1))[:3]

    assert np.allclose(centre(scene.segmentMask(segmentation, segmentID)), turned(centre(bone)))
    assert np.allclose(centre(scene.maskFromNode(labelmap)), turned(centre(bone)))
    assert np.allclose(centre(scene.roiMask(roi)), turned(centre(bone)))
    assert np.allclose(scene.surfaceFromModel(model).vertices.mean(axis=0), turned(modelCentre), atol=1e-4)


def test_a_mask_of_another_geometry_keeps_its_place_and_volume(scene, bone):
    grid = np.diag([0.8, 0.8, 0.8, 1.0])
    corners = bone.ijk_to_ras @ np.array(list(itertools.product((0, 36), (0, 30), (0, 24), (1,)))).T
    grid[:3, 3] = corners[:3].min(axis=1)
    shape = np.ceil(np.ptp(corners[:3], axis=1) / 0.8).astype(int)[::-1]
    moved = scene.maskInGeometry(bone, Volume(np.zeros(shape, np.int16), grid))
    voxels = abs(np.linalg.det(bone.ijk_to_ras[:3, :3])), 0.8**3
    assert moved.array.sum() * voxels[1] == pytest.approx(bone.array.sum() * voxels[0], rel=0.03)
    assert np.allclose(centre(moved), centre(bone), atol=0.1)


def test_a_turned_roi_marks_exactly_the_voxels_whose_centres_it_holds(scene, slicer, bone):
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetCenter(*centre(bone))
    roi.SetSize(11.3, 6.7, 8.9)
    roi.SetAndObserveTransformNodeID(scene.addTransform(turnAbout(centre(bone)), "turn").GetID())
    marked = scene.maskInGeometry(scene.roiMask(roi), bone).array
    expected = np.zeros(SHAPE, dtype=bool)
    for k, j, i in np.ndindex(*SHAPE):
        expected[k, j, i] = roi.IsPointInROIWorld((bone.ijk_to_ras @ (i, j, k, 1))[:3])
    assert expected.sum() > 300
    assert np.array_equal(marked, expected)


def turnAbout(point):
    turn = TURN.copy()
    turn[:3, 3] = point - turn[:3, :3] @ point
    return turn


def test_a_mask_that_reaches_beyond_the_volume_is_cut_at_its_border(scene, bone):
    reference = Volume(bone.array[4:, :12, 3:30], bone.ijk_to_ras.copy())
    reference.ijk_to_ras[:3, 3] += bone.ijk_to_ras[:3, :3] @ (3, 0, 4)
    assert np.array_equal(scene.maskInGeometry(bone, reference).array, reference.array)


def test_models_face_outward_after_a_mirroring_transform(scene, bone):
    from BoneReconstructionLib.surfaces import volume_mm3
    model = scene.surfaceToModel(mask_surface(bone), "bone", (1, 1, 1))
    model.SetAndObserveTransformNodeID(scene.addTransform(np.diag([-1.0, 1, 1, 1]), "mirror").GetID())
    assert volume_mm3(scene.surfaceFromModel(model)) > 0


def test_segments_are_coded_with_bone_and_side(scene, slicer, bone):
    segmentation = scene.addSegmentation("Patient")
    segmentID = scene.addSegment(segmentation, bone, "Tibia", (0.2, 0.4, 0.6), "tibia", "left")
    segment = segmentation.GetSegmentation().GetSegment(segmentID)
    entry = slicer.vtkSlicerTerminologyEntry()
    logic = slicer.modules.terminologies.logic()
    assert logic.DeserializeTerminologyEntry(segment.GetTerminology(), entry)
    assert entry.GetTypeObject().GetCodeValue() == "12611008"
    assert entry.GetTypeModifierObject().GetCodeValue() == "7771000"
    assert segment.GetColor() == pytest.approx((0.2, 0.4, 0.6))


def test_our_terminology_file_holds_every_bone_that_we_code(scene, slicer):
    from pathlib import Path
    path = Path(scene.__file__).parents[1] / "Resources" / "BoneReconstruction.term.json"
    assert scene.loadTerminology(path) == scene.TERMINOLOGY_NAME
    logic = slicer.modules.terminologies.logic()
    entry = slicer.vtkSlicerTerminologyEntry()
    for bone, code in scene.BONE_CODES.items():
        label = code.split("^")[2].lower().replace(" ", "_")
        assert logic.FindTypeInTerminologyBy3dSlicerLabel(scene.TERMINOLOGY_NAME, label, entry), bone
        assert entry.GetTypeObject().GetCodeValue() == code.split("^")[1]


@pytest.fixture
def heatmap(scene, bone):
    surface = mask_surface(bone)
    distances = surface.vertices[:, 0] - surface.vertices[:, 0].mean()
    distances[:40] = np.nan
    model = scene.surfaceToModel(surface, "bone", (1, 1, 1), scalars={"Distance": distances})
    scene.addHeatmap(model, "Distance", 2.0, "Distance (mm)")
    return model


def test_a_heatmap_is_symmetric_red_outside_blue_inside_and_grey_without_value(scene, heatmap):
    display = heatmap.GetDisplayNode()
    table = display.GetColorNode().GetLookupTable()
    assert display.GetScalarRange() == (-2.0, 2.0) == table.GetRange()
    inside, surface, outside = (table.GetTableValue(table.GetIndex(value)) for value in (-2.0, 0.0, 2.0))
    assert outside[0] > 2 * outside[2] and inside[2] > 2 * inside[0] and min(surface) > 0.9
    assert table.GetNanColor()[:3] == pytest.approx((0.45, 0.45, 0.45))


def test_a_heatmaps_range_and_visibility_follow_the_panel(scene, slicer, heatmap):
    scene.setHeatmapRange(heatmap, 0.5)
    scene.setHeatmapVisible(heatmap, False)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heatmap)
    assert heatmap.GetDisplayNode().GetScalarRange() == (-0.5, 0.5)
    assert not heatmap.GetDisplayNode().GetScalarVisibility() and not legend.GetVisibility()
    scene.setHeatmapVisible(heatmap, True)
    assert heatmap.GetDisplayNode().GetScalarVisibility() and legend.GetVisibility()
    assert legend.GetLabelFormat() == "%.1f" and "mm" in legend.GetTitleText()


def test_a_saved_scene_shows_the_same_heatmap_when_it_is_loaded(scene, slicer, heatmap, tmp_path):
    path = str(tmp_path / "scéne one.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    scene.restoreHeatmaps()
    model = slicer.util.getFirstNodeByClassByName("vtkMRMLModelNode", "bone")
    table = model.GetDisplayNode().GetColorNode().GetLookupTable()
    assert model.GetDisplayNode().GetScalarRange() == (-2.0, 2.0) == table.GetRange()
    assert table.GetNanColor()[:3] == pytest.approx((0.45, 0.45, 0.45))


def test_a_table_survives_the_way_through_a_file(scene, tmp_path):
    node = scene.addTable({"Measure": ["ASSD", "HD"], "Value": [0.25, 3.5]}, "figures", {"Value": "mm"})
    path = tmp_path / "figures é.csv"
    scene.tableToCsv(node, path)
    back = scene.tableFromCsv(path, "figures")
    assert path.read_text(encoding="utf-8").splitlines()[0] == "Measure,Value"
    assert [back.GetCellText(0, 0), back.GetTable().GetValue(1, 1).ToDouble()] == ["ASSD", 3.5]
    assert node.GetColumnUnitLabel("Value") == "mm"
    assert back.GetName() == "figures 2"


def test_results_go_into_a_folder_beside_the_input(scene, slicer, bone):
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    patient = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Patient 7")
    ct = scene.volumeToNode(bone, "CT")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(ct), patient)
    with scene.importing(ct, "Result") as folder:
        model = scene.surfaceToModel(mask_surface(bone), "PREDICTED tibia", (1, 1, 1))
    assert hierarchy.GetItemParent(folder) == patient
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(model)) == folder


def test_a_failed_import_leaves_the_scene_as_it_was(scene, slicer, bone):
    ct = scene.volumeToNode(bone, "CT")
    before = nodeCount(slicer), itemNames(slicer)
    with pytest.raises(RuntimeError, match="broken"), scene.importing(ct, "Result"):
        segmentation = scene.addSegmentation("PREDICTED tibia", ct)
        scene.addSegment(segmentation, bone, "PREDICTED tibia", (1, 0, 0), "tibia", "right")
        model = scene.surfaceToModel(mask_surface(bone), "PREDICTED tibia", (1, 1, 1), scalars={"d": np.zeros(
            len(mask_surface(bone).vertices))})
        scene.addHeatmap(model, "d", 1.0, "Distance (mm)")
        raise RuntimeError("broken")
    assert (nodeCount(slicer), itemNames(slicer)) == before


def test_names_are_made_unique_and_nodes_never_replaced(scene, bone):
    first, second = scene.addSegmentation("PREDICTED tibia"), scene.addSegmentation("PREDICTED tibia")
    assert first is not second and second.GetName() == "PREDICTED tibia 2"


def test_vector_volumes_are_refused(scene, slicer):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    slicer.util.updateVolumeFromArray(node, np.zeros((4, 5, 6, 3), np.uint8))
    with pytest.raises(InputError, match="3 components"):
        scene.volumeFromNode(node)


def test_transforms_that_are_not_linear_are_refused_with_what_to_do(scene, slicer, bone):
    import vtk
    node = scene.volumeToNode(bone, "CT")
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    spline = vtk.vtkThinPlateSplineTransform()
    points = vtk.vtkPoints()
    for corner in ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 9)):
        points.InsertNextPoint(*corner)
    moved = vtk.vtkPoints()
    moved.DeepCopy(points)
    moved.SetPoint(4, 12, 9, 9)
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(moved)
    spline.SetBasisToR()
    warp.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match="harden it first"):
        scene.volumeFromNode(node)


def test_sheared_geometry_is_refused(scene, bone):
    node = scene.volumeToNode(bone, "CT")
    shear = np.eye(4)
    shear[0, 1] = 0.3
    node.SetAndObserveTransformNodeID(scene.addTransform(shear, "shear").GetID())
    with pytest.raises(InputError, match="shear"):
        scene.volumeFromNode(node)


def test_empty_things_are_refused(scene, slicer, bone):
    segmentation = scene.addSegmentation("Patient")
    emptyID = scene.addEmptySegment(segmentation, "Fracture mask", (1, 0, 0))
    empty = scene.volumeToNode(Volume(np.zeros(SHAPE, np.uint8), bone.ijk_to_ras), "none", "vtkMRMLLabelMapVolumeNode")
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    for refused in (lambda: scene.maskFromNode(segmentation, emptyID), lambda: scene.maskFromNode(segmentation, ""),
                    lambda: scene.maskFromNode(empty), lambda: scene.surfaceFromModel(model),
                    lambda: scene.maskFromNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode"))):
        with pytest.raises(InputError):
            refused()


def test_a_labelmap_with_several_labels_is_refused(scene, bone):
    labels = bone.array.astype(np.uint8)
    labels[0, 0, 0] = 7
    node = scene.volumeToNode(Volume(labels, bone.ijk_to_ras), "labels", "vtkMRMLLabelMapVolumeNode")
    with pytest.raises(InputError, match="2 labels"):
        scene.maskFromNode(node)


@pytest.fixture
def output(scene):
    """A job whose process writes what the test asks for, and the list of what its panel heard."""
    heard = []

    def make(importResults):
        return scene.makeJob(importResults, None, lambda state, message: heard.append((state, message)))
    make.heard = heard
    return make


def runScript(monkeypatch, script):
    from BoneReconstructionLib import scenejob
    monkeypatch.setattr(scenejob, "python_command", lambda interpreter, *arguments: [
        interpreter, "-c", script, *map(str, arguments)])


WRITE_RESULT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1]); folder.mkdir()
(folder / "result.json").write_text(json.dumps({"answer": 42}))
"""


def test_a_jobs_results_are_read_and_its_folder_is_removed(monkeypatch, scene, output):
    runScript(monkeypatch, WRITE_RESULT)
    job = output(lambda folder: json.loads((folder / "result.json").read_text())["answer"])
    job.start("anything")
    assert job.finish(30) == 42
    assert output.heard == [("succeeded", "")] and not job.folder.exists()


def test_a_job_without_result_has_failed(monkeypatch, scene, output):
    runScript(monkeypatch, "pass")
    job = output(lambda folder: pytest.fail("there is nothing to import"))
    job.start("anything")
    with pytest.raises(RuntimeError, match="no result"):
        job.finish(30)
    assert not job.folder.exists()


def test_a_failing_job_tells_why_and_adds_nothing(monkeypatch, scene, slicer, output):
    runScript(monkeypatch, "print('no licence for the coffee machine'); raise SystemExit(1)")
    before = nodeCount(slicer)
    job = output(lambda folder: pytest.fail("there is nothing to import"))
    job.start("anything")
    with pytest.raises(RuntimeError, match="coffee machine"):
        job.finish(30)
    assert nodeCount(slicer) == before and not job.folder.exists()


def test_a_cancelled_job_leaves_no_process_no_node_and_no_file(monkeypatch, scene, slicer, output):
    runScript(monkeypatch, "import time; time.sleep(60)")
    before = nodeCount(slicer)
    job = output(lambda folder: pytest.fail("there is nothing to import"))
    job.start("anything")
    job.cancel()
    assert job.wait(20) == "cancelled"
    assert nodeCount(slicer) == before and not job.folder.exists() and output.heard == [("cancelled", "")]


def test_an_import_that_refuses_is_a_failed_job(monkeypatch, scene, output):
    def refuse(folder):
        raise InputError("The result is not a tibia.")
    runScript(monkeypatch, WRITE_RESULT)
    job = output(refuse)
    job.start("anything")
    with pytest.raises(RuntimeError, match="not a tibia"):
        job.finish(30)
    assert not job.folder.exists()


def test_bounds_and_a_box_between_them(application, slicer):
    from BoneReconstructionLib import scene
    frame = np.array([[0, -2, 0, 5], [1, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1.0]])
    array = np.zeros((6, 7, 8), dtype=np.uint8)
    array[1:3, 2:6, 3:4] = 1
    node = scene.volumeToNode(Volume(array, frame), "mask", "vtkMRMLLabelMapVolumeNode")
    lower, upper = scene.boundsOf(node)
    assert np.allclose(lower, (5 - 2 * 5.5, -7 + 2.5, 11 + 1.5)) and np.allclose(upper, (5 - 2 * 1.5, -7 + 3.5, 11 + 7.5))
    roi = scene.addRoi(lower, upper, "box", (1.0, 0.0, 0.0))
    bounds = [0.0] * 6
    roi.GetRASBounds(bounds)
    assert np.allclose(bounds, np.stack([lower, upper], 1).ravel())


def test_a_folder_is_delivered_whole_and_overwrites_nothing(application, tmp_path):
    from BoneReconstructionLib import scene
    for expected in ("out", "out 2"):
        with scene.newFolder(tmp_path, "out") as (partial, final):
            (partial / "file").write_text(expected)
            assert not final.exists()
        assert final == tmp_path / expected and (final / "file").read_text() == expected
    with pytest.raises(RuntimeError), scene.newFolder(tmp_path, "out") as (partial, _final):
        (partial / "file").write_text("half")
        raise RuntimeError
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out 2"}
    with pytest.raises(InputError, match="cannot be written"), scene.newFolder(tmp_path / "missing", "out"):
        pass


def test_a_plane_keeps_centre_axes_and_size(application, slicer):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.frames import rotation_about
    from BoneReconstructionLib.markups import Markup
    turn = rotation_about(np.array([0.6, 0.0, 0.8]), 0.7)
    centre = np.array([10.0, -20.0, 30.0])
    points = centre + np.array([[0, 0, 0], [15, 0, 0], [0, 40, 0]]) @ turn.T
    node = scene.addMarkup(Markup("Coronal plane", "plane", points, (0.1, 0.2, 0.3)), "PREDICTED plane", "what it is")
    assert np.allclose(node.GetCenterWorld(), centre) and np.allclose(node.GetSize(), (30, 80))
    assert np.allclose(node.GetNormalWorld(), turn[:, 2]) and node.GetDescription() == "what it is"
    assert node.GetLocked() and not node.GetDisplayNode().GetVisibility()


def test_nodes_know_their_patient(application, slicer):
    from BoneReconstructionLib import scene
    nodes = [scene.volumeToNode(Volume(np.zeros((2, 2, 2), np.int16), np.eye(4)), name) for name in "abc"]
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    for node, name in zip(nodes[:2], ("One", "Two")):
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), folder)
        assert scene.patientIdentity(node) == {}
        scene.makePatient(folder)
    assert scene.patientIdentity(nodes[0]) == {"name": "One"}
    assert scene.ofDifferentPatients(nodes[0], nodes[1])
    assert not scene.ofDifferentPatients(nodes[0], nodes[0]) and not scene.ofDifferentPatients(nodes[0], nodes[2])


def test_a_heatmap_shows_another_array_without_sign(application, slicer):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.surfaces import Surface
    triangle = Surface(np.eye(3) * 10, np.array([[0, 1, 2]]))
    scalars = {"distance": np.array([-1.0, 0.0, 1.0]), "deviation": np.array([0.2, 1.0, np.nan])}
    model = scene.surfaceToModel(triangle, "bone", (1, 1, 1), scalars=scalars)
    colors = scene.addHeatmap(model, "distance", 2.0, "distance (mm)")
    display, legend = model.GetDisplayNode(), slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model)
    assert display.GetActiveScalarName() == "distance" and display.GetScalarRange() == (-2.0, 2.0)
    assert scene.hasScalars(model, "deviation") and not scene.hasScalars(model, "height")
    scene.setHeatmap(model, "deviation", 3.0, "deviation (mm)", signed=False)
    assert display.GetActiveScalarName() == "deviation" and display.GetScalarRange() == (0.0, 3.0)
    assert legend.GetTitleText() == "deviation (mm)" and display.GetColorNode() is colors
    lightness = [sum(colors.GetColorTransferFunction().GetColor(value)) for value in (0.0, 1.5, 3.0)]
    assert lightness == sorted(lightness, reverse=True)


def test_a_models_surface_with_and_without_its_transform(application, slicer):
    from BoneReconstructionLib import scene
    from BoneReconstructionLib.surfaces import Surface
    model = scene.surfaceToModel(Surface(np.eye(3) * 10, np.array([[0, 1, 2]])), "bone", (1, 1, 1))
    motion = np.eye(4)
    motion[:3, 3] = 1, 2, 3
    model.SetAndObserveTransformNodeID(scene.addTransform(motion, "motion").GetID())
    here, there = scene.surfaceFromModel(model, inWorld=False), scene.surfaceFromModel(model)
    assert np.allclose(here.vertices, np.eye(3) * 10) and np.allclose(there.vertices, np.eye(3) * 10 + (1, 2, 3))


def test_a_job_that_cannot_be_given_its_inputs_leaves_nothing(application, slicer):
    from pathlib import Path

    from BoneReconstructionLib import scene
    from BoneReconstructionLib.errors import InputError
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing")
    with pytest.raises(InputError, match="no image"), scene.starting(None) as job:
        scene.writeCT(job, empty)
    assert not list(Path(slicer.app.temporaryPath).iterdir())
