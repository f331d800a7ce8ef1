"""The app's reading of logs: what is new is folded in once, and a chart is thinned without losing a spike."""

from __future__ import annotations

import math
import shutil

import numpy as np

from fluxcore.history.compaction import compact
from fluxcore.log import FolderReader
from studio import charts, step_charts
from studio.live import LiveRuns
from tests.fake_runs import FakeRun


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(50)
    runs = LiveRuns(tmp_path)
    run = runs.get("cat")
    assert run.state.step == 50 and len(run.curve()) == 50
    counts = []
    read = FolderReader.read_new
    monkeypatch.setattr(FolderReader, "read_new", lambda self: counts.append(len(found := read(self))) or found)
    fake.steps(3)
    for _ in range(2):
        runs.expire()
        assert runs.get("cat") is run
    assert counts == [3] and run.state.step == 53 and len(run.curve()) == 53


def test_a_published_state_never_changes(tmp_path):
    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(5)
    runs = LiveRuns(tmp_path)
    before = runs.get("cat").state
    fake.steps(5)
    fake.sample()
    fake.append("trainer", "dataset.changed", {"notice": "Other pictures."})
    runs.expire()
    after = runs.get("cat").state
    assert after.notices and not before.notices
    assert before.step == 5 and len(before.recent_seconds) == 5 and not before.samples
    assert after.step == 10 and len(after.samples) == 4
    assert runs.get("cat").state is after, "a quiet log is folded and copied once"


def test_a_resume_is_drawn_once(tmp_path):
    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(10)
    fake.append("runner", "run.stopped", {"reason": "user", "resume_checkpoint": "x", "resume_step": 5})
    fake.step = 5
    fake.start(pid=1, create_time=1, resume_step=5)
    fake.steps(3)
    run = LiveRuns(tmp_path).get("cat")
    assert run.curve()["step"].to_pylist() == list(range(1, 11))
    assert [(mark.step, mark.kind, mark.text) for mark in step_charts.marks(run.state)] == [(5, "attempt", "attempt 2")]


def test_the_mean_has_no_bias_and_survives_a_nan():
    means = charts.smooth(np.array([1, 2, 3]), np.array([2.0, math.nan, 2.0]), 0.9)
    assert np.allclose(means, 2.0)
    values = np.array([1.0, 5.0, 3.0])
    assert (charts.smooth(np.array([1, 2, 3]), values, 0.0) == values).all()


def test_a_long_and_a_short_run_are_smoothed_alike():
    noisy = np.tile([0.0, 1.0], 500)
    short = charts.smooth(np.arange(1, 1001), noisy, 0.9)
    long = charts.smooth(np.arange(1, 1001) * 1000, noisy, 0.9)
    assert np.allclose(short, long, atol=0.01) and 0.4 < short[-1] < 0.6


def test_a_run_made_anew_under_its_name_is_read_anew(tmp_path):
    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(5)
    runs = LiveRuns(tmp_path)
    assert runs.get("cat").state.step == 5
    shutil.move(tmp_path / "cat", tmp_path / ".old")
    runs.expire()
    assert runs.get("cat") is None and runs.all() == []
    FakeRun(tmp_path, "cat")
    runs.expire()
    assert runs.get("cat").state.step == 0


def test_a_compacted_run_is_listed_without_its_log(tmp_path, monkeypatch):
    for name in ("done", "live"):
        fake = FakeRun(tmp_path, name)
        fake.start(pid=1, create_time=1)
        fake.steps(20)
        if name == "done":
            fake.append("runner", "run.completed", {"weights": None, "steps": 20})
    compact(tmp_path)
    read = []
    monkeypatch.setattr("fluxcore.history.engine.load_run", lambda outputs, name: read.append(name) or 1 / 0)
    runs = LiveRuns(tmp_path)
    live, done = runs.all()
    assert (live.name, live.is_busy, done.name, done.is_busy, done.row["step"]) == ("live", True, "done", False, 20)
    assert len(done.curve()) == 20 and not read
    monkeypatch.undo()
    assert done.state.state == "completed"
