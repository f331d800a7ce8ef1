"""Several processes that train one run: two of them over gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fluxcore.config import ConfigError, parse_config
from fluxcore.log import read_events
from fluxcore.runs import RunFolder, load_run, save_config
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.training import __main__ as trainer
from fluxcore.training import launch
from fluxcore.training.failures import Exit, TrainingError
from fluxcore.training.launch import PEER_LOST, RENDEZVOUS
from fluxcore.training.ranks import Ranks
from fluxcore.training.train import Training
from fluxcore.training.wishes import Wishes
from tests import forked
from tests.training_tools import events_of, lora_of, losses_of, new_run, some_pictures, steps_of, train_here, trained

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these processes are for the CPU")

# Five pictures in batches of two are three an epoch: in every second step the second process has nothing to do.
SETTINGS = {
    "num_repeats": 1, "max_train_steps": 4, "save_every_n_steps": 3, "learning_rate": "1e-3", "network_dropout": 0.1,
    "mixed_precision": "no", "save_precision": "float", "max_grad_norm": 0.5, "lr_scheduler": "cosine",
}  # fmt: skip


def run_of(outputs: Path, name: str, **settings: object) -> RunFolder:
    return new_run(outputs, name, lambda dataset: some_pictures(dataset, 5), **{**SETTINGS, **settings})


def begin(
    folder: RunFolder, attempt: int = 1, before: Callable[[int], object] | None = None, ranks: int = 2
) -> list[BaseProcess]:
    """Start the ranks of an attempt; `before`, a function of this module or a partial of one, is called in each."""
    return [
        forked.begin(
            folder.path,
            ["--attempt", str(attempt)],
            {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                RENDEZVOUS: f"file://{folder.path}/.store{attempt}", "GLOO_SOCKET_IFNAME": "lo",
            },
            f"out{rank}",
            before and partial(before, rank),
        )
        for rank in range(ranks)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    forked.end_all()


def ends(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Their exit codes (negative: a signal), in order; None for one that has not ended."""
    deadline = time.monotonic() + seconds
    return [forked.code_of(process, max(0.0, deadline - time.monotonic())) for process in processes]


def said(folder: RunFolder) -> str:
    return "".join((folder.path / f"out{rank}").read_text() for rank in range(2))


def wait_for_step(folder: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 120
    while step not in steps_of(folder):
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.02)


