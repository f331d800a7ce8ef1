"""PyTorch's caching allocator of GPU memory, in numbers: what it asks the GPU for, beside what tensors hold.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its defaults: a size is rounded up to 512 bytes, what is
at most 1 MiB shares segments of 2 MiB, what is less than 10 MiB segments of 20 MiB, all else has a segment of its own
in whole 2 MiB; the smallest free block that is large enough is taken, split where enough is left, and joined with its
free neighbours when it is given back. Segments stay with the process, and nvidia-smi shows them all, until the GPU has
no room for another one: then those go of which no part is used. No torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

MIB = 1 << 20
ROUND, SMALL, SMALL_SEGMENT, LARGE, LARGE_SEGMENT, ROUND_LARGE = 512, MIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB


@dataclass(eq=False)
class Block:
    """A part of a segment. Bytes; `number` orders blocks of one size."""

    size: int
    small: bool
    number: int
    free: bool = False
    before: Block | None = None
    after: Block | None = None


class Full(Exception):
    """The GPU has no room for another segment."""


class Allocator:
    """Takes and gives back blocks. `reserved`: bytes that it has of the GPU, which has `limit` at most."""

    def __init__(self, limit: float = math.inf) -> None:
        self.reserved, self._limit = 0, limit
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._numbers = count()

    def take(self, size: int) -> Block:
        """A block for `size` bytes. Raises Full."""
        size = max(ROUND, _up(size, ROUND))
        small = size <= SMALL
        free = self._free[small]
        place = bisect_left(free, (size, -1))
        if place < len(free):
            block = free.pop(place)[2]
            block.free = False
        else:
            block = Block(self._segment(size, small), small, next(self._numbers))
        left = block.size - size
        if left >= ROUND if small else left > SMALL:
            rest = Block(left, small, next(self._numbers), before=block, after=block.after)
            if block.after:
                block.after.before = rest
            block.size, block.after = size, rest
            self._put(rest)
        return block

    def give(self, block: Block) -> None:
        """Give a block back."""
        if (after := block.after) and after.free:
            self._remove(after)
            block.size, block.after = block.size + after.size, after.after
            if block.after:
                block.after.before = block
        if (before := block.before) and before.free:
            self._remove(before)
            before.size, before.after = before.size + block.size, block.after
            if before.after:
                before.after.before = before
            block = before
        self._put(block)

    def _segment(self, size: int, small: bool) -> int:
        segment = SMALL_SEGMENT if small else LARGE_SEGMENT if size < LARGE else _up(size, ROUND_LARGE)
        if self.reserved + segment > self._limit:  # segments of which no part is used go back to the GPU
            for free in self._free.values():
                whole = [one for one in free if one[2].before is None and one[2].after is None]
                self.reserved -= sum(one[0] for one in whole)
                free[:] = [one for one in free if one[2].before is not None or one[2].after is not None]
        if self.reserved + segment > self._limit:
            raise Full
        self.reserved += segment
        return segment

    def _put(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.number, block))

    def _remove(self, block: Block) -> None:
        free = self._free[block.small]
        free.pop(bisect_left(free, (block.size, block.number)))


def reserve(held: Iterable[int], changes: Sequence[tuple[int, int]], limit: float = math.inf) -> int:
    """Bytes that the allocator has of the GPU for tensors of `held` bytes that stay, and for `changes` on top of them.

    A change is a tensor's number and the bytes that it takes, or, negative, gives back. They happen twice, as in a
    second step, which meets the blocks that the first has left. Raises Full where `limit` bytes are too few.
    """
    allocator = Allocator(limit)
    for size in held:
        allocator.take(size)
    for _ in range(2):
        blocks: dict[int, Block] = {}
        for number, size in changes:
            if size >= 0:
                blocks[number] = allocator.take(size)
            else:
                allocator.give(blocks.pop(number))
        for block in blocks.values():
            allocator.give(block)
    return allocator.reserved


def least_reserve(held: Sequence[int], changes: Sequence[tuple[int, int]], peak: int) -> int:
    """The smallest `limit`, to 16 MiB, with which `reserve` gets along; `peak`: what the tensors take at once at most.

    Between it and `reserve` without a limit the allocator gives segments back and asks anew, which takes time.
    """
    low, high = peak, reserve(held, changes)
    while high - low > 16 * MIB:
        middle = (low + high) // 2
        try:
            reserve(held, changes, middle)
            high = middle
        except Full:
            low = middle
    return high


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
