"""Volumes: files in and out, frames, refusals, masks by name, resampling, boxes, memory."""

import gc
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import ASYMMETRIC_SOLID, centroid_ras, covering_grid, frame, solid_ct, solid_mask, voxel_centres

from BoneReconstructionLib import volumes
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.volumes import (
    Volume,
    available_memory_bytes,
    bounding_box,
    check_geometry,
    check_memory,
    crop,
    read_mask,
    read_volume,
    resample,
    write_volume,
)

FRAMES = {
    "axial": frame(turn_degrees=(0, 0, 0), flipped_axes="ij"),
    "oblique": frame(),
    "oblique left-handed": frame(flipped_axes="k"),
    "steep left-handed": frame(spacing=(0.9, 0.5, 1.3), turn_degrees=(80, 40, -130), flipped_axes="ijk"),
}
SMALL = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
SHEARED = ((1, 0, 0), (0.3, 2, 0), (0, 0, 3))
FLAT = ((1, 0, 0), (2, 0, 0), (0, 0, 3))
WITHOUT_SIZE = ((1, 0, 0), (0, 0, 0), (0, 0, 3))
UPRIGHT = ((1, 0, 0), (0, 2, 0), (0, 0, 3))


def write_nrrd(path, directions=UPRIGHT, array=SMALL, space="left-posterior-superior", fields=""):
    """A raw .nrrd by hand; directions are those of the i, j and k axes, an array of four axes has layers last."""
    layers = array.ndim == 4
    vectors = ["({},{},{})".format(*vector) for vector in directions]
    header = (
        f"NRRD0004\ntype: {array.dtype.name}\ndimension: {array.ndim}\nspace: {space}\n"
        f"sizes: {' '.join(str(size) for size in ((array.shape[3:] if layers else ()) + array.shape[2::-1]))}\n"
        f"space directions: {'none ' * layers}{' '.join(vectors)}\nkinds: {'list ' * layers}domain domain domain\n"
        f"endian: little\nencoding: raw\nspace origin: (1,2,3)\n{fields}\n"
    )
    path.write_bytes(header.encode() + array.tobytes())
    return path


