"""`--stop-all` where something is broken: an unreadable log, a full disk, a crash in the midst of it, a second signal."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from fluxcore.errors import UserError
from fluxcore.log import FolderReader
from fluxcore.runs import RunError
from fluxcore.runs.installation import pause_queue, read_installation
from fluxcore.runs.supervision import RunnerInfo
from runner import __main__ as program
from runner.instance import AlreadyServed, Instance
from runner.loop import SHUTDOWN_GRACE_SECONDS
from runner.serving import TELL_SECONDS, Leaving, turn_until_done, unfinished
from runner.waiting import PAUSED
from tests.fakes import World
from tests.test_alerts import target
from tests.test_alerts_runner import FakeSender


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def spoil(log: Path) -> None:
    os.rename(log, log.with_name("aside"))
    log.mkdir()


def mend(log: Path) -> None:
    log.rmdir()
    os.rename(log.with_name("aside"), log)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# -- what can't be read ----------------------------------------------------------------------------------------------------


def test_a_run_that_was_never_read_may_live(world: World) -> None:
    trainer = world.start("cat")
    world.train("cat", 1, 3)
    spoil(world.outputs / "cat" / "events.jsonl")
    runner = world.new_runner()
    runner.shut_down()
    world.turns(3, 1.0)
    assert not runner.is_idle and unfinished(runner) == ["cat (its log can't be read)"]
    mend(world.outputs / "cat" / "events.jsonl")
    world.turns(5, 3.0)
    assert runner.is_idle and not trainer.alive and world.state("cat").reason == "shutdown"


def test_a_folder_that_can_not_be_listed_may_hold_runs_that_live(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise RunError("the outputs folder can't be read")

    world.start("cat")
    runner = world.new_runner()
    with monkeypatch.context() as patch:
        patch.setattr("runner.loop.list_run_folders", broken)
        runner.shut_down()
        world.turns(3, 1.0)
        assert not runner.is_idle and unfinished(runner) == ["what else lies in the folder (it can't be listed)"]
    world.turns(5, 3.0)
    assert runner.is_idle and world.state("cat").reason == "shutdown"


def test_a_run_whose_log_breaks_later_gets_its_term_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: FolderReader) -> None:
        raise OSError(errno.EIO, "Input/output error")

    trainer = world.start("cat")
    world.train("cat", 1, 3)
    with monkeypatch.context() as patch:
        patch.setattr(FolderReader, "read_new", broken)
        world.turns(2, 1.0)
        world.runner.shut_down()
        world.turns(3, 1.0)
        assert not trainer.alive and signal.SIGTERM in [number for _, number in trainer.signals]
        assert not world.runner.is_idle, "its end is not in its log"
    world.turns(5, 3.0)
    assert world.runner.is_idle and world.state("cat").reason == "shutdown"


# -- a full disk -----------------------------------------------------------------------------------------------------------


def test_on_a_full_disk_the_trainer_gets_its_term_and_the_end_is_written_when_there_is_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = world.start("cat")
    world.train("cat", 1, 3)
    with monkeypatch.context() as patch:
        patch.setattr(world.runner.runs["cat"]._log, "append", full)
        world.runner.shut_down()
        world.turns(3, 1.0)
        assert not trainer.alive and not world.runner.is_idle
    world.turns(4, 1.0)
    assert world.runner.is_idle
    assert (world.state("cat").state, world.state("cat").reason) == ("stopped", "shutdown")


def test_an_end_is_a_stop_where_only_the_intent_could_not_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.start("cat")
    world.train("cat", 1, 3)
    run = world.runner.runs["cat"]
    whole = run.append

    def no_intent(type: str, *rest: Any, **more: Any) -> bool:
        return type != "stop.requested" and whole(type, *rest, **more)

    monkeypatch.setattr(run, "append", no_intent)
    world.runner.shut_down()
    world.turns(6, 1.0)
    assert world.last("cat", "run.stopped").data["reason"] == "shutdown" and "resume" in world.state("cat").hint
    assert "stop.requested" not in world.types("cat", "stop.")


def test_with_stop_all_a_full_disk_keeps_nobody_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.instance.write_atomic", full)
    with pytest.raises(UserError, match="make room"):
        Instance(tmp_path)
    with Instance(tmp_path, ending=True) as instance:
        assert instance.about["pid"] == os.getpid()
        with pytest.raises(AlreadyServed):
            Instance(tmp_path)


# -- nothing starts by itself ------------------------------------------------------------------------------------------------


def test_what_crashed_just_before_is_not_asked_for_again(world: World) -> None:
    trainer = world.start("cat")
    world.train("cat", 1, 3)
    world.checkpoint("cat", 3)
    trainer.exit(1)
    while world.state("cat").state != "failed":
        world.turns(1, 0.1)
    world.runner.shut_down()
    world.turns(5, 1.0)
    assert world.runner.is_idle and world.types("cat", "run.requested") == ["run.requested"]
    pause_queue(world.outputs, "cli", "runner --stop-all")
    world.new_runner()
    world.turns(5, 30.0)
    assert len(world.state("cat").attempts) == 1 and world.state("cat").waiting_for == PAUSED


# -- turning to the end ------------------------------------------------------------------------------------------------------


class Turns:
    """Wakes at once, moves the world's clock on by what was asked for, and does `then[n]` in the n-th wait."""

    def __init__(self, world: World, then: dict[int, Callable[[], None]]) -> None:
        self.world, self.then, self.count, self.seconds = world, then, 0, 0.0

    def wait(self, seconds: float, known: Collection[str] = ()) -> set[str]:
        self.count += 1
        assert self.count < 2000, "it never ends"
        self.then.get(self.count, lambda: None)()
        self.seconds += max(0.02, seconds)
        self.world.clock.advance(max(0.02, seconds))
        return set()


