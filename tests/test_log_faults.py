"""A fault at every system call of an append: nothing acknowledged is lost, nothing raises into the trainer's loop."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxcore.log import EventLog, FolderReader, PatientLog, writer

CALLS = ("open", "fstat", "stat", "pread", "write", "fdatasync", "ftruncate", "close", "flock")


class Faulty:
    """A module whose calls in CALLS are counted over all such modules; those in `at` fail with `fault`."""

    count = 0
    failed = 0

    def __init__(self, module: Any, at: range, fault: str) -> None:
        self._module, self._at, self._fault = module, at, fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        return self._watched(name, real) if name in CALLS else real

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            index = Faulty.count
            Faulty.count += 1
            if index not in self._at:
                return real(*arguments)
            Faulty.failed += 1
            if self._fault == "short":
                if name != "write":
                    return real(*arguments)
                return real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self._fault == "all but the newline":
                if name == "write":
                    real(arguments[0], arguments[1][:-1])
                    raise OSError(errno.EIO, "Input/output error")  # a network file system may say so late
                return real(*arguments)
            if name == "close":
                real(*arguments)  # the kernel closes it in any case
            raise OSError(getattr(errno, self._fault), os.strerror(getattr(errno, self._fault)))

        return call


def install(monkeypatch: pytest.MonkeyPatch, at: range, fault: str) -> None:
    Faulty.count = Faulty.failed = 0
    monkeypatch.setattr(writer, "os", Faulty(os, at, fault))
    monkeypatch.setattr(writer, "fcntl", Faulty(fcntl, at, fault))


def torn(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b'{"v":1,"ts":"2026')


def some_appends(append: Callable[[int], None], folder: Path) -> None:
    for i in range(5):
        if i == 2:
            torn(folder / "events.jsonl")
        append(i)


FAULTS = ("ENOSPC", "EIO", "EINTR", "ENOLCK", "short", "all but the newline")


@pytest.mark.parametrize("lasting", [1, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_acknowledged_is_read_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, lasting: int
) -> None:
    for first in range(200):
        folder = tmp_path / f"run-{first}"
        folder.mkdir()
        log = EventLog(folder, "cli", lock_deadline=0)
        acknowledged: list[tuple[str, int]] = []

        def append(i: int, log: EventLog = log, acknowledged: list[tuple[str, int]] = acknowledged) -> None:
            try:
                event = log.append("run.noted", {"note": i}, durable=i % 2 == 0)
            except OSError:
                return
            acknowledged.append((event.id, i))

        with monkeypatch.context() as patch:
            install(patch, range(first, first + lasting), fault)
            some_appends(append, folder)
            calls, failed = Faulty.count, Faulty.failed
        append(98)
        append(99)
        log.close()
        found = [(event.id, event.data["note"]) for event in FolderReader(folder).read_new()]
        assert set(acknowledged) <= set(found), f"{fault} at call {first}"
        assert len({id for id, _ in found}) == len(found), f"{fault} at call {first}: a number was used twice"
        assert [note for _, note in acknowledged][-2:] == [98, 99], "it recovers by itself"
        if not failed:
            assert first >= calls, "every call has had its fault"
            return
    raise AssertionError("more calls than expected")


@pytest.mark.parametrize("fault", FAULTS)
def test_the_trainers_log_never_raises_and_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for first in range(0, 60, 3):
        folder = tmp_path / f"run-{first}"
        folder.mkdir()
        now = [0.0]
        patient = PatientLog(EventLog(folder, "trainer", lock_deadline=0), clock=lambda now=now: now[0])

        def append(i: int, patient: PatientLog = patient, now: list[float] = now) -> None:
            now[0] += 0.5
            patient.append("train.step", {"step": i})

        with monkeypatch.context() as patch:
            install(patch, range(first, first + 6), fault)
            some_appends(append, folder)
        now[0] += 10
        append(5)
        found = [event.data["step"] for event in FolderReader(folder).read_new()]
        assert patient.waiting == 0 and patient.dropped == 0
        assert sorted(set(found)) == list(range(6)), f"{fault} from call {first}"
        assert list(dict.fromkeys(found)) == list(range(6)), "in order"
