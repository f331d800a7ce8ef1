"""What moves with every step, kept up to date by the browser itself.

A fragment's run costs the server ten milliseconds whatever it draws: ten open pages with three of them a second took
most of a core. So numbers that move are drawn as pieces of HTML with a name. A script in the page (`pulse.js`) asks for
all of its pieces at once and puts them in. Where more has changed than numbers – a run begins or ends, a warning
comes – it has the banner run, which tells of it; on the page of the run that changed, the whole page runs.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import orjson
import streamlit as st
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxcore.errors import UserError
from fluxcore.runs.supervision import runner_alive

from . import nav, words
from .base import prefix
from .live import LiveRun, live_runs

log = logging.getLogger("fluxgym")

BUSY_SECONDS, QUIET_SECONDS = 0.7, 5.0
MOST_PIECES = 64
THREADS = 4
_JS = Path(__file__).with_name("pulse.js").read_text(encoding="utf-8")
_DRAWN = "pulse.drawn"

_script = st.components.v2.component("fluxgym_pulse", js=_JS)
_drawers: dict[str, Callable[[LiveRun], str]] = {}
_odd: set[str] = set()
"""Pieces that could not be drawn: told once."""


def piece(kind: str) -> Callable[[Callable[[LiveRun], str]], Callable[[LiveRun], None]]:
    """Make what gives a run's HTML into what draws it, and keeps it up to date. The HTML is all escaped."""

    def make(drawer: Callable[[LiveRun], str]) -> Callable[[LiveRun], None]:
        _drawers[kind] = drawer

        def draw(run: LiveRun) -> None:
            st.html(f"<div data-fg-piece='{html.escape(f'{kind}:{run.name}')}'>{drawer(run)}</div>")

        return draw

    return make


def begin() -> None:
    """At the start of the whole page."""
    st.session_state.pop(_DRAWN, None)


def drawn(run: LiveRun) -> None:
    """The page shows this run as it is now."""
    st.session_state[_DRAWN] = (run.name, _as_drawn(run))


def _as_drawn(run: LiveRun) -> tuple[int, str, bool]:
    return run.shape, run.trouble, runner_alive(run.folder.path.parent) is not None


def follow(page: str, shape: int) -> None:
    """In the banner's fragment: the script in the page; and where the run that it shows has changed, the page anew.

    `shape` is that of all runs before the banner looked at them: what comes meanwhile is news to the browser.
    """
    if drawn := st.session_state.get(_DRAWN):
        run = live_runs().get(drawn[0])
        if run is not None and _as_drawn(run) != drawn[1]:
            st.rerun()
    name = str(st.query_params.get("name", "")) if page == "run" else ""
    with st.container(key="pulse"):
        _script(
            key="pulse-script",
            data={"page": page, "name": name, "shape": str(shape)},
            on_moved_change=lambda: None,
        )


def route(title: Callable[[str, str], str], base: str = "") -> Route:
    """`GET pulse?piece=banner:my-cat&page=run&name=my-cat`; the gate stands before it as before every page.

    `title` gives the title of a page and a run's name.
    """

    limiter: list[anyio.CapacityLimiter] = []

    def read(asked: QueryParams) -> dict[str, Any]:
        said = beat(asked.getlist("piece")[:MOST_PIECES], asked.get("zone", ""))
        if (page := asked.get("page", "")) in nav.TITLES:
            said["title"] = title(page, asked.get("name", ""))
        return said

    async def answer(request: Request) -> Response:
        if not limiter:  # of its own: pages that wait for a long reading keep no picture from anybody
            limiter.append(anyio.CapacityLimiter(THREADS))
        try:
            said = await anyio.to_thread.run_sync(read, request.query_params, limiter=limiter[0])
        except UserError as error:
            return Response(str(error), 503, media_type="text/plain")
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(orjson.dumps(said), media_type="application/json", headers=headers)

    return Route(f"{prefix(base)}/pulse", answer, methods=["GET"])


def beat(pieces: list[str], zone: str) -> dict[str, Any]:
    """What a page is told: the HTML of its pieces by name, what tells whether more has changed, and in how many seconds
    to ask again. `zone` is the reader's time zone. Raises UserError where the outputs folder can't be read."""
    runs = live_runs()
    every = runs.all()
    found: dict[str, str] = {}
    with words.clock_of(zone or "UTC"):
        for key in pieces:
            kind, _, of = key.partition(":")
            run = runs.get(of)
            if kind in _drawers and run is not None:
                try:
                    found[key] = _drawers[kind](run)
                except Exception:  # one odd log keeps no other run from being told
                    if key not in _odd:
                        log.exception("%s can't be drawn", key)
                    _odd.add(key)
    return {
        "shape": str(runs.shape()),
        "pieces": found,
        "seconds": BUSY_SECONDS if any(run.is_busy for run in every) else QUIET_SECONDS,
    }
