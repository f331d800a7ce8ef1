"""Which news still have to go to whom: a pure function of a run's log, the targets and the time.

The log is the truth: an `alert.sent` or `alert.failed` that names an event and a target settles it, whichever runner or
process wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from fluxcore.log import parse_ts
from fluxcore.runs import RunState
from fluxcore.runs.news import News

from .targets import Target

MAX_AGE_SECONDS = 3600.0
"""What happened longer ago is no news: nobody is told of runs that ended before the runner started."""

LAST_TRY_SECONDS = MAX_AGE_SECONDS - 300
"""A try that fails later than this is the last one."""


@dataclass(frozen=True)
class Pending:
    """One target that has to be told of one event. `target` None: the run names one that is not there."""

    news: News
    name: str
    target: Target | None


def recent(state: RunState, now: datetime) -> list[News]:
    """The news of the last hour that can be told already, oldest first."""
    return [news for news in state.news if age(news, now) < MAX_AGE_SECONDS and not _comes_to_an_end(state, news)]


def pending(state: RunState, targets: Iterable[Target], now: datetime) -> list[Pending]:
    """Who is still to be told of what, in the order in which it happened. `now` is an aware datetime."""
    by_name = {target.name: target for target in targets}
    return [
        Pending(news, name, by_name.get(name))
        for news in recent(state, now)
        for name in _told(news, by_name)
        if name not in news.settled
    ]


def age(news: News, now: datetime) -> float:
    """Seconds since it happened."""
    return (now - parse_ts(news.ts)).total_seconds()


def _told(news: News, targets: dict[str, Target]) -> list[str]:
    wanted = list(targets) if news.tell == "all" else [] if news.tell == "off" else news.tell.split(",")
    names = [name.strip() for name in wanted]
    return [name for name in names if name and (name not in targets or _wants(targets[name], news))]


def _wants(target: Target, news: News) -> bool:
    return news.kind in target.kinds and news.ts >= target.added


def _comes_to_an_end(state: RunState, news: News) -> bool:
    """A stalled attempt is being ended: what it leaves to go on from is known in a moment, and then told too."""
    attempt = state.attempt
    return state.must_be_killed and attempt is not None and news.attempt == attempt.number and news.kind == "stalled"
