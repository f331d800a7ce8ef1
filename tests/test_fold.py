"""The fold: which events make which state."""

from __future__ import annotations

import random
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fluxcore.history.run_row import total_seconds
from fluxcore.log import Event, format_ts, read_events
from fluxcore.log.event import decode, encode
from fluxcore.runs import fold, seconds_between
from fluxcore.runs.fold import RunState
from fluxcore.runs.transitions import TRANSITIONS

CONFIG = {"enable_monitoring": True, "max_train_epochs": 2}


def event(
    type: str, data: dict | None = None, *, n: int = 1, writer: str = "cli-1", attempt: int | None = None
) -> Event:
    return Event(f"2026-11-23T20:00:{n % 60:02d}.000000Z", "my-cat", type, "cli", writer, n, data or {}, attempt)


def story(*steps: tuple) -> list[Event]:
    """(type, data[, attempt]) in order, numbered."""
    return [event(s[0], s[1], n=i, attempt=s[2] if len(s) > 2 else None) for i, s in enumerate(steps, 1)]


REQUESTED = [("config.saved", {"config": CONFIG}), ("run.requested", {"config": "cli-1:1", "resume_from": None})]
STARTED = [*REQUESTED, ("run.started", {"request": "cli-1:2", "pid": 7}, 1)]
STEP = {"step": 1, "total_steps": 10, "epoch": 1, "loss": 0.5, "lr": 1e-3, "step_seconds": 2.0}


def state_after(*steps: tuple) -> RunState:
    return fold("my-cat", story(*steps))


def test_a_run_goes_from_draft_to_completed() -> None:
    assert state_after(("config.saved", {"config": CONFIG})).state == "draft"
    assert state_after(*REQUESTED).state == "queued"
    assert state_after(*STARTED).state == "starting"
    running = state_after(*STARTED, ("phase.started", {"phase": "load"}, 1), ("train.step", STEP, 1))
    assert (running.state, running.step, running.total_steps, running.loss) == ("running", 1, 10, 0.5)
    assert running.eta_seconds == 18.0
    done = state_after(
        *STARTED, ("train.step", STEP, 1), ("run.completed", {"weights": "my-cat.safetensors", "steps": 10}, 1)
    )
    assert (done.state, done.weights, done.step, done.live_attempt) == ("completed", "my-cat.safetensors", 10, None)


def test_a_stop_is_stopping_until_the_runner_says_stopped() -> None:
    stopping = state_after(*STARTED, ("stop.requested", {"reason": "user"}))
    assert stopping.state == "stopping" and stopping.is_live
    stopped = state_after(
        *STARTED,
        ("stop.requested", {}),
        ("run.stopped", {"reason": "user", "resume_checkpoint": "x-state", "resume_step": 4}, 1),
    )
    assert (stopped.state, stopped.resume_checkpoint, stopped.resume_step) == ("stopped", "x-state", 4)


def test_a_refused_second_request_changes_nothing() -> None:
    state = state_after(
        *STARTED,
        ("run.requested", {"config": "cli-1:1"}),
        ("request.refused", {"request": "cli-1:4", "reason": "live"}),
    )
    assert state.state == "starting" and state.requests == []


def test_a_refused_only_request_goes_back_to_what_was() -> None:
    state = state_after(*REQUESTED, ("request.refused", {"request": "cli-1:2", "reason": "no pictures"}))
    assert state.state == "draft" and state.requests == []


def test_a_stall_is_stalled_with_its_evidence_and_checkpoint() -> None:
    state = state_after(
        *STARTED,
        ("stall.suspected", {"verdict": "gpu_idle", "evidence": {}}, 1),
        (
            "run.stalled",
            {"verdict": "gpu_idle", "evidence": {"idle": 300}, "resume_checkpoint": "a-state", "resume_step": 3},
            1,
        ),
        ("run.killed", {"pids": [7], "resume_checkpoint": "a-state", "resume_step": 3}, 1),
    )
    assert (state.state, state.verdict, state.stalls, state.suspected) == ("stalled", "gpu_idle", 1, None)
    assert state.evidence == {"idle": 300} and state.resume_step == 3


STALLED = [*STARTED, ("run.stalled", {"verdict": "silent", "resume_checkpoint": "a-state", "resume_step": 3}, 1)]


def test_a_stalled_attempt_has_processes_until_they_are_killed() -> None:
    stalled = state_after(*STALLED)
    assert stalled.has_processes and stalled.is_busy and not stalled.is_live
    killed = state_after(*STALLED, ("run.killed", {"pids": [7]}, 1))
    assert not killed.has_processes and not killed.is_busy


