"""Slowing down who guesses tokens: after some wrong ones a client waits, each time twice as long."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

FREE = 5
"""Wrong tokens before a client has to wait at all: people mistype."""
FIRST_SECONDS, MOST_SECONDS = 1.0, 300.0
FORGET_SECONDS = 3600.0
MOST_CLIENTS = 1000
MOST_PER_MINUTE = 60
"""Wrong tokens of all clients together, above which everybody without a cookie waits: a botnet has many addresses."""


class Slowing:
    """Counts wrong tokens by client address. `clock` in seconds, never going back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._lately: deque[float] = deque(maxlen=MOST_PER_MINUTE)

    def seconds_left(self, client: str) -> float:
        """How long this client has to wait before a token of it is looked at; 0 = not at all."""
        now = self._clock()
        count, last = self._wrong.get(client, (0, now))
        waits = min(MOST_SECONDS, FIRST_SECONDS * 2 ** (count - FREE)) if count >= FREE else 0.0
        everybody = 60 - (now - self._lately[0]) if len(self._lately) == MOST_PER_MINUTE else 0.0
        return max(0.0, last + waits - now, everybody)

    def failed(self, client: str) -> None:
        """A wrong token came."""
        now = self._clock()
        count, last = self._wrong.pop(client, (0, now))
        self._wrong[client] = (count + 1 if now - last < FORGET_SECONDS else 1, now)
        self._lately.append(now)
        while len(self._wrong) > MOST_CLIENTS:
            self._wrong.popitem(last=False)

    def succeeded(self, client: str) -> None:
        """The right one came."""
        self._wrong.pop(client, None)
