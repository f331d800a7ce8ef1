"""Where sd-scripts lie, which Python runs them, and the model files that they read."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from fluxcore.config import ConfigError, RunConfig
from fluxcore.models.files import PARTS
from fluxcore.models.registry import ModelNotFound, base_files, find_model

SCRIPT = "flux_train_network.py"
FOLDER_VARIABLE = "FLUXGYM_SD_SCRIPTS"
PYTHON_VARIABLE = "FLUXGYM_SD_SCRIPTS_PYTHON"


@dataclass(frozen=True)
class Scripts:
    """A copy of sd-scripts and the Python of its environment."""

    folder: Path
    python: str

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT


def check(config: RunConfig) -> None:
    """Raise ConfigError, saying what to do, where sd-scripts can't train this config on this machine."""
    find_scripts()
    from .command import not_theirs

    if others := not_theirs(config):
        raise ConfigError(
            f"sd-scripts can't follow {', '.join(others)} as FluxGym does: set back to default, or train with "
            "FluxGym's own trainer"
        )
    try:
        model = find_model(config.base_model)
        if model.family != "flux":
            raise ConfigError(f"sd-scripts train FLUX.1, not {model.name}: set trainer=fluxgym")
        if model.path is not None:
            raise ConfigError(
                f"sd-scripts can't read {model.name}, a diffusers folder: choose flux-dev or flux-schnell as "
                "base_model, and name its files"
            )
        files = base_files(model, {part: getattr(config, part) for part in PARTS})
    except ModelNotFound as error:
        raise ConfigError(f"sd-scripts need the model's files: {error}") from None
    if not files:
        raise ConfigError(
            f"sd-scripts need the model's files: set {', '.join(PARTS)} to their paths, or choose a base_model that "
            "comes in single files, as flux-dev-mirror"
        )
    if config.lora_format != "sd-scripts":
        raise ConfigError("sd-scripts write their own key names: set lora_format=sd-scripts (convert gives the others)")
    if config.quantize_base != "none":
        raise ConfigError("sd-scripts can't quantise the base model: set quantize_base=none (and fp8_base for 8 bits)")


def find_scripts() -> Scripts:
    """The sd-scripts that the environment names. Raises ConfigError, saying what to set."""
    given = os.environ.get(FOLDER_VARIABLE)
    if not given:
        raise ConfigError(
            f"the trainer sd-scripts needs kohya's scripts: set {FOLDER_VARIABLE} to their folder, end the runner and "
            "start again"
        )
    folder = Path(given).expanduser().absolute()
    if not (folder / SCRIPT).is_file():
        raise ConfigError(f"{FOLDER_VARIABLE} is {folder}, and there is no {SCRIPT} in it: name the folder that has it")
    wanted = os.environ.get(PYTHON_VARIABLE)
    if wanted:
        python = shutil.which(os.path.expanduser(wanted))
        if python is None:
            raise ConfigError(f"{PYTHON_VARIABLE} is {wanted}, which is no program: name the Python of sd-scripts")
        return Scripts(folder, os.path.abspath(python))  # no resolve(): a venv's python is a link by its nature
    own = [folder / name / "bin" / "python" for name in ("venv", ".venv")]
    return Scripts(folder, next((str(path) for path in own if path.exists()), sys.executable))
