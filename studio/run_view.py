"""The parts of a run's page: what is drawn about a run, one function a part."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from fluxcore.dataset import list_pictures
from fluxcore.errors import UserError
from fluxcore.runs import RunState, default_outputs, list_checkpoints, resume_choice, seconds_between
from fluxcore.runs.requests import planned_steps
from fluxcore.runs.supervision import observed_state, runner_alive
from fluxcore.tail import last_lines

from . import ask, banner, look, nav, words
from .files import run_url
from .live import LiveRun

TAIL_LINES = 200
STACK_LINES = 1000
COMPARED_STEPS = 12


def header(run: LiveRun) -> None:
    """State, how far, and the one thing to do."""
    state = run.state
    shown = observed_state(state, default_outputs())
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"## {words.escape(state.title or run.name)} &nbsp; {look.badge(shown)}", width="stretch")
        with st.container(horizontal=True, width="content", gap="xsmall"):
            _actions(run, shown)
    if state.is_live:
        st.progress(banner.progress(state), text=banner.progress_words(state))
    elif state.total_steps and not state.is_coming:
        st.progress(banner.progress(state), text=f"step {state.step:,} / {state.total_steps:,}")
    st.html(look.facts(_facts(run)))
    _explain(run, shown)


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
    elif state.state == "completed":
        if url := banner.weights_url(run):
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


def _explain(run: LiveRun, shown: str) -> None:
    state = run.state
    if run.trouble:
        st.error(words.escape(run.trouble), icon=":material/error:")
    if shown == "lost":
        st.error(
            "The log says that it runs, but its process is gone and no runner is alive to say what happened. "
            "Start the runner: it finds out, and resumes the run where it can.",
            icon=":material/help:",
        )
        st.button(
            "Start the runner", key="lost-start-runner", icon=":material/power_settings_new:", on_click=ask.start_runner
        )
    elif state.state in ("failed", "stalled"):
        (st.error if state.state == "failed" else st.warning)(
            words.escape(banner.why(run)), icon=f":material/{look.STATES[state.state][1]}:"
        )
        if state.tail or state.evidence:
            with st.expander("Why? The evidence"):
                if state.evidence:
                    st.markdown(words.escape(words.evidence(state.evidence)))
                    st.json(state.evidence, expanded=False)
                if state.tail:
                    st.code(state.tail, language=None, height=240)
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


def _facts(run: LiveRun) -> list[tuple[str, str]]:
    state = run.state
    took = seconds_between(state.started, state.ended or state.updated) if state.started else None
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
        ("best", words.loss(best) if best is not None else ""),
        ("learning rate", f"{state.lr:.3g}" if state.lr is not None and state.is_live else ""),
        ("started", words.clock(state.started) if state.started else ""),
        ("took" if state.ended else "so far", words.duration(took) if took is not None else ""),
        *setup,
    ]


def machine(state: RunState) -> None:
    """The GPU and the host, as the runner sampled them last."""
    pairs = []
    for gpu in state.gpus.values():
        pairs.append(("GPU", str(gpu.get("name") or gpu.get("index"))))
        busy = gpu.get("utilization_percent")
        pairs.append(("busy", f"{busy:.0f} %" if isinstance(busy, int | float) else words.UNKNOWN))
        if gpu.get("problem"):
            pairs.append(("", {"lost": "lost", "no_answer": "its driver gives no answer"}.get(gpu["problem"], "")))
        used, total = gpu.get("memory_used_gib"), gpu.get("memory_total_gib")
        if isinstance(used, int | float) and isinstance(total, int | float):
            pairs.append(("memory", f"{used:.1f} / {total:.0f} GiB"))
        for key, unit in (("temperature_c", "°C"), ("power_watts", "W")):
            if isinstance(gpu.get(key), int | float):
                pairs.append(("", f"{gpu[key]:.0f} {unit}"))
    host = state.host
    for key, name, form in (
        ("cpu_percent", "CPU", "{:.0f} %"),
        ("rss_gib", "memory of the training", "{:.1f} GiB"),
        ("memory_available_gib", "memory free", "{:.1f} GiB"),
        ("disk_free_gib", "disk free", "{:.0f} GiB"),
    ):
        if isinstance(host.get(key), int | float):
            pairs.append((name, form.format(host[key])))
    if not state.gpus and host:
        pairs.insert(0, ("GPU", "none seen"))
    if pairs:
        st.html(look.facts(pairs if state.is_busy else [("", "at the end:"), *pairs]))
    else:
        st.caption("The machine is sampled while the run trains.")


def samples(run: LiveRun) -> None:
    """The newest samples, one for each prompt."""
    newest: dict[int, dict] = {}
    for sample in _lineage(run):
        newest[int(sample.get("index") or 0)] = sample
    if not newest:
        every = run.state.config.get("sample_every_n_steps")
        prompts = str(run.state.config.get("sample_prompts") or "").strip()
        attempt = run.state.attempt
        at_once = run.state.config.get("sample_at_first") and not (attempt and attempt.resume_step)
        st.caption(
            (
                "The first samples are drawn before the first step."
                if at_once
                else f"The first samples come at step {every}."
            )
            if every and prompts and run.state.is_live
            else "This run draws no samples."
            if not (every and prompts)
            else "No samples were drawn."
        )
        return
    items = [
        _sample_item(run, sample, f"step {int(sample.get('step') or 0):,}") for _, sample in sorted(newest.items())
    ]
    st.html(look.pictures(items, 190))


def sample_grid(run: LiveRun) -> None:
    """Prompt by prompt: how its picture changed over the steps."""
    by_prompt: dict[int, list[dict]] = {}
    for sample in _lineage(run):
        by_prompt.setdefault(int(sample.get("index") or 0), []).append(sample)
    if not by_prompt:
        samples(run)
        return
    for _, drawn in sorted(by_prompt.items()):
        st.markdown(f"**{words.escape(str(drawn[-1].get('prompt') or 'no prompt'))}**")
        items = [_sample_item(run, sample, f"step {int(sample.get('step') or 0):,}") for sample in _spread(drawn)]
        st.html(look.pictures([(small, full, alt, line.split(" · ")[0]) for small, full, alt, line in items], 130))


def _lineage(run: LiveRun) -> list[dict]:
    """Samples whose file is there, in order of steps; where a resume drew a step again, the later attempt's."""
    kept: dict[tuple[int, int], dict] = {}
    for sample in run.state.samples:
        if _is_there(run, sample):  # a restart and a resume move what they leave behind
            kept[int(sample.get("step") or 0), int(sample.get("index") or 0)] = sample
    return [sample for _, sample in sorted(kept.items())]


