"""What does not fit into a line lies in a side file that the event names, and nothing of it is lost."""

import errno
import math
import os

import pytest

from fluxcore.history import connect
from fluxcore.log import EventLog, read_events, side_data
from fluxcore.log.event import MAX_LINE_BYTES
from fluxcore.runs import fold

EVIDENCE = {"stacks": ["frame " * 100] * 1000, "seconds": math.inf}


def test_a_long_event_is_whole_in_its_side_file(tmp_path):
    folder = tmp_path / "cat"
    folder.mkdir()
    data = {"reason": "crash", "tail": "line\n" * 100_000, "evidence": EVIDENCE, "exit_code": None}
    with EventLog(folder, "runner") as log:
        written = log.append("run.failed", data)
        log.append("run.noted", {"note": "after"})
    failed, noted = read_events(folder)
    assert failed == written and (noted.n, failed.n) == (2, 1)
    assert failed.data["side_file"] == f"events-side/{log.writer}-1.json"
    assert failed.data["side_fields"] == ["tail", "evidence"]
    assert failed.data["reason"] == "crash" and failed.data["tail"] == data["tail"][:4096]
    found = side_data(folder, failed.data["side_file"])
    assert found["tail"] == data["tail"] and found["evidence"] == {**EVIDENCE, "seconds": "inf"}
    assert fold("cat", [failed]).reason == "crash"
    with connect(tmp_path) as history:  # the side file is no log
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 2}]


def test_many_short_fields_are_put_aside_too(tmp_path):
    data = {f"field-{i}": "x" * 1000 for i in range(400)}
    with EventLog(tmp_path, "runner") as log:
        event = log.append("run.stalled", data)
    assert set(event.data) == {"side_file", "side_fields"}
    assert data.items() <= side_data(tmp_path, event.data["side_file"]).items()


def test_an_event_that_is_not_written_leaves_no_side_file(tmp_path, monkeypatch):
    log = EventLog(tmp_path, "runner")
    log.append("run.noted", {"note": "a"})
    real = os.write

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fluxcore.log.writer.os.write", full)
    with pytest.raises(OSError, match="No space"):
        log.append("run.stalled", {"evidence": EVIDENCE})
    monkeypatch.setattr("fluxcore.log.writer.os.write", real)
    assert not list((tmp_path / "events-side").iterdir())
    assert log.append("run.stalled", {"evidence": EVIDENCE}).n == 2


@pytest.mark.parametrize(
    "name", ["../../secret.json", "/etc/passwd", "events-side/../x.json", 7, "events-side/no.json"]
)
def test_a_side_file_is_only_looked_for_where_it_belongs(tmp_path, name):
    folder = tmp_path / "cat"
    (folder / "events-side").mkdir(parents=True)
    (tmp_path / "x.json").write_text('{"a": 1}')
    with EventLog(folder, "runner") as log:
        event = log.append("run.stalled", {"verdict": "silent", "side_file": name})
    assert side_data(folder, event.data["side_file"]) == {}


def test_a_line_just_below_the_limit_is_a_line(tmp_path):
    with EventLog(tmp_path, "runner") as log:
        event = log.append("run.noted", {"note": "x" * (MAX_LINE_BYTES - 300)})
    assert "side_file" not in event.data and read_events(tmp_path) == [event]
