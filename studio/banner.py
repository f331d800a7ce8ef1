"""What stands on top of every page: what runs and how far it is, what ended in the last 24 hours, and one action each.

Folded away when nothing runs and nothing is recent.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import streamlit as st

from fluxcore.runs import RunState, default_outputs
from fluxcore.runs.outlook import what_happened, why_it_stays
from fluxcore.runs.supervision import observed_state, runner_alive

from . import ask, look, nav, pulse, words
from .files import run_url
from .live import LiveRun, is_recent, live_runs

LOOK_SECONDS = 10.0
"""`pulse` keeps up to date what moves and what changes in the logs; this is for what doesn't stand there."""
MOST_LIVE = MOST_RECENT = 3
PREPARES = frozenset({"download", "load", "cache"})


def show(page: str, also: Callable[[list[LiveRun]], None] = lambda runs: None) -> None:
    """Draw the banner on `page`; it keeps itself up to date. `also` is done at each look."""
    busy = any(run.is_busy for run in live_runs().all())
    st.fragment(_banner, run_every=LOOK_SECONDS, key="banner")(page, busy, also)


def _banner(page: str, was_busy: bool, also: Callable[[list[LiveRun]], None]) -> None:
    shape, runs = live_runs().shape(), live_runs().all()
    # On a phone only the first is shown: one that trains before one that waits.
    live = sorted((run for run in runs if run.is_live), key=lambda run: run.state.state == "queued")
    busy = any(run.is_busy for run in runs)
    if busy != was_busy and st.session_state.get("banner.busy") != busy:
        st.session_state["banner.busy"] = busy
        st.rerun()  # what else is on the page takes another pace
    st.session_state["banner.busy"] = was_busy
    pulse.follow(page, shape)
    also(runs)  # not before the reruns above, which would take a toast away
    alive = runner_alive(default_outputs()) is not None
    if not alive and (live or time.monotonic() - _begun() > 8):
        _no_runner(bool(live))
    recent = [run for run in runs if is_recent(run, time.time()) and not run.row.get("archived")]
    if not live and not recent:
        return
    with st.container(border=True, key="banner", gap="xsmall"):
        for i, run in enumerate(live[:MOST_LIVE]):
            _live_row(run, first=i == 0)
        _more("live", len(live), MOST_LIVE, "live")
        for i, run in enumerate(recent[:MOST_RECENT]):
            _recent_row(run, first=i == 0 and not live)
        _more("ended", len(recent), MOST_RECENT, "ended in the last 24 hours")


def _more(kind: str, count: int, most: int, what: str) -> None:
    """A link to those that are not shown: on a phone all but one. The page's style shows one of the two."""
    for place, shown in (("wide", most), ("phone", 1)):
        if count > shown:
            with st.container(key=f"banner-more-{place}-{kind}"):
                st.page_link(nav.page("runs"), label=f"{count - shown} more {what}")


@st.cache_resource
def _begun() -> float:
    return time.monotonic()


def _no_runner(waiting: bool) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="no-runner"):
        what = "What you asked for waits until it is." if waiting else "Nothing can start until it is."
        st.markdown(f":orange-badge[:material/power_off: no runner] The runner is not alive. {what}", width="stretch")
        st.button(
            "Start the runner", key="start-runner", icon=":material/power_settings_new:", on_click=ask.start_runner
        )


def _live_row(run: LiveRun, first: bool) -> None:
    state = run.state
    shown = observed_state(state, default_outputs())
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"live-{run.name}"):
        with st.container(width="stretch", gap="xsmall"):
            st.markdown(f"{look.badge(shown)} **{words.escape(run.title)}**")
            _moving(run)
        with st.container(horizontal=True, width="content", gap="xsmall", vertical_alignment="center"):
            open_link(run.name, key=f"open-{run.name}")
            if state.state != "stopping" and shown != "lost":
                st.button(
                    "Stop", key=f"banner-stop-{run.name}", icon=":material/stop:", on_click=ask.stop, args=(run.name,)
                )
            if first:
                _refresh_button()


@pulse.piece("banner")
def _moving(run: LiveRun) -> str:
    """How far a live run is, and its figures."""
    state = run.state
    return look.bar(progress(state)) + look.facts([("", progress_words(state)), *_facts(state)])


def _recent_row(run: LiveRun, first: bool) -> None:
    state = run.state
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"recent-{run.name}"):
        beside = f"recent-words-{run.name}"
        with st.container(horizontal=True, vertical_alignment="center", gap="small", width="stretch", key=beside):
            title = words.escape(run.title)
            st.markdown(f"{look.badge(state.state)} **{title}** &nbsp; {_ended_words(run)}", width="stretch")
            started = ("started", words.clock(state.started) if state.started else "")
            st.html(look.facts([started, length(state)]), width="content")
        with st.container(horizontal=True, width="content", gap="xsmall", vertical_alignment="center"):
            if state.state == "completed" and (url := weights_url(run)):
                st.link_button("Download", url, key=f"banner-get-{run.name}", icon=":material/download:")
            elif not state.is_busy and can_resume(run):
                st.button(
                    "Resume",
                    key=f"banner-resume-{run.name}",
                    icon=":material/play_arrow:",
                    type="primary",
                    on_click=ask.resume,
                    args=(run.name,),
                )
            open_link(run.name, key=f"open-{run.name}")
            if first:
                _refresh_button()


def _refresh_button() -> None:
    st.button(
        "Refresh",
        key="banner-refresh",
        type="tertiary",
        icon=":material/refresh:",
        on_click=live_runs().expire,
        help="Read every run's log now",
    )


