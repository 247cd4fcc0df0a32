"""Work shared out to threads: order and blocks."""

import pytest

from BoneReconstructionLib.threads import in_blocks, together


def test_results_keep_the_order_of_the_tasks():
    assert together(lambda number=number: number**2 for number in range(20)) == [number**2 for number in range(20)]


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_blocks_cover_everything_once(count):
    blocks = in_blocks(lambda block: list(range(count))[block], count, 5)
    assert sum(blocks, []) == list(range(count)) and all(len(block) <= 5 for block in blocks)