def assert_equal(folder: RunFolder, other: RunFolder) -> None:
    """The same losses and the same LoRA, within 1e-5."""
    assert losses_of(folder) == pytest.approx(losses_of(other), abs=1e-5)
    ours, theirs = lora_of(folder), lora_of(other)
    assert ours.keys() == theirs.keys() and trained(theirs)
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 1e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One process that takes as many batches a step as two do together."""
    folder = run_of(tmp_path_factory.mktemp("alone"), "alone", gradient_accumulation_steps=2)
    train_here(folder)
    return folder


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "--")


@pytest.mark.parametrize("by", [TORCHRUN, ("-m",)], ids=["torchrun", "its own launcher"])
def test_real_processes_are_two_however_they_are_started(tmp_path: Path, alone: RunFolder, by: tuple[str, ...]) -> None:
    """From the command line on: `accelerate launch --cpu` has been known to train one process without a word."""
    folder = run_of(tmp_path, "two", num_processes=2)
    command = [sys.executable, *by, "fluxcore.training", "--outputs", str(tmp_path), "--run", "two"]
    surroundings = {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with open(folder.path / "out0", "wb") as out, open(folder.path / "out1", "wb"):
        ended = subprocess.run(
            [*command, "--attempt", "1"], env={**os.environ, **surroundings}, stdout=out, stderr=out, timeout=200
        )
    assert ended.returncode == 0, said(folder)
    assert_equal(folder, alone)  # one process would have taken half as many batches a step
    assert steps_of(folder) == [1, 2, 3, 4] and len({event.writer for event in read_events(folder.path)}) == 2


def ask_for_a_sample(rank: int) -> None:
    """After the first step; only the first process has wishes."""
    asked = [{"sample"}]
    Wishes.take = lambda self: asked.pop() if asked else set()  # type: ignore[method-assign]


def test_two_processes_equal_one_and_write_one_log_and_one_set_of_files(tmp_path: Path, alone: RunFolder) -> None:
    folder = run_of(tmp_path, "two", num_processes=2, sample_every_n_steps=2, sample_prompts="ghost --s 1")
    assert ends(begin(folder, before=ask_for_a_sample)) == [0, 0], said(folder)
    assert_equal(folder, alone)
    assert steps_of(folder) == [1, 2, 3, 4]
    events = [event for event in read_events(folder.path) if event.source == "trainer"]
    assert len({event.writer for event in events}) == 1 and [event.n for event in events] == list(
        range(1, len(events) + 1)
    )
    saved = [event.data["path"] for event in events if event.type == "checkpoint.saved"]
    assert saved == ["two-step00000003-state", "two-step00000003.safetensors", "two-state", "two.safetensors"]
    states = [{file.name for file in state.iterdir()} for state in (folder.final_state, alone.final_state)]
    assert states[0] == states[1]
    assert len(list((folder.path / "sample").iterdir())) == len(events_of(folder, "sample.saved")) == 4
    assert [event.data["step"] for event in events_of(folder, "sample.saved")] == [0, 1, 2, 4]
    assert said(folder).count("phase: train") == 4  # only the first one speaks


def slowly(rank: int) -> None:
    """Every step takes 0.3 s longer."""
    report = Training._report
    Training._report = lambda self, *given: (report(self, *given), time.sleep(0.3))[0]  # type: ignore[method-assign,assignment]


def test_a_term_to_any_process_stops_all_at_one_step_and_one_process_ends_it_equal(
    tmp_path: Path, alone: RunFolder
) -> None:
    folder = run_of(tmp_path, "stopped", num_processes=2)
    processes = begin(folder, before=slowly)
    wait_for_step(folder, 1)
    processes[1].terminate()
    assert ends(processes) == [Exit.STOPPED, Exit.STOPPED], said(folder)
    last = steps_of(folder)[-1]
    assert last < 4
    state = load_run(tmp_path, "stopped")[1]
    save_config(tmp_path, parse_config({**state.config, "num_processes": 0, "gradient_accumulation_steps": 2}), "cli")
    train_here(folder, attempt=2, resume_from=folder.step_state(last))
    assert_equal(folder, alone)
    assert not events_of(folder, "dataset.changed")


def test_resumed_with_other_batches_a_step_it_says_what_would_be_exact(
    tmp_path: Path, alone: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(tmp_path, "alone")  # one batch a step
    folder.step_state(3).symlink_to(alone.step_state(3))
    train_here(folder, resume_from=folder.step_state(3))
    assert len(events_of(folder, "dataset.changed")) == 1
    assert "The batches of a step were 2 at alone-step00000003-state and are 1: the training" in (
        out := capsys.readouterr().out
    )
    assert "resume from there with gradient_accumulation_steps=2" in out


def test_where_one_process_is_killed_the_others_end_and_blame_nothing_else(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "killed", num_processes=2, max_train_steps=500)
    processes = begin(folder)
    wait_for_step(folder, 2)
    processes[1].kill()
    assert ends(processes, 20) == [PEER_LOST, -signal.SIGKILL]
    assert "Traceback" not in said(folder) and "failed" not in said(folder)


def test_a_reason_that_all_find_is_told_once(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "wrong", num_processes=2, sample_prompts="cat --w big", sample_every_n_steps=1)
    assert ends(begin(folder)) == [Exit.BAD_CONFIG, Exit.BAD_CONFIG]
    assert said(folder).count("training failed:") == 1


def short_of_memory(rank: int) -> None:
    """The second process has no memory for more than one picture at a time."""
    losses = Training.losses

    def short(self: Training, pipeline: object, batch: object) -> torch.Tensor:
        if rank == 1 and len(batch) > 1:  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self, pipeline, batch)  # type: ignore[arg-type]

    Training.losses = short  # type: ignore[method-assign,assignment]


def test_a_process_that_is_short_of_memory_alone_has_all_take_smaller_parts(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "short", num_processes=2, max_train_steps=2, gradient_checkpointing=False)
    assert ends(begin(folder, before=short_of_memory)) == [0, 0], said(folder)
    (event,) = events_of(folder, "memory.short")
    assert (event.data["step"], event.data["batch"]) == (1, 1)
    assert steps_of(folder) == [1, 2]


def measure_share(folder: RunFolder, rank: int) -> None:
    """Write down what part of the base this process holds."""
    share = Ranks.share

    def measured(self: Ranks, transformer: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> None:
        whole = sum(one.nbytes for one in transformer.parameters() if not one.requires_grad)
        share(self, transformer, parameters)
        here = sum(one.to_local().nbytes for one in transformer.parameters() if not one.requires_grad)  # type: ignore[operator]
        (folder.path / f"share{rank}").write_text(str(here / whole))

    Ranks.share = measured  # type: ignore[method-assign]


def test_a_base_split_over_two_processes_trains_the_same(tmp_path: Path, alone: RunFolder) -> None:
    folder = run_of(
        tmp_path, "split", num_processes=2, shard_base=True, gradient_checkpointing=True, sample_every_n_steps=3,
        sample_prompts="ghost --s 1", sample_at_first=False,
    )  # fmt: skip
    assert ends(begin(folder, before=partial(measure_share, folder))) == [0, 0], said(folder)
    assert_equal(folder, alone)
    assert all(0.4 < float((folder.path / f"share{rank}").read_text()) < 0.6 for rank in range(2))
    assert len(events_of(folder, "sample.saved")) == 2


def test_a_process_that_accelerate_leaves_alone_does_not_train_on_unnoticed() -> None:
    with pytest.raises(TrainingError, match="accelerate sees 1 processes where 2 were started"):
        Ranks(rank=0, count=2).accelerator()


@pytest.mark.parametrize(
    ("settings", "processes", "batches"),
    [
        ({}, 1, 1),
        ({"gpu_ids": "1"}, 1, 1),
        ({"gpu_ids": "0,1", "gradient_accumulation_steps": 3}, 2, 6),
        ({"gpu_ids": "0,1,2", "num_processes": 2}, 2, 2),
        ({"num_processes": 4}, 4, 4),
        ({"gpu_ids": "0,1", "trainer": "sd-scripts"}, 1, 1),
    ],
)
def test_a_config_says_how_many_processes_train(settings: dict[str, object], processes: int, batches: int) -> None:
    config = parse_config(settings)
    assert (config.processes, config.batches_per_step) == (processes, batches)
    assert config.steps_per_epoch(12) == 120 // batches


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gpu_ids": "0", "num_processes": 2}, "gpu_ids names 1"),
        ({"shard_base": True}, "several GPUs"),
        ({"gpu_ids": "0,1", "shard_base": True, "fp8_base": True}, "fp8_base=false"),
        ({"gpu_ids": "0,1", "shard_base": True, "compile": "auto"}, "compile=off"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(settings)


def test_the_trainer_that_the_runner_starts_becomes_the_launcher_of_as_many_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_of(tmp_path, "several", gpu_ids="0,1,2")
    started: list[tuple[list[str], int]] = []
    monkeypatch.setattr(launch, "launch", lambda command, processes: started.append((command, processes)) or 77)
    before = signal.getsignal(signal.SIGTERM)
    try:
        argv = ["--outputs", str(tmp_path), "--run", folder.name, "--attempt", "1"]
        assert trainer.main(argv) == 77
    finally:
        signal.signal(signal.SIGTERM, before)
    assert started == [([sys.executable, "-m", "fluxcore.training", *argv], 3)]