def open_link(name: str, key: str) -> None:
    """A link to the run's page."""
    with st.container(key=key, width="content"):
        st.page_link(nav.page("run"), label="Open", icon=":material/open_in_full:", query_params={"name": name})


def weights_url(run: LiveRun) -> str | None:
    """Where the finished LoRA is to be had; None where it is not there."""
    weights = run.state.weights
    if not weights or not (run.folder.path / weights).is_file():
        return None
    return run_url(run.folder, weights)


def progress(state: RunState) -> float:
    """How far a run is, 0 to 1; before its first step: how far what it prepares is."""
    step = (state.coming_step or 0) if state.is_coming else state.step
    if not step and state.is_live and state.phase in PREPARES and state.phase_total:
        return min(1.0, (state.phase_done or 0) / state.phase_total)
    return min(1.0, step / state.total_steps) if state.total_steps else 0.0


def _coming_words(state: RunState) -> str:
    """What the attempt that is asked for will do; "" for a run's first."""
    if not state.attempts:
        return ""
    step = state.coming_step
    if step is None:
        return "will resume from a checkpoint"
    return f"will resume from step {step:,}" if step else "will start again from step 0"


def progress_words(state: RunState) -> str:
    """`step 480 / 960 · epoch 8 / 16 · ETA 21 min`, or what it does before the first step."""
    if state.state == "queued":
        place = f"number {state.queue_position} in the queue: " if state.queue_position else ""
        waits = f"{place}waits for {state.waiting_for or 'the runner'}"
        return " · ".join(part for part in (waits, _coming_words(state)) if part)
    if state.is_coming:
        return _coming_words(state) or "loads"
    parts = []
    if state.total_steps:
        parts.append(f"step {state.step:,} / {state.total_steps:,}")
        epochs = state.config.get("max_train_epochs")
        if state.epoch and epochs and not state.config.get("max_train_steps"):
            parts.append(f"epoch {state.epoch} / {epochs}")
        elif state.epoch:
            parts.append(f"epoch {state.epoch}")
    if state.phase and (state.phase != "train" or not state.total_steps):
        parts.append(words.phase(state.phase, state.phase_done, state.phase_total, state.phase_unit))
    if state.state == "stopping":
        parts.append("saves a checkpoint and ends")
    elif state.eta_seconds is not None and state.phase == "train":
        parts.append(f"ETA {words.duration(state.eta_seconds)}")
    return " · ".join(parts) or "loads"


def gpu_words(state: RunState) -> str:
    """`96 % · 18.2 / 24 GiB`, or "" where no GPU was ever read."""
    parts = []
    for gpu in list(state.gpus.values())[:4]:
        used, total, busy = gpu.get("memory_used_gib"), gpu.get("memory_total_gib"), gpu.get("utilization_percent")
        parts.append(
            (f"{busy:.0f} %" if isinstance(busy, int | float) else words.UNKNOWN)
            + (
                f" · {used:.1f} / {total:.0f} GiB"
                if isinstance(used, int | float) and isinstance(total, int | float)
                else ""
            )
        )
    return ", ".join(parts)


def _facts(state: RunState) -> list[tuple[str, str]]:
    running = state.state in ("running", "stopping")
    return [
        ("speed", words.pace(state.seconds_per_step) if running and state.seconds_per_step else ""),
        ("loss", words.loss(state.loss) if running and state.loss is not None else ""),
        ("GPU", gpu_words(state)),
        ("started", words.clock(state.started) if state.started and not state.is_coming else ""),
        length(state),
        ("checkpoints", "on" if state.config.get("enable_checkpointing") else "off"),
        ("monitoring", "on" if state.monitoring else "off"),
    ]


def length(state: RunState) -> tuple[str, str]:
    """What its config sets: its steps, or its epochs."""
    if steps := state.config.get("max_train_steps"):
        return "steps", f"{steps:,}"
    return "epochs", str(state.config.get("max_train_epochs", ""))


def _ended_words(run: LiveRun) -> str:
    state, when = run.state, words.ago(run.state.ended)
    if state.state == "completed":
        weights = run.folder.path / (state.weights or "")
        named = f" · {words.escape(weights.name)} {words.size(weights.stat().st_size)}" if weights.is_file() else ""
        return f"{when} · {words.plural(state.step, 'step')}{named}"
    text = why(run)
    return f"{when} · {words.escape(text)}" if text else when


def can_resume(run: LiveRun) -> bool:
    """Whether the checkpoint that its end named is still there (it is looked into when the resume is asked for)."""
    checkpoint = run.state.resume_checkpoint
    return bool(checkpoint) and (run.folder.path / str(checkpoint)).is_dir()


def why(run: LiveRun) -> str:
    """How a run ended, why it is not resumed by itself, and from where it can go on."""
    state = run.state
    can = f"It can go on from step {state.resume_step:,}." if can_resume(run) and state.resume_step is not None else ""
    if state.state == "stopped" and not state.hint:
        asked = {"user": "Stopped on request", "disk_low": "Stopped: the disk is almost full"}.get(
            state.reason, "Stopped: the machine went down" if state.reason == "shutdown" else "Stopped"
        )
        return f"{asked} at step {state.step:,}. {can}".strip()
    return " ".join(part for part in (what_happened(state), why_it_stays(state), can) if part)


def verdict(name: str, state: RunState) -> str:
    """What was seen when the run was judged stuck, in a sentence."""
    limit = words.duration(state.config.get("stall_seconds"))
    return {
        "gpu_idle": f"The GPU has done nothing for {limit}, so the run was stopped.",
        "no_progress": "No step was finished for too long, so the run was stopped.",
        "silent": "Nothing was heard of the training for too long, so the run was stopped.",
    }.get(name, "The run was stuck and was stopped.")
