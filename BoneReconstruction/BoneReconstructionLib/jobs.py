"""Background jobs: how a worker process reports and delivers, and how a panel starts, follows and ends it.

A worker is a run of the command line. It prints one JSON line {"stage", "progress", "eta_s"} per report and delivers
its files into the output folder at the very end, `result.json` last. The panel's Job runs it as a process of its own,
so that neither its work nor its death touches the window, and ends it with everything that it started.
"""

import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from BoneReconstructionLib import processes
from BoneReconstructionLib.errors import InputError
from BoneReconstructionLib.packages import package_folders

INPUT_ERROR_STATUS = 2
MISSING_PACKAGE_STATUS = 3
RESULT = "result.json"
MESSAGE_PREFIX = "bonerecon: "

_WATCHED = "BONERECON_WATCH_PARENT"
_GRACE_S = 5.0  # for a cancelled worker to remove its partial files before it is killed
_DRAIN_S = 2.0  # for killed processes to vanish, and for their last output to arrive
_TICK_S = 0.05
_TAIL_LINES = 20
_LONGEST_LINE = 10_000
_LINES_PER_POLL = 1000
_LINES_AHEAD = 10_000  # a worker that prints more than the window reads waits


class Progress:
    """Prints a worker's progress as JSON lines.

    Args:
        stages: the names of the stages in their order, or their names with the expected share of the time.
        stream: where the lines go; the standard output when None.
    """

    def __init__(self, stages: Sequence[str] | Mapping[str, float], stream: TextIO | None = None):
        weights = dict(stages) if isinstance(stages, Mapping) else dict.fromkeys(stages, 1.0)
        total = sum(weights.values())
        self._extent, begin = {}, 0.0
        for stage, weight in weights.items():
            self._extent[stage] = begin / total, weight / total
            begin += weight
        self._stream = sys.stdout if stream is None else stream
        self._start = time.monotonic()
        self._progress = 0.0

    def report(self, stage: str, fraction: float) -> None:
        """Prints one line {"stage": name, "progress": 0..1 of the whole job, "eta_s": seconds or null}.

        The progress never falls, and the remaining time is null until there is progress to judge it from.

        Args:
            stage: one of the stages.
            fraction: how much of this stage is done, 0..1.

        Raises:
            KeyError: there is no such stage.
        """
        begin, share = self._extent[stage]
        self._progress = max(self._progress, min(begin + share * min(max(fraction, 0.0), 1.0), 1.0))
        elapsed = time.monotonic() - self._start
        eta = round(elapsed * (1 - self._progress) / self._progress, 1) if self._progress > 0 else None
        line = json.dumps({"stage": stage, "progress": round(self._progress, 4), "eta_s": eta})
        print(line, file=self._stream, flush=True)


class OutputFolder:
    """Delivers a worker's files all at once, or none: `with OutputFolder(folder, names) as partial:`.

    The block writes into `partial`, a hidden folder inside the output folder. When the block ends well, its contents
    move up, `result.json` last: that file alone means success. When it fails or the process is told to end (SIGTERM,
    Ctrl-C), the hidden folder and every folder made for it disappear. Nothing that was there is ever overwritten.

    Args:
        folder: the output folder; made when missing, parents included.
        names: the files that will be delivered; when one of them exists, the job is refused before it works.

    Raises:
        InputError: on entering, the folder holds one of the names or cannot be written; on leaving, it holds a file
            that was not among the names, or can no longer be written.
    """

    def __init__(self, folder: str | os.PathLike, names: Sequence[str] = (RESULT,)):
        self._folder = Path(folder).resolve()
        self._names = names
        self._partial = self._folder / f".{uuid.uuid4().hex}.partial"
        self._made: list[Path] = []
        self._handler = None

    def __enter__(self) -> Path:
        if _in_main_thread():
            self._handler = signal.signal(signal.SIGTERM, _end_by_signal)
        try:
            self._refuse_existing(self._names)
            self._made = [folder for folder in (self._folder, *self._folder.parents) if not folder.exists()]
            self._partial.mkdir(parents=True)
        except BaseException as error:
            self._discard()
            self._restore()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        return self._partial

    def __exit__(self, kind, error, traceback) -> None:
        # From here on the work takes milliseconds, and half of it would be worse than either end.
        if _in_main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            if kind is None:
                self._deliver()
        except OSError as failure:
            raise self._unwritable(failure) from failure
        finally:
            self._discard()
            self._restore()

    def _deliver(self) -> None:
        names = sorted((entry.name for entry in self._partial.iterdir()), key=lambda name: (name == RESULT, name))
        self._refuse_existing(names)
        delivered = []
        try:
            for name in names:
                os.replace(self._partial / name, self._folder / name)
                delivered.append(self._folder / name)
        except OSError:
            for path in delivered:
                _remove(path)
            raise
        self._made = []

    def _discard(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # not made after all, or somebody else has put something there
                pass

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def _refuse_existing(self, names: Sequence[str]) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise InputError(f"The output {self._folder} is a file: name a folder.")
        for name in names:
            if (self._folder / name).exists():
                raise InputError(
                    f"The output folder {self._folder} already holds {name}, and nothing is overwritten: "
                    "name another folder."
                )

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"The output folder {self._folder} cannot be written ({error.strerror}): name another one.")


