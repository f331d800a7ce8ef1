"""The app compacts finished runs by itself: enough of them, one process at a time, not for ever."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fluxcore.history import connect
from fluxcore.log import EventLog
from studio.compacting import ENOUGH_RUNS, LOOK_SECONDS, PAUSE_SECONDS, Compactor, start_compaction


def finished_run(outputs: Path, name: str) -> None:
    (outputs / name).mkdir()
    with EventLog(outputs / name, "cli") as log:
        config = log.append("config.saved", {"config": {"lora_name": name, "base_model": "flux-mini"}})
        request = log.append("run.requested", {"config": config.id})
        log.append("run.started", {"request": request.id, "pid": 1}, attempt=1)
        log.append("run.completed", {"weights": f"{name}.safetensors", "steps": 1}, attempt=1)


def test_enough_finished_runs_are_compacted_once(tmp_path: Path) -> None:
    now, started, ended = 0.0, list[Path](), None
    process: Any = SimpleNamespace(poll=lambda: ended)

    def start(outputs: Path) -> Any:
        started.append(outputs)
        return process

    compactor = Compactor(tmp_path, lambda: now, start)
    for number in range(ENOUGH_RUNS - 1):
        finished_run(tmp_path, f"run-{number}")
    with connect(tmp_path) as history:
        now = LOOK_SECONDS
        compactor.look(history)
        assert started == [], "too few"
        finished_run(tmp_path, "last")
        history.refresh()
        compactor.look(history)
        assert started == [], "it looked a moment ago"
        now *= 2
        compactor.look(history)
        now += PAUSE_SECONDS
        compactor.look(history)
        assert started == [tmp_path], "the first one still works"
        ended = 1
        compactor.look(history)
        assert started == [tmp_path] * 2, "it failed: once more, later"


def test_the_process_does_it(tmp_path: Path) -> None:
    finished_run(tmp_path, "run")
    with connect(tmp_path) as running:
        assert running.uncompacted() == ["run"]
        assert start_compaction(tmp_path).wait(60) == 0
        running.refresh()
        assert running.uncompacted() == [], "it goes on with the log that it has read, and asks for nothing more"
    with connect(tmp_path) as history:
        assert history.compacted == {"run"} and history.rows["run"]["state"] == "completed"
