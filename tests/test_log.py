"""Appending and reading: torn tails, full disks, stopped neighbours, bad lines."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies
import pytest

from fluxcore.log import Event, EventError, EventLog, FolderReader, LogReader, PatientLog, read_events
from fluxcore.log.event import MAX_LINE_BYTES, decode, encode

WRITER = """
import sys
from pathlib import Path
from fluxcore.log import EventLog
log = EventLog(Path(sys.argv[1]), "cli")
size = int(sys.argv[2])
while True:
    event = log.append("run.noted", {"note": "x" * size}, durable=False)
    print(event.id, flush=True)
"""


def test_an_event_is_one_line_in_the_contracts_form(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "trainer", run="my-cat", writer="trainer-1-ab", attempt=2)
    log.append("train.step", {"step": 1})
    log.append("run.noted", {"note": "süß"}, attempt=None)
    first, second = (tmp_path / "events.jsonl").read_bytes().splitlines()
    raw = json.loads(first)
    assert list(raw) == ["v", "ts", "run", "type", "source", "writer", "n", "attempt", "data"]
    assert raw["v"] == 1 and raw["n"] == 1 and raw["attempt"] == 2 and raw["ts"].endswith("Z") and len(raw["ts"]) == 27
    assert json.loads(second)["n"] == 2


def test_numbers_that_are_not_finite_are_kept_as_words(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "trainer")
    log.append("train.step", {"loss": math.nan, "deep": [math.inf, {"x": -math.inf}], "none": None, "fine": 1.5})
    (event,) = read_events(tmp_path)
    assert event.data == {"loss": "nan", "deep": ["inf", {"x": "-inf"}], "none": None, "fine": 1.5}


def test_a_torn_tail_is_closed_so_that_the_next_event_is_not_lost_with_it(tmp_path: Path) -> None:
    EventLog(tmp_path, "cli").append("run.noted", {"note": "a"})
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"v":1,"ts":"2026-')
    EventLog(tmp_path, "cli").append("run.noted", {"note": "b"})
    reader = LogReader(tmp_path / "events.jsonl")
    assert [event.data["note"] for event in reader.read_new()] == ["a", "b"]
    assert reader.bad_lines == 1


@pytest.mark.parametrize("size", [200, 5_000, 200_000])
def test_no_acknowledged_event_is_lost_by_kills_of_two_writers(tmp_path: Path, size: int) -> None:
    acknowledged: set[str] = set()
    for _ in range(4):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(size)], stdout=subprocess.PIPE, bufsize=0
            )
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            acknowledged.add(writer.stdout.readline().decode().strip())  # it is at it
        time.sleep(0.2)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer in writers:
            assert writer.stdout is not None
            # The last line may be half there: it was not acknowledged.
            acknowledged.update(writer.stdout.read().decode().split("\n")[:-1])
            writer.wait()
    found = {event.id for event in read_events(tmp_path)}
    assert len(acknowledged) > 8
    assert acknowledged <= found


def test_a_short_write_is_cut_off_again_and_the_number_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, "cli")
    log.append("run.noted", {"note": "a"})
    before = (tmp_path / "events.jsonl").read_bytes()
    real = os.write
    calls = []

    def full_disk(fd: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match="space"):
        log.append("run.noted", {"note": "b"})
    assert (tmp_path / "events.jsonl").read_bytes() == before
    monkeypatch.setattr(os, "write", real)
    assert log.append("run.noted", {"note": "c"}).n == 2


def test_an_event_that_could_not_be_made_durable_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, "cli")

    def broken_disk(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken_disk)
        with pytest.raises(OSError, match="Input"):
            log.append("config.saved", {"config": {}})
    assert read_events(tmp_path) == []
    assert log.append("config.saved", {"config": {}}).n == 1


def test_a_stopped_holder_of_the_lock_blocks_nobody_for_ever(tmp_path: Path) -> None:
    EventLog(tmp_path, "cli").append("run.noted", {"note": "a"})
    with open(tmp_path / "events.jsonl", "ab") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        EventLog(tmp_path, "cli", lock_deadline=0.05).append("run.noted", {"note": "b"})
    reader = FolderReader(tmp_path)
    assert [event.data["note"] for event in reader.read_new()] == ["a", "b"]
    assert reader.bad_lines == 0  # the empty line before b is none


def test_a_stopped_holder_is_waited_for_once_and_not_by_each_append(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "cli", lock_deadline=0.3)
    log.append("run.noted", {"note": "a"})
    for _ in range(2):  # the second time after it was had in between: then it is worth waiting again
        with open(tmp_path / "events.jsonl", "ab") as holder:
            fcntl.flock(holder, fcntl.LOCK_EX)
            started = time.monotonic()
            for _ in range(5):
                log.append("run.noted", {"note": "b"})
            assert 0.3 <= time.monotonic() - started < 0.6
        log.append("run.noted", {"note": "c"})
    assert len(read_events(tmp_path)) == 13


def test_where_there_are_no_locks_each_writer_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = EventLog(tmp_path, "cli", now=lambda: "2026-01-01T00:00:00.000001Z")
    first.append("run.noted", {"note": "a"})

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    second = EventLog(tmp_path, "trainer", writer="trainer-7-cd", now=lambda: "2026-01-01T00:00:00.000000Z")
    second.append("train.step", {"step": 1})
    second.append("train.step", {"step": 2})
    assert (tmp_path / "events.trainer-7-cd.jsonl").exists()
    assert [event.type for event in read_events(tmp_path)] == ["train.step", "train.step", "run.noted"]


def test_a_replaced_file_is_not_written_into_any_more(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "cli")
    log.append("run.noted", {"note": "a"})
    (tmp_path / "events.jsonl").rename(tmp_path / "gone")
    log.append("run.noted", {"note": "b"})
    assert [event.data["note"] for event in read_events(tmp_path)] == ["b"]


def test_too_large_or_unwritable_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "cli")
    with pytest.raises(EventError, match="over the log's limit"):
        log.append("config.saved", {"config": {"lora_name": "x" * MAX_LINE_BYTES}})
    with pytest.raises(EventError, match="not JSON"):
        log.append("run.noted", {"note": object()})
    assert log.append("run.noted", {"note": "a"}).n == 1


def test_a_half_line_is_left_for_later_and_a_cut_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(tmp_path, "cli")
    lines = [encode(log.append("run.noted", {"note": str(i)})) for i in range(3)]
    path.write_bytes(lines[0] + lines[1][:20])
    reader = LogReader(path)
    assert [event.n for event in reader.read_new()] == [1]
    assert reader.read_new() == []
    path.write_bytes(b"".join(lines))
    assert [event.n for event in reader.read_new()] == [2, 3]
    path.write_bytes(lines[2])
    assert [event.n for event in reader.read_new()] == [3]


def test_a_file_that_was_written_anew_in_place_is_read_anew(tmp_path: Path) -> None:
    """The same inode, and longer than before: as where a file system gives a deleted log's inode to the next."""
    path, reader = tmp_path / "events.jsonl", LogReader(tmp_path / "events.jsonl")
    log = EventLog(tmp_path, "cli", now=lambda: "2026-11-29T10:00:00.000000Z")
    log.append("run.noted", {"note": "old"})
    assert len(reader.read_new()) == 1 and reader.restarts == 0
    other = EventLog(tmp_path / "..", "cli", run=tmp_path.name, writer=log.writer)
    lines = [encode(other.append("run.noted", {"note": f"new {n}"})) for n in range(3)]
    with open(path, "r+b") as file:
        file.write(b"".join(lines))
    assert [event.data["note"] for event in reader.read_new()] == ["new 0", "new 1", "new 2"]
    assert reader.restarts == 1 and reader.read_new() == []


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[]", b"null", b"{", b'{"ts":1}', b"\xff\xfe", b'{"v":1,"ts":"a","run":"r","type":"t","source":"s",'
     b'"writer":"w","n":"1","data":{}}'],
)  # fmt: skip
def test_bad_lines_are_counted_and_never_fatal(tmp_path: Path, line: bytes) -> None:
    EventLog(tmp_path, "cli").append("run.noted", {"note": "a"})
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b"\n" + b"\0\0" + path.read_bytes())
    reader = LogReader(path)
    assert len(reader.read_new()) == 1
    assert reader.bad_lines == 1
    with pytest.raises(EventError):
        decode(line)


