"""The suggested fracture mask: over broken faces and crumbs, displaced or not, and over nothing else."""

import json

import numpy as np
import pytest

from BoneReconstructionLib import cli
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import Volume, read_mask, write_volume
from TibiaCompletionLib.masksuggestion import suggest_mask

SPACING = (1.0, 1.2, 1.5)
LENGTH, RADIUS, GAP = 120.0, 11.0, 4.0


def broken_bone(shift=0.0, gap=GAP, crumb=False):
    """A solid stick, broken obliquely at 45 mm of its length; its upper part is shifted sideways, mm.

    Returns:
        (tibia, CT, broken faces: bool, their outermost voxels).
    """
    shape = (84, 40, 64)
    ijk_to_ras = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1.0])
    k, j, i = np.indices(shape)
    x, y, z = i * SPACING[0] - 25, j * SPACING[1] - 24, k * SPACING[2] - 3
    height = z - 45 - 0.4 * x

    def part(moved, inside):
        return ((x - moved) ** 2 + y**2 < RADIUS**2) & (z > 0) & (z < LENGTH) & inside

    lower, upper = part(0.0, height < -gap / 2), part(shift, height > gap / 2)
    bone = lower | upper
    if crumb:
        bone |= (x - 24) ** 2 + y**2 + (z - 80) ** 2 < 3.0**2
    faces = (lower & (height > -gap / 2 - 1.5)) | (upper & (height < gap / 2 + 1.5))
    ct = Volume(np.where(bone, 900, 30).astype(np.int16), ijk_to_ras)
    return Volume(bone, ijk_to_ras), ct, faces, z


@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_broken_faces_are_masked_and_the_ends_are_not(shift):
    tibia, ct, faces, z = broken_bone(shift)
    mask = suggest_mask(tibia, ct)
    assert np.array_equal(mask.ijk_to_ras, tibia.ijk_to_ras) and mask.array.shape == tibia.array.shape
    assert (mask.array & faces).sum() > 0.95 * faces.sum()
    assert not (mask.array & tibia.array & ((z < 20) | (z > 75))).any()


def test_crumbs_are_masked():
    tibia, ct, _faces, _z = broken_bone(crumb=True)
    crumb = tibia.array & ~broken_bone()[0].array
    assert crumb.any() and (suggest_mask(tibia, ct).array & crumb).sum() == crumb.sum()


def test_a_bone_in_one_piece_is_refused():
    tibia, ct, _faces, _z = broken_bone(gap=0.0)
    with pytest.raises(InputError, match="in one piece"):
        suggest_mask(tibia, ct)


def test_the_command_writes_mask_and_record_in_the_cts_geometry(tmp_path):
    tibia, ct, faces, _z = broken_bone()
    write_volume(tmp_path / "ct.nii.gz", ct)
    lower = np.argwhere(tibia.array).min(0)
    moved = tibia.ijk_to_ras.copy()
    moved[:3, 3] += moved[:3, :3] @ lower[::-1]
    write_volume(tmp_path / "tibia.nrrd", Volume(tibia.array[tuple(slice(n, None) for n in lower)], moved))
    arguments = ["suggest-mask", "--ct", str(tmp_path / "ct.nii.gz"), "--tibia", str(tmp_path / "tibia.nrrd")]
    assert cli.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    mask = read_mask(tmp_path / "out" / "fracture.nii.gz")
    assert np.allclose(mask.ijk_to_ras, ct.ijk_to_ras) and mask.array.shape == ct.array.shape
    assert (mask.array & faces).sum() > 0.9 * faces.sum()
    record = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["masked_share"] == pytest.approx((mask.array & tibia.array).sum() / tibia.array.sum(), abs=0.01)
    assert "proposal" in record["warnings"][0]


def test_a_tibia_beside_the_ct_is_refused_in_a_sentence(tmp_path, capsys):
    tibia, ct, _faces, _z = broken_bone()
    elsewhere = tibia.ijk_to_ras.copy()
    elsewhere[:3, 3] += 500
    write_volume(tmp_path / "ct.nii.gz", ct)
    write_volume(tmp_path / "tibia.nrrd", Volume(tibia.array, elsewhere))
    arguments = ["--ct", str(tmp_path / "ct.nii.gz"), "--tibia", str(tmp_path / "tibia.nrrd")]
    assert cli.main(["suggest-mask", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert "outside the CT" in capsys.readouterr().err and not (tmp_path / "out").exists()
