"""When people are told: the loop's side of alerts. It starts a short-lived process for a run that has news, and again,
later and later, until the log says that everybody was told or could not be. It never waits for one.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fluxcore.alerts.child import sending_command, sending_environment
from fluxcore.alerts.pending import MAX_AGE_SECONDS, pending, recent
from fluxcore.alerts.targets import load_targets
from fluxcore.errors import UserError
from fluxcore.runs.files import PROJECT_ROOT

from .clock import Clock
from .run import Run

FIRST_SECONDS, LONGEST_SECONDS, TIMES = 5.0, 300.0, 3
"""How long after a try the next one comes: 5 s, 15 s, 45 s, 135 s, then 5 minutes, until the news is an hour old."""
LOOK_SECONDS = 1.0
"""How often it is looked whether a sending process has ended; what it wrote wakes the loop before that."""

log = logging.getLogger(__name__)


class Sending(Protocol):
    """A process that tells people of one run, once."""

    def poll(self) -> int | None:
        """Its exit code, or None while it lives."""


class Sender(Protocol):
    """Starts such processes."""

    def start(self, outputs: Path, run: str) -> Sending:
        """Start one and return at once. Raises OSError."""


class LocalSender:
    """Processes of this machine, each in a session of its own: they outlive the runner and note what they did."""

    def start(self, outputs: Path, run: str) -> Sending:
        return subprocess.Popen(
            sending_command("--outputs", str(outputs), "--run", run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what a library says there may hold an address
            cwd=PROJECT_ROOT,
            env=sending_environment(),
            start_new_session=True,
        )


STILL = f"tried again for {MAX_AGE_SECONDS / 3600:.0f} h from what it tells of; `./fluxgym alerts test NAME` says why"


@dataclass
class _Wait:
    """A run with news: the process at work, if any, and when the next one is due (infinity: everybody was told)."""

    due: float = float("inf")
    pause: float = FIRST_SECONDS
    sending: Sending | None = None
    seen: set[str] = field(default_factory=set)
    """The events that it is about; one that is new is told at once, whatever failed before (but see `_look`)."""
    tried: float = float("-inf")
    noted: set[tuple[str, str]] = field(default_factory=set)
    """Event and target of each outcome that is in monitor.log."""
    tries: dict[tuple[str, str], int] = field(default_factory=dict)
    """How often each was tried that has no outcome yet."""

    def put_off(self, now: float) -> None:
        """The next one comes later, and the one after it later still."""
        self.tried = now
        self.due, self.pause = now + self.pause, min(LONGEST_SECONDS, self.pause * TIMES)


class Alerts:
    """Sees that people are told of what happens to the runs of one outputs folder."""

    def __init__(self, outputs: Path, sender: Sender, clock: Clock) -> None:
        self._outputs, self._sender, self._clock = outputs, sender, clock
        self._waits: dict[str, _Wait] = {}
        self._trouble = ""

    def turn(self, live: list[Run], runs: dict[str, Run]) -> None:
        """Look at the runs whose log changed, at processes that ended, and at what is due. Never raises: telling is
        worth less than supervising."""
        now = self._clock.monotonic()
        for run in live:
            if run.state.news:
                self._safely(self._look, run, now)
        for name, wait in list(self._waits.items()):
            self._safely(self._serve, name, runs.get(name), wait, now)

    def due(self) -> float:
        """In how many seconds there is something to do; infinity where nothing waits."""
        now = self._clock.monotonic()
        waits = self._waits.values()
        return min((LOOK_SECONDS if wait.sending else max(0.0, wait.due - now) for wait in waits), default=float("inf"))

    @property
    def is_sending(self) -> bool:
        """Whether a process that tells people is at work, as far as the last turn saw."""
        return any(wait.sending is not None for wait in self._waits.values())

    def _safely(self, step: Callable[..., None], *what: object) -> None:
        """One run's trouble reaches neither the loop nor what others are to be told."""
        try:
            step(*what)
        except Exception as error:  # nothing of the error's text: it might hold an address
            self._say(f"alerts: a step failed with {type(error).__name__}")

    def _serve(self, name: str, run: Run | None, wait: _Wait, now: float) -> None:
        if wait.sending is not None:
            if wait.sending.poll() is None:
                return
            wait.sending = None
        if run is None:
            del self._waits[name]
        elif now >= wait.due:
            self._start(run, wait, now)

    def _look(self, run: Run, now: float) -> None:
        """Take up what is new. What was settled before this runner looked is in monitor.log already."""
        events = {news.event for news in recent(run.state, self._clock.now())}
        wait = self._waits.get(run.name)
        if wait is None:
            wait = self._waits[run.name] = _Wait(
                noted={(news.event, name) for news in run.state.news for name in news.settled}
            )
        self._note(run, wait)
        if events - wait.seen:
            if wait.due == float("inf"):  # else what waits keeps its pause: news don't make a dead target answer
                wait.due, wait.pause = now, FIRST_SECONDS
            else:
                wait.due = min(wait.due, max(now, wait.tried + FIRST_SECONDS))
            wait.seen |= events

    def _start(self, run: Run, wait: _Wait, now: float) -> None:
        """Start a process where anybody is still to be told of something."""
        wait.put_off(now)  # before anything can go wrong: what stays due would be tried in every turn, without a pause
        try:
            if todo := pending(run.state, load_targets(self._outputs), self._clock.now()):
                for item in todo:
                    tries = wait.tries[item.news.event, item.name] = wait.tries.get((item.news.event, item.name), 0) + 1
                    if tries == 2:
                        run.note(f"alert to {item.name} ({item.news.kind}) is not sent yet: {STILL}", "WARNING")
                wait.sending = self._sender.start(self._outputs, run.name)
            else:
                wait.due = float("inf")
            self._trouble = ""
        except UserError as error:  # the file of the targets
            self._say(f"alerts: {error}")
        except OSError as error:
            self._say(f"alerts: the process that sends can't be started: {error.strerror}")

    def _note(self, run: Run, wait: _Wait) -> None:
        """What came of it, for monitor.log."""
        for news in run.state.news:
            for name, error in news.settled.items():
                if (news.event, name) in wait.noted:
                    continue
                wait.noted.add((news.event, name))
                if error is None:
                    run.note(f"alert sent to {name}: {news.kind}")
                else:
                    run.note(f"alert to {name} ({news.kind}) failed: {error}", "WARNING")

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("%s", trouble)
        self._trouble = trouble
