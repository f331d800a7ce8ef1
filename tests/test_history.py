"""The history: the contract's views with exactly the contract's columns, fed by offset, the same fold everywhere."""

import math
import shutil
import threading
from pathlib import Path

import duckdb
import pytest

from fluxcore.history import connect, run_row, run_sql
from fluxcore.history.engine import History
from fluxcore.history.frame import read_steps
from fluxcore.history.machine import gpu_curves, host_curves
from fluxcore.log import EventLog, read_events
from fluxcore.runs import fold, load_run

COLUMNS = {
    "events": "run ts type source writer n attempt data",
    "runs": "run title state base_model trigger created started ended seconds step total_steps epoch loss best_loss attempts "
    "stalls failures reason resume_checkpoint resume_step weights tags config",
    "steps": "run attempt ts step total_steps epoch loss lr grad_norm step_seconds images_per_second memory_gib",
    "gpu": "run attempt ts index uuid name utilization_percent memory_used_gib memory_total_gib power_watts power_limit_watts "
    "temperature_c throttle_reasons",
    "host": "run attempt ts cpu_percent rss_gib read_bytes write_bytes disk_free_gib memory_available_gib",
    "checkpoints": "run attempt ts step epoch path kind bytes sha256",
    "samples": "run attempt ts step epoch index prompt seed path",
    "validation": "run attempt ts step epoch loss pictures best best_loss best_step",
    "stalls": "run attempt ts verdict evidence resume_checkpoint resume_step stacks",
}


def writer(outputs, name, source="trainer"):
    (outputs / name).mkdir(exist_ok=True)
    return EventLog(outputs / name, source)


def step(log, number, attempt=1, **data):
    log.append("train.step", {"step": number, "total_steps": 9, "epoch": 1, "loss": 1.0, **data}, attempt=attempt)


@pytest.mark.parametrize("view", COLUMNS)
def test_the_views_are_the_contracts(tmp_path, view):
    with connect(tmp_path) as history:
        found = [row["column_name"] for row in history.query(f"DESCRIBE {view}")]
        assert found == COLUMNS[view].split()
        assert history.query(f"SELECT * FROM {view}") == []
        if "ts" in found:
            assert history.query(f"SELECT column_type FROM (DESCRIBE {view}) WHERE column_name = 'ts'") == [
                {"column_type": "TIMESTAMP"}
            ]


def test_the_runs_view_is_the_fold(tmp_path):
    log = writer(tmp_path, "a")
    config = log.append(
        "config.saved", {"config": {"lora_name": "a", "base_model": "flux-mini", "concept_sentence": "ohwx"}}
    )
    request = log.append("run.requested", {"config": config.id, "resume_from": None})
    log.append("run.tagged", {"tags": ["x", "y's"]})
    log.append("run.started", {"request": request.id}, attempt=1)
    step(log, 1)
    step(log, 2, loss=0.5)
    log.append("run.stalled", {"verdict": "gpu_idle", "evidence": {"a": 1}, "resume_checkpoint": None}, attempt=1)
    with connect(tmp_path) as history:
        (row,) = history.query("SELECT * FROM runs")
        expected = run_row(fold("a", read_events(tmp_path / "a")))
        assert row.pop("config") and expected.pop("config")
        assert expected.pop("note") == "", "for the app's list; the view has what the contract says"
        assert row == expected
        assert (row["state"], row["stalls"], row["trigger"], row["best_loss"]) == ("stalled", 1, "ohwx", 0.5)
        (stall,) = history.query("SELECT * FROM stalls")
        assert (stall["verdict"], stall["evidence"]) == ("gpu_idle", '{"a":1}')


def test_events_come_in_by_offset_and_only_once(tmp_path):
    log = writer(tmp_path, "a")
    with connect(tmp_path) as history:
        assert not history.refresh()
        for count in range(1, 6):
            step(log, count)
            assert history.refresh()
            assert history.query("SELECT count(*) AS c, max(step) AS m FROM steps") == [{"c": count, "m": count}]
        assert not history.refresh()
        second = writer(tmp_path, "b")
        step(second, 1)
        history.refresh()
        assert {row["run"] for row in history.query("SELECT run FROM runs")} == {"a", "b"}


def test_a_half_written_line_is_taken_when_it_is_whole(tmp_path):
    log = writer(tmp_path, "a")
    step(log, 1)
    file = tmp_path / "a" / "events.jsonl"
    line = file.read_bytes()
    with connect(tmp_path) as history:
        with open(file, "ab") as raw:
            raw.write(line[:40])
        history.refresh()
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 1}]
        with open(file, "ab") as raw:
            raw.write(line[40:])
        history.refresh()
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 2}]


