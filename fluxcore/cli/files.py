"""`export`, `import`, `convert`, `samples`: configs, LoRA files and samples in other forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError
from fluxcore.runs import load_run, slugify

from .options import Name, Outputs, build_config, outputs_folder, read_config_file
from .out import note, say

FORMATS = ("sd-scripts", "diffusers", "peft", "comfyui")


def export(
    name: Name,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", show_default=False)] = None,
    outputs: Outputs = None,
) -> None:
    """A run's config as ui_state.json, into FILE or to standard output."""
    from fluxcore.config import parse_saved, to_export

    _, state = load_run(outputs_folder(outputs), name)
    text = orjson.dumps(to_export(parse_saved(state.config), state.state), option=orjson.OPT_INDENT_2)
    if file is None:
        say(text.decode())
    else:
        _write(file, text + b"\n")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A ui_state.json, or a config of kohya's (JSON, TOML) or ai-toolkit's (YAML).",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The new run's name (default: the file's lora_name).")] = None,
    outputs: Outputs = None,
) -> None:
    """A new run, without pictures yet, from an exported config."""
    from fluxcore.runs import create_run

    values, _ = read_config_file(file)
    wanted = name or str(values.get("lora_name") or "")
    chosen = name or slugify(wanted)
    if not chosen:
        raise UserError(f"{file} has no lora_name; name the run with --name")
    if chosen != wanted:
        note(f"{wanted!r} can't be a run's name; it becomes {chosen!r}")
    config = build_config(chosen, file, [], {})
    folder = create_run(outputs_folder(outputs), config, "cli")
    note(f"put pictures and captions into {folder.dataset}, then `./fluxgym start {chosen}`")
    say(str(folder.path))


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.", show_default=False)],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"{', '.join(FORMATS)}.", show_default=False)],
) -> None:
    """A LoRA file with the key names of another program, exactly."""
    if to not in FORMATS:
        raise UserError(f"--to takes {', '.join(FORMATS)}, not {to!r}")
    if target.is_dir() or not target.absolute().parent.is_dir():
        why = "it is a folder" if target.is_dir() else "its folder is not there"
        raise UserError(f"{target} can't be written: {why}; name another file")
    from fluxcore.training.lora_file import convert_lora

    try:
        found = convert_lora(source, target, to=to)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from None
    note(f"{source} has {found} keys; {target} has {to} keys")
    say(str(target))


def samples(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE.png", help="The picture to write.", show_default=False)],
    outputs: Outputs = None,
) -> None:
    """A run's samples as one picture: a row for each prompt, a column for each step (`sample` draws new ones)."""
    if file.suffix.lower() != ".png":
        raise UserError(f"the picture is a PNG: give {file.name!r} the ending .png")
    from fluxcore.runs.sample_grid import sample_grid

    _write(file, sample_grid(*load_run(outputs_folder(outputs), name)))


def _write(file: Path, data: bytes) -> None:
    """Write the file and print its name. Raises UserError where it can't be written."""
    try:
        write_atomic(file.absolute(), data)
    except OSError as error:
        raise UserError(f"{file} can't be written ({error.strerror})") from None
    say(str(file))
