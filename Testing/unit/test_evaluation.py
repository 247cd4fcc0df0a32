"""The evaluation bench: cases that hide what they say, figures with known answers, baselines, a run from end to end."""

import ast
import csv
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from BoneReconstructionLib.distances import SurfaceLocator
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.evaluationruns import reason
from BoneReconstructionLib.frames import MIRROR, rotation_about, side_to_right, transform_points
from BoneReconstructionLib.meshing import mask_surface
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed, vertex_normals
from TibiaCompletionLib.evaluation import cases, foreignrenderer, people, runner, scans
from TibiaCompletionLib.evaluation.baselines import interpolate, mirror
from TibiaCompletionLib.evaluation.cases import CaseKey, build_case
from TibiaCompletionLib.evaluation.scoring import FIGURES, Truth, figures

ROOT = Path(__file__).resolve().parents[2]
PLACE = np.eye(4)
PLACE[:3, :3] = rotation_about((0.6, 0.64, 0.48), np.radians(21.0))
PLACE[:3, 3] = (80.0, -30.0, 500.0)
WHOLE_FIGURES = ("psnr_db", "length_error_mm", "torsion_error_deg", "angulation_error_deg")


def key_of(case, side="left", renderer="trained", length_mm=None, other_leg=False):
    return CaseKey("virtual-1", side, renderer, length_mm, case, False, other_leg)


@pytest.fixture(scope="module")
def bones(tmp_path_factory):
    """A folder with one virtual person: both tibiae, unlike in size, and the left fibula."""
    folder = tmp_path_factory.mktemp("people with spaces")
    for bone in ("tibia", "fibula"):
        (folder / bone).mkdir()
    generator = np.random.default_rng(4)
    tibia, fibula = load_prior("tibia-prior", "tibia"), load_prior("tibia-prior", "fibula")
    modes = 0.6 * generator.standard_normal(len(tibia.modes))
    kernels = 0.5 * generator.standard_normal((tibia.vertex_basis.shape[1], 3))
    right = Surface(tibia.shape(modes, kernels), tibia.faces)
    for side, size in (("left", 1.0), ("right", 1.01)):
        placed = PLACE @ side_to_right(side)
        write_surface(
            folder / "tibia" / f"virtual-1_{side[0].upper()}.ply",
            transformed(Surface(size * right.vertices, right.faces), placed),
        )
    shape = fibula.shape(modes, np.zeros((fibula.vertex_basis.shape[1], 3)))
    write_surface(
        folder / "fibula" / "virtual-1_L.ply", transformed(Surface(shape, fibula.faces), PLACE @ side_to_right("left"))
    )
    return str(folder)


@pytest.fixture(scope="module")
def leg(bones):
    return people.read_leg(bones, "virtual-1", "left")


@pytest.fixture(scope="module")
def build(bones):
    """Makes cases of the left leg, each once."""
    return cache(lambda case, **options: build_case(bones, key_of(case, **options)))


@pytest.fixture(scope="module")
def truth(build):
    return Truth(build("unmasked").leg, build("unmasked").scan)


def test_the_legs_of_a_folder_and_their_other_sides(bones, leg):
    assert people.leg_names(bones) == [("virtual-1", "left"), ("virtual-1", "right")]
    assert list(leg.neighbours) == ["fibula"]
    assert leg.other_tibia is not None
    assert people.read_leg(bones, "virtual-1", "right").neighbours == {}


