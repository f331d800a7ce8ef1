"""A run whose events lie in several files: any dealing of them reads back as one story, and each event counts once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold import STARTED, STEP, story

from fluxcore.history import connect, engine
from fluxcore.log import Event, EventLog, FolderReader
from fluxcore.log.event import encode
from fluxcore.log.seen import Seen
from fluxcore.runs import fold

STORY = story(
    *STARTED,
    *(("train.step", {**STEP, "step": step, "loss": 1 / step}, 1) for step in range(1, 6)),
    ("checkpoint.saved", {"step": 5, "epoch": 1, "path": "my-cat-000001-state", "kind": "state", "bytes": 7}, 1),
    ("run.stalled", {"verdict": "silent", "resume_checkpoint": "my-cat-000001-state", "resume_step": 5}, 1),
    ("run.killed", {"pids": [7], "resume_checkpoint": "my-cat-000001-state", "resume_step": 5}, 1),
    ("run.requested", {"config": "cli-1:1", "resume_from": "latest"}),
)


def write(folder: Path, name: str, events: list[Event]) -> None:
    with open(folder / name, "ab") as file:
        file.writelines(encode(event) for event in events)


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.integers(0, 2), min_size=len(STORY), max_size=len(STORY)), twice=st.sets(st.integers(0, 2)))
def test_any_dealing_of_events_to_files_is_the_same_story(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], twice: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    names = ["events.jsonl", "events.runner-2.jsonl", "events.trainer-3.jsonl"]
    for event, place in zip(STORY, places, strict=True):
        write(folder, names[place], [event])
    for place in twice:
        if (folder / names[place]).exists():
            shutil.copy(folder / names[place], folder / f"events ({place}).jsonl")
    assert FolderReader(folder).read_new() == STORY
    assert repr(fold("my-cat", FolderReader(folder).read_new())) == repr(fold("my-cat", STORY))


def test_a_copy_that_appears_while_a_run_is_followed_brings_nothing_twice(tmp_path: Path) -> None:
    reader = FolderReader(tmp_path)
    write(tmp_path, "events.jsonl", STORY[:4])
    assert reader.read_new() == STORY[:4]
    shutil.copy(tmp_path / "events.jsonl", tmp_path / "events (1).jsonl")
    write(tmp_path, "events.jsonl", STORY[4:5])
    write(tmp_path, "events (1).jsonl", STORY[5:6])
    assert reader.read_new() == STORY[4:6]
    assert reader.read_new() == []


@pytest.mark.parametrize("bulk_bytes", [0, 1 << 30])
def test_the_history_counts_a_copied_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bulk_bytes: int) -> None:
    monkeypatch.setattr(engine, "BULK_BYTES", bulk_bytes)
    folder = tmp_path / "my-cat"
    folder.mkdir()
    with EventLog(folder, "trainer", attempt=1) as log, connect(tmp_path) as history:
        for step in (1, 2, 3):
            log.append("train.step", {**STEP, "step": step})
        history.refresh()
        shutil.copy(folder / "events.jsonl", folder / "events (1).jsonl")
        log.append("train.step", {**STEP, "step": 4})
        history.refresh()
        assert history.query("SELECT count(*) AS n FROM store.step_rows") == [{"n": 4}]
        assert history.rows["my-cat"]["step"] == 4


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 25)), max_size=80))
def test_seen_is_a_set(ids: list[tuple[str, int]]) -> None:
    seen, plain = Seen(), set[tuple[str, int]]()
    for writer, n in ids:
        event = STORY[0]._replace(writer=writer, n=n)
        assert seen.add(event) == ((writer, n) not in plain)
        plain.add((writer, n))
