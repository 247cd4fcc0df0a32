"""`bonerecon train tibia`: data, masks, resuming, checking of real CTs, and one tiny training of everything."""

import csv
import json
import shutil
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from phantoms import frame
from scipy import ndimage
from tibiae import leg
from virtualpeople import patients

from BoneReconstructionLib import cli
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.frames import MIRROR
from BoneReconstructionLib.imagemetrics import HU_WINDOW
from BoneReconstructionLib.modelzoo import MODELS_VARIABLE, Model
from BoneReconstructionLib.shapeprior import load_prior
from BoneReconstructionLib.surfacefiles import write_surface
from BoneReconstructionLib.surfaces import Surface, transformed
from BoneReconstructionLib.volumes import Volume, write_volume
from TibiaCompletionLib.evaluation import table1
from TibiaCompletionLib.networkmodels import (
    LIMITS,
    build,
    find_network,
    grid_settings,
    load_network,
    save_network,
    virtual_people,
)
from TibiaCompletionLib.precision import chosen_device
from TibiaCompletionLib.randommasks import BLOCK_SHARE, random_bands, random_blocks, random_fractures, random_masks
from TibiaCompletionLib.registration.network import LocNet
from TibiaCompletionLib.standardgrid import CENTRE_MM, STANDARD_GRID, StandardGrid
from TibiaCompletionLib.training import STAGES, TibiaTraining, check_resume
from TibiaCompletionLib.trainingcts import (
    CtCase,
    check_cases,
    check_number,
    find_cases,
    raw_image,
    read_case,
    real_image,
    split,
)
from TibiaCompletionLib.trainingdata import (
    bone_image,
    left_out_seeds,
    raw_from_standard,
    scanner_pose,
    training_seeds,
    virtual_images,
)
from TibiaCompletionLib.trainingloop import Interrupted, Schedule, Surroundings, optimise, seeded, stage_seed
from TibiaCompletionLib.trainingpresets import PRESETS, chosen_preset

