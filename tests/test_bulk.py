"""Reading in bulk: the same events, rows and state as line by line, whatever the lines are."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz_log
from fluxcore.history import connect, engine
from fluxcore.log import Event, EventLog, read_events
from fluxcore.log.event import encode
from fluxcore.runs import RunState, fold
from fluxcore.runs.bulk import StepColumns, apply_steps


@pytest.fixture
def always_bulk(monkeypatch):
    monkeypatch.setattr(engine, "BULK_BYTES", 0)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_lines_are_read_alike_both_ways(seed):
    lines, found = fuzz_log.run(4000, seed)
    assert lines == 4000 and 2000 < found < 4000


def test_the_fuzz_compares_what_was_read_natively(tmp_path, monkeypatch):
    """It would compare nothing if the bulk reader always fell back to decoding."""
    monkeypatch.setattr("fluxcore.history.bulk._decoded", lambda *_: pytest.fail("not read natively"))
    assert fuzz_log.compare(fuzz_log.good_lines(random.Random(1), 400), tmp_path) == 400


numbers = st.none() | st.floats(-9, 9, allow_nan=False).map(lambda value: round(value, 3))
steps = st.lists(
    st.fixed_dictionaries(
        {
            "step": st.integers(0, 50),
            "total_steps": st.none() | st.integers(0, 99),
            "epoch": st.none() | st.integers(0, 9),
            "loss": numbers,
            "lr": numbers,
            "step_seconds": numbers,
            "images_per_second": numbers,
            "memory_gib": numbers,
        }
    ),
    max_size=80,
)


BEGUN = [
    [],
    [("run.started", "runner", "r-1", 1, {"pid": 1}, 1)],
    # A trainer that speaks before its runner, dead by then, could announce it.
    [
        ("run.spawning", "runner", "r-1", 1, {"request": "c:1", "attempt": 1}, None),
        ("phase.started", "trainer", "t-1", 0, {"phase": "train"}, 1),
    ],
]


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(0, 80), st.sampled_from(BEGUN))
def test_many_steps_at_once_fold_as_one_after_the_other(data, cut, story):
    events = [Event("2026-11-23T20:00:00.000000Z", "x", "train.step", "trainer", "t-1", 1, step, 1) for step in data]
    begun = [Event("2026-11-23T20:00:00.000000Z", "x", *one) for one in story]
    expected, state = fold("x", begun + events), fold("x", begun)
    columns = StepColumns(
        **{
            field.name: np.array([np.nan if step[field.name] is None else step[field.name] for step in data], float)
            for field in dataclasses.fields(StepColumns)
        }
    )
    apply_steps(state, columns.between(0, cut))
    apply_steps(state, columns.between(cut, len(data)))
    state.created, state.updated = expected.created, expected.updated
    assert state == expected


def test_many_runs_are_read_in_one_batch(tmp_path, always_bulk):
    for i in range(30):
        with EventLog(tmp_path, "trainer", run=f"run-{i}") as log:
            log.folder = tmp_path / f"run-{i}"
            log.folder.mkdir()
            log._path = str(log.folder / "events.jsonl")
            for step in range(1, i + 2):
                log.append("train.step", {"step": step, "loss": float(i)}, attempt=1)
    with connect(tmp_path) as history:
        found = history.query("SELECT run, count(*) AS c, min(loss) AS l FROM steps GROUP BY run")
        assert {row["run"]: (row["c"], row["l"]) for row in found} == {f"run-{i}": (i + 1, float(i)) for i in range(30)}
        assert all(history.state(f"run-{i}").step == i + 1 for i in range(30))


def test_a_log_larger_than_a_batch_is_read_in_several(tmp_path, always_bulk, monkeypatch):
    monkeypatch.setattr("fluxcore.history.batch.BATCH_BYTES", 20_000)
    monkeypatch.setattr("fluxcore.history.batch._READ_BYTES", 7_000)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").write_bytes(b"".join(fuzz_log.good_lines(random.Random(name), 500)))
    with connect(tmp_path) as history:
        for name in ("a", "b"):
            expected = fold("run", read_events(tmp_path / name))
            state = history.state(name)
            state.name = "run"
            assert not fuzz_log.differing(state, expected)
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 1000}]


@pytest.mark.parametrize("end", [b",}}\n", b"},}\n", b", \t}}\n", b',"x":[1,]}}\n', b',"note":"a ,} b"}}\n'])
def test_a_trailing_comma_is_read_alike_both_ways(tmp_path, always_bulk, end):
    lines = fuzz_log.good_lines(random.Random(6), 20)
    lines[9] = lines[9].replace(b"}}\n", end)
    assert lines[9].endswith(end)
    assert fuzz_log.compare(lines, tmp_path) == (20 if b"note" in end else 19)


def test_gpus_are_told_apart_alike_both_ways(tmp_path, always_bulk):
    """By uuid where that is one, else by number; a uuid that is a number is none, and its text may be another's."""
    ts = "2026-11-23T20:00:00.000000Z"
    data = [{"index": 1, "uuid": 0}, {"index": 0, "uuid": None}, {"index": 1, "uuid": "0"}, {"index": 1, "uuid": 0}]
    lines = [
        encode(Event(ts, "run", "gpu.sampled", "runner", "runner-1-ab", n, {**one, "power_watts": n}))
        for n, one in enumerate(data, 1)
    ]
    assert fuzz_log.compare(lines, tmp_path) == 4


def test_a_line_that_is_too_long_for_the_native_reader_hides_no_other(tmp_path, always_bulk):
    lines = fuzz_log.good_lines(random.Random(5), 20)
    long = encode(Event("2026-11-23T20:00:00.000000Z", "run", "run.noted", "cli", "cli-1-a", 1, {"note": "x"}))
    lines.insert(7, long.replace(b'"x"', b'"' + b"x" * 1_500_000 + b'"'))
    assert fuzz_log.compare(lines, tmp_path) == 21


def test_a_renamed_runs_lines_count_under_its_new_name(tmp_path, always_bulk):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "events.jsonl").write_bytes(b"".join(fuzz_log.good_lines(random.Random(2), 50)))
    with connect(tmp_path) as history:
        assert history.query("SELECT DISTINCT run FROM events") == [{"run": "other"}]


def test_a_log_that_can_not_be_read_to_its_end_leaves_until_it_can(tmp_path, always_bulk, monkeypatch):
    from fluxcore.log import LogReader

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").write_bytes(b"".join(fuzz_log.good_lines(random.Random(name), 50)))
    read = LogReader.read_lines

    def broken(reader, most):
        if reader.path.parent.name == "b":
            raise OSError(5, "Input/output error")
        return read(reader, most)

    monkeypatch.setattr(LogReader, "read_lines", broken)
    with connect(tmp_path) as history:
        assert set(history.rows) == {"a", "c"} and "b can't be read" in history.unreadable["b"]
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 100}]
        monkeypatch.undo()
        history.refresh()
        assert set(history.rows) == {"a", "b", "c"} and not history.unreadable


def test_an_empty_state_is_what_no_steps_make():
    state = RunState("x")
    apply_steps(state, StepColumns(*[np.array([])] * 8))
    assert state == RunState("x")
