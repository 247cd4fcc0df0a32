"""Trained models: where they are found, what their cards say, and weights that are checked before they are used.

A model is a folder <models folder>/<id>/ with the card `model.json` and the weights `weights.safetensors`. Bundled
models lie in the `models` folder of each package. The environment variable BONERECON_MODELS names further models
folders (several are separated as in PATH), which come first: a hospital without a network copies models there.
"""

import hashlib
import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.packages import package_folders
from BoneReconstructionLib.tensorfiles import (  # noqa: F401 - reading and writing are offered here
    format_tensors,
    parse_tensors,
    read_tensors,
    write_atomically,
    write_tensors,
)

MODELS_VARIABLE = "BONERECON_MODELS"

_CARD, _WEIGHTS = "model.json", "weights.safetensors"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEFINITION = ("description", "frame", "units")
_CARD_KEYS = {
    "id": str,
    "version": str,
    "licence": str,
    "attribution": str,
    "training_data": str,
    "input": dict,
    "output": dict,
    "figures": dict,
    "limits": list,
}
_NOT_CLINICAL = "not for clinical use"


@dataclass(frozen=True)
class Model:
    """A model that was found.

    Attributes:
        id: its name, which is also its folder's.
        folder: the folder with the card and the weights.
        card: the contents of model.json: id, version, licence, attribution, training_data, input and output (each
            with description, frame and units), figures (measured), limits (texts), sha256 (of the weights file).
    """

    id: str
    folder: Path
    card: dict

    @property
    def weights(self) -> Path:
        """The weights file, which may be missing."""
        return self.folder / _WEIGHTS

    def tensors(self) -> dict[str, np.ndarray]:
        """Reads the weights after checking them against the card's sha256.

        Returns:
            The arrays by name, in their stored types (fp16 is for storage: convert before computing on a CPU).

        Raises:
            InputError: the weights are missing, cannot be read or differ from those of the card.
        """
        try:
            data = self.weights.read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"The weights of the model {self.id} are missing: copy {_WEIGHTS} into {self.folder}."
            ) from error
        except OSError as error:
            raise InputError(f"The weights {self.weights} cannot be read ({error.strerror}).") from error
        if hashlib.sha256(data).hexdigest() != self.card["sha256"]:
            raise InputError(
                f"The weights of the model {self.id} were altered or damaged (their sha256 is not the one in its "
                f"{_CARD}): copy its folder {self.folder} anew."
            )
        return parse_tensors(data, self.weights)

    def state(self) -> str:
        """Says whether the weights can be used: "ok", "missing" or "altered"."""
        try:
            with open(self.weights, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return "missing"
        return "ok" if digest == self.card["sha256"] else "altered"


def find_model(model_id: str) -> Model:
    """Finds a model in the folders of BONERECON_MODELS, then among the bundled ones; the first one counts.

    Args:
        model_id: the model's id.

    Raises:
        InputError: there is no such model, its card is invalid, or a folder of BONERECON_MODELS does not exist.
    """
    folders = dict(_model_folders())
    if model_id not in folders:
        known = ", ".join(sorted(folders)) or "none"
        raise InputError(
            f"There is no model {model_id!r} (found: {known}): copy its folder into a folder that "
            f"{MODELS_VARIABLE} names, or install the extension anew."
        )
    return _load(folders[model_id])


def list_models() -> list[Model]:
    """Lists the models that find_model can find, by id.

    Raises:
        InputError: a card is invalid, or a folder of BONERECON_MODELS does not exist.
    """
    return [_load(folder) for _, folder in sorted(_model_folders())]


def save_model(folder: str | os.PathLike, card: Mapping, tensors: Mapping[str, np.ndarray]) -> Model:
    """Writes a model folder; the card comes last, so a folder with a card has its weights.

    Args:
        folder: made when missing; its name must be the card's id. A model in it is replaced.
        card: the contents of model.json without sha256, which is filled in; see Model.
        tensors: the weights in the types to be stored.

    Raises:
        InputError: the card is incomplete or the folder cannot be written.
        TypeError: an array's type has no place in the format.
    """
    folder = Path(folder)
    _check_card({**card, "sha256": "0" * 64}, folder)
    data = format_tensors(tensors, {"id": card["id"], "version": card["version"]})
    complete = {**card, "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(complete, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made ({error.strerror}).") from error
    write_atomically(folder / _WEIGHTS, data)
    write_atomically(folder / _CARD, text.encode())
    return Model(complete["id"], folder, complete)


def add_arguments(parser) -> None:
    """Adds the arguments of `bonerecon models` to an argparse parser."""
    parser.add_argument("id", nargs="?", metavar="ID", help="print this model's card; without it, list all models")


def run(arguments) -> None:
    """Runs `bonerecon models`: prints the list of models or one model's card.

    Raises:
        InputError: there is no such model or its card is invalid, or a folder of BONERECON_MODELS does not exist.
    """
    print(_card_text(find_model(arguments.id)) if arguments.id else _list_text())


def _model_folders() -> Iterator[tuple[str, Path]]:
    """Yields (id, folder) of each model; of several with one id only the first in the search order."""
    seen = set()
    for models in _search_path():
        for card in sorted(models.glob(f"*/{_CARD}")):
            if card.parent.name not in seen:
                seen.add(card.parent.name)
                yield card.parent.name, card.parent


def _search_path() -> Iterator[Path]:
    for entry in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep):
        if entry:
            if not Path(entry).is_dir():
                raise InputError(f"{MODELS_VARIABLE} names the folder {entry}, which does not exist: correct it.")
            yield Path(entry)
    for package in package_folders():
        yield package / "models"