def test_another_writers_file_counts_too(tmp_path):
    log = writer(tmp_path, "a")
    step(log, 1)
    with connect(tmp_path) as history:
        with EventLog(tmp_path / "a", "trainer", stem="events.trainer-9-abcd") as other:
            step(other, 2)
        history.refresh()
        assert history.query("SELECT max(step) AS m FROM steps") == [{"m": 2}]


def test_deleted_and_renamed_runs_disappear(tmp_path):
    for name in ("a", "b"):
        step(writer(tmp_path, name), 1)
    with connect(tmp_path) as history:
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "b").rename(tmp_path / "c")
        assert history.refresh()
        assert history.query("SELECT run FROM runs") == [{"run": "c"}]
        assert history.query("SELECT DISTINCT run FROM events") == [{"run": "c"}]
        assert list(history.rows) == ["c"]


@pytest.mark.parametrize("longer", [False, True])
def test_another_run_of_the_same_name_replaces_the_first(tmp_path, longer):
    log = writer(tmp_path, "a")
    for number in (1, 2, 3):
        step(log, number)
    with connect(tmp_path) as history:
        shutil.rmtree(tmp_path / "a")
        log = writer(tmp_path, "a")
        for number in range(11, 18 if longer else 12):
            step(log, number)
        history.refresh()
        assert history.query("SELECT min(step) AS m, count(*) AS c FROM steps") == [{"m": 11, "c": 7 if longer else 1}]
        # The same file, its content another's: the inode and a growing length alone would not tell.
        other = (
            (tmp_path / "a" / "events.jsonl")
            .read_bytes()
            .replace(b'"step":1', b'"step":2')
            .replace(b"trainer-", b"trainer_")
        )
        (tmp_path / "a" / "events.jsonl").write_bytes(other + other)
        history.refresh()
        assert history.query("SELECT min(step) AS m FROM steps") == [{"m": 21}]
        assert history.state("a").step == (27 if longer else 21)


def test_hidden_folders_and_strangers_are_no_runs(tmp_path):
    step(writer(tmp_path, ".history"), 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with connect(tmp_path) as history:
        assert history.query("SELECT * FROM runs") == []


def test_after_a_resume_the_highest_attempt_counts_per_step(tmp_path):
    log = writer(tmp_path, "a")
    for number in (1, 2, 3, 4):
        step(log, number, 1, loss=1.0)
        log.append("sample.saved", {"step": number, "index": 0, "path": f"one{number}"}, attempt=1)
        log.append("sample.saved", {"step": number, "index": 1, "path": f"one{number}b"}, attempt=1)
    for number in (3, 4, 5):
        step(log, number, 2, loss=2.0)
    log.append("sample.saved", {"step": 4, "index": 0, "path": "two4"}, attempt=2)
    with connect(tmp_path) as history:
        rows = history.query("SELECT step, attempt, loss FROM steps ORDER BY step")
        assert [(row["step"], row["attempt"], row["loss"]) for row in rows] == [
            (1, 1, 1.0), (2, 1, 1.0), (3, 2, 2.0), (4, 2, 2.0), (5, 2, 2.0),
        ]  # fmt: skip
        assert history.query("SELECT count(*) AS c FROM events WHERE type = 'train.step'") == [{"c": 7}]
        paths = [row["path"] for row in history.query("SELECT path FROM samples ORDER BY step, index")]
        assert paths == ["one1", "one1b", "one2", "one2b", "one3", "one3b", "two4"]


def test_odd_values_are_kept_as_far_as_they_go(tmp_path):
    log = writer(tmp_path, "a")
    step(log, 1, loss=math.nan, lr=math.inf, memory_gib="much", epoch="one", grad_norm=-math.inf)
    log.append(
        "gpu.sampled", {"index": 0, "utilization_percent": None, "power_watts": "nan", "throttle_reasons": ["x"]}
    )
    log.append("train.step", {"step": 2**63, "loss": True})
    log.append("checkpoint.saved", {"step": 1, "path": "it's", "kind": "state", "bytes": 2**40})
    with connect(tmp_path) as history:
        row = history.query("SELECT * FROM steps WHERE step = 1")[0]
        assert math.isnan(row["loss"]) and row["lr"] == math.inf and row["grad_norm"] == -math.inf
        assert row["memory_gib"] is None and row["epoch"] is None
        gpu = history.query("SELECT * FROM gpu")[0]
        assert (
            gpu["utilization_percent"] is None and math.isnan(gpu["power_watts"]) and gpu["throttle_reasons"] == '["x"]'
        )
        assert history.query("SELECT path, bytes FROM checkpoints") == [{"path": "it's", "bytes": 2**40}]
        assert history.query("SELECT data->>'step' AS s FROM events WHERE type = 'train.step' ORDER BY n DESC")[0]["s"]


def test_lines_that_do_not_parse_are_skipped(tmp_path):
    log = writer(tmp_path, "a")
    step(log, 1)
    with open(tmp_path / "a" / "events.jsonl", "ab") as raw:
        raw.write(b"nonsense\n\0\0\0\n{}\n")
    step(log, 2)
    with connect(tmp_path) as history:
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 2}]


