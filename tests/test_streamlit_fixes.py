"""A callback is not broken off by a message that comes while it runs, an upload's answer not lost to a drawing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests
from streamlit.runtime.state.session_state import SessionState

from studio import streamlit_fixes


def test_a_message_waits_until_the_callbacks_have_run(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = ScriptRequests()
    monkeypatch.setattr(streamlit_fixes, "get_script_run_ctx", lambda **_: SimpleNamespace(script_requests=requests))
    seen = []

    def call_callbacks() -> None:
        requests.request_rerun(RerunData())
        seen.append(requests.on_scriptrunner_yield())

    streamlit_fixes._whole(call_callbacks)()
    assert seen == [None] and requests.on_scriptrunner_yield() is not None, "it is heard after them"
    call_callbacks()
    assert seen[1] is not None, "without that it breaks them off"


def test_an_answer_outlives_the_beginning_of_a_drawing() -> None:
    answer, said, old = ForwardMsg(), ForwardMsg(), ForwardMsg()
    answer.file_urls_response.response_id = "one"
    said.session_status_changed.run_on_save = False
    old.delta.new_element.text.body = "of the drawing before"
    for fragment_ids in (None, ["banner"]):
        queue = ForwardMsgQueue()
        for message in (old, answer, said):
            queue.enqueue(message)
        streamlit_fixes._but_answers(ForwardMsgQueue.clear)(
            queue, retain_lifecycle_msgs=True, fragment_ids_this_run=fragment_ids
        )
        kept = [message.WhichOneof("type") for message in queue.flush()]
        assert kept.count("file_urls_response") == kept.count("session_status_changed") == 1
        assert fragment_ids or "delta" not in kept
        assert queue.is_empty(), "what was sent is gone"


def test_streamlit_is_fixed_where_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionState, "_call_callbacks", SessionState._call_callbacks)
    monkeypatch.setattr(ForwardMsgQueue, "clear", ForwardMsgQueue.clear)
    streamlit_fixes.fix_streamlit()
    once = SessionState._call_callbacks, ForwardMsgQueue.clear
    streamlit_fixes.fix_streamlit()
    assert (SessionState._call_callbacks, ForwardMsgQueue.clear) == once
    assert all(hasattr(one, "__wrapped__") for one in once)
