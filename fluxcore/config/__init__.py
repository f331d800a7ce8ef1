"""A run's config: one typed schema, presets, import and export."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .portable import absolute_paths, from_export, to_export
    from .presets import VRAM_PRESETS, memory_preset, resolve_config
    from .schema import GROUPS, ConfigError, RunConfig, defaults, parse_config, parse_saved, saved_config

_LATER = {
    "absolute_paths": "portable",
    "from_export": "portable",
    "to_export": "portable",
    "VRAM_PRESETS": "presets",
    "memory_preset": "presets",
    "resolve_config": "presets",
    "GROUPS": "schema",
    "ConfigError": "schema",
    "RunConfig": "schema",
    "defaults": "schema",
    "parse_config": "schema",
    "parse_saved": "schema",
    "saved_config": "schema",
}

__all__ = [
    "GROUPS",
    "VRAM_PRESETS",
    "ConfigError",
    "RunConfig",
    "absolute_paths",
    "defaults",
    "from_export",
    "memory_preset",
    "parse_config",
    "parse_saved",
    "resolve_config",
    "saved_config",
    "to_export",
]


def __getattr__(name: str) -> Any:
    """All of it on first use: whoever only needs `config.names` starts without pydantic."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value
