"""The scene in the test host is Slicer's own: subject hierarchy, files, widgets over nodes, pictures."""

import numpy as np
import pytest

IJK_TO_RAS = np.array([[1.2, 0, 0, -20], [0, 1, 0, -30], [0, 0, 2, 5], [0, 0, 0, 1.0]])


@pytest.fixture
def segmentation(application):
    """A segment that fills part of a volume, away from its middle in every direction."""
    import slicer
    array = np.zeros((30, 50, 40), np.int16)
    array[5:25, 10:40, 10:30] = 500
    volume = slicer.util.addVolumeFromArray(array, IJK_TO_RAS, "CT")
    volume.CreateDefaultDisplayNodes()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Bones")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.GetSegmentation().AddEmptySegment("tibia", "Tibia", [0, 1, 0])
    mask = np.zeros(array.shape, np.uint8)
    mask[8:20, 12:38, 22:36] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "tibia", volume)
    return node


def test_nodes_appear_in_the_subject_hierarchy_and_leave_it(application):
    import slicer
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Tibia")
    hidden = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "Settings")
    item = hierarchy.GetItemByDataNode(model)
    assert item and hierarchy.GetItemName(item) == "Tibia"
    assert not hierarchy.GetItemByDataNode(hidden)
    slicer.mrmlScene.RemoveNode(model)
    assert not hierarchy.GetItemDataNode(item)


def test_a_scene_bundle_comes_back_with_data_and_hierarchy(segmentation, application, tmp_path):
    import slicer
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    study = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Patient")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(segmentation), study)
    expected = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, "tibia").sum()
    assert slicer.util.saveScene(str(tmp_path / "é scene.mrb"))
    application.clear()
    slicer.util.loadScene(str(tmp_path / "é scene.mrb"))
    node = slicer.util.getNode("Bones")
    assert slicer.util.arrayFromSegmentBinaryLabelmap(node, "tibia", slicer.util.getNode("CT")).sum() == expected
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    assert hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))) == "Patient"
    assert hierarchy.GetItemByDataNode(slicer.util.getNode("CT"))


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nii.gz"])
def test_volumes_survive_a_round_trip(segmentation, tmp_path, name):
    import slicer
    volume = slicer.util.getNode("CT")
    assert slicer.util.saveNode(volume, str(tmp_path / name))
    loaded = slicer.util.loadVolume(str(tmp_path / name))
    assert np.array_equal(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(volume))
    matrix = slicer.util.vtkMatrixFromArray(np.eye(4))
    loaded.GetIJKToRASMatrix(matrix)
    assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix), IJK_TO_RAS)


def test_a_model_is_written_in_lps_and_read_back_in_ras(application, tmp_path):
    import slicer
    import vtk
    source = vtk.vtkSphereSource()
    source.SetCenter(10, 20, 30)
    source.Update()
    model = slicer.modules.models.logic().AddModel(source.GetOutput())
    slicer.util.exportNode(model, str(tmp_path / "sphere.ply"))
    reader = vtk.vtkPLYReader()
    reader.SetFileName(str(tmp_path / "sphere.ply"))
    reader.Update()
    assert np.allclose(reader.GetOutput().GetCenter(), (-10, -20, 30), atol=1e-3)
    loaded = slicer.util.loadModel(str(tmp_path / "sphere.ply"))
    assert np.allclose(loaded.GetPolyData().GetCenter(), (10, 20, 30), atol=1e-3)


def test_loading_a_missing_file_raises(application):
    import slicer
    with pytest.raises(RuntimeError):
        slicer.util.loadVolume("/nowhere/ct.nrrd")


def test_a_node_selector_follows_the_scene(application):
    import slicer
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLModelNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    chosen = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: chosen.append(node and node.GetName()))
    first = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "first")
    second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "second")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", "text")
    assert (selector.nodeCount(), selector.currentNode()) == (2, first)
    selector.setCurrentNode(second)
    slicer.mrmlScene.RemoveNode(second)
    selector.setCurrentNode(None)
    assert chosen == ["first", "second", "first", None]
    assert selector.addNode().GetID() == selector.currentNodeID


def test_a_segment_selector_follows_the_segmentation(segmentation):
    import slicer
    selector = slicer.qMRMLSegmentSelectorWidget()
    selector.setMRMLScene(slicer.mrmlScene)
    selector.setCurrentNode(segmentation)
    assert selector.currentSegmentID() == "tibia"
    segmentation.GetSegmentation().AddEmptySegment("mask", "Mask")
    assert selector.segmentIDs() == ("tibia", "mask")
    selector.setCurrentSegmentID("mask")
    segmentation.GetSegmentation().RemoveSegment("mask")
    assert selector.currentSegmentID() == "tibia"


def test_the_segment_editor_is_a_placeholder_that_keeps_what_it_is_given(segmentation, application):
    import slicer
    slicer.util.selectModule("SegmentEditor")
    widget = slicer.modules.segmenteditor.widgetRepresentation().self()
    widget.editor.setSegmentationNode(segmentation)
    widget.editor.setSourceVolumeNode(slicer.util.getNode("CT"))
    widget.editor.setCurrentSegmentID("tibia")
    node = widget.parameterSetNode
    assert widget.parent.isEntered
    assert (node.GetSegmentationNode(), node.GetSelectedSegmentID()) == (segmentation, "tibia")
    assert "placeholder" in widget.editor.findChild("QLabel").text


def test_a_table_view_shows_the_table(application):
    import slicer
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    view = slicer.qMRMLTableView()
    view.setMRMLTableNode(table)
    slicer.util.updateTableFromArray(table, [np.array([1.5, 2.5])], ["ASSD (mm)"])
    table.Modified()
    model = view.model()
    assert (model.rowCount(), model.index(1, 0).data()) == (2, "2.5")
    assert model.horizontalHeaderItem(0).text() == "ASSD (mm)"


def test_a_slice_view_shows_the_segment_over_the_volume(segmentation, tmp_path):
    import slicer

    from host import views
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    pixels = views.sliceView(tmp_path / "axial.png", "Axial", slicer.util.getNode("CT"), fieldOfView=60)
    green = (pixels[..., 1].astype(int) - pixels[..., 0] > 60)
    white = pixels.min(axis=2) > 200
    rows, columns = np.nonzero(green)
    assert abs(green.mean() - 16.8 * 26 / 60**2) < 0.01 and white.mean() > 0.1
    # The segment lies right of the volume's middle, and right is left in a radiological view.
    assert abs(columns.mean() - 128) < 10 and abs(rows.mean() - 200) < 10
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes


def test_a_three_d_view_shows_surfaces_in_their_colours(segmentation, tmp_path):
    import slicer

    from host import views
    segmentation.CreateClosedSurfaceRepresentation()
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    pixels = views.threeDView(tmp_path / "view.png", "anterior").astype(int)
    assert (pixels[..., 1] - pixels[..., 0] > 80).mean() > 0.15
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes


def test_pictures_are_stamped(segmentation, tmp_path):
    import SimpleITK

    from host import views
    pixels = views.threeDView(tmp_path / "view.png", size=(300, 200))
    saved = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "view.png")))
    assert pixels.shape == (200, 300, 3) and saved.shape[0] > 200
    assert np.array_equal(saved[:200, :, :3], pixels) and (saved[200:].min(axis=2) < 100).sum() > 50