def test_an_intent_has_processes() -> None:
    assert state_after(*REQUESTED, ("run.spawning", {"request": "cli-1:2", "attempt": 1})).has_processes
    assert not state_after(*REQUESTED).has_processes and state_after(*REQUESTED).is_busy


FAILED = ("run.failed", {"reason": "crash", "resume_checkpoint": "a-state", "resume_step": 3}, 1)


def test_what_a_trainer_says_before_the_runner_announces_it_counts() -> None:
    """A runner that dies behind its intent announces the trainer late: its steps are in the log by then."""
    intent = {"request": "cli-1:5", "attempt": 2, "resume_step": 40}
    failed = [*STARTED, ("run.failed", {"reason": "crash", "hint": "mend it"}, 1)]
    ahead = [*failed, ("run.requested", {"config": "cli-1:1"}), ("run.spawning", intent)]
    ahead += [("phase.started", {"phase": "train"}, 2), ("train.step", {**STEP, "step": 41}, 2)]
    ahead += [("train.step", {**STEP, "step": 42}, 2)]
    early = state_after(*ahead)
    assert (early.state, early.step, early.phase, early.reason) == ("running", 42, "train", "")
    state = state_after(*ahead, ("run.started", {"request": "cli-1:5", "resume_step": 40}, 2))
    assert (state.state, state.step, state.phase, state.reason) == ("running", 42, "train", "")
    assert (state.attempts[1].first_step, state.attempts[1].last_step) == (41, 42) and len(state.recent_seconds) == 2
    refused = state_after(
        *failed, ("run.requested", {}), ("run.spawning", intent), ("request.refused", {"request": "cli-1:5"})
    )
    assert (refused.state, refused.hint) == ("failed", "mend it")


def test_a_stop_is_remembered_past_the_attempts_end_until_a_person_asks_again() -> None:
    before = [*STARTED, ("stop.requested", {}), FAILED]
    after = [*STARTED, FAILED, ("stop.requested", {})]
    for steps in (before, after):
        assert state_after(*steps).stop_requested
        automatic = story(*steps)
        automatic.append(event("run.requested", {"config": "cli-1:1", "resume_from": "a-state"}, writer="runner-2"))
        assert fold("my-cat", automatic).stop_requested, "the runner's own request outlives no stop"
        assert not state_after(*steps, ("run.requested", {"config": "cli-1:1"})).stop_requested
    n = len(before) + 1
    refused = [("run.requested", {"config": "cli-1:1"}), ("request.refused", {"request": f"cli-1:{n}", "reason": "x"})]
    assert state_after(*before, *refused).stop_requested, "a refused request takes nothing back"


OFF = ("monitoring.changed", {"enabled": False})


def test_monitoring_that_was_switched_off_stays_off_until_a_person_asks_or_configures_otherwise() -> None:
    started = ("run.started", {"request": "cli-1:2"}, 1)
    assert not state_after(*REQUESTED, OFF, started).monitoring, "switched off while it was queued"
    again = story(*STARTED, OFF, FAILED)
    again.append(event("run.requested", {"config": "cli-1:1", "resume_from": "a-state"}, writer="runner-2"))
    again.append(event("run.started", {"request": "runner-2:1"}, writer="runner-2", n=2, attempt=2))
    assert not fold("my-cat", again).monitoring, "an automatic attempt is the same wish"
    assert state_after(*STARTED, OFF, FAILED, ("run.requested", {"config": "cli-1:1"})).monitoring
    asked = ("run.requested", {"config": "cli-1:1"})
    ahead = [*STARTED, FAILED, OFF, asked]
    assert not state_after(*ahead).monitoring, "switched off while nothing ran: meant for what is asked for next"
    assert state_after(*ahead, started, FAILED, asked).monitoring, "and for that alone"
    saved = ("config.saved", {"config": CONFIG})
    unmonitored = ("config.saved", {"config": {**CONFIG, "enable_monitoring": False}})
    assert not state_after(*STARTED, OFF, FAILED, saved).monitoring, "a saved config that says nothing new"
    assert state_after(*STARTED, OFF, FAILED, unmonitored, saved).monitoring
    assert state_after(*STARTED, unmonitored).monitoring, "an attempt under way keeps its config"


