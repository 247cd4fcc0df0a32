"""Transform files: LPS, resampling direction, both formats, refusals."""

import numpy as np
import pytest
import SimpleITK as sitk
from tibiae import pose

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import transform_points
from BoneReconstructionLib.transformfiles import read_transform, write_transform
from BoneReconstructionLib.volumes import Volume

MOTION = pose((10, -20, 35), (12.0, -7.0, 31.0))
LPS = np.array([-1.0, -1.0, 1.0])


@pytest.mark.parametrize("suffix", (".tfm", ".h5"))
def test_the_file_leads_in_lps_from_where_a_point_is_afterwards_to_where_it_was(tmp_path, suffix):
    write_transform(tmp_path / f"motion{suffix}", MOTION)
    transform = sitk.ReadTransform(str(tmp_path / f"motion{suffix}"))
    before = np.array([[31.0, -4.0, 150.0]])
    after = transform_points(MOTION, before)
    assert np.allclose(transform.TransformPoint((after[0] * LPS).tolist()), before[0] * LPS)
    assert np.allclose(read_transform(tmp_path / f"motion{suffix}"), MOTION)


def test_resampling_an_image_with_the_file_moves_what_it_shows(tmp_path):
    write_transform(tmp_path / "motion.tfm", MOTION)
    array = np.zeros((60, 60, 60), dtype=np.float32)
    array[20, 25, 30] = 1.0
    ijk_to_ras = pose((0, 0, 0), (-30.0, -30.0, -10.0))
    place = transform_points(MOTION, transform_points(ijk_to_ras, [[30.0, 25.0, 20.0]]))
    image = sitk.GetImageFromArray(array)
    image.SetOrigin((ijk_to_ras[:3, 3] * LPS).tolist())
    image.SetDirection(np.diag(LPS).ravel().tolist())
    wide = sitk.GetImageFromArray(np.zeros((120, 120, 120), dtype=np.float32))
    wide.SetOrigin(((ijk_to_ras[:3, 3] - 30) * LPS).tolist())
    wide.SetDirection(image.GetDirection())
    moved = sitk.GetArrayFromImage(
        sitk.Resample(image, wide, sitk.ReadTransform(str(tmp_path / "motion.tfm")), sitk.sitkLinear)
    )
    shown = Volume(moved, pose((0, 0, 0), ijk_to_ras[:3, 3] - 30))
    found = transform_points(shown.ijk_to_ras, [np.argwhere(moved > 0.3).mean(0)[::-1]])
    assert np.abs(found - place).max() < 1.0


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="none of the endings"):
        write_transform(tmp_path / "motion.txt", MOTION)
    with pytest.raises(InputError, match="cannot be written"):
        write_transform(tmp_path / "nowhere" / "motion.tfm", MOTION)
    with pytest.raises(InputError, match="does not exist"):
        read_transform(tmp_path / "none.tfm")
    (tmp_path / "nonsense.tfm").write_text("nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        read_transform(tmp_path / "nonsense.tfm")
    sitk.WriteTransform(
        sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64)), str(tmp_path / "bent.tfm")
    )
    with pytest.raises(InputError, match="no linear transform"):
        read_transform(tmp_path / "bent.tfm")
