"""Which events of a run were read already, by writer and number: a few numbers a writer, however many events."""

from __future__ import annotations

from bisect import bisect_right

from .event import Event


class Seen:
    """A set of (writer, n). A writer's numbers come without gaps, so they are kept as stretches from … to."""

    def __init__(self) -> None:
        self._stretches: dict[str, tuple[list[int], list[int]]] = {}

    def add(self, event: Event) -> bool:
        """Take an event in; False where it was there already."""
        starts, ends = self._stretches.setdefault(event.writer, ([], []))
        n = event.n
        if ends and n == ends[-1] + 1:  # by far the most frequent case
            ends[-1] = n
            return True
        place = bisect_right(starts, n)  # how many stretches begin at n or before
        if place and n <= ends[place - 1]:
            return False
        after = place < len(starts) and starts[place] == n + 1
        if place and ends[place - 1] == n - 1:
            ends[place - 1] = n
            if after:
                ends[place - 1] = ends.pop(place)
                starts.pop(place)
        elif after:
            starts[place] = n
        else:
            starts.insert(place, n)
            ends.insert(place, n)
        return True
