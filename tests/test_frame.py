"""A run's steps straight out of its log: the same as the `steps` view."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import fluxcore
from fluxcore.errors import UserError
from fluxcore.history import connect
from fluxcore.history.frame import COLUMNS, read_steps
from fluxcore.log import EventLog

ODD = [0.5, None, math.nan, math.inf, "text", True, 3, 1e300]


def make_run(outputs: Path, name: str = "cat") -> Path:
    folder = outputs / name
    folder.mkdir()
    with EventLog(folder, "trainer") as log:
        for attempt, first in ((1, 1), (2, 4)):
            for step in range(first, first + 8):
                data = {"step": step, "total_steps": 11, "epoch": 1.0, "loss": ODD[step % 8], "lr": 1e-4}
                log.append("train.step", data | {"grad_norm": attempt}, attempt=attempt)
            log.append("phase.started", {"phase": "save"}, attempt=attempt)
        log.append("train.step", {"loss": 1.0}, attempt=2)
    return folder


def test_it_is_what_the_view_shows(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with connect(tmp_path) as history:
        view = history.query(f"SELECT {', '.join(COLUMNS)} FROM steps ORDER BY step")
    rows = read_steps(folder, COLUMNS).to_pylist()
    assert repr(rows) == repr(view) and len(rows) == 12
    assert {row["attempt"] for row in rows} == {1, 2}


def test_the_front_door(tmp_path: Path) -> None:
    make_run(tmp_path)
    frame = fluxcore.load_steps("cat", outputs=tmp_path)
    assert frame.column_names == ["step", "epoch", "ts", "loss", "lr", "grad_norm"] and frame["step"][0].as_py() == 1
    with pytest.raises(UserError, match="no column of the steps; there are attempt, ts, step"):
        fluxcore.load_steps("cat", ["nonsense"], outputs=tmp_path)
    with pytest.raises(UserError, match="name at least one column of the steps; there are attempt, ts, step"):
        fluxcore.load_steps("cat", [], outputs=tmp_path)
    with pytest.raises(UserError, match="there is no run 'dog'"):
        fluxcore.load_steps("dog", outputs=tmp_path)


def test_a_run_without_steps(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with EventLog(folder, "cli") as log:
        log.append("run.noted", {"note": "x"})
        assert read_steps(folder).num_rows == 0