def write_mha(path, directions, spacing):
    path.write_bytes(
        (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
            f"TransformMatrix = {' '.join(str(value) for vector in directions for value in vector)}\n"
            f"Offset = 1 2 3\nElementSpacing = {' '.join(str(value) for value in spacing)}\nDimSize = 2 3 4\n"
            "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        ).encode()
        + SMALL.tobytes()
    )
    return path


def write_nifti(path, directions, sform_code=1, qform_code=0, pixel_sizes=None):
    """A raw .nii by hand with an sform of these RAS axes, and an upright qform."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 2, 3, 4, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, *(pixel_sizes or np.linalg.norm(directions, axis=1)))
    struct.pack_into("<2f", header, 108, 352, 1)
    header[123] = 2
    struct.pack_into("<2h", header, 252, qform_code, sform_code)
    struct.pack_into("<3f", header, 268, 1, 2, 3)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *(vector[row] for vector in directions), row + 1)
    header[344:348] = b"n+1\0"
    path.write_bytes(bytes(header) + SMALL.tobytes())
    return path


def segment_fields(*segments):
    return "".join(
        f"Segment{index}_{key}:={value}\n" for index, segment in enumerate(segments) for key, value in segment.items()
    )


def test_spacing_and_inverse_follow_the_frame():
    volume = solid_mask(frame(spacing=(0.6, 0.7, 1.0), flipped_axes="j"))
    np.testing.assert_allclose(volume.spacing, (0.6, 0.7, 1.0))
    np.testing.assert_allclose(volume.ras_to_ijk @ volume.ijk_to_ras @ (5, 6, 7, 1), (5, 6, 7, 1), atol=1e-9)
    assert volume.shape == volume.array.shape


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
@pytest.mark.parametrize("name", FRAMES)
def test_a_volume_comes_back_from_a_file_unchanged(tmp_path, suffix, name):
    ct = solid_ct(FRAMES[name])
    path = tmp_path / f"Dr. Lékař é{suffix}"
    write_volume(path, ct)
    again = read_volume(path)
    np.testing.assert_allclose(again.ijk_to_ras, ct.ijk_to_ras, atol=2e-4)
    np.testing.assert_array_equal(again.array, ct.array)
    assert again.array.dtype == np.int16


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_other_software_finds_the_written_bone_at_its_place_in_lps(tmp_path, suffix):
    mask = solid_mask(FRAMES["oblique left-handed"])
    write_volume(tmp_path / f"mask{suffix}", mask)
    image = sitk.ReadImage(str(tmp_path / f"mask{suffix}"))
    assert image.GetPixelID() == sitk.sitkUInt8
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(image)
    np.testing.assert_allclose(statistics.GetCentroid(1) * np.array([-1, -1, 1]), centroid_ras(mask), atol=1e-3)


@pytest.mark.parametrize("name", FRAMES)
def test_sform_and_qform_of_a_written_nifti_are_the_ras_frame(tmp_path, name):
    ct = solid_ct(FRAMES[name])
    write_volume(tmp_path / "ct.nii", ct)
    header = (tmp_path / "ct.nii").read_bytes()[:352]
    qform_code, sform_code = struct.unpack_from("<2h", header, 252)
    assert qform_code == sform_code == 1
    np.testing.assert_allclose(
        np.reshape(struct.unpack_from("<12f", header, 280), (3, 4)), ct.ijk_to_ras[:3], atol=1e-4
    )
    handedness, *spacing = struct.unpack_from("<4f", header, 76)
    b, c, d, *offset = struct.unpack_from("<6f", header, 256)
    a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    np.testing.assert_allclose(rotation * spacing * (1, 1, handedness), ct.ijk_to_ras[:3, :3], atol=1e-3)
    np.testing.assert_allclose(offset, ct.ijk_to_ras[:3, 3], atol=1e-4)


def test_a_nrrd_in_ras_lies_where_its_lps_twin_does(tmp_path):
    ras = read_volume(write_nrrd(tmp_path / "ras.nrrd", space="right-anterior-superior"))
    lps = read_volume(write_nrrd(tmp_path / "lps.nrrd"))
    np.testing.assert_allclose(ras.ijk_to_ras, [[1, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(lps.ijk_to_ras, [[-1, 0, 0, -1], [0, -2, 0, -2], [0, 0, 3, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(ras.array, SMALL)


@pytest.mark.parametrize(
    ("directions", "reason"), [(SHEARED, "sheared"), (FLAT, "one plane"), (WITHOUT_SIZE, "singular|not numbers")]
)
def test_impossible_geometry_in_a_nrrd_is_refused(tmp_path, directions, reason):
    with pytest.raises(InputError, match=reason):
        read_volume(write_nrrd(tmp_path / "ct.nrrd", directions))


@pytest.mark.parametrize(
    ("directions", "spacing", "reason"),
    [
        (((1, 0, 0), (0.3, 0.95, 0), (0, 0, 1)), (1, 2, 3), "sheared"),
        (((1, 0, 0), (1, 0, 0), (0, 0, 1)), (1, 2, 3), "one plane"),
        (((1, 0, 0), (0, 1, 0), (0, 0, 1)), (1, 0, 3), "no size"),
    ],
)
def test_impossible_geometry_in_a_metaimage_is_refused(tmp_path, directions, spacing, reason):
    with pytest.raises(InputError, match=reason):
        read_volume(write_mha(tmp_path / "ct.mha", directions, spacing))


@pytest.mark.parametrize("directions", [SHEARED, FLAT, WITHOUT_SIZE, ((1, 0, 0), (0, np.nan, 0), (0, 0, 3))])
@pytest.mark.parametrize(("sform_code", "qform_code"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_impossible_geometry_in_a_nifti_is_refused_though_a_proper_qform_hides_it(
    tmp_path, directions, sform_code, qform_code
):
    path = write_nifti(tmp_path / "ct.nii", directions, sform_code, qform_code, pixel_sizes=(1, 2, 3))
    with pytest.raises(InputError, match="sheared|singular|not numbers"):
        read_volume(path)


def test_a_nifti_whose_voxel_sizes_contradict_its_sform_is_refused(tmp_path):
    with pytest.raises(InputError, match="contradicts itself"):
        read_volume(write_nifti(tmp_path / "ct.nii", UPRIGHT, pixel_sizes=(1, 1, 1)))


def test_a_nifti_with_the_affine_of_a_template_keeps_its_scanner_geometry(tmp_path):
    path = write_nifti(tmp_path / "ct.nii", SHEARED, sform_code=4, qform_code=1, pixel_sizes=(1, 2, 3))
    np.testing.assert_allclose(read_volume(path).ijk_to_ras, [[1, 0, 0, 1], [0, 2, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])


def test_geometry_that_is_only_rounded_is_accepted():
    matrix = np.round(frame(flipped_axes="i"), 4)
    check_geometry(matrix)
    with pytest.raises(InputError, match="sheared"):
        check_geometry(matrix @ np.array([[1, 0.005, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_geometry_that_is_not_finite_is_refused(value):
    matrix = frame()
    matrix[1, 3] = value
    with pytest.raises(InputError, match="not numbers"):
        check_geometry(matrix)


def test_several_components_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), str(tmp_path / "colour.nrrd"))
    with pytest.raises(InputError, match="3 components"):
        read_volume(tmp_path / "colour.nrrd")
    with pytest.raises(InputError, match="3 components"):
        read_mask(tmp_path / "colour.nrrd")


def test_time_points_and_single_pictures_are_refused(tmp_path):
    sitk.WriteImage(sitk.Image([4, 5, 6, 2], sitk.sitkInt16), str(tmp_path / "time.nii.gz"))
    sitk.WriteImage(sitk.Image([4, 5], sitk.sitkInt16), str(tmp_path / "picture.nrrd"))
    with pytest.raises(InputError, match="4 dimensions"):
        read_volume(tmp_path / "time.nii.gz")
    with pytest.raises(InputError, match="2 dimensions"):
        read_volume(tmp_path / "picture.nrrd")


def test_a_fourth_axis_of_one_point_is_dropped(tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(1, 6, 5, 4)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / "time.nii.gz"))
    np.testing.assert_array_equal(read_volume(tmp_path / "time.nii.gz").array, array[0])


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "folder.nrrd").mkdir()
    (tmp_path / "text.nrrd").write_text("no volume")
    (tmp_path / "picture.png").write_bytes(b"")
    whole = write_nrrd(tmp_path / "whole.nrrd").read_bytes()
    (tmp_path / "half.nrrd").write_bytes(whole[:-20])
    for name, reason in {
        "missing.nrrd": "does not exist",
        "folder.nrrd": "is a folder",
        "text.nrrd": "cannot be read",
        "half.nrrd": "damaged or cut off",
        "picture.png": "none of the endings",
    }.items():
        with pytest.raises(InputError, match=reason):
            read_volume(tmp_path / name)


def test_voxels_belong_to_who_has_read_them(tmp_path):
    path = write_nrrd(tmp_path / "ct.nrrd")
    first, second = read_volume(path).array, read_volume(path).array
    gc.collect()
    first[:] = 7
    np.testing.assert_array_equal(second, SMALL)
    assert (first == 7).all()


def test_a_volume_too_large_for_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write_nrrd(tmp_path / "ct.nrrd")
    needed = SMALL.nbytes
    monkeypatch.setattr(volumes, "available_memory_bytes", lambda: needed)
    read_volume(path)
    monkeypatch.setattr(volumes, "available_memory_bytes", lambda: needed - 1)
    with pytest.raises(InputError, match="ct.nrrd is too large for the memory"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".png", ".mhd", ".dcm", ""])
def test_writing_invents_no_formats(tmp_path, suffix):
    with pytest.raises(InputError, match="none of the endings"):
        write_volume(tmp_path / f"mask{suffix}", solid_mask(frame()))
    assert not any(tmp_path.iterdir())


def test_a_sheared_volume_is_not_written(tmp_path):
    matrix = np.eye(4)
    matrix[0, 1] = 0.3
    with pytest.raises(InputError, match="sheared"):
        write_volume(tmp_path / "ct.nrrd", Volume(SMALL, matrix))
    assert not any(tmp_path.iterdir())


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "ct.nii.gz"
    write_volume(path, Volume(SMALL, np.eye(4)))
    before = path.read_bytes()

    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(InputError, match="cannot be written"):
        write_volume(path, Volume(SMALL + 1, np.eye(4)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["ct.nii.gz"]
    assert path.read_bytes() == before


def test_writing_into_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_volume(tmp_path / "missing" / "ct.nrrd", Volume(SMALL, np.eye(4)))


def test_one_label_needs_no_name_and_several_do(tmp_path):
    one = np.where(SMALL > 20, 7, 0).astype(np.int16)
    several = np.select([SMALL > 20, SMALL > 15], [7, 3], 0).astype(np.int16)
    assert read_mask(write_nrrd(tmp_path / "one.nrrd", array=one)).array.sum() == 3
    path = write_nrrd(tmp_path / "several.nrrd", array=several)
    np.testing.assert_array_equal(read_mask(f"{path}:3").array, several == 3)
    with pytest.raises(InputError, match=r"several labels \(3, 7\)"):
        read_mask(path)
    with pytest.raises(InputError, match="no label 4: it holds 3, 7"):
        read_mask(f"{path}:4")
    with pytest.raises(InputError, match="no named segments"):
        read_mask(f"{path}:Tibia")
    with pytest.raises(InputError, match="no label 0"):
        read_mask(f"{path}:0")


def test_an_empty_label_volume_gives_an_empty_mask(tmp_path):
    mask = read_mask(write_nrrd(tmp_path / "empty.nrrd", array=np.zeros_like(SMALL)))
    assert mask.array.dtype == bool
    assert not mask.array.any()


def test_segments_are_found_by_name_identifier_and_label(tmp_path):
    array = np.select([SMALL > 20, SMALL > 15], [7, 3], 0).astype(np.uint8)
    fields = segment_fields(
        {"ID": "Segment_1", "Name": "Tibia: gauche é", "LabelValue": 3, "Layer": 0},
        {"ID": "Segment_2", "Name": "Péroné", "LabelValue": 7, "Layer": 0},
    )
    path = write_nrrd(tmp_path / "mon étude: 1.seg.nrrd", array=array, fields=fields)
    for name in ("Tibia: gauche é", "Segment_1", "3"):
        np.testing.assert_array_equal(read_mask(f"{path}:{name}").array, array == 3)
    np.testing.assert_array_equal(read_mask(f"{path}:Péroné").array, array == 7)
    np.testing.assert_array_equal(read_volume(path).array, array)
    with pytest.raises(InputError, match="several such segments"):
        read_mask(path)
    with pytest.raises(InputError, match="no segment Femur: it holds Tibia: gauche é, Péroné"):
        read_mask(f"{path}:Femur")


def test_overlapping_segments_are_read_from_their_layers(tmp_path):
    layers = np.stack([SMALL > 10, np.where(SMALL > 20, 2, SMALL < 5)], axis=-1).astype(np.uint8)
    fields = segment_fields(
        {"ID": "Segment_1", "Name": "Tibia", "LabelValue": 1, "Layer": 0},
        {"ID": "Segment_2", "Name": "Fracture", "LabelValue": 2, "Layer": 1},
        {"ID": "Segment_3", "Name": "Fibula", "LabelValue": 1, "Layer": 1},
    )
    path = write_nrrd(tmp_path / "over.seg.nrrd", array=layers, fields=fields)
    np.testing.assert_array_equal(read_mask(f"{path}:Tibia").array, SMALL > 10)
    np.testing.assert_array_equal(read_mask(f"{path}:Fracture").array, SMALL > 20)
    np.testing.assert_array_equal(read_mask(f"{path}:Fibula").array, SMALL < 5)
    with pytest.raises(InputError, match="several such segments"):
        read_mask(f"{path}:1")
    with pytest.raises(InputError, match="2 components"):
        read_volume(path)


def test_segmentations_from_before_labels_shared_a_layer_are_read(tmp_path):
    layers = np.stack([SMALL > 10, SMALL > 20], axis=-1).astype(np.uint8)
    fields = segment_fields({"ID": "Tibia", "Name": "Tibia"}, {"ID": "Fracture", "Name": "Fracture"})
    path = write_nrrd(tmp_path / "old.seg.nrrd", array=layers, fields=fields)
    np.testing.assert_array_equal(read_mask(f"{path}:Fracture").array, SMALL > 20)


def test_colons_of_drives_and_files_are_no_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = np.where(SMALL > 20, 7, 0).astype(np.int16)
    for name in ("C:\\Users\\Dr. Lékař\\tibia.nrrd", "scan 12:30.nrrd"):
        if os.name == "nt":
            pytest.skip("such names exist on other systems only")
        write_nrrd(Path(name), array=array)
        np.testing.assert_array_equal(read_mask(name).array, array == 7)
        np.testing.assert_array_equal(read_mask(f"{name}:7").array, array == 7)
    with pytest.raises(InputError, match="does not exist"):
        read_mask("D:\\missing.nrrd:1")


@pytest.mark.parametrize("source", FRAMES)
@pytest.mark.parametrize("target", FRAMES)
def test_a_resampled_ct_shows_the_bone_at_its_place(source, target):
    ct = solid_ct(FRAMES[source], margin_mm=25)
    shape, ijk_to_ras = covering_grid(FRAMES[target], margin_mm=2)
    moved = resample(ct, shape, ijk_to_ras)
    assert moved.array.dtype == np.int16
    distance = ASYMMETRIC_SOLID.signed_distance(voxel_centres(shape, ijk_to_ras))
    # Within 3 mm of the surface and off its corners the phantom is linear: 200 HU for a millimetre.
    near = np.abs(distance) < 3
    assert np.abs(moved.array[near] - (300 - 200 * distance[near])).mean() < 10
    assert (np.abs(distance[near]) > 0.3)[(moved.array[near] > 300) != (distance[near] < 0)].sum() < 5


def test_nearest_keeps_labels_and_fill_marks_what_lies_beyond():
    mask = solid_mask(FRAMES["steep left-handed"])
    labels = Volume(mask.array.astype(np.uint8) * 7, mask.ijk_to_ras)
    shape, ijk_to_ras = covering_grid(FRAMES["oblique"], margin_mm=30)
    moved = resample(labels, shape, ijk_to_ras, "nearest", fill=3)
    assert set(np.unique(moved.array)) == {0, 3, 7}
    assert moved.array.dtype == np.uint8
    np.testing.assert_allclose(centroid_ras(Volume(moved.array == 7, ijk_to_ras)), centroid_ras(mask), atol=0.1)


def test_linear_interpolation_of_integers_rounds_to_the_nearest():
    volume = Volume(np.array([-10, -5, 0, 5, 10], dtype=np.int16).reshape(1, 1, 5), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 0.15
    np.testing.assert_array_equal(resample(volume, (1, 1, 4), shifted).array.ravel(), [-9, -4, 1, 6])


def test_resampling_onto_the_same_grid_changes_nothing():
    mask = solid_mask(frame())
    for interpolation in ("linear", "nearest", "antialiased"):
        again = resample(mask, mask.shape, mask.ijk_to_ras, interpolation)
        np.testing.assert_array_equal(again.array, mask.array)


@pytest.mark.parametrize("flipped_axes", ["", "j"])
def test_antialiased_masks_keep_volume_and_place_better_than_nearest(flipped_axes):
    mask = solid_mask(frame(spacing=(0.8, 0.8, 2.0)), margin_mm=15)
    shape, ijk_to_ras = covering_grid(frame((0.5, 0.5, 0.5), (-9, 33, 5), flipped_axes), margin_mm=5)
    truth = ASYMMETRIC_SOLID.signed_distance(voxel_centres(shape, ijk_to_ras)) < 0
    smooth, blocky = (resample(mask, shape, ijk_to_ras, method) for method in ("antialiased", "nearest"))
    assert smooth.array.dtype == blocky.array.dtype == bool
    assert (smooth.array != truth).sum() < 0.8 * (blocky.array != truth).sum()
    assert smooth.array.sum() * 0.125 == pytest.approx(mask.array.sum() * 1.28, rel=0.03)
    np.testing.assert_allclose(centroid_ras(smooth), centroid_ras(mask), atol=0.2)


def test_antialiasing_tears_no_hole_into_a_sheet_of_one_voxel():
    array = np.zeros((20, 20, 20), dtype=bool)
    array[3:17, 10, 3:17] = True
    finer = np.diag([0.5, 0.5, 0.5, 1.0])
    sheet = resample(Volume(array, np.eye(4)), (40, 40, 40), finer, "antialiased")
    assert sheet.array[7:32, 20, 7:32].all()


def test_antialiasing_does_not_round_bone_off_where_the_scan_ends():
    array = np.zeros((20, 20, 20), dtype=bool)
    array[:, 5:15, 5:15] = True
    shifted = np.eye(4)
    shifted[0, 3] = 0.4
    moved = resample(Volume(array, np.eye(4)), (20, 20, 20), shifted, "antialiased")
    np.testing.assert_array_equal(moved.array[0], moved.array[10])
    assert moved.array[0].any()


def test_antialiasing_an_empty_mask_gives_an_empty_mask():
    empty = Volume(np.zeros((5, 5, 5), dtype=bool), np.eye(4))
    mask = resample(empty, (9, 9, 9), np.diag([0.5, 0.5, 0.5, 1.0]), "antialiased")
    assert mask.shape == (9, 9, 9)
    assert not mask.array.any()


def test_the_bounding_box_holds_all_voxels_and_no_more():
    array = np.zeros((30, 40, 50), dtype=np.uint8)
    array[3, 20, 49] = array[28, 7, 31] = array[5, 39, 44] = 2
    lower, upper = bounding_box(array)
    np.testing.assert_array_equal(lower, (3, 7, 31))
    np.testing.assert_array_equal(upper, (29, 40, 50))
    with pytest.raises(InputError, match="empty"):
        bounding_box(np.zeros((3, 3, 3), dtype=bool))


def test_a_crop_stays_where_it_is_and_ends_at_the_border():
    mask = solid_mask(FRAMES["steep left-handed"])
    lower, upper = bounding_box(mask.array)
    cropped = crop(mask, lower, upper)
    assert cropped.shape == tuple(upper - lower)
    np.testing.assert_allclose(centroid_ras(cropped), centroid_ras(mask), atol=1e-9)
    whole = crop(mask, lower - 1000, upper + 1000)
    assert whole.shape == mask.shape
    np.testing.assert_array_equal(whole.ijk_to_ras, mask.ijk_to_ras)


def test_memory_is_counted_and_missing_memory_told():
    available = available_memory_bytes()
    assert 2**26 < available < 2**46
    check_memory(available // 2, "ct.nrrd")
    with pytest.raises(InputError, match=r"ct.nrrd is too large for the memory: it needs 2000000.0 GiB"):
        check_memory(2_000_000 * 2**30, "ct.nrrd")


def test_the_memory_limit_of_a_batch_job_counts(tmp_path):
    job = tmp_path / "slurm" / "job_1"
    (job / "step").mkdir(parents=True)
    (job / "memory.max").write_text("1000\n")
    (job / "memory.current").write_text("700\n")
    (job / "memory.stat").write_text("anon 600\ninactive_file 100\n")
    (job / "step" / "memory.max").write_text("max\n")
    (job / "step" / "memory.current").write_text("700\n")
    (tmp_path / "membership").write_text("0::/slurm/job_1/step\n")
    assert volumes._cgroup_available_memory(tmp_path / "membership", tmp_path) == [400]


def test_the_memory_limit_of_an_old_container_counts(tmp_path):
    container = tmp_path / "memory" / "docker" / "7"
    container.mkdir(parents=True)
    (container / "memory.limit_in_bytes").write_text("1000\n")
    (container / "memory.usage_in_bytes").write_text("300\n")
    (container / "memory.stat").write_text("cache 1\ntotal_inactive_file 50\n")
    (tmp_path / "membership").write_text("5:cpu:/docker/7\n4:memory:/docker/7\n")
    assert volumes._cgroup_available_memory(tmp_path / "membership", tmp_path) == [750]


def test_volumes_load_without_vtk_simpleitk_and_torch():
    code = (
        "import sys\n"
        "for name in ('vtk', 'vtkmodules', 'SimpleITK', 'torch', 'slicer', 'qt'): sys.modules[name] = None\n"
        "from BoneReconstructionLib import volumes\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
