"""Trainings in processes of their own that need no ten seconds to begin.

They are forked from a process that has imported torch and computed nothing: torch's threads don't live through a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [__name__, "fluxcore.models.loading", "fluxcore.training.train", "diffusers.pipelines.flux"]
)
begun: list[BaseProcess] = []


def begin(
    folder: Path,
    arguments: list[str],
    environment: dict[str, str] | None = None,
    log: str = "train.log",
    before: Callable[[], object] | None = None,
) -> BaseProcess:
    """`python -m fluxcore.training` for the run in `folder`, whose `log` gets what it says.

    `before`, a module's function or a partial of one, is called in the process first. See `end_all`.
    """
    arguments = ["--outputs", str(folder.parent), "--run", folder.name, *arguments]
    process = SERVER.Process(target=_train, args=(arguments, folder / log, environment or {}, before), daemon=True)
    process.start()
    begun.append(process)
    return process


def _train(arguments: list[str], log: Path, environment: dict[str, str], before: Callable[[], object] | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout = sys.stderr = os.fdopen(file, "a", buffering=1)
    code = 99
    try:
        import torch

        from fluxcore.training.__main__ import main

        torch.set_num_threads(1)  # see training_tools
        os.environ |= environment
        if before:
            before()
        code = main(arguments)
    finally:
        os._exit(code)


def code_of(process: BaseProcess, seconds: float = 300) -> int | None:
    """Its exit code once it has ended (negative: a signal), or None where it has not in so many seconds."""
    process.join(seconds)
    return process.exitcode


def end_all() -> None:
    """End what was begun: no process outlives its test."""
    while begun:
        process = begun.pop()
        process.kill()
        process.join()
