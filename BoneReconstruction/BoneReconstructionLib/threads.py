"""Work shared out to threads: numpy and SciPy's trees release the interpreter's lock in their long loops."""

import os
from concurrent.futures import ThreadPoolExecutor

MOST_THREADS = 8


def in_blocks(work, count, size):
    """Call work(slice) for blocks of range(count) on all processors.

    Args:
        work: function of a slice; what it returns is collected.
        count: how many there are.
        size: how many one block takes.

    Returns:
        list of what `work` returned, in the order of the blocks.
    """
    return together(lambda start=start: work(slice(start, min(start + size, count))) for start in range(0, count, size))


def together(tasks):
    """Call functions without arguments on all processors and return a list of what they return, in their order."""
    tasks = list(tasks)
    if len(tasks) == 1:  # asked thousands of times for few points, and starting threads takes as long as they do
        return [tasks[0]()]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as threads:
        return list(threads.map(lambda task: task(), tasks))