def _load(folder: Path) -> Model:
    path = folder / _CARD
    try:
        card = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"The model card {path} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"The model card {path} is not JSON: copy the model's folder anew.") from error
    _check_card(card, folder)
    return Model(card["id"], folder, card)


def _check_card(card: object, folder: Path) -> None:
    """Raises InputError with the first thing that is wrong with a card."""
    problem = _card_problem(card, folder)
    if problem:
        raise InputError(f"The model card {folder / _CARD} {problem}.")


def _card_problem(card: object, folder: Path) -> str | None:
    if not isinstance(card, dict):
        return "is not a JSON object"
    for key, kind in _CARD_KEYS.items():
        if not isinstance(card.get(key), kind) or not card[key]:
            return f"lacks {key!r} (a {'text' if kind is str else 'list' if kind is list else 'JSON object'})"
    for key in ("input", "output"):
        for part in _DEFINITION:
            if not isinstance(card[key].get(part), str) or not card[key][part]:
                return f"lacks {part!r} in its {key!r}"
    if not all(isinstance(limit, str) for limit in card["limits"]):
        return "has limits that are not texts"
    if not any(_NOT_CLINICAL in limit.lower() for limit in card["limits"]):
        return f"does not say {_NOT_CLINICAL!r} among its limits"
    if not re.fullmatch("[0-9a-f]{64}", str(card.get("sha256"))):
        return "lacks the weights' 'sha256' (64 hexadecimal digits)"
    if not _ID.fullmatch(card["id"]) or card["id"] != folder.resolve().name:
        return f"has the id {card['id']!r}, which must be its folder's name and made of letters, digits and . _ -"
    return None


def _list_text() -> str:
    rows = [("id", "version", "licence", "size", "state")]
    for model_id, folder in sorted(_model_folders()):
        try:
            model = _load(folder)
        except InputError as error:
            rows.append((model_id, "?", "?", "?", f"invalid: {error}"))
            continue
        size = f"{model.weights.stat().st_size / 1e6:.2f} MB" if model.weights.is_file() else "-"
        rows.append((model.id, model.card["version"], model.card["licence"], size, model.state()))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, row[:4], widths), row[4]]) for row in rows)


def _card_text(model: Model) -> str:
    entries = {**model.card, "folder": str(model.folder), "state": model.state()}
    return "\n".join(line for key, value in entries.items() for line in _entry_lines(key, value, ""))


def _entry_lines(key: str, value: object, indent: str) -> list[str]:
    """Lays out one entry of a card: texts wrapped, parts of objects and lists below it and indented."""
    title, deeper = f"{indent}{key.replace('_', ' ')}:", indent + "  "
    if isinstance(value, dict):
        return [title, *(line for item in value.items() for line in _entry_lines(*item, deeper))]
    if isinstance(value, list):
        return [title, *(line for item in value for line in _wrapped(f"{deeper}- {item}", deeper + "  "))]
    return _wrapped(f"{title} {value}", deeper)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
