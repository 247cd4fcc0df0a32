"""Background jobs: reports, all-or-nothing delivery, and processes that never outlive their job."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from BoneReconstructionLib import jobs
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.jobs import Job, OutputFolder, Progress, python_command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in workers use POSIX signals")
LIMIT_S = 30


class Panel:
    """Runs a stand-in worker and keeps what its callbacks were told."""

    def __init__(self, folder, code, *arguments, command=None, **options):
        self.script = folder / "worker.py"
        self.script.write_text(code, "utf-8")
        self.progress, self.log, self.finished, self.threads = [], [], [], set()
        self.job = Job(
            command or [sys.executable, str(self.script), *map(str, arguments)],
            on_progress=self._remember(self.progress),
            on_log=lambda line: self.log.append(line),
            on_finished=self._remember(self.finished),
            **options,
        )
        self.job.start()

    def _remember(self, calls):
        def callback(*arguments):
            self.threads.add(threading.current_thread())
            calls.append(arguments)

        return callback

    def finish(self):
        assert self.job.wait(LIMIT_S) != "running", f"still running, log: {self.log}"
        [(state, message)] = self.finished
        assert state == self.job.state
        return state, message

    def wait_for(self, condition):
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline and self.job.poll() == "running", self.log
            time.sleep(0.01)

    def wait_for_line(self, text):
        self.wait_for(lambda: text in self.log)


@pytest.fixture
def folder(tmp_path):
    """A folder as in Users/Dr. Lékař, which breaks programs that split or encode paths carelessly."""
    folder = tmp_path / "Dr. Lékař – příjem"
    folder.mkdir()
    return folder


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_soon_gone(*pids):
    deadline = time.monotonic() + 5
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, [psutil.Process(pid) for pid in pids if not is_gone(pid)]
        time.sleep(0.02)


def pids_in(log):
    return [int(line.removeprefix("pid ")) for line in log if line.startswith("pid ")]


# Worker side: progress


def reports(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_progress_is_one_json_line_per_report_over_all_stages():
    stream = io.StringIO()
    progress = Progress(["reading", "fitting"], stream)
    progress.report("reading", 0.5)
    progress.report("fitting", 0.5)
    progress.report("fitting", 1)
    assert [(line["stage"], line["progress"]) for line in reports(stream)] == [
        ("reading", 0.25),
        ("fitting", 0.75),
        ("fitting", 1.0),
    ]
    assert all(line.keys() == {"stage", "progress", "eta_s"} for line in reports(stream))


def test_stages_may_carry_shares_of_the_time():
    stream = io.StringIO()
    progress = Progress({"reading": 1, "fitting": 3}, stream)
    progress.report("reading", 1)
    progress.report("fitting", 1 / 3)
    assert [line["progress"] for line in reports(stream)] == [0.25, 0.5]


def test_progress_never_falls_nor_leaves_0_to_1():
    stream = io.StringIO()
    progress = Progress(["a", "b"], stream)
    for stage, fraction in (("a", -1), ("a", 0.8), ("a", 0.2), ("b", 7), ("a", float("nan"))):
        progress.report(stage, fraction)
    assert [line["progress"] for line in reports(stream)] == [0, 0.4, 0.4, 1, 1]


def test_remaining_time_is_unknown_at_the_start_then_follows_from_the_elapsed_time(monkeypatch):
    clock = iter([100.0, 100.0, 110.0, 140.0])
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = Progress(["a"], stream)
    for fraction in (0, 0.25, 1):
        progress.report("a", fraction)
    assert [line["eta_s"] for line in reports(stream)] == [None, 30.0, 0.0]


def test_an_unknown_stage_is_a_programming_error():
    with pytest.raises(KeyError):
        Progress(["a"], io.StringIO()).report("b", 0.5)


# Worker side: delivery


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_are_delivered_together(folder):
    with OutputFolder(folder / "new" / "out") as partial:
        (partial / "result.json").write_text("{}")
        (partial / "tables").mkdir()
        (partial / "tables" / "a.csv").write_text("a")
        assert not list(folder.glob("new/out/*.json"))
    assert contents(folder / "new" / "out") == ["result.json", "tables", "tables/a.csv"]


def test_the_result_file_comes_last(folder, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target.name), replace(source, target)))
    with OutputFolder(folder / "out") as partial:
        for name in ("result.json", "z.nii.gz", "a.ply"):
            (partial / name).write_text("")
    assert order == ["a.ply", "z.nii.gz", "result.json"]


def test_a_failure_leaves_nothing(folder):
    with pytest.raises(RuntimeError), OutputFolder(folder / "new" / "out") as partial:
        (partial / "tibia.ply").write_text("half")
        raise RuntimeError
    assert contents(folder) == []


def test_a_failure_leaves_what_was_there(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt), OutputFolder(folder) as partial:
        (partial / "tibia.ply").write_text("half")
        raise KeyboardInterrupt
    assert contents(folder) == ["notes.txt"]


def test_other_files_in_the_folder_stay(folder):
    (folder / "notes.txt").write_text("mine")
    with OutputFolder(folder) as partial:
        (partial / "result.json").write_text("{}")
    assert contents(folder) == ["notes.txt", "result.json"]


@pytest.mark.parametrize("name", ["result.json", "tibia.ply"])
def test_nothing_is_overwritten_and_that_is_told_before_the_work(folder, name):
    (folder / name).write_text("mine")
    refusal = pytest.raises(InputError, match=f"already holds {name}, and nothing is overwritten")
    with refusal, OutputFolder(folder, ["tibia.ply", "result.json"]):
        pytest.fail("worked")
    assert contents(folder) == [name]


def test_a_file_that_was_not_announced_overwrites_nothing_either(folder):
    (folder / "tibia.ply").write_text("mine")
    with pytest.raises(InputError, match="already holds tibia.ply"), OutputFolder(folder) as partial:
        (partial / "result.json").write_text("{}")
        (partial / "tibia.ply").write_text("new")
    assert contents(folder) == ["tibia.ply"]
    assert (folder / "tibia.ply").read_text() == "mine"


def test_a_delivery_that_fails_half_way_is_taken_back(folder, monkeypatch):
    replace = os.replace

    def refuse_results(source, target):
        if target.name == "result.json":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_results)
    refusal = pytest.raises(InputError, match="cannot be written \\(Input/output error\\)")
    with refusal, OutputFolder(folder / "out") as partial:
        (partial / "result.json").write_text("{}")
        (partial / "tibia.ply").write_text("new")
    assert contents(folder) == []


def test_a_file_is_no_output_folder(folder):
    (folder / "out").write_text("mine")
    for output in (folder / "out", folder / "out" / "deeper"):
        with pytest.raises(InputError, match="name a"), OutputFolder(output):
            pytest.fail("worked")
    assert contents(folder) == ["out"]


def test_the_signal_handler_is_put_back(folder):
    before = signal.getsignal(signal.SIGTERM)
    with OutputFolder(folder / "out"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_delivery_works_outside_the_main_thread(folder):
    def work():
        with OutputFolder(folder / "out") as partial:
            (partial / "result.json").write_text("{}")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LIMIT_S)
    assert contents(folder / "out") == ["result.json"]


# Panel side: following

TALKING = """
import json, sys
print("reading é", flush=True)
print(json.dumps({"stage": "fitting", "progress": 0.25, "eta_s": None}))
print(json.dumps({"stage": "fitting", "progress": 0.5, "eta_s": 1.5}))
print("a warning", file=sys.stderr)
"""


def test_a_job_that_ends_well_tells_progress_log_and_success_in_the_polling_thread(folder):
    panel = Panel(folder, TALKING)
    assert panel.finish() == ("succeeded", "")
    assert panel.progress == [("fitting", 0.25, None), ("fitting", 0.5, 1.5)]
    assert panel.log == ["reading é", "a warning"]
    assert panel.threads == {threading.current_thread()}


def test_nothing_is_told_before_poll_nor_after_the_end(folder):
    panel = Panel(folder, TALKING)
    time.sleep(0.5)
    assert not panel.log and not panel.finished and panel.job.state == "running"
    panel.finish()
    assert panel.job.poll() == "succeeded" and len(panel.finished) == 1


def test_poll_does_not_wait_for_a_silent_worker(folder):
    panel = Panel(folder, "import time; time.sleep(60)")
    start = time.monotonic()
    for _ in range(100):
        assert panel.job.poll() == "running"
    panel.job.cancel()
    assert time.monotonic() - start < 0.5
    panel.finish()


def test_a_flood_of_output_is_taken_in_portions_and_arrives_whole(folder):
    panel = Panel(folder, "for i in range(50_000): print('line', i)")
    portions = []
    while sum(portions) < 50_000:
        panel.job.poll()
        portions.append(len(panel.log) - sum(portions))
    assert panel.finish() == ("succeeded", "")
    assert max(portions) <= jobs._LINES_PER_POLL
    assert panel.log == [f"line {i}" for i in range(50_000)]


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "7", "null", '"stage"', "{", "{}", '{"stage": "a", "progress": 0.5}', "[" * 9000,
        '{"stage": 1, "progress": 0.5, "eta_s": 1}', '{"stage": "a", "progress": true, "eta_s": 1}',
        '{"stage": "a", "progress": NaN, "eta_s": 1}', '{"stage": "a", "progress": 1.5, "eta_s": 1}',
        '{"stage": "a", "progress": 0.5, "eta_s": "soon"}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_report_is_log(folder, line):
    panel = Panel(folder, "import sys; print(sys.argv[1])", line)
    panel.finish()
    assert panel.log == [line] and not panel.progress


def test_output_that_is_not_utf8_survives(folder):
    panel = Panel(folder, r"import sys; sys.stdout.buffer.write(b'L\xe9ka\xf8\n\x00\xff\xfe\nend')")
    assert panel.finish() == ("succeeded", "")
    assert panel.log == ["L�ka�", "\0��", "end"]


def test_progress_bars_and_endless_lines_arrive_in_pieces(folder):
    panel = Panel(folder, r"print('10 %\r20 %\r'); print('x' * 25_000)")
    panel.finish()
    assert panel.log[:2] == ["10 %", "20 %"]
    assert "".join(panel.log[2:]) == "x" * 25_000


def test_paths_with_spaces_and_accents_reach_the_worker(folder):
    panel = Panel(folder, "import sys; print(open(sys.argv[1]).read())", folder / "worker.py")
    assert panel.finish() == ("succeeded", "")
    assert panel.log == ["import sys; print(open(sys.argv[1]).read())"]


def test_an_interpreter_in_a_folder_with_spaces_and_accents_runs(folder):
    launcher = folder / "Python Slicér"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    panel = Panel(folder, "", command=python_command(launcher, "--version"))
    assert panel.finish() == ("succeeded", "")
    assert panel.log[0].startswith("bonerecon ")


def test_the_environment_is_passed_and_our_packages_are_found_from_any_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "json.py").write_text("raise SystemExit('a file of the current folder was imported')")
    environment = {"PATH": os.environ["PATH"], "BONERECON_MODELS": str(folder / "none")}
    panel = Panel(folder, "", command=python_command(sys.executable, "models"), environment=environment)
    assert panel.finish()[1].startswith(f"BONERECON_MODELS names the folder {folder / 'none'}")


def test_a_python_path_that_was_set_is_kept(folder):
    (folder / "wanted.py").write_text("print('found')")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    panel = Panel(folder.parent, "import wanted", environment=environment)
    assert panel.finish() == ("succeeded", "")
    assert panel.log == ["found"]


def test_a_job_runs_once(folder):
    panel = Panel(folder, "")
    panel.finish()
    with pytest.raises(RuntimeError):
        panel.job.start()


# Panel side: failures


def test_a_failure_shows_the_exit_status_and_the_last_twenty_lines(folder):
    panel = Panel(folder, "for i in range(50): print('line', i)\nraise SystemExit(7)")
    state, message = panel.finish()
    assert state == "failed"
    lines = message.splitlines()
    assert lines[0] == "The job ended with exit status 7. Its last lines:"
    assert lines[1:] == [f"line {i}" for i in range(30, 50)]


def test_a_traceback_is_part_of_the_failure(folder):
    assert Panel(folder, "1 / 0").finish()[1].endswith("ZeroDivisionError: division by zero")


def test_a_silent_failure_says_so(folder):
    assert Panel(folder, "raise SystemExit(4)").finish() == (
        "failed",
        "The job ended with exit status 4 and printed nothing.",
    )


@pytest.mark.parametrize("status", [2, 3])
def test_the_command_lines_own_sentence_stands_alone(folder, status):
    code = f"import sys; print('noise'); print('bonerecon: The mask is empty.', file=sys.stderr); sys.exit({status})"
    assert Panel(folder, code).finish() == ("failed", "The mask is empty.")


def test_bad_arguments_show_what_the_command_line_said(folder):
    state, message = Panel(folder, "", command=python_command(sys.executable, "models", "--colour")).finish()
    assert state == "failed"
    assert "unrecognized arguments: --colour" in message


def test_a_worker_that_dies_by_a_signal_is_told_by_its_name(folder):
    state, message = Panel(folder, "import os; print('so far'); os.kill(os.getpid(), 9)").finish()
    assert state == "failed"
    assert message.startswith("The job was ended by the signal SIGKILL, as the system does when memory runs out.")
    assert message.endswith("so far")


def test_a_program_that_cannot_be_started_is_a_failed_job(folder):
    scratch = folder / "scratch"
    scratch.mkdir()
    state, message = Panel(folder, "", command=[str(folder / "none")], scratch=[scratch]).finish()
    assert state == "failed"
    assert message.startswith(f"{folder / 'none'} cannot be started")
    assert not scratch.exists()


def test_scratch_stays_after_success_and_goes_after_failure(folder):
    for status, stays in ((0, True), (1, False)):
        scratch = [folder / f"folder {status}", folder / f"file {status}"]
        scratch[0].mkdir()
        (scratch[0] / "result.json").write_text("{}")
        scratch[1].write_text("")
        Panel(folder, f"raise SystemExit({status})", scratch=[*scratch, folder / "never made"]).finish()
        assert [path.exists() for path in scratch] == [stays, stays]


# Panel side: cancelling

FAMILY = """
import os, subprocess, sys, time
SLEEP = "import time; time.sleep(300)"
print("pid", os.getpid())
for code in (SLEEP, f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).wait()"):
    print("pid", subprocess.Popen([sys.executable, "-c", code]).pid)
