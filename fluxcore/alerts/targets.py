"""Who can be told: named addresses, each an Apprise URL. The one place that reads and writes them."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fluxcore.atomic import write_atomic
from fluxcore.config.names import NAME_RULE, is_valid_name
from fluxcore.errors import UserError
from fluxcore.log import utc_now
from fluxcore.runs.news import KINDS

ALERTS_FILE = ".alerts.json"
LOCK_FILE = ".alerts.lock"
ENVIRONMENT = "FLUXGYM_ALERTS"
RESERVED = ("all", "off")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.*)")


@dataclass(frozen=True)
class Target:
    """One address. `kinds`: what it is told of; `added`: the log's time from which on ("" = always)."""

    name: str
    url: str = field(repr=False)
    kinds: frozenset[str] = frozenset(KINDS)
    added: str = ""
    from_environment: bool = False

    @property
    def masked(self) -> str:
        """The URL without anything that might be a secret: with many services host and path are one, so all but the
        scheme goes."""
        found = _URL.match(self.url)
        return f"{found[1].lower()}://****" if found else "****"


def load_targets(outputs: Path) -> list[Target]:
    """Every target of `.alerts.json` and of $FLUXGYM_ALERTS (which wins) by name.

    Raises UserError, without a word of what is in it, where one of them can't be understood.
    """
    targets = {target.name: target for target in _from_file(outputs / ALERTS_FILE)}
    targets |= {target.name: target for target in from_environment(os.environ.get(ENVIRONMENT, ""))}
    return sorted(targets.values(), key=lambda target: target.name)


def add_target(outputs: Path, name: str, url: str, kinds: Iterable[str] = KINDS) -> Target:
    """Keep a new target in `.alerts.json`. Raises UserError: the name is taken or none, the URL is none."""
    check_name(name)
    chosen = check_kinds(kinds)
    if not is_url(url):
        raise UserError("that is no address for alerts: one looks like ntfys://ntfy.sh/my-topic (see docs/alerts.md)")
    outputs.mkdir(parents=True, exist_ok=True)
    with _alone(outputs):
        there = _from_file(outputs / ALERTS_FILE)
        if any(target.name == name for target in there):
            raise UserError(f"there is an alert target {name!r} already; remove it first, or choose another name")
        added = Target(name, url.strip(), chosen, utc_now())
        _write(outputs / ALERTS_FILE, [*there, added])
    return added


def remove_target(outputs: Path, name: str) -> None:
    """Forget a target of `.alerts.json`. Raises UserError where there is none of that name."""
    with _alone(outputs):
        there = _from_file(outputs / ALERTS_FILE)
        left = [target for target in there if target.name != name]
        if len(left) == len(there):
            if any(target.name == name for target in from_environment(os.environ.get(ENVIRONMENT, ""))):
                raise UserError(f"the alert target {name!r} comes from ${ENVIRONMENT}; take it out there")
            raise no_target(name, there)
        _write(outputs / ALERTS_FILE, left)


def find_target(outputs: Path, name: str) -> Target:
    """The target of that name. Raises UserError where there is none."""
    targets = load_targets(outputs)
    for target in targets:
        if target.name == name:
            return target
    raise no_target(name, targets)


def no_target(name: str, targets: Iterable[Target]) -> UserError:
    """What a person is told who names a target that is not there. A URL given for a name is not repeated."""
    known = ", ".join(sorted(target.name for target in targets)) or "none"
    what = f"there is no alert target {name!r}" if is_valid_name(name) else "there is no such alert target"
    return UserError(f"{what} (there is {known}); add one with ./fluxgym alerts add NAME")


def is_shared(outputs: Path) -> bool:
    """Whether others can read `.alerts.json` (a disk without file modes, or someone changed them)."""
    try:
        return bool((outputs / ALERTS_FILE).stat().st_mode & 0o077)
    except OSError:
        return False


def is_url(text: str) -> bool:
    """Whether this has the form of an address; whether Apprise knows it is for `check_url` to say."""
    return _URL.fullmatch(text.strip()) is not None


def check_name(name: str) -> None:
    """Raise UserError where a target can't be called that; what was given is not repeated, it may be the URL."""
    if not is_valid_name(name):
        raise UserError(f"a target needs a name first, such as phone: {NAME_RULE}")
    if name.lower() in RESERVED:
        raise UserError(f"a target can't be called {name!r}: a run's setting `alerts` has a meaning for that word")


def check_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """The kinds of news as a set. Raises UserError for an unknown one."""
    chosen = frozenset(kinds)
    if not chosen or not chosen <= set(KINDS):
        raise UserError(f"targets can be told of {', '.join(KINDS)}, and of nothing else")
    return chosen


def from_environment(text: str) -> list[Target]:
    """The targets of $FLUXGYM_ALERTS: `NAME=URL`, or a URL alone, with blanks between them. Raises UserError."""
    found = []
    for number, word in enumerate(text.split(), 1):
        named = _NAMED.fullmatch(word)
        name, url = (named[1], named[2]) if named else (f"env-{number}", word)
        if not is_url(url) or name.lower() in RESERVED:
            raise UserError(f"entry {number} of ${ENVIRONMENT} is not NAME=URL; mend it (see docs/alerts.md)")
        found.append(Target(name, url, from_environment=True))
    return found


def _from_file(file: Path) -> list[Target]:
    try:
        read = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file} can't be read ({error.strerror}); mend its permissions") from None
    except orjson.JSONDecodeError:
        raise UserError(f"{file} is not JSON; mend it, or remove it and add your alert targets again") from None
    try:
        return [_target(entry) for entry in read["targets"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} can't be understood; mend it, or remove it and add your alert targets again") from None


def _target(entry: dict[str, Any]) -> Target:
    target = Target(entry["name"], entry["url"], check_kinds(entry.get("events", KINDS)), entry.get("added", ""))
    check_name(target.name)
    if not isinstance(target.url, str) or not is_url(target.url) or not isinstance(target.added, str):
        raise ValueError
    return target


@contextmanager
def _alone(outputs: Path) -> Iterator[None]:
    """Of two that change the file at once the second waits; where the disk knows no locks, or nothing can be written
    at all, nobody does."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock = stack.enter_context(open(outputs / LOCK_FILE, "a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(file: Path, targets: list[Target]) -> None:
    rows = [
        {"name": target.name, "url": target.url, "events": sorted(target.kinds, key=KINDS.index), "added": target.added}
        for target in targets
    ]
    data = orjson.dumps({"targets": rows}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        write_atomic(file, data, mode=0o600)
    except OSError as error:
        raise UserError(f"{file} can't be written ({error.strerror}); make room there") from None
