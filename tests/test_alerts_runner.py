"""The runner's side of alerts: when it has people told, how often, and that none of it costs the loop anything."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxcore.alerts.message import DeliveryError
from fluxcore.log import EventLog, format_ts
from runner.alerts import Alerts
from runner.run import Run
from tests.fakes import World
from tests.test_alerts import SECRET, Post, failed, outcomes, target, telling


class FakeSending:
    """A process that ends when the test says so."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


class FakeSender:
    """Starts FakeSendings. `at_start`: what such a process does at once (None: it hangs)."""

    def __init__(self) -> None:
        self.started: list[FakeSending] = []
        self.at_start: Callable[[str], None] | None = None
        self.error: OSError | None = None

    def start(self, outputs: Path, run: str) -> FakeSending:
        if self.error is not None:
            raise self.error
        made = FakeSending(run)
        self.started.append(made)
        if self.at_start is not None:
            self.at_start(run)
            made.code = 0
        return made

    @property
    def runs(self) -> list[str]:
        return [sending.run for sending in self.started]


class Told:
    """A world whose runner tells people."""

    def __init__(self, outputs: Path) -> None:
        self.sender = FakeSender()
        self.world = World(outputs, sender=self.sender)
        self.post = Post()
        self.sender.at_start = lambda run: telling(self.world, run, self.post)
        target(self.world, "phone")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.delenv("FLUXGYM_ALERTS", raising=False)
    return Told(tmp_path)


def test_news_is_told_once_and_is_in_monitor_log(told: Told) -> None:
    failed(told.world)
    told.world.turns(60, 60.0)
    assert told.sender.runs == ["cat"] and len(told.post.sent) == 1
    log = (told.world.outputs / "cat" / "monitor.log").read_text()
    assert log.count("INFO - alert sent to phone: failed") == 1


def test_stall_and_resume_are_told_in_order(told: Told) -> None:
    world = told.world
    world.start("cat", auto_resume=1, stall_seconds=30)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.turns(44, 1.0)
    world.complete("cat")
    assert told.post.titles("phone") == [
        "cat was stuck at step 4 of 1000",
        "cat goes on by itself from step 4",
        "cat is finished",
    ]


def test_without_targets_and_with_alerts_off_no_process_is_started(told: Told) -> None:
    failed(told.world, "quiet", alerts="off")
    (told.world.outputs / ".alerts.json").unlink()
    failed(told.world)
    told.world.turns(20, 60.0)
    assert told.sender.started == []


def test_a_dead_target_is_tried_later_and_later_and_given_up_after_an_hour(told: Told) -> None:
    told.post.trouble["phone"] = DeliveryError("it can't be reached, or did not answer")
    tries: list[float] = []
    told.sender.at_start = lambda run: (tries.append(told.world.clock.seconds), telling(told.world, run, told.post))[1]
    failed(told.world)
    told.world.turns(5000, 1.0)
    waits = [round(later - earlier) for earlier, later in zip(tries, tries[1:], strict=False)]
    assert waits[:5] == [5, 15, 45, 135, 300] and set(waits[4:]) == {300}, waits
    assert 3300 <= tries[-1] - tries[0] < 3600
    assert outcomes(told.world, "cat") == [
        ("alert.failed", "phone", "failed", "it can't be reached, or did not answer")
    ]
    log = (told.world.outputs / "cat" / "monitor.log").read_text()
    assert log.count("WARNING - alert to phone (failed) failed: it can't be reached, or did not answer") == 1
    assert log.count("WARNING - alert to phone (failed) is not sent yet: tried again for 1 h") == 1, "and soon"
    assert log.index("is not sent yet") < log.index("(failed) failed")


def test_what_is_new_is_told_at_once_whatever_waits(told: Told) -> None:
    world = told.world
    told.post.trouble["phone"] = DeliveryError("no answer within 30 s")
    world.start("cat", auto_resume=1)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(1)
    world.turns(400, 1.0)
    del told.post.trouble["phone"]
    before = len(told.sender.started)
    world.complete("cat")
    assert len(told.sender.started) == before + 1
    assert [title.split(" at ")[0] for title in told.post.titles("phone")] == [
        "cat failed",
        "cat goes on by itself from step 4",
        "cat is finished",
    ]