def test_what_others_wrote_meanwhile_is_never_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, "cli")

    def slow_broken_disk(fd: int) -> None:
        with open(tmp_path / "events.jsonl", "ab") as other:  # one who did not wait for the lock
            other.write(b"\n" + encode(other_event))
        raise OSError(errno.EIO, "Input/output error")

    other_event = EventLog(tmp_path / "..", "app", run="x", writer="app-1-aa").append("run.noted", {"note": "theirs"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", slow_broken_disk)
        with pytest.raises(OSError, match="Input"):
            log.append("config.saved", {"config": {}})
    assert log.append("run.noted", {"note": "next"}).n == 2
    assert [(event.source, event.n) for event in read_events(tmp_path)] == [("cli", 1), ("app", 1), ("cli", 2)]


def test_a_waiting_event_keeps_the_time_at_which_it_happened(tmp_path: Path) -> None:
    times = iter(f"2026-01-01T00:00:{second:02d}.000000Z" for second in range(10))
    folder = tmp_path / "run"
    patient = PatientLog(EventLog(folder, "trainer", now=lambda: next(times)), clock=lambda: 0.0)
    patient.append("train.step", {"step": 1})
    patient.append("train.step", {"step": 2})
    folder.mkdir()
    assert patient.drain(5)
    assert [event.ts[17:19] for event in read_events(folder)] == ["00", "01"]


def test_what_waits_too_long_gives_up_steps_first_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    patient = PatientLog(EventLog(folder, "trainer"), capacity=3, clock=lambda: 0.0)
    patient.append("checkpoint.saved", {"path": "cat-state"})
    for step in range(1, 5):
        patient.append("train.step", {"step": step})
    assert patient.dropped == 2 and [record.message for record in caplog.records if "given up" in record.message]
    folder.mkdir()
    assert patient.drain(5)
    assert [(event.type, event.data.get("step")) for event in read_events(folder)] == [
        ("checkpoint.saved", None),
        ("train.step", 3),
        ("train.step", 4),
    ]


def test_a_new_logs_name_is_made_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr("fluxcore.log.writer.sync_folder", synced.append)
    with EventLog(tmp_path, "cli") as log:
        log.append("run.noted", {"note": "a"})
        log.append("run.noted", {"note": "b"})
    assert synced == [tmp_path]


@hypothesis.given(
    hypothesis.strategies.lists(hypothesis.strategies.integers(0, 60), max_size=30),
    hypothesis.strategies.lists(hypothesis.strategies.sampled_from([b"good", b"torn", b"", b"\0\0"]), max_size=20),
)
def test_a_reader_gives_each_whole_line_once_however_it_grows(cuts: list[int], kinds: list[bytes]) -> None:
    lines = [
        encode(Event("2026-11-29T10:00:00.000000Z", "cat", "run.noted", "cli", "cli-1-aa", n, {"note": "x" * n}))
        if kind == b"good"
        else kind + b"\n"
        for n, kind in enumerate(kinds, 1)
    ]
    whole, found = b"".join(lines), list[int]()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "events.jsonl"
        reader, at = LogReader(path), 0
        with open(path, "ab") as file:
            for cut in [*cuts, len(whole)]:  # as a slow disk shows it: some bytes at a time
                file.write(whole[at : at + cut])
                file.flush()
                at += cut
                found += [event.n for event in reader.read_new()]
    assert found == [n for n, kind in enumerate(kinds, 1) if kind == b"good"]
    assert reader.bad_lines == kinds.count(b"torn") and not reader.behind


def test_a_patient_log_never_raises_and_keeps_the_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    folder = tmp_path / "run"
    patient = PatientLog(EventLog(folder, "trainer"), clock=lambda: now[0])
    for step in range(3):
        patient.append("train.step", {"step": step})  # the folder is not there: OSError inside
    assert patient.waiting == 3
    assert len([record for record in caplog.records if "can't be written" in record.message]) == 1  # said once
    folder.mkdir()
    now[0] = 2.0
    patient.append("train.step", {"step": 3})
    assert patient.waiting == 0
    assert [event.data["step"] for event in read_events(folder)] == [0, 1, 2, 3]
    assert [event.n for event in read_events(folder)] == [1, 2, 3, 4]


def test_a_log_that_was_replaced_is_noticed_by_events_that_wait_for_no_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxcore.log.writer.LOOK_SECONDS", 0.01)
    log = EventLog(tmp_path, "trainer")
    log.append("train.step", {"step": 1})
    (tmp_path / "events.jsonl").rename(tmp_path / "gone")
    time.sleep(0.02)
    log.append("train.step", {"step": 2})
    assert [event.data["step"] for event in read_events(tmp_path)] == [2]


def test_a_writer_faster_than_its_reader_keeps_nobody_from_coming_back(tmp_path: Path, monkeypatch) -> None:
    with EventLog(tmp_path, "trainer") as log:
        for step in range(100):
            log.append("train.step", {"step": step})
        reader = LogReader(tmp_path / "events.jsonl")
        decode, read_lines = LogReader.decode, LogReader.read_lines

        def slow(self, line):
            for _ in range(2):
                log.append("train.step", {"step": 0})
            return decode(self, line)

        monkeypatch.setattr(LogReader, "decode", slow)
        monkeypatch.setattr(LogReader, "read_lines", lambda self: read_lines(self, 1000))
        first = reader.read_new()
        assert 100 <= len(first) < 110 and reader.behind
        monkeypatch.undo()
        assert len(reader.read_new()) > 200 and not reader.behind
