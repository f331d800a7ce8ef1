"""What the server does beside the pages: its sockets answer at once, and Streamlit's files come packed."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path

import pytest
import streamlit
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.assets import Assets
from studio.server import answer_at_once

STATIC = Path(streamlit.__file__).parent / "static"
SCRIPT = max((STATIC / "static" / "js").glob("index.*.js"), key=lambda path: path.stat().st_size)
ADDRESS = f"/static/js/{SCRIPT.name}"


def test_no_descriptor_is_left_behind():
    before = sorted(os.listdir("/dev/fd"))
    answer_at_once()
    assert sorted(os.listdir("/dev/fd")) == before


def test_connections_do_not_wait_for_acknowledgements():
    with socket.socket(socket.AF_INET) as listening, socket.socket(socket.AF_INET) as client:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        answer_at_once()
        client.connect(listening.getsockname())
        taken, _ = listening.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "nobody else's socket is touched"


@pytest.fixture
def client() -> TestClient:
    def below(request):
        return PlainTextResponse("from Streamlit")

    return TestClient(Starlette(routes=[Route("/{path:path}", below)], middleware=[Middleware(Assets)]))


def test_a_script_comes_packed_and_whole(client):
    with client.stream("GET", ADDRESS) as answer:
        packed = b"".join(answer.iter_raw())
    assert gzip.decompress(packed) == SCRIPT.read_bytes() and len(packed) < SCRIPT.stat().st_size / 2
    assert answer.headers["content-encoding"] == "gzip" and "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript") and answer.headers["vary"] == "accept-encoding"
    assert client.get(ADDRESS).content == SCRIPT.read_bytes(), "and again"


@pytest.mark.parametrize(
    "path",
    ["/", "/run", "/static/js/nothing.js", "/static/../index.html", "/static/js/%2e%2e/%2e%2e/index.html", "/static"],
)
def test_all_else_is_streamlits(client, path):
    assert client.get(path).text == "from Streamlit"


def test_who_takes_no_gzip_gets_streamlits_own(client):
    assert client.get(ADDRESS, headers={"accept-encoding": "identity"}).text == "from Streamlit"
    assert client.post(ADDRESS).status_code == 405


def test_a_file_that_is_gone_is_streamlits_trouble(tmp_path, monkeypatch):
    (tmp_path / "static" / "static").mkdir(parents=True)
    script = tmp_path / "static" / "static" / "a.js"
    script.write_text("1")
    monkeypatch.setattr(streamlit, "__file__", str(tmp_path / "__init__.py"))
    client = TestClient(
        Starlette(
            routes=[Route("/{path:path}", lambda request: PlainTextResponse("gone", 404))],
            middleware=[Middleware(Assets, base="/gym/")],
        )
    )
    assert client.get("/gym/").status_code == 404
    script.unlink()
    assert client.get("/gym/static/a.js").status_code == 404, "no packed nothing"
    script.write_text("2")
    assert client.get("/gym/static/a.js").text == "2"
