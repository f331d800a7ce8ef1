"""What the runner makes of its GPUs: whose samples, XIDs and lost ones, and a driver that gives no answer."""

from __future__ import annotations

from pathlib import Path

from fluxcore.log import Event
from tests.fakes import FakeGpus, World


def sampled(world: World, name: str) -> list[Event]:
    return [event for event in world.events(name) if event.type == "gpu.sampled"]


def on_gpus(outputs: Path, *uuids: str) -> World:
    world = World(outputs, gpus=FakeGpus(**dict.fromkeys(uuids, 90)))
    world.gpus.more = {uuid: {"xid_errors": [], "problem": None} for uuid in uuids}
    return world


def test_a_run_has_samples_of_its_own_gpus_alone_and_of_all_runs_at_the_same_moments(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a", "GPU-b")
    world.start("cat")
    world.turns(3, 1.0)
    world.start("dog")
    world.turns(20, 1.0)
    cat, dog = sampled(world, "cat"), sampled(world, "dog")
    assert {event.data["uuid"] for event in cat} == {"GPU-a"} and {event.data["uuid"] for event in dog} == {"GPU-b"}
    assert [event.ts for event in cat[1:]] == [event.ts for event in dog[-len(cat) + 1 :]] and len(cat) == 5


def test_a_reading_that_is_on_its_way_is_taken_at_the_next_turn(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a")
    world.start("cat")
    world.turns(4, 1.0)
    world.gpus.late = 2
    before = len(sampled(world, "cat"))
    world.turns(2, 1.0)
    assert len(sampled(world, "cat")) == before
    world.turns(1, 1.0)
    assert len(sampled(world, "cat")) == before + 1


def test_xids_are_told_once_and_to_the_attempt_in_which_they_came(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a", "GPU-b")
    world.gpus.more["GPU-a"]["xid_errors"] = [31]  # of whatever ran before
    world.start("cat")
    world.turns(7, 1.0)
    world.gpus.more["GPU-a"]["xid_errors"] = [31, 48, 94]
    world.turns(12, 1.0)
    assert [event.data["xid_errors"] for event in sampled(world, "cat")] == [[], [], [48, 94], []]
    assert "GPU 0 reported XID 48, 94" in (tmp_path / "cat" / "monitor.log").read_text()


def test_the_xid_that_ended_a_trainer_between_two_samples_is_found_and_explained(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a")
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 6)
    world.checkpoint("cat", 6)
    world.gpus.more["GPU-a"] = {"xid_errors": [79], "problem": "lost"}
    world.gpus.late = 1
    world.trainer("cat").exit(1)
    world.turns(3, 0.5)
    assert sampled(world, "cat")[-1].data["xid_errors"] == [79]
    failed = world.last("cat", "run.failed").data
    assert failed["reason"] == "crash" and failed["resume_checkpoint"]
    assert failed["hint"] == ("GPU 0 fell off the bus (XID 79): restart the machine or rent another GPU, then resume.")


def test_what_a_program_does_wrong_itself_is_not_blamed_on_the_gpu(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a")
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 6)
    world.gpus.more["GPU-a"]["xid_errors"] = [31, 43]
    world.trainer("cat").exit(1)
    world.turns(3, 0.5)
    assert "GPU" not in world.last("cat", "run.failed").data["hint"]


def test_a_new_runner_knows_what_the_old_one_saw(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a")
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 3)
    world.gpus.more["GPU-a"]["xid_errors"] = [48]
    world.turns(6, 1.0)
    world.new_runner()
    world.gpus.more["GPU-a"]["xid_errors"] = []  # it listens anew
    world.turns(3, 1.0)
    world.trainer("cat").exit(1)
    world.turns(3, 0.5)
    assert "XID 48" in world.last("cat", "run.failed").data["hint"]


def test_a_run_on_a_lost_gpu_is_stalled_with_the_cause_and_resumed_on_another(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a", "GPU-b")
    world.start("cat")
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    world.gpus.uses["GPU-a"] = None
    world.gpus.more["GPU-a"] = {"xid_errors": [79], "problem": "lost"}
    world.turns(320, 1.0)
    stalled = world.last("cat", "run.stalled").data
    assert stalled["verdict"] == "no_progress" and "XID 79" in stalled["hint"] and "resume" in stalled["hint"]
    assert stalled["evidence"]["gpus"][0]["problem"] == "lost"
    assert world.last("cat", "run.started").data["gpus"] == ["GPU-b"]
    assert world.trainer("cat").launch.env["CUDA_VISIBLE_DEVICES"] == "GPU-b", "the lost one must not be counted"
    note = (tmp_path / "cat" / "monitor.log").read_text()
    assert "GPU 0 is lost" in note and "fell off the bus" in note


def test_where_no_gpu_answers_a_run_waits_and_does_not_train_on_the_cpu(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a")
    world.gpus.answers = False
    world.make("cat")
    world.ask("cat")
    world.turns(3, 1.0)
    state = world.state("cat")
    assert (state.state, state.queue_position) == ("queued", 1) and "nvidia-smi" in state.waiting_for
    world.gpus.answers = True
    world.turns(3, 1.0)
    assert world.last("cat", "run.started").data["gpus"] == ["GPU-a"]


def test_a_driver_that_gives_no_answer_is_no_idle_gpu(tmp_path: Path) -> None:
    world = on_gpus(tmp_path, "GPU-a")
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 5)
    world.gpus.uses["GPU-a"] = 0
    world.turns(200, 1.0)
    world.gpus.uses["GPU-a"] = None
    world.gpus.more["GPU-a"] = {"problem": "no_answer", "xid_errors": None}
    world.turns(120, 1.0)
    stalled = world.last("cat", "run.stalled").data
    assert stalled["verdict"] == "no_progress" and stalled["hint"].startswith("GPU 0's driver gave no answer")
