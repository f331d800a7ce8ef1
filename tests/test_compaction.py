"""Compacting: finished runs come from one Parquet, the same as from their logs; anything that changed does not."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import call

from fluxcore.errors import UserError
from fluxcore.history import connect, run_sql
from fluxcore.history.compaction import compact, index_path, read_index
from fluxcore.log import EventLog

REPO = Path(__file__).parents[1]
VIEWS = ("events", "runs", "steps", "gpu", "host", "checkpoints", "samples", "validation", "stalls")


def make_run(outputs, name, steps=5, end="run.completed"):
    (outputs / name).mkdir(parents=True)
    with EventLog(outputs / name, "trainer") as log:
        config = log.append("config.saved", {"config": {"lora_name": name, "base_model": "flux-mini"}})
        request = log.append("run.requested", {"config": config.id})
        log.append("run.tagged", {"tags": ["a", "b's"]})
        log.append("run.started", {"request": request.id, "pid": 1}, attempt=1)
        for step in range(1, steps + 1):
            log.append("train.step", {"step": step, "total_steps": steps, "loss": 1 / step, "lr": "nan"}, attempt=1)
            log.append("gpu.sampled", {"index": 0, "uuid": "GPU-1", "utilization_percent": None}, attempt=1)
        log.append("checkpoint.saved", {"path": f"{name}-state", "kind": "state", "step": steps}, attempt=1)
        if end:
            log.append(end, {"weights": f"{name}.safetensors", "steps": steps, "reason": "user"}, attempt=1)


def everything(outputs):
    with connect(outputs) as history:
        return {view: sorted(map(repr, history.query(f"SELECT * FROM {view}"))) for view in VIEWS}


def test_compacted_runs_are_what_their_logs_say(tmp_path):
    for name in ("a", "b", "c"):
        make_run(tmp_path, name)
    make_run(tmp_path, "live", end=None)
    before = everything(tmp_path)
    assert compact(tmp_path) == (3, 3)
    assert everything(tmp_path) == before
    with connect(tmp_path) as history:
        assert history.compacted == {"a", "b", "c"}
        assert history.query("SELECT count(*) AS c FROM store.event_rows WHERE run <> 'live'") == [{"c": 0}]
        assert history.state("a").weights == "a.safetensors" and history.state("nobody") is None
    assert run_sql(tmp_path, "SELECT count(*) FROM events").rows == [[len(before["events"])]]
    assert run_sql(tmp_path, "SELECT count(*) FROM steps WHERE run = 'a'").rows == [[5]]


def test_a_run_that_goes_on_leaves_the_parquet(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path, name)
    compact(tmp_path)
    with connect(tmp_path) as history:
        with EventLog(tmp_path / "a", "cli") as log:
            log.append("run.titled", {"title": "again"})
        assert history.refresh()
        assert history.compacted == {"b"}
        assert history.rows["a"]["title"] == "again"
        rows = history.query("SELECT run, count(*) AS c FROM events GROUP BY run ORDER BY run")
        assert rows == [{"run": "a", "c": 17}, {"run": "b", "c": 16}]
        assert history.query("SELECT title FROM runs WHERE run = 'a'") == [{"title": "again"}]
        assert not history.refresh()
    assert compact(tmp_path) == (2, 1)
    assert compact(tmp_path) == (2, 0)
    assert everything(tmp_path)["events"] == sorted(everything(tmp_path)["events"])


def test_deleted_runs_leave_and_a_new_one_of_the_same_name_is_read(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path, name)
    compact(tmp_path)
    with connect(tmp_path) as history:
        shutil.rmtree(tmp_path / "a")
        assert history.refresh() and set(history.rows) == {"b"}
        assert history.query("SELECT DISTINCT run FROM events") == [{"run": "b"}]
        make_run(tmp_path, "a", steps=2)
        assert history.refresh()
        assert history.query("SELECT max(step) AS m FROM steps WHERE run = 'a'") == [{"m": 2}]
    assert compact(tmp_path) == (2, 1)


def test_a_compaction_while_others_read(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b")
    compact(tmp_path)
    with connect(tmp_path) as history:
        make_run(tmp_path, "c")
        compact(tmp_path)
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 32}]  # the old generation still lies there
        assert history.refresh()
        assert history.compacted == {"a", "b", "c"}
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 48}]
        assert history.query("SELECT count(*) AS c FROM runs") == [{"c": 3}]


def test_old_generations_go_after_an_hour(tmp_path):
    make_run(tmp_path, "a")
    compact(tmp_path)
    (old,) = index_path(tmp_path).parent.glob("compacted-*")
    make_run(tmp_path, "b")
    compact(tmp_path)
    assert old.is_dir()
    os.utime(old, (time.time() - 4000,) * 2)
    make_run(tmp_path, "c")
    compact(tmp_path)
    assert not old.exists() and read_index(tmp_path).folder.is_dir()


def overwrite(path):
    """As many bytes as before, none of them what they were: what a file system may show after a power cut."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text('{"made_by": 1}'),
        lambda path: path.unlink(),
        lambda path: shutil.rmtree(read_index(path.parent.parent).folder),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"made_by":"', b'"made_by":"x')),
        lambda path: path.write_bytes(path.read_bytes().replace(b"compacted-", b"../../compacted-")),
        lambda path: (read_index(path.parent.parent).folder / "events.parquet").unlink(),
        lambda path: (read_index(path.parent.parent).folder / "steps.parquet").write_bytes(b""),
        lambda path: os.truncate(read_index(path.parent.parent).folder / "events.parquet", 100),
        lambda path: overwrite(read_index(path.parent.parent).folder / "steps.parquet"),
    ],
)
def test_it_can_always_be_rebuilt_from_the_logs(tmp_path, harm):
    make_run(tmp_path, "a")
    before = everything(tmp_path)
    compact(tmp_path)
    harm(index_path(tmp_path))
    assert everything(tmp_path) == before
    assert compact(tmp_path)[0] == 1
    assert everything(tmp_path) == before
    with connect(tmp_path) as history:
        assert history.compacted == {"a"}


