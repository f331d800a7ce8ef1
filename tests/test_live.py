"""The app's reading of logs: what is new is folded in once, long curves are thinned without losing a spike."""

from __future__ import annotations

import math

from fluxcore.log import FolderReader
from studio.live import Curve, LiveRun, LiveRuns
from tests.fake_runs import FakeRun


def test_only_what_is_new_is_read(tmp_path, monkeypatch):
    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(50)
    run = LiveRun(fake.folder)
    run.refresh()
    assert run.state.step == 50 and len(run.points()["step"]) == 50
    counts = []
    read = FolderReader.read_new
    monkeypatch.setattr(FolderReader, "read_new", lambda self: counts.append(len(found := read(self))) or found)
    fake.steps(3)
    run.refresh()
    run.refresh()
    assert counts == [3, 0] and run.state.step == 53 and len(run.points()["step"]) == 53


def test_a_published_state_never_changes(tmp_path):
    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(5)
    run = LiveRun(fake.folder)
    run.refresh()
    before = run.state
    fake.steps(5)
    fake.sample()
    run.refresh()
    assert before.step == 5 and len(before.recent_seconds) == 5 and not before.samples
    assert run.state.step == 10 and len(run.state.samples) == 4


def test_a_resume_cuts_what_it_does_again():
    curve = Curve()
    for step in range(1, 11):
        curve.add(step, 1.0)
    for step in range(6, 9):
        curve.add(step, 0.5)
    assert list(curve.steps) == list(range(1, 9))
    assert list(curve.losses) == [1.0] * 5 + [0.5] * 3
    again = Curve()
    for step, loss in zip(curve.steps, curve.losses, strict=True):
        again.add(step, loss)
    assert list(again.means) == list(curve.means)


def test_the_mean_has_no_bias_and_survives_a_nan():
    curve = Curve()
    for step, loss in enumerate([2.0, math.nan, 2.0], 1):
        curve.add(step, loss)
    assert all(math.isclose(mean, 2.0) for mean in curve.means)
    assert curve.thinned()["loss"] == [2.0, None, 2.0]


def test_a_long_curve_is_thinned_and_keeps_its_spikes():
    curve = Curve()
    for step in range(1, 100_001):
        curve.add(step, 50.0 if step == 54_321 else 0.3 + (step % 7) / 100)
    points = curve.thinned()
    assert 300 < len(points["step"]) < 1000
    assert 50.0 in points["loss"] and points["step"][-1] == 100_000
    assert points["step"] == sorted(set(points["step"]))


def test_a_run_made_anew_under_its_name_is_read_anew(tmp_path):
    import shutil

    fake = FakeRun(tmp_path, "cat")
    fake.start(pid=1, create_time=1)
    fake.steps(5)
    runs = LiveRuns(tmp_path)
    assert runs.get("cat").state.step == 5
    shutil.move(tmp_path / "cat", tmp_path / ".old")
    runs.expire()
    assert runs.get("cat") is None
    FakeRun(tmp_path, "cat")
    runs.expire()
    assert runs.get("cat").state.step == 0
