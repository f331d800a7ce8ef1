"""Who waits for what: chosen GPUs, fairness, a paused queue, a restart of the machine, requests that race."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fluxcore.config import ConfigError, parse_config
from fluxcore.config.gpu_ids import NoSuchGpu, choose_gpus, parse_gpu_ids
from fluxcore.log import EventLog, LogReader
from fluxcore.runs import (
    RunError,
    create_run,
    list_run_folders,
    pause_queue,
    processes,
    read_installation,
    request_resume,
    request_start,
    request_stop,
    resume_queue,
    waiting_in_line,
)
from runner.executor import LocalExecutor
from runner.queue import GPU_PATIENCE_SECONDS
from runner.waiting import PAUSED
from tests.fakes import FakeGpus, World
from tests.test_events_page import undocumented

TWO = {0: "GPU-aa", 1: "GPU-ab"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from documented(World(tmp_path))


@pytest.fixture
def two(tmp_path: Path) -> Iterator[World]:
    """A machine with the GPUs 0 (`a`) and 1 (`b`)."""
    yield from documented(World(tmp_path, gpus=FakeGpus(a=0, b=0)))


def documented(world: World) -> Iterator[World]:
    yield world
    for folder in list_run_folders(world.outputs):
        problems = undocumented(folder.path, "runner", "cli")
        assert [problem for problem in problems if not problem.startswith("gpu.sampled")] == []  # fake ones are short


def ask(world: World, name: str, **config: object) -> None:
    """A run is asked for, a second after what was before."""
    world.make(name, **config)
    world.clock.advance(1)
    world.ask(name)
    world.turns()


def waits(world: World, name: str) -> str:
    state = world.state(name)
    assert state.state == "queued", state.state
    return f"{state.queue_position}: {state.waiting_for}"


# -- chosen GPUs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [("", []), (" ", []), ("0", ["0"]), (" 1, 0 ", ["1", "0"]), ("GPU-aa,1", ["GPU-aa", "1"]), ("MIG-7/1/0", ["MIG-7/1/0"])],
)  # fmt: skip
def test_gpu_ids_are_numbers_or_uuids(text: str, names: list[str]) -> None:
    assert parse_gpu_ids(text) == names
    assert parse_config({"gpu_ids": text}).gpu_ids == ",".join(names)


@pytest.mark.parametrize("text", ["all", "0,,1", "-1", "0,0", "cuda:0", "0 1", "1.5", 1.5, [0]])
def test_what_names_no_gpu_is_a_sentence_at_its_field(text: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"gpu_ids": text})
    assert "nvidia-smi" in caught.value.fields["gpu_ids"]


def test_a_number_from_an_import_is_taken() -> None:
    assert parse_config({"gpu_ids": 1}).gpu_ids == "1"


def test_gpus_are_found_by_number_uuid_or_its_beginning() -> None:
    assert choose_gpus(["1", "GPU-aa"], TWO) == ["GPU-ab", "GPU-aa"]
    assert choose_gpus(["1", "GPU-ab"], TWO) == ["GPU-ab"]
    assert choose_gpus(["GPU-a"], {0: "GPU-a", 1: "GPU-ab"}) == ["GPU-a"], "a whole uuid is no beginning"
    assert choose_gpus(["3"], {3: "GPU-x"}) == ["GPU-x"], "the number is nvidia-smi's, not the place in a list"
    for name in ("2", "GPU-a", "GPU-zz"):
        with pytest.raises(NoSuchGpu, match=r"there is no GPU .* here \(FluxGym sees: 0 \(GPU-aa\), 1 \(GPU-ab\)\)"):
            choose_gpus([name], TWO)


def test_a_run_gets_exactly_its_gpus_in_its_order(two: World) -> None:
    ask(two, "both", gpu_ids="1,0")
    assert two.last("both", "run.started").data["gpus"] == ["b", "a"]
    assert two.trainer("both").launch.env == {"CUDA_VISIBLE_DEVICES": "b,a"}


def test_a_run_that_waits_for_one_gpu_does_not_hold_up_the_other(two: World) -> None:
    ask(two, "first", gpu_ids="1")
    ask(two, "second", gpu_ids="1")
    assert waits(two, "second") == "1: GPU 1, used by first"
    ask(two, "third", gpu_ids="0")
    assert two.last("third", "run.started").data["gpus"] == ["a"]
    two.complete("first")
    two.turns()
    assert two.last("second", "run.started").data["gpus"] == ["b"]


def test_a_run_that_wants_both_is_not_starved_by_those_that_want_one(two: World) -> None:
    ask(two, "x", gpu_ids="0")
    ask(two, "both", gpu_ids="0,1")
    ask(two, "y", gpu_ids="1")
    ask(two, "any")
    assert waits(two, "both") == "1: GPU 0, 1, used by x"
    assert waits(two, "y") == "2: GPU 1, both comes first", "free, but kept"
    assert waits(two, "any") == "3: a free GPU, used by x; both comes first"
    two.complete("x")
    two.turns()
    assert two.last("both", "run.started").data["gpus"] == ["a", "b"]
    two.complete("both")
    two.turns()
    assert two.last("y", "run.started").data["gpus"] == ["b"]
    assert two.last("any", "run.started").data["gpus"] == ["a"]


def test_whoever_takes_any_gpu_leaves_the_named_one_to_the_next(two: World) -> None:
    two.make("any")
    two.make("named", gpu_ids="0")
    for name in ("any", "named"):
        two.ask(name)
        two.clock.advance(1)
    two.turns()
    assert two.last("any", "run.started").data["gpus"] == ["b"]
    assert two.last("named", "run.started").data["gpus"] == ["a"]


def test_a_gpu_that_does_not_exist_is_refused_with_a_sentence_and_the_others_go_on(two: World) -> None:
    ask(two, "wrong", gpu_ids="0,7")
    refused = two.last("wrong", "request.refused").data["reason"]
    assert refused.startswith("there is no GPU 7 here (FluxGym sees: 0 (a), 1 (b))")
    assert two.state("wrong").state == "draft" and two.state("wrong").refusal == refused
    ask(two, "right", gpu_ids="0")
    assert two.types("right")[-1] == "run.started"


def test_a_chosen_gpu_that_was_there_and_is_lost_is_waited_for(two: World) -> None:
    ask(two, "cat", gpu_ids="0,1", auto_resume=1)
    two.train("cat", 1, 3)
    two.checkpoint("cat", 3)
    two.gpus.more["b"] = {"problem": "lost"}
    two.trainer("cat").exit(1)
    two.turns(40, 1.0)
    assert waits(two, "cat").startswith("1: GPU 0, 1 to work again (see what nvidia-smi says")
    ask(two, "any")
    assert two.last("any", "run.started").data["gpus"] == ["a"], "the other one is not kept for it"
    two.complete("any")
    del two.gpus.more["b"]
    two.turns(2)
    assert two.last("cat", "run.started").data["gpus"] == ["a", "b"]
    ask(two, "never", gpu_ids="7")
    assert "there is no GPU 7 here" in two.state("never").refusal


def test_after_a_restart_the_driver_may_come_late(two: World) -> None:
    """The run had a GPU: it must not go on without, nor be refused, because the machine shows none for a moment."""
    ask(two, "named", gpu_ids="1")
    two.train("named", 1, 3)
    two.checkpoint("named", 3)
    two.trainer("named").exit(1)
    ask(two, "any")
    two.trainer("any").exit(2)
    two.turns()
    gpus, two.gpus.uses = two.gpus.uses, {}
    two.new_runner()
    two.clock.advance(30)
    two.ask("any")
    two.turns()
    assert waits(two, "named") == "1: GPU 1 to appear" and waits(two, "any") == "2: a GPU to appear"
    two.turns(3, 20.0)
    assert two.state("named").state == two.state("any").state == "queued"
    two.gpus.uses = gpus
    two.turns()
    assert [two.last(name, "run.started").data["gpus"] for name in ("named", "any")] == [["b"], ["a"]]


def test_gpus_that_never_come_are_refused_in_the_end(world: World) -> None:
    world.turns()
    ask(world, "cat", gpu_ids="0")
    assert waits(world, "cat") == "1: GPU 0 to appear"
    ask(world, "dog")
    assert world.types("dog")[-1] == "run.started", "one that wants none is not held up"
    world.turns(3, GPU_PATIENCE_SECONDS / 2)
    assert "there is no GPU 0 here (FluxGym sees: none)" in world.last("cat", "request.refused").data["reason"]


def test_gpus_that_vanish_again_are_waited_for_again(two: World) -> None:
    gpus = two.gpus.uses
    for _ in range(2):
        two.gpus.uses = {}
        name = f"cat{two.clock.seconds:.0f}"
        ask(two, name, gpu_ids="0")
        two.turns(2, GPU_PATIENCE_SECONDS / 2 - 1)
        assert waits(two, name) == "1: GPU 0 to appear"
        two.gpus.uses = gpus
        two.turns()
        two.complete(name)


# -- places -------------------------------------------------------------------------------------------------------------


def test_an_automatic_attempt_keeps_its_place(world: World) -> None:
    """A run that crashed at three in the morning goes on before those that had waited behind it."""
    ask(world, "long")
    world.train("long", 1, 3)
    world.checkpoint("long", 3)
    ask(world, "next")
    world.trainer("long").exit(1)
    world.turns(3)
    assert waits(world, "long") == "1: a pause before the next attempt"
    assert waits(world, "next").startswith("2: the machine")
    world.turns(8, 1.0)
    assert world.state("long").attempts[-1].number == 2 and world.state("next").state == "queued"


def test_a_run_that_had_to_wait_keeps_the_place_of_its_request_when_it_crashes(world: World) -> None:
    """Not that of its attempt's start, before which others had asked."""
    ask(world, "first")
    world.train("first", 1, 3)
    ask(world, "older")
    world.turns(1)
    ask(world, "newer")
    world.turns(1)
    world.trainer("first").exit(0)
    world.turns(3)
    world.train("older", 1, 3)
    world.checkpoint("older", 3)
    world.trainer("older").exit(1)
    world.turns(3)
    assert waits(world, "older") == "1: a pause before the next attempt"
    assert waits(world, "newer").startswith("2: the machine")


