"""A run: its files, its state folded from its events, its checkpoints, and what can be asked of it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fluxcore.config.names import is_valid_name, slugify

from .checkpoints import CheckpointFile, best_weights, find_state, list_checkpoints, resume_choice
from .files import RunError, RunFolder, check_outputs, default_outputs, entry_names, free_run_name, list_run_folders
from .fold import RunState, fold, seconds_between
from .installation import pause_queue, read_installation, resume_queue, waiting_in_line
from .load import find_run, load_all, load_run, unreadable
from .records import ENDED_STATES, LIVE_STATES

if TYPE_CHECKING:
    from .requests import (
        create_run,
        refresh_ui_state,
        request_resume,
        request_sample,
        request_save,
        request_start,
        request_stop,
        save_config,
        set_monitoring,
    )

_LATER = dict.fromkeys(
    (
        "create_run",
        "refresh_ui_state",
        "request_resume",
        "request_start",
        "request_sample",
        "request_save",
        "request_stop",
        "save_config",
        "set_monitoring",
    ),
    "requests",
)

__all__ = [
    "ENDED_STATES",
    "LIVE_STATES",
    "CheckpointFile",
    "RunError",
    "RunFolder",
    "RunState",
    "best_weights",
    "check_outputs",
    "create_run",
    "default_outputs",
    "entry_names",
    "find_run",
    "find_state",
    "fold",
    "free_run_name",
    "is_valid_name",
    "list_checkpoints",
    "list_run_folders",
    "load_all",
    "load_run",
    "pause_queue",
    "read_installation",
    "refresh_ui_state",
    "request_resume",
    "request_start",
    "request_sample",
    "request_save",
    "request_stop",
    "resume_choice",
    "resume_queue",
    "save_config",
    "seconds_between",
    "set_monitoring",
    "slugify",
    "unreadable",
    "waiting_in_line",
]


def __getattr__(name: str) -> Any:
    """The heavier half on first use: `status` and the runner start without pydantic and Pillow."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value