print("ready")
time.sleep(300)
"""

DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid())
print("ready")
while True: time.sleep(1)
"""

DELIVERING = """
import os, signal, sys, time
from pathlib import Path
from BoneReconstructionLib.jobs import OutputFolder, Progress, end_with_parent
end_with_parent()
output, stage = Path(sys.argv[1]), sys.argv[2]
print("pid", os.getpid())
def pause(name):
    if name == stage:
        print("ready")
        time.sleep(300)
pause("before")
with OutputFolder(output) as partial:
    Progress(["a"]).report("a", 0.5)
    pause("empty")
    (partial / "tibia.ply").write_text("half")
    pause("half")
    (partial / "result.json").write_text("{}")
    pause("whole")
pause("after")
"""


def test_cancel_ends_the_worker_and_all_that_it_started(folder):
    panel = Panel(folder, FAMILY)
    panel.wait_for_line("ready")
    worker, *children = pids_in(panel.log)
    family = [worker, *children]
    panel.wait_for(lambda: len(psutil.Process(worker).children(recursive=True)) == 3)
    family += [child.pid for child in psutil.Process(worker).children(recursive=True)]
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")
    assert_soon_gone(*family)


@pytest.mark.parametrize("stage", ["before", "empty", "half", "whole"])
def test_cancel_at_any_stage_leaves_no_process_and_no_file(folder, stage):
    panel = Panel(folder, DELIVERING, folder / "new" / "out", stage)
    panel.wait_for_line("ready")
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")
    assert_soon_gone(*pids_in(panel.log))
    assert contents(folder) == ["worker.py"]


