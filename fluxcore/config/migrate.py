"""Configs of earlier versions, as the log keeps them, in today's form. Applied on reading: a log is never rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SCHEMA = 2
"""Which form a `config.saved` is written in; one that says nothing is of the first."""

Migration = Callable[[dict[str, Any]], dict[str, Any]]


def _fp8_was_sd_scripts_own(values: dict[str, Any]) -> dict[str, Any]:
    """Before `fp8_base` was a setting, sd-scripts were always given it."""
    return {"fp8_base": True, **values} if values.get("trainer") == "sd-scripts" else values


MIGRATIONS: dict[int, Migration] = {1: _fp8_was_sd_scripts_own}
"""What makes a config of schema N one of schema N + 1, by N. Whoever renames a setting raises SCHEMA and adds one."""


def migrate(values: Mapping[str, Any], schema: Any = 1) -> dict[str, Any]:
    """`values` in today's form. A config of a later version comes back as it is: what it has more is left out later."""
    found = dict(values)
    version = schema if isinstance(schema, int) else 1
    while version < SCHEMA:
        found = MIGRATIONS[version](found)
        version += 1
    return found
