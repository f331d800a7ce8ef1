"""How long the loop is turned: until a signal asks to leave, or until every run is stopped where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

from .loop import Runner
from .orphans import DELETED

BREATH_SECONDS = 0.5
"""Between two turns at the least while trainers alone write: a thousand steps a second must not turn it as often."""
ASKED = "everything is to stop (--stop-all)"
"""Why all runs are stopped where a person asked for it, for their monitor.log."""
TELL_SECONDS = 5.0
"""How long the first process stays once nothing lives any more, for people to be told: all others end with it."""


class Leaving:
    """How often signals have asked to leave, and the bell that wakes the loop for it."""

    def __init__(self) -> None:
        self.signals = 0
        self.ring: Callable[[], None] = lambda: None

    def ask(self, *_: object) -> None:
        """The signals' handler."""
        self.signals += 1
        self.ring()


def unfinished(runner: Runner) -> list[str]:
    """What keeps the runner from being idle, for people: runs by name, and what can't be looked at."""
    found = [
        run.name if run.is_read else f"{run.name} (its log can't be read)"
        for run in runner.runs.values()
        if run.holds_machine or not run.is_read
    ]
    found += [f"{orphan.name} ({DELETED})" for orphan in runner.orphans]
    return sorted(found) + ([] if runner.listed else ["what else lies in the folder (it can't be listed)"])


def turn_until_done(
    runner: Runner,
    wait: Callable[..., set[str]],
    leaving: Leaving,
    is_asked: Callable[[], bool],
    *,
    is_first: bool,
    clock: Callable[[], float],
    deadline: float = float("inf"),
) -> None:
    """Turn `runner` until it is to leave; at most until `clock()` (seconds) reaches `deadline`.

    `wait` sleeps for so many seconds at the most and returns whose log changed (names that are known already, its
    second argument, wake it no more); `is_asked` says whether somebody has
    asked for a shutdown. `is_first`: when the first process of a container goes, the kernel kills all others; so there
    a signal asks for a shutdown, and only a second one ends the runner.
    """
    hints: set[str] = set()
    idle_since: float | None = None
    while clock() < deadline:
        signals, begun = leaving.signals, clock()
        if signals >= (2 if is_first else 1):
            break
        if signals and not runner.shutting_down:
            runner.shut_down()
        due = runner.turn(hints)
        if is_asked() and not runner.shutting_down:
            runner.shut_down(ASKED)
            continue
        if runner.shutting_down and runner.is_idle:
            idle_since = begun if idle_since is None else idle_since
            telling = runner.alerts is not None and runner.alerts.is_sending
            if not (is_first and telling and begun - idle_since < TELL_SECONDS):
                break
        hints = wait(due)
        while hints and leaving.signals == signals and runner.may_wait(hints):
            rest = begun + min(due, BREATH_SECONDS) - clock()
            if rest <= 0:
                break
            hints |= wait(rest, hints)
