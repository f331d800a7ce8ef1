"""A browser's side of Streamlit's websocket without the browser: it draws nothing, so that ten of them cost little.

The messages are Streamlit's own (`streamlit/proto/*.proto`); what a browser does with them, this does: it reruns
fragments at the pace that the server asks for, names the messages that it has kept, and asks for what moves as
`studio/pulse.js` does (but has nothing run anew where more has changed: what is measured with it only moves).
"""

from __future__ import annotations

import asyncio
import http.client
import re
from types import TracebackType
from urllib.parse import urlencode, urlsplit

import orjson
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect


class Viewer:
    """One open page. Use as `async with Viewer(url, "run", "name=my-cat"): …`."""

    def __init__(self, url: str, page: str, query: str) -> None:
        """`url` of the server, the page's path and its query string."""
        self.bytes = self.finished = self.beats = 0
        """What came over the wire; how many scripts and fragments ran to their end; how often it asked what moves."""
        self.failed = 0
        """How many of them did not."""
        self._host = urlsplit(url).netloc
        self._page, self._query = page, query
        self._hash = ""
        self._kept: set[str] = set()
        self._timers: dict[str, asyncio.Task[None]] = {}
        self._pieces: dict[str, None] = {}

    async def __aenter__(self) -> Viewer:
        self._socket: ClientConnection = await connect(
            f"ws://{self._host}/_stcore/stream",
            subprotocols=["streamlit"],  # type: ignore[list-item]  a NewType of str
            origin=f"http://{self._host}",  # type: ignore[arg-type]  the same
            max_size=None,
        )
        self._reader = asyncio.create_task(self._read())
        self._pulse = asyncio.create_task(self._beat())
        await self._rerun()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._reader, self._pulse):
            if task.done():  # the server closed the page, or an answer was not what it is taken for
                task.result()
        for task in [*self._timers.values(), self._reader, self._pulse]:
            task.cancel()
        await self._socket.close()

    async def _rerun(self, fragment: str = "") -> None:
        state = ClientState(
            query_string=self._query,
            page_name=self._page,
            page_script_hash=self._hash,
            fragment_id=fragment,
            is_auto_rerun=bool(fragment),
            cached_message_hashes=sorted(self._kept),
        )
        await self._socket.send(BackMsg(rerun_script=state).SerializeToString())

    async def _read(self) -> None:
        async for data in self._socket:
            assert isinstance(data, bytes)
            self.bytes += len(data)
            message = ForwardMsg()
            message.ParseFromString(data)
            if message.metadata.cacheable:
                self._kept.add(message.hash)
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self._hash = message.new_session.page_script_hash
                if not message.metadata.run.fragment_ids:
                    self._stop(list(self._timers))
            elif kind == "auto_rerun":
                fragment = message.auto_rerun.fragment_id
                self._stop([fragment])
                self._timers[fragment] = asyncio.create_task(self._tick(fragment, message.auto_rerun.interval))
            elif kind == "stop_auto_rerun":
                self._stop(list(message.stop_auto_rerun.fragment_ids))
            elif kind == "script_finished":
                self.finished += 1
            elif kind == "delta":
                element = message.delta.new_element
                self.failed += element.WhichOneof("type") == "exception"
                self._pieces |= dict.fromkeys(re.findall("data-fg-piece='([^']+)'", element.html.body))

    async def _beat(self) -> None:
        server = http.client.HTTPConnection(self._host)
        name = dict(part.split("=") for part in self._query.split("&"))["name"]

        def ask() -> bytes:
            asked = {"page": self._page, "name": name, "zone": "Europe/Oslo", "piece": self._pieces}
            server.request("GET", f"/pulse?{urlencode(asked, doseq=True)}")
            answer = server.getresponse()
            assert answer.status == 200, answer.status
            return answer.read()

        await asyncio.sleep(1)
        while True:
            said = await asyncio.to_thread(ask)
            self.bytes, self.beats = self.bytes + len(said), self.beats + 1
            await asyncio.sleep(orjson.loads(said)["seconds"])

    async def _tick(self, fragment: str, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._rerun(fragment)

    def _stop(self, fragments: list[str]) -> None:
        for fragment in fragments:
            if fragment in self._timers:
                self._timers.pop(fragment).cancel()