def test_a_parquet_that_vanishes_while_it_is_read_is_noticed(tmp_path):
    make_run(tmp_path, "a")
    compact(tmp_path)
    with connect(tmp_path) as history:
        shutil.rmtree(tmp_path / ".history")
        assert history.query("SELECT count(*) AS c FROM events") == [{"c": 16}]


def test_two_compactions_at_once(tmp_path):
    for i in range(4):
        make_run(tmp_path, f"run-{i}")
    code = (
        "import json, pathlib, sys; from fluxcore.history.compaction import compact;"
        "print(json.dumps(compact(pathlib.Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO) for _ in range(3)]
    found = [json.loads(child.communicate(timeout=60)[0]) for child in children]
    assert sorted(new for _, new in found) == [0, 0, 4]
    assert len(list(index_path(tmp_path).parent.glob("compacted-*"))) == 1


def test_no_place_to_write(tmp_path):
    make_run(tmp_path, "a")
    (tmp_path / ".history").write_text("a file")
    with pytest.raises(UserError, match="can't be compacted"):
        compact(tmp_path)


def test_the_verb(tmp_path, capsys):
    make_run(tmp_path, "a")
    assert "1 finished run" in call(capsys, "compact", "--outputs", tmp_path).out
    assert "nothing new" in call(capsys, "compact", "--outputs", tmp_path).out


def test_numbers_that_are_no_json_stay_what_they_were(tmp_path):
    make_run(tmp_path, "nan", end=None)
    with EventLog(tmp_path / "nan", "trainer") as log:
        log.append("train.step", {"step": 6, "total_steps": 1e30, "loss": float("nan")}, attempt=1)
        log.append("run.failed", {"reason": "nan_loss"}, attempt=1)
    before = everything(tmp_path)
    assert "'loss': nan" in before["runs"][0]
    assert compact(tmp_path) == (1, 1)
    with connect(tmp_path) as history:
        assert history.compacted == {"nan"}
    assert everything(tmp_path) == before
