"""Numbers and times in plain words. What is not known says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

from fluxcore.log import parse_ts
from fluxcore.runs.outlook import evidence_words as evidence
from fluxcore.units import UNKNOWN, duration, loss, pace, plural, size

__all__ = ["UNKNOWN", "ago", "clock", "duration", "escape", "evidence", "loss", "pace", "phase", "plural", "size"]

_reader: ContextVar[str] = ContextVar("reader", default="")

PHASES = {
    "download": "downloading the model",
    "load": "loading the model",
    "cache": "preparing pictures",
    "train": "training",
    "sample": "drawing samples",
    "save": "saving a checkpoint",
    "export": "writing the LoRA file",
}
"""What a trainer does, by the phase that its events name."""


def phase(name: str, done: float | None = None, total: float | None = None, unit: str = "") -> str:
    """What it does and how far it is: `preparing pictures 9 of 22`."""
    doing = "preparing captions" if (name, unit) == ("cache", "captions") else PHASES.get(name, name)
    if done is None or not total:
        return doing
    return f"{doing} {size(done)} of {size(total)}" if unit == "bytes" else f"{doing} {done:,.0f} of {total:,.0f}"


def ago(ts: str | None, now: datetime | None = None) -> str:
    """How long ago a log's time was: `2 h ago`."""
    if not ts:
        return UNKNOWN
    seconds = ((now or datetime.now(UTC)) - parse_ts(ts)).total_seconds()
    if seconds < 5:
        return "just now"
    for span, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= span:
            return f"{int(seconds // span)} {unit} ago"
    return f"{int(seconds)} s ago"


def clock(ts: str | None, now: datetime | None = None) -> str:
    """A log's time on the reader's clock: `20:01 CET`, with the day where it is not today."""
    if not ts:
        return UNKNOWN
    zone = _zone()
    moment, today = parse_ts(ts).astimezone(zone), (now or datetime.now(UTC)).astimezone(zone)
    zone_name = moment.tzname() or ""
    if zone_name[:1] in "+-":  # many zones have no other name than their distance
        zone_name = f"UTC{zone_name}"
    return moment.strftime("%H:%M " if moment.date() == today.date() else "%d %b %H:%M ") + zone_name


@contextmanager
def clock_of(zone: str) -> Iterator[None]:
    """Where no script of a page runs: the reader's time zone, as the browser names it."""
    token = _reader.set(zone)
    try:
        yield
    finally:
        _reader.reset(token)


def _zone() -> tzinfo:
    try:
        return ZoneInfo(_reader.get() or st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError, AttributeError):
        return UTC


def escape(text: str) -> str:
    """A person's text for Streamlit's markdown: shown as it is."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]()#+-.!|<>$:~&\"'" else char for char in text).replace("\n", " ")
