"""`delete`, `prune`: removing runs, after a question, never a live one."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from fluxcore.atomic import sync_folder
from fluxcore.errors import UserError
from fluxcore.log import parse_ts
from fluxcore.runs import RunFolder, load_all, load_run
from fluxcore.runs.trash import refuse_live

from .options import Name, Outputs, Yes, outputs_folder
from .out import note, say

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def delete(name: Name, yes: Yes = False, outputs: Outputs = None) -> None:
    """Delete a run: its pictures, LoRA files, checkpoints and log."""
    folder, state = load_run(outputs_folder(outputs), name)
    refuse_live(state)
    _ask(f"Delete {folder.path} with everything in it?", yes)
    _remove(folder)
    say(str(folder.path))


def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Such as 30d, 12h or 4w.", show_default=False)],
    yes: Yes = False,
    outputs: Outputs = None,
) -> None:
    """Delete the runs that ended, or were last touched, longer ago than AGE."""
    limit = datetime.now(UTC) - parse_age(older_than)
    root = outputs_folder(outputs)
    states, problems = load_all(root)
    for problem in problems:
        note(f"left out: {problem}")
    found = []
    for state in states:
        last = state.ended or state.updated
        if not state.is_busy and last and parse_ts(last) < limit:
            found.append(RunFolder.of(root, state.name))
    if not found:
        note(f"no run ended more than {older_than} ago")
        return
    _ask(f"Delete {len(found)} runs ({', '.join(folder.name for folder in found)})?", yes)
    for folder in found:
        refuse_live(load_run(root, folder.name)[1])
        _remove(folder)
        say(str(folder.path))


def parse_age(text: str) -> timedelta:
    """`30d`, `12h`, `4w` as a timedelta. Raises UserError."""
    match = re.fullmatch(r"(\d{1,5})([hdw])", text.strip())
    if match is None:
        raise UserError(f"--older-than takes an age such as 30d, 12h or 4w (got {text!r})")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError("nobody is here to ask; give --yes to delete")
    if not typer.confirm(question):
        raise UserError("nothing was deleted")


def _remove(folder: RunFolder) -> None:
    """Out of sight at once, then gone: a broken-off removal leaves no half run."""
    aside = Path(folder.path.parent) / f".deleted-{secrets.token_hex(6)}"
    os.rename(folder.path, aside)
    sync_folder(folder.path.parent)
    shutil.rmtree(aside, ignore_errors=True)