def test_a_folder_without_tibiae_is_refused(tmp_path):
    with pytest.raises(InputError, match="tibia/"):
        people.leg_names(tmp_path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_legs_axes_follow_the_anatomy_wherever_it_lies(bones, side):
    found = people.read_leg(bones, "virtual-1", side)
    expected = np.diag([-1 if side == "left" else 1, 1, 1]) @ PLACE[:3, :3].T
    assert np.degrees(np.arccos((found.axes * expected).sum(1).min())) < 6
    heights = found.places(found.tibia.vertices)[:, 2]
    assert heights.min() == pytest.approx(0, abs=1e-6)
    assert heights.max() == pytest.approx(found.length)


def test_a_scaled_leg_has_the_length_and_keeps_its_bones_together(leg):
    scaled = leg.scaled_to(300.0)
    assert np.ptp(scaled.places(scaled.tibia.vertices)[:, 2]) == pytest.approx(300.0)
    assert scaled.scale == pytest.approx(300.0 / leg.length)
    gap = scaled.neighbours["fibula"].vertices.mean(0) - scaled.tibia.vertices.mean(0)
    assert gap == pytest.approx((leg.neighbours["fibula"].vertices.mean(0) - leg.tibia.vertices.mean(0)) * scaled.scale)
    assert scaled.other_tibia is None


def test_every_case_is_there_once_and_changes_one_thing_at_a_time(bones):
    keys = cases.case_keys(bones)
    assert len(keys) == len(set(keys)) == 2 * (16 + 16 + 16 + 8) + 12
    for key in keys:
        assert sum([key.renderer == "foreign", key.length_mm is not None, key.context, key.other_leg]) <= 1
    fractures = {f"{kind}-{number}" for kind in ("fracture", "undisplaced") for number in range(1, 5)}
    assert {key.case for key in keys if key.context} == {"plateau", "pilon", "proximal", "distal", *fractures}


def test_the_plain_renderer_is_that_of_the_virtual_patients():
    torch = pytest.importorskip("torch")
    from BoneReconstructionLib import ctrendering, virtualpatients

    assert scans.TRAINED_RANGES.items() <= vars(virtualpatients.PatientRanges()).items()
    tissue = {name: low + 0.3 * (high - low) for name, (low, high) in scans.TRAINED_RANGES.items()}
    distance, height = np.meshgrid(np.linspace(-9, 0, 40), np.linspace(0, 1, 30))
    theirs = ctrendering.bone_hu(tissue, torch.as_tensor(distance), torch.as_tensor(height)).numpy()
    assert scans.bone_hu(tissue, distance, height) == pytest.approx(theirs)


def test_foreign_tissue_lies_outside_the_trainings_ranges():
    pytest.importorskip("torch")
    from BoneReconstructionLib import virtualpatients

    for name, ranges in foreignrenderer.OUTSIDE_RANGES.items():
        low, high = scans.TRAINED_RANGES[name]
        assert all(range_high < low or range_low > high for range_low, range_high in ranges), name
    assert foreignrenderer.NOISE_HU[0] > scans.TRAINED_RANGES["noise_hu"][1]
    assert foreignrenderer.TEXTURE_MM > virtualpatients.PatientRanges().texture_mm[1]
    assert foreignrenderer.TEXTURE_HU > virtualpatients.PatientRanges().texture_hu[1]


def test_nothing_outside_the_evaluation_imports_it():
    for path in ROOT.glob("*/*Lib/**/*.py"):
        if "evaluation" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "Lib.evaluation" not in ast.unparse(node), path


def test_the_foreign_noise_has_the_measured_spectrum():
    spacing = np.array([0.75, 0.75, 1.25])
    noise = foreignrenderer.ct_noise((96, 96, 96), spacing, np.random.default_rng(1))
    assert noise.std() == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.fftn(noise)) ** 2
    i, j, k = (np.fft.fftfreq(96, step) for step in spacing)
    frequency = np.sqrt(k[:, None, None] ** 2 + j[:, None] ** 2 + i**2)

    def mean(low, high):
        return power[(frequency > low) & (frequency < high)].mean()

    assert mean(0.28, 0.30) / mean(0.12, 0.14) == pytest.approx(0.79 / 1.02, rel=0.1)
    assert mean(0.62, 0.9) < 1e-6 * mean(0.1, 0.2)


@pytest.mark.parametrize(
    "case, low, high",
    [("shaft", 0.5, 60.0), ("plateau", 1.0, 40.0), ("pilon", 0.0, 40.0)],
)
def test_a_gap_is_where_its_name_says_and_nothing_of_the_bone_shows_in_it(build, case, low, high):
    built = build(case)
    given, leg = built.completion_input, built.leg
    heights = leg.places(leg.tibia.vertices[built.masked(leg.tibia.vertices)])[:, 2]
    assert np.ptp(heights) == pytest.approx(high, abs=3)
    assert {0.5: heights.mean(), 1.0: heights.max(), 0.0: heights.min()}[low] == pytest.approx(low * leg.length, abs=1)
    assert not (given.tibia.array & given.fracture.array).any()
    covered = np.argwhere(given.fracture.array)
    points = transform_points(given.tibia.ijk_to_ras, covered[:, ::-1])
    assert built.masked(points).all()
    gone = covered[SurfaceLocator(leg.tibia).signed(points) < -1]
    assert np.quantile(given.read_ct().array[tuple(gone.T)], 0.95) < 200  # at its ends the visible bone blurs into it


