"""Being woken by changes: a hint where it works, silence where it doesn't, never an error."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from runner.wake import Wake


def test_a_change_of_a_log_wakes_and_names_the_run(tmp_path: Path) -> None:
    wake = Wake(tmp_path)
    wake.start()
    try:
        assert wake.works
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "events.jsonl").write_text("x\n")
        assert wake.wait(5.0) == {"cat"}
    finally:
        wake.stop()


def test_the_installations_log_wakes_without_a_name(tmp_path: Path) -> None:
    wake = Wake(tmp_path)
    for name, rings in ((".events.jsonl", 1), (".events.app-1-ab.jsonl", 1), (".runner.log", 0)):
        wake.hint(str(tmp_path / name))
        assert wake._names.qsize() == rings
        assert wake.wait(0.0) == set()


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("cat/events.jsonl", {"cat"}),
        ("cat/events.trainer-1-ab.jsonl", {"cat"}),
        ("cat", {"cat"}),
        ("cat/.attempts/0001/exit.json", {"cat"}),
        ("cat/train.log", set()),
        ("cat/ui_state.json", set()),
        (".runner.json", set()),
        (".new-1234/events.jsonl", set()),
    ],
)
def test_only_what_matters_wakes(tmp_path: Path, path: str, names: set[str]) -> None:
    wake = Wake(tmp_path)
    wake.hint(str(tmp_path / path))
    assert wake.wait(0.0) == names


def test_who_is_known_wakes_nobody_again(tmp_path: Path) -> None:
    wake = Wake(tmp_path)
    wake.start()
    try:
        (tmp_path / "cat").mkdir()
        (tmp_path / "dog").mkdir()
        while wake.wait(0.5):
            pass
        threading.Timer(0.1, (tmp_path / "cat" / "events.jsonl").write_text, ["x\n"]).start()
        assert wake.wait(0.5, {"cat"}) == set()
        threading.Timer(0.1, (tmp_path / "dog" / "events.jsonl").write_text, ["x\n"]).start()
        assert wake.wait(5.0, {"cat"}) == {"dog"}
    finally:
        wake.stop()


def test_without_inotify_polling_goes_on(tmp_path: Path) -> None:
    wake = Wake(tmp_path / "not there")
    wake.start()
    assert not wake.works and wake.wait(0.0) == set()
    wake.ring()
    assert wake.wait(60.0) == set(), "a bell ends the sleep at once"
    wake.stop()
