"""Numbers in words, and the end of a file: one of each for app, command line, library and runner."""

from __future__ import annotations

import math

import pytest

from fluxcore.tail import last_line, last_lines
from fluxcore.units import duration, gib, loss, pace, plural, size


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_700, "1 MB"), (38_200_000, "38.2 MB"), (1.5e9, "1.5 GB"),
     (2e12, "2 TB")],
)  # fmt: skip
def test_size(count, said):
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "not known"), (math.nan, "not known"), (0.4, "0 s"), (59.6, "1 min"), (99, "1 min 39 s"), (605, "10 min"),
     (7500, "2 h 05 min"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_the_others():
    assert duration(None, unknown="") == ""
    assert (pace(None), pace(0.4), pace(3.1)) == ("not known", "2.5 it/s", "3.1 s/it")
    assert (loss(None), loss(0.12345), loss(math.nan)) == ("–", "0.123", "nan")
    assert (plural(1, "picture"), plural(1200, "picture")) == ("1 picture", "1,200 pictures")


def test_the_end_of_a_file(tmp_path):
    log = tmp_path / "train.log"
    assert last_lines(log, 5) == [] and last_line(log) == ""
    log.write_bytes(b"")
    assert last_lines(log, 5) == []
    log.write_bytes(b"one\r\n1%\r2%\r3%\n\n\xff end \n\n")
    assert last_lines(log, 5) == ["one", "3%", "", "\ufffd end"]
    assert last_lines(log, 1) == ["\ufffd end"] and last_lines(log, 0) == []
    assert last_lines(log, 5, offset=5) == ["3%", "", "\ufffd end"]
    assert last_lines(log, 5, offset=10_000) == []
    assert last_line(log) == "\ufffd end"


def test_of_a_long_file_only_the_end_is_read(tmp_path):
    log = tmp_path / "train.log"
    with open(log, "wb") as file:
        file.truncate(10**12)  # sparse: reading it whole would never end
        file.seek(0, 2)
        file.write(b"\nlast\n")
    assert last_line(log) == "last" and len(last_lines(log, 10)) == 2


def test_little_room_is_said_in_mib() -> None:
    assert [gib(value * 2**30) for value in (0.07, 0.25, 1.3, 41.2)] == ["72 MiB", "0.25 GiB", "1.3 GiB", "41 GiB"]
