"""Messages that come while the one before is still worked on: of two fields, of a field and a link. All are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import ClientConnection, connect

from studio.shots import server
from tests.browser.conftest import end_everything_of, kept
from tests.place import wait_until

NAME, TRIGGER = "form.lora_name", "form.concept_sentence"


class Tab:
    """A browser's side of the form: its two fields, the links, and nothing drawn."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.ids: dict[str, str] = {}
        self.pages: dict[str, str] = {}
        """A page's hash by the last part of its address; Train's is empty."""

    def send(self, page: str = "", **values: str) -> None:
        """A message of `page` with what its fields hold; a click on the page's link holds none."""
        state = ClientState(page_script_hash=self.pages.get(page, ""))
        for field, value in values.items():
            state.widget_states.widgets.append(WidgetState(id=self.ids[f"form.{field}"], string_value=value))
        self.socket.send(BackMsg(rerun_script=state).SerializeToString())

    def read_to_the_end(self, page: str = "") -> None:
        """Until the server has drawn `page`."""
        message = ForwardMsg()
        drawn = ""
        while message.WhichOneof("type") != "script_finished" or drawn != self.pages[page]:
            message.ParseFromString(self.socket.recv(timeout=30))
            if message.WhichOneof("type") == "navigation":
                drawn = message.navigation.page_script_hash
                for one in message.navigation.app_pages:
                    self.pages["" if one.is_default else one.url_pathname] = one.page_script_hash
            widget = message.delta.new_element.text_input.id
            self.ids |= {field: widget for field in (NAME, TRIGGER) if widget.endswith(field)}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("close") / "outputs"


@pytest.fixture(scope="module")
def tab(outputs: Path) -> Iterator[Tab]:
    outputs.mkdir()
    try:
        with server(outputs) as served:
            host = served.url.removeprefix("http://")
            with connect(
                f"ws://{host}/_stcore/stream",
                subprotocols=["streamlit"],
                origin=served.url,
                max_size=None,
                max_queue=None,
            ) as socket:
                tab = Tab(socket)
                tab.send()
                tab.read_to_the_end()
                yield tab
    finally:
        end_everything_of(outputs)


def test_two_fields_left_one_right_after_the_other_are_both_kept(tab: Tab, outputs: Path) -> None:
    trigger = ""
    for turn in range(30):
        name, before, trigger = f"cat {turn}", trigger, f"p{turn}t"
        tab.send(lora_name=name, concept_sentence=before)
        tab.send(lora_name=name, concept_sentence=trigger)
        wait_until(lambda wanted=trigger: kept(outputs, "concept_sentence") == wanted, 20)
        assert kept(outputs, "lora_name") == name, f"turn {turn}"


def test_a_field_left_by_a_link_is_kept_whichever_of_the_two_is_told_first(tab: Tab, outputs: Path) -> None:
    for turn in range(10):
        name = f"dog {turn}"
        link, field = (lambda: tab.send("runs")), (lambda name=name: tab.send(lora_name=name, concept_sentence="d0g"))
        for say in (field, link) if turn % 2 else (link, field):
            say()
        tab.read_to_the_end("runs")
        wait_until(lambda wanted=name: kept(outputs, "lora_name") == wanted, 20)
        assert kept(outputs, "concept_sentence") == "d0g", f"turn {turn}"
        tab.send()
        tab.read_to_the_end()