def test_cancel_after_the_delivery_removes_it_with_the_scratch(folder):
    panel = Panel(folder, DELIVERING, folder / "scratch" / "out", "after", scratch=[folder / "scratch"])
    panel.wait_for_line("ready")
    assert (folder / "scratch" / "out" / "result.json").exists()
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")
    assert contents(folder) == ["worker.py"]


def test_cancel_right_after_start_works(folder):
    panel = Panel(folder, FAMILY)
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")


def test_a_cancel_that_crosses_the_end_still_cancels(folder):
    scratch = folder / "scratch"
    scratch.mkdir()
    panel = Panel(folder, "", scratch=[scratch])
    time.sleep(1)
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")
    assert not scratch.exists()


def test_cancel_before_the_start_and_after_the_end_does_nothing(folder):
    job = Job([sys.executable, "-c", ""], *[lambda *_: None] * 3)
    job.cancel()
    assert job.state == "ready"
    job.start()
    assert job.wait(LIMIT_S) == "succeeded"
    job.cancel()
    assert job.poll() == "succeeded"


def test_a_worker_that_ignores_the_request_is_killed_and_its_scratch_removed(folder, monkeypatch):
    monkeypatch.setattr(jobs, "_GRACE_S", 0.3)
    scratch = folder / "scratch"
    (scratch / "out" / ".half.partial").mkdir(parents=True)
    panel = Panel(folder, DEAF, scratch=[scratch])
    panel.wait_for_line("ready")
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")
    assert_soon_gone(*pids_in(panel.log))
    assert not scratch.exists()


