"""The command line: lazy commands, one sentence for what a person can put right, honest exit statuses."""

import os
import re
import subprocess
import sys
import types

import pytest

from BoneReconstructionLib import cli
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.version import VERSION


@pytest.fixture
def command(monkeypatch):
    """Puts `bonerecon try` and `bonerecon train try` in the table; returns the module behind both."""
    module = types.ModuleType("tried")
    module.add_arguments = lambda parser: parser.add_argument("--size", type=float, default=1.0)
    module.run = lambda arguments: None
    monkeypatch.setitem(sys.modules, "tried", module)
    for name in ("try", "train try"):
        monkeypatch.setitem(cli._COMMANDS, name, ("tried", "try something"))
    return module


def raising(error):
    def run(arguments):
        raise error

    return run


def run_python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "100"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", env=environment, timeout=60, **options
    )


def exit_status(*arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return exit_.value.code


@pytest.mark.parametrize("words", [["try"], ["train", "try"]])
def test_a_command_gets_its_arguments(command, words):
    sizes = []
    command.run = lambda arguments: sizes.append(arguments.size)
    assert cli.main([*words, "--size", "2.5"]) == 0
    assert sizes == [2.5]


def test_bad_input_is_one_sentence_and_status_2(command, capsys):
    command.run = raising(InputError("The mask is empty: draw it anew."))
    assert cli.main(["try"]) == 2
    assert capsys.readouterr() == ("", "bonerecon: The mask is empty: draw it anew.\n")


@pytest.mark.parametrize(
    "package, advice",
    [
        (
            "torch",
            'in 3D Slicer install the extension PyTorch, elsewhere run `pip install "bonereconstruction[learn]"`',
        ),
        ("vtkmodules.vtkCommonCore", 'vtkmodules is missing: run `pip install "bonereconstruction[geometry]"`'),
        ("SimpleITK", "bonereconstruction[geometry]"),
        ("monai.networks", "The package monai is missing"),
        ("numba", "bonereconstruction[fast]"),
        ("TibiaCompletionLib.completion", "add the folder TibiaCompletion to PYTHONPATH"),
    ],
)
def test_a_missing_package_is_one_sentence_and_status_3(command, capsys, package, advice):
    command.run = raising(ModuleNotFoundError(f"No module named {package!r}", name=package))
    assert cli.main(["try"]) == 3
    error = capsys.readouterr().err
    assert advice in error
    assert len(error.splitlines()) == 1


def test_a_package_missing_when_the_command_is_loaded_is_told_alike(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(cli._COMMANDS, "try", ("torch", "try something"))
    assert cli.main(["try"]) == 3
    assert capsys.readouterr().err.startswith("bonerecon: The package torch is missing")


def test_our_own_mistakes_are_not_hidden(command):
    for error in (ModuleNotFoundError("No module named 'x'", name="x"), ZeroDivisionError()):
        command.run = raising(error)
        with pytest.raises(type(error)):
            cli.main(["try"])


def test_ctrl_c_is_status_130(command):
    command.run = raising(KeyboardInterrupt())
    assert cli.main(["try"]) == 130


@pytest.mark.parametrize("arguments", [[], ["train"], ["unknown"], ["models", "--unknown"], ["try", "--siz", "1"]])
def test_arguments_that_cannot_be_understood_are_status_2(command, arguments, capsys):
    assert exit_status(*arguments) == 2
    assert "usage: bonerecon" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"bonerecon {VERSION}\n"


def test_help_describes_every_command_and_imports_none(capsys):
    code = """
import sys
from BoneReconstructionLib import cli
try:
    cli.main(["--help"])
finally:
    heavy = {"numpy", "scipy", "vtk", "vtkmodules", "SimpleITK", "torch", *(module for module, _ in cli._COMMANDS.values())}
    print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    result = run_python("-c", code)
    assert result.returncode == 0
    assert result.stderr == "imported: []\n"
    for name, (_, summary) in cli._COMMANDS.items():
        if " " not in name:
            assert re.search(rf"^    {name}\s+{re.escape(summary)}$", result.stdout, re.MULTILINE), name
    assert exit_status("train", "--help") == 0
    assert "prior" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(cli._COMMANDS))
def test_every_command_explains_itself(name, capsys):
    assert exit_status(*name.split(), "--help") == 0
    assert f"usage: bonerecon {name} " in capsys.readouterr().out


def test_the_package_is_the_command_line(tmp_path):
    result = run_python("-m", "BoneReconstructionLib", "models", "none", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("bonerecon: There is no model 'none'")
    assert result.stdout == ""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_crash(tmp_path, lines):
    code = f"""
import sys, types
from BoneReconstructionLib import cli
module = types.ModuleType("tried")
module.add_arguments = lambda parser: None
module.run = lambda arguments: [print("line", i) for i in range({lines})]
sys.modules["tried"] = module
cli._COMMANDS["try"] = ("tried", "try something")
sys.stdin.read()
sys.exit(cli.main(["try"]))
"""
    (tmp_path / "writer.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, str(tmp_path / "writer.py")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1
