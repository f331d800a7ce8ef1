"""A callback is not broken off by a message that comes while it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests
from streamlit.runtime.state.session_state import SessionState

from studio import callbacks


def test_a_message_waits_until_the_callbacks_have_run(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = ScriptRequests()
    monkeypatch.setattr(callbacks, "get_script_run_ctx", lambda **_: SimpleNamespace(script_requests=requests))
    seen = []

    def call_callbacks() -> None:
        requests.request_rerun(RerunData())
        seen.append(requests.on_scriptrunner_yield())

    callbacks._whole(call_callbacks)()
    assert seen == [None] and requests.on_scriptrunner_yield() is not None, "it is heard after them"
    call_callbacks()
    assert seen[1] is not None, "without that it breaks them off"


def test_streamlit_calls_them_where_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionState, "_call_callbacks", SessionState._call_callbacks)
    callbacks.run_callbacks_whole()
    once = SessionState._call_callbacks
    callbacks.run_callbacks_whole()
    assert SessionState._call_callbacks is once and hasattr(once, "__wrapped__")
