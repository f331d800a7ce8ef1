"""FluxGym's library. `import fluxcore` gives the front door for notebooks and scripts (see `fluxcore.front_door`).

Its functions are loaded when first used: neither torch nor Streamlit is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import UserError
    from .front_door import (
        display_active_sessions,
        get_active_trainings,
        get_monitor_status,
        load_steps,
        load_training_state,
        restore_ui_state,
        save_training_state,
        start_training,
        stop_monitor,
    )

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "display_active_sessions",
    "get_active_trainings",
    "get_monitor_status",
    "load_steps",
    "load_training_state",
    "restore_ui_state",
    "save_training_state",
    "start_training",
    "stop_monitor",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fluxcore' has no attribute {name!r}")
    value = getattr(import_module(".errors" if name == "UserError" else ".front_door", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