def end_with_parent() -> None:
    """Makes a worker end, cleaning up, when the panel that started it disappears.

    Does nothing in a process that no Job started, and on Windows, where the next progress report fails instead: a
    pending read of the standard input would block the loading of libraries there.
    """
    if os.environ.pop(_WATCHED, None) and sys.platform != "win32":
        threading.Thread(target=_wait_for_orphanage, daemon=True).start()


def python_command(interpreter: str | os.PathLike, *arguments: str | os.PathLike | float) -> list[str]:
    """Makes the command that runs `bonerecon` with an interpreter, for a Job.

    Args:
        interpreter: the Python program; in 3D Slicer this is PythonSlicer, not sys.executable.
        arguments: the command line after `bonerecon`.
    """
    return [str(interpreter), "-m", "BoneReconstructionLib", *map(str, arguments)]


class Job:
    """A command in a process of its own, followed by polling; no method blocks, except wait.

    All callbacks run inside poll(), hence in the thread that calls it.

    Attributes:
        state: "ready", then "running", at last "succeeded", "failed" or "cancelled".

    Args:
        command: the program and its arguments, e.g. from python_command.
        on_progress: called with (stage, progress 0..1 of the whole job, remaining seconds or None).
        on_log: called with each other line of the output, standard error included.
        on_finished: called once, last, with (state, message). The message is empty unless the job failed; then it is
            the command line's own sentence where it gave one, otherwise how the process ended and its last lines.
        environment: the variables of the process, instead of this process's own; the ones that Python needs to find
            our packages and to print UTF-8 at once are added.
        scratch: files and folders of this job alone, removed when it fails or is cancelled. Put inputs made for the
            job and its --output folder here, then a killed worker leaves nothing either.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_progress: Callable[[str, float, float | None], None],
        on_log: Callable[[str], None],
        on_finished: Callable[[str, str], None],
        environment: Mapping[str, str] | None = None,
        scratch: Sequence[str | os.PathLike] = (),
    ):
        self.state = "ready"
        self._command = list(command)
        self._on_progress, self._on_log, self._on_finished = on_progress, on_log, on_finished
        self._environment = _worker_environment(os.environ if environment is None else environment)
        self._scratch = [Path(path) for path in scratch]
        self._lines: queue.Queue[str] = queue.Queue(_LINES_AHEAD)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process: processes.Process | None = None
        self._start_failure = ""
        self._cancelled = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        """Starts the process. A program that cannot be started is a failed job, told by the next poll.

        Raises:
            RuntimeError: the job was started before.
        """
        if self.state != "ready":
            raise RuntimeError("a job runs once")
        self.state = "running"
        try:
            self._process = processes.start(self._command, self._environment)
        except (OSError, ValueError) as error:
            self._start_failure = f"{self._command[0]} cannot be started ({error})."
            self._ended.set()
            return
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def poll(self) -> str:
        """Calls the callbacks for what has happened since the last call; for a timer.

        Returns:
            The state.
        """
        if self.state != "running":
            return self.state
        ended = self._ended.is_set()
        for _ in range(_LINES_PER_POLL):
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                if ended:
                    self._finish()
                break
            self._dispatch(line)
        return self.state

    def cancel(self) -> None:
        """Tells the process and all that it started to end, and kills what is left after five seconds.

        The state becomes "cancelled", in a later poll, when nothing runs any more. Does nothing unless running.
        """
        if self.state == "running":
            self._cancelled.set()

    def wait(self, seconds: float) -> str:
        """Polls until the job has ended or the time is over; blocks, so for scripts and for a closing window only.

        Returns:
            The state.
        """
        deadline = time.monotonic() + seconds
        while self.poll() == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.state

    def _read(self) -> None:
        while line := self._process.stdout.readline(_LONGEST_LINE):
            self._lines.put(line.rstrip("\n"))

    def _watch(self, reader: threading.Thread) -> None:
        """Waits for the process or for cancel, ends what it leaves behind, and lets poll() conclude."""
        process = self._process
        while process.poll() is None and not self._cancelled.wait(_TICK_S):
            pass
        if self._cancelled.is_set():
            # The whole tree gets the time: behind a launcher that is gone already, the worker may be cleaning up.
            processes.end_tree(process, forcibly=False)
            _wait_while(lambda: processes.tree_is_alive(process), _GRACE_S)
        processes.end_tree(process, forcibly=True)
        process.wait()
        _wait_while(lambda: processes.tree_is_alive(process), _DRAIN_S)
        # A process that left the tree on its own may hold the pipe open for ever: then its output is given up.
        _wait_while(reader.is_alive, _DRAIN_S)
        while reader.is_alive() and self._lines.full():
            reader.join(_TICK_S)
        if not reader.is_alive():
            process.stdout.close()
        try:
            process.stdin.close()
        except OSError:
            pass
        self._ended.set()

    def _dispatch(self, line: str) -> None:
        report = _parse_report(line)
        if report:
            self._on_progress(*report)
        else:
            self._tail.append(line)
            self._on_log(line)

    def _finish(self) -> None:
        if self._cancelled.is_set():
            self.state, message = "cancelled", ""
        elif self._process is not None and self._process.returncode == 0:
            self.state, message = "succeeded", ""
        else:
            self.state, message = "failed", self._failure()
        if self.state != "succeeded":
            for path in self._scratch:
                _remove(path)
        self._on_finished(self.state, message)

    def _failure(self) -> str:
        if self._start_failure:
            return self._start_failure
        status = self._process.returncode
        if status in (INPUT_ERROR_STATUS, MISSING_PACKAGE_STATUS):
            for line in reversed(self._tail):
                if line.startswith(MESSAGE_PREFIX):
                    return line.removeprefix(MESSAGE_PREFIX)
        end = f"The job {processes.describe_end(status)}"
        tail = "\n".join(self._tail)
        return f"{end}. Its last lines:\n{tail}" if tail else f"{end} and printed nothing."


def _worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    folders = dict.fromkeys(str(package.parent) for package in package_folders())
    paths = [*folders, *filter(None, [base.get("PYTHONPATH")])]
    return {
        **base,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONSAFEPATH": "1",  # `-m` would look for every module in the current folder first
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        _WATCHED: "1",
    }


def _parse_report(line: str) -> tuple[str, float, float | None] | None:
    try:
        report = json.loads(line)
        stage, progress, eta_s = report["stage"], report["progress"], report["eta_s"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(stage, str) or not _is_number(progress) or not (eta_s is None or _is_number(eta_s)):
        return None
    return (stage, progress, eta_s) if 0 <= progress <= 1 else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wait_for_orphanage() -> None:
    # A launcher between us and the panel may give us a closed input; only one that has spoken can fall silent.
    # os.read rather than sys.stdin: a buffered reader's lock, held here, would abort the interpreter's exit.
    try:
        if os.read(0, 1):
            while os.read(0, 1):
                pass
            os.killpg(os.getpgrp(), signal.SIGTERM)
    except OSError:
        pass


def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while condition() and time.monotonic() < deadline:
        time.sleep(_TICK_S)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _end_by_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
