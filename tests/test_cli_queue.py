"""`queue`, `queue pause`, `queue resume`, and what `status` says of runs that wait or were refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cli_tools import call, orders, pictures, served, state, until

from fluxcore.runs import pause_queue, read_installation, request_start
from fluxcore.runs.supervision import ensure_runner, runner_alive
from runner.waiting import PAUSED


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from cli_tools import STUB

    monkeypatch.setenv("FLUXGYM_TRAINER", STUB)
    monkeypatch.delenv("FLUXGYM_CPU_SLOTS", raising=False)
    with served(tmp_path / "outputs") as folder:
        yield folder


def new(capsys, outputs: Path, *names: str, **settings: object) -> None:
    given = [item for key, value in settings.items() for item in ("--set", f"{key}={value}")]
    for name in names:
        answer = call(capsys, "new", name, "--images", pictures(outputs.parent / "p"), "--outputs", outputs, *given)
        assert answer.code == 0, answer.err


def test_nothing_waits(capsys, outputs: Path) -> None:
    answer = call(capsys, "queue", "--outputs", outputs)
    assert answer.code == 0 and answer.out == f"no run waits in {outputs}\n"
    assert call(capsys, "queue", "--json", "--outputs", outputs).json() == []
    assert call(capsys, "queue", "stop", "--outputs", outputs).code == 64


def test_what_waits_is_shown_with_place_and_reason(capsys, outputs: Path) -> None:
    new(capsys, outputs, "first", "second", "third")
    orders(outputs, "first", steps=100_000, step_seconds=0.02)
    ensure_runner(outputs)
    for name in ("first", "second", "third"):
        request_start(outputs, name, "cli")
        until(lambda name=name: state(outputs, name).state == "running" or state(outputs, name).queue_position)
    rows = call(capsys, "queue", "--json", "--outputs", outputs).json()
    assert [(row["position"], row["run"], row["waiting_for"]) for row in rows] == [
        (1, "second", "the machine, used by first"),
        (2, "third", "the machine, used by first"),
    ]
    shown = call(capsys, "queue", "--outputs", outputs).out
    assert "second" in shown and "the machine, used by first" in shown and "paused" not in shown
    assert "waits for the machine, used by first" in call(capsys, "status", "--outputs", outputs).out
    detail = call(capsys, "status", "third", "--outputs", outputs).out
    assert "position           2" in detail and "the machine, used by first" in detail
    for name in ("third", "second", "first"):
        assert call(capsys, "stop", name, "--wait", "--outputs", outputs).code == 0


def test_pause_and_resume(capsys, outputs: Path) -> None:
    new(capsys, outputs, "cat")
    runner = ensure_runner(outputs)
    assert call(capsys, "queue", "pause", "--reason", "a talk", "--outputs", outputs).code == 0
    assert read_installation(outputs).reason == "a talk"
    assert "the queue is paused" in call(capsys, "start", "cat", "--outputs", outputs).err
    until(lambda: state(outputs, "cat").waiting_for == PAUSED)
    shown = call(capsys, "queue", "--outputs", outputs).out
    assert "the queue is paused since" in shown and "(a talk)" in shown and "./fluxgym queue resume" in shown
    asked = time.monotonic()
    assert call(capsys, "queue", "resume", "--outputs", outputs).code == 0
    until(lambda: state(outputs, "cat").state == "completed")
    assert time.monotonic() - asked < 4, "the runner hears of it at once, not at its next look around"
    after = runner_alive(outputs)
    assert after is not None and after.pid == runner.pid


def test_resume_starts_a_runner_where_something_waits_and_none_lives(capsys, outputs: Path) -> None:
    new(capsys, outputs, "cat")
    pause_queue(outputs, "cli")
    request_start(outputs, "cat", "cli")
    assert "a runner (none is alive)" in call(capsys, "queue", "--outputs", outputs).out
    assert call(capsys, "queue", "resume", "--outputs", outputs).code == 0
    until(lambda: state(outputs, "cat").state == "completed")


def test_a_refusal_is_shown(capsys, outputs: Path) -> None:
    new(capsys, outputs, "cat", base_model="flux-dev", network_dim=1024, save_every_n_epochs=1, max_train_epochs=10_000)
    ensure_runner(outputs)
    request_start(outputs, "cat", "cli")
    until(lambda: state(outputs, "cat").refusal)
    assert "refused" in call(capsys, "status", "--outputs", outputs).out
    assert "cat needs about" in call(capsys, "status", "cat", "--outputs", outputs).out
