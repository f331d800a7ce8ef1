"""Where Streamlit loses what a person did because two messages of the browser come close together.

A callback: it breaks off whatever it does at its next call where another message has come, callbacks too. One that has
written half of an upload down dies there, and is not called again. Here they run to their end, and the message waits
for the drawing after them.

An upload: the browser asks where to send its files. When a drawing begins, what was to be told of the one before it is
thrown away, and the answer with it: the browser waits for ever, and shows nothing. Here answers are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.state.session_state import SessionState

ANSWERS = frozenset({"file_urls_response", "backend_operation_response", "heartbeat_ack"})
"""The messages that a browser waits for."""


def fix_streamlit() -> None:
    """For this process, once; a second time changes nothing."""
    if not hasattr(SessionState._call_callbacks, "__wrapped__"):
        SessionState._call_callbacks = _whole(SessionState._call_callbacks)  # type: ignore[method-assign]
    if not hasattr(ForwardMsgQueue.clear, "__wrapped__"):
        ForwardMsgQueue.clear = _but_answers(ForwardMsgQueue.clear)  # type: ignore[method-assign]


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


def _but_answers(clear: Callable[..., None]) -> Callable[..., None]:
    @wraps(clear)
    def but_answers(queue: Any, retain_lifecycle_msgs: bool = False, *arguments: Any, **named: Any) -> None:
        before = queue._queue if retain_lifecycle_msgs else []  # without that it is all sent, or nobody listens
        clear(queue, retain_lifecycle_msgs, *arguments, **named)
        kept = {id(message) for message in queue._queue}
        queue._queue += [one for one in before if one.WhichOneof("type") in ANSWERS and id(one) not in kept]

    return but_answers