def test_a_resumed_attempt_starts_at_its_step_and_forgets_the_failure() -> None:
    state = state_after(
        *STARTED,
        ("train.step", {**STEP, "step": 6}, 1),
        ("run.failed", {"reason": "killed", "hint": "resume it", "resume_checkpoint": "a-state", "resume_step": 5}, 1),
        ("run.requested", {"config": "cli-1:1", "resume_from": "latest"}),
        ("run.started", {"request": "cli-1:6", "resume_from": "a-state", "resume_step": 5}, 2),
    )
    assert (state.state, state.step, state.reason, state.hint, state.failures) == ("starting", 5, "", "", 1)
    assert [attempt.outcome for attempt in state.attempts] == ["run.failed", None]


def test_an_attempt_keeps_the_config_that_its_request_named() -> None:
    state = state_after(*STARTED, ("config.saved", {"config": {"max_train_epochs": 99}}))
    attempt = state.attempt
    assert attempt is not None
    assert state.served_config(attempt)["max_train_epochs"] == 2
    assert state.config["max_train_epochs"] == 99


def test_a_loss_that_is_no_number_is_kept_and_never_the_best() -> None:
    state = state_after(*STARTED, ("train.step", STEP, 1), ("train.step", {**STEP, "step": 2, "loss": "nan"}, 1))
    assert str(state.loss) == "nan" and state.best_loss == 0.5


TYPES = [*TRANSITIONS, "gpu.made.up", "alert.sent"]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.floats() | st.sampled_from(["nan", "", "cli-1:2", "x-state"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "config",
    "request",
    "step",
    "loss",
    "path",
    "kind",
    "phase",
    "enabled",
    "resume_step",
    "reason",
    "title",
    "tags",
]
EVENTS = st.builds(
    event,
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=6),
    n=st.integers(1, 50),
    writer=st.sampled_from(["cli-1", "runner-2"]),
    attempt=st.none() | st.integers(1, 3),
)
STATES = {"draft", "queued", "starting", "running", "stalled", "stopping", "stopped", "failed", "completed"}


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=30))
def test_no_sequence_of_events_breaks_the_fold(events: list[Event]) -> None:
    assert fold("my-cat", events).state in STATES


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=30), st.integers(0, 30))
def test_folding_in_two_parts_is_folding_at_once(events: list[Event], cut: int) -> None:
    state = fold("my-cat", events[:cut])
    for one in events[cut:]:
        state.apply(one)
    assert repr(state) == repr(fold("my-cat", events))


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=20), st.integers(0, 9))
def test_lines_of_other_versions_are_folded_as_they_are(events: list[Event], version: int) -> None:
    told = [decode(encode(one._replace(v=version))) for one in events]
    assert repr(fold("my-cat", told)) == repr(fold("my-cat", [decode(encode(one)) for one in events]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from("abc")), max_size=25), st.sampled_from(["", "a", "b"]))
def test_writers_in_files_of_their_own_and_copies_fold_as_one_log(told: list[tuple[Event, str]], copied: str) -> None:
    """Any order of writers: each in its own file, as where there are no locks; one of the files is there twice."""
    counts = dict.fromkeys("abc", 0)
    events = []
    for place, (one, letter) in enumerate(told):
        counts[letter] += 1
        ts = f"2026-11-23T20:{place // 60:02d}:{place % 60:02d}.000000Z"
        events.append(decode(encode(one._replace(ts=ts, writer=f"cli-1-{letter}", n=counts[letter]))))
    with tempfile.TemporaryDirectory() as place:
        for letter in "abc":
            lines = b"".join(encode(one) for one in events if one.writer.endswith(letter))
            for name in [f"events.{letter}.jsonl", *(["events (1).jsonl"] if letter == copied else [])]:
                (Path(place) / name).write_bytes(lines)
        assert repr(fold("my-cat", read_events(Path(place)))) == repr(fold("my-cat", events))


def test_unknown_types_and_keys_change_nothing_but_the_time() -> None:
    steps = [*STARTED, ("train.step", STEP, 1)]
    plain = state_after(*steps)
    rng = random.Random(1)
    noisy = list(story(*steps))
    for _ in range(5):
        noisy.insert(rng.randrange(len(noisy) + 1), event("some.future.type", {"a": 1}))
    other = fold("my-cat", noisy)
    other.created, other.updated = plain.created, plain.updated
    assert repr(other) == repr(plain)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3600, 3600), min_size=6, max_size=6))
