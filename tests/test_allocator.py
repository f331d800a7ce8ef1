"""PyTorch's caching allocator in numbers, by its rules worked out by hand."""

from __future__ import annotations

import pytest

from fluxcore.planner.allocator import MIB, Allocator, Full, least_reserve, reserve


def test_sizes_share_segments_of_their_kind() -> None:
    allocator = Allocator()
    small = [allocator.take(size) for size in (1, 512, MIB)]
    assert [block.size for block in small] == [512, 512, MIB] and allocator.reserved == 2 * MIB
    allocator.take(MIB)  # 1 KiB more than is left there
    assert allocator.reserved == 4 * MIB
    nine = allocator.take(9 * MIB), allocator.take(9 * MIB)
    assert allocator.reserved == 24 * MIB and nine[0].after is nine[1]
    allocator.take(2 * MIB)  # exactly the rest of their segment
    assert allocator.reserved == 24 * MIB
    allocator.take(9 * MIB)
    assert allocator.reserved == 44 * MIB


def test_what_is_large_has_a_segment_in_whole_2_mib_that_is_not_split_for_1() -> None:
    allocator = Allocator()
    assert allocator.take(11 * MIB).size == 12 * MIB == allocator.reserved
    assert allocator.take(10 * MIB + 1).size == 10 * MIB + 512 and allocator.reserved == 24 * MIB
    allocator.take(MIB + 1)  # out of the second one's rest
    assert allocator.reserved == 24 * MIB


def test_neighbours_are_joined_and_the_smallest_that_is_enough_is_taken() -> None:
    allocator = Allocator()
    whole = [allocator.take(size * MIB) for size in (40, 20, 30)]
    for block in whole:
        allocator.give(block)
    assert allocator.take(18 * MIB).size == 18 * MIB and allocator.reserved == 90 * MIB
    parts = [allocator.take(15 * MIB) for _ in range(2)]  # the 30
    allocator.give(parts[0])
    allocator.give(parts[1])
    assert allocator.take(29 * MIB + 512).size == 30 * MIB and allocator.reserved == 90 * MIB


def test_a_second_step_meets_what_the_first_has_left() -> None:
    # A tensor that stays keeps a hole of 20 MiB from being used for 30: the reserve is more than the peak.
    changes = [(0, 20 * MIB), (1, 2 * MIB), (0, -20 * MIB), (2, 30 * MIB), (1, -2 * MIB), (2, -30 * MIB)]
    assert reserve([], changes) == (20 + 20 + 30) * MIB, "2 MiB have a segment of 20"
    assert reserve([], [(0, 5 * MIB)]) == 20 * MIB, "what is never given back in a step is at its end"
    assert reserve([9 * MIB, 9 * MIB], [(0, 2 * MIB), (0, -2 * MIB)]) == 20 * MIB
    assert reserve([], [(0, 0), (0, 0)]) == 2 * MIB


def test_short_of_room_it_gives_unused_segments_back() -> None:
    changes = [(0, 20 * MIB), (1, 2 * MIB), (0, -20 * MIB), (2, 30 * MIB), (1, -2 * MIB), (2, -30 * MIB)]
    assert reserve([], changes, limit=60 * MIB) == 60 * MIB, "the unused 20 go before 30 are asked for"
    with pytest.raises(Full):
        reserve([], changes, limit=59 * MIB)  # in the second step the 2 lie in the 30 of the first
    assert 60 * MIB <= least_reserve([], changes, peak=32 * MIB) <= 76 * MIB
    allocator = Allocator(limit=40 * MIB)
    half, _ = allocator.take(10 * MIB), allocator.take(9 * MIB)
    allocator.give(half)
    allocator.take(20 * MIB)
    with pytest.raises(Full):
        allocator.take(12 * MIB)