COARSE = STANDARD_GRID.coarser(8)
TINY = replace(
    PRESETS["cpu"],
    grid=COARSE,
    people=4,
    batch=2,
    locnet_widths=(4, 4),
    widths=(4, 4),
    latent=2,
    codewords=8,
    codeword=2,
    components=3,
    registration_steps=2,
    prototype_steps=2,
    autoencoder_steps=2,
    shape_widths=(4, 8),
    shape_batch=3,
    shape_steps=2,
    refined_images=COARSE,
    refined_grid=STANDARD_GRID.coarser(16),
    refined_widths=(4, 4),
    refined_repeated=1,
    refined_batch=1,
    refined_steps=2,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", autouse=True)
def one_set_of_patients():
    """Making the patients' fields takes seconds; they are the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("trainingdata", "training"):
            patch.setattr(f"TibiaCompletionLib.{module}.VirtualPatients", lambda device: patients())
        patch.setattr("TibiaCompletionLib.training.LEFT_OUT", 1)
        yield


# ---- masks ----


def test_blocks_are_cubes_of_ten_to_twenty_millimetres_and_a_quarter_of_space():
    grid = StandardGrid((64, 60, 56), (1.0, 1.0, 1.0))
    masks = random_blocks(grid, 6, generator())
    assert masks.shape == (6, 1, *grid.shape_kji) and masks.dtype == torch.bool
    assert float(masks.float().mean()) == pytest.approx(BLOCK_SHARE, abs=0.08)
    for mask in masks[:, 0]:
        for line in (mask[:, 30, 28], mask[32, :, 28], mask[32, 30, :]):
            edges = np.flatnonzero(np.diff(line.numpy().astype(int)))
            if len(edges) > 1:
                assert np.diff(edges).min() >= 9


def test_bands_hide_an_end_or_leave_both_ends():
    ends = {"plateau": (False, True), "pilon": (True, False), "shaft": (False, False)}
    for kind, (distal, proximal) in ends.items():
        masks = random_bands(COARSE, 8, kind, generator(1))[:, 0, :, 8, 8]
        heights = COARSE.ijk_to_standard[2, 2] * np.arange(COARSE.shape_kji[0]) + COARSE.ijk_to_standard[2, 3]
        middle_of_shaft = np.abs(heights + 25) < 10
        assert masks.any(1).all() and not masks.all(1).any()
        assert (masks[:, 0] == distal).all() and (masks[:, -1] == proximal).all()
        if kind != "shaft":
            assert not masks[:, middle_of_shaft].any()


def test_fracture_masks_are_thin_and_hide_something():
    masks = random_fractures(STANDARD_GRID.coarser(4), 10, generator(2))
    share = masks.float().mean((1, 2, 3, 4))
    assert share.min() > 0.01 and share.max() < 0.4


def test_masks_follow_their_seed():
    first, again, other = (random_masks(COARSE, 4, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---- virtual people ----


@cache
def people():
    return virtual_images(training_seeds(5), COARSE, "cpu")


def test_raw_images_show_the_bone_alone_in_the_middle_of_the_grid():
    for image in people()[:, 0].float().numpy():
        bone = np.argwhere(image > 0.05)
        middle = (bone.min(0) + bone.max(0)) / 2
        np.testing.assert_allclose(middle, (np.array(COARSE.shape_kji) - 1) / 2, atol=1.1)
        assert 280 < np.ptp(bone[:, 0]) * COARSE.spacing_ijk[2] < 440
        assert 0.01 < (image > 0).mean() < 0.2 and image.max() <= 1


def test_people_lie_in_the_scanner_as_their_seed_says_and_none_is_left_out_by_mistake():
    assert not set(training_seeds(1_000_000)) & set(left_out_seeds(1000))
    points = np.random.default_rng(0).normal(size=(50, 3)) * (10, 20, 100)
    rotation = scanner_pose(5, points)
    np.testing.assert_allclose(rotation, scanner_pose(5, points))
    matrix = raw_from_standard(points, rotation)
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose((moved.min(0) + moved.max(0)) / 2, CENTRE_MM, atol=1e-9)


def test_a_bone_with_no_room_for_its_tilt_lies_straighter():
    corners = np.stack(np.meshgrid([-1.0, 1.0], [-1.0, 1.0], [-200.0, 200.0]), -1).reshape(-1, 3)
    slim, wide = (corners * (half, half, 1) for half in (1.0, 62.0))
    turned = {name: np.arccos((np.trace(scanner_pose(5, bone)) - 1) / 2) for name, bone in (("s", slim), ("w", wide))}
    assert turned["w"] < turned["s"]
    for bone in (slim, wide):
        assert (np.ptp(bone @ scanner_pose(5, bone).T, axis=0) <= 2 * STANDARD_GRID.half_extent_ijk).all()


def test_the_window_maps_hounsfield_units_to_one():
    hu = torch.tensor([HU_WINDOW[0] - 5, HU_WINDOW[0], sum(HU_WINDOW) / 2, HU_WINDOW[1], 5000.0])
    image = bone_image(hu, torch.tensor([True] * 4 + [False]))
    torch.testing.assert_close(image, torch.tensor([0, 0, 0.5, 1, 0]))


# ---- the loop ----


class Line(torch.nn.Module):
    """y = a x + b, learned from noisy points that each step draws anew."""

    def __init__(self):
        super().__init__()
        self.coefficients = torch.nn.Parameter(torch.zeros(2))

    def loss(self, generator, done):
        x = torch.rand(32, generator=generator)
        error = self.coefficients[0] * x + self.coefficients[1] - (3 * x - 1)
        return (error**2).mean(), {"slope": self.coefficients[0].detach()}


def trained(folder, interrupt_at=None):
    line, calls = Line(), []

    def loss_of(generator, done):
        calls.append(done)
        if len(calls) == interrupt_at:
            object.__setattr__(surroundings, "deadline", 0.0)
        return line.loss(generator, done)

    surroundings = Surroundings(folder)
    optimise("line", line, loss_of, Schedule(30, 0.2, seed=4), surroundings)
    return line.coefficients.detach(), len(calls)


def test_a_training_cut_short_goes_on_to_the_very_same_weights(tmp_path):
    whole, steps = trained(tmp_path / "a")
    assert steps == 30 and float(abs(whole - torch.tensor([3.0, -1.0])).max()) < 1.0
    with pytest.raises(Interrupted):
        trained(tmp_path / "b", interrupt_at=11)
    resumed, left = trained(tmp_path / "b")
    assert left == 19
    assert torch.equal(whole, resumed)
    _, nothing_left = trained(tmp_path / "b")
    assert nothing_left == 0


def test_a_loss_that_is_no_number_ends_the_training_and_is_not_kept(tmp_path):
    line = Line()

    def loss_of(generator, done):
        loss, values = line.loss(generator, done)
        return loss * (float("nan") if done > 0.4 else 1.0), values

    with pytest.raises(InputError, match="line failed: its loss is no number after 20 steps"):
        optimise("line", line, loss_of, Schedule(30, 0.2, seed=4), Surroundings(tmp_path))
    assert not (tmp_path / "line.safetensors").exists()


class Slow:
    """Stands for the renderer: each image says whose it is, and the time is over after two."""

    def __init__(self, surroundings):
        self.surroundings, self.asked = surroundings, []

    def __call__(self, seed):
        self.asked.append(seed)
        if len(self.asked) == 2:
            object.__setattr__(self.surroundings, "deadline", 0.0)
        return torch.full((1, 2, 2, 2), float(seed - training_seeds(1)[0]), dtype=torch.float16)


def test_rendering_stops_when_the_time_is_over_and_goes_on_from_there(tmp_path, monkeypatch):
    made = []
    for run in range(3):
        training = TibiaTraining(tmp_path, TINY, 0, "cpu", Surroundings(tmp_path / "checkpoints"))
        renderer = Slow(training.surroundings)
        monkeypatch.setattr("TibiaCompletionLib.training.PersonImages", lambda *_, renderer=renderer: renderer)
        if run == 0:
            with pytest.raises(Interrupted, match="people"):
                training.raw  # noqa: B018
        else:
            assert training.raw[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 3]
        made.append(len(renderer.asked))
    assert made == [2, 2, 0]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    trained(tmp_path)
    other = LocNet(COARSE, (4,))
    with pytest.raises(InputError, match="another network"):
        optimise("line", other, None, Schedule(30, 0.1, 0), Surroundings(tmp_path))


def test_seeding_leaves_the_outer_random_numbers_alone():
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    first, again = (seeded(lambda: torch.rand(2), 0, "a") for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.rand(3), wanted)
    assert len({stage_seed(0, "a", 1), stage_seed(0, "a", 2), stage_seed(1, "a", 1)}) == 3


# ---- everything, tiny ----


def new_training(folder, preset=TINY):
    """A training whose people have been rendered: the last of them is left out."""
    training = TibiaTraining(folder, preset, 0, "cpu", Surroundings(folder / "checkpoints"))
    training._images = lambda name, left_out, grid, place=None: people()[4:] if left_out else people()[:4]
    return training


def train(folder, preset=TINY):
    training = new_training(folder, preset)
    training.run()
    return training


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return folder, train(folder)


def test_every_stage_leaves_a_model_with_a_whole_card(models):
    folder, training = models
    expected = {f"tibia-{stage}" for stage in STAGES if stage != "people" and not stage.endswith("-prototype")}
    assert {path.name for path in (folder / "models").iterdir()} == expected
    for path in (folder / "models").iterdir():
        card = json.loads((path / "model.json").read_text())
        assert card["limits"][:-1] == LIMITS and "virtual people" in card["limits"][-1]
        assert "virtual people" in card["training_data"] and card["network"]["kind"]
        measured = card["figures"]["left_out_people"]
        assert card["figures"]["people"] == 4 and measured.pop("people") == 1
        assert measured and all(np.isfinite(value) and value > 0 for value in measured.values())
        load_network(Model(path.name, path, card))
    assert training.figures["stn"]["steps"] == 2


def test_training_again_changes_nothing_and_a_lost_model_comes_back_the_same(models, tmp_path):
    folder, _ = models
    copy = shutil.copytree(folder, tmp_path / "copy")
    for lost in ("tibia-stn-masked", "tibia-vqvae-masked-whole"):
        shutil.rmtree(copy / "models" / lost)
        (copy / "checkpoints" / f"{lost.removeprefix('tibia-')}.safetensors").unlink()
    train(copy)
    for path in (folder / "models").glob("*/weights.safetensors"):
        assert path.read_bytes() == (copy / "models" / path.parent.name / path.name).read_bytes()


def test_twenty_steps_lower_every_loss(tmp_path):
    values = {}
    training = new_training(
        tmp_path, replace(TINY, registration_steps=20, prototype_steps=20, autoencoder_steps=20, refined_steps=20)
    )
    optimised = training._optimise

    def noted(stage, module, loss_of, steps, rate):
        def loss(generator):
            with torch.no_grad():
                return float(loss_of(generator, 1.0)[0])

        module.train()
        before = np.mean([loss(generator(seed)) for seed in range(6)])
        optimised(stage, module, loss_of, steps, rate)
        values[stage] = before, np.mean([loss(generator(seed)) for seed in range(6)])

    training._optimise = noted
    training.shape = lambda: None  # its own test lowers its loss
    training.run()
    untrained = ("people", "shape", *(stage for stage in STAGES if stage.startswith("pca")))
    assert values.keys() == STAGES.keys() - set(untrained)
    assert not [stage for stage, (before, after) in values.items() if not after < before], values


def test_the_table_is_made_from_what_was_trained(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MODELS_VARIABLE, "")  # the command sets it; put back afterwards
    monkeypatch.setattr("TibiaCompletionLib.evaluation.table1.virtual_images", lambda seeds, *_: people()[:1])
    folder = shutil.copytree(models[0] / "models", tmp_path / "models")
    shutil.rmtree(folder / "tibia-vae-direct")  # a training cut short
    for cached in (table1._grid, table1._network, table1._exists):
        cached.cache_clear()
    arguments = ["evaluate", "table1", "--models", str(folder), "--output", str(tmp_path / "t.csv"), "--people", "1"]
    assert cli.main([*arguments, "--device", "cpu", "--pictures", str(tmp_path / "t.png")]) == 0
    with open(tmp_path / "t.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {(row["row"], row["column"]) for row in rows}
    assert len(found) == len(rows) == 4 + 4 + 5 + 6 + 6
    assert ("direct", "vae") not in found and ("masked-input", "vqvae-whole") in found
    assert ("none", "prototype") not in found and ("masked", "prototype") not in found
    assert all(0 <= float(row["d_ssim_3"]) <= 1 and float(row["rmse"]) > 0 for row in rows)
    assert "mask-robust STN (eq. 4)" in capsys.readouterr().out
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_real_people_lists_each_of_them(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MODELS_VARIABLE, "")
    for cached in (table1._grid, table1._network, table1._exists):
        cached.cache_clear()
    prior = load_prior("tibia-prior", "tibia")
    (tmp_path / "tibia").mkdir()
    for side, mirrored in (("R", False), ("L", True)):
        bone = transformed(Surface(prior.mean, prior.faces), MIRROR if mirrored else np.eye(4))
        write_surface(tmp_path / "tibia" / f"one_{side}.ply", bone)
    arguments = ["evaluate", "table1", "--models", str(models[0] / "models"), "--output", str(tmp_path / "t.csv")]
    assert cli.main([*arguments, "--bones", str(tmp_path), "--device", "cpu"]) == 0
    with open(tmp_path / "t.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["person"] for row in rows} == {"one_L", "one_R"}
    printed = capsys.readouterr().out
    assert printed.count("w/o registration") == 2 and printed.count("What differs from the paper") == 1
    assert "one_L" in printed and "±" not in printed


def test_altered_weights_are_refused(models, tmp_path):
    folder, _ = models
    copy = shutil.copytree(folder / "models" / "tibia-stn", tmp_path / "tibia-stn")
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (copy / "weights.safetensors").write_bytes(data)
    with pytest.raises(InputError, match="altered"):
        load_network(Model("tibia-stn", copy, json.loads((copy / "model.json").read_text())))


def test_a_network_comes_back_from_its_card(tmp_path):
    settings = {"kind": "locnet", "grid": grid_settings(COARSE), "widths": [4, 8], "repeated": 1}
    network = seeded(lambda: build(settings), 0, "x")
    with torch.no_grad():
        network.head[-1].bias.fill_(0.25)
    save_network(tmp_path / "tibia-x", network, settings, {"people": 1}, virtual_people(1), {})
    card = json.loads((tmp_path / "tibia-x" / "model.json").read_text())
    again = load_network(Model("tibia-x", tmp_path / "tibia-x", card))
    image = torch.rand(1, 1, *COARSE.shape_kji)
    torch.testing.assert_close(again(image), network(image), atol=2e-3, rtol=0)


def test_models_of_two_trainings_are_not_mixed(models, tmp_path, monkeypatch):
    """An autoencoder expects bones where its own STN puts them."""
    folder = shutil.copytree(models[0] / "models", tmp_path / "models")
    monkeypatch.setenv(MODELS_VARIABLE, str(folder))
    assert set(find_network("tibia-vae-masked-whole").card["trained_with"]) == {"tibia-stn"}
    assert set(find_network("tibia-stn-refined").card["trained_with"]) == {"tibia-prior"}
    path = folder / "tibia-stn" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sha256": "0" * 64}))
    for model_id in ("tibia-vae-masked-whole", "tibia-pca-stn", "tibia-stn-masked"):
        with pytest.raises(InputError, match="trained with another tibia-stn"):
            find_network(model_id)
    assert find_network("tibia-vae-none").id == "tibia-vae-none"


def test_one_part_can_be_trained_alone(tmp_path):
    training = new_training(tmp_path)
    training.run(("stn-refined",))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tibia-stn-refined"]


# ---- real CTs ----

AXES = frame((1.9, 1.7, 3.0), (8, -5, 20), "j")


@cache
def real_leg(side):
    return leg(side, AXES, gap_mm=(1e3, 2e3))


def write_case(folder, side, tibia=None, ct=None):
    one = real_leg(side)
    folder.mkdir(parents=True)
    hu = np.where(one.bone.array, 900, -1000).astype(np.int16)
    write_volume(folder / "ct.nrrd", Volume(hu if ct is None else ct, one.bone.ijk_to_ras))
    mask = one.bone.array if tibia is None else tibia
    write_volume(folder / "tibia.nrrd", Volume(mask.astype(np.uint8), one.bone.ijk_to_ras))


def test_a_good_case_has_nothing_wrong_and_becomes_a_right_bone_in_the_middle(tmp_path):
    for side, letter in (("left", "L"), ("right", "R")):
        write_case(tmp_path / f"p1_{letter}", side)
    cases = find_cases(tmp_path)
    assert check_cases(cases) == [("p1_L", ""), ("p1_R", "")]
    left, right = (raw_image(*read_case(case), case.side, COARSE)[0].astype(float) for case in cases)
    np.testing.assert_allclose(left, right, atol=0.02)  # mirrored, the two legs are the same
    bone = np.argwhere(left > 0.1)
    np.testing.assert_allclose((bone.min(0) + bone.max(0)) / 2, (np.array(COARSE.shape_kji) - 1) / 2, atol=1.1)


def test_the_dry_run_says_what_is_wrong_with_each_case(tmp_path, capsys):
    bone = real_leg("left").bone.array
    write_case(tmp_path / "good_L", "left")
    write_case(tmp_path / "noside", "left")
    write_case(tmp_path / "empty_L", "left", tibia=np.zeros_like(bone))
    write_case(tmp_path / "grey_L", "left", ct=np.where(bone, 255, 0).astype(np.int16))
    write_case(tmp_path / "beside_L", "left", tibia=np.roll(bone, 9, 2))
    cut = bone.copy()
    np.moveaxis(cut, int(np.argmax(bone.shape)), 0)[: max(bone.shape) // 2] = False
    write_case(tmp_path / "short_L", "left", tibia=cut)
    thick = bone.copy()
    thick[:, 0, 0] = True
    write_case(tmp_path / "border_R", "right", tibia=thick)
    (tmp_path / "none_R").mkdir()
    write_case(tmp_path / "twice_L", "left")
    shutil.copy(tmp_path / "twice_L" / "ct.nrrd", tmp_path / "twice_L" / "ct.mha")
    assert cli.main(["train", "tibia", "--cts", str(tmp_path), "--dry-run"]) == 2
    out, error = capsys.readouterr()
    said = dict(line.split(": ", 1) for line in out.splitlines())
    for name, part in {
        "good_L": "can be learned from",
        "noside": "end in _L or _R",
        "empty_L": "empty",
        "grey_L": "not in HU",
        "beside_L": "lies on the bone",
        "short_L": "mm long",
        "border_R": "end of the scan",
        "none_R": "no file named ct",
        "twice_L": "2 files named ct",
    }.items():
        assert part in said[name], said[name]
    assert "8 of 9 cases" in error


@pytest.mark.parametrize("cortex, marrow, sentence", [(700, -80, ""), (450, 60, "less than cortical bone")])
def test_porotic_bone_is_learned_from_and_soft_tissue_is_not(cortex, marrow, sentence, tmp_path):
    bone = real_leg("left").bone.array
    ct = np.where(bone, np.where(ndimage.binary_erosion(bone, iterations=2), marrow, cortex), -1000).astype(np.int16)
    assert np.median(ct[bone]) < 150
    write_case(tmp_path / "p_L", "left", ct=ct)
    ((_, said),) = check_cases(find_cases(tmp_path))
    assert sentence in said and bool(said) == bool(sentence)


def test_real_people_who_were_left_out_are_measured_and_the_cards_say_whose_bones_they_are(tmp_path):
    """The virtual people's images stand for those of CTs, which other tests read."""
    cases = [CtCase(tmp_path / f"p{number}_L") for number in range(5)]
    training = TibiaTraining(tmp_path, TINY, 0, "cpu", Surroundings(tmp_path / "checkpoints"), split(cases))
    images = dict(zip(cases, people(), strict=True))
    training._reader = lambda grid: images.get
    training.run(("shape", "stn-masked", "stn-refined"))
    for name in ("stn", "stn-masked", "stn-refined"):
        card = json.loads((tmp_path / "models" / f"tibia-{name}" / "model.json").read_text())
        assert card["training_data"] == "4 real CTs with tibia masks, of 4 people."
        assert "virtual" not in json.dumps(card) and card["figures"]["left_out_people"]["people"] == 1
    assert card["trained_with"].keys() == {"tibia-stn"}
    assert not (tmp_path / "models" / "tibia-shape").exists()  # masks and vertices come from virtual people alone


def test_real_people_are_split_by_person_and_too_few_are_refused(tmp_path):
    cases = [CtCase(tmp_path / f"p{number}_{side}") for number in range(10) for side in "LR"]
    learned, left_out = split(cases)
    assert {case.subject for case in left_out} == {"p7"} and len(learned) == 18
    assert not {case.subject for case in learned} & {case.subject for case in left_out}
    with pytest.raises(InputError, match="at least"):
        check_number(cases[:2])
    with pytest.raises(InputError, match="p0_L: .*--dry-run"):
        real_image(cases[0], COARSE)
    with pytest.raises(InputError, match="no case folder"):
        find_cases(tmp_path)


# ---- the command ----


def test_an_output_folder_is_never_mixed_with_another_training(tmp_path):
    check_resume(tmp_path, {"seed": 1}, resume=False)
    with pytest.raises(InputError, match="--resume"):
        check_resume(tmp_path, {"seed": 1}, resume=False)
    check_resume(tmp_path, {"seed": 1}, resume=True)
    with pytest.raises(InputError, match="other settings"):
        check_resume(tmp_path, {"seed": 2}, resume=True)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--dry-run"], "--cts"),
        ([], "--output"),
        (["--output", "x", "--steps", "0"], "at least 1 step"),
        (["--output", "x", "--device", "tpu"], "knows no device 'tpu'"),
        (["--output", "x", "--device", "cuda:99"], "no GPU cuda:99"),
    ],
)
def test_incomplete_commands_are_refused_in_one_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "tibia", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_gpu_computes_in_full_precision(monkeypatch):
    """Tensor cores would round convolutions to ten bits, and CPU and GPU would no longer agree."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    matmul = SimpleNamespace(allow_tf32=True)  # torch's own cannot be put back where it was built without a GPU
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    assert chosen_device("cuda") == "cuda"
    assert not torch.backends.cudnn.allow_tf32 and not matmul.allow_tf32


def test_numbers_of_steps_and_people_can_be_chosen():
    preset = chosen_preset("gpu", 7, 50)
    assert (preset.registration_steps, preset.prototype_steps, preset.autoencoder_steps) == (7, 7, 7)
    assert preset.shape_steps == 7 and preset.people == 50 and preset.grid == STANDARD_GRID
    with pytest.raises(InputError, match="--people"):
        chosen_preset("gpu", None, 3)
