"""Options that several verbs share, and how settings come together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluxcore.errors import UserError
from fluxcore.models.registry import use_outputs
from fluxcore.runs import default_outputs

from .out import note

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

Outputs = Annotated[
    Path | None,
    typer.Option("--outputs", metavar="DIR", help="The outputs folder (default: $FLUXGYM_OUTPUTS, else outputs/)."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The run's name.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Follow to the end, automatic attempts included.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting first; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON array of objects.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def outputs_folder(given: Path | None) -> Path:
    """The outputs folder as an absolute path; a relative one counts from the caller's directory."""
    return use_outputs(default_outputs() if given is None else given.absolute())


def build_config(
    name: str, file: Path | None, settings: list[str], named: dict[str, Any], *, below: dict[str, Any] | None = None
) -> RunConfig:
    """A config out of defaults < preset < `below` < `--config` < `--set` < named options. Raises UserError."""
    from fluxcore.config import absolute_paths, resolve_config

    from_file, unknown = read_config_file(file) if file else ({}, [])
    if unknown:
        note(f"{file} has settings that FluxGym does not know, left out: {', '.join(unknown)}")
    given = {key: value for key, value in named.items() if value is not None}
    layers = [absolute_paths(layer) for layer in (below or {}, from_file, parse_settings(settings), given)]
    return resolve_config(*layers, {"lora_name": name})


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`key=value` items as a dict; the values stay text, the schema reads them."""
    parsed = {}
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value, as in --set max_train_epochs=8 (got {item!r})")
        parsed[key.strip().replace("-", "_")] = value
    return parsed


def read_config_file(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings in a config file, and the names of its keys that we have nothing for. Raises UserError.

    A `ui_state.json`, a config of kohya's (JSON or TOML), or ai-toolkit's (YAML).
    """
    from fluxcore.config.foreign import read_config
    from fluxcore.config.foreign_values import ForeignError

    try:
        return read_config(file.read_text(encoding="utf-8"), file.suffix.lower())
    except OSError as error:
        raise UserError(f"the config {file} can't be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"the config {file} can't be read: it is not text") from None
    except ForeignError as error:
        raise UserError(f"the config {file} can't be used: {error}") from None
