"""Events: the run's log itself, narrowed by type and word, each as the JSON that it is."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa
import streamlit as st

from ..live import LiveRun, live_runs

MOST = 300
FREQUENT = ("train.step", "gpu.sampled", "host.sampled", "phase.progress")


def show(run: LiveRun) -> None:
    """The tab."""
    counts = run.kept("event types", lambda: _counts(run.name))
    with st.container(horizontal=True, vertical_alignment="center"):
        types = st.multiselect(
            "Types",
            list(counts),
            key=f"events-types-{run.name}",
            format_func=lambda name: f"{name} ({counts.get(name, 0):,})",
            placeholder="All but steps and samplings",
            label_visibility="collapsed",
            width=420,
        )
        wanted = st.text_input(
            "Search",
            key=f"events-search-{run.name}",
            placeholder="Search in the data",
            type="search",
            label_visibility="collapsed",
            width=260,
        )
    asked = types or [name for name in counts if name not in FREQUENT]
    word = (wanted or "").strip().lower()
    rows = run.kept(("events", tuple(asked), word), lambda: _newest(run.name, asked, word))
    if not len(rows):
        st.caption("No event matches that.")
        return
    zoned = rows.set_column(0, "ts", rows["ts"].cast(pa.timestamp("us", "UTC")))
    chosen = st.dataframe(
        zoned,
        hide_index=True,
        width="stretch",
        height=420,
        key=f"events-{run.name}",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "ts": st.column_config.DatetimeColumn("time", format="YYYY-MM-DD HH:mm:ss.SSS", width="medium"),
            "data": st.column_config.TextColumn(width="large"),
            "writer": None,
            "n": None,
        },
        alt=f"The events of {run.name}, the newest first",
    )
    picked = chosen["selection"]["rows"]
    if picked and picked[0] < len(rows):
        st.json(_whole(run.name, rows.slice(picked[0], 1).to_pylist()[0]))
    more = f" The newest {MOST}." if len(rows) == MOST else ""
    st.caption(f"{len(rows)} of {sum(counts.values()):,} events.{more} Choose one to see all of it.")


def _counts(run: str) -> dict[str, int]:
    found = live_runs().history.query(
        "SELECT type, count(*) AS n FROM events WHERE run = $run GROUP BY type ORDER BY type", {"run": run}
    )
    return {str(row["type"]): int(row["n"]) for row in found}


def _newest(run: str, types: list[str], word: str) -> pa.Table:
    return live_runs().history.table(
        """SELECT ts, type, source, attempt, data::VARCHAR AS data, writer, n FROM events
        WHERE run = $run AND list_contains($types, type) AND ($word = '' OR contains(lower(data::VARCHAR), $word))
        ORDER BY ts DESC, n DESC LIMIT $most""",
        {"run": run, "types": types, "word": word, "most": MOST},
    )


def _whole(run: str, row: dict[str, Any]) -> dict[str, Any]:
    data = orjson.loads(row["data"]) if row["data"] else {}
    return {
        "ts": row["ts"].isoformat(timespec="microseconds") + "Z",
        "run": run,
        **{name: row[name] for name in ("type", "source", "writer", "n", "attempt")},
        "data": data,
    }
