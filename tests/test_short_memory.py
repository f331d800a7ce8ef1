"""A GPU whose memory is full outside a step's pass: what goes on without it, and what is said where nothing can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import events_of, losses_of, new_run, some_pictures, steps_of, train_here

from fluxcore.training import attempt, train
from fluxcore.training.failures import Exit, TrainingError, explain, out_of_memory
from fluxcore.training.train import Training

FEW: dict[str, object] = {"max_train_steps": 2, "train_batch_size": 1, "network_dim": 2}


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def short_of(folder: Any) -> list[tuple[str, int, str]]:
    return [(told.data["phase"], told.data["step"], told.data["instead"]) for told in events_of(folder, "memory.short")]


def once(function: Any) -> Any:
    """`function`, out of memory when it is called first."""
    called = []

    def wrapped(*given: Any, **named: Any) -> Any:
        called.append(1)
        return full() if len(called) == 1 else function(*given, **named)

    return wrapped


def test_what_finds_no_room_to_be_encoded_is_encoded_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = new_run(tmp_path, "plain", some_pictures, **FEW)
    train_here(plain)
    monkeypatch.setattr(train.TrainingData, "encode_text", once(train.TrainingData.encode_text))
    monkeypatch.setattr(train.TrainingData, "encode_pictures", once(train.TrainingData.encode_pictures))
    short = new_run(tmp_path / "other", "short", some_pictures, **FEW)  # with a cache of its own
    train_here(short)
    assert short_of(short) == [
        ("cache", 0, "the captions are encoded on the CPU"), ("cache", 0, "the pictures are encoded on the CPU"),
    ]  # fmt: skip
    assert losses_of(short) == losses_of(plain)


def test_a_validation_that_does_not_fit_is_measured_in_parts_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**FEW, "validation_split": 0.2, "validate_every_n_steps": 1}
    compute = Training.losses

    def run(name: str, most: int) -> Any:
        def limited(self: Training, pipeline: Any, batch: Any) -> torch.Tensor:
            return full() if not torch.is_grad_enabled() and len(batch) > most else compute(self, pipeline, batch)

        monkeypatch.setattr(Training, "losses", limited)
        folder = new_run(tmp_path, name, some_pictures, **settings)
        train_here(folder)
        return folder

    whole, parts, none = run("whole", 4), run("parts", 1), run("none", 0)
    measured = [[told.data["loss"] for told in events_of(folder, "validation.measured")] for folder in (whole, parts)]
    assert len(measured[0]) == 2 and measured[1] == pytest.approx(measured[0], rel=1e-5)
    assert short_of(whole) == short_of(parts) == []
    assert events_of(none, "validation.measured") == [] and losses_of(none) == losses_of(whole)
    assert short_of(none) == [("validation", step, "this validation is left out") for step in (1, 2)]
    assert none.final_weights.is_file()


def test_a_sample_that_does_not_fit_is_left_out_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "draw", once(attempt.draw))
    samples = {
        "sample_prompts": "a r1so cat --s 2\na r1so dog --s 2",
        "sample_every_n_steps": 2,
        "sample_at_first": False,
    }
    folder = new_run(tmp_path, "drawn", some_pictures, **FEW, **samples)
    train_here(folder)
    assert short_of(folder) == [("sample", 2, "the sample of prompt 1 is left out")]
    assert [told.data["index"] for told in events_of(folder, "sample.saved")] == [1]
    assert folder.final_weights.is_file()


@pytest.mark.parametrize(
    ("where", "name", "said"),
    [("optimizer", "", "the optimizer's moments: set optimizer_type=adamw8bit"),
     ("train", "hold_base", "the base model: set fp8_base=true"),
     ("attempt", "lora_state", "a save: lower")],
    ids=["update", "load", "save"],
)  # fmt: skip
def test_what_nothing_can_go_on_without_fails_with_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str, said: str
) -> None:
    if where == "optimizer":
        monkeypatch.setattr(torch.optim.AdamW, "step", full)
    else:
        monkeypatch.setattr({"train": train, "attempt": attempt}[where], name, full)
    folder = new_run(tmp_path, "short", some_pictures, **FEW)
    with pytest.raises(TrainingError, match=said) as failed:
        train_here(folder)
    assert failed.value.code == Exit.OOM_GPU
    assert len(steps_of(folder)) == (2 if where == "attempt" else 0)


def test_the_machines_own_memory_is_told_from_the_gpus() -> None:
    host = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")
    for error in (host, MemoryError()):
        expected = explain(error)
        assert expected is not None and expected.code == Exit.OOM_HOST
        assert str(expected).startswith("the machine's memory is full: lower workers")
    assert explain(RuntimeError("a bug")) is None


def test_the_command_ends_with_pytorchs_words_and_one_sentence_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fluxcore.training import __main__ as command

    def fails(*_: object) -> Any:
        try:
            full()
        except torch.OutOfMemoryError as error:
            raise out_of_memory("update") from error

    monkeypatch.setattr(command, "_prepare", fails)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    code = command.main(["--outputs", str(tmp_path), "--run", "cat", "--attempt", "1", "--request", "cli-1-a:1"])
    said = capsys.readouterr().err
    assert code == Exit.OOM_GPU and "Traceback" not in said
    assert said.splitlines()[-2:] == [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "training failed: the GPU's memory is too short for the optimizer's moments: set optimizer_type=adamw8bit or "
        "adafactor, or lower network_dim",
    ]
