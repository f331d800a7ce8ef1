"""What stands on top of a run's page: its state, how far it is, why it ended, and the one thing to do."""

from __future__ import annotations

import streamlit as st

from fluxcore.dataset import list_pictures
from fluxcore.runs import RunState, best_weights, default_outputs, resume_choice
from fluxcore.runs.outlook import LOST, all_evidence
from fluxcore.runs.supervision import observed_state
from fluxcore.trainers import DEFAULT_TRAINER, HEAR_NO_WISHES

from .. import ask, banner, dialogs, look, nav, pulse, words
from ..files import run_url
from ..live import LiveRun
from . import manage


def show(run: LiveRun) -> None:
    """State, how far, and the one thing to do."""
    state = run.state
    shown = observed_state(state, default_outputs())
    dialogs.pass_on()
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        title = f"## {words.escape(run.title)} &nbsp; {look.badge(shown)}"
        st.markdown(" ".join([title, *(f":violet-badge[{words.escape(tag)}]" for tag in state.tags)]), width="stretch")
        with st.container(horizontal=True, width="content", gap="xsmall"):
            _actions(run, shown)
            manage.menu(run)
    if run.title != run.name:
        st.caption(f"`{run.name}`")
    _moving(run)
    if state.note:
        st.caption(f":material/sticky_note_2: {words.escape(state.note)}")
    _explain(run, shown)


@pulse.piece("head")
def _moving(run: LiveRun) -> str:
    """How far it is, its figures, and how long it was in each phase."""
    state, parts = run.state, []
    if state.is_live:
        parts = [look.facts([("", banner.progress_words(state))]), look.bar(banner.progress(state))]
    elif state.total_steps and not state.is_coming:
        parts = [look.facts([("", f"step {state.step:,} / {state.total_steps:,}")]), look.bar(banner.progress(state))]
    return "".join([*parts, *(look.facts(pairs) for pairs in (_facts(run), _phases(state)) if pairs)])


def _actions(run: LiveRun, shown: str) -> None:
    state, name = run.state, run.name
    if state.is_live and shown != "lost":
        if state.state != "stopping":
            st.button(
                "Stop",
                key="run-stop",
                icon=":material/stop:",
                on_click=ask.stop,
                args=(name,),
                help="Saves a checkpoint and ends; it can be resumed.",
            )
            _wishes(run)
    elif state.state == "completed":
        if url := banner.weights_url(run):
            best = best_weights(run.folder, state)
            if best and best.path != state.weights:
                st.link_button(
                    f"Best: step {best.step:,}",
                    run_url(run.folder, best.path),
                    key="run-download-best",
                    icon=":material/star:",
                    help=f"Download the LoRA file with the lowest loss on held-out pictures, "
                    f"{words.loss(best.validation_loss)}",
                )
            st.link_button("Download LoRA", url, key="run-download", icon=":material/download:", type="primary")
    elif not state.attempts:
        if not list_pictures(run.folder.dataset):
            st.page_link(nav.page("train"), label="To Train", icon=":material/model_training:")
            return
        st.button(
            "Start training",
            key="run-start",
            icon=":material/play_arrow:",
            type="primary",
            on_click=ask.start,
            args=(name,),
        )
    elif state.is_busy:
        pass  # a stalled attempt whose processes are being ended: nothing is granted before they are gone
    elif shown != "lost" and resume_choice(run.folder, state):
        st.button(
            "Resume", key="run-resume", icon=":material/play_arrow:", type="primary", on_click=ask.resume, args=(name,)
        )
    elif shown != "lost":
        st.button(
            "Start again",
            key="run-restart",
            icon=":material/replay:",
            type="primary",
            on_click=ask.start,
            args=(name, True),
            help="From step 0; what is there now is moved aside, not deleted.",
        )