def test_news_do_not_begin_the_pauses_of_a_dead_target_anew(told: Told) -> None:
    """A run that fails and is resumed again and again makes news every few seconds."""
    world = told.world
    told.post.trouble["phone"] = DeliveryError("no answer within 30 s")
    world.start("cat")
    tries: list[float] = []
    told.sender.at_start = lambda run: (tries.append(world.clock.seconds), telling(world, run, told.post))[1]
    log = EventLog(world.outputs / "cat", "runner", now=lambda: format_ts(world.clock.now()))
    for _ in range(40):
        log.append("disk.low", {"free_gib": 1.0, "needed_gib": 1.1}, attempt=1)
        world.turns(1, 1.0)
    assert len(tries) <= 9, "one each five seconds at the most, while there is something new"
    tries.clear()
    world.turns(200, 1.0)
    assert len(tries) <= 1, "and what failed so often waits for long"


def test_a_process_that_hangs_delays_no_turn_and_no_other_run(told: Told) -> None:
    world, sender = told.world, told.sender
    sender.at_start = None
    failed(world)
    assert sender.runs == ["cat"]
    failed(world, "dog")
    world.start("owl")
    world.train("owl", 1, 100)
    assert sender.runs == ["cat", "dog"], "one process for each run, and no second one beside it"
    assert world.state("owl").step == 100 and len(world.types("owl", "host.sampled")) > 15
    assert world.runner.turn() <= 1.0, "it looks again for the end of the process"
    sender.started[0].code = -14  # it ended itself, with nothing done
    sender.at_start = lambda run: telling(world, run, told.post)
    world.turns(12, 1.0)
    assert sender.runs == ["cat", "dog", "cat"] and told.post.titles("phone")[0].startswith("cat failed")


def test_the_next_turn_is_due_when_the_next_try_is(told: Told) -> None:
    told.post.trouble["phone"] = DeliveryError("no answer within 30 s")
    failed(told.world)
    told.world.turns(2, 0.0)
    told.world.runner.poll_seconds = 1000.0
    told.world.turns(1, 3.0)
    assert told.world.runner.turn() == pytest.approx(2.0)
    told.world.turns(5, 5.0)
    told.post.trouble.clear()
    told.world.turns(4, 500.0)
    assert len(told.post.sent) == 1 and told.world.runner.turn() == 1000.0


def test_the_next_runner_sends_nothing_twice_and_loses_nothing(told: Told) -> None:
    world = told.world
    failed(world)
    world.new_runner()
    world.turns(5, 1.0)
    assert len(told.post.sent) == 1 and told.sender.runs == ["cat"]
    log = (world.outputs / "cat" / "monitor.log").read_text()
    assert log.count("alert sent to phone") == 1

    told.sender.at_start = None
    failed(world, "dog")
    world.new_runner()  # killed with a process at work: that one goes on
    telling(world, "dog", told.post)
    world.turns(5, 1.0)
    assert told.sender.runs == ["cat", "dog"] and len(told.post.sent) == 2
    assert "alert sent to phone" not in (world.outputs / "dog" / "monitor.log").read_text(), "it was not this runner's"

    failed(world, "owl")  # killed before its process did anything
    told.sender.at_start = lambda run: telling(world, run, told.post)
    world.new_runner()
    world.turns(5, 1.0)
    assert told.post.titles("phone")[-1].startswith("owl failed") and len(told.post.sent) == 3


def test_a_runner_that_starts_late_tells_nothing_of_what_ended_long_ago(told: Told) -> None:
    told.sender.at_start = None
    failed(told.world)
    told.world.clock.advance(3700)
    started = len(told.sender.started)
    told.world.new_runner()
    told.world.turns(5, 1.0)
    assert len(told.sender.started) == started


def test_a_kill_9_of_the_runner_anywhere_tells_each_news_once(told: Told) -> None:
    world = told.world
    world.start("cat", auto_resume=2)
    for attempt in (1, 2):
        world.train("cat", attempt * 10, attempt * 10 + 4)
        world.checkpoint("cat", attempt * 10 + 4)
        world.trainer("cat").exit(1)
        for _ in range(25):
            world.new_runner()
            world.turns(1, 1.0)
    world.complete("cat")
    titles = told.post.titles("phone")
    assert len(titles) == len(set(titles)) == 5, titles


