"""Compiled blocks: the same training, only where it repays itself, and without where there is no compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxcore.runs import RunFolder
from fluxcore.training import train
from fluxcore.training.compiling import LOOKED_AT, Compiling, repays
from tests.training_tools import events_of, lora_of, losses_of, new_run, some_pictures, steps_of, train_here, trained

SETTINGS = {"max_train_steps": 3, "mixed_precision": "no", "save_precision": "float", "learning_rate": "1e-3"}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    yield
    torch.compiler.reset()


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: object) -> None:
    """What inductor's C++ compiler would take a minute for is traced alone."""
    monkeypatch.setattr(train, "Compiling", lambda *given: Compiling(*given, backend=backend))


def run_of(outputs: Path, name: str, **settings: object) -> RunFolder:
    return new_run(outputs, name, lambda dataset: some_pictures(dataset, 5), **{**SETTINGS, **settings})


@pytest.mark.slow
def test_compiled_blocks_train_the_same_with_lora_checkpointing_samples_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "gradient_checkpointing": True, "sample_every_n_steps": 2, "sample_prompts": "ghost --s 2 --w 96",
        "validation_split": 0.2, "validate_every_n_steps": 2, "train_layers": "attn",
    }  # fmt: skip
    plain = run_of(tmp_path, "plain", **settings)
    train_here(plain)
    compiled = run_of(tmp_path, "compiled", compile="on", **settings)
    graphs: list[int] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return graph.forward

    with_backend(monkeypatch, traced)
    train_here(compiled)
    assert len(graphs) == 4  # two for each kind of block (the first one's input differs), whatever is drawn besides
    (event,) = events_of(compiled, "compile.started")
    assert event.data == {"step": 1, "step_seconds": None, "steps_left": 3}
    assert losses_of(compiled) == pytest.approx(losses_of(plain), abs=1e-5)
    ours, theirs = lora_of(compiled), lora_of(plain)
    assert trained(theirs) and max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) < 1e-5


@pytest.mark.slow
def test_without_a_compiler_it_says_so_once_and_trains_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    plain, folder = run_of(tmp_path, "plain"), run_of(tmp_path, "bare", compile="on")
    train_here(plain)
    with_backend(monkeypatch, broken)
    train_here(folder)
    (event,) = events_of(folder, "compile.failed")
    assert event.data == {"step": 1, "reason": "Failed to find C compiler."}
    assert steps_of(folder) == [1, 2, 3]
    assert losses_of(folder) == losses_of(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"fp8_base": True}, {"quantize_base": "int8"}, {"blocks_to_swap": 2}], ids=["fp8", "int8", "swapped"]
)
def test_a_base_that_is_held_in_less_is_compiled_out_of_plain_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    few: dict[str, object] = {**settings, "max_train_steps": 2, "train_layers": "attn"}
    plain, compiled = run_of(tmp_path, "plain", **few), run_of(tmp_path, "compiled", compile="on", **few)
    train_here(plain)
    graphs: list[bool] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(any(hasattr(given, "qdata") for given in inputs))
        return graph.forward

    with_backend(monkeypatch, traced)
    train_here(compiled)
    assert graphs and not any(graphs), "inductor refuses torchao's own tensors"
    assert events_of(compiled, "compile.started") and not events_of(compiled, "compile.failed")
    assert losses_of(compiled) == pytest.approx(losses_of(plain), abs=1e-6)


@pytest.mark.slow
def test_a_base_in_nf4_says_that_it_cant_be_compiled_and_trains_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, object] = {"quantize_base": "nf4", "max_train_steps": 2, "train_layers": "attn"}
    plain, folder = run_of(tmp_path, "plain", **few), run_of(tmp_path, "nf4", compile="on", **few)
    train_here(plain)
    with_backend(monkeypatch, "aot_eager")
    train_here(folder)
    (event,) = events_of(folder, "compile.failed")
    assert event.data["step"] == 1
    assert losses_of(folder) == losses_of(plain)


class Block(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = torch.nn.ModuleList([Block()])
        self.single_transformer_blocks = torch.nn.ModuleList([Block()])


def steps_until_compiled(seconds: float, total: int) -> int | None:
    """The step before which `auto` compiles, where each takes so long; None where it never does."""
    told: list[tuple[str, dict[str, Any]]] = []
    compiling = Compiling(Transformer(), "auto", lambda *given: told.append(given), backend="eager")
    for step in range(1, min(total, 30) + 1):
        compiling.before_step(step, total - step + 1)
        compiling.after_step(60.0 if step == 1 else seconds)
    return told[0][1]["step"] if told else None


def test_auto_compiles_after_a_look_at_the_steps_where_those_left_repay_it() -> None:
    assert steps_until_compiled(1.0, 2000) == LOOKED_AT + 2
    assert steps_until_compiled(1.0, 100) is None
    assert steps_until_compiled(0.02, 2000) is None
    assert repays(1.0, 601) and not repays(1.0, 599)


def test_an_error_of_the_training_itself_is_not_the_compiler_s() -> None:
    compiling = Compiling(Transformer(), "on", lambda *_: None, backend="eager")
    compiling.before_step(1, 10)
    assert not compiling.gave_up(torch.OutOfMemoryError("full"), 1)
    assert not compiling.gave_up(ValueError("a bug"), 1)
