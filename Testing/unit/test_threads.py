"""Work shared out to threads: order, blocks, and tasks that go on beside others."""

import threading

import pytest

from BoneReconstructionLib.threads import begun, in_blocks, together


def test_results_keep_the_order_of_the_tasks():
    assert together(lambda number=number: number**2 for number in range(20)) == [number**2 for number in range(20)]


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_blocks_cover_everything_once(count):
    blocks = in_blocks(lambda block: list(range(count))[block], count, 5)
    assert sum(blocks, []) == list(range(count)) and all(len(block) <= 5 for block in blocks)


def test_a_task_that_was_begun_goes_on_beside_others_and_tells_what_it_returns_or_raises():
    go_on = threading.Event()
    waiting = begun(lambda: go_on.wait(30))
    failing = begun(lambda: 1 / 0)
    go_on.set()  # not reached had the first task been waited for
    assert waiting() is True
    with pytest.raises(ZeroDivisionError):
        failing()
