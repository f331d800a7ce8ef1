"""Streamlit breaks off whatever it does at its next call where another message of the browser has come, callbacks too:
one that has written half of an upload down dies there, and is not called again. Here they run to their end, and the
message waits for the drawing after them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.state.session_state import SessionState


def run_callbacks_whole() -> None:
    """For this process, once; a second time changes nothing."""
    if not hasattr(SessionState._call_callbacks, "__wrapped__"):
        SessionState._call_callbacks = _whole(SessionState._call_callbacks)  # type: ignore[method-assign]


def _whole(call_callbacks: Callable[..., None]) -> Callable[..., None]:
    @wraps(call_callbacks)
    def whole(*arguments: Any, **named: Any) -> None:
        context = get_script_run_ctx(suppress_warning=True)
        requests: Any = context.script_requests if context else None
        if requests is None:
            return call_callbacks(*arguments, **named)
        requests.on_scriptrunner_yield = lambda: None  # nothing has come
        try:
            call_callbacks(*arguments, **named)
        finally:
            vars(requests).pop("on_scriptrunner_yield", None)

    return whole
