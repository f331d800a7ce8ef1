"""What comes close together: a message while a callback runs, an answer while a drawing begins, a page that was left."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any, cast

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.scriptrunner_utils import script_requests
from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequests
from streamlit.runtime.state.safe_session_state import SafeSessionState
from streamlit.runtime.state.session_state import SessionState

from studio import streamlit_fixes


def test_a_message_waits_until_the_one_before_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = ScriptRequests()
    monkeypatch.setattr(streamlit_fixes, "get_script_run_ctx", lambda **_: SimpleNamespace(script_requests=requests))
    heard: list[str] = []

    def check() -> None:
        if requests.on_scriptrunner_yield():
            heard.append("next")

    class Taking(SessionState):
        def on_script_will_rerun(self, *_: Any, **__: Any) -> None:
            requests.request_rerun(RerunData())
            check()
            heard.append("taken in")

    plain = inspect.unwrap(SafeSessionState.on_script_will_rerun)
    for take_in in (plain, streamlit_fixes._whole(plain)):
        heard.clear()
        requests.request_rerun(RerunData())
        take_in(SafeSessionState(Taking(), check), None)
        check()
        if take_in is plain:
            assert heard == ["next", "next", "taken in"], "without that both break it off"
    assert heard == ["taken in", "next"]


@pytest.mark.parametrize(("next_is", "is_told"), [("a page", True), ("a fragment", False), ("none", None)])
def test_a_button_that_the_page_would_have_read_is_told_to_the_drawing_that_comes_instead(
    monkeypatch: pytest.MonkeyPatch, next_is: str, is_told: bool | None
) -> None:
    requests = ScriptRequests()
    monkeypatch.setattr(streamlit_fixes, "get_script_run_ctx", lambda **_: SimpleNamespace(script_requests=requests))

    class Taking(SessionState):
        def on_script_will_rerun(self, *_: Any, **__: Any) -> None:
            if next_is != "none":
                requests.request_rerun(RerunData(fragment_id="f" if next_is == "a fragment" else None))

    pressed = WidgetStates(
        widgets=[WidgetState(id="yes", trigger_value=True), WidgetState(id="name", string_value="x")]
    )
    before = WidgetStates(widgets=[WidgetState(id="again", trigger_value=True)])
    take_in = streamlit_fixes._whole(inspect.unwrap(SafeSessionState.on_script_will_rerun))
    take_in(SafeSessionState(Taking(), lambda: None), pressed, replay_trigger_states=before)
    request = requests.on_scriptrunner_ready()
    told = request._rerun_data and request._rerun_data.replay_trigger_states
    assert {one.id for one in told.widgets} == {"yes", "again"} if is_told else not told


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


def test_a_field_is_not_forgotten_for_the_click_that_comes_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting() -> dict[str, str]:
        requests = ScriptRequests()
        for values in ({"name": "c", "word": "p3t"}, {"name": "cat"}, {}):
            states = WidgetStates(widgets=[WidgetState(id=id, string_value=value) for id, value in values.items()])
            requests.request_rerun(RerunData(widget_states=states, page_script_hash="" if values else "runs"))
        request = requests.on_scriptrunner_yield()
        assert request is not None and request.rerun_data.page_script_hash == "runs"
        assert request.rerun_data.widget_states is not None
        return {one.id: one.string_value for one in request.rerun_data.widget_states.widgets}

    plain = inspect.unwrap(script_requests._coalesce_widget_states)
    monkeypatch.setattr(script_requests, "_coalesce_widget_states", plain)
    assert waiting() == {}, "without that the click is all that is told"
    monkeypatch.setattr(script_requests, "_coalesce_widget_states", streamlit_fixes._of_both(plain))
    assert waiting() == {"name": "cat", "word": "p3t"}
    assert streamlit_fixes._of_both(plain)(None, None) is None


class Session:
    """As much of a session as is asked."""

    def __init__(self) -> None:
        self.page_script_hash = ""
        self.session_state = SimpleNamespace(query_params=SimpleNamespace(_query_params={"name": "cat"}))
        self.heard: list[tuple[str, str, int]] = []

    def hears(self, page: str, widgets: int = 0, query: str = "", **more: Any) -> tuple[str, str, int] | None:
        """What is worked off of a message: page, query, widgets."""
        said = ClientState(page_script_hash=page, query_string=query, **more)
        for number in range(widgets):
            said.widget_states.widgets.add(id=str(number), string_value="x")
        self.heard.clear()
        hear = streamlit_fixes._on_the_page_that_is_meant(
            lambda _, said: self.heard.append(
                (said.page_script_hash, said.query_string, len(said.widget_states.widgets))
            )
        )
        hear(cast(Any, self), said)
        return self.heard[0] if self.heard else None


def test_what_is_said_late_of_a_page_that_was_left_is_worked_off_on_the_new_one() -> None:
    session = Session()
    assert session.hears("") == ("", "", 0)
    session.page_script_hash = "train"  # the server has begun to draw it
    assert session.hears("train", 3) == ("train", "", 3)
    assert session.hears("runs", query="tab=x") == ("runs", "tab=x", 0), "a link"
    assert session.hears("train", 3) == ("runs", "tab=x", 3), "a field left with that click"
    assert session.hears("train", 3, fragment_id="f") == ("runs", "tab=x", 3)
    assert session.hears("train", 3, fragment_id="f", is_auto_rerun=True) is None, "nothing of a person's"
    session.page_script_hash = "runs"
    assert session.hears("train", 3) == ("runs", "name=cat", 3), "on its way when the server came there"
    assert session.hears("runs", 1) == ("runs", "", 1)
    assert session.hears("train") == ("train", "", 0), "back, by a link"
    session.page_script_hash = "train"
    assert session.hears("settings") == ("settings", "", 0), "and on, before the browser said anything"
    assert session.hears("train", 3) == ("settings", "", 3)


def test_the_browsers_back_button_and_a_page_that_the_script_changed() -> None:
    session = Session()
    session.page_script_hash = "train"
    session.hears("train", 3)
    session.page_script_hash = "run"  # st.switch_page
    assert session.hears("train", 3) == ("run", "name=cat", 3)
    assert session.hears("run", 2, query="name=cat") == ("run", "name=cat", 2)
    assert session.hears("train", 3, is_history_navigation=True) == ("train", "", 3)
    session.page_script_hash = "train"
    session.hears("train", 3)
    session.hears("runs")
    assert session.hears("train", 3, is_history_navigation=True) == ("train", "", 3), "back at once"


def test_a_browser_that_stays_where_it_is_is_believed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    session, now = Session(), 100.0
    monkeypatch.setattr(streamlit_fixes.time, "monotonic", lambda: now)
    session.page_script_hash = "train"
    session.hears("train", 3)
    session.hears("runs")
    assert session.hears("train", 3) == ("runs", "", 3)
    now += streamlit_fixes.LATE_SECONDS + 1
    assert session.hears("train", 3) == ("train", "", 3)
    assert session.hears("train", 3) == ("train", "", 3)


def test_streamlit_is_fixed_where_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SafeSessionState, "on_script_will_rerun", SafeSessionState.on_script_will_rerun)
    monkeypatch.setattr(ForwardMsgQueue, "clear", ForwardMsgQueue.clear)
    monkeypatch.setattr(AppSession, "request_rerun", AppSession.request_rerun)
    monkeypatch.setattr(script_requests, "_coalesce_widget_states", script_requests._coalesce_widget_states)

    def now() -> list[Any]:
        coalesce = script_requests._coalesce_widget_states
        return [SafeSessionState.on_script_will_rerun, ForwardMsgQueue.clear, AppSession.request_rerun, coalesce]

    streamlit_fixes.fix_streamlit()
    once = now()
    streamlit_fixes.fix_streamlit()
    assert now() == once and all(hasattr(one, "__wrapped__") for one in once)


def test_what_a_later_streamlit_has_no_more_is_told(caplog: pytest.LogCaptureFixture) -> None:
    streamlit_fixes._change(SimpleNamespace(), "request_rerun", streamlit_fixes._on_the_page_that_is_meant)
    assert "no request_rerun" in caplog.text
