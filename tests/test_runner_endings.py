"""What an exit means, what a person is told, and when a run is resumed by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.endings import HINTS, explain, read_tail
from runner.executor import Exit
from tests.fakes import World

REASONS = {
    "oom_gpu", "oom_host", "disk_full", "bad_config", "bad_data", "download", "nan_loss", "killed", "crash", "lost",
}  # fmt: skip


def reason(ended: Exit, tail: str = "", weights: bool = False, done: bool = False) -> str:
    ending = explain(ended, weights, tail, done)
    return "ok" if ending.ok else ending.reason


def test_every_reason_of_the_contract_has_a_hint() -> None:
    assert set(HINTS) == REASONS
    assert all(hint.endswith(".") and len(hint) > 40 for hint in HINTS.values())


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (Exit(1), "crash"),
        (Exit(2), "bad_config"),
        (Exit(3), "bad_data"),
        (Exit(4), "download"),
        (Exit(5), "nan_loss"),
        (Exit(6), "oom_gpu"),
        (Exit(7), "disk_full"),
        (Exit(8), "oom_host"),
        (Exit(137, "SIGKILL"), "killed"),
        (Exit(137, "SIGKILL", oom_kills=1), "oom_host"),
        (Exit(143), "killed"),
        (Exit(143, "SIGTERM"), "killed"),
        (Exit(139, "SIGSEGV"), "crash"),
        (Exit(127), "crash"),
        (Exit(0), "crash"),
        (Exit(None), "lost"),
    ],
)
def test_reasons(ended: Exit, expected: str) -> None:
    assert reason(ended) == expected


def test_the_log_tells_what_the_code_does_not() -> None:
    assert reason(Exit(1), "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate") == "oom_gpu"
    assert reason(Exit(1), "OSError: [Errno 28] No space left on device") == "disk_full"


def test_complete_needs_whole_weights_and_without_an_exit_code_all_steps() -> None:
    assert reason(Exit(0), weights=True) == "ok"
    assert reason(Exit(None), weights=True, done=True) == "ok"
    assert reason(Exit(None), weights=True, done=False) == "lost"


def test_the_tail_is_of_this_attempt_and_short(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"old attempt\n")
    offset = log.stat().st_size
    with open(log, "ab") as file:
        file.write(b"".join(b"line %d\n" % index for index in range(100)) + b"10%\r50%\rlast \xff word\n")
    lines = read_tail(log, offset).splitlines()
    assert len(lines) == 20 and lines[-1] == "last \ufffd word" and "old attempt" not in lines
    assert read_tail(tmp_path / "none") == ""


def test_a_stop_that_came_too_late_does_not_turn_a_finished_run_into_a_stopped_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat", max_train_steps=5)
    world.train("cat", 1, 5)
    world.stop("cat")
    world.trainer("cat").ignores_term = True
    world.turns()
    assert world.state("cat").state == "stopping"
    world.complete("cat")
    assert world.state("cat").state == "completed" and "run.stopped" not in world.types("cat", "run.")


# -- automatic resume -------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def crash(world: World, code: int = 1, name: str = "cat") -> None:
    world.trainer(name).exit(code)
    world.turns()


def test_a_crash_is_resumed_from_the_checkpoint_with_the_same_config_after_a_pause(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    saved = world.checkpoint("cat", 5)
    config = world.state("cat").attempt.config  # type: ignore[union-attr]
    crash(world)
    asked = world.last("cat", "run.requested")
    assert asked.source == "runner" and asked.data["reason"] == "auto_resume" and asked.data["config"] == config
    assert world.state("cat").state == "queued" and "pause" in world.state("cat").waiting_for
    world.turns(7, 1.0)
    started = world.last("cat", "run.started")
    assert (started.attempt, started.data["resume_from"]) == (2, saved)


def test_attempts_are_capped_and_a_person_starts_the_count_anew(world: World) -> None:
    world.start("cat", auto_resume=2)
    for step in range(1, 10):
        world.train("cat", step, step)
        world.checkpoint("cat", step)
        crash(world)
        world.turns(60, 1.0)
        if world.state("cat").state == "failed":
            break
    assert [event.attempt for event in world.events("cat") if event.type == "run.started"] == [1, 2, 3]
    world.ask("cat", "latest", "resume")
    world.turns()
    world.train("cat", 6, 7)
    world.checkpoint("cat", 7)
    crash(world)
    world.turns(60, 1.0)
    assert world.last("cat", "run.started").attempt == 5


def test_the_same_step_failing_twice_ends_it(world: World) -> None:
    world.start("cat", auto_resume=9)
    world.train("cat", 1, 5)
    world.checkpoint("cat", 3)
    crash(world)
    world.turns(8, 1.0)
    world.train("cat", 4, 5)
    crash(world)
    world.turns(60, 1.0)
    assert world.state("cat").state == "failed" and len(world.state("cat").attempts) == 2


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 7])
def test_what_would_fail_again_is_not_resumed(world: World, code: int) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    crash(world, code)
    world.turns(30, 1.0)
    assert world.state("cat").state == "failed" and len(world.state("cat").attempts) == 1


def test_no_checkpoint_or_switched_off_means_no_resume(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    crash(world)
    world.start("dog", auto_resume=0)
    world.train("dog", 1, 5)
    world.checkpoint("dog", 5)
    crash(world, name="dog")
    world.turns(30, 1.0)
    assert world.state("cat").state == world.state("dog").state == "failed"


def test_a_stall_is_resumed_and_a_stop_is_not(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    world.turns(320, 1.0)
    assert world.types("cat")[3:] == ["stall.suspected", "run.stalled", "run.killed", "run.requested", "run.queued",
                                      "run.spawning", "run.started"]  # fmt: skip
    world.train("cat", 6, 7)
    world.checkpoint("cat", 7)
    world.stop("cat")
    world.turns(30, 1.0)
    assert world.state("cat").state == "stopped"


def test_a_stop_during_the_pause_ends_it(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    crash(world)
    world.stop("cat")
    world.turns(60, 1.0)
    assert world.state("cat").state == "stopped" and len(world.state("cat").attempts) == 1


def test_a_run_that_failed_long_ago_is_left_alone(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    data = {"exit_code": 1, "reason": "crash", "hint": "", "tail": "", "resume_checkpoint": "cat-step00000005-state",
            "resume_step": 5}  # fmt: skip
    world.runner.runs["cat"].append("run.failed", data, attempt=1)
    world.trainer("cat").alive = False
    world.clock.advance(7200)
    world.new_runner()
    world.turns(10, 1.0)
    assert world.state("cat").state == "failed"
