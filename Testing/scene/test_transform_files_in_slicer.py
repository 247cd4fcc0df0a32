"""Transform files as Slicer reads them: the node's matrix is the motion that was written."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from scipy.spatial.transform import Rotation

from BoneReconstructionLib.transformfiles import read_transform, write_transform


def motion():
    """A turn about all axes and a shift, with no symmetry that could hide a sign."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (10, -20, 35), degrees=True).as_matrix()
    matrix[:3, 3] = (12.0, -7.0, 31.0)
    return matrix


@pytest.mark.parametrize("suffix", (".tfm", ".h5"))
def test_slicer_shows_the_motion_that_was_written(tmp_path, suffix):
    path = tmp_path / f"fragment{suffix}"
    write_transform(path, motion())
    node = slicer.vtkMRMLLinearTransformNode()
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    matrix = node.GetMatrixTransformToParent()
    shown = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
    assert np.allclose(shown, motion(), atol=1e-9)


def test_a_file_that_slicer_writes_is_read_as_slicer_shows_it(tmp_path):
    from vtkmodules.vtkCommonMath import vtkMatrix4x4

    matrix = vtkMatrix4x4()
    matrix.DeepCopy(motion().ravel().tolist())
    node = slicer.vtkMRMLLinearTransformNode()
    node.SetMatrixTransformToParent(matrix)
    storage = slicer.vtkMRMLTransformStorageNode()
    storage.SetFileName(str(tmp_path / "moved.tfm"))
    assert storage.WriteData(node)
    assert np.allclose(read_transform(tmp_path / "moved.tfm"), motion(), atol=1e-9)
