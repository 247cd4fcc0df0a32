"""X-ray images into line integrals: every file kind, polarity, relation and range; what DICOM says of geometry."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicomfiles import write_dicom

from BoneReconstructionLib.dicomgeometry import check_image, dicom_values, stated_view
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.radiographs import DENSEST, Radiograph, read_radiograph, write_radiograph
from BoneReconstructionLib.xraygeometry import calibration_note, from_carm, preset_view

SIGN = (0x0028, 0x1041, "SS")
RELATION = (0x0028, 0x1040, "CS")
VIEW = (0x0018, 0x5101, "CS")
SIDE = (0x0020, 0x0062, "CS")
ORIENTATION = (0x0020, 0x0020, "CS")
IMAGER_SPACING = (0x0018, 0x1164, "DS")
PIXEL_SPACING = (0x0028, 0x0030, "DS")
CALIBRATION_TYPE = (0x0028, 0x0A02, "CS")
MAGNIFICATION = (0x0018, 0x1114, "DS")
TO_DETECTOR, TO_PATIENT = (0x0018, 0x1110, "DS"), (0x0018, 0x1111, "DS")
PRIMARY, SECONDARY = (0x0018, 0x1510, "DS"), (0x0018, 0x1511, "DS")


def leg(rows=90, columns=120):
    """Line integrals of a bone in a leg with air on both sides; no mirroring maps it onto itself."""
    row, column = np.indices((rows, columns))
    soft = 2.2 * np.sqrt(np.clip(1 - ((column - 55) / 35) ** 2, 0, 1))
    bone = 1.6 * np.sqrt(np.clip(1 - ((column - 48 - 0.1 * row) / (9 + 0.05 * row)) ** 2, 0, 1))
    return soft + bone


def counts(line_integrals, full=60000):
    return np.rint(full * np.exp(-line_integrals)).astype(np.uint16)


def same(read, truth, tolerance=0.01):
    return np.abs(read.line_integrals - truth).max() < tolerance


@pytest.mark.parametrize("suffix", [".nrrd", ".tif"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    path = tmp_path / f"Dr. Lékař{suffix}"
    written = Radiograph(leg().astype(np.float32), np.ones((90, 120), bool), (0.4, 0.6))
    write_radiograph(path, written)
    read = read_radiograph(path) if suffix == ".nrrd" else read_radiograph(path, "linear", "dark")
    assert same(read, leg(), 1e-6 if suffix == ".nrrd" else 0.01)
    assert read.spacing_uv == ((0.4, 0.6) if suffix == ".nrrd" else None)
    assert read.seen.all() and read.absolute
    assert list(tmp_path.iterdir()) == [path]
    assert "line integrals (as the file says)" in " ".join(read.steps) or suffix == ".tif"


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".nrrd"])
@pytest.mark.parametrize("bone", ["bright", "dark"])
@pytest.mark.parametrize("relation", ["linear", "log"])
def test_polarity_and_relation_of_images_without_tags_are_chosen(tmp_path, suffix, bone, relation):
    path, truth = tmp_path / f"a{suffix}", leg()
    values = counts(truth) if relation == "linear" else np.rint(10000 * truth).astype(np.uint16)
    brighter_bone = relation == "log"
    if brighter_bone != (bone == "bright"):
        values = np.uint16(65535) - values
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    read = read_radiograph(path, relation, bone)
    expected = truth if relation == "linear" else truth * DENSEST / np.percentile(truth, 99.5)
    assert same(read, expected, 0.01)
    assert read.absolute == (relation == "linear")
    # By default an image shows bone bright, as radiographs do, and says that this is assumed.
    if relation == "log" and bone == "bright":
        default = read_radiograph(path)
        assert np.array_equal(default.line_integrals, read.line_integrals)
        assert "bone is bright (assumed)" in default.steps and "values are log (assumed)" in default.steps


@pytest.mark.parametrize(
    ("modality", "photometric", "tags", "relation", "bone"),
    [
        ("DX", "MONOCHROME2", {RELATION: "LOG", SIGN: -1}, "log", "bright"),
        ("DX", "MONOCHROME1", {RELATION: "LOG", SIGN: 1}, "log", "dark"),
        ("DX", "MONOCHROME1", {RELATION: "LIN", SIGN: 1}, "linear", "dark"),
        ("DX", "MONOCHROME2", {RELATION: "LIN", SIGN: -1}, "linear", "bright"),
        ("CR", "MONOCHROME2", {}, "log", "bright"),
        ("CR", "MONOCHROME1", {}, "log", "dark"),
        ("XA", "MONOCHROME2", {RELATION: "LIN"}, "linear", "dark"),
        ("XA", "MONOCHROME2", {RELATION: "DISP"}, "log", "dark"),
    ],
)
def test_dicom_tags_decide_polarity_and_relation(tmp_path, modality, photometric, tags, relation, bone):
    truth = leg()
    values = counts(truth) if relation == "linear" else np.rint(10000 * truth)
    if (relation == "log") != (bone == "bright"):
        values = 65535 - values
    read = read_radiograph(write_dicom(tmp_path / "IM0001", values, modality, photometric, tags=tags))
    assert same(read, truth if relation == "linear" else truth * DENSEST / np.percentile(truth, 99.5))
    assert f"bone is {bone} (as the file says)" in read.steps


def test_the_modality_rescaling_is_applied(tmp_path):
    values = np.rint(60000 * np.exp(-leg()) / 2 - 0.0)
    tags = {RELATION: "LIN", SIGN: 1, (0x0028, 0x1052, "DS"): "0", (0x0028, 0x1053, "DS"): "2"}
    assert same(read_radiograph(write_dicom(tmp_path / "a.dcm", values, tags=tags)), leg())


def test_collimated_parts_are_not_seen_and_dense_bone_is(tmp_path):
    truth = leg()
    values = counts(truth)
    values[:, :12] = values[:7] = 0
    values[60:66, 50:56] = 0  # metal, inside
    path = tmp_path / "a.tif"
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    read = read_radiograph(path, "linear", "dark")
    expected = np.ones(truth.shape, bool)
    expected[:, :12] = expected[:7] = False
    # The rim's rule may take the densest pixels beside it, no more.
    assert not read.seen[~expected].any() and read.seen[expected].mean() > 0.995
    assert read.seen[60:66, 50:56].all()
    assert "17 % of the image is collimated" in read.steps


def trunk(blades):
    """Line integrals of a thick body that nearly fills the image from border to border, behind blades or not; noisy."""
    column = np.indices((240, 300))[1]
    body = 9.0 * np.sqrt(np.clip(1 - ((column - 150) / 142) ** 2, 0, 1))
    if blades:
        body[:40] += 7.6
        body[:, :30] += 7.6
    counted = np.random.default_rng(2).poisson(1e6 * np.exp(-body))
    return -np.log(np.maximum(counted, 1) / 1e6)


def test_a_thick_body_is_dark_along_the_border_and_yet_seen(tmp_path):
    path = tmp_path / "lateral.nrrd"
    write_radiograph(path, Radiograph(trunk(blades=False).astype(np.float32), np.ones((240, 300), bool), (1.0, 1.0)))
    read = read_radiograph(path)
    assert (read.line_integrals > 6.5)[[0, -1]].mean() > 0.6  # it runs off the image above and below
    assert read.seen.all()


@pytest.mark.parametrize("narrow", [(2, 3), (5, 8)])
def test_blades_narrower_than_their_step_are_not_seen(tmp_path, narrow):
    path = tmp_path / "frontal.nrrd"
    top, right = narrow
    line_integrals = 0.4 * trunk(blades=False)
    line_integrals[:top] += 7.6
    line_integrals[:, -right:] += 7.6
    write_radiograph(path, Radiograph(line_integrals.astype(np.float32), np.ones((240, 300), bool), (1.0, 1.0)))
    seen = read_radiograph(path).seen
    assert not seen[:top].any() and not seen[:, -right:].any()
    assert seen[top + 9 :, : -right - 9].mean() > 0.99


def test_blades_before_a_thick_body_are_told_from_it(tmp_path):
    path = tmp_path / "lateral.nrrd"
    write_radiograph(path, Radiograph(trunk(blades=True).astype(np.float32), np.ones((240, 300), bool), (1.0, 1.0)))
    seen = read_radiograph(path).seen
    assert not seen[:40].any() and not seen[:, :30].any()
    assert seen[50:, 40:].mean() > 0.99


def test_a_constant_gain_does_not_change_the_line_integrals(tmp_path):
    for number, full in enumerate((60000, 9000)):
        sitk.WriteImage(sitk.GetImageFromArray(counts(leg(), full)), str(tmp_path / f"{number}.tif"))
    first, second = (read_radiograph(tmp_path / f"{n}.tif", "linear", "dark") for n in range(2))
    assert np.abs(first.line_integrals - second.line_integrals).max() < 0.02


def grey(change):
    image = sitk.GetImageFromArray(change)
    return lambda path: sitk.WriteImage(image, str(path))


RNG = np.random.default_rng(0)
REFUSED = {
    "colour": (grey(RNG.integers(0, 255, (90, 90, 3), dtype=np.uint8)[None][0]), "several|coloured|frames|dimension"),
    "small": (grey(counts(leg(40, 120))), "at least 64"),
    "mask": (grey((leg() > 1).astype(np.uint8)), "2 grey levels"),
    "noise": (grey(RNG.integers(0, 60000, (90, 90), dtype=np.uint16)), "noise"),
    "blank": (grey(np.full((90, 90), 7, np.uint16)), "1 grey levels"),
    "volume": (grey(np.zeros((3, 90, 90), np.uint16)), "3 frames or slices"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_unlike_an_x_ray_are_refused(tmp_path, kind):
    write, words = REFUSED[kind]
    path = tmp_path / ("a.nrrd" if kind in ("volume",) else "a.tif")
    if kind == "colour":
        image = sitk.GetImageFromArray(RNG.integers(0, 255, (90, 90, 3), dtype=np.uint8), isVector=True)
        sitk.WriteImage(image, str(path))
    else:
        write(path)
    with pytest.raises(InputError, match=words):
        read_radiograph(path)


def test_a_grey_picture_saved_in_colours_is_read(tmp_path):
    values = np.rint(60 * leg()).astype(np.uint8)
    path = tmp_path / "a.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.repeat(values[..., None], 3, axis=2), isVector=True), str(path))
    assert read_radiograph(path).shape == (90, 120)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_radiograph(tmp_path / "missing.png")
    (tmp_path / "a.dcm").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read as a DICOM image"):
        read_radiograph(tmp_path / "a.dcm")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_radiograph(tmp_path / "a.png")
    with pytest.raises(InputError, match="modality CT"):
        read_radiograph(write_dicom(tmp_path / "ct.dcm", counts(leg()), "CT"))
    with pytest.raises(InputError, match="4 frames"):
        read_radiograph(write_dicom(tmp_path / "run.dcm", np.tile(counts(leg()), (4, 1, 1)), "XA", frames=4))
    sitk.WriteImage(sitk.GetImageFromArray(counts(leg())), str(tmp_path / "b.png"))
    with pytest.raises(InputError, match="cannot be grey"):
        read_radiograph(tmp_path / "b.png", bone="grey")
    with pytest.raises(InputError, match="neither of the endings"):
        write_radiograph(tmp_path / "b.jpg", Radiograph(leg(), leg() < 9))


def dicom(tmp_path, tags, modality="DX"):
    return read_radiograph(write_dicom(tmp_path / "x.dcm", counts(leg()), modality, tags=tags))


@pytest.mark.parametrize(
    ("tags", "spacing", "origin"),
    [
        ({IMAGER_SPACING: "0.2\\0.3", PIXEL_SPACING: "0.1\\0.1"}, (0.3, 0.2), "DICOM ImagerPixelSpacing"),
        ({PIXEL_SPACING: "0.2\\0.3"}, (0.3, 0.2), "assumed at the detector"),
        ({PIXEL_SPACING: "0.2\\0.3", CALIBRATION_TYPE: "FIDUCIAL", MAGNIFICATION: "1.5"}, (0.45, 0.3), "magnified"),
        (
            {PIXEL_SPACING: "0.2\\0.3", CALIBRATION_TYPE: "GEOMETRY", TO_DETECTOR: "1200", TO_PATIENT: "1000"},
            (0.36, 0.24),
            "magnified",
        ),
        ({(0x0018, 0x2010, "DS"): "0.1\\0.1"}, (0.1, 0.1), "of the film"),
        ({}, None, "missing"),
        ({PIXEL_SPACING: "0\\0"}, None, "missing"),
    ],
)
def test_the_spacing_is_that_at_the_detector(tmp_path, tags, spacing, origin):
    radiograph = dicom(tmp_path, tags)
    values, origins = dicom_values(radiograph, "AP")
    assert radiograph.spacing_uv == (pytest.approx(spacing) if spacing else None)
    assert values.spacing_uv == radiograph.spacing_uv and origin in origins["spacing"]


COMPLETE = {IMAGER_SPACING: "0.2\\0.25", TO_DETECTOR: "1150", TO_PATIENT: "1000"}


def test_an_ordinary_radiograph_makes_a_geometry_that_says_it_is_not_calibrated(tmp_path):
    radiograph = dicom(tmp_path, COMPLETE | {VIEW: "AP", SIDE: "R"})
    values, origins = dicom_values(radiograph)
    geometry = from_carm(values, origins)
    assert radiograph.side == "right" and stated_view(radiograph) == "AP"
    assert geometry.beam == pytest.approx((0, -1, 0)) and geometry.spacing_uv == pytest.approx((0.25, 0.2))
    assert geometry.source_detector_mm == pytest.approx(1150)
    assert geometry.origins["source_detector"] == "DICOM DistanceSourceToDetector"
    assert "angles, offset are assumed" in calibration_note(geometry)
    check_image(radiograph, geometry)


@pytest.mark.parametrize("missing", [IMAGER_SPACING, TO_DETECTOR, TO_PATIENT, VIEW])
def test_what_no_tag_gives_is_refused_by_name(tmp_path, missing):
    tags = {key: value for key, value in (COMPLETE | {VIEW: "PA"}).items() if key != missing}
    words = {IMAGER_SPACING: "pixel spacing", TO_DETECTOR: "source to detector", TO_PATIENT: "source to isocentre"}
    with pytest.raises(InputError, match=words.get(missing, "primary angle") + ".* missing"):
        from_carm(*dicom_values(dicom(tmp_path, tags)))


@pytest.mark.parametrize(
    ("position", "side", "view"),
    [
        ("LL", "R", "left lateral"),
        ("RL", "", "right lateral"),
        ("LATERAL", "L", "left lateral"),
        ("ML", "R", "right lateral"),
        ("LM", "R", "left lateral"),
        ("LATERAL", "", None),
        ("OBLIQUE", "L", None),
    ],
)
def test_view_positions_of_knees(tmp_path, position, side, view):
    assert stated_view(dicom(tmp_path, {VIEW: position} | ({SIDE: side} if side else {}))) == view


def test_a_c_arms_angles_are_read(tmp_path):
    tags = COMPLETE | {RELATION: "LIN", PRIMARY: "-30", SECONDARY: "12", (0x0018, 0x1508, "CS"): "CARM"}
    values, origins = dicom_values(dicom(tmp_path, tags, "XA"))
    assert (values.primary_deg, values.secondary_deg) == (-30, 12)
    assert "Positioner" in origins["angles"] and from_carm(values, origins).assumed == ("offset",)


@pytest.mark.parametrize(
    ("view", "orientation", "right", "below", "mirrored"),
    [
        ("AP", "L\\F", (-1, 0, 0), (0, 0, -1), False),
        ("PA", "L\\F", (-1, 0, 0), (0, 0, -1), True),
        ("PA", "R\\F", (1, 0, 0), (0, 0, -1), False),
        ("AP", "F\\R", (0, 0, -1), (1, 0, 0), False),
        ("AP", "H\\L", (0, 0, 1), (-1, 0, 0), False),
        ("AP", "L\\H", (-1, 0, 0), (0, 0, 1), True),
        ("left lateral", "A\\F", (0, 1, 0), (0, 0, -1), False),
        ("left lateral", "P\\F", (0, -1, 0), (0, 0, -1), True),
        ("right lateral", "AF\\FP", (0, 1, 0), (0, 0, -1), True),
    ],
)
def test_the_images_orientation_is_honoured(tmp_path, view, orientation, right, below, mirrored):
    values, origins = dicom_values(dicom(tmp_path, COMPLETE | {ORIENTATION: orientation}), view)
    geometry = from_carm(values, origins)
    assert geometry.u == pytest.approx(right, abs=1e-9) and geometry.v == pytest.approx(below, abs=1e-9)
    assert geometry.mirrored == mirrored
    assert geometry.beam == pytest.approx(preset_view("ssr-kd", view).beam, abs=1e-9)


def test_an_orientation_along_the_beam_contradicts_the_view(tmp_path):
    radiograph = dicom(tmp_path, COMPLETE | {ORIENTATION: "A\\F"})
    with pytest.raises(InputError, match="contradicts the view"):
        dicom_values(radiograph, "AP")
    with pytest.raises(InputError, match="no view skyline"):
        dicom_values(radiograph, "skyline")


def test_a_geometry_of_another_image_or_spacing_is_refused():
    radiograph = Radiograph(leg(), leg() < 9, (1.15, 1.15))
    geometry = preset_view("ssr-kd", "AP")
    with pytest.raises(InputError, match="120 x 90 pixels, its geometry 512 x 512"):
        check_image(radiograph, geometry)
    geometry = geometry.resized((90, 120))
    with pytest.raises(InputError, match="check which is right"):
        check_image(radiograph, geometry)
    check_image(Radiograph(leg(), leg() < 9, tuple(geometry.spacing_uv)), geometry)
