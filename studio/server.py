"""What surrounds the pages: the gate, the file routes, what happens when the server starts, and when a page fails."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import secrets
import socket
import stat
import threading
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.routing import Route

from fluxcore.access import TOKEN_FILE, is_loopback, load_token, viewer_token
from fluxcore.errors import UserError
from fluxcore.runs import default_outputs

from . import access, files, notice, pulse, sign_in
from .assets import Assets
from .gate import Gate, say
from .live import live_runs
from .streamlit_fixes import fix_streamlit

log = logging.getLogger("fluxgym")
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Of glibc's malloc.h."""


def routes() -> list[Route]:
    """The app's own routes: what moves, pictures and downloads."""
    base = st.get_option("server.baseUrlPath") or ""
    return [pulse.route(notice.title, base), *files.routes(default_outputs(), base)]


def middleware() -> list[Middleware]:
    """The gate, on wherever the server can be reached from outside or the launcher gives a token; and the assets."""
    outputs = default_outputs()
    address = st.get_option("server.address") or ""
    launched = bool(os.environ.get("FLUXGYM_TOKEN"))
    trusted = not launched and is_loopback(address)
    try:
        token, where = load_token(outputs), f"stands in {outputs / TOKEN_FILE}"
    except OSError as error:  # the app comes up all the same: its pages say what is wrong with the folder
        token = secrets.token_urlsafe(24)
        where = f"can't be kept in {outputs} ({error.strerror}); give one in FLUXGYM_TOKEN and start again"

    def announce() -> None:
        say(
            "FluxGym: a request under another name than localhost was turned away (a tunnel?); "
            f"the token that lets it in {where}"
        )

    if not trusted and not launched:  # the launcher prints its own
        say(f"FluxGym: open http://{address or 'localhost'}:{st.get_option('server.port')}/?token={token}")
    access.guard()
    return [
        Middleware(
            Gate,
            token=token,
            trust_loopback=trusted,
            announce=announce if trusted else None,
            viewer_token=lambda: viewer_token(outputs),
            sign_in=sign_in.configured(),
        ),
        Middleware(Assets, base=st.get_option("server.baseUrlPath") or ""),
    ]


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """Start the runner where none is alive, and move what was imported out of the garbage collector's way."""
    threading.Thread(target=_start_runner, name="start-runner", daemon=True).start()
    threading.Thread(target=_read_history, name="read-history", daemon=True).start()
    gc.collect()
    gc.freeze()
    give_memory_back()
    fix_streamlit()
    answer_at_once()
    yield {}


def answer_at_once() -> None:
    """Have answers of several packets sent without a wait for the browser's acknowledgement, which comes 40 ms late.

    asyncio sees to that for sockets that name their protocol; Streamlit's does not, and a first visit asks for sixty
    small files. What is set on a listening socket holds for each connection that it takes.
    """
    for number in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else []:
        with suppress(OSError):  # closed meanwhile
            if not stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(number))) as one:
                if one.family != socket.AF_UNIX and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def give_memory_back() -> None:
    """Have glibc return what uploads took: by default, after the first large block is freed, larger and larger ones
    come from heaps that never shrink, one for each of many threads. Elsewhere than on glibc nothing happens."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)  # blocks from 1 MiB have pages of their own, which go when they go
        libc.mallopt(M_ARENA_MAX, 2)
    except (OSError, AttributeError):
        pass


def _start_runner() -> None:
    try:
        from fluxcore.runs.supervision import ensure_runner

        ensure_runner(default_outputs())
    except UserError as error:  # the pages show the same, with a button to try again
        log.warning("the runner was not started: %s", error)
    except Exception:
        log.exception("the runner was not started")


def _read_history() -> None:
    """Read the logs before the first visitor asks, and once more: at a quiet look the history makes itself small."""
    try:
        runs = live_runs()
        for _ in range(2):
            runs.all()
            runs.expire()
    except Exception as error:  # the pages meet the same trouble and say it
        log.warning("the history was not read ahead: %s", error)


def on_script_error(error: Exception) -> bool:
    """Write the traceback into the server's output and one sentence onto the page."""
    log.error("a page failed\n%s", "".join(traceback.format_exception(error)))
    if isinstance(error, UserError):
        st.error(str(error), icon=":material/error:")
    else:
        st.error(
            f"This page failed ({type(error).__name__}). Nothing of your runs is touched by that: reload the page. "
            "The details stand in the app's output.",
            icon=":material/error:",
        )
    return True
