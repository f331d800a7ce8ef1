"""A live run's folder is deleted, renamed or replaced: its trainer is not forgotten, its place and GPU are not lost."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import pytest

from fluxcore.log import EventLog
from fluxcore.runs import RunFolder
from runner.executor import Launch, LocalExecutor
from runner.orphans import DELETED
from runner.serving import unfinished
from tests.fakes import FakeGpus, World
from tests.place import wait_until


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def train(world: World, name: str = "cat") -> None:
    world.start(name, stop_grace_seconds=5)
    world.train(name, 1, 3)
    world.trainer(name).log.close()


def delete(world: World, name: str = "cat") -> None:
    shutil.rmtree(world.outputs / name)
    world.trainer(name).output_deleted = True


def test_the_trainer_of_a_deleted_folder_is_ended_and_holds_its_place_until_then(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    train(world)
    trainer = world.trainer("cat")
    world.make("dog")
    world.ask("dog")
    delete(world)
    world.executor.unkillable = True
    world.turns(3, 1.0)
    assert len(world.executor.spawns) == 1, "its slot is not free"
    assert not world.runner.is_idle and unfinished(world.runner) == [f"cat ({DELETED})"]
    world.executor.unkillable = False
    world.turns(8, 1.0)
    assert not trainer.alive and world.executor.spawns[-1] == ("dog", 1)
    assert "cat" not in world.runner.runs and not (world.outputs / "cat").exists()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any(line.startswith("cat: ") and str(trainer.record.trainer.pid) in line for line in said)  # type: ignore[union-attr]


@pytest.mark.parametrize("who", ["trainer", "person"])
def test_a_log_under_its_name_that_does_not_know_it_hides_no_trainer(tmp_path: Path, who: str) -> None:
    """Somebody writes into the folder while it is deleted, or makes another run of that name."""
    world = World(tmp_path, gpus=FakeGpus(a=50))
    train(world)
    trainer = world.trainer("cat")
    old = (tmp_path / "cat" / "events.jsonl").rename(tmp_path / ".old")  # so that its inode is not given out again
    delete(world)
    world.make("cat")
    if who == "trainer":
        trainer.log.append("train.step", {"step": 4, "total_steps": 9, "epoch": 1, "loss": 0.5})
    else:
        world.ask("cat")
    world.executor.unkillable = True
    world.turns(5, 1.0)
    assert not world.runner.is_idle and len(world.executor.spawns) == 1
    world.executor.unkillable = False
    world.turns(8, 1.0)
    assert not trainer.alive and old.exists()
    if who == "person":
        assert world.types("cat")[:3] == ["run.requested", "run.queued", "run.spawning"]
        assert world.trainer("cat") is not trainer and world.trainer("cat").alive, (
            "the new one is not taken for the old"
        )
    else:
        assert world.runner.is_idle


def test_stop_all_ends_it_too_however_long_the_grace(world: World) -> None:
    train(world)
    shutil.rmtree(world.outputs / "cat")  # as on a network disk that is away: nothing says that it is deleted
    world.turns(5, 1.0)
    assert world.trainer("cat").alive and unfinished(world.runner) == ["cat"]
    world.runner.shut_down()
    world.turns(6, 1.0)
    assert not world.trainer("cat").alive and world.runner.is_idle


def test_a_log_put_back_as_it_was_is_the_same_run(world: World) -> None:
    train(world)
    log = world.outputs / "cat" / "events.jsonl"
    log.with_name("copy").write_bytes(log.read_bytes())
    log.with_name("copy").replace(log)
    world.turns(3, 1.0)
    assert world.trainer("cat").alive and world.state("cat").state == "running" and not world.runner.orphans


def test_a_renamed_live_run_has_one_place_and_a_word_of_it(world: World) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    train(world)
    trainer = world.trainer("cat")
    (world.outputs / "cat").rename(world.outputs / "cat-moved")
    world.executor.rename("cat", "cat-moved")
    world.make("dog")
    world.ask("dog")
    world.make("cat")
    world.ask("cat")
    world.turns(4, 1.0)
    assert trainer.alive and ("dog", 1) in world.executor.spawns, "the old name holds no slot of its own"
    assert ("cat", 1) not in world.executor.spawns[1:] and "cat-moved" in world.state("cat").waiting_for
    assert "cat" in (world.outputs / "cat-moved" / "monitor.log").read_text()
    world.stop("cat-moved")
    world.turns(4, 1.0)
    assert world.types("cat-moved")[-1] == "run.stopped"
    assert "there is no checkpoint" in (world.outputs / "cat-moved" / "monitor.log").read_text()
    assert world.executor.spawns[-1] == ("cat", 1)


def test_a_live_run_renamed_back_is_as_before(world: World) -> None:
    train(world)
    for old, new in (("cat", "dog"), ("dog", "cat")):
        (world.outputs / old).rename(world.outputs / new)
        world.executor.rename(old, new)
        world.turns(2, 1.0)
        assert list(world.runner.runs) == [new] and world.trainer(new).alive
    assert world.runner.runs["cat"].former_name == "" and not world.runner.orphans


@pytest.mark.parametrize("stalled", [False, True])
def test_a_copy_of_a_live_run_leaves_its_processes_alone(world: World, stalled: bool) -> None:
    train(world)
    shutil.copytree(world.outputs / "cat", world.outputs / "cat-copy")
    world.executor.copies = {"cat-copy"}
    if stalled:
        data = {"verdict": "silent", "evidence": {}, "resume_checkpoint": None, "resume_step": None}
        EventLog(world.outputs / "cat-copy", "runner", attempt=1).append("run.stalled", data)
    world.turns(6, 1.0)
    trainer = world.trainer("cat")
    assert trainer.alive and not trainer.signals and world.state("cat").state == "running"
    copy = world.state("cat-copy")
    assert (copy.state, copy.has_processes) == ("stalled" if stalled else "failed", False)
    assert "run.adopted" not in world.types("cat-copy")
    assert "copy" in (world.outputs / "cat-copy" / "monitor.log").read_text()


def test_a_folder_that_is_gone_and_whose_processes_have_ended_is_dropped(world: World) -> None:
    train(world)
    (world.outputs / "cat").rename(world.outputs / ".aside")
    world.trainer("cat").exit(0)
    world.turns(3, 1.0)
    assert "cat" not in world.runner.runs and world.runner.is_idle


def test_a_real_trainers_output_is_known_to_be_deleted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "cat")
    folder.path.mkdir()
    executor = LocalExecutor()
    executor.spawn(Launch(folder, 1, [sys.executable, "-c", "print('ready', flush=True); import time; time.sleep(60)"]))
    wait_until(lambda: "ready" in folder.train_log.read_text())
    record = executor.look(folder, 1)
    try:
        assert not executor.output_is_deleted(record)
        shutil.copytree(folder.path, tmp_path / "copy")
        copy = RunFolder(tmp_path / "copy")
        assert executor.is_of_another(copy, 1, executor.look(copy, 1))
        assert not executor.is_of_another(folder, 1, record)
        folder.path.rename(tmp_path / "dog")
        assert not executor.is_of_another(RunFolder(tmp_path / "dog"), 1, record), "renamed"
        folder.path.mkdir()
        assert not executor.is_of_another(RunFolder(tmp_path / "dog"), 1, record), "and another has its name"
        assert not executor.output_is_deleted(record)
        shutil.rmtree(tmp_path / "dog")
        assert executor.output_is_deleted(record) and executor.look(folder, 1) == record
        executor.forget(folder, 1)
        assert executor.look(folder, 1).trainer is None
    finally:
        for process in executor.tree(folder, record):
            executor.signal(process, 9)
        wait_until(lambda: (executor.reap(), not executor.alive(record.shim))[1])
    assert not executor.output_is_deleted(record)
