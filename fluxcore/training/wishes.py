"""What a person asks of a training that runs: samples or a checkpoint now. Read from its event log between steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fluxcore.log import Event, FolderReader

WISHES = {"sample.requested": "sample", "save.requested": "save"}
LOOK_SECONDS = 0.5
"""How often the log is looked into; a look costs what the lines cost that came since, which is microseconds."""


class Wishes:
    """Follows a run's log for wishes that came after the request which this attempt serves."""

    def __init__(self, folder: Path, request: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`request`: that event's `writer:n`; None (a trainer started by hand) hears what comes from now on."""
        self._reader = FolderReader(folder)
        self._clock = clock
        self._next_look = clock()
        before = self._read()
        asked_at = next((event.ts for event in before if event.id == request), None)
        self._waiting = [event for event in before if asked_at is not None and event.ts > asked_at]

    def take(self) -> set[str]:
        """What was asked since the last call: "sample", "save", both or nothing; at most half a second late."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._waiting += self._read()
        taken, self._waiting = self._waiting, []
        return {WISHES[event.type] for event in taken if event.type in WISHES}

    def _read(self) -> list[Event]:
        """The requests among the lines that came."""
        found: list[Event] = []
        for reader in self._reader.files():
            while lines := reader.read_lines():
                found += filter(None, map(reader.decode, _requests(lines)))
                if not reader.behind:
                    break
        return found


def _requests(lines: bytes) -> Iterator[bytes]:
    """The lines that may be a request: few among the million of a long run, so they alone are parsed."""
    at = 0
    while (at := lines.find(b'.requested"', at)) >= 0:
        start, end = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
        yield lines[start : end if end >= 0 else None]
        at = end if end >= 0 else len(lines)
