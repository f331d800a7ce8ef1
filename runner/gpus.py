"""The GPUs as the loop sees them: it asks, and never waits for a driver that does not answer."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .nvml import Nvml, unknown

QUICK_SECONDS = 0.05
"""How long the loop waits for a reading. A sound driver needs milliseconds; of a slow one the next turn has it."""

PATIENCE_SECONDS = 3.0
"""After which a driver that is being asked counts as one that gives no answer."""

SHARED_SECONDS = 0.1
"""How old a reading may be that several runs share."""

LISTED_SECONDS = 5.0
"""How old a reading may be to tell which GPUs there are."""

log = logging.getLogger(__name__)


class Gpus(Protocol):
    """The GPUs that trainers may use."""

    def by_index(self) -> dict[int, str] | None:
        """The uuids of the visible GPUs that work, by the number that nvidia-smi shows; empty on a machine without.

        None: not known (yet), or none works. While a reading is on its way the last known ones hold.
        """

    def sample(self) -> list[dict[str, Any]] | None:
        """One `gpu.sampled` for each visible GPU, read now; None: on its way, ask again in the next turn.

        `xid_errors` are all since the runner began to listen. Where the driver gives no answer, nothing of a GPU is
        known but who it is, and its `problem` is "no_answer".
        """


@dataclass(frozen=True)
class _Reading:
    samples: list[dict[str, Any]] | None
    begun: float


class NvmlGpus:
    """NVIDIA's GPUs, read by a thread of its own: a call into the driver of a broken GPU can hang for minutes.

    A reading that comes that late is thrown away; meanwhile all that it would have told is unknown.
    """

    def __init__(
        self,
        read: Callable[[], list[dict[str, Any]] | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = Nvml()
        self._read = read or self._nvml.read
        self._clock = clock
        self._orders: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._arrived = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked: float | None = None
        self._newest = _Reading(None, float("-inf"))
        self._owed = False
        self._seen: list[dict[str, Any]] = []

    def by_index(self) -> dict[int, str] | None:
        now = self._clock()
        if now - self._newest.begun > LISTED_SECONDS and not self._fetch(now):
            asked = self._asked  # None: it came in this moment
            if asked is not None and (now - asked > PATIENCE_SECONDS or not self._was_read):
                return None
        working = [gpu for gpu in self._newest.samples or [] if gpu["uuid"] and not gpu["problem"]]
        usable = {int(gpu["index"]): str(gpu["uuid"]) for gpu in working}
        return None if self._seen and not usable else usable

    def sample(self) -> list[dict[str, Any]] | None:
        now = self._clock()
        if self._owed and now - self._newest.begun <= PATIENCE_SECONDS and self._asked is None:
            self._owed = False  # what was on its way at the last turn: it counts as of this one, for all that ask in it
            self._newest = _Reading(self._newest.samples, now)
        if now - self._newest.begun <= SHARED_SECONDS or self._fetch(now):
            return self._shown(self._newest.samples)
        self._owed = self._asked is not None and now - self._asked <= PATIENCE_SECONDS
        return None if self._owed else self._shown(None)

    def start(self) -> None:
        """Read once, so that a driver that takes its time to wake up is awake when the first run is asked for."""
        self._fetch(self._clock(), PATIENCE_SECONDS)

    def close(self) -> None:
        """Let go of the driver, where it lets go."""
        if self._thread is not None and self._asked is None:
            self._orders.put(None)
            self._thread.join(1.0)

    def _fetch(self, now: float, patience: float = QUICK_SECONDS) -> bool:
        """Have the GPUs read; False where that takes longer than a moment, or the last reading still goes on."""
        if self._asked is not None:
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="gpus", daemon=True)
            self._thread.start()
        self._arrived.clear()
        self._asked = now
        self._orders.put(now)
        return self._arrived.wait(patience)

    def _serve(self) -> None:
        while (begun := self._orders.get()) is not None:
            try:
                samples = self._read()
            except Exception as error:  # a driver's surprise must not end the readings
                log.warning("the GPUs can't be read: %r", error)
                samples = None
            if samples:
                self._seen = samples
            self._newest = _Reading(samples, begun)
            self._arrived.set()  # before the next one may be asked for, which clears it
            self._asked = None
        with contextlib.suppress(Exception):
            self._nvml.close()

    @property
    def _was_read(self) -> bool:
        return self._newest.begun > float("-inf")

    def _shown(self, samples: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        if samples is not None:
            return samples
        return [{**unknown(sample), "problem": "no_answer"} for sample in self._seen]