def _spread(drawn: list[dict]) -> list[dict]:
    if len(drawn) <= COMPARED_STEPS:
        return drawn
    return [drawn[round(i * (len(drawn) - 1) / (COMPARED_STEPS - 1))] for i in range(COMPARED_STEPS)]


def _is_there(run: LiveRun, sample: dict) -> bool:
    file = run.folder.inside(str(sample.get("path") or ""))
    return file is not None and file.is_file()


def _sample_item(run: LiveRun, sample: dict, line: str) -> tuple[str, str, str, str]:
    path, prompt = str(sample["path"]), str(sample.get("prompt") or "")
    return run_url(run.folder, path, 384), run_url(run.folder, path), prompt, f"{line} · {prompt}"


def log(path: Path, url: str, empty: str) -> None:
    """The last lines of a log, following its end."""
    lines = last_lines(path, TAIL_LINES)
    if not lines:
        st.caption(empty)
        return
    # The box follows its end.
    with st.container(height=420 if len(lines) > 16 else "content", autoscroll=len(lines) > 16):
        st.code("\n".join(lines), language=None, wrap_lines=True)
    shown = "The last line." if len(lines) == 1 else f"The last {len(lines)} lines."
    st.caption(f"{shown} [The whole file]({url})")


def _who_watches(state: RunState, runner: int | None) -> str:
    if not state.is_busy:
        return ":gray-badge[:material/check: ended] Nothing of this run lives, so there is nothing to watch."
    if runner is None:
        return ":red-badge[:material/power_off: no runner] No runner is alive, so nobody watches."
    if not state.monitoring:
        return ":gray-badge[:material/visibility_off: off] Nothing is judged or ended; the machine is still sampled."
    return (
        f":green-badge[:material/visibility: on] The runner (pid {runner}) watches this run: a stuck training is "
        "ended, noted with its checkpoint, and resumed."
    )


