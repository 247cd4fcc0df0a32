"""Cases in parallel processes: what fails or dies does not take the others along."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.evaluationruns import ProcessEnded, check_writable, duration, outcomes_of, reason, write_rows


def work(number):
    """What the processes of these tests do."""
    if number == 1:
        raise InputError("The second is bad.")
    if number == 2:
        os._exit(1)
    return number * 10, os.environ["OMP_NUM_THREADS"]


def test_failures_and_dead_processes_are_told_and_the_others_go_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    outcomes = dict(outcomes_of([(0,), (1,), (2,), (3,)], 2, work))
    assert outcomes[0] == (0, "1") and outcomes[3] == (30, "1")
    assert isinstance(outcomes[1], InputError) and reason(outcomes[1]) == "The second is bad."
    assert isinstance(outcomes[2], ProcessEnded) and "memory" in reason(outcomes[2])
    assert os.environ["OMP_NUM_THREADS"] == "7"


def sleep(folder):
    """Say which process this is, then work on and on."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_evaluation_leaves_no_process_behind(tmp_path):
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_evaluationruns import sleep\n"
        "from BoneReconstructionLib.evaluationruns import outcomes_of\n"
        "if __name__ == '__main__':\n"
        "    list(outcomes_of([(sys.argv[1],), (sys.argv[1],)], 2, sleep))\n"
    )
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    seen = tmp_path / "seen"
    seen.mkdir()
    killed = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(seen), *sys.path])
    try:
        assert wait_for(lambda: len(list(seen.iterdir())) == 2)
    finally:
        killed.kill()
        killed.wait()
    workers = [int(path.name) for path in seen.iterdir()]
    assert wait_for(lambda: not any(map(running, workers)))


def wait_for(condition, patience_s=60):
    """Whether a condition comes true in time."""
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def running(number):
    """Whether a process runs; one that has ended but was not asked for its status does not."""
    try:
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_an_unexpected_error_is_named():
    assert reason(ZeroDivisionError("none left")) == "ZeroDivisionError: none left"


def test_rows_are_written_with_empty_fields_for_what_is_not_known(tmp_path):
    path = tmp_path / "out.csv"
    write_rows(path, [{"who": "Ana", "mm": 1.23456}, {"who": "Bén", "mm": float("nan")}], ("who", "mm"))
    assert path.read_text("utf-8").splitlines() == ["who,mm", "Ana,1.235", "Bén,"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "missing" / "out.csv")
    with pytest.raises(InputError, match="cannot be written"):
        write_rows(tmp_path / "missing" / "out.csv", [], ("who",))


def test_durations_read_well():
    assert duration(59.4) == "59 s" and duration(125) == "2 min 05 s"
