"""The fake sd-scripts, its model files, and configs for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

FAKE = Path(__file__).resolve().parent / "fake_sd_scripts"
FILES = {
    "pretrained_model_name_or_path": "flux1-dev.safetensors",
    "ae": "ae.safetensors",
    "clip_l": "clip_l.safetensors",
    "t5xxl": "t5xxl_fp16.safetensors",
}


def model_files(folder: Path) -> dict[str, str]:
    """Settings that name model files, and the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES.values():
        (folder / name).write_bytes(b"weights")
    return {setting: str(folder / name) for setting, name in FILES.items()}


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """A config for sd-scripts: 3 pictures, so 3 steps an epoch, unless it says otherwise."""
    base = {"base_model": "flux-dev", "trainer": "sd-scripts", "num_repeats": 1, "concept_sentence": "r1so"}
    return {**base, **model_files(folder), **more}


def use_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the fake as the sd-scripts of this machine."""
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS", os.fspath(FAKE))
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS_PYTHON", sys.executable)
    monkeypatch.delenv("FLUXGYM_TRAINER", raising=False)
