"""The runner and the queue: who starts what waits, and holding it back for a while."""

from __future__ import annotations

import streamlit as st

from fluxcore.runs import default_outputs, pause_queue, read_installation
from fluxcore.runs.supervision import runner_alive

from .. import ask, banner, words
from ..live import live_runs


def show() -> None:
    """The card."""
    outputs = default_outputs()
    with st.container(border=True):
        st.subheader("Runner and queue", anchor=False)
        runner = runner_alive(outputs)
        if runner:
            st.markdown(f":green-badge[:material/check: alive] The runner (pid {runner.pid}) starts and watches runs.")
        else:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(":red-badge[:material/power_off: no runner] Nothing starts and nobody watches.")
                st.button("Start the runner", key="settings-runner", on_click=ask.start_runner)
        try:
            installation = read_installation(outputs)
        except OSError as error:
            st.warning(words.escape(ask.sentence(error)), icon=":material/warning:")
            return
        waiting = [run for run in live_runs().all() if run.is_live and run.state.state == "queued"]
        waiting.sort(key=lambda run: run.state.queue_position or len(waiting) + 1)
        for run in waiting:
            st.markdown(f"**{words.escape(run.name)}** · {words.escape(banner.progress_words(run.state))}")
        if installation.paused:
            why = f" ({words.escape(installation.reason)})" if installation.reason else ""
            st.markdown(
                f":orange-badge[:material/pause: paused] since {words.clock(installation.paused_since)}{why}: nothing "
                "starts; running trainings go on."
            )
            st.button(
                "Let the queue go on",
                key="queue-resume",
                icon=":material/play_arrow:",
                type="primary",
                on_click=ask.resume_queue,
            )
        else:
            if not waiting:
                st.caption("No run waits.")
            st.button(
                "Pause the queue",
                key="queue-pause",
                icon=":material/pause:",
                help="Nothing is started; running trainings go on.",
                on_click=ask.do,
                args=(lambda: pause_queue(outputs, "app"), "The queue is paused"),
            )
