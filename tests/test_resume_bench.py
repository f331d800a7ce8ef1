"""`bench resume` in small: kills at random moments leave no trace in the LoRA, and a trace would be seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import resume
from benchmarks.resume import Trainer, compare
from fluxcore.runs import RunFolder
from tests import forked


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    forked.end_all()


def begin(folder: RunFolder, arguments: list[str]) -> Trainer:
    """Forked, which saves the start of each."""
    process = forked.begin(folder.path, arguments)
    return Trainer(lambda: forked.code_of(process), process.is_alive, process.kill)


def test_a_run_killed_again_and_again_ends_as_if_it_never_was(tmp_path: Path) -> None:
    figures = compare(tmp_path, 3, random.Random(7), begin)
    assert [figure.what for figure in figures if figure.good is False] == []
    assert figures[0].figure == "3 of 3" and figures[-1].figure == "the same to the bit"


def test_another_lora_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "tensors", lambda file: file.parent.name)
    figures = compare(tmp_path, 0, random.Random(7), begin)
    assert figures[-1].good is False and figures[-1].figure == "differs"