def test_a_table_for_charts(tmp_path):
    step(writer(tmp_path, "a"), 1)
    with connect(tmp_path) as history:
        assert history.table("SELECT step, loss FROM steps WHERE run = ?", ["a"]).to_pylist() == [
            {"step": 1, "loss": 1.0}
        ]


def test_a_diverged_loss_is_never_the_best(tmp_path):
    log = writer(tmp_path, "a")
    for number, loss in enumerate((math.nan, -math.inf, 0.5, math.nan, 0.7), 1):
        step(log, number, loss=loss)
    with connect(tmp_path) as history:
        assert history.query("SELECT best_loss, loss FROM runs") == [{"best_loss": 0.5, "loss": 0.7}]


def test_steps_that_could_not_be_stored_are_stored_later_and_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    with EventLog(tmp_path / "a", "trainer", attempt=1) as log, connect(tmp_path) as history:
        for step in (1, 2, 3):
            log.append("train.step", {"step": step, "loss": 0.5})
        history.refresh()
        with monkeypatch.context() as broken:
            broken.setattr("fluxcore.history.waiting.insert_steps", lambda *_: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises(MemoryError):
                history.query("SELECT 1")
        for _ in range(2):
            assert history.query("SELECT step FROM steps ORDER BY step") == [{"step": step} for step in (1, 2, 3)]
            assert history.query("SELECT count(*) AS c FROM events") == [{"c": 3}]


def test_an_older_event_in_a_file_of_its_own_counts_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    with EventLog(folder, "cli") as log:
        config = log.append("config.saved", {"config": {"lora_name": "cat"}}, ts="2026-11-29T10:00:00.000000Z")
        log.append("run.requested", {"config": config.id}, ts="2026-11-29T10:00:01.000000Z")
        log.append("run.titled", {"title": "new"}, ts="2026-11-29T10:00:09.000000Z")
    with connect(tmp_path) as history:
        assert history.state("cat").title == "new"
        other = EventLog(folder, "app")
        other._go_alone()  # as where there are no locks: its file came late through a synchronised folder
        other.append("run.titled", {"title": "old"}, ts="2026-11-29T10:00:05.000000Z")
        assert history.refresh() and not history.refresh()
        cold = load_run(tmp_path, "cat")[1]
        assert history.state("cat").title == cold.title == "new"
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 4}]
        assert history.query("SELECT title FROM runs") == [{"title": "new"}]