def test_cancel_does_not_wait_for_a_deaf_worker(folder, monkeypatch):
    monkeypatch.setattr(jobs, "_GRACE_S", 1.0)
    panel = Panel(folder, DEAF)
    panel.wait_for_line("ready")
    start = time.monotonic()
    panel.job.cancel()
    assert panel.job.poll() == "running"
    assert time.monotonic() - start < 0.5
    panel.finish()


def test_a_worker_behind_a_launcher_that_ends_first_still_cleans_up(folder):
    (folder / "launcher.py").write_text(
        "import subprocess, sys; print('launcher', flush=True); subprocess.run([sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, folder / "launcher.py", folder / "worker.py", folder / "out", "half"]
    panel = Panel(folder, DELIVERING, command=list(map(str, command)))
    panel.wait_for_line("ready")
    panel.job.cancel()
    assert panel.finish() == ("cancelled", "")
    assert contents(folder) == ["launcher.py", "worker.py"]


@pytest.mark.parametrize("status, state", [(0, "succeeded"), (1, "failed")])
def test_what_a_worker_leaves_running_is_ended_too(folder, status, state):
    leaving = FAMILY.replace("time.sleep(300)\n", f"os._exit({status})\n")
    assert leaving != FAMILY
    panel = Panel(folder, leaving)
    assert panel.finish()[0] == state
    assert_soon_gone(*pids_in(panel.log))


def test_a_process_that_left_the_session_and_holds_the_output_open_does_not_hang_the_job(folder, monkeypatch):
    monkeypatch.setattr(jobs, "_DRAIN_S", 0.3)
    code = """
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
print("pid", subprocess.Popen(sleep, start_new_session=True).pid)
"""
    panel = Panel(folder, code)
    assert panel.finish() == ("succeeded", "")
    [pid] = pids_in(panel.log)
    os.kill(pid, signal.SIGKILL)


def test_a_worker_ends_and_cleans_up_when_its_panel_disappears(folder):
    (folder / "worker.py").write_text(DELIVERING)
    (folder / "panel.py").write_text(f"""
import sys
from BoneReconstructionLib.jobs import Job
command = [sys.executable, {str(folder / "worker.py")!r}, {str(folder / "out")!r}, "half"]
Job(command, print, lambda line: print(line, flush=True), print).start()
job = Job(command[:2] + [{str(folder / "out 2")!r}, "half"], print, lambda line: print(line, flush=True), print)
job.start()
job.wait(300)
""")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    panel = subprocess.Popen(
        [sys.executable, str(folder / "panel.py")], stdout=subprocess.PIPE, text=True, env=environment
    )
    with panel:
        while "ready" not in panel.stdout.readline():
            pass
        workers = [child.pid for child in psutil.Process(panel.pid).children()]
        deadline = time.monotonic() + LIMIT_S
        while not list(Path(folder, "out").glob(".*.partial/tibia.ply")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        panel.kill()
    assert len(workers) == 2
    assert_soon_gone(*workers)
    assert contents(folder) == ["panel.py", "worker.py"]


def test_a_worker_with_a_closed_input_runs_on(folder):
    """A launcher may not pass its input on."""
    code = "import time\nfrom BoneReconstructionLib.jobs import end_with_parent\nend_with_parent()\ntime.sleep(0.5)"
    (folder / "worker.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "BONERECON_WATCH_PARENT": "1"}
    command = [sys.executable, str(folder / "worker.py")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True) as worker:
        assert worker.wait(LIMIT_S) == 0
