"""`bonerecon evaluate register-ct`: its scenes, its figures, and a small run through the command."""

import csv

import numpy as np
import pytest
from ctphantoms import FRAMES, MIDDLE, ct, mask

from BiplanarReconLib.evaluation import ctregistration, ctscenes
from BiplanarReconLib.evaluation.ctregistration import COLUMNS, PAIRS, cases, mtre, summary
from BiplanarReconLib.evaluation.ctscenes import ct_files, in_a_body, read_subject
from BiplanarReconLib.simulation import standard_views
from BoneReconstructionLib import evaluationruns, volumes
from BoneReconstructionLib.cli import main
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import rotation_about, transform_points
from BoneReconstructionLib.volumes import Volume, resample, write_volume


def row(start_mm, start_deg=5.0, mtre_mm=0.5, subject="L2", **others):
    found = {"success": int(mtre_mm < 2), "refused": 0, "warned": 0, "seconds": 1.0, "cpu_seconds": 1.5}
    return {"subject": subject, "start_mm": start_mm, "start_deg": start_deg, "mtre_mm": mtre_mm} | found | others


def test_the_error_is_the_mean_distance_of_the_targets():
    targets = np.array([[10.0, 0, 0], [0, 20.0, 0]])
    shifted, turned = np.eye(4), np.eye(4)
    shifted[:3, 3] = [0, 0, 3.0]
    turned[:3, :3] = rotation_about((0, 0, 1), np.pi / 2)
    assert mtre(shifted, np.eye(4), targets) == pytest.approx(3)
    assert mtre(turned, np.eye(4), targets) == pytest.approx(15 * np.sqrt(2))


def test_the_summary_counts_bins_capture_range_and_silent_failures():
    rows = [row(1.0), row(6.0), row(7.0), row(12.0, 15.0, mtre_mm=9.0), row(21.0, mtre_mm=float("nan"), refused=1)]
    text = summary([*rows, row(16.0, mtre_mm=30.0, warned=1), row(2.0, subject="L3", warned=1)])
    own = next(line for line in text.splitlines() if line.startswith("L2")).split()
    assert own[1:6] == ["1/1", "2/2", "0/1", "0/1", "0/1"]
    # Within 10 degrees and 20 mm; captured to 10 mm.
    assert own[6:8] == ["3/4", "10"]
    assert "7 registrations, 3 failed: 1 refused, 1 warned of, 1 passed as good; 1 good ones warned of" in text


@pytest.mark.parametrize("frame", ["upright", "flipped and permuted"])
def test_a_crop_is_put_into_a_body_and_stays_what_it_is(frame, monkeypatch):
    monkeypatch.setattr(ctscenes, "BODY_MM", (90.0, 80.0, 100.0))
    block = ct(FRAMES[frame], half_mm=(70.0, 60.0, 46.0))
    # Without the air around it.
    crop = volumes.crop(block, np.full(3, 4), np.array(block.shape) - 4)
    body = in_a_body(crop)
    inside = MIDDLE + np.random.default_rng(1).uniform(-1, 1, (2000, 3)) * (55, 45, 30)
    values = [_at(volume, inside) for volume in (block, body)]
    assert np.median(np.abs(values[0] - values[1])) < 10
    # Bone goes on along the body, soft tissue beside the crop, then there is air.
    above = MIDDLE + np.array([[0.0, 8.0, z] for z in np.arange(48, 95, 1.0)])
    assert _at(body, above).max() > 300
    assert np.abs(_at(body, MIDDLE + np.array([[75.0, 0, 0], [0, -65.0, 10.0]])) - 40).max() < 60
    assert (_at(body, MIDDLE + np.array([[80.0, 60.0, 0.0]])) == ctscenes.AIR_HU).all()


def _at(volume, points):
    ijk = np.rint(transform_points(volume.ras_to_ijk, points)).astype(int)
    return volume.array[tuple(ijk[:, ::-1].T)]


def test_a_whole_ct_is_no_crop(monkeypatch):
    monkeypatch.setattr(ctscenes, "CROP_MM", 90.0)
    whole = ct()
    assert in_a_body(whole) is whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("CTs")
    coarse = ct(np.diag([2.0, 2.0, 2.0]))
    write_volume(folder / "spine.nii.gz", coarse)
    labels = resample(mask(), coarse.shape, coarse.ijk_to_ras, "antialiased").array.astype(np.uint8)
    # The bone is labels 2 and 5 together.
    labels[labels > 0] = 2
    labels[: labels.shape[0] // 2][labels[: labels.shape[0] // 2] > 0] = 5
    write_volume(folder / "spine_labels.nrrd", Volume(labels, coarse.ijk_to_ras))
    return folder


def test_a_subject_is_read_with_its_labels(folder):
    assert [path.name for path in ct_files([folder])] == ["spine.nii.gz"]
    both, one = (read_subject(folder / "spine.nii.gz", labels) for labels in (("2", "5"), ("2",)))
    assert both.name == "spine" and both.mask.array.sum() > one.mask.array.sum() > 0
    assert np.linalg.norm(both.targets - MIDDLE, axis=1).max() < 50
    alone = read_subject(folder / "spine.nii.gz")
    assert alone.mask is None and len(alone.targets) > len(both.targets)


def test_starts_are_dealt_to_the_pairs_once_each(folder):
    made = cases([folder], {"spine": ("2", "5")}, 20, 1)
    assert len(made) == PAIRS and sorted(n for case in made for n in case.starts) == list(range(20))
    with pytest.raises(InputError, match="spline, which is not among the CTs"):
        cases([folder], {"spline": ("2",)}, 20, 1)
    with pytest.raises(InputError, match="holds no CT"):
        cases([folder / "spine_labels.nrrd"], {}, 20, 1)


def test_the_command_writes_a_row_for_each_start(folder, monkeypatch, capsys):
    monkeypatch.setattr(ctscenes, "BODY_MM", (80.0, 70.0, 80.0))
    # In this process, where the body is small.
    monkeypatch.setattr(evaluationruns, "outcomes_of", lambda tasks, jobs, work: enumerate(work(*one) for one in tasks))
    coarse = [view.resized((240, 240)) for view in standard_views("c-arm", np.zeros(3))]
    monkeypatch.setattr(ctregistration, "standard_views", lambda *_, **__: coarse)
    output = folder / "out.csv"
    arguments = ["evaluate", "register-ct", "--cts", str(folder), "--labels", "spine:2,5", "--starts", "2"]
    assert main([*arguments, "--output", str(output)]) == 0
    with open(output, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [*rows[0]] == [*COLUMNS] and [(one["pair"], one["start"]) for one in rows] == [("0", "0"), ("1", "1")]
    for one in rows:
        assert one["success"] == "1" and float(one["mtre_mm"]) < 1 and 0 < float(one["start_mm"]) <= 25
        assert float(one["start_deg"]) <= 20 and float(one["seconds"]) > 0
    printed = capsys.readouterr().out
    assert "2 registrations, 0 failed" in printed and "within 10 deg 20 mm" in printed
    assert main([*arguments, "--output", str(folder / "none" / "out.csv")]) == 2