def test_the_oblique_gap_is_tilted_by_45_degrees(leg):
    masked = cases._region(leg, "oblique")
    points = leg.origin + np.random.default_rng(1).uniform((-20, -20, 80), (20, 20, 220), (20000, 3)) @ leg.axes
    places = leg.places(points[masked(points)])
    plane = np.linalg.lstsq(np.c_[places[:, :2], np.ones(len(places))], places[:, 2], rcond=None)[0]
    assert np.degrees(np.arctan(np.linalg.norm(plane[:2]))) == pytest.approx(45, abs=2)


def test_blocks_hide_about_a_quarter_in_cubes_of_10_to_20_mm(leg):
    masked = cases._region(leg, "blocks")
    points = leg.origin + np.random.default_rng(1).uniform(-100, 300, (100000, 3))
    assert 0.2 < masked(points).mean() < 0.3
    line = masked(leg.origin + np.arange(0, 900, 0.25)[:, None] * leg.axes[0])
    changes = np.diff(np.flatnonzero(np.diff(line.astype(int)))) * 0.25
    assert 9.7 <= changes.min() <= 20.3


@pytest.mark.parametrize("case", ["proximal", "distal"])
def test_a_partial_scan_shows_150_mm_with_a_gap_of_30_mm(build, case):
    built = build(case)
    given, leg = built.completion_input, built.leg
    points = transform_points(given.tibia.ijk_to_ras, np.argwhere(given.tibia.array)[:, ::-1])
    heights = leg.places(points)[:, 2]
    end = {"proximal": leg.length, "distal": 0.0}[case]
    assert np.abs(heights - end).max() == pytest.approx(150, abs=10)
    empty = np.histogram(np.abs(heights - end), np.arange(0, 140, 5))[0] == 0
    assert np.flatnonzero(empty).tolist() == list(range(12, 18))
    seen = built.scanned(leg.tibia.vertices)
    assert 0.3 < seen.mean() < 0.8
    assert np.abs(leg.places(leg.tibia.vertices[seen])[:, 2] - end).max() < 156
    assert not given.trusted[np.abs(leg.places(given.surface.vertices)[:, 2] - end) > 156].any()


def test_an_undisplaced_fracture_shows_nearly_the_healthy_bone_and_a_displaced_one_does_not(build):
    apart = {}
    for name in ("undisplaced-1", "fracture-1"):
        built = build(name)
        shown = built.completion_input.surface.vertices[built.completion_input.trusted]
        apart[name] = np.abs(SurfaceLocator(built.leg.tibia).signed(shown)).max()
        assert built.completion_input.fracture.array.any()
        assert built.masked(built.leg.tibia.vertices).any()
    assert apart["undisplaced-1"] < 1.5
    assert apart["fracture-1"] > 3


def test_a_perfect_prediction_has_no_errors(truth):
    found = figures(truth.leg.tibia, truth)
    for name in ("assd_mm", "hd95_mm", "rmsd_mm", "length_error_mm", "torsion_error_deg", "angulation_error_deg"):
        assert found[name] == pytest.approx(0, abs=1e-3), name
    assert found["dice"] == 1
    assert found["psnr_db"] > 25
    assert np.isnan(found["assd_gap_mm"])


def test_distances_in_the_gap_count_both_surfaces_there_and_nothing_else(truth):
    leg = truth.leg
    heights = leg.places(leg.tibia.vertices)[:, 2]
    middle = 0.5 * leg.length

    def masked(points):
        return np.abs(leg.places(points)[:, 2] - middle) < 30

    swollen = vertex_normals(leg.tibia)
    moved = Surface(leg.tibia.vertices + 1.5 * swollen * (np.abs(heights - middle) < 45)[:, None], leg.tibia.faces)
    found = figures(moved, truth, masked)
    assert found["assd_gap_mm"] == pytest.approx(1.5, abs=0.08)
    assert found["hd95_gap_mm"] == pytest.approx(1.5, abs=0.08)
    assert 0 < found["assd_mm"] < 0.6
    assert figures(moved, truth, lambda points: leg.places(points)[:, 2] > 0.8 * leg.length)["assd_gap_mm"] < 1e-6


