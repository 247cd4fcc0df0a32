"""Testing/run.py makes its environment once, never takes a half-made one for complete, and refuses in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run


class Commands(list):
    """Records the commands instead of running them; they leave a Python behind and succeed unless told otherwise."""

    exitCode = 0

    def call(self, command, **_keywords):
        self.append(command)
        python = Path(run.ENVIRONMENT, "bin", "python")
        python.parent.mkdir(parents=True, exist_ok=True)
        if not python.exists():
            python.symlink_to(sys.executable)
        return self.exitCode


@pytest.fixture
def commands(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ENVIRONMENT", str(tmp_path / ".venv"))
    monkeypatch.setattr(run, "STAMP", str(tmp_path / ".venv" / "testing-run.stamp"))
    recorded = Commands()
    monkeypatch.setattr(subprocess, "call", recorded.call)
    return recorded


def test_the_environment_is_made_once(commands):
    python = run.make_environment(sys.executable)
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]]
    assert run.make_environment(sys.executable) == python
    assert len(commands) == 2


def test_other_requirements_make_it_anew(commands, monkeypatch, tmp_path):
    run.make_environment(sys.executable)
    (tmp_path / "requirements.txt").write_text("numpy==1.0\n")
    monkeypatch.setattr(run, "TESTING", str(tmp_path))
    run.make_environment(sys.executable)
    assert len(commands) == 4


def test_an_interrupted_installation_is_not_taken_for_complete(commands):
    commands.exitCode = 1
    with pytest.raises(run.Refusal):
        run.make_environment(sys.executable)
    commands.clear()
    commands.exitCode = 0
    run.make_environment(sys.executable)
    assert len(commands) == 2


def test_an_environment_of_someone_else_is_left_alone(commands, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine.txt").write_text("keep")
    with pytest.raises(run.Refusal, match="not made by this script"):
        run.make_environment(sys.executable)
    assert (tmp_path / ".venv" / "mine.txt").exists() and not commands


def test_unsupported_pythons_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(run, "version_of", lambda interpreter: (3, 10))
    with pytest.raises(run.Refusal, match=r"3\.11, 3\.12 or 3\.13"):
        run.find_interpreter()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="system packages are looked for on Linux only")
def test_who_may_not_install_system_packages_gets_the_line_that_does(commands, monkeypatch):
    monkeypatch.setattr(run, "loads", lambda library: library != "libEGL.so.1")
    monkeypatch.setattr(run.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(run.Refusal, match="sudo apt-get install .* libegl1"):
        run.install_system_packages(sys.executable)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    run.install_system_packages(sys.executable)
    assert commands[-1][:3] == ["apt-get", "install", "-y"] and "libegl1" in commands[-1]


def test_scripts_find_the_packages_and_tests_do_not_inherit_paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert "PYTHONPATH" not in run.process_environment()
    assert str(Path(run.ROOT, "BoneReconstruction")) in run.script_environment()["PYTHONPATH"]
