"""One event: a JSON object on a line of its own, and the rules by which it is encoded and read."""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from .catalog import TYPES

VERSION = 1
MAX_LINE_BYTES = 256 * 1024

DURABLE_TYPES = frozenset(type.name for type in TYPES if type.durable)
"""Types that are on the disk (fdatasync) before the append returns; the others are handed to the kernel."""


class EventError(ValueError):
    """An event that can't be written, or a line that is none."""


class TooLarge(EventError):
    """An event whose line would be longer than 256 KiB."""


class Event(NamedTuple):
    """One line of an event log. `ts` is UTC with microseconds, `n` counts from 1 per writer and run."""

    ts: str
    run: str
    type: str
    source: str
    writer: str
    n: int
    data: dict[str, Any]
    attempt: int | None = None
    v: int = VERSION

    @property
    def id(self) -> str:
        """`"writer:n"`, by which another event names this one."""
        return f"{self.writer}:{self.n}"

    @property
    def time(self) -> datetime:
        """`ts` as an aware datetime in UTC."""
        return parse_ts(self.ts)


_SECOND = 1_000_000_000
_this_second = (0, "1970-01-01T00:00:00.")
"""Where the present second began, in nanoseconds since 1970, and how it is written."""
_DIGITS = tuple(f"{number:03d}" for number in range(1000))
"""Looked up, since every append writes its time: formatting takes longer."""


def utc_now() -> str:
    """The current time as the log writes it: `2026-11-23T20:01:15.123456Z`."""
    global _this_second
    now = time.time_ns()
    began, text = _this_second
    since = now - began
    if not 0 <= since < _SECOND:
        since = now % _SECOND
        text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(now // _SECOND))
        _this_second = now - since, text
    thousands, ones = divmod(since // 1000, 1000)
    return text + _DIGITS[thousands] + _DIGITS[ones] + "Z"


def format_ts(moment: datetime) -> str:
    """An aware datetime in the log's form."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_ts(ts: str) -> datetime:
    """The inverse of `format_ts`; a time that can't be read is 1970's start, so that one bad line stops nothing."""
    try:
        moment = datetime.fromisoformat(ts)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def new_writer_id(source: str) -> str:
    """A name for one process's appends: `trainer-4711-3f2a`."""
    return f"{source}-{os.getpid()}-{secrets.token_hex(2)}"


def envelope(run: str, type: str, source: str, writer: str, attempt: int | None, v: int = VERSION) -> dict[str, Any]:
    """What all lines of one writer and type have in common, with places for ts, n and data: made once for them."""
    line: dict[str, Any] = {"v": v, "ts": "", "run": run, "type": type, "source": source, "writer": writer, "n": 0}
    if attempt is not None:
        line["attempt"] = attempt
    line["data"] = {}
    return line


def encode(event: Event, within: dict[str, Any] | None = None, longest: int | None = MAX_LINE_BYTES) -> bytes:
    """`event` as a line with its `\\n`. Numbers that are not finite become the strings "nan", "inf", "-inf".

    `within`: its `envelope`, where that is at hand; it is filled in anew. Raises TooLarge where the line would be
    longer than `longest` bytes (None: never; a log may hold what another program wrote), EventError where it is not
    JSON.
    """
    ts, run, type, source, writer, n, data, attempt, v = event
    if within is None:
        within = envelope(run, type, source, writer, attempt, v)
    within["ts"], within["n"], within["data"] = ts, n, data
    try:
        line = orjson.dumps(within, None, orjson.OPT_APPEND_NEWLINE)
        # orjson writes NaN as null: a diverged loss would vanish in silence. (`in` takes twice as long as `rfind`.)
        if line.rfind(b"null") >= 0:
            within["data"] = keep_non_finite(data)
            line = orjson.dumps(within, None, orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        raise EventError(f"a {type} event of the run {run!r} is not JSON: {error}") from None
    if longest is not None and len(line) > longest:
        raise TooLarge(f"a {type} event of {len(line)} bytes is over the log's limit of {longest}")
    return line


def decode(line: bytes) -> Event:
    """A line as an event; unknown keys are ignored. Raises EventError where it is none."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise EventError("not JSON") from None
    if type(raw) is not dict:
        raise EventError("not an object")
    get: Any = raw.get
    ts, run, kind, source, writer, n, data = (
        get("ts"), get("run"), get("type"), get("source"), get("writer"), get("n"), get("data"),
    )  # fmt: skip
    attempt, v = get("attempt"), get("v", VERSION)
    if (
        type(ts) is type(run) is type(kind) is type(source) is type(writer) is str
        and type(n) is type(v) is int
        and type(data) is dict
        and (attempt is None or type(attempt) is int)
    ):
        return Event(ts, run, kind, source, writer, n, data, attempt, v)
    raise EventError("not an event")


def keep_non_finite(value: Any) -> Any:
    """`value` with every float that is not finite as the string "nan", "inf" or "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: keep_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [keep_non_finite(item) for item in value]
    return value


def number(value: Any) -> float | None:
    """A number of an event's data, the strings "nan", "inf", "-inf" included; None for anything else."""
    kind = type(value)  # never a subclass: it came out of JSON, where true and false are no numbers
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return float(value)
    if kind is str and value in ("nan", "inf", "-inf"):
        return float(value)
    return None


def whole_number(value: Any) -> int | None:
    """A count of an event's data (JSON knows no difference between 3 and 3.0); None for anything else."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None
