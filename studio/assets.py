"""Streamlit's own scripts and styles, sent packed and out of memory.

A first visit asks for some hundred files. Streamlit reads each from the disk, in a thread, and sends it as it is: four
megabytes for a phone. Their names carry their content's hash, so nothing can be out of date.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from threading import Lock

import anyio.to_thread
import streamlit
from starlette.types import ASGIApp, Receive, Scope, Send

from .base import prefix

PACKED = {
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".json": b"application/json",
    ".wasm": b"application/wasm",
}
"""What gets smaller, and its media type; fonts and pictures are packed already and left to Streamlit."""
LEVEL = 6


class Assets:
    """ASGI middleware before Streamlit's `static/`: for browsers that take gzip, which is all of them."""

    def __init__(self, app: ASGIApp, base: str = "") -> None:
        """`base` is the path below which the server serves."""
        self.app = app
        self._root = Path(streamlit.__file__).parent / "static"
        # Only what lies there now: no path of a request ever reaches the disk.
        self._files = {
            f"{prefix(base)}/{path.relative_to(self._root).as_posix()}": path
            for path in (self._root / "static").rglob("*")
            if path.suffix in PACKED
        }
        self._packed: dict[str, bytes] = {}
        self._packing = Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "GET" else ""
        if path not in self._files or not _takes_gzip(scope):
            await self.app(scope, receive, send)
            return
        body = self._packed.get(path)
        if body is None:
            body = await anyio.to_thread.run_sync(self._pack, path)
        if not body:
            await self.app(scope, receive, send)
            return
        headers = [
            (b"content-type", PACKED[os.path.splitext(path)[1]]),
            (b"content-encoding", b"gzip"),
            (b"content-length", b"%d" % len(body)),
            (b"vary", b"accept-encoding"),
            (b"cache-control", b"public, immutable, max-age=31536000"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _pack(self, path: str) -> bytes:
        """The file, packed; empty where it is gone. One at a time: a first visit asks for a hundred."""
        with self._packing:
            if path not in self._packed:
                try:
                    self._packed[path] = gzip.compress(self._files[path].read_bytes(), LEVEL, mtime=0)
                except OSError:  # Streamlit was updated under a server that runs: it says so itself
                    return b""
            return self._packed[path]


def _takes_gzip(scope: Scope) -> bool:
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])
