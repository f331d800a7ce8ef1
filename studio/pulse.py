"""What moves with every step, kept up to date by the browser itself.

A fragment's run costs the server ten milliseconds whatever it draws: ten open pages with three of them a second took
most of a core. So numbers that move are drawn as pieces of HTML with a name. A script in the page (`pulse.js`) asks for
all of its pieces at once and puts them in. Where more has changed than numbers – a run begins or ends, a warning
comes – it has the banner run, which tells of it; on the page of the run that changed, the whole page runs.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import orjson
import streamlit as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fluxcore.errors import UserError

from . import nav, words
from .live import LiveRun, live_runs

BUSY_SECONDS, QUIET_SECONDS = 0.7, 5.0
MOST_PIECES = 64
_JS = Path(__file__).with_name("pulse.js").read_text(encoding="utf-8")
_DRAWN = "pulse.drawn"

_drawers: dict[str, Callable[[LiveRun], str]] = {}


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
    st.session_state[_DRAWN] = (run.name, run.shape)


def follow(page: str) -> None:
    """In the banner's fragment: the script in the page; and where the run that it shows has changed, the page anew."""
    runs = live_runs()
    if drawn := st.session_state.get(_DRAWN):
        run = runs.get(drawn[0])
        if run is not None and run.shape != drawn[1]:
            st.rerun()
    name = str(st.query_params.get("name", "")) if page == "run" else ""
    with st.container(key="pulse"):
        _component()(
            key="pulse-script",
            data={"page": page, "name": name, "shape": str(runs.shape())},
            on_moved_change=lambda: None,
        )


def _component() -> Any:
    return st.components.v2.component("fluxgym_pulse", js=_JS)


def route(title: Callable[[str, str], str], base: str = "") -> Route:
    """`GET pulse?piece=banner:my-cat&page=run&name=my-cat`; the gate stands before it as before every page.

    `title` gives the title of a page and a run's name.
    """

    async def answer(request: Request) -> Response:
        asked = request.query_params
        try:
            said = await anyio.to_thread.run_sync(beat, asked.getlist("piece")[:MOST_PIECES], asked.get("zone", ""))
            if (page := asked.get("page", "")) in nav.TITLES:
                said["title"] = title(page, asked.get("name", ""))
        except UserError as error:
            return Response(str(error), 503, media_type="text/plain")
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(orjson.dumps(said), media_type="application/json", headers=headers)

    prefix = f"/{base.strip('/')}" if base.strip("/") else ""
    return Route(f"{prefix}/pulse", answer, methods=["GET"])


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
                found[key] = _drawers[kind](run)
    return {
        "shape": str(runs.shape()),
        "pieces": found,
        "seconds": BUSY_SECONDS if any(run.is_busy for run in every) else QUIET_SECONDS,
    }
