"""What a person is told after a run ended: in monitor.log, by `status`, on the page and in alerts, in one set of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_tools import call

from fluxcore.alerts.message import compose
from fluxcore.runs import RunFolder
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
    world.trainer("cat").log.append("phase.started", {"phase": "train", "total": 1000, "unit": "step"})
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
    from studio.live import LiveRun

    stuck(world, auto_resume=2)
    world.turns(50, 1.0)
    world.trainer("cat").log.append("phase.started", {"phase": "train", "total": 1000, "unit": "step"})
    world.turns(80, 1.0)
    run = LiveRun(RunFolder(world.outputs / "cat"))
    run.refresh()
    assert "it was resumed already and got stuck at step 4 again. It can go on from step 4." in why(run)


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
