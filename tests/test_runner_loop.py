"""The runner's loop on a machine in memory: start, end, stop, queue, races, adoption. No process is started."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxcore.runs import list_run_folders
from tests.fakes import FakeGpus, World
from tests.stub_trainer import save_state
from tests.test_events_page import undocumented

ENDS = {"run.completed", "run.failed", "run.stopped", "run.stalled"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for folder in list_run_folders(tmp_path):
        assert undocumented(folder.path, "runner", "cli") == []


def test_a_request_becomes_a_trainer_and_a_completed_run(world: World) -> None:
    trainer = world.start("cat")
    assert world.state("cat").state == "starting"
    world.train("cat", 1, 5)
    assert world.state("cat").state == "running"
    world.complete("cat")
    done = world.last("cat", "run.completed")
    assert done.data == {"weights": "cat.safetensors", "steps": 5, "seconds": 12.0, "final_loss": 0.5}
    assert world.types("cat") == ["run.requested", "run.spawning", "run.started", "run.completed"]
    argv = trainer.launch.argv
    request = world.last("cat", "run.requested").id
    assert argv[argv.index("--run") :] == ["--run", "cat", "--attempt", "1", "--request", request]


def test_started_names_its_request_and_process_and_attempts_are_on_events_between_start_and_end_only(
    world: World,
) -> None:
    world.start("cat")
    world.train("cat", 1, 2)
    world.complete("cat")
    started = world.last("cat", "run.started")
    assert started.data["request"] == world.last("cat", "run.requested").id
    assert started.data["pid"] and started.data["shim_pid"] and started.data["boot_id"]
    live = False
    for event in world.events("cat"):
        live = live or event.type == "run.started"
        assert (event.attempt == 1) == live, event.type
        live = live and event.type not in ENDS


def test_samples_from_the_first_second_on_and_at_the_period(world: World) -> None:
    world.start("cat", sample_gpu_seconds=5)
    assert len(world.types("cat", "host.sampled")) == 1
    world.turns(20, 1.0)
    assert len(world.types("cat", "host.sampled")) == 5


def test_gpus_of_the_run_are_sampled_and_unknown_stays_null(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=None, b=50))
    world.start("cat")
    assert world.last("cat", "run.started").data["gpus"] == ["a"]
    assert world.last("cat", "gpu.sampled").data["utilization_percent"] is None
    assert world.trainer("cat").launch.env["CUDA_VISIBLE_DEVICES"] == "a"


def test_stop_saves_within_the_grace(world: World) -> None:
    trainer = world.start("cat")
    world.train("cat", 1, 4)
    saved = world.checkpoint("cat", 4)
    world.stop("cat")
    world.turns()
    stopped = world.last("cat", "run.stopped").data
    assert stopped == {"reason": "user", "step": 4, "resume_checkpoint": saved, "resume_step": 4}
    assert [number for _, number in trainer.signals] == [signal.SIGCONT, signal.SIGTERM]
    assert "run.killed" not in world.types("cat")


def test_stop_kills_after_the_grace_and_takes_the_children_with_it(world: World) -> None:
    world.executor.ignore_term, world.executor.children_of_next = True, {901, 902}
    trainer = world.start("cat", stop_grace_seconds=30)
    world.train("cat", 1, 2)
    world.stop("cat")
    world.turns(29, 1.0)
    assert trainer.alive
    world.turns(4, 1.0)
    assert not trainer.alive and not trainer.children
    killed = world.last("cat", "run.killed").data
    assert set(killed["pids"]) == {trainer.record.trainer.pid, 901, 902} and killed["survivors"] == []
    assert world.types("cat")[-2:] == ["run.killed", "run.stopped"]


def test_stop_of_a_queued_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("first")
    world.make("second")
    world.ask("second")
    world.turns()
    queued = world.last("second", "run.queued").data
    assert queued["position"] == 1 and "first" in queued["waiting_for"]
    world.stop("second")
    world.turns()
    assert world.state("second").state == "stopped"
    world.complete("first")
    world.turns(5, 1.0)
    assert world.types("second")[-1] == "run.stopped", "a stopped request must not be served later"


def test_the_queue_goes_in_the_order_of_the_requests(world: World) -> None:
    world.start("a")
    for name in ("c", "b"):
        world.make(name)
        world.ask(name)
        world.clock.advance(1)
        world.turns()
    assert [world.last(name, "run.queued").data["position"] for name in ("c", "b")] == [1, 2]
    world.complete("a")
    assert world.state("c").state == "starting" and world.state("b").state == "queued"
    assert world.last("b", "run.queued").data["position"] == 1
    assert len(world.types("c", "run.queued")) == 1, "an unchanged place is not said again"


def test_one_run_per_gpu(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=0, b=0))
    for name in ("x", "y", "z"):
        world.make(name)
        world.ask(name)
        world.clock.advance(1)
    world.turns()
    assert [world.state(name).state for name in ("x", "y", "z")] == ["starting", "starting", "queued"]
    assert world.last("y", "run.started").data["gpus"] == ["b"]


def test_of_two_racing_requests_the_later_is_refused(world: World) -> None:
    world.make("cat")
    first, second = world.ask("cat"), world.ask("cat")
    world.turns()
    assert world.last("cat", "request.refused").data["request"] == second.id
    assert world.last("cat", "run.started").data["request"] == first.id
    third = world.ask("cat")
    world.turns()
    assert world.last("cat", "request.refused").data["request"] == third.id
    assert len(world.executor.spawns) == 1


def test_resume_latest_is_resolved_and_a_wrong_state_refused(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 4)
    world.checkpoint("cat", 2)
    newest = world.checkpoint("cat", 4)
    world.trainer("cat").exit(2)
    world.turns()
    world.ask("cat", "cat-step00000099-state", "resume")
    world.turns()
    assert "no checkpoint" in world.last("cat", "request.refused").data["reason"]
    assert world.state("cat").state == "failed"
    world.ask("cat", "latest", "resume")
    world.turns()
    started = world.last("cat", "run.started")
    assert (started.attempt, started.data["resume_from"], started.data["resume_step"]) == (2, newest, 4)
    assert world.trainer("cat").launch.argv[-2:] == ["--resume-from", newest]


def test_a_config_may_name_the_state_to_start_from(world: World) -> None:
    world.make("cat", resume_from_checkpoint="cat-step00000007-state")
    world.ask("cat")
    world.turns()
    assert "no checkpoint" in world.last("cat", "request.refused").data["reason"]
    save_state(world.outputs / "cat", "cat-step00000007-state", 7)
    world.ask("cat")
    world.turns()
    assert world.last("cat", "run.started").data["resume_step"] == 7


def test_a_restart_begins_afresh_whatever_the_config_started_from(world: World) -> None:
    world.make("cat", resume_from_checkpoint="cat-step00000007-state", auto_resume=0)
    save_state(world.outputs / "cat", "cat-step00000007-state", 7)
    world.ask("cat")
    world.turns()
    world.trainer("cat").exit(1)
    world.turns()
    world.ask("cat", None, "restart")
    world.turns()
    started = world.last("cat", "run.started")
    assert (started.attempt, started.data["resume_from"], started.data["resume_step"]) == (2, None, None)
    assert "--resume-from" not in world.trainer("cat").launch.argv


def test_an_incomplete_checkpoint_is_never_the_one_to_resume(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 4)
    whole, torn = world.checkpoint("cat", 2), world.checkpoint("cat", 4)
    (world.outputs / "cat" / torn / "random_states_0.pkl").unlink()
    world.trainer("cat").exit(3)
    world.turns()
    assert world.last("cat", "run.failed").data["resume_checkpoint"] == whole
    world.ask("cat", torn, "resume")
    world.turns()
    assert "incomplete" in world.last("cat", "request.refused").data["reason"]


@pytest.mark.parametrize("moment", ["nothing spawned", "spawned", "running"])
def test_a_runner_killed_at_any_point_neither_loses_nor_doubles(world: World, moment: str) -> None:
    world.make("cat")
    world.ask("cat")
    world.executor.lost_spawns = 1 if moment == "nothing spawned" else 0
    world.runner.read_logs(())
    world.runner.start_waiting(list(world.runner.runs.values()))
    assert world.types("cat")[-1] == "run.spawning"
    if moment == "running":
        world.turns()
    world.new_runner()
    world.turns(3, 11.0)
    assert len(world.executor.trainers) == 1
    assert world.types("cat").count("run.started") == 1
    world.complete("cat")
    assert world.types("cat")[-1] == "run.completed"


def test_a_live_trainer_is_adopted_once_and_its_end_still_known(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 3)
    world.new_runner()
    world.turns(3, 1.0)
    assert world.types("cat").count("run.adopted") == 1
    assert world.last("cat", "run.adopted").data["pid"] == world.trainer("cat").record.trainer.pid
    world.complete("cat")
    assert world.types("cat")[-1] == "run.completed"


def test_an_exit_while_no_runner_lived_is_found(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 3)
    world.trainer("cat").exit(6)
    world.new_runner()
    world.turns()
    failed = world.last("cat", "run.failed").data
    assert (failed["exit_code"], failed["reason"]) == (6, "oom_gpu") and "run.adopted" not in world.types("cat")


def test_a_dead_shim_before_the_trainer_serves_the_request_anew_and_gives_up_in_the_end(world: World) -> None:
    world.make("cat")
    world.ask("cat")
    world.executor.broken_shims = 1
    world.turns(6, 2.0)
    assert world.last("cat", "run.started").attempt == 2
    world.make("dog")
    world.complete("cat")
    world.ask("dog")
    world.executor.broken_shims = 9
    world.turns(20, 2.0)
    assert "died three times" in world.last("dog", "request.refused").data["reason"]
    assert world.state("dog").state == "draft"


def test_a_dead_shim_leaves_the_exit_unknown_but_the_run_explained(world: World) -> None:
    trainer = world.start("cat", auto_resume=0)
    world.train("cat", 1, 3)
    trainer.shim_alive = False
    world.turns(3, 1.0)
    assert world.state("cat").state == "running", "the trainer still runs"
    trainer.exit(0)
    world.turns()
    failed = world.last("cat", "run.failed").data
    assert (failed["exit_code"], failed["reason"]) == (None, "lost")


def test_a_dead_shim_and_a_whole_result_is_completed(world: World) -> None:
    trainer = world.start("cat")
    world.trainer("cat").log.append("phase.started", {"phase": "train"})
    world.step("cat", 10, total=10)
    trainer.shim_alive = False
    world.complete("cat")
    assert world.types("cat")[-1] == "run.completed"


def test_every_attempt_ends_exactly_once(world: World) -> None:
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 3)
    world.checkpoint("cat", 3)
    world.trainer("cat").exit(1)
    world.turns()
    world.ask("cat", "latest", "resume")
    world.turns()
    world.stop("cat")
    world.turns()
    world.ask("cat", "latest", "resume")
    world.turns()
    world.complete("cat")
    for _ in range(3):
        world.new_runner()
        world.turns()
    ends = Counter(event.attempt for event in world.events("cat") if event.type in ENDS)
    assert ends == {1: 1, 2: 1, 3: 1}


def test_children_that_outlive_their_trainer_are_killed_without_a_word_of_it_in_the_log(world: World) -> None:
    trainer = world.start("cat")
    trainer.children = {950}
    world.complete("cat")
    world.turns(3, 1.0)
    assert not trainer.children and world.types("cat")[-1] == "run.completed"
    assert "run.killed" not in world.types("cat")
    assert "950" in (world.outputs / "cat" / "monitor.log").read_text()


def test_a_new_and_a_deleted_run_are_noticed(world: World) -> None:
    world.turns()
    world.make("cat")
    world.turns()
    assert "cat" in world.runner.runs
    (world.outputs / "cat").rename(world.outputs / ".gone")
    world.turns()
    assert "cat" not in world.runner.runs


def test_derived_files_follow_the_state(world: World) -> None:
    folder = world.make("cat")
    folder.monitor_pid.write_text("1\n")
    world.turns()
    assert not folder.monitor_pid.exists(), "a stale monitor.pid must not mislead"
    world.ask("cat")
    world.turns()
    assert folder.monitor_pid.exists()
    world.train("cat", 1, 1)
    assert '"running"' in folder.ui_state.read_text()
    world.complete("cat")
    assert '"completed"' in folder.ui_state.read_text() and not folder.monitor_pid.exists()


def test_one_runs_trouble_does_not_reach_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    world.start("bad")
    world.start("good")

    def broken(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(world.runner.runs["bad"], "option", broken)
    world.complete("good")
    assert world.types("good")[-1] == "run.completed"
    monkeypatch.undo()
    world.turns(3, 2.0)
    world.complete("bad")
    assert world.types("bad")[-1] == "run.completed", "it is taken up again"


def test_a_disk_that_is_full_for_a_while_delays_the_end_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.start("cat")
    world.train("cat", 1, 3)
    run = world.runner.runs["cat"]
    good = run._log.append

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run._log, "append", full)
    world.complete("cat")
    assert world.state("cat").state == "running"
    monkeypatch.setattr(run._log, "append", good)
    world.turns(3, 1.0)
    assert world.types("cat")[-1] == "run.completed"


def test_a_stop_just_before_a_crash_is_not_followed_by_an_automatic_attempt(world: World) -> None:
    world.start("cat", auto_resume=2)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.stop("cat")
    world.trainer("cat").exit(1)
    world.turns(30, 1.0)
    assert world.types("cat")[-1] == "run.failed" and len(world.state("cat").attempts) == 1
    world.ask("cat", "latest", "resume")
    world.turns(3, 1.0)
    world.train("cat", 5, 6)
    world.trainer("cat").exit(1)
    world.turns(30, 1.0)
    assert len(world.state("cat").attempts) == 3, "a person's next request ends the stop's reign"


def test_a_stop_while_an_automatic_attempt_is_to_come_is_heard(world: World) -> None:
    world.start("cat", auto_resume=2)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(1)
    world.turns(2)
    assert world.state("cat").requests[0].is_automatic
    world.stop("cat")
    world.turns(30, 1.0)
    assert world.types("cat")[-1] == "run.stopped" and len(world.state("cat").attempts) == 1


@pytest.mark.parametrize("when", ["before the verdict", "during the kill"])
def test_a_stop_of_a_run_that_stalls_is_not_followed_by_an_automatic_attempt(world: World, when: str) -> None:
    world.executor.ignore_term = True
    world.start("cat", auto_resume=2, stall_seconds=30, stop_grace_seconds=10)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.turns(29, 1.0)
    if when == "before the verdict":  # it lands in the log after the runner's last look
        evidence = {"evidence": {"seconds_without_progress": 30}}
        data = {"verdict": "silent", **evidence, "resume_checkpoint": "cat-step00000004-state", "resume_step": 4}
        data["stacks"] = None
        world.stop("cat")
        world.runner.runs["cat"]._log.append("run.stalled", data, attempt=1)
    else:
        while world.types("cat")[-1] != "run.stalled":
            world.turns(1, 1.0)
        world.stop("cat")
    world.turns(60, 1.0)
    assert world.types("cat")[-1] == "run.killed" and len(world.state("cat").attempts) == 1


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_an_unwritable_log_is_said_once_and_tried_again_at_leisure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 3)
    run, tries = world.runner.runs["cat"], []

    def count(*given: object, **_: object) -> None:
        tries.append(given)
        full()

    with monkeypatch.context() as patch:
        patch.setattr(run._log, "append", count)
        world.trainer("cat").exit(1)
        world.turns(1)
        due = [world.runner.turn() for _ in range(20)]
        assert min(due[1:]) >= 0.5, "it must not spin"
        world.turns(10, 1.0)
    assert len(tries) <= 8
    notes = (world.outputs / "cat" / "monitor.log").read_text()
    assert notes.count("can't be written") == 1 and "failed (" not in notes, "what is not written has not happened"
    world.turns(3, 1.0)
    assert world.types("cat")[-1] == "run.failed"
    notes = (world.outputs / "cat" / "monitor.log").read_text()
    assert notes.count("failed (crash") == 1 and notes.count("can be written again") == 1


def test_an_unwritable_log_does_not_delay_a_kill(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", stop_grace_seconds=10, sample_gpu_seconds=1)
    world.train("cat", 1, 3)
    world.stop("cat")
    monkeypatch.setattr(world.runner.runs["cat"]._log, "append", full)
    world.turns(15, 1.0)
    assert not trainer.alive


def test_an_automatic_attempt_that_could_not_be_asked_for_is_asked_for_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.start("cat", auto_resume=1)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(1)
    good = world.runner.runs["cat"]._log.append

    def requests_fail(type: str, *given: object, **more: object) -> object:
        return full() if type == "run.requested" else good(type, *given, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(world.runner.runs["cat"]._log, "append", requests_fail)
        world.turns(3, 1.0)
    assert world.types("cat")[-1] == "run.failed"
    world.turns(20, 1.0)
    assert len(world.state("cat").attempts) == 2


@pytest.mark.parametrize("when", ["before the runner starts", "while it trains"])
def test_a_run_whose_log_can_not_be_read_reaches_no_other_run(world: World, when: str) -> None:
    world.make("bad")
    log = world.outputs / "bad" / "events.jsonl"
    if when == "while it trains":
        world.ask("bad")
        world.turns()
        world.train("bad", 1, 2)
    log.rename(log.with_name("aside"))
    log.mkdir()
    world.cpu_slots = 2
    world.new_runner() if when == "before the runner starts" else setattr(world.runner, "cpu_slots", 2)
    world.start("good")
    world.turns(5, 1.0)
    world.complete("good")
    assert world.types("good")[-1] == "run.completed"
    log.rmdir()
    log.with_name("aside").rename(log)
    if when == "before the runner starts":
        world.ask("bad")
        world.turns(5, 1.0)
    world.complete("bad")
    world.turns(5, 1.0)
    assert world.types("bad")[-1] == "run.completed", "it is taken up again, its events all folded in"


def test_a_setting_that_is_no_number_stops_its_run_alone(world: World) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    world.start("bad")
    bad = world.runner.runs["bad"].state
    bad.configs[bad.config_id]["sample_gpu_seconds"] = "often"
    world.turns(3, 1.0)
    world.start("good")
    world.complete("good")
    assert world.types("good")[-1] == "run.completed"


def test_a_read_that_breaks_off_loses_no_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxcore.log import FolderReader

    world.start("cat")
    world.train("cat", 1, 2)
    whole, broken = FolderReader.read_new, [True]

    def read_new(reader: FolderReader) -> list:
        events = whole(reader)
        if events and broken:
            broken.clear()
            raise OSError(5, "Input/output error")
        return events

    monkeypatch.setattr(FolderReader, "read_new", read_new)
    world.step("cat", 3)
    world.turns(1, 1.0)
    assert not broken and world.runner.runs["cat"].state.live_attempt, "what is known stays known meanwhile"
    world.turns(4, 1.0)
    assert world.runner.runs["cat"].state.step == 3 and len(world.runner.runs["cat"].state.attempts) == 1
    assert "run.adopted" not in world.types("cat")


def test_a_request_is_refused_only_once_no_late_shim_can_serve_it(world: World) -> None:
    world.make("cat")
    world.ask("cat")
    world.executor.lost_spawns = 3
    world.turns(5, 11.0)
    assert "can't be started" in world.last("cat", "request.refused").data["reason"]
    assert world.executor.claims[("cat", 1)].given_up
    world.make("dog")
    world.ask("dog")
    world.executor.lost_spawns, world.executor.late_claim = 3, True
    world.turns(5, 11.0)
    assert world.types("dog")[-1] == "run.started", "a shim that came just in time is followed"


def test_a_refusal_that_can_not_be_written_is_made_up_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make("cat")
    world.ask("cat")
    world.executor.lost_spawns = 3
    world.turns(3, 11.0)
    with monkeypatch.context() as patch:
        patch.setattr(world.runner.runs["cat"]._log, "append", full)
        world.turns(2, 11.0)
    assert world.executor.claims[("cat", 1)].given_up and world.state("cat").state == "starting"
    world.new_runner()
    world.turns(2, 3.0)
    assert world.types("cat")[-1] == "request.refused" and len(world.executor.spawns) == 3


def test_a_trainer_that_started_and_ended_between_two_looks_is_not_started_again(world: World) -> None:
    world.make("cat")
    world.ask("cat")
    world.runner.read_logs(())
    world.runner.start_waiting(list(world.runner.runs.values()))
    world.clock.advance(2.0)
    world.executor.dies_unseen = True
    world.turns(1)
    assert world.types("cat").count("run.spawning") == 1 and world.types("cat")[-1] == "run.started"
