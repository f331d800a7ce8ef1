"""A `./fluxgym new` or `start` as text, out of a page or a note: read by the CLI's own parser, never run."""

from __future__ import annotations

import re
import shlex
from typing import Any

from fluxcore.config import RunConfig
from fluxcore.errors import UserError

from .options import build_config, parse_settings

READ = ("new", "start")


def read_command(text: str, below: dict[str, Any]) -> tuple[RunConfig, set[str]]:
    """The config that the command gives, and the settings that it names. Raises UserError.

    `start` changes settings of what there is: `below`.
    """
    import typer

    from .main import UsageError, cli

    try:
        words = shlex.split(re.sub(r"\\\r?\n", " ", text))
    except ValueError:
        raise UserError("a quotation mark in the command is not closed") from None
    if len(words) < 2 or words[0].rsplit("/", 1)[-1] != "fluxgym" or words[1] not in READ:
        raise UserError("the command must begin with ./fluxgym new or ./fluxgym start")
    verb: Any = getattr(typer.main.get_command(cli), "commands")[words[1]]  # noqa: B009 - click's group, typer's copy
    try:
        given = verb.make_context(words[1], words[2:]).params
    except UsageError as error:
        raise UserError(f"the command can't be read: {error.format_message()}") from None
    except (typer.Exit, SystemExit):  # --help
        raise UserError("a command with --help changes nothing") from None
    if given.get("config"):
        raise UserError("--config is not read here: take the file under “Settings from …”")
    settings = given["settings"] or []
    named = {"concept_sentence": given.get("trigger"), "base_model": given.get("base")}
    config = build_config(given["name"], None, settings, named, below=below if words[1] == "start" else None)
    return config, {*parse_settings(settings), *(name for name, value in named.items() if value is not None)}
