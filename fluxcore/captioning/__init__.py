"""Captions written by a model, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

from fluxcore.jobs import start_job

CAPTIONER = "florence-community/Florence-2-large"
"""Florence-2 in transformers' own layout (MIT); nothing of a repository is executed."""
VARIABLE = "FLUXGYM_CAPTIONER"


def captioner() -> str:
    """The model: `$FLUXGYM_CAPTIONER`, a repository of the Hub or a folder, else CAPTIONER."""
    return os.environ.get(VARIABLE) or CAPTIONER


def caption_pictures(outputs: Path, job: str, dataset: Path, trigger: str, *, all_pictures: bool = False) -> None:
    """Begin to caption the pictures of a folder that have no caption (or all of them). Raises UserError."""
    more = ["--all"] if all_pictures else []
    start_job(
        outputs,
        job,
        "fluxcore.captioning.florence",
        ["--model", captioner(), "--trigger", trigger, *more, str(dataset.absolute())],
    )
