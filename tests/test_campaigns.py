"""The campaigns of `bench chaos` in small, and that their checks find what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.campaigns import any_kills, runner_kills, trees
from benchmarks.campaigns.newest import maker, newest_whole
from benchmarks.campaigns.night import ends_dishonest
from benchmarks.campaigns.report import Figure, none, percentile, show
from benchmarks.campaigns.stage import Ledger, Start, stage
from benchmarks.campaigns.truth import ended_wrong, numbered_wrong, started_wrong, unanswered, untrue
from fluxcore.log import Event
from fluxcore.log.event import encode
from fluxcore.runs import fold
from tests.stub_trainer import save_state


def story(*items: tuple) -> list[Event]:
    """(type, data[, attempt]) in order, all of one writer."""
    return [
        Event(f"2026-11-23T20:00:{n:02d}.000000Z", "cat", item[0], "runner", "cli-1", n, item[1], *item[2:])
        for n, item in enumerate(items, 1)
    ]


STARTED = [("run.requested", {}), ("run.started", {"request": "cli-1:1", "pid": 7}, 1)]
TRAINER = Start(1, 7, 1, 1.0, None)


def wrong(found: tuple[list[Figure], list[str]]) -> list[object]:
    """What went wrong, seconds aside: the suite shares its machine."""
    figures, problems = found
    return [*problems, *(row for row in figures if row.good is False and not row.timed)]


def test_kills_of_the_runner() -> None:
    assert wrong(runner_kills.run(4, seed=3)) == []


def test_kills_of_anything() -> None:
    assert wrong(any_kills.run(5, seed=3)) == []


def test_trees_that_do_not_want_to_end() -> None:
    assert wrong(trees.run(4, seed=3)) == []


def test_an_attempt_without_exactly_one_end_is_found() -> None:
    completed, stalled = ("run.completed", {}, 1), ("run.stalled", {}, 1)
    assert ended_wrong("cat", story(*STARTED, completed)) == []
    assert ended_wrong("cat", story(*STARTED, stalled, ("run.killed", {}, 1))) == []
    for broken in ([*STARTED], [*STARTED, completed, completed], [*STARTED, stalled], [completed]):
        assert len(ended_wrong("cat", story(*broken))) == 1


def test_a_trainer_too_many_or_a_request_served_twice_is_found() -> None:
    assert started_wrong("cat", story(*STARTED), Ledger([TRAINER])) == []
    assert started_wrong("cat", story(*STARTED), Ledger([TRAINER, Start(1, 8, 1, 1.0, None)]))
    assert started_wrong("cat", story(*STARTED), Ledger([TRAINER, Start(2, 8, 1, 1.0, None)]))
    assert started_wrong("cat", story(*STARTED, ("request.refused", {"request": "cli-1:1"})), Ledger([TRAINER]))


def test_an_unanswered_request_and_a_gap_in_the_numbers_are_found() -> None:
    assert unanswered("cat", story(*STARTED)) == [] and unanswered("cat", story(*STARTED, ("run.requested", {})))
    events = story(*STARTED, ("run.completed", {}, 1))
    assert numbered_wrong("cat", events) == [] and numbered_wrong("cat", [events[0], events[2]])


def test_a_state_that_is_not_true_is_found() -> None:
    with stage(1) as place:
        place.make("cat")
        assert untrue(place, "cat") == []
        (path,) = (place.outputs / "cat").glob("events.jsonl")
        with path.open("ab") as log:
            for event in story(*STARTED, ("train.step", {"step": 1}, 1)):
                log.write(encode(event))
        assert place.state("cat").state == "running" and untrue(place, "cat")


def test_an_end_that_is_not_what_the_trainer_did_is_found() -> None:
    with stage(1) as place:
        for name, end in (("true", {"exit_code": 5}), ("false", {"exit_code": 1}), ("lost", {"exit_code": None})):
            folder = place.make(name)
            failed = ("run.failed", {"reason": "crash", "hint": "mend it", **end}, 1)
            folder.events.write_bytes(b"".join(encode(event) for event in story(*STARTED, failed)))
            (place.ledgers / f"{name}.jsonl").write_text('{"what":"end","attempt":1,"code":5}\n')
        assert ends_dishonest(place, "true", set()) == [] and len(ends_dishonest(place, "false", set())) == 1
        assert len(ends_dishonest(place, "lost", set())) == 1 and ends_dishonest(place, "lost", {("lost", 1)}) == []


def test_the_newest_whole_state_is_found_by_its_bytes_and_its_lineage(tmp_path: Path) -> None:
    for attempt, step in ((1, 10), (1, 20), (1, 30), (2, 15)):
        save_state(tmp_path, f"cat-step{step:08d}-state", step, attempt=attempt)
    newest = tmp_path / "cat-step00000030-state"
    started = ("run.started", {"request": "a"}, 1)
    assert newest_whole(tmp_path, fold("cat", story(started))) == newest.name
    (newest / "optimizer.bin").write_bytes((newest / "optimizer.bin").read_bytes()[:-1])
    assert maker(newest) is None and newest_whole(tmp_path, fold("cat", story(started))) == "cat-step00000020-state"
    again = ("run.started", {"request": "b", "resume_from": "cat-step00000010-state", "resume_step": 10}, 2)
    assert newest_whole(tmp_path, fold("cat", story(started, again))) == "cat-step00000015-state"
    assert newest_whole(tmp_path, fold("cat", story(started, ("run.started", {"request": "b"}, 3)))) is None


def test_a_missed_target_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert show("a bench", [none("lost", [])]) == 0 and show("a bench", [none("lost", 1)]) == 1
    assert show("a bench", [], ["something"]) == 1 and "something" in capsys.readouterr().out
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