def test_an_automatic_request_that_is_refused_is_not_asked_for_again_and_again(two: World) -> None:
    ask(two, "cat", gpu_ids="1", auto_resume=5)
    two.train("cat", 1, 3)
    two.checkpoint("cat", 3)
    del two.gpus.uses["b"]
    two.trainer("cat").exit(1)
    two.new_runner()  # it has never seen that GPU
    two.turns(40, 1.0)
    assert two.types("cat").count("request.refused") == 1
    assert two.types("cat").count("run.requested") == 2 and two.state("cat").state == "failed"
    two.gpus.uses["b"] = 0
    two.ask("cat", "latest", "resume")
    two.turns()
    two.train("cat", 4, 5)
    two.checkpoint("cat", 5)
    two.trainer("cat").exit(1)
    two.turns(10, 1.0)
    assert len(two.state("cat").attempts) == 3, "a person's request gives the automatic ones back"


def test_an_automatic_request_that_came_too_late_takes_nothing_from_the_next_attempt(world: World) -> None:
    ask(world, "cat", auto_resume=2)
    world.train("cat", 1, 3)
    world.checkpoint("cat", 3)
    world.trainer("cat").exit(1)
    world.turns(1)
    saved = world.last("cat", "run.failed").data["resume_checkpoint"]
    world.ask("cat", "latest", "resume")
    late = {"config": world.state("cat").config_id, "resume_from": saved, "reason": "auto_resume"}
    world.runner.runs["cat"]._log.append("run.requested", late)
    world.turns()
    assert world.types("cat")[-1] == "run.started"
    world.train("cat", 4, 6)
    world.checkpoint("cat", 6)
    world.trainer("cat").exit(1)
    world.turns(10, 1.0)
    assert len(world.state("cat").attempts) == 3


