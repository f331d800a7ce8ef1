"""Compare: two to six runs beside each other. `/compare?runs=a,b`: losses over each other, samples, what differs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fluxcore.runs.samples import drawn, step_of
from studio import banner, dialogs, look, nav, overlay, step_charts, words
from studio.bulk import MOST_COMPARED
from studio.files import run_url
from studio.labels import label_of
from studio.live import LiveRun, live_runs
from studio.prompts import without_trigger
from studio.run import samples
from studio.run.config import as_text

IDENTITY = frozenset({"lora_name", "resume_from_checkpoint"})


def choose(names: list[str]) -> list[LiveRun]:
    """The runs to compare: those of the address, which the box below changes."""
    known = overlay.told_apart(live_runs().all())
    if "compare-runs" not in st.session_state or st.session_state.get("compare.address") != names:
        st.session_state["compare-runs"] = [name for name in names if name in known][:MOST_COMPARED]
        st.session_state["compare.address"] = names

    def changed() -> None:
        st.query_params["runs"] = ",".join(st.session_state["compare-runs"])

    picked = st.multiselect(
        "Runs",
        list(known),
        key="compare-runs",
        format_func=lambda name: known.get(name, name),
        max_selections=MOST_COMPARED,
        placeholder="Choose two to six runs",
        label_visibility="collapsed",
        on_change=changed,
    )
    return [run for name in picked if (run := live_runs().get(name))]


def body(names: list[str]) -> None:
    """What is compared; live runs move."""
    dialogs.pass_on()
    samples.open_large(names)
    runs = [run for name in names if (run := live_runs().get(name))]
    with st.grid("auto", min_column_width=260, gap="small", border=True):
        called = overlay.told_apart(runs)
        for run in runs:
            _card(run, called[run.name])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        measures = list(overlay.MEASURES) if any(run.state.measured for run in runs) else ["Loss"]
        measure = (
            st.segmented_control("Of", measures, default="Loss", required=True, key="compare-measure")
            if len(measures) > 1
            else "Loss"
        )
        axis = st.segmented_control("Over", list(step_charts.AXES), default="Step", required=True, key="compare-axis")
        smoothing = 0.0
        if measure == "Loss":
            smoothing = st.slider("Smoothing", 0.0, 0.99, 0.95, 0.01, key="compare-smoothing", width=220)
    overlay.show(
        runs,
        smoothing,
        "compare-loss",
        axis=step_charts.AXES[axis or "Step"],
        measure=overlay.MEASURES[measure or "Loss"],
    )
    _samples(runs)
    _differences(runs)


def _card(run: LiveRun, called: str) -> None:
    state = run.state
    with st.container(gap="xsmall"):
        st.markdown(f"{look.badge(state.state)} **{words.escape(called)}**")
        st.html(
            look.facts(
                [
                    ("steps", f"{state.step:,} / {state.total_steps:,}" if state.total_steps else ""),
                    ("loss", words.loss(state.loss) if state.loss is not None else ""),
                    ("lowest", words.loss(state.best_loss) if state.best_loss is not None else ""),
                    ("best held-out loss", held_out(run)),
                    ("took", words.duration(run.row["seconds"]) if run.row.get("seconds") else ""),
                ]
            )
        )
        with st.container(horizontal=True):
            if url := banner.weights_url(run):
                st.link_button("Download", url, key=f"compare-get-{run.name}", icon=":material/download:")
            banner.open_link(run.name, key=f"card-open-compare-{run.name}")


def held_out(run: LiveRun) -> str:
    """The lowest loss on held-out pictures; "" where none was measured."""
    lowest = min((one.loss for one in run.state.measured), default=None)
    return words.loss(lowest) if lowest is not None else ""


def _samples(runs: list[LiveRun]) -> None:
    """For each prompt the newest sample of each run up to a step; the same prompt, each run's own trigger word in it,
    in one line."""
    found, called = {run.name: drawn(run.folder, run.state) for run in runs}, overlay.told_apart(runs)
    steps = sorted({step_of(sample) for line in found.values() for sample in line})
    if not steps:
        return
    st.markdown("**Samples**, each run's newest up to a step")
    if without := [called[run.name] for run in runs if not found[run.name]]:
        st.caption(f"No samples were drawn by {words.escape(', '.join(without))}.")
    at = samples.slider(steps, "compare-step")
    newest: dict[str, dict[str, dict]] = {}
    for run in runs:
        trigger = str(run.state.config.get("concept_sentence") or "")
        for sample in found[run.name]:
            if step_of(sample) <= at:
                newest.setdefault(without_trigger(_prompt(sample), trigger), {})[run.name] = sample
    lines = []
    for common, by_run in newest.items():
        prompts = {_prompt(sample) for sample in by_run.values()}
        cells = []
        for run in runs:
            sample = by_run.get(run.name)
            path = str(sample["path"]) if sample else ""
            told = f"{called[run.name]}, step {step_of(sample):,}: {_prompt(sample)}" if sample else ""
            line = f"step {step_of(sample):,}" if sample else ""
            cells.append((run_url(run.folder, path, 384), run_url(run.folder, path), told, line) if sample else None)
        lines.append((prompts.pop() if len(prompts) == 1 else common, cells))
    st.html(look.matrix(list(called.values()), lines, wide=True))


def _prompt(sample: dict[str, Any]) -> str:
    return str(sample.get("prompt") or "no prompt")


def _differences(runs: list[LiveRun]) -> None:
    configs = [run.state.config for run in runs]
    names = [
        name
        for name in dict.fromkeys(name for config in configs for name in config)
        if name not in IDENTITY and any(config.get(name) != configs[0].get(name) for config in configs)
    ]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Settings**", width="stretch")
        only = st.toggle("Differences only", True, key="compare-only")
    if not only:
        names = list(dict.fromkeys(name for config in configs for name in config))
    if not names:
        st.caption("None: they were trained with the same settings.")
        return
    rows = [(label_of(name), name, [as_text(config.get(name)) for config in configs]) for name in names]
    st.html(look.settings(list(overlay.told_apart(runs).values()), rows))


st.title("Compare", anchor=False)
asked = [name for name in str(st.query_params.get("runs", "")).split(",") if name]
picked = choose(asked)
if len(picked) < 2:
    st.caption("Choose at least two runs: above, or on the page Runs.")
    st.page_link(nav.page("runs"), label="All runs", icon=":material/list:")
else:
    live = any(run.is_busy for run in picked)
    st.fragment(body, run_every=2.0 if live else None, key="compare")([run.name for run in picked])