def test_a_broken_file_of_targets_costs_the_run_nothing_and_is_said_once(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    file = told.world.outputs / ".alerts.json"
    good = file.read_bytes()
    file.write_text(SECRET)
    with caplog.at_level(logging.WARNING):
        failed(told.world)
        told.world.turns(30, 1.0)
    assert told.world.state("cat").state == "failed" and told.sender.started == []
    assert caplog.text.count("is not JSON") == 1 and SECRET not in caplog.text
    file.write_bytes(good)
    told.world.turns(100, 1.0)
    assert len(told.post.sent) == 1


def test_a_machine_that_starts_no_process_is_tried_again(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    told.sender.error = OSError(11, "Resource temporarily unavailable")
    failed(told.world)
    told.world.turns(4, 1.0)
    assert caplog.text.count("Resource temporarily unavailable") == 1
    told.sender.error = None
    told.world.turns(20, 1.0)
    assert len(told.post.sent) == 1


def test_an_error_that_nobody_foresaw_stays_out_of_the_loop_and_its_words_out_of_the_log(
    told: Told, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("runner.alerts.pending", broken)
    failed(told.world)
    told.world.start("dog")
    told.world.train("dog", 1, 5)
    assert told.world.state("dog").step == 5
    assert caplog.text.count("alerts: a step failed with RuntimeError") == 1 and SECRET not in caplog.text


@pytest.mark.parametrize("broken", ["runner.alerts.load_targets", "runner.alerts.recent"])
def test_no_error_leaves_the_loop_without_a_pause(told: Told, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """What stays due would be tried again in every turn, as fast as the machine can."""
    calls: list[int] = []

    def breaks(*_: object) -> None:
        calls.append(1)
        raise RuntimeError(SECRET)

    failed(told.world, "dog")
    with monkeypatch.context() as patch:
        patch.setattr(broken, breaks)
        failed(told.world)
        told.world.turns(10)
        assert calls and told.world.runner.turn() >= 1.0
    told.world.turns(10, 1.0)


def test_a_target_without_an_address_costs_nothing_and_is_said(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    (told.world.outputs / ".alerts.json").write_text('{"targets": [{"name": "phone", "url": null}]}')
    failed(told.world)
    assert told.world.runner.turn() >= 1.0
    assert caplog.text.count("can't be understood; mend it") == 1


def test_one_runs_trouble_keeps_no_other_from_being_told(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Alerts._look

    def breaks(self: Alerts, run: Run, now: float) -> None:
        if run.name == "cat":
            raise RuntimeError(SECRET)
        look(self, run, now)

    monkeypatch.setattr(Alerts, "_look", breaks)
    told.world.cpu_slots = told.world.runner.cpu_slots = 2
    told.world.start("cat", auto_resume=1)
    told.world.train("cat", 1, 4)
    told.world.checkpoint("cat", 4)
    told.world.trainer("cat").exit(1)
    told.world.turns(10, 1.0)
    failed(told.world, "dog")
    assert told.world.state("cat").live_attempt and told.sender.runs == ["dog"]


def test_a_deleted_run_is_forgotten(told: Told) -> None:
    told.post.trouble["phone"] = DeliveryError("no answer within 30 s")
    failed(told.world)
    (told.world.outputs / "cat").rename(told.world.outputs / ".deleted-cat")
    started = len(told.sender.started)
    told.world.turns(20, 60.0)
    assert len(told.sender.started) == started


def test_many_old_runs_cost_nothing(tmp_path: Path) -> None:
    told = Told(tmp_path)
    for number in range(30):
        name = f"old-{number}"
        told.world.make(name)
        log = EventLog(tmp_path / name, "runner", now=lambda: "2026-01-01T00:00:00.000000Z")
        log.append("run.completed", {"weights": "x", "steps": 1, "seconds": 1.0, "final_loss": None})
    (tmp_path / ".alerts.json").unlink()
    (tmp_path / ".alerts.json").mkdir()  # whoever opened it would fail
    told.world.turns(3, 1.0)
    assert told.sender.started == [] and told.world.runner.alerts is not None
    assert told.world.runner.alerts.due() == float("inf")