# -- a paused queue -----------------------------------------------------------------------------------------------------


def test_a_paused_queue_starts_nothing_and_lets_running_ones_go_on(world: World) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    ask(world, "running")
    pause_queue(world.outputs, "cli", "the GPU is needed for a talk")
    ask(world, "waiting")
    assert waits(world, "waiting") == f"1: {PAUSED}"
    world.train("running", 1, 3)
    world.new_runner()
    world.turns(3, 1.0)
    assert world.state("waiting").state == "queued", "a new runner knows it too"
    world.complete("running")
    assert world.state("running").state == "completed"
    found = read_installation(world.outputs)
    assert found.paused and found.reason == "the GPU is needed for a talk" and found.paused_since
    resume_queue(world.outputs, "cli")
    world.turns()
    assert world.types("waiting")[-1] == "run.started"
    assert not read_installation(world.outputs).paused
    log = LogReader(world.outputs / ".events.jsonl").read_new()
    assert [event.type for event in log] == ["queue.paused", "queue.resumed"]
    assert undocumented_of(log) == []


def undocumented_of(events: list) -> list[str]:
    from fluxcore.log.page import problems

    return [problem for event in events for problem in problems(event.type, event.data)]


def test_a_paused_queue_holds_automatic_attempts_too_and_a_stop_is_heard(world: World) -> None:
    ask(world, "cat")
    world.train("cat", 1, 3)
    world.checkpoint("cat", 3)
    pause_queue(world.outputs, "cli")
    world.trainer("cat").exit(1)
    world.turns(30, 1.0)
    assert waits(world, "cat") == f"1: {PAUSED}" and len(world.state("cat").attempts) == 1
    world.stop("cat")
    world.turns()
    assert world.last("cat", "run.stopped").data["reason"] == "user"


