"""Processes that are started and ended together with everything that they start, on all platforms alike."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

Process = subprocess.Popen

_WINDOWS = sys.platform == "win32"


def start(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Starts a process as the head of a tree of its own.

    Its output, standard error included, is text with what is not UTF-8 replaced. Its standard input holds one empty
    line and stays open as long as this process lives, so that it can notice our end.

    Raises:
        OSError: the program cannot be started.
        ValueError: an argument or a variable holds a null character.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
        start_new_session=not _WINDOWS,
        creationflags=_creation_flags(),
    )
    try:
        process.stdin.write("\n")
        process.stdin.flush()
    except OSError:  # it has ended already
        pass
    return process


def end_tree(process: Process, forcibly: bool) -> None:
    """Tells a process and all that it started to end, or kills them; on Windows always kills them."""
    if not _WINDOWS:
        _signal_tree(process, signal.SIGKILL if forcibly else signal.SIGTERM)
    elif process.poll() is None:
        command = ["taskkill", "/PID", str(process.pid), "/T", "/F"]
        subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, creationflags=_creation_flags()
        )


def tree_is_alive(process: Process) -> bool:
    """Says whether the process, or on POSIX anything that it started and that has not left its session, still runs."""
    return process.poll() is None or (not _WINDOWS and _signal_tree(process, 0))


def describe_end(status: int) -> str:
    """Says how a process ended, from its return code (negative: a signal), as the end of a sentence."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = str(-status)
    reason = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by the signal {name}{reason}"


def _creation_flags() -> int:
    return subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW if _WINDOWS else 0


def _signal_tree(process: Process, number: int) -> bool:
    """Sends a signal to all processes of the tree's session; False when there are none."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS reports a group of zombies as not permitted
        return False
    return True
