"""What a person is told after a run ended: in monitor.log, by `status`, on the page and in alerts, in one set of words."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_tools import call

from fluxcore.alerts.message import compose
from fluxcore.log import format_ts, parse_ts
from fluxcore.runs import RunFolder, pause_queue
from fluxcore.runs.outlook import LOST, going_on, waits_for, what_happened
from runner.endings import Ending
from tests.fakes import FakeGpus, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def monitor(world: World, name: str = "cat") -> list[str]:
    """monitor.log's lines without their time."""
    return [line.split(" - ", 2)[-1] for line in (world.outputs / name / "monitor.log").read_text().splitlines()]


def stuck(world: World, name: str = "cat", last: int = 4, **config: Any) -> None:
    world.start(name, stall_seconds=30, stop_grace_seconds=5, **config)
    world.train(name, 1, last)
    world.checkpoint(name, last)


def test_after_the_last_stall_monitor_log_says_why_it_stays_and_what_to_do(world: World) -> None:
    """The checkpoint is the one that the TERM saved, not the one before."""
    stuck(world, auto_resume=0)
    world.trainer("cat").ignores_term = True
    world.turns(34, 1.0)
    assert world.state("cat").must_be_killed
    world.trainer("cat").log.append("train.step", {"step": 6, "total_steps": 1000, "epoch": 1, "loss": 0.5})
    world.checkpoint("cat", 6)
    world.turns(10, 1.0)
    assert monitor(world)[-4].startswith("killed after")
    assert monitor(world)[-3:] == [
        "It is not resumed by itself: auto_resume is 0.",
        "Checkpoint to go on from: cat-step00000006-state (step 6)",
        f"To resume: ./fluxgym resume cat --outputs {world.outputs}",
    ]


def test_stuck_twice_at_the_same_step(world: World) -> None:
    stuck(world, auto_resume=2)
    world.turns(50, 1.0)
    assert "resuming by itself from cat-step00000004-state" in monitor(world)
    assert not any("not resumed" in line for line in monitor(world))
    world.trainer("cat").log.append("phase.started", {"phase": "train", "total": 1000, "unit": "steps"})
    world.turns(80, 1.0)
    assert monitor(world)[-3] == ("It is not resumed by itself: it was resumed already and got stuck at step 4 again.")


def test_the_cap_is_used(world: World) -> None:
    world.start("cat", auto_resume=1)
    for last in (4, 8):
        world.train("cat", last - 3, last)
        world.checkpoint("cat", last)
        world.trainer("cat").exit(1)
        world.turns(10, 1.0)
    assert monitor(world)[-3:-1] == [
        "It is not resumed by itself: that was done once since somebody last asked for it, and auto_resume allows no "
        "more.",
        "Checkpoint to go on from: cat-step00000008-state (step 8)",
    ]


def test_what_would_only_fail_again(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(6)
    world.turns()
    assert monitor(world)[-3] == "It is not resumed by itself: another try would only fail in the same way (oom_gpu)."


def test_without_a_checkpoint(world: World) -> None:
    world.start("cat")
    world.trainer("cat").exit(1)
    world.turns()
    assert monitor(world)[-2:] == [
        "There is no checkpoint to go on from.",
        f"To begin again: ./fluxgym start cat --restart --outputs {world.outputs}",
    ]


def test_an_idle_gpu_is_in_monitor_log(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=90))
    stuck(world, auto_resume=0)
    world.gpus.uses["a"] = 0
    world.turns(45, 1.0)
    assert world.state("cat").verdict == "gpu_idle"
    told = [line for line in monitor(world) if line.startswith(("gpu_idle suspected", "stalled (gpu_idle)"))]
    assert len(told) == 2 and all("the GPU was at 0 % for" in line for line in told), told


# -- status and the page ----------------------------------------------------------------------------------------------


def status(capsys: Any, world: World) -> str:
    answer = call(capsys, "status", "cat", "--outputs", world.outputs)
    assert answer.code == 0
    return answer.out


def test_status_says_what_monitor_log_says(world: World, capsys: Any) -> None:
    stuck(world, auto_resume=0)
    world.turns(50, 1.0)
    shown = status(capsys, world)
    assert "It was stuck at step 4 of 1000. No progress for 30 s in the phase 'train', so it was ended" in shown
    assert "30 s without a step (limit 30 s)" in shown
    assert shown.splitlines()[-3:] == monitor(world)[-3:]


def test_the_page_says_why_it_stays(world: World) -> None:
    from studio.banner import why

    stuck(world, auto_resume=2)
    world.turns(50, 1.0)
    world.trainer("cat").log.append("phase.started", {"phase": "train", "total": 1000, "unit": "steps"})
    world.turns(80, 1.0)
    run: Any = SimpleNamespace(state=world.state("cat"), folder=RunFolder(world.outputs / "cat"))
    assert "it was resumed already and got stuck at step 4 again. It can go on from step 4." in why(run)


def test_status_of_a_live_run_shows_its_machine_and_how_old_the_last_sign_is(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=93))
    world.gpus.more["a"] = {"memory_used_gib": 18.25, "memory_total_gib": 24.0}
    monkeypatch.setattr("fluxcore.cli.look.utc_now", lambda: format_ts(world.clock.now()))
    monkeypatch.setattr("fluxcore.cli.look._observed", lambda state, outputs: state.state)
    world.start("cat")
    log = world.trainer("cat").log
    log.append("phase.started", {"phase": "cache", "total": 22, "unit": "pictures"})
    log.append("phase.progress", {"phase": "cache", "done": 9, "total": 22})
    world.turns(40, 1.0)
    shown = {line[:18].strip(): line[18:].strip() for line in status(capsys, world).splitlines()}
    assert shown["phase"] == "cache 9 of 22 pictures"
    assert shown["GPUs"] == "a" and shown["trainer's pid"] == str(world.state("cat").attempts[0].pid)
    assert shown["GPU 0"].startswith("93 % busy, 18.2 of 24 GiB, ") and shown["GPU 0"].endswith(" s ago")
    assert shown["last heard of it"] == "40 s ago"


