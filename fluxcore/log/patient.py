"""A log for a loop that must not stop, whatever becomes of the disk."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .event import DURABLE_TYPES, EventError
from .writer import EventLog

log = logging.getLogger(__name__)


class PatientLog:
    """An event log for a loop that must not stop: what can't be written now waits in memory and is tried again."""

    def __init__(self, log: EventLog, *, capacity: int = 100_000, clock: Callable[[], float] = time.monotonic) -> None:
        """Wrap `log`. Past `capacity` waiting events the oldest is dropped, one that need not wait for the disk before
        any other; `dropped` counts them."""
        self._log = log
        self._clock = clock
        self._waiting: deque[tuple[str, dict[str, Any], int | None, bool | None, str]] = deque()
        self._capacity = capacity
        self._retry_at = 0.0
        self.dropped = 0

    @property
    def attempt(self) -> int | None:
        """The attempt whose events these are."""
        return self._log.attempt

    @property
    def waiting(self) -> int:
        """How many events are not yet in the log."""
        return len(self._waiting)

    def append(
        self,
        type: str,
        data: dict[str, Any] | None = None,
        *,
        attempt: int | None = None,
        durable: bool | None = None,
    ) -> None:
        """Append, or keep the event for later, as of now; never raises."""
        self._waiting.append((type, data or {}, attempt, durable, self._log.now()))
        if len(self._waiting) > self._capacity:
            self._drop_one()
        if self._clock() >= self._retry_at:
            self.flush()

    def _drop_one(self) -> None:
        if not self.dropped:
            log.error("the event log could not be written for too long: the oldest events that wait are given up")
        self.dropped += 1
        for place, (type, _, _, durable, _) in enumerate(self._waiting):
            if not (type in DURABLE_TYPES if durable is None else durable):
                del self._waiting[place]
                return
        self._waiting.popleft()

    def flush(self) -> bool:
        """Try to write what waits, in order; True when nothing waits any more."""
        while self._waiting:
            type, data, attempt, durable, ts = self._waiting[0]
            try:
                self._log.append(type, data, attempt=attempt, durable=durable, ts=ts)
            except EventError as error:
                log.error("an event was dropped: %s", error)
                self.dropped += 1
            except OSError as error:
                if not self._retry_at:
                    log.error("the event log can't be written (%s); events wait in memory until it can", error)
                self._retry_at = self._clock() + 1.0
                return False
            self._waiting.popleft()
        if self._retry_at:
            log.warning("the event log can be written again")
            self._retry_at = 0.0
        return True

    def drain(self, seconds: float) -> bool:
        """Keep trying for up to `seconds`, at the end of the loop; True when nothing waits any more."""
        deadline = self._clock() + seconds
        while not self.flush():
            if self._clock() >= deadline:
                log.error("%d events could not be written and are lost with this process", len(self._waiting))
                return False
            time.sleep(0.2)
        return True