def monitor(run: LiveRun) -> None:
    """Who watches the run, and the switch."""
    state = run.state
    runner = runner_alive(default_outputs())
    st.markdown(_who_watches(state, runner.pid if runner else None))
    with st.container(horizontal=True):
        if state.monitoring:
            st.button(
                "Switch monitoring off",
                key="monitor-off",
                icon=":material/visibility_off:",
                on_click=ask.monitoring,
                args=(run.name, False),
            )
        else:
            st.button(
                "Switch monitoring on",
                key="monitor-on",
                icon=":material/visibility:",
                on_click=ask.monitoring,
                args=(run.name, True),
            )
    machine(state)
    if state.bad_lines:
        st.caption(
            f":material/broken_image: {words.plural(state.bad_lines, 'line')} of the event log can't be read and "
            "counted for nothing; all others count."
        )
    log(run.folder.monitor_log, run_url(run.folder, "monitor.log"), "The monitor has written nothing yet.")
    for attempt, path in run.folder.stack_dumps():
        with st.expander(f"Where attempt {attempt} stood when it was found stuck", icon=":material/account_tree:"):
            st.code("\n".join(last_lines(path, STACK_LINES)), language=None, height=420)


def checkpoints(run: LiveRun) -> None:
    """Every state and weights file; what can be resumed from, what can be downloaded."""
    found = list_checkpoints(run.folder, run.state)
    if not found:
        every = run.state.config.get("save_every_n_epochs")
        st.caption(
            f"None yet; one is kept every {words.plural(int(every), 'epoch')} and at the end."
            if every
            else "None yet; the LoRA is kept at the end."
        )
        return
    chosen = resume_choice(run.folder, run.state)
    planned = _planned(run) if run.state.attempts and not run.state.is_busy else 0
    for item in reversed(found):
        left = item.step is not None and item.step < planned
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"checkpoint-{item.name}"):
            with st.container(width="stretch", gap="xsmall"):
                kind = "state to resume from" if item.kind == "state" else "LoRA file"
                good = (
                    ":green-badge[:material/check: complete]"
                    if item.complete
                    else ":red-badge[:material/error: incomplete]"
                )
                st.markdown(f"**{words.escape(item.name)}** &nbsp; {good}")
                st.html(
                    look.facts(
                        [
                            ("", kind),
                            ("step", f"{item.step:,}" if item.step is not None else words.UNKNOWN),
                            ("epoch", str(item.epoch or "")),
                            ("size", words.size(item.bytes)),
                            ("", item.problem),
                            ("", "Resume takes this one" if chosen and chosen.name == item.name and left else ""),
                        ]
                    )
                )
            if item.kind == "weights" and item.complete:
                st.link_button(
                    "Download", run_url(run.folder, item.name), key=f"get-{item.name}", icon=":material/download:"
                )
            elif item.complete and left:
                st.button(
                    "Resume from here",
                    key=f"from-{item.name}",
                    icon=":material/play_arrow:",
                    on_click=ask.resume,
                    args=(run.name, item.name),
                )


def _planned(run: LiveRun) -> int:
    """The steps that its config means now; 0 where nothing can be said, so that no resume is offered."""
    try:
        return planned_steps(run.folder, run.state)
    except (UserError, OSError):
        return 0


def config(state: RunState) -> None:
    """Every setting with its value; what differs from the default first."""
    import pandas as pd

    from fluxcore.config import defaults

    usual = defaults()
    rows = [
        {"setting": name, "value": str(value), "default": str(usual.get(name, "")), "changed": value != usual.get(name)}
        for name, value in state.config.items()
    ]
    rows.sort(key=lambda row: not row["changed"])
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        width="stretch",
        height=520,
        column_config={"changed": st.column_config.CheckboxColumn("not the default")},
        alt="Every setting of this run",
    )
