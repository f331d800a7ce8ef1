"""Compiling the transformer's blocks, one of each kind for all, where that repays itself: the option `compile`.

A compiled block gives the same up to rounding, in less time; making it costs up to a minute before the first such step.
Samples and validation run as written, so that their other sizes cost no further compiling.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

LOOKED_AT = 8
"""Steps that are timed before `auto` decides; the first one of all is no measure."""

WARM_UP_SECONDS = 60.0
"""What compiling both kinds of block takes, 40 to 50 s on two slow cores, a GPU's kernels being made on the CPU too."""

GAIN = 0.2
"""The share of a step that it saves, at the least: 43 to 62 steps a second were seen on a CPU, a fifth on GPUs."""

Notice = Callable[[str, dict[str, Any]], None]


class Compiling:
    """Decides before each step, compiles once, and goes back to what is written where there is no compiler."""

    def __init__(
        self, transformer: nn.Module, wanted: Literal["off", "auto", "on"], notice: Notice, backend: Any = "inductor"
    ) -> None:
        """`notice` is told what is decided, as an event's type and data."""
        self._transformer, self._wanted, self._notice, self._backend = transformer, wanted, notice, backend
        self._seconds: list[float] = []
        self.on = False

    def before_step(self, step: int, left: int) -> None:
        """Compile where it is wanted, or where the `left` steps repay it; it is done in the blocks' first forward."""
        if self.on or self._wanted == "off":
            return
        seconds = None
        if self._wanted == "auto":
            if len(self._seconds) <= LOOKED_AT:
                return
            seconds = statistics.median(self._seconds[1:])
            if not repays(seconds, left):
                self._wanted = "off"  # with fewer steps left it never will
                return
        self._wanted, self.on = "off", True
        for block in self._blocks():
            block.compile(backend=self._backend, fullgraph=False)
        self._notice("compile.started", {"step": step, "step_seconds": seconds, "steps_left": left})

    def after_step(self, seconds: float) -> None:
        """Hear how long a step took."""
        if self._wanted == "auto":
            self._seconds.append(seconds)

    def gave_up(self, error: Exception, step: int) -> bool:
        """Whether `error` came from compiling: then all goes on as written, and the step can be tried again."""
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

        if not self.on or not isinstance(error, TorchDynamoException | CppCompileError | InvalidCxxCompiler):
            return False
        self.on = False
        for block in self._blocks():
            block._compiled_call_impl = None  # what compile() sets; there is no other way back
        self._notice("compile.failed", {"step": step, "reason": _first_line(error)})
        return True

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Within it nothing compiled runs."""
        if not self.on:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield

    def _blocks(self) -> list[nn.Module]:
        return [*self._transformer.transformer_blocks, *self._transformer.single_transformer_blocks]


def repays(step_seconds: float, left: int) -> bool:
    """Whether so many steps of that length save more than twice what compiling costs."""
    return left * step_seconds * GAIN > 2 * WARM_UP_SECONDS


def _first_line(error: Exception) -> str:
    """What is wrong, without the advice and traces that follow it; at most 300 characters."""
    cause = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__)[:300]
