"""Overview: the newest samples beside the loss, and the machine in one line."""

from __future__ import annotations

import streamlit as st

from fluxcore.runs import RunState, best_weights

from .. import look, step_charts, words
from ..live import LiveRun
from . import samples


def show(run: LiveRun) -> None:
    """The tab."""
    left, right = st.columns([1, 1.15], gap="medium")
    with left:
        st.markdown("**Newest samples**")
        samples.newest(run)
    with right:
        st.markdown("**Loss**, smoothed over raw")
        step_charts.loss(run, f"loss-{run.name}", small=True)
        st.html(look.facts(_kept(run)))
        machine(run.state)


def _kept(run: LiveRun) -> list[tuple[str, str]]:
    """The best LoRA so far, and the newest state to resume from."""
    best = best_weights(run.folder, run.state)
    pairs = [("best LoRA", f"step {best.step:,}, held-out loss {words.loss(best.validation_loss)}")] if best else []
    states = [saved for saved in run.state.checkpoints.values() if saved.kind == "state"]
    newest = max(states, key=lambda saved: saved.ts, default=None)
    if newest is None or not (run.folder.path / newest.path).is_dir():
        return [*pairs, ("last checkpoint", "none yet")] if run.state.is_live else pairs
    return [*pairs, ("last checkpoint", f"{words.ago(newest.ts)}, step {newest.step:,}")]


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
        st.html(look.facts(pairs if state.is_busy else [("", "last reading:"), *pairs]))
    else:
        st.caption("The machine is sampled while the run trains.")