def turn(world: World, then: dict[int, Callable[[], None]], leaving: Leaving, *, is_first: bool, **more: Any) -> Turns:
    turns = Turns(world, then)
    asked = more.pop("is_asked", lambda: False)
    turn_until_done(world.runner, turns.wait, leaving, asked, is_first=is_first, clock=world.clock.monotonic, **more)
    return turns


def test_a_signal_ends_the_runner_and_leaves_trainers_where_it_is_not_the_first_process(world: World) -> None:
    trainer, leaving = world.start("cat"), Leaving()
    turn(world, {3: leaving.ask}, leaving, is_first=False)
    assert trainer.alive and not world.runner.shutting_down


def test_the_first_process_saves_first_and_a_second_signal_is_obeyed(world: World) -> None:
    world.executor.ignore_term = True
    trainer, leaving = world.start("cat"), Leaving()
    turns = turn(world, {3: leaving.ask, 60: leaving.ask}, leaving, is_first=True)
    assert turns.count == 60 and trainer.alive and world.runner.shutting_down


def test_a_first_signal_during_a_shutdown_that_was_asked_for_ends_nothing_midway(world: World) -> None:
    world.executor.ignore_term = True
    trainer, leaving = world.start("cat"), Leaving()
    turn(world, {30: leaving.ask}, leaving, is_first=True, is_asked=lambda: True)
    assert not trainer.alive and world.state("cat").reason == "shutdown"
    assert world.clock.monotonic() - 1000 > SHUTDOWN_GRACE_SECONDS


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_stays_while_people_are_being_told(tmp_path: Path, is_first: bool) -> None:
    sender = FakeSender()
    world = World(tmp_path, sender=sender)
    target(world, "phone")
    world.start("cat")
    leaving = Leaving()

    def end_it() -> None:
        if sender.started:
            sender.started[0].code = 0

    begun = world.clock.monotonic()
    turn(world, {150: end_it}, leaving, is_first=is_first, is_asked=lambda: True)
    assert sender.runs == ["cat"] and world.state("cat").reason == "shutdown"
    stayed = world.clock.monotonic() - begun
    assert TELL_SECONDS <= stayed < TELL_SECONDS + 3 if is_first else stayed < 3, "it hangs, nobody waits for long"


