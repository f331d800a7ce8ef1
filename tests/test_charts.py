"""Curves for charts: few points, no spike lost, a resume's steps once."""

import math
import random

import pytest

from fluxcore.history import charts, connect
from fluxcore.history.charts import step_curve
from fluxcore.log import EventLog


def write(outputs, losses, *, attempt=1, first=1):
    (outputs / "a").mkdir(exist_ok=True)
    with EventLog(outputs / "a", "trainer") as log:
        log.append("run.started", {"request": "cli-1:1", "pid": 1}, attempt=attempt)
        for step, loss in enumerate(losses, first):
            log.append("train.step", {"step": step, "loss": loss, "lr": 1e-4}, attempt=attempt)


def test_a_short_run_comes_whole(tmp_path):
    write(tmp_path, [3.0, 2.0, 1.0])
    with connect(tmp_path) as history:
        assert step_curve(history, "a").to_pylist() == [
            {"step": step, "value": value, "mean": value} for step, value in ((1, 3.0), (2, 2.0), (3, 1.0))
        ]
        assert step_curve(history, "nobody").num_rows == 0


def test_no_spike_is_lost_in_many_points(tmp_path):
    losses = [1.0 + math.sin(step / 700) * 0.1 for step in range(20_000)]
    losses[4321], losses[17_000] = 9.0, 0.001
    write(tmp_path, losses)
    with connect(tmp_path) as history:
        points = step_curve(history, "a", points=200).to_pylist()
    assert len(points) <= 200
    assert [point["step"] for point in points] == sorted(point["step"] for point in points)
    assert (4322, 9.0) in {(point["step"], point["value"]) for point in points}
    assert (17_001, 0.001) in {(point["step"], point["value"]) for point in points}
    assert all(point["mean"] < 1.2 for point in points)


def test_what_is_not_finite_is_left_out(tmp_path):
    write(tmp_path, [1.0, math.nan, math.inf, -math.inf, 2.0])
    with connect(tmp_path) as history:
        assert [point["step"] for point in step_curve(history, "a").to_pylist()] == [1, 5]


def test_a_resume_draws_its_steps_once(tmp_path):
    write(tmp_path, [1.0] * 10)
    write(tmp_path, [5.0] * 10, attempt=2, first=6)
    with connect(tmp_path) as history:
        values = [point["value"] for point in step_curve(history, "a").to_pylist()]
    assert values == [1.0] * 5 + [5.0] * 10


def test_other_columns_and_wrong_ones(tmp_path):
    write(tmp_path, [1.0, 2.0])
    with connect(tmp_path) as history:
        assert [point["value"] for point in step_curve(history, "a", "lr").to_pylist()] == [1e-4, 1e-4]
        with pytest.raises(ValueError, match="not one of"):
            step_curve(history, "a", "loss; DROP TABLE x")


def test_a_curve_that_grew_is_the_curve_read_anew(tmp_path, monkeypatch):
    """Steps come late, are redone, and grow past the stretches that were kept."""
    monkeypatch.setattr(charts, "_STRETCHES", 256)
    (tmp_path / "a").mkdir()
    rng = random.Random(7)
    with EventLog(tmp_path / "a", "trainer") as log, connect(tmp_path) as history:
        at, attempt = 0, 0
        for _ in range(12):
            if not attempt or rng.random() < 0.3:
                attempt += 1
                log.append("run.started", {"request": f"cli-1:{attempt}", "pid": 1}, attempt=attempt)
                at = max(0, at - rng.randrange(100))
            for _ in range(rng.randrange(300)):
                at += rng.choice([1, 1, 1, 3])
                log.append("train.step", {"step": at, "loss": rng.choice([rng.random(), math.nan])}, attempt=attempt)
            history.refresh()
            step_curve(history, "a")
            kept = history.curves._curves["a", "loss"]
            with connect(tmp_path) as anew, anew.ready() as database:
                assert rounded(kept.stretches) == rounded(charts._stretches(database, "a", "loss", kept.shift, True))
        assert at > 4 * 256


def rounded(stretches):
    return [{**row, "total": round(row["total"], 9)} for row in stretches.to_pylist()]
