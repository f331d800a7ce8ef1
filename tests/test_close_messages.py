"""Two fields left one right after the other, their messages come while the first is still worked on: both are kept."""

from __future__ import annotations

from pathlib import Path

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
    """A browser's side of the form: its two fields, and nothing drawn."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.ids: dict[str, str] = {}
        self.page = ""

    def send(self, **values: str) -> None:
        state = ClientState(page_script_hash=self.page)
        for field, value in values.items():
            state.widget_states.widgets.append(WidgetState(id=self.ids[f"form.{field}"], string_value=value))
        self.socket.send(BackMsg(rerun_script=state).SerializeToString())

    def read_to_the_end(self) -> None:
        message = ForwardMsg()
        while message.WhichOneof("type") != "script_finished":
            message.ParseFromString(self.socket.recv(timeout=30))
            if message.WhichOneof("type") == "navigation":
                self.page = message.navigation.page_script_hash
            widget = message.delta.new_element.text_input.id
            self.ids |= {field: widget for field in (NAME, TRIGGER) if widget.endswith(field)}


def test_messages_that_come_close_together_are_all_kept(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
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
                trigger = ""
                for turn in range(30):
                    name, before, trigger = f"cat {turn}", trigger, f"p{turn}t"
                    tab.send(lora_name=name, concept_sentence=before)
                    tab.send(lora_name=name, concept_sentence=trigger)
                    wait_until(lambda wanted=trigger: kept(outputs, "concept_sentence") == wanted, 20)
                    assert kept(outputs, "lora_name") == name, f"turn {turn}"
    finally:
        end_everything_of(outputs)