def test_a_paused_queue_is_noticed_in_a_log_of_a_writer_without_locks(world: World) -> None:
    with EventLog(world.outputs, "app", run="", stem=".events.app-1-ab") as log:
        log.append("queue.paused", {"reason": "user"})
    ask(world, "cat")
    assert waits(world, "cat") == f"1: {PAUSED}"


def test_a_wrong_gpu_is_refused_in_a_paused_queue_too(two: World) -> None:
    pause_queue(two.outputs, "cli")
    ask(two, "cat", gpu_ids="9")
    assert two.state("cat").state == "draft" and "no GPU 9" in two.state("cat").refusal


def test_an_installation_log_that_can_not_be_read_leaves_things_as_they_were(world: World) -> None:
    pause_queue(world.outputs, "cli")
    world.turns()
    log = world.outputs / ".events.jsonl"
    log.rename(log.with_name("aside"))
    log.mkdir()
    ask(world, "cat")
    assert waits(world, "cat") == f"1: {PAUSED}"


def test_a_pause_that_was_read_before_another_file_broke_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.turns()
    pause_queue(world.outputs, "cli")
    (world.outputs / ".events.other-1.jsonl").write_bytes(b"")
    break_reading(monkeypatch, ".events.other-1.jsonl")
    ask(world, "cat")
    world.turns(5, 1.0)
    assert caplog.text.count("Input/output error") == 1, "it is said once"
    monkeypatch.undo()
    ask(world, "dog")
    assert world.state("cat").live_attempt, "what was said last held"
    assert waits(world, "dog") == "1: ./fluxgym queue resume (the queue is paused)"
    resume_queue(world.outputs, "cli")
    world.complete("cat")
    world.turns()
    assert world.types("dog")[-1] == "run.started"


