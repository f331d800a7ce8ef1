"""What monitor.log and the runner's own log tell of a run: what happened, to whom, and what is lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from runner.serving import ASKED
from tests.fakes import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def lines(world: World, name: str = "cat") -> list[str]:
    text = (world.outputs / name / "monitor.log").read_text()
    return [line.split(" - ", 1)[1] for line in text.splitlines()]


def test_the_runners_own_log_shows_its_work_with_the_runs_name_in_front(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runner")
    world.start("cat")
    world.train("cat", 1, 2)
    world.complete("cat")
    shown = [f"{record.levelname} - {record.getMessage()}" for record in caplog.records]
    told = [line.replace(" - ", " - cat: ", 1) for line in lines(world)]
    assert [line for line in shown if " - cat: " in line] == told and len(told) == 2
    world.runner.runs["cat"].note("two\nlines", "WARNING")
    assert lines(world)[-1] == "WARNING - two lines" and caplog.records[-1].getMessage() == "cat: two lines"


def test_children_that_outlive_a_stopped_trainer_are_told_from_one_that_is_deaf(world: World) -> None:
    trainer = world.start("cat", stop_grace_seconds=60)
    trainer.children = {950}
    world.train("cat", 1, 3)
    world.stop("cat")
    world.turns(6, 1.0)
    assert "WARNING - killed: [950] outlived the trainer" in lines(world)
    assert world.last("cat", "run.killed").data["pids"] == sorted([950, trainer.record.trainer.pid])  # type: ignore[union-attr]

    deaf = world.start("dog", stop_grace_seconds=5)
    deaf.ignores_term, pid = True, deaf.record.trainer.pid  # type: ignore[union-attr]
    world.train("dog", 1, 3)
    world.stop("dog")
    world.turns(9, 1.0)
    assert f"WARNING - killed: [{pid}] did not end within the grace (5 s)" in lines(world, "dog")


@pytest.mark.parametrize("shim_dead", [True, False])
def test_a_stop_of_a_trainer_that_was_killed_says_so_and_what_is_lost(world: World, shim_dead: bool) -> None:
    trainer = world.start("cat")
    world.train("cat", 1, 5)
    saved = world.checkpoint("cat", 3)
    world.turns()
    trainer.shim_alive = not shim_dead
    trainer.exit(137, "SIGKILL")
    world.stop("cat")  # before a runner has seen it
    world.new_runner()
    world.turns(4, 1.0)
    stopped = world.last("cat", "run.stopped").data
    assert (stopped["reason"], stopped["lost_steps"], stopped["resume_checkpoint"]) == ("user", 2, saved)
    how = "nobody knows how, its parent process is gone too" if shim_dead else "SIGKILL"
    gone = f"the trainer had ended by itself before it could be stopped ({how})"
    assert lines(world)[-1] == (
        f"WARNING - stopped at step 5; checkpoint to go on from: {saved}; steps lost since then: 2; {gone}"
    )
    assert (
        "ended by itself" in stopped["hint"] and "2" in stopped["hint"] and stopped["hint"].endswith("resume to go on.")
    )


def test_a_stop_that_saves_nothing_says_what_is_lost_and_one_that_saves_says_nothing_of_it(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    saved = world.checkpoint("cat", 4)
    world.stop("cat")
    world.turns(3, 1.0)
    assert lines(world)[-1] == f"INFO - stopped at step 5; checkpoint to go on from: {saved}; steps lost since then: 1"
    world.start("dog")
    world.train("dog", 1, 2)
    world.stop("dog")
    world.turns(3, 1.0)
    assert lines(world, "dog")[-1] == "INFO - stopped at step 2; there is no checkpoint to go on from; steps lost: 2"
    world.start("owl")
    world.train("owl", 1, 2)
    saved = world.checkpoint("owl", 2)
    world.stop("owl")
    world.turns(3, 1.0)
    assert lines(world, "owl")[-1] == f"INFO - stopped at step 2; checkpoint to go on from: {saved}"
    assert "hint" not in world.last("owl", "run.stopped").data


def test_stop_all_is_told_from_a_shutdown_of_the_host_and_adopts_before_it_stops(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 2)
    world.new_runner().shut_down(ASKED)
    world.turns(3, 1.0)
    told = lines(world)
    adopted = next(i for i, line in enumerate(told) if "adopted" in line)
    assert told[adopted + 1] == "WARNING - everything is to stop (--stop-all): stopping"
    assert not any("host" in line for line in told)
    types = [event.type for event in world.events("cat")]
    assert types.index("run.adopted") < types.index("stop.requested")
    world.new_runner()
    world.start("dog")
    world.runner.shut_down()
    world.turns(3, 1.0)
    assert "WARNING - the host shuts down: stopping" in lines(world, "dog")
