"""History: SQL over all runs. Saved questions, the views' columns at hand, the answer as table, chart and file."""

from __future__ import annotations

import streamlit as st

from fluxcore.history.box import MAX_ROWS, MAX_SECONDS
from fluxcore.runs import default_outputs
from studio import access, dialogs, results, words
from studio.ask import tried
from studio.asking import Asked
from studio.live import live_runs
from studio.queries import EXAMPLES, keep_box, load_box, load_queries, remove_query, save_query
from studio.typing_saver import save_while_typing

VIEWS = ("runs", "steps", "events", "gpu", "host", "checkpoints", "samples", "validation", "stalls")
PATIENCE = 0.4
"""So long the page waits for an answer before it says that it waits: most come sooner."""


@st.cache_data(show_spinner=False)
def columns_of_views() -> dict[str, dict[str, str]]:
    """What there is to ask for: view → column → type."""
    found: dict[str, dict[str, str]] = {name: {} for name in VIEWS}
    for row in live_runs().history.query(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = 'history' AND schema_name = 'main' ORDER BY column_index"
    ):
        found.setdefault(row["table_name"], {})[row["column_name"]] = row["data_type"]
    return found


def take_up() -> None:
    """A saved question goes into the box and is asked: once, for a browser says it again when the page is left."""
    chosen, before = st.session_state.get("sql-saved"), st.session_state.get("sql.taken")
    st.session_state["sql.taken"] = chosen
    if chosen and chosen != before:
        st.session_state["sql"] = (EXAMPLES | load_queries(default_outputs()))[chosen]
        st.session_state["sql.name"] = chosen
        remember()
        ask()


def remember() -> None:
    """The box changed: keep what stands in it, of a viewer in this session alone."""
    st.session_state["sql.text"] = st.session_state["sql"]  # it may come with a click to another page
    if not access.is_viewer():
        tried(lambda: keep_box(default_outputs(), st.session_state["sql"]))


def ask() -> None:
    """Ask what stands in the box; a statement that still runs is called off."""
    if before := st.session_state.get("sql.asked"):
        before.cancel()
    st.session_state["sql.asked"] = Asked(default_outputs(), st.session_state.get("sql", ""), live_runs().history)


def keep() -> None:
    """Keep what stands in the box under the name that was given."""
    name = " ".join(str(st.session_state.get("sql-name") or "").split())
    if not tried(lambda: save_query(default_outputs(), name, st.session_state.get("sql", ""))):
        return
    st.session_state["sql.name"] = st.session_state["sql-saved"] = st.session_state["sql.taken"] = name
    st.toast(f"{name} is kept", icon=":material/check:")


def answer() -> None:
    """What is known of the statement by now."""
    asked: Asked | None = st.session_state.get("sql.asked")
    if asked is None:
        st.caption(
            "Choose a question above or write your own. Nothing can be changed here: a statement reads a copy, in a "
            f"process of its own, for at most {MAX_SECONDS:.0f} seconds and {MAX_ROWS:,} rows."
        )
        return
    asked.wait(PATIENCE)
    if asked.is_running:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f":material/hourglass_top: It is being answered, {asked.waited:.0f} s so far.", width="content")
            st.button("Cancel", key="sql-cancel", icon=":material/close:", on_click=asked.cancel)
        return
    if st.session_state.get("sql.shown") is not asked:
        st.session_state["sql.shown"] = asked
        if st.session_state.pop("sql.waits", False):
            st.rerun()  # the page need not look any more
    if asked.problem:
        st.error(words.escape(asked.problem[:1].upper() + asked.problem[1:]) + "\\.", icon=":material/block:")
    elif asked.result is not None:
        results.show(asked.result, asked.seconds)


outputs = default_outputs()
own = load_queries(outputs)
if "sql" not in st.session_state:
    kept = "" if access.is_viewer() else load_box(outputs)
    st.session_state["sql"] = st.session_state.get("sql.text") or kept or EXAMPLES["All runs"]
if "sql-saved" not in st.session_state:  # the page was left: any question may be chosen again
    st.session_state["sql.taken"] = None
if st.session_state.get("sql-saved") not in (None, *own, *EXAMPLES):  # it was forgotten, here or in another tab
    st.session_state["sql-saved"] = st.session_state["sql.taken"] = None
st.title("History", anchor=False)
left, right = st.columns([3, 1.1], gap="medium")
with left:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.selectbox(
            "Saved questions",
            [*own, *EXAMPLES],
            index=None,
            key="sql-saved",
            placeholder="A saved question …",
            label_visibility="collapsed",
            on_change=take_up,
            width=320,
        )
        with st.popover("Keep", icon=":material/bookmark_add:", key="sql-keep"):
            st.text_input("Name", key="sql-name", placeholder="What it answers")
            st.button("Keep it", key="sql-keep-yes", type="primary", on_click=keep)
        if (chosen := st.session_state.get("sql-saved")) in own:
            st.button(
                "Forget",
                key="sql-forget",
                icon=":material/bookmark_remove:",
                type="tertiary",
                on_click=dialogs.confirm,
                args=(
                    f"Forget {words.escape(chosen)}?",
                    "The question is not kept any more; what stands in the box stays.",
                    "Forget it",
                    lambda: remove_query(outputs, chosen),
                ),
            )
    st.text_area(
        "SQL",
        key="sql",
        height=190,
        label_visibility="collapsed",
        placeholder="SELECT run, state FROM runs",
        on_change=remember,
    )
    st.session_state["sql.text"] = st.session_state["sql"]
    st.button("Ask", key="sql-ask", type="primary", icon=":material/play_arrow:", shortcut="Ctrl+Enter", on_click=ask)
with right, st.container(height=290, border=True, key="sql-views"):
    for view, columns in columns_of_views().items():
        with st.expander(f"`{view}`"):
            st.markdown("  \n".join(f"`{name}` :small[:gray[{kind.lower()}]]" for name, kind in columns.items()))

asked = st.session_state.get("sql.asked")
if asked is not None:
    asked.wait(PATIENCE)
waits = asked is not None and asked.is_running
st.session_state["sql.waits"] = waits
st.fragment(answer, run_every=0.5 if waits else None, key="sql-answer")()
save_while_typing()