def test_a_bone_bent_turned_and_stretched_in_its_shaft_has_these_errors(truth):
    leg = truth.leg
    places = leg.places(leg.tibia.vertices)
    share = np.clip((places[:, 2] / leg.length - 0.3) / 0.4, 0, 1)[:, None]  # only the shaft is deformed
    turned, bent = rotation_about((0, 0, 1), np.radians(8)), rotation_about((1, 0, 0), np.radians(5))
    for motion, shift, expected in (
        (turned, 0.0, (0, 8, 0)),
        (np.eye(3), 4.0, (4, 0, 0)),
        (bent, 0.0, (None, 0, 5)),
    ):
        centre = np.array([0, 0, 0.5 * leg.length])
        moved = (places - centre) @ motion.T + centre + [0, 0, shift]
        mixed = leg.origin + (places + share * (moved - places)) @ leg.axes
        found = figures(Surface(mixed, leg.tibia.faces), truth)
        values = [found[f"{name}"] for name in WHOLE_FIGURES[1:]]
        for value, wanted in zip(values, expected, strict=True):
            assert wanted is None or value == pytest.approx(wanted, abs=0.15)


def test_a_partial_scan_is_measured_only_where_it_was_scanned(truth):
    leg = truth.leg

    def scanned(points):
        return leg.places(points)[:, 2] > leg.length - 150

    far = leg.places(leg.tibia.vertices)[:, 2] < 0.3 * leg.length
    broken = Surface(leg.tibia.vertices + 9.0 * far[:, None] * leg.axes[0], leg.tibia.faces)
    found = figures(broken, truth, None, scanned)
    assert found["assd_mm"] == pytest.approx(0, abs=1e-6)
    assert found["dice"] == 1
    assert all(np.isnan(found[name]) for name in WHOLE_FIGURES)


def test_the_image_figure_falls_with_the_prediction(truth):
    thicker = Surface(truth.leg.tibia.vertices + 1.0 * vertex_normals(truth.leg.tibia), truth.leg.tibia.faces)
    assert figures(thicker, truth)["psnr_db"] < figures(truth.leg.tibia, truth)["psnr_db"] - 2


def test_interpolation_bridges_a_gap_in_the_shaft_and_keeps_what_is_seen(build, truth):
    case = build("shaft")
    found = figures(interpolate(case), truth, case.masked)
    assert found["assd_gap_mm"] < 0.8
    assert found["assd_mm"] < 0.25


def test_interpolation_goes_on_unchanged_where_an_end_is_masked(build):
    case = build("plateau")
    points = interpolate(case).vertices
    places = case.leg.places(points)
    top = places[:, 2] > case.leg.length - 25
    below = np.abs(places[:, 2] - (case.leg.length - 50)) < 4
    assert places[:, 2].max() > case.leg.length - 2
    assert np.ptp(places[top, 0]) == pytest.approx(np.ptp(places[below, 0]), rel=0.25)


def test_mirroring_finds_the_pose_and_shows_the_difference_in_length(build, truth):
    case = build("pilon", other_leg=True)
    found = figures(mirror(case), truth, case.masked)
    assert found["length_error_mm"] == pytest.approx(0.01 * truth.leg.length, rel=0.35)
    assert found["torsion_error_deg"] < 1.5
    assert found["assd_mm"] < 1.2


def test_mirroring_an_equal_leg_gives_the_bone_itself(build, truth):
    case = build("shaft", other_leg=True)
    equal = transformed(case.leg.tibia, MIRROR)
    case = cases.Case(**{**vars(case), "other_tibia": equal})
    assert figures(mirror(case), truth, case.masked)["assd_mm"] < 0.1


@pytest.mark.parametrize("renderer", ["trained", "foreign"])
def test_a_scan_is_oblique_anisotropic_and_shows_the_bone(build, renderer):
    case = build("unmasked", renderer=renderer)
    matrix = case.scan.tibia.ijk_to_ras
    assert case.scan.tibia.spacing[2] > 1.3 * case.scan.tibia.spacing[0]
    tilt = np.degrees(np.arccos(abs(matrix[:3, 2] @ case.leg.axes[2]) / case.scan.tibia.spacing[2]))
    assert 3 < tilt < 10
    assert np.linalg.det(matrix[:3, :3]) * {"trained": 1, "foreign": -1}[renderer] > 0
    ct = case.completion_input.read_ct().array
    bone = case.completion_input.tibia.array
    assert ct.shape == bone.shape
    inside = transform_points(matrix, np.argwhere(case.scan.tibia.array)[::500, ::-1])
    assert SurfaceLocator(case.leg.tibia).signed(inside).max() < 0.01
    assert ct[bone].mean() > ct[~bone].mean() + 300


