"""`python -m fluxcore.alerts.sending`: a short-lived process that tells people, and writes down whom it told.

    --outputs DIR --run NAME     all that is pending of a run, one try for each target
    --outputs DIR --test NAME    a test to one target; answers {"error": null} on standard output
    --check                      whether Apprise can use the URL on standard input; answers {"usable": true}

It outlives the runner that started it and writes the outcome itself, so that a runner killed in between knows of it.
Two of them never serve a run at once (a lock, which ends with the process), and each reads the log under the lock.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, Protocol

import orjson

from fluxcore.errors import UserError
from fluxcore.log import EventLog, FolderReader, PatientLog
from fluxcore.runs import RunFolder, RunState

from .message import DeliveryError, Message, compose, trial_message
from .pending import LAST_TRY_SECONDS, Pending, age, pending
from .targets import Target, find_target, load_targets

LONGEST_SECONDS = 120
"""After so long it ends itself: a try that hangs in a library must not stay for ever."""

KEEP_SECONDS = 600.0
"""How long it waits for a full disk to take what it did: whoever came after it would send again."""


class Door(Protocol):
    """A way to a target."""

    def send(self, message: Message) -> None:
        """Deliver, or raise DeliveryError."""


Open = Callable[[Target], Door]


def main(arguments: list[str] | None = None) -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(prog="fluxcore.alerts.sending")
    parser.add_argument("--outputs", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--test")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    signal.alarm(LONGEST_SECONDS)
    if options.check:
        _answer({"usable": _usable(sys.stdin.read().strip())})
    elif options.test:
        _answer({"error": _test(options.outputs, options.test)})
    else:
        tell(RunFolder.of(options.outputs, options.run))


def tell(folder: RunFolder, open_door: Open | None = None, now: Callable[[], datetime] | None = None) -> None:
    """Send what is pending of a run, a thread for each target, and append the outcome of each as it comes.

    What has no outcome in the log afterwards is to be tried again. Raises OSError where the log can't be read.
    """
    moment = now or (lambda: datetime.now(UTC))
    with _alone(folder) as first:
        if not first:
            return
        reader, state = FolderReader(folder.path), RunState(folder.name)
        _read(reader, state)
        todo = pending(state, load_targets(folder.path.parent), moment())
        with EventLog(folder.path, "runner") as log:
            outcomes = _Outcomes(log, reader, state, moment)
            for item in todo:
                if item.target is None:
                    outcomes.settle(item, "there is no target of that name; add it with ./fluxgym alerts add NAME")
            _send_all(state, [item for item in todo if item.target], folder, outcomes, open_door or _door)
            signal.alarm(0)
            outcomes.finish(folder)


class _Outcomes:
    """Writes `alert.sent` and `alert.failed`."""

    def __init__(self, log: EventLog, reader: FolderReader, state: RunState, now: Callable[[], datetime]) -> None:
        self._patient = PatientLog(log)
        self._reader, self._state, self._now = reader, state, now

    def settle(self, item: Pending, error: str | None, *, final: bool = True) -> None:
        """Note how a try went; one that failed too late, or for good, is not tried again."""
        if error is not None and not final and age(item.news, self._now()) < LAST_TRY_SECONDS:
            return
        with contextlib.suppress(OSError):
            _read(self._reader, self._state)
        live = self._state.live_attempt
        masked = item.target.masked if item.target else ""
        data = {"name": item.name, "target": masked, "event": item.news.event, "kind": item.news.kind, "error": error}
        kind = "alert.sent" if error is None else "alert.failed"
        self._patient.append(kind, data, attempt=live.number if live else None)

    def finish(self, folder: RunFolder) -> None:
        """Wait until all of it is in the log, while there is one."""
        deadline = time.monotonic() + KEEP_SECONDS
        while not self._patient.flush() and folder.path.is_dir() and time.monotonic() < deadline:
            time.sleep(0.5)


def _send_all(state: RunState, todo: list[Pending], folder: RunFolder, outcomes: _Outcomes, open_door: Open) -> None:
    host = socket.gethostname()
    letters: dict[str, list[tuple[Pending, Message]]] = {}
    for item in todo:
        letters.setdefault(item.name, []).append((item, compose(state, item.news, folder, host)))
    done: queue.SimpleQueue[tuple[Pending, str | None, bool] | None] = queue.SimpleQueue()
    for mine in letters.values():
        threading.Thread(target=_send, args=(mine, open_door, done), daemon=True).start()
    left = len(letters)
    while left:  # each thread ends, or the alarm ends them all
        outcome = done.get()
        if outcome is None:
            left -= 1
        else:
            item, error, final = outcome
            outcomes.settle(item, error, final=final)


def _send(
    mine: list[tuple[Pending, Message]],
    open_door: Open,
    done: queue.SimpleQueue[tuple[Pending, str | None, bool] | None],
) -> None:
    """One target's messages in order; what follows one that failed waits for the next time, except where it failed for
    good."""
    try:
        for item, message in mine:
            error, final = _try(item, message, open_door)
            done.put((item, error, final))
            if error is not None and not final:
                return
    finally:
        done.put(None)


def _try(item: Pending, message: Message, open_door: Open) -> tuple[str | None, bool]:
    assert item.target is not None
    try:
        open_door(item.target).send(message)
    except DeliveryError as error:
        return str(error), error.final
    return None, True


def _door(target: Target) -> Door:
    from .deliver import Door as AppriseDoor

    return AppriseDoor(target)


def _usable(url: str) -> bool:
    try:
        _door(Target("new", url))
    except DeliveryError:
        return False
    return True


def _test(outputs: Path, name: str) -> str | None:
    try:
        _door(find_target(outputs, name)).send(trial_message(name, socket.gethostname()))
    except (DeliveryError, UserError) as error:
        return str(error)
    return None


def _read(reader: FolderReader, state: RunState) -> None:
    for event in reader.read_new():
        state.apply(event)


@contextmanager
def _alone(folder: RunFolder) -> Iterator[bool]:
    """Whether nobody else tells people of this run; True as well where the disk knows no locks."""
    fd = os.open(folder.alerts_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
    finally:
        os.close(fd)


def _answer(what: dict[str, object]) -> None:
    sys.stdout.write(orjson.dumps(what).decode())
    sys.stdout.flush()


def _leave() -> NoReturn:
    """End now: threads that Apprise gave up waiting for may hang for long."""
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
    _leave()
