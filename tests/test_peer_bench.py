"""`bench train` and `bench gpu` beside diffusers' script: what is made of the jobs' numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.train import _GPU_PEAK, Case, Job, beside, with_all_kept
from benchmarks.training import peer

CASE = Case("large", Path("large"), 256, 1, 20)
OURS = [Job(2.0, 1.0, 30.0, 900.0), Job(3.0, 1.0, 20.0, 900.0), Job(2.0, 1.0, 10.0, 900.0)]
THEIRS = [Job(1.0, 1.0, 40.0, 1300.0)] * 3


def test_ratios_are_the_middle_ones_and_imports_count_for_neither() -> None:
    speed, wall, memory = beside(CASE, OURS, THEIRS, 300.0)
    assert speed.figure.startswith("2.00") and wall.figure.startswith("0.50") and wall.good is None
    assert memory.figure == "0.60 (600 MiB)" and memory.good and memory.target == "at most 0.8"


def test_what_is_kept_whole_is_told_beside_it() -> None:
    ours = [Job(0.5, 1.0, 30.0, 700.0)] * 3
    speed, both = with_all_kept(ours, [0.4] * 3, THEIRS, 300.0)
    assert speed.figure == "1.25 (0.5/s)" and both.figure == "0.50, 0.40 (400 MiB)" and both.good is None
    assert with_all_kept(ours, [0.4] * 3, [], 300.0) == [speed]


def test_on_a_gpu_nothing_is_wanted_and_the_allocator_is_named() -> None:
    figures = beside(replace(CASE, on_gpu=True), OURS, THEIRS, 0.0, targets=False)
    assert [figure.good for figure in figures] == [None] * 3 and "allocator" in figures[-1].what


def test_the_peers_peak_is_read_as_it_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    peer.say_peak()
    assert capsys.readouterr().err == "", "there is no GPU"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 << 30)
    peer.say_peak()
    found = _GPU_PEAK.search("Steps: 100%|" + capsys.readouterr().err)
    assert found and int(found[1]) == 5 << 30
