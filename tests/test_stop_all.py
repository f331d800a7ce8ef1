"""`--stop-all`: every run stopped at a checkpoint, reason `shutdown`, by whoever serves; nothing starts meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxcore.log import LogReader
from fluxcore.log.page import problems
from fluxcore.runs import load_run, request_start, resume_choice
from fluxcore.runs.installation import resume_queue
from fluxcore.runs.supervision import ensure_runner, runner_alive
from runner.loop import SHUTDOWN_GRACE_SECONDS
from runner.waiting import PAUSED
from tests.fakes import World
from tests.test_runner_process import ROOT, Place
from tests.test_shim import wait_until

# -- the loop ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_every_live_run_is_stopped_and_none_that_waits_is_started(world: World) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    for name in ("a", "b"):
        world.start(name)
        world.train(name, 1, 3)
    saved = world.checkpoint("a", 3)
    world.make("c")
    world.ask("c")
    world.turns()
    world.runner.shut_down()
    assert not world.runner.is_idle
    world.turns(5, 1.0)
    assert world.runner.is_idle
    for name in ("a", "b"):
        asked = world.last(name, "stop.requested")
        assert (asked.source, asked.data["reason"]) == ("runner", "shutdown")
        assert world.last(name, "run.stopped").data["reason"] == "shutdown"
    assert world.last("a", "run.stopped").data["resume_checkpoint"] == saved
    assert "resume" in world.state("a").hint
    assert world.state("c").state == "queued" and len(world.executor.spawns) == 2
    world.new_runner()
    world.turns(20, 10.0)
    assert world.state("c").state == "starting", (
        "where nobody paused it the queue goes on, what was stopped waits for a person"
    )
    assert [len(world.state(name).attempts) for name in ("a", "b")] == [1, 1]


def test_a_run_about_to_start_is_stopped_once_it_is_there(world: World) -> None:
    world.make("cat")
    world.ask("cat")
    world.executor.lost_spawns = 1
    world.turns(1)
    assert world.state("cat").state == "starting"
    world.runner.shut_down()
    world.turns(1, 1.0)
    assert not world.runner.is_idle, "its shim may still come to life"
    world.turns(5, 11.0)
    assert world.runner.is_idle and world.types("cat")[-2:] == ["run.started", "run.stopped"]
    assert world.last("cat", "run.stopped").data["reason"] == "shutdown"


@pytest.mark.parametrize("grace", [60, 5])
def test_the_grace_is_the_hosts_at_the_most(world: World, grace: int) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", stop_grace_seconds=grace)
    world.train("cat", 1, 3)
    world.runner.shut_down()
    least = min(grace, SHUTDOWN_GRACE_SECONDS)
    world.turns(int(least), 1.0)
    assert trainer.alive
    world.turns(4, 1.0)
    assert not trainer.alive and world.types("cat")[-2:] == ["run.killed", "run.stopped"]


def test_a_stop_under_way_is_hurried_but_gets_what_the_others_get(world: World) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", stop_grace_seconds=600)
    world.train("cat", 1, 3)
    world.stop("cat")
    world.turns(100, 1.0)
    world.runner.shut_down()
    world.turns(int(SHUTDOWN_GRACE_SECONDS) - 1, 1.0)
    assert trainer.alive
    world.turns(4, 1.0)
    assert not trainer.alive
    assert world.last("cat", "run.stopped").data["reason"] == "user", "the first stop was a person's"


def test_a_runner_killed_in_the_midst_of_it_is_followed_by_one_that_keeps_the_hosts_grace(world: World) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", stop_grace_seconds=600)
    world.train("cat", 1, 3)
    world.runner.shut_down()
    world.turns(2, 1.0)
    world.new_runner()
    world.turns(int(SHUTDOWN_GRACE_SECONDS) + 4, 1.0)
    assert not trainer.alive and world.last("cat", "run.stopped").data["reason"] == "shutdown"


# -- processes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("FLUXGYM_TRAINER", f"{sys.executable} {ROOT / 'tests' / 'stub_trainer.py'}")
    monkeypatch.setenv("FLUXGYM_CPU_SLOTS", "2")
    made = Place(tmp_path / "outputs")
    made.outputs.mkdir()
    yield made
    for pid in [*made.runners(), *made.trainers()]:
        os.kill(pid, signal.SIGKILL)


def train(place: Place, *names: str) -> None:
    for name in names:
        place.make(name, steps=100_000, step_seconds=0.02)
        request_start(place.outputs, name, "cli")
    ensure_runner(place.outputs)
    for name in names:
        place.until(name, lambda state: state.step > 2)


def stop_all(place: Place) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runner", "--outputs", str(place.outputs), "--stop-all"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def all_stopped(place: Place, *names: str) -> None:
    for name in names:
        folder, state = load_run(place.outputs, name)
        assert (state.state, state.reason) == ("stopped", "shutdown")
        chosen = resume_choice(folder, state)
        assert chosen is not None and chosen.step == state.step == state.resume_step
    assert place.trainers() == [] and runner_alive(place.outputs) is None


def test_the_runner_that_serves_does_it_and_ends(place: Place) -> None:
    train(place, "a", "b")
    place.make("c", steps=5)
    request_start(place.outputs, "c", "cli")
    place.until("c", lambda state: state.queue_position == 1)
    done = stop_all(place)
    assert done.returncode == 0, done.stderr
    all_stopped(place, "a", "b")
    assert place.state("c").state == "queued"
    log = LogReader(place.outputs / ".events.jsonl").read_new()
    assert "`./fluxgym resume NAME`" in done.stdout and "`./fluxgym queue resume`" in done.stdout
    assert "shutdown.requested" in [event.type for event in log]
    assert [problem for event in log for problem in problems(event.type, event.data)] == []
    ensure_runner(place.outputs)  # as `start c --wait` does, or the machine at its start
    place.until("c", lambda state: state.waiting_for == PAUSED)
    resume_queue(place.outputs, "cli")
    assert place.ended("c").state == "completed", "the queue goes on once a person lets it"


def test_where_no_runner_lives_it_does_it_itself(place: Place) -> None:
    train(place, "a")
    place.kill_runner()
    done = stop_all(place)
    assert done.returncode == 0, done.stderr
    all_stopped(place, "a")


def test_a_runner_that_dies_over_it_is_stood_in_for(place: Place) -> None:
    train(place, "a", "b")
    runner = runner_alive(place.outputs)
    assert runner is not None
    os.kill(runner.pid, signal.SIGSTOP)  # it hears nothing
    command = [sys.executable, "-m", "runner", "--outputs", str(place.outputs), "--stop-all"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: "shutdown.requested" in (place.outputs / ".events.jsonl").read_text())
    os.kill(runner.pid, signal.SIGKILL)
    assert process.wait(60) == 0
    all_stopped(place, "a", "b")


def test_with_nothing_to_stop_it_ends_at_once(place: Place) -> None:
    begun = time.monotonic()
    assert stop_all(place).returncode == 0
    assert time.monotonic() - begun < 15 and runner_alive(place.outputs) is None


def test_as_the_first_process_of_a_container_a_term_saves_first(place: Place) -> None:
    """A container's first process takes all others with it when it goes."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("a process namespace of one's own needs root")
    command = [unshare, "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no process namespace can be made here")
    place.make("cat", steps=100_000, step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    process = subprocess.Popen(
        [*command, sys.executable, "-m", "runner", "--outputs", str(place.outputs)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        place.until("cat", lambda state: state.step > 2)
        first = next(pid for pid in place.runners() if pid != process.pid)
        os.kill(first, signal.SIGTERM)
        process.wait(40)
    finally:
        process.kill()
    state = place.state("cat")
    assert (state.state, state.reason, state.resume_step) == ("stopped", "shutdown", state.step)