def test_a_clock_that_jumps_changes_times_and_nothing_else(jumps: list[int]) -> None:
    steps = [*STARTED, ("train.step", STEP, 1), ("run.completed", {"weights": "my-cat.safetensors", "steps": 1}, 1)]
    told = story(*steps)
    start = told[0].time
    jumped = [one._replace(ts=format_ts(start + timedelta(seconds=at))) for one, at in zip(told, jumps, strict=False)]
    state, plain = fold("my-cat", jumped), fold("my-cat", told)
    assert (seconds := seconds_between(state.started, state.ended)) is not None and seconds >= 0
    for one in (state, plain):
        one.created = one.started = one.ended = one.updated = None
        one.attempts[0].started, one.attempts[0].ended, one.news[0].ts = "", None, ""
        one.attempts[0].asked = ""
    assert repr(state) == repr(plain)


def test_how_long_an_attempt_took_is_what_its_end_tells() -> None:
    """By a clock that does not jump: the log's times may be an hour off by then."""
    completed = {"weights": "my-cat.safetensors", "steps": 1, "seconds": 61.5}
    assert total_seconds(state_after(*STARTED, ("train.step", STEP, 1), ("run.completed", completed, 1))) == 61.5
    assert total_seconds(state_after(*STARTED, ("run.stopped", {"reason": "user"}, 1))) == 1.0


def test_a_new_attempt_forgets_the_numbers_of_the_one_before() -> None:
    before = [
        *STARTED,
        ("train.step", STEP, 1),
        ("train.step", STEP | {"step": 2, "step_seconds": 4.0}, 1),
        ("run.stopped", {"reason": "user", "resume_checkpoint": "x-state", "resume_step": 2}, 1),
    ]
    assert state_after(*before).mean_seconds_per_step == 3.0 and not state_after(*before).is_coming
    again = [*before, ("run.requested", {"config": "cli-1:1", "resume_from": "latest"})]
    assert state_after(*again).is_coming and state_after(*again).coming_step == 2
    afresh = state_after(*before, ("run.requested", {"config": "cli-1:1", "resume_from": None}))
    assert afresh.is_coming and afresh.coming_step == 0
    spawning = [*again, ("run.spawning", {"request": "cli-1:7", "attempt": 2, "resume_step": 2})]
    assert state_after(*spawning).is_coming and state_after(*spawning).coming_step == 2
    started = state_after(*spawning, ("run.started", {"request": "cli-1:7", "pid": 8, "resume_step": 2}, 2))
    assert not started.is_coming and (started.step, started.loss, started.mean_seconds_per_step) == (2, None, None)


def test_held_out_losses_are_kept_and_a_resume_takes_back_what_lies_beyond_its_start() -> None:
    def measured(step: int, loss: float | str) -> tuple:
        return "validation.measured", {"step": step, "loss": loss}, 1

    before = [*STARTED, measured(1, 0.5), measured(2, 0.4), measured(3, None), measured(4, 0.6)]
    assert [(one.step, one.loss) for one in state_after(*before).measured] == [(1, 0.5), (2, 0.4), (4, 0.6)]
    ended = [*before, ("run.stopped", {"reason": "user"}, 1)]
    resumed = [*ended, ("run.started", {"request": "cli-1:9", "pid": 8, "resume_step": 2}, 2)]
    assert [one.step for one in state_after(*resumed).measured] == [1, 2]
    assert state_after(*ended, ("run.started", {"request": "cli-1:9", "pid": 8}, 2)).measured == []


def test_the_time_in_each_phase_is_added_up() -> None:
    phases = [("phase.started", {"phase": phase}, 1) for phase in ("load", "train", "sample", "train")]
    state = state_after(*STARTED, *phases)
    assert state.phase_seconds == {"load": 1.0, "train": 1.0, "sample": 1.0}
    done = state_after(*STARTED, *phases, ("train.step", STEP, 1), ("run.stopped", {"reason": "user"}, 1))
    assert done.phase_seconds == {"load": 1.0, "train": 3.0, "sample": 1.0}


def test_a_wish_stands_until_it_is_begun_or_the_attempt_ends() -> None:
    asked = [*STARTED, ("sample.requested", {}), ("save.requested", {})]
    assert state_after(*asked).wishes == {"sample", "save"}
    assert state_after(*asked, ("phase.started", {"phase": "sample"}, 1)).wishes == {"save"}
    assert state_after(*asked, ("run.stopped", {"reason": "user"}, 1)).wishes == set()
    assert state_after(*REQUESTED, ("sample.requested", {})).wishes == set(), "nobody is there to hear it"


