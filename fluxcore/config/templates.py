"""Templates: sets of settings under a name of their own, in `outputs/.templates/NAME.json`, to begin runs with.

A template has what differs between one person's runs least: all settings except the run's name and where it resumes.
Its file is a plain export (contract, section 4), so that it can be shared, and imported as any config can.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError
from fluxcore.runs.files import check_outputs

from .names import slugify
from .portable import from_export
from .schema import RunConfig

FOLDER = ".templates"
NOT_KEPT = frozenset({"lora_name", "resume_from_checkpoint"})
MOST_BYTES = 256 * 1024


def list_templates(outputs: Path) -> list[str]:
    """The names of the templates, sorted."""
    try:
        files = [Path(entry.name) for entry in os.scandir(outputs / FOLDER)]
    except OSError:
        return []
    return sorted(
        (file.stem for file in files if file.suffix == ".json" and not file.name.startswith(".")), key=str.lower
    )


def save_template(outputs: Path, name: str, settings: dict[str, Any]) -> str:
    """Keep `settings` under `name` (slugified; returned), in the place of what was there. Raises UserError."""
    slug = slugify(name)
    if not slug:
        raise UserError("give the template a name: letters and digits")
    known = {key: value for key, value in settings.items() if key in RunConfig.model_fields and key not in NOT_KEPT}
    check_outputs(outputs)
    try:
        (outputs / FOLDER).mkdir(exist_ok=True)
        write_atomic(_file(outputs, slug), orjson.dumps(known, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise UserError(f"the template can't be kept ({error.strerror}): make room in {outputs}") from None
    return slug


def load_template(outputs: Path, name: str) -> dict[str, Any]:
    """The settings of a template. Raises UserError."""
    file = _file(outputs, name)
    try:
        with open(file, "rb") as stream:
            values = orjson.loads(stream.read(MOST_BYTES + 1))
    except (OSError, orjson.JSONDecodeError):
        raise UserError(f"the template {name} can't be read: save it anew") from None
    if not isinstance(values, dict):
        raise UserError(f"the template {name} is no set of settings: save it anew")
    return {key: value for key, value in from_export(values)[0].items() if key not in NOT_KEPT}


def remove_template(outputs: Path, name: str) -> None:
    """Forget a template. Raises UserError."""
    try:
        _file(outputs, name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"the template can't be removed ({error.strerror})") from None


def _file(outputs: Path, name: str) -> Path:
    if slugify(name) != name:
        raise UserError(f"{name!r} is no template")
    return outputs / FOLDER / f"{name}.json"