def test_machine_curves_keep_spikes(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    with EventLog(folder, "runner") as log:
        for second in range(600):
            ts = f"2026-11-29T10:{second // 60:02d}:{second % 60:02d}.000000Z"
            used = 79.5 if second == 333 else 20.0
            log.append("gpu.sampled", {"index": 0, "memory_used_gib": used, "power_watts": None}, attempt=1, ts=ts)
            log.append("host.sampled", {"cpu_percent": 3.0 if second == 77 else 90.0}, attempt=1, ts=ts)
    with connect(tmp_path) as history:
        gpu, host = gpu_curves(history, "cat", points=30), host_curves(history, "cat", points=30)
    assert len(gpu) <= 32 and set(gpu["gpu"].to_pylist()) == {"0"}
    assert max(gpu["memory_used_gib_high"].to_pylist()) == 79.5 and max(gpu["memory_used_gib"].to_pylist()) < 30
    assert min(gpu["memory_used_gib_low"].to_pylist()) == 20.0
    assert min(host["cpu_percent_low"].to_pylist()) == 3.0
    assert set(gpu["power_watts_high"].to_pylist()) == {None}


def test_a_copy_is_of_one_moment_and_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written, a refresh takes in more, reads, and makes what it holds smaller."""
    folder = tmp_path / "cat"
    folder.mkdir()
    log = EventLog(folder, "trainer", attempt=1)
    for step in range(1, 20_001):
        log.append("train.step", {"step": step, "loss": 0.5})
    history = connect(tmp_path)
    copy_rows = History._copy_rows

    def slowly(copy: duckdb.DuckDBPyConnection, name: str) -> None:
        log.append("train.step", {"step": 20_001, "loss": 0.5})

        def goes_on() -> None:
            assert history.refresh() and not history.refresh()  # the second one has the time for a checkpoint
            seen.extend(history.query("SELECT count(*) AS c FROM steps"))

        beside = threading.Thread(target=goes_on)
        beside.start()
        beside.join(20)
        assert not beside.is_alive()
        copy_rows(copy, name)

    seen: list[dict[str, object]] = []
    monkeypatch.setattr(History, "_copy_rows", staticmethod(slowly))
    history.save_copy(tmp_path / "copy.duckdb")
    assert seen == [{"c": 20_001}]
    with duckdb.connect(str(tmp_path / "copy.duckdb"), read_only=True) as copied:
        assert copied.execute("SELECT count(*), max(step) FROM steps").fetchall() == [(20_000, 20_000)]
        assert copied.execute("SELECT step FROM runs").fetchall() == [(20_000,)]
    assert not list(tmp_path.glob("copy*.wal"))
    assert not history.refresh()
    history.close()


def two_clocks(outputs: Path) -> tuple[EventLog, EventLog]:
    """Two writers of the run cat; the second one without locks, in a file of its own."""
    folder = outputs / "cat"
    folder.mkdir()
    now, late = EventLog(folder, "cli"), EventLog(folder, "app")
    late._go_alone()
    return now, late


def title(log: EventLog, text: str, second: int) -> None:
    """An event by a clock that says that second."""
    log.append("run.titled", {"title": text}, ts=f"2026-11-29T10:00:{second:02d}.000000Z")


def test_writers_whose_clocks_differ_are_folded_anew_now_and_then(tmp_path: Path) -> None:
    """What is read late is in its place at last, and no refresh after another reads the whole run again."""
    now, late = two_clocks(tmp_path)
    with connect(tmp_path) as history:
        for second in range(10, 20):
            title(now, f"now {second}", second)
            title(late, f"late {second}", second - 5)
            assert history.refresh()
        assert history._disordered == {"cat"} and history._refold_at["cat"] > 0
        history._refold_at.clear()  # the time has come
        assert history.refresh()
        assert history.state("cat").title == load_run(tmp_path, "cat")[1].title == "now 19"
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 20}]
        assert not history._disordered


@pytest.mark.parametrize("error", [duckdb.IOException, duckdb.TransactionException])
def test_a_copy_that_fails_leaves_nothing_behind_and_the_question_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[duckdb.Error]
) -> None:
    """A disk that is full: the copy is made in the temporary folder instead."""
    folder = tmp_path / "cat"
    folder.mkdir()
    EventLog(folder, "trainer", attempt=1).append("train.step", {"step": 1, "loss": 0.5})
    copy_rows, full = History._copy_rows, [True]

    def fails_once(copy: duckdb.DuckDBPyConnection, name: str) -> None:
        copy_rows(copy, name)
        if full.pop():
            raise error("No space left on device")

    monkeypatch.setattr(History, "_copy_rows", staticmethod(lambda copy, name: fails_once(copy, name)))
    full.insert(0, False)
    with connect(tmp_path) as history:
        assert run_sql(tmp_path, "SELECT count(*) FROM steps", history=history).rows == [[1]]
        assert [row["database_name"] for row in history.query("SELECT database_name FROM duckdb_databases() "
            "WHERE database_name LIKE 'copy%'")] == []  # fmt: skip
    assert not full and list((tmp_path / ".history").iterdir()) == []


def test_steps_without_a_number_are_all_shown(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    with EventLog(folder, "trainer", attempt=1) as log:
        for loss in (0.1, 0.2):
            log.append("train.step", {"loss": loss})
        for loss in (0.3, 0.4):  # a disk took the first one, but said that it did not
            log.append("train.step", {"step": 7, "loss": loss})
    with connect(tmp_path) as history:
        assert history.query("SELECT count(*) AS c FROM steps") == [{"c": 3}]
    assert len(read_steps(folder)) == 3


def test_a_run_that_is_deleted_before_it_is_folded_anew_is_forgotten(tmp_path: Path) -> None:
    now, late = two_clocks(tmp_path)
    with connect(tmp_path) as history:
        for second in (10, 11):  # the first one late is folded anew at once, the second one waits
            title(now, f"now {second}", second)
            title(late, f"late {second}", second - 9)
            history.refresh()
            title(late, "later", second - 8)
            history.refresh()
        assert history._disordered == {"cat"}
        shutil.rmtree(tmp_path / "cat")
        history._refold_at.clear()  # the time has come, and there is nothing to fold
        assert history.refresh() and not history.rows
        assert not history._disordered and not history.refresh()