def test_where_no_runner_lives_status_and_queue_say_so_and_nothing_stale(world: World, capsys: Any) -> None:
    world.start("cat")
    world.stop("cat")
    world.turns()
    world.make("eel")
    world.ask("eel")
    world.person("eel").append("run.queued", {"request": "x", "position": 1, "waiting_for": "the machine, used by cat"})
    for words in (["status"], ["queue"], ["status", "eel"]):
        shown = call(capsys, *words, "--outputs", world.outputs).out
        assert "a runner (none is alive)" in shown and "used by cat" not in shown, shown
        assert "no runner serves this folder; `./fluxgym runner`" in shown
    pause_queue(world.outputs, "cli")
    assert "the queue is paused" in call(capsys, "status", "--outputs", world.outputs).out


def test_a_refusal_is_in_the_table_with_its_reason(tmp_path: Path, capsys: Any) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=0))
    world.make("cat", gpu_ids="7")
    world.ask("cat")
    world.turns()
    assert world.state("cat").refusal
    assert f"refused: {world.state('cat').refusal}" in call(capsys, "status", "--outputs", tmp_path).out


def test_a_lost_run_gets_its_sentence(world: World, capsys: Any) -> None:
    world.start("cat")
    assert LOST in status(capsys, world)
    assert "its process is gone" in call(capsys, "status", "--outputs", world.outputs).out


def test_gpus_that_are_named_by_uuid_are_not_called_gpu_twice(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(**{"GPU-a": 0, "GPU-b": 0}))
    world.start("cat", gpu_ids="GPU-b")
    world.make("dog", gpu_ids="GPU-b")
    world.ask("dog")
    world.turns()
    assert world.state("dog").waiting_for == "GPU-b, used by cat"


# -- alerts that come late --------------------------------------------------------------------------------------------


def told(world: World, kind: str) -> list[str]:
    state = world.state("cat")
    news = [one for one in state.news if one.kind == kind][-1]
    return compose(state, news, RunFolder(world.outputs / "cat"), "pod").body.splitlines()


def test_an_alert_that_comes_late_names_what_the_resume_took(world: World) -> None:
    """Not the checkpoint of `run.stalled`: the TERM behind it saved another."""
    stuck(world, auto_resume=1)
    world.trainer("cat").ignores_term = True
    world.turns(34, 1.0)
    world.trainer("cat").log.append("train.step", {"step": 6, "total_steps": 1000, "epoch": 1, "loss": 0.5})
    world.checkpoint("cat", 6)
    world.turns(20, 1.0)
    assert len(world.state("cat").attempts) == 2
    assert told(world, "stalled")[1] == "It resumes by itself from cat-step00000006-state (step 6)."


def test_an_alert_that_comes_after_a_persons_resume_says_so(world: World) -> None:
    stuck(world, auto_resume=0)
    world.turns(50, 1.0)
    world.ask("cat", "latest", "resume")
    assert "Somebody has asked for it again already: it goes on when its turn comes." in told(world, "stalled")
    world.turns()
    assert "Somebody resumed it since, from cat-step00000004-state (step 4)." in told(world, "stalled")
    world.trainer("cat").exit(1)
    world.turns()
    world.ask("cat", None, "restart")
    world.turns()
    assert "It was started again since, from step 0." in told(world, "failed")


def test_what_waits_to_resume_by_itself_says_what_happened_and_when_it_goes_on(world: World) -> None:
    stuck(world, auto_resume=1)
    while world.state("cat").state != "queued":
        world.turns(1, 1.0)
    state, now = world.state("cat"), world.clock.now()
    assert state.state == "queued" and what_happened(state).startswith(
        "It was stuck at step 4 of 1000. No progress for"
    )
    assert going_on(state, RunFolder(world.outputs / "cat"), now=now) == [
        "It resumes by itself from cat-step00000004-state (step 4)."
    ]
    asked = parse_ts(state.requests[0].ts)
    waits = [waits_for(state, runner=True, paused=False, now=asked + timedelta(seconds=after)) for after in (1, 4.5)]
    assert waits == ["a pause before the next attempt (4 s left)", "a pause before the next attempt"]
    assert waits_for(state, runner=False, paused=False, now=now) == "a runner (none is alive)"


def test_what_a_person_asks_for_does_not_tell_of_the_attempt_before(world: World) -> None:
    stuck(world, auto_resume=0)
    world.turns(50, 1.0)
    world.ask("cat", "latest", "resume")
    assert world.state("cat").state == "queued" and what_happened(world.state("cat")) == ""


@pytest.mark.parametrize(
    ("auto_resume", "says"), [(1, "(see that it is there)."), (0, "(see that it is there), then resume.")]
)
def test_a_hint_tells_to_resume_only_where_the_run_does_not_by_itself(
    world: World, auto_resume: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "The disk gave an error (see that it is there), then resume."
    monkeypatch.setattr("runner.attempts.explain", lambda *_: Ending(False, "crash", hint))
    stuck(world, auto_resume=auto_resume)
    world.trainer("cat").exit(1)
    world.turns()
    state = world.state("cat")
    assert what_happened(state) == f"It failed at step 4 of 1000 (crash). The disk gave an error {says}"
    assert told(world, "failed")[0] == f"The disk gave an error {says}"
    assert any(line.endswith(f"The disk gave an error {says}") for line in monitor(world))
    assert state.hint == hint