def _wishes(run: LiveRun) -> None:
    """What a training under way can be asked for."""
    state = run.state
    attempt = state.live_attempt
    config = state.served_config(attempt) if attempt else {}
    if attempt is None or config.get("trainer", DEFAULT_TRAINER) in HEAR_NO_WISHES:
        return
    wishes = [("save", "Save now", "save", ask.save, "A checkpoint to resume from, and the LoRA file as it is now.")]
    if str(config.get("sample_prompts") or "").strip():
        wishes.insert(0, ("sample", "Sample now", "imagesmode", ask.sample, "Draws the sample prompts as it is now."))
    for wish, label, icon, asked, does in wishes:
        waits = wish in state.wishes
        st.button(
            label,
            key=f"run-{wish}",
            icon=":material/hourglass_top:" if waits else f":material/{icon}:",
            disabled=waits,
            on_click=asked,
            args=(run.name,),
            help="It is asked for and comes after this step." if waits else does,
        )


def _explain(run: LiveRun, shown: str) -> None:
    state = run.state
    if state.notices and not state.is_coming:
        st.info("\n\n".join(map(words.escape, state.notices.values())), icon=":material/info:")
    if run.trouble:
        st.error(words.escape(run.trouble), icon=":material/error:")
    if shown == "lost":
        st.error(
            LOST,
            icon=":material/help:",
        )
        st.button(
            "Start the runner", key="lost-start-runner", icon=":material/power_settings_new:", on_click=ask.start_runner
        )
    elif state.state in ("failed", "stalled"):
        (st.error if state.state == "failed" else st.warning)(
            words.escape(banner.why(run)), icon=f":material/{look.STATES[state.state][1]}:"
        )
        seen, tail = all_evidence(run.folder, state)
        if tail or seen:
            with st.expander("Why? The evidence"):
                if seen:
                    st.markdown(words.escape(words.evidence(seen)))
                    st.json(seen, expanded=False)
                if tail:
                    st.code(tail, language=None, height=240)
    elif state.state == "draft" and not list_pictures(run.folder.dataset):
        st.info(
            "Its pictures are missing: nothing can be trained before it has some. Add pictures on the page Train and "
            "start from there.",
            icon=":material/add_photo_alternate:",
        )
    elif state.state == "stopped":
        st.info(words.escape(banner.why(run)), icon=":material/stop_circle:")
    elif state.refusal:
        st.warning(words.escape(f"It could not be started: {state.refusal}."), icon=":material/block:")
    elif state.disk_low:
        st.warning(
            "The disk gets full; if that goes on, the run is stopped before it is full. Make room: delete old "
            "runs or checkpoints.",
            icon=":material/hard_drive:",
        )
    elif state.suspected:
        st.warning(
            "No progress is seen for a while; if that lasts, the run is stopped and can be resumed.",
            icon=":material/warning:",
        )


def _phases(state: RunState) -> list[tuple[str, str]]:
    """How long this attempt was in each phase, where that is worth a line."""
    spent = {name: seconds for name, seconds in state.phase_seconds.items() if seconds >= 1}
    if state.is_coming or not spent.keys() - {"train"}:
        return []
    now = state.phase if state.is_live else ""
    parts = [(words.PHASES.get(name, name), words.duration(seconds)) for name, seconds in spent.items() if name != now]
    return [*parts, (words.PHASES.get(now, now), "now")] if now else parts


def _facts(run: LiveRun) -> list[tuple[str, str]]:
    state = run.state
    took = run.row.get("seconds")  # of all attempts together
    resumed = len(state.attempts) > 1 and bool(state.attempts[-1].resume_step)
    best = state.best_loss
    setup = [
        ("attempt", str(len(state.attempts)) if len(state.attempts) > 1 else ""),
        ("base", str(state.config.get("base_model", ""))),
        ("trigger", str(state.config.get("concept_sentence", ""))),
    ]
    if state.is_coming:
        return setup[1:]
    speed = state.seconds_per_step if state.is_live else state.mean_seconds_per_step
    return [
        ("speed" if state.is_live else "average speed", words.pace(speed) if speed else ""),
        ("loss", words.loss(state.loss) if state.loss is not None else ""),
        ("lowest", words.loss(best) if best is not None else ""),
        ("held-out loss", words.loss(state.measured[-1].loss) if state.measured else ""),
        ("learning rate", f"{state.lr:.3g}" if state.lr is not None and state.is_live else ""),
        ("memory", f"{state.memory_gib:.1f} GiB" if state.memory_gib and state.is_live else ""),
        ("went on" if resumed else "started", words.clock(state.started) if state.started else ""),
        ("took" if state.ended else "so far", words.duration(took) if took is not None else ""),
        *setup,
    ]
