"""Monitor: who watches, what was seen of GPU and host, why a run was judged stuck, and the switch."""

from __future__ import annotations

import orjson
import streamlit as st

from fluxcore.runs import RunState, default_outputs
from fluxcore.runs.supervision import runner_alive, trainer_alive
from fluxcore.tail import last_lines

from .. import ask, banner, charts, look, words
from ..files import run_url
from ..live import LiveRun, live_runs
from . import log

STACK_LINES = 1000
LAST_LINES = 12
MOST_STALLS = 5
WINDOWS = {"15 min": 900.0, "2 h": 7200.0, "All": None}
GPU = ("utilization_percent", "memory_used_gib", "power_watts", "temperature_c")
HOST = ("cpu_percent", "rss_gib", "memory_available_gib", "disk_free_gib")


def show(run: LiveRun) -> None:
    """The tab."""
    state = run.state
    runner = runner_alive(default_outputs())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(_who_watches(state, runner.pid if runner else None), width="stretch")
        _switch(run)
    st.html(look.facts(_processes(state, runner.pid if runner else None)))
    if state.suspected:
        st.warning(
            "No progress is seen for a while. " + words.escape(words.evidence(state.suspected.get("evidence") or {})),
            icon=":material/warning:",
        )
    if state.stalls:
        _stalls(run)
    _curves(run)
    if state.bad_lines:
        st.caption(
            f":material/broken_image: {words.plural(state.bad_lines, 'line')} of the event log can't be read and "
            "counted for nothing; all others count."
        )
    st.markdown("**What the monitor wrote last**")
    log.tail(run.folder.monitor_log, LAST_LINES, "The monitor has written nothing yet.")
    if run.folder.monitor_log.is_file():
        st.markdown(f":small[[The whole file]({run_url(run.folder, 'monitor.log')})]")
    for attempt, path in run.folder.stack_dumps():
        with st.expander(f"Where attempt {attempt} stood when it was found stuck", icon=":material/account_tree:"):
            st.code("\n".join(last_lines(path, STACK_LINES)), language=None, height=420)


def _stalls(run: LiveRun) -> None:
    """Every time it was judged stuck, the last one first, in words and with all that was weighed."""
    found = live_runs().history.query(
        "SELECT ts, attempt, verdict, evidence::VARCHAR AS evidence, resume_step FROM stalls WHERE run = $run "
        f"ORDER BY ts DESC LIMIT {MOST_STALLS}",
        {"run": run.name},
    )
    with st.container(border=True):
        for stall in found:
            seen = orjson.loads(stall["evidence"] or "{}")
            kept = "" if stall["resume_step"] is None else f" It could go on from step {stall['resume_step']:,}."
            st.markdown(
                f":orange-badge[:material/warning: stalled] **Attempt {stall['attempt']}**, "
                f"{words.clock(stall['ts'].isoformat() + 'Z')}. "
                + words.escape(f"{banner.verdict(stall['verdict'], run.state)} {words.evidence(seen)}{kept}")
            )
            st.json(seen, expanded=False)


def _switch(run: LiveRun) -> None:
    on = run.state.monitoring
    st.button(
        "Switch monitoring off" if on else "Switch monitoring on",
        key="monitor-off" if on else "monitor-on",
        icon=":material/visibility_off:" if on else ":material/visibility:",
        on_click=ask.monitoring,
        args=(run.name, not on),
    )


def _who_watches(state: RunState, runner: int | None) -> str:
    if not state.is_busy:
        return ":gray-badge[:material/check: ended] Nothing of this run lives, so there is nothing to watch."
    if runner is None:
        return ":red-badge[:material/power_off: no runner] No runner is alive, so nobody watches."
    if not state.monitoring:
        return ":gray-badge[:material/visibility_off: off] Nothing is judged or ended; the machine is still sampled."
    return (
        ":green-badge[:material/visibility: on] The runner watches this run: a stuck training is ended, noted with "
        "its checkpoint, and resumed."
    )


def _processes(state: RunState, runner: int | None) -> list[tuple[str, str]]:
    attempt = state.live_attempt
    trainer = f"pid {attempt.pid}" + ("" if trainer_alive(state) else " (gone)") if attempt and attempt.pid else ""
    limit = state.config.get("stall_seconds")
    return [
        ("runner", f"pid {runner}" if runner else "not alive"),
        ("trainer", trainer),
        ("stuck after", words.duration(limit) if isinstance(limit, int | float) else ""),
        ("automatic resumes", str(state.config.get("auto_resume", ""))),
        ("stalls", str(state.stalls) if state.stalls else ""),
        ("sampled", words.ago(str(state.host["ts"])) if state.host.get("ts") and state.is_busy else ""),
    ]


def _curves(run: LiveRun) -> None:
    shown = st.segmented_control(
        "Time",
        list(WINDOWS),
        default="15 min" if run.is_busy else "All",
        required=True,
        key=f"monitor-window-{run.name}",
        label_visibility="collapsed",
    )
    gpu, host = run.machine(WINDOWS[shown or "All"])
    if not len(gpu) and not len(host):
        st.caption("The machine is sampled while the run trains.")
        return
    if len(gpu):
        _row(gpu, GPU, run.name)
    else:
        st.caption("No GPU was seen: the run trains, or trained, on the CPU.")
    if len(host):
        _row(host, HOST, run.name)


def _row(rows: object, columns: tuple[str, ...], name: str) -> None:
    with st.grid("auto", min_column_width=240, gap="small"):
        for column in columns:
            with st.container(gap=None):
                st.caption(charts.MACHINE[column][0])
                charts.machine(rows, column, f"{column}-{name}")