def test_a_new_runner_starts_nothing_before_it_knows_whether_the_queue_is_paused(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask(world, "old")
    pause_queue(world.outputs, "cli")
    ask(world, "cat")
    break_reading(monkeypatch, ".events.jsonl")
    world.new_runner()
    world.turns(10, 1.0)
    world.complete("old")
    assert world.state("cat").state == "queued" and world.state("old").state == "completed"
    assert caplog.text.count("no run is started before it can") == 1
    monkeypatch.undo()
    world.turns()
    assert waits(world, "cat") == "1: ./fluxgym queue resume (the queue is paused)"
    resume_queue(world.outputs, "cli")
    world.turns()
    assert world.types("cat")[-1] == "run.started"


def break_reading(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file of that name gives an I/O error."""
    read = LogReader.read_lines

    def broken(self: LogReader, *size: int) -> bytes:
        if self.path.name == name:
            raise OSError(5, "Input/output error", str(self.path))
        return read(self, *size)

    monkeypatch.setattr(LogReader, "read_lines", broken)


def test_the_line_as_the_app_shows_it(world: World) -> None:
    ask(world, "a")
    ask(world, "c")
    ask(world, "b")
    world.make("new")
    world.ask("new")
    assert [state.name for state in waiting_in_line(world.outputs)] == ["c", "b", "new"]


# -- a restart of the machine -------------------------------------------------------------------------------------------


class Spawnless(LocalExecutor):
    """This machine's processes, but nothing is started; what would be is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def spawn(self, launch) -> None:
        self.launched.append(launch.folder.name)


def test_a_restart_of_the_machine_continues_the_queue(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the restart `night` trained and two runs waited; its trainer's pid is another process's by now: ours."""
    ask(world, "night", auto_resume=2)
    world.train("night", 1, 5)
    saved = world.checkpoint("night", 5)
    ask(world, "second")
    ask(world, "third")
    trainer, folder = world.trainer("night"), world.runner.runs["night"].folder
    ours = processes.identify(os.getpid())
    assert ours is not None
    before = replace(ours, boot_id="the boot before")
    record = {"pid": before.pid, "create_time": before.create_time, "start_ticks": before.start_ticks}
    place = folder.attempt(1)
    place.mkdir(parents=True)

    (place / "claim.json").write_text(json.dumps(record | {"boot_id": "the boot before"}))
    (place / "process.json").write_text(
        json.dumps(record | {"boot_id": "the boot before", "shim": record | {"boot_id": "the boot before"}})
    )
    trainer.log.close()

    signals: list[int] = []
    executor = Spawnless()
    monkeypatch.setattr(executor, "signal", lambda identity, number: signals.append(identity.pid))
    world.executor = executor  # type: ignore[assignment]
    world.new_runner()
    world.clock.advance(8 * 3600)  # the machine was off for the rest of the night
    world.turns(2)
    failed = world.last("night", "run.failed").data
    assert (failed["reason"], failed["exit_code"], failed["resume_checkpoint"]) == ("lost", None, saved)
    assert "run.adopted" not in world.types("night") and signals == []
    world.turns(6, 1.0)
    assert executor.launched == ["night"], "it goes on first, from its checkpoint"
    assert world.last("night", "run.spawning").data["resume_from"] == saved
    assert waits(world, "second").startswith("1: the machine") and waits(world, "third").startswith("2: the machine")


def test_an_intent_from_before_a_restart_is_served_anew(world: World) -> None:
    """The machine went down between the shim's claim and its trainer."""

    world.make("cat")
    world.ask("cat")
    world.executor.lost_spawns = 1
    world.turns(1)
    assert world.types("cat")[-1] == "run.spawning"
    place = world.runner.runs["cat"].folder.attempt(1)
    place.mkdir(parents=True)
    ours = processes.identify(os.getpid())
    assert ours is not None
    claim = {"pid": ours.pid, "create_time": 1.0, "start_ticks": ours.start_ticks, "boot_id": "the boot before"}
    (place / "claim.json").write_text(json.dumps(claim))
    world.executor = Spawnless()  # type: ignore[assignment]
    world.new_runner()
    world.turns(5, 1.0)
    intents = [event.data["attempt"] for event in world.events("cat") if event.type == "run.spawning"]
    assert intents == [1, 2] and world.executor.launched == ["cat"]


# -- races --------------------------------------------------------------------------------------------------------------


def race(*asks: Callable[[], object]) -> list[Exception | None]:
    """All at the same moment, each in a thread of its own; what each raised."""
    barrier, raised = threading.Barrier(len(asks)), [None] * len(asks)

    def one(index: int) -> None:
        barrier.wait()
        try:
            asks[index]()
        except RunError as error:
            raised[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_two_requests_that_race_are_one_training_and_one_refusal(world: World) -> None:
    """Both writers look first, and both may find the run free: then the line order of the log settles it."""
    met = 0
    for number in range(30):
        name = f"cat{number}"
        create_run(world.outputs, parse_config({"lora_name": name}), "cli", picture)
        raised = race(
            lambda name=name: request_start(world.outputs, name, "cli"),
            lambda name=name: request_start(world.outputs, name, "app"),
        )
        world.turns(3)
        requests = [event.id for event in world.events(name) if event.type == "run.requested"]
        refused = [event.data["request"] for event in world.events(name) if event.type == "request.refused"]
        assert len(requests) + sum(error is not None for error in raised) == 2
        assert refused == requests[1:] and world.last(name, "run.started").data["request"] == requests[0]
        met += len(requests) == 2
        world.complete(name)
    assert len(world.executor.spawns) == 30
    assert met, "not one of thirty pairs met: this test shows nothing"


def test_a_persons_resume_that_races_with_the_automatic_one_is_one_attempt(world: World) -> None:
    create_run(world.outputs, parse_config({"lora_name": "cat"}), "cli", picture)
    request_start(world.outputs, "cat", "cli")
    world.turns()
    for round in range(1, 8):
        world.train("cat", 2 * round, 2 * round + 1)
        world.checkpoint("cat", 2 * round + 1)
        world.trainer("cat").exit(1)
        world.turns(1)
        race(lambda: request_resume(world.outputs, "cat", "cli"), lambda: world.turns(2))
        world.turns(30, 1.0)
        assert len(world.state("cat").attempts) == round + 1 and world.state("cat").live_attempt
    assert len(world.executor.spawns) == 8


def test_a_start_that_races_with_a_stop_ends_stopped_or_was_refused(world: World) -> None:
    for number in range(15):
        name = f"cat{number}"
        create_run(world.outputs, parse_config({"lora_name": name}), "cli", picture)
        stop = race(
            lambda name=name: request_start(world.outputs, name, "cli"),
            lambda name=name: request_stop(world.outputs, name, "app"),
        )[1]
        world.turns(6, 1.0)
        assert world.state(name).state == ("starting" if stop else "stopped")
        if stop:
            world.complete(name)


def picture(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