def test_the_plain_segmentation_is_the_bone_and_the_foreign_one_is_off_by_a_voxel_and_leaks(build):
    plain, foreign = (build("unmasked", renderer=name) for name in ("trained", "foreign"))
    locator = SurfaceLocator(plain.leg.tibia)
    assert np.abs(locator.signed(mask_surface(plain.scan.tibia).vertices)).mean() < 0.12
    distance = locator.signed(foreign.completion_input.surface.vertices)
    assert abs(distance.mean()) < 0.4
    assert 0.2 < np.abs(distance).mean() < 0.7
    assert distance.max() > 2.5
    assert distance.min() < -0.9


def test_baselines_run_where_they_can_use_what_is_given():
    base, other = key_of("shaft"), key_of("shaft", other_leg=True)
    assert [runner.applies(name, base) for name in ("default", "prototype", "interpolation", "mirror")] == [1, 1, 1, 0]
    assert [runner.applies(name, other) for name in ("default", "prototype", "interpolation", "mirror")] == [1, 0, 0, 1]


def test_a_case_that_fails_is_a_row_without_figures_and_a_reason(tmp_path):
    (tmp_path / "tibia").mkdir()
    (tmp_path / "tibia" / "virtual-1_L.ply").write_bytes(b"ply\nnonsense")
    with pytest.raises(InputError, match="cannot be read") as error:
        runner.run_case(str(tmp_path), key_of("shaft"), ("default", "prototype"))
    outcomes = runner._all_failed(key_of("shaft"), ("default", "prototype"), reason(error.value))
    assert [row["method"] for row, _, _ in outcomes] == ["default", "prototype"]
    for row, why, surface in outcomes:
        assert "cannot be read" in why
        assert surface is None
        assert all(np.isnan(row[name]) for name in (*FIGURES, "seconds"))


def test_the_summary_averages_what_is_known_and_counts_what_failed():
    rows = [runner._row(key_of(f"fracture-{n}"), "default", 1.0) for n in (1, 2, 3)]
    rows[0] |= {"assd_mm": 1.0, "seconds": 1.0}
    rows[1] |= {"assd_mm": 2.0, "seconds": 1.0}
    line = runner.summary(rows).splitlines()[1]
    assert line.startswith("fracture")
    assert "1.500" in line
    assert line.endswith("1 failed")


def test_the_quick_run_writes_every_column_and_ends_within_a_minute(bones, tmp_path):
    output = tmp_path / "figures.csv"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "BoneReconstructionLib", "evaluate", "tibia", "--bones", bones]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--output", str(output), "--quick"],
        check=False,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 180  # a minute where nothing else runs
    with open(output, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == runner.COLUMNS
    assert {row["method"] for row in rows} == {"default", "prototype", "interpolation", "mirror"}
    assert {row["renderer"] for row in rows} == {"trained", "foreign"}
    figure = {(row["case"], row["renderer"], row["other_leg"], row["method"]): row for row in rows}
    assert float(figure["unmasked", "trained", "0", "default"]["assd_mm"]) < 0.4
    assert figure["unmasked", "trained", "0", "default"]["assd_gap_mm"] == ""
    gap = {name: float(figure["shaft", "trained", "0", name]["assd_gap_mm"]) for name in ("default", "prototype")}
    assert gap["default"] < gap["prototype"]
    assert float(figure["shaft", "trained", "0", "default"]["peak_mb"]) > 50 or sys.platform == "win32"
    assert "HU window" in done.stdout
    assert " left\n" in done.stdout
    assert len(list(tmp_path.glob("figures-worst-*.png"))) == 3


@pytest.mark.parametrize("methods", ["default,magic", ""])
def test_unknown_methods_are_refused(methods, capsys):
    from BoneReconstructionLib import cli

    with pytest.raises(SystemExit):
        cli.main(["evaluate", "tibia", "--bones", "x", "--output", "y.csv", "--methods", methods])
    assert "there is no method" in capsys.readouterr().err


def test_only_the_named_cases_are_run(bones, monkeypatch):
    from BoneReconstructionLib import cli
    from TibiaCompletionLib.evaluation import tibia

    run = []
    monkeypatch.setattr(tibia, "evaluate", lambda folder, output, methods, keys, jobs: run.extend(keys) or [])
    monkeypatch.setattr(tibia, "summary", lambda rows: "")
    cli.main(["evaluate", "tibia", "--bones", str(bones), "--output", "x.csv", "--cases", "shaft", "fracture-2"])
    assert {key.case for key in run} == {"shaft", "fracture-2"}
    assert len(run) == sum(key.case in ("shaft", "fracture-2") for key in cases.case_keys(bones))
