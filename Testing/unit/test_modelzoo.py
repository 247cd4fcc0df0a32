"""Model folders: found in the right order, checked before use, described by a complete card."""

import json
import os

import numpy as np
import pytest

from BoneReconstructionLib import cli, modelzoo
from BoneReconstructionLib.errors import InputError

TENSORS = {"mean": np.arange(6, dtype=np.float16).reshape(2, 3), "modes": np.linspace(0, 1, 4)}


def card(model_id="knee", **changes):
    definition = {"description": "a tibia's surface", "frame": "standard tibia", "units": "mm"}
    return {
        "id": model_id,
        "version": "1.2",
        "licence": "Apache-2.0",
        "attribution": "Dr. Lékař",
        "training_data": "twelve people",
        "input": definition,
        "output": definition,
        "figures": {"ASSD_mm": {"mean": 0.36}},
        "limits": ["Adults only.", "Not for clinical use."],
    } | changes


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A weights folder that BONERECON_MODELS names, where nothing is bundled."""
    folder = tmp_path / "Poids à jour"
    folder.mkdir()
    monkeypatch.setenv("BONERECON_MODELS", str(folder))
    monkeypatch.setattr(modelzoo, "package_folders", list)
    return folder


def alter_one_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_saved_model_is_found_with_its_card_and_tensors(models):
    saved = modelzoo.save_model(models / "knee", card(), TENSORS)
    found = modelzoo.find_model("knee")
    assert found == saved
    assert found.card["attribution"] == "Dr. Lékař"
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(found.tensors()[name], array, strict=True)
    assert sorted(path.name for path in found.folder.iterdir()) == ["model.json", "weights.safetensors"]


def test_saving_again_replaces_the_model(models):
    modelzoo.save_model(models / "knee", card(), TENSORS)
    modelzoo.save_model(models / "knee", card(version="1.3"), {"mean": np.ones(1)})
    found = modelzoo.find_model("knee")
    assert found.card["version"] == "1.3"
    assert list(found.tensors()) == ["mean"]


def test_equal_input_gives_equal_bytes(models, tmp_path):
    for parent in (models, tmp_path / "other"):
        modelzoo.save_model(parent / "knee", card(), TENSORS)
    for name in ("model.json", "weights.safetensors"):
        assert (models / "knee" / name).read_bytes() == (tmp_path / "other" / "knee" / name).read_bytes()


def test_missing_weights_are_one_sentence(models):
    model = modelzoo.save_model(models / "knee", card(), TENSORS)
    model.weights.unlink()
    assert model.state() == "missing"
    with pytest.raises(InputError, match="weights of the model knee are missing: copy weights.safetensors"):
        modelzoo.find_model("knee").tensors()


def test_weights_altered_by_one_byte_are_refused(models):
    model = modelzoo.save_model(models / "knee", card(), TENSORS)
    assert model.state() == "ok"
    alter_one_byte(model.weights)
    assert model.state() == "altered"
    with pytest.raises(InputError, match="weights of the model knee were altered or damaged"):
        modelzoo.find_model("knee").tensors()


def test_an_unknown_model_is_told_with_the_known_ones(models):
    modelzoo.save_model(models / "knee", card(), TENSORS)
    with pytest.raises(InputError, match="no model 'hip' \\(found: knee\\)"):
        modelzoo.find_model("hip")


@pytest.mark.parametrize("name", ["..", "../models/knee", "/", "", "a/../knee"])
def test_a_path_is_no_model_id(models, name):
    modelzoo.save_model(models / "knee", card(), TENSORS)
    with pytest.raises(InputError, match="no model"):
        modelzoo.find_model(name)


def test_a_weights_folder_that_does_not_exist_is_one_sentence(models, monkeypatch):
    monkeypatch.setenv("BONERECON_MODELS", os.pathsep.join([str(models), str(models / "none")]))
    with pytest.raises(InputError, match="BONERECON_MODELS names the folder .*none, which does not exist"):
        modelzoo.find_model("knee")


def test_the_first_weights_folder_counts_and_comes_before_the_bundled_models(models, tmp_path, monkeypatch):
    for place, version in (("first", "1"), ("second", "2"), ("package/models", "3")):
        modelzoo.save_model(tmp_path / place / "knee", card(version=version), TENSORS)
    modelzoo.save_model(tmp_path / "package/models/hip", card("hip"), TENSORS)
    monkeypatch.setattr(modelzoo, "package_folders", lambda: [tmp_path / "none", tmp_path / "package"])
    monkeypatch.setenv("BONERECON_MODELS", os.pathsep.join([str(tmp_path / "first"), "", str(tmp_path / "second")]))
    assert [(model.id, model.card["version"]) for model in modelzoo.list_models()] == [("hip", "1.2"), ("knee", "1")]
    monkeypatch.delenv("BONERECON_MODELS")
    assert modelzoo.find_model("knee").card["version"] == "3"


def test_bundled_models_are_intact():
    for model in modelzoo.list_models():
        assert model.state() == "ok", model.id
        assert model.tensors()


@pytest.mark.parametrize("key", [key for key in card()])
def test_a_card_without_a_key_is_refused(models, key):
    incomplete = card()
    del incomplete[key]
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        modelzoo.save_model(models / "knee", incomplete, TENSORS)
    assert not (models / "knee").exists()


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"version": 1}, "lacks 'version'"),
        ({"licence": ""}, "lacks 'licence'"),
        ({"input": {"description": "a", "units": "mm"}}, "lacks 'frame' in its 'input'"),
        ({"output": {"description": "a", "frame": "b", "units": ""}}, "lacks 'units' in its 'output'"),
        ({"limits": ["Adults only."]}, "does not say 'not for clinical use'"),
        ({"limits": [1]}, "limits that are not texts"),
        ({"id": "other"}, "must be its folder's name"),
    ],
)
def test_a_wrong_card_is_refused(models, changes, problem):
    with pytest.raises(InputError, match=problem):
        modelzoo.save_model(models / "knee", card(**changes), TENSORS)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '{"id": "knee"}', "[" * 100_000])
def test_a_damaged_card_is_one_sentence(models, text):
    modelzoo.save_model(models / "knee", card(), TENSORS)
    (models / "knee" / "model.json").write_text(text)
    with pytest.raises(InputError, match="^The model card .* (is not|lacks) .*\\.$"):
        modelzoo.find_model("knee")


def test_a_card_without_checksum_is_refused(models):
    modelzoo.save_model(models / "knee", card(), TENSORS)
    (models / "knee" / "model.json").write_text(json.dumps(card()))
    with pytest.raises(InputError, match="sha256"):
        modelzoo.find_model("knee")


def test_the_list_shows_version_licence_size_and_state(models, capsys):
    for name in ("bad", "gone", "good", "odd"):
        modelzoo.save_model(models / name, card(name), {"a": np.zeros(500_000, np.float16)})
    alter_one_byte(models / "bad" / "weights.safetensors")
    (models / "gone" / "weights.safetensors").unlink()
    (models / "odd" / "model.json").write_text("{}")
    assert cli.main(["models"]) == 0
    lines = [line.split(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        ["id", "version", "licence", "size", "state"],
        ["bad", "1.2", "Apache-2.0", "1.00", "MB", "altered"],
        ["gone", "1.2", "Apache-2.0", "-", "missing"],
        ["good", "1.2", "Apache-2.0", "1.00", "MB", "ok"],
    ]
    assert lines[4][0] == "odd" and lines[4][4] == "invalid:"


def test_a_card_is_printed_as_text(models, capsys):
    modelzoo.save_model(models / "knee", card(), TENSORS)
    assert cli.main(["models", "knee"]) == 0
    text = capsys.readouterr().out
    assert "attribution: Dr. Lékař\n" in text
    assert "training data: twelve people\n" in text
    assert "  frame: standard tibia\n" in text
    assert "figures:\n  ASSD mm:\n    mean: 0.36\n" in text
    assert "  - Not for clinical use.\n" in text
    assert text.endswith("state: ok\n")


def test_asking_for_an_unknown_card_exits_with_2(models, capsys):
    assert cli.main(["models", "hip"]) == 2
    assert capsys.readouterr().err.startswith("bonerecon: There is no model 'hip'")