def test_what_an_attempt_does_otherwise_than_asked_for_is_known_until_the_next_one() -> None:
    full = {"phase": "train", "step": 2, "instead": "in halves", "notice": "The memory was full."}
    told = [
        ("resume.adapted", {"step": 1, "notices": ["the optimizer begins anew", "it goes on"]}, 1),
        ("dataset.changed", {"step": 1, "notice": "Other pictures.", "hint": "Take the old ones."}, 1),
        ("memory.short", full, 1),
        ("memory.short", {**full, "phase": "sample", "notice": "No sample at step 1."}, 1),
        ("memory.short", {**full, "phase": "sample", "notice": "No sample at step 2."}, 1),
        ("memory.short", {"phase": "cache", "step": 0, "instead": "on the CPU"}, 1),  # of a log from before
    ]
    assert list(state_after(*STARTED, *told).notices.values()) == [
        "The optimizer begins anew. It goes on.", "Other pictures. Take the old ones.", "The memory was full.",
        "No sample at step 2.",
    ]  # fmt: skip
    again = ("run.requested", {"resume_from": "a-state"}), ("run.started", {"request": "cli-1:11", "pid": 8}, 2)
    assert state_after(*STARTED, *told, ("run.failed", {"reason": "x"}, 1), *again).notices == {}


def test_the_best_loss_is_of_the_steps_that_the_run_went_through() -> None:
    """A resume from an earlier state takes back what lies beyond it; a start anew takes back all."""
    losses = [0.9, 0.5, 0.7, 0.2]
    before = [*STARTED, *(("train.step", STEP | {"step": i, "loss": loss}, 1) for i, loss in enumerate(losses, 1))]
    ended = ("run.stopped", {"reason": "user", "resume_checkpoint": "x-state", "resume_step": 3}, 1)

    def again(resume_step: int | None) -> RunState:
        asked = ("run.requested", {"config": "cli-1:1", "resume_from": "x-state" if resume_step else None})
        started = ("run.started", {"request": f"cli-1:{len(before) + 2}", "pid": 8, "resume_step": resume_step}, 2)
        return state_after(*before, ended, asked, started, ("train.step", STEP | {"step": 9, "loss": 0.6}, 2))

    assert state_after(*before).best_loss == 0.2
    assert again(3).best_loss == 0.5 and again(4).best_loss == 0.2 and again(None).best_loss == 0.6


def test_the_time_left_counts_what_comes_between_the_steps() -> None:
    before = [*STARTED, ("phase.started", {"phase": "sample"}, 1), ("phase.started", {"phase": "train"}, 1)]
    stepped = [*before, *(("train.step", STEP | {"step": step}, 1) for step in (1, 2, 3, 4))]
    assert state_after(*stepped).eta_seconds == 12.0, "samples of before the first step come no more"
    sampled = [("phase.started", {"phase": "sample"}, 1), ("phase.progress", {"phase": "sample", "done": 1}, 1)]
    after = state_after(*stepped, *sampled, ("phase.started", {"phase": "train"}, 1))
    # Two seconds of samples for four steps of two seconds; events are a second apart here. Six steps are left.
    assert (after.seconds_per_step, after.whole_seconds_per_step, after.eta_seconds) == (2.0, 2.5, 15.0)
    again = state_after(*stepped, *sampled, ("run.stopped", {}, 1), ("run.started", {"pid": 8}, 2))
    assert again.seconds_beside == 0.0
    hung = state_after(*stepped, *sampled, ("run.stalled", {}, 1))
    assert hung.seconds_beside == 0.0, "what broke off is no time of samples"


def test_what_an_attempt_takes_around_its_steps_is_known_when_it_is_completed() -> None:
    fetched = [("phase.started", {"phase": "download"}, 1), ("phase.started", {"phase": "train"}, 1)]
    stepped = [*STARTED, *fetched, *(("train.step", STEP | {"step": step}, 1) for step in (1, 2, 3))]
    assert state_after(*stepped).seconds_around_steps is None
    done = state_after(*stepped, ("run.completed", {"steps": 3, "seconds": 30.0}, 1))
    assert done.attempt and done.attempt.seconds == 30.0
    assert done.seconds_around_steps == 23.0, "without three steps of two seconds and a download of one"
    assert state_after(*stepped, ("run.failed", {"reason": "error"}, 1)).seconds_around_steps is None