def test_the_first_process_goes_once_people_are_told(tmp_path: Path) -> None:
    sender = FakeSender()
    world = World(tmp_path, sender=sender)
    target(world, "phone")
    world.start("cat")
    sender.at_start = lambda run: None
    begun = world.clock.monotonic()
    turn(world, {}, Leaving(), is_first=True, is_asked=lambda: True)
    assert sender.runs == ["cat"] and world.clock.monotonic() - begun < TELL_SECONDS - 1


# -- the command -------------------------------------------------------------------------------------------------------------

OTHER = RunnerInfo(4711, 1.0, "boot-1", "1", 7)


class Clockwork:
    """The command's time: every sleep passes at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(program.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(program.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[RunnerInfo | None]:
    """What `runner_alive` answers: the first of the list."""
    found: list[RunnerInfo | None] = [None]
    monkeypatch.setattr(program, "runner_alive", lambda outputs: found[0])
    return found


def test_it_takes_no_longer_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[RunnerInfo | None], capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clockwork(monkeypatch)
    given: list[float] = []
    others[0] = OTHER
    mine = threading.get_ident()

    def slow(seconds: float) -> None:
        if threading.get_ident() != mine:  # another test's thread that still sleeps is not on this clock
            return
        clock.now += seconds
        if clock.now > 140:  # the runner that was asked has died over it
            others[0] = None

    def serve(*_: object, seconds: float, **__: object) -> list[str]:
        given.append(seconds)
        return ["cat"]

    monkeypatch.setattr(program.time, "sleep", slow)
    monkeypatch.setattr(program, "serve", serve)
    assert program.stop_all(tmp_path, 1, Leaving()) == 1
    assert given == [pytest.approx(program.STOP_ALL_SECONDS - 40, abs=0.1)]
    assert "cat" in capsys.readouterr().err


def test_an_interruption_has_words_of_its_own(
    tmp_path: Path, others: list[RunnerInfo | None], capsys: pytest.CaptureFixture[str]
) -> None:
    leaving = Leaving()
    leaving.ask()
    assert program.stop_all(tmp_path, 1, leaving) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted") and "50 s" not in said


def test_a_full_disk_keeps_it_from_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    others: list[RunnerInfo | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_room(*_: object) -> None:
        raise RunError("the outputs folder can't be written; make room in it")

    signals: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        signals.append((pid, number))
        others[0] = None

    Clockwork(monkeypatch)
    others[0] = OTHER
    monkeypatch.setattr("fluxcore.runs.installation.check_outputs", no_room)
    monkeypatch.setattr(program, "check_outputs", no_room)
    monkeypatch.setattr(program.os, "kill", kill)
    monkeypatch.setattr(program, "serve", lambda *_, **__: [])
    assert program.main(["--outputs", str(tmp_path), "--stop-all"]) == 0
    assert signals == [(OTHER.pid, signal.SIGTERM)], "it can't be asked in the log; what it leaves is stopped from here"
    assert "not paused" in capsys.readouterr().err

    def forbidden(*_: int) -> None:
        raise PermissionError

    others[0] = OTHER
    monkeypatch.setattr(program.os, "kill", forbidden)
    assert program.main(["--outputs", str(tmp_path), "--stop-all"]) == 64, "nothing that would come of waiting"
    assert program.main(["--outputs", str(tmp_path)]) == 64


def test_the_queue_stays_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[RunnerInfo | None], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "serve", lambda *_, **__: [])
    assert program.stop_all(tmp_path, 1, Leaving()) == 0
    assert read_installation(tmp_path).paused and "./fluxgym queue resume" in capsys.readouterr().out
    pause_queue(tmp_path, "cli", "a talk")
    assert program.stop_all(tmp_path, 1, Leaving()) == 0
    assert read_installation(tmp_path).reason == "a talk", "a pause of a person's own keeps its reason"
