"""Samples: prompt by prompt and step by step; before, at the best and after; large, and all of them in one file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from fluxcore.runs import best_weights
from fluxcore.runs.samples import Sample, by_prompt, drawn, index_of, sample_file, spread, step_of

from .. import dialogs, look, words
from ..files import grid_url, run_url, zip_url
from ..live import LiveRun, live_runs

FEW_PROMPTS = 2

_clicks = st.components.v2.component("fluxgym_samples", js=Path(__file__).with_name("samples.js").read_text("utf-8"))


def newest(run: LiveRun) -> None:
    """The newest sample of each prompt, with the first one beside it where the run draws few prompts."""
    open_large([run.name])
    found = drawn(run.folder, run.state)
    lines = by_prompt(found)
    if not lines:
        _none(run)
        return
    if len(lines) <= FEW_PROMPTS:
        _before_and_after(run, found, step_of(found[-1]))
        return
    items = [_item(run, line[-1], f"step {step_of(line[-1]):,}") for line in lines.values()]
    st.html(look.pictures(items, 190))


def show(run: LiveRun) -> None:
    """The tab: a slider over the steps, each prompt before and at that step, then prompt × step."""
    open_large([run.name])
    found = drawn(run.folder, run.state)
    if not found:
        _none(run)
        return
    steps = sorted({step_of(sample) for sample in found})
    key = f"sample-step-{run.name}"
    with st.container(horizontal=True, vertical_alignment="bottom", key="samples-tools"):
        at = slider(steps, key)
        st.button(
            "Large",
            key="samples-large",
            icon=":material/zoom_in:",
            on_click=dialogs.want,
            args=(large, f"Samples of {run.title}", run.name, at),
            kwargs={"width": "large"},
            help="One picture at a time; the arrow keys go on",
        )
        st.link_button(
            "All as a zip", zip_url(run.folder, run.folder.samples.name), key="samples-zip", icon=":material/download:"
        )
        st.link_button(
            "As one picture",
            grid_url(run.folder),
            key="samples-grid",
            icon=":material/grid_on:",
            help="A row for each prompt, a column for each step: a PNG",
        )
    _before_and_after(run, found, at)
    if len(steps) > 1:
        st.markdown("**How each prompt changed**")
        _grid(run, found, steps)


def slider(steps: list[int], key: str) -> int:
    """Choose one of the steps at which samples were drawn; it keeps to the newest one until somebody moves it."""
    if len(steps) == 1:
        st.markdown(f"After step **{steps[0]:,}**", width="stretch")
        return steps[0]
    follows = f"{key}-newest"
    if st.session_state.get(key) not in steps or st.session_state.get(follows) == st.session_state.get(key):
        st.session_state[key] = steps[-1]
    st.session_state[follows] = steps[-1]
    return int(st.select_slider("After step", steps, key=key, format_func=lambda step: f"{step:,}"))


def _before_and_after(run: LiveRun, found: list[Sample], at: int) -> None:
    best = best_weights(run.folder, run.state)
    rows = []
    for line in by_prompt(found).values():
        chosen = next((sample for sample in reversed(line) if step_of(sample) <= at), line[0])
        alike = [sample for sample in line if sample.get("seed") == chosen.get("seed")]
        shown = {step_of(alike[0]): "before" if step_of(alike[0]) == 0 else f"step {step_of(alike[0]):,}"}
        if best and (near := _nearest(alike, best.step)) is not chosen and step_of(near) not in shown:
            exact = step_of(near) == best.step
            shown[step_of(near)] = f"step {step_of(near):,}, {'the best' if exact else 'nearest to the best'}"
        is_best = best is not None and step_of(chosen) == best.step
        shown[step_of(chosen)] = f"step {step_of(chosen):,}" + (", the best" if is_best else "")
        by_step = {step_of(sample): sample for sample in alike}
        pictures = [(shown[step], _item(run, by_step[step], "")) for step in sorted(shown)]
        rows.append((str(chosen.get("prompt") or "no prompt"), pictures))
    st.html(look.pairs(rows))


def _nearest(line: list[Sample], step: int) -> Sample:
    return min(line, key=lambda sample: abs(step_of(sample) - step))


def _grid(run: LiveRun, found: list[Sample], steps: list[int]) -> None:
    shown = spread(steps)
    lines = []
    for line in by_prompt(found).values():
        at = {step_of(sample): sample for sample in line}
        cells = [_item(run, at[step], "") if step in at else None for step in shown]
        lines.append((str(line[-1].get("prompt") or "no prompt"), cells))
    best = best_weights(run.folder, run.state)
    st.html(look.matrix([f"★ {step:,}" if best and best.step == step else f"{step:,}" for step in shown], lines))
    if len(shown) < len(steps):
        st.caption(f"{len(shown)} of the {len(steps)} steps at which samples were drawn; the slider has all.")


def open_large(names: list[str]) -> None:
    """On this page a click on a sample of these runs opens it large, as “Large” does; its link is a tab of its own."""

    def clicked() -> None:
        if found := _of_address(names, str(st.session_state["sample-clicks"].asked or "")):
            run, sample = found
            title = f"Samples of {run.title}"
            st.session_state.pop("sample.place", None)  # where somebody went from it before
            dialogs.want(large, title, run.name, step_of(sample), index_of(sample), width="large")

    _clicks(key="sample-clicks", on_asked_change=clicked)


def _of_address(names: list[str], address: str) -> tuple[LiveRun, Sample] | None:
    for run in [run for name in names if (run := live_runs().get(name))]:
        for sample in drawn(run.folder, run.state):
            if run_url(run.folder, str(sample["path"])) == address:
                return run, sample
    return None


def large(name: str, at: int, index: int = -1) -> None:
    """One sample at a time: right and left go through the steps, up and down through the prompts.

    It begins at a step, and at the prompt of that `index` where there is one.
    """
    run = live_runs().get(name)
    found = drawn(run.folder, run.state) if run else []
    if run is None or not found:
        st.caption("There are no samples.")
        return
    lines = by_prompt(found)
    prompts, steps = list(lines), sorted({step_of(sample) for sample in found})
    place = st.session_state.setdefault("sample.place", {})
    if place.get("asked") != (name, at, index):
        place.update(
            {"asked": (name, at, index), "step": at, "prompt": prompts.index(index) if index in prompts else 0}
        )

    now = min(range(len(steps)), key=lambda i: abs(steps[i] - place["step"]))

    def go(step: int, prompt: int) -> None:
        place["step"] = steps[max(0, min(len(steps) - 1, now + step))]
        place["prompt"] = (place["prompt"] + prompt) % len(prompts)

    line = lines[prompts[place["prompt"] % len(prompts)]]
    sample = next((one for one in reversed(line) if step_of(one) <= place["step"]), line[0])
    path, prompt = str(sample["path"]), str(sample.get("prompt") or "")
    st.html(look.picture(run_url(run.folder, path), run_url(run.folder, path), prompt, large=True))
    with st.container(
        horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", key="large-steps"
    ):
        st.button(
            "Earlier",
            key="large-left",
            icon=":material/arrow_back:",
            shortcut="Left",
            on_click=go,
            args=(-1, 0),
            disabled=now == 0,
        )
        st.markdown(f"step **{step_of(sample):,}** · seed {sample.get('seed', words.UNKNOWN)}", width="content")
        st.button(
            "Later",
            key="large-right",
            icon=":material/arrow_forward:",
            shortcut="Right",
            on_click=go,
            args=(1, 0),
            disabled=now == len(steps) - 1,
        )
    with st.container(horizontal=True, vertical_alignment="center", key="large-prompts"):
        st.markdown(words.escape(prompt), width="stretch")
        if len(prompts) > 1:
            st.button("Previous", key="large-before", shortcut="Up", on_click=go, args=(0, -1))
            st.button("Next prompt", key="large-next", shortcut="Down", on_click=go, args=(0, 1))


def last_picture(run: LiveRun, width: int = 192) -> tuple[str, str] | None:
    """The address of the newest sample, small, and its prompt; None where there is none."""
    for sample in reversed(run.state.samples):
        if sample_file(run.folder, sample):
            return run_url(run.folder, str(sample["path"]), width), str(sample.get("prompt") or "")
    return None


def _none(run: LiveRun) -> None:
    config, attempt = run.state.config, run.state.attempt
    every, prompts = config.get("sample_every_n_steps"), str(config.get("sample_prompts") or "").strip()
    at_once = config.get("sample_at_first") and not (attempt and attempt.resume_step)
    if not prompts:
        st.caption("This run draws no samples: it has no prompts for them.")
    elif not every:
        st.caption("This run draws no samples by itself" + (": ask for some above." if attempt_lives(run) else "."))
    elif not run.state.is_live:
        st.caption("No samples were drawn.")
    else:
        st.caption(
            "The first samples are drawn before the first step."
            if at_once
            else f"The first samples come at step {every}."
        )


def attempt_lives(run: LiveRun) -> bool:
    """Whether a training is under way that can be asked for samples."""
    return run.state.live_attempt is not None


def _item(run: LiveRun, sample: Sample, line: str) -> tuple[str, str, str, str]:
    path, prompt = str(sample["path"]), str(sample.get("prompt") or "")
    told = f"{line} · {prompt}" if line else ""
    return run_url(run.folder, path, 384), run_url(run.folder, path), prompt, told
