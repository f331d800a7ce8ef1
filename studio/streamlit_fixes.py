"""Where Streamlit loses what a person did because two messages come close together.

A callback: where another message has come Streamlit breaks off whatever it does at its next call. A message that it was
about to take in is forgotten; a callback that has written half of an upload down dies there, and is not called again.
Here a message is taken in and its callbacks run to their end, and only then it is the next one's turn. The page that it
would have drawn is not drawn, so a button that is read there is told to the next drawing too.

An upload: the browser asks where to send its files. When a drawing begins, what was to be told of the one before it is
thrown away, and the answer with it: the browser waits for ever, and shows nothing. Here answers are kept.

Another page: who clicks its link with a field half typed has the browser say the click first and then the field, still
as on the old page, which is drawn again. Here such a message is worked off on the new page. Or it says the field first:
while both wait they are made one, of which only the later is told, and a click names no field. Here what the later does
not name is told of the earlier.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests, ScriptRequestType
from streamlit.runtime.state.safe_session_state import SafeSessionState

log = logging.getLogger("fluxgym")
ANSWERS = frozenset({"file_urls_response", "backend_operation_response", "heartbeat_ack"})
"""The messages that a browser waits for."""
LATE_SECONDS = 5.0
"""So long a browser may go on speaking of a page that it was sent away from; then it is indeed there."""


@dataclass
class _Way:
    """The pages that a session's browser may still speak of, and where it wants to go, until the server is there."""

    shown: frozenset[str] = frozenset()
    asked: str = ""
    query: str = ""
    late_since: float | None = None


_ways: WeakKeyDictionary[AppSession, _Way] = WeakKeyDictionary()


def fix_streamlit() -> None:
    """For this process, once; a second time changes nothing. What a later Streamlit has no more is told in the log."""
    _change(SafeSessionState, "on_script_will_rerun", _whole)
    _change(ForwardMsgQueue, "clear", _but_answers)
    _change(script_requests, "_coalesce_widget_states", _of_both)
    _change(AppSession, "request_rerun", _on_the_page_that_is_meant)


def _change(owner: Any, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    there = getattr(owner, name, None)
    if there is None:
        log.warning("this Streamlit has no %s: input that comes close together may be lost; use its version 1.67", name)
    elif not hasattr(there, "__wrapped__"):
        setattr(owner, name, change(there))


def _whole(take_in: Callable[..., None]) -> Callable[..., None]:
    @wraps(take_in)
    def whole(state: Any, said: WidgetStates | None, *, replay_trigger_states: Any = None, **named: Any) -> None:
        context = get_script_run_ctx(suppress_warning=True)
        requests: Any = context.script_requests if context else None
        if requests is None:
            return take_in(state, said, replay_trigger_states=replay_trigger_states, **named)
        requests.on_scriptrunner_yield = lambda: None  # nothing has come
        try:
            take_in(state, said, replay_trigger_states=replay_trigger_states, **named)
        finally:
            vars(requests).pop("on_scriptrunner_yield", None)
        _tell_the_next(requests, said, replay_trigger_states)

    return whole


def _tell_the_next(requests: ScriptRequests, *pressed: WidgetStates | None) -> None:
    """Have the drawing that comes instead of this one know of buttons whose callbacks have run."""
    with requests._lock:
        waiting = requests._rerun_data
        is_instead = not waiting.fragment_id_queue or waiting.is_fragment_scoped_rerun
        if requests._state == ScriptRequestType.RERUN and is_instead:
            replayed = waiting.replay_trigger_states
            for states in pressed:
                replayed = script_requests._coalesce_replay_trigger_states(states, replayed)
            requests._rerun_data = replace(waiting, replay_trigger_states=replayed)


def _but_answers(clear: Callable[..., None]) -> Callable[..., None]:
    @wraps(clear)
    def but_answers(queue: Any, retain_lifecycle_msgs: bool = False, *arguments: Any, **named: Any) -> None:
        before = queue._queue if retain_lifecycle_msgs else []  # without that it is all sent, or nobody listens
        clear(queue, retain_lifecycle_msgs, *arguments, **named)
        kept = {id(message) for message in queue._queue}
        queue._queue += [one for one in before if one.WhichOneof("type") in ANSWERS and id(one) not in kept]

    return but_answers


def _of_both(coalesce: Callable[..., WidgetStates | None]) -> Callable[..., WidgetStates | None]:
    @wraps(coalesce)
    def of_both(earlier: WidgetStates | None, later: WidgetStates | None) -> WidgetStates | None:
        merged = coalesce(earlier, later)
        if merged is not None and earlier and later:
            named = {widget.id for widget in merged.widgets}
            merged.widgets.extend(widget for widget in earlier.widgets if widget.id not in named)
        return merged

    return of_both


def _on_the_page_that_is_meant(request_rerun: Callable[..., None]) -> Callable[..., None]:
    @wraps(request_rerun)
    def there(session: AppSession, said: ClientState | None) -> None:
        if said is None or _is_worth_hearing(session, said):
            request_rerun(session, said)

    return there


def _is_worth_hearing(session: AppSession, said: ClientState) -> bool:
    """Whether a message is to be worked off; one of a page that was left is changed to be one of the new page."""
    way = _ways.setdefault(session, _Way())
    server = session.page_script_hash
    if way.asked == server:
        way.asked = ""
    target = way.asked or server
    page = said.page_script_hash
    if not page or not target or page == target:
        way.shown, way.late_since = frozenset({page or target}), None
        return True
    # A click on a link says nothing of the page's own widgets.
    is_click = said.is_history_navigation or not (said.widget_states.widgets or said.fragment_id)
    now = time.monotonic()
    since = way.late_since or now
    if is_click or page not in way.shown or now - since > LATE_SECONDS:
        way.shown = way.shown | {server} if is_click else frozenset({page})
        way.asked, way.query, way.late_since = page, said.query_string, None
        return True
    way.late_since = since
    if said.is_auto_rerun:
        return False
    said.query_string = (
        way.query if way.asked else urlencode(dict(session.session_state.query_params._query_params), True)
    )
    said.page_script_hash, said.page_name, said.fragment_id = target, "", ""
    return True
