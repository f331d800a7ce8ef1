"""Log: what the trainer and the monitor wrote. Follow it, look for a word, take it along."""

from __future__ import annotations

import html
import re
from pathlib import Path

import streamlit as st

from fluxcore.tail import last_lines

from .. import words
from ..files import run_url
from ..live import LiveRun

FOLLOWED = 200
LOOKED_AT = 2000
SEARCHED_BYTES = 16 * 1024 * 1024
MOST_HITS = 300
WHICH = {"Trainer": "train.log", "Monitor": "monitor.log"}
_LEVELS = (
    ("bad", re.compile(r"\b(ERROR|CRITICAL|FATAL|Traceback)\b|\b\w*(Error|Exception)\b:|out of memory")),
    ("warn", re.compile(r"\bWARN(ING)?\b|\w+Warning\b")),
    ("quiet", re.compile(r"\bDEBUG\b")),
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def show(run: LiveRun) -> None:
    """The tab."""
    with st.container(horizontal=True, vertical_alignment="center"):
        which = st.segmented_control(
            "Log", list(WHICH), default="Trainer", required=True, key="log-which", label_visibility="collapsed"
        )
        wanted = st.text_input(
            "Search",
            key="log-search",
            placeholder="Search in the log",
            type="search",
            live=True,
            label_visibility="collapsed",
            width=260,
        )
        follow = st.toggle(
            "Follow", True, key="log-follow", help="Keeps to the end. Off: more lines, and they stay where they are."
        )
        file = WHICH[which or "Trainer"]
        path = run.folder.path / file
        if path.is_file():
            st.link_button(
                "Download", f"{run_url(run.folder, file)}&download", key="log-get", icon=":material/download:"
            )
    empty = "The trainer has written nothing yet." if which == "Trainer" else "The monitor has written nothing yet."
    if (wanted or "").strip():
        _hits(path, str(wanted).strip(), empty)
    else:
        tail(path, FOLLOWED if follow else LOOKED_AT, empty, follow=follow)


def tail(path: Path, count: int, empty: str, *, follow: bool = True) -> None:
    """The last lines of a log; with `follow` the box keeps to their end."""
    most = 64 * 1024 if follow else 512 * 1024
    lines = last_lines(path, count, most_bytes=most)
    if not lines:
        st.caption(empty)
        return
    _box(lines, follow=follow)
    if len(lines) > 16:
        st.caption(f"The last {len(lines)} lines.")


def _hits(path: Path, wanted: str, empty: str) -> None:
    lines = last_lines(path, 10_000_000, most_bytes=SEARCHED_BYTES)
    if not lines:
        st.caption(empty)
        return
    low = wanted.lower()
    found = [line for line in lines if low in line.lower()]
    if not found:
        st.caption(f"No line has “{words.escape(wanted)}”.")
        return
    _box(found[-MOST_HITS:], follow=False, wanted=wanted)
    shown = f", the last {MOST_HITS} of them here" if len(found) > MOST_HITS else ""
    st.caption(f"{words.plural(len(found), 'line')} of {len(lines):,}{shown}.")


def _box(lines: list[str], *, follow: bool, wanted: str = "") -> None:
    tall = len(lines) > 16
    with st.container(height=460 if tall else "content", autoscroll=follow and tall, key="log-box"):
        text = "".join(_line(line, wanted) for line in lines)
        st.html(f"<pre class=fg-log tabindex=0 role=region aria-label='Log'>{text}</pre>")  # in it, arrow keys scroll


def _line(line: str, wanted: str) -> str:
    line = _ANSI.sub("", line)
    level = next((name for name, pattern in _LEVELS if pattern.search(line)), "")
    if wanted:
        parts = re.split(f"({re.escape(wanted)})", line, flags=re.IGNORECASE)
        text = "".join(
            f"<mark>{html.escape(part)}</mark>" if i % 2 else html.escape(part) for i, part in enumerate(parts)
        )
    else:
        text = html.escape(line)
    return f"<span class='fg-{level}'>{text}</span>\n" if level else f"{text}\n"
