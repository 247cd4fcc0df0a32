"""Running the cases of an evaluation in parallel processes, and writing its figures as CSV."""

import argparse
import csv
import math
import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from BoneReconstructionLib.errors import InputError

# One thread of numerical libraries for each process: two that share two cores would only wait for each other.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# After the point, of figures that say nothing else.
DECIMALS = 3


class ProcessEnded(Exception):
    """A case's process ended without a word, twice."""

    def __init__(self):
        super().__init__("its process ended, perhaps for lack of memory")


def outcomes_of(tasks, jobs, work):
    """Run tasks in parallel processes; one that fails does not keep the others from going on.

    When a process dies, the tasks under way are run once more, each alone in a new one: only those that end it again
    have failed.

    Args:
        tasks: list of tuples, the arguments of `work`.
        jobs: number of processes.
        work: a function of a module, which the processes import.

    Yields:
        (number of the task, what `work` returned or the exception that it raised), as they are done.
    """
    waiting = list(range(len(tasks)))[::-1]
    with _single_threaded():
        while waiting:
            running = {}
            with _pool(jobs) as pool:
                try:
                    while waiting or running:
                        while waiting and len(running) < jobs:
                            running[pool.submit(_tried, work, *tasks[waiting[-1]])] = waiting[-1]
                            waiting.pop()
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            outcome = future.result()
                            yield running.pop(future), outcome
                except BrokenProcessPool:
                    pass
            for number in running.values():
                with _pool(1) as pool:
                    try:
                        outcome = pool.submit(_tried, work, *tasks[number]).result()
                    except BrokenProcessPool:
                        outcome = ProcessEnded()
                yield number, outcome


def rows_of_all(tasks, work, output, columns, jobs, title, failed, brief):
    """Run tasks in parallel processes and tell each when it is done; the CSV grows with each.

    Args:
        tasks: list of tuples, the arguments of the functions that follow.
        work: a function of a module, which returns a list of rows {column: value}.
        output: CSV file.
        columns: of the CSV.
        jobs: number of processes.
        title: function that returns a task's name.
        failed: function that returns the rows of a task that failed.
        brief: function of a task's rows that returns what is told of them.

    Returns:
        list of rows in the order of the tasks.

    Raises:
        InputError: the output cannot be written.
    """
    check_writable(output)
    print(f"{len(tasks)} cases, {jobs} processes", flush=True)
    rows, began = {}, time.monotonic()
    for done, (number, outcome) in enumerate(outcomes_of(tasks, jobs, work), start=1):
        task, bad = tasks[number], isinstance(outcome, Exception)
        rows[number] = failed(*task) if bad else outcome
        write_rows(output, [row for index in sorted(rows) for row in rows[index]], columns)
        told = f"FAILED: {reason(outcome)}" if bad else brief(outcome)
        left = (time.monotonic() - began) / done * (len(tasks) - done)
        print(f"{done}/{len(tasks)} {title(*task)}: {told}; {duration(left)} left", flush=True)
    return [row for index in sorted(rows) for row in rows[index]]


def reason(error):
    """Why a case failed, in one line: an `InputError` speaks for itself."""
    return str(error) if isinstance(error, (InputError, ProcessEnded)) else f"{type(error).__name__}: {error}"


def check_writable(path):
    """Refuses an output file before the work.

    Raises:
        InputError: its folder is missing or cannot be written.
    """
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{path} cannot be written: check that its folder exists and is writable.")


def write_rows(path, rows, columns, decimals=None):
    """Write rows {column: value} as CSV in one go; NaN is an empty field.

    Args:
        path: of the file; what is there is replaced.
        rows: dictionaries.
        columns: their order.
        decimals: {column: digits after the point} where they are not `DECIMALS`.

    Raises:
        InputError: the file cannot be written.
    """
    path, decimals = Path(path), decimals or {}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows([_field(row[name], decimals.get(name, DECIMALS)) for name in columns] for row in rows)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): name another file.") from error
    finally:
        temporary.unlink(missing_ok=True)


def positive(text):
    """A whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number from 1 is needed")
    return int(text)


def duration(seconds):
    """Seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _tried(work, *arguments):
    try:
        return work(*arguments)
    except Exception as error:  # whatever is wrong with one case, the others go on
        return error


def _pool(jobs):
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_prepare_process)


@contextmanager
def _single_threaded():
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _prepare_process():
    import SimpleITK as sitk

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _end_with_parent():
    """A killed evaluation takes its processes along, which would otherwise wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _field(value, decimals):
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.{decimals}f}"
