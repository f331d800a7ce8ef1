"""What a training will need, live beside the start button: memory, time, disk. Unknown is said, never made up."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import streamlit as st

from fluxcore.config import RunConfig, defaults
from fluxcore.errors import UserError
from fluxcore.units import gib

from . import ask, words
from .drafts import Draft
from .labels import label_of
from .live import LiveRun, live_runs

if TYPE_CHECKING:
    from fluxcore.planner.plan import Plan

SAME_WORK = ("base_model", "resolution", "train_batch_size", "gradient_accumulation_steps", "trainer")
"""Settings by which a step of another run takes about as long as one of this config."""


def show(draft: Draft, config: RunConfig, pictures: int, steps: int) -> None:
    """The lines; while the planner's process measures they come by themselves."""
    _lines(draft, config, pictures, steps)


@st.fragment(run_every=2.0)
def _waiting(draft: Draft, config: RunConfig, pictures: int) -> None:
    made, problem = _planned(draft, config, pictures)
    if made is not None or problem:
        st.rerun()
    st.caption(":material/hourglass_top: Memory: being calculated …")


def _planned(draft: Draft, config: RunConfig, pictures: int) -> tuple[Plan | None, str]:
    """The plan, or why there is none; neither while it is made."""
    from fluxcore.planner.plan import plan

    try:
        return plan(config, pictures, draft.outputs, wait=False), ""
    except (UserError, OSError) as error:
        return None, str(error)


def _lines(draft: Draft, config: RunConfig, pictures: int, steps: int) -> None:
    from fluxcore.planner.hardware import size_of

    made, problem = _planned(draft, config, pictures)
    st.markdown(time_words(*pace(config, made), steps))
    if made is not None:
        room, whose = _room()
        fits = made.fits(room or size_of(config.vram))
        icon = ":green[:material/check_circle:]" if fits else ":orange[:material/warning:]"
        st.markdown(
            f"{icon} **{gib(made.peak.total)}** of {gib(room or size_of(config.vram))} at its peak {whose}",
            help="\n\n".join(f"{phase.name}: {gib(phase.total)}" for phase in made.phases),
        )
        if not fits:
            _advise(draft, config, made, room or size_of(config.vram))
        if made.disk.total is not None:
            free = _free(draft)
            enough = free is None or free > made.disk.total
            mark = ":material/hard_drive:" if enough else ":orange[:material/warning:]"
            st.markdown(f"{mark} **{gib(made.disk.total)}** on disk" + (f", {gib(free)} are free" if free else ""))
    elif problem:
        st.caption(f":material/help: Memory and disk: not known ({words.escape(problem)})")
    else:
        _waiting(draft, config, pictures)


def time_words(each: float | None, around: float, source: str, steps: int) -> str:
    """`about 41 min (0.9 s a step in my-cat, with its samples and saves)`, or that it is not known."""
    if each is None or not steps:
        return ":material/schedule: Time: not known before the first steps"
    return f":material/schedule: about **{words.duration(around + each * steps)}** :small[({source})]"


def pace(config: RunConfig, made: Plan | None) -> tuple[float | None, float, str]:
    """Seconds of a step, seconds before the first and after the last one, and where that is from: a run of the same
    kind here (with its samples and saves, where there will be some), else the GPU's stated speed."""
    usual = defaults()
    gpu: dict[str, Any] | None = None
    for run in live_runs().all()[:50]:
        state = run.state
        if gpu is None and state.gpus:
            gpu = next(iter(state.gpus.values()))
        samples = bool(config.sample_prompts.strip() and config.sample_every_n_steps)
        each = state.whole_seconds_per_step if samples else state.seconds_per_step
        if each and all(state.config.get(name, usual[name]) == getattr(config, name) for name in SAME_WORK):
            around = state.seconds_around_steps
            if around is None:
                around = sum(state.phase_seconds.get(phase, 0.0) for phase in ("load", "cache"))
            told = f"{words.pace(each)} in {words.escape(run.title)}{', with its samples and saves' if samples else ''}"
            return each, around, told
    return _by_speed(gpu, made)


def _by_speed(gpu: dict[str, Any] | None, made: Plan | None) -> tuple[float | None, float, str]:
    from fluxcore.planner.hardware import GPUS, UTILISATION

    name = str((gpu or {}).get("name") or "")
    known = next((one for one in GPUS if one.name.split(" (")[0].lower() in name.lower()), None)
    if known is None or made is None:
        return None, 0.0, ""
    return made.step_seconds(known), 0.0, f"the steps alone, at {UTILISATION:.0%} of a {known.name}'s stated speed"


def _room() -> tuple[int | None, str]:
    """Bytes of this machine's GPU as the newest run saw it; None where none was seen: then the preset's count."""
    runs: list[LiveRun] = live_runs().all()[:20]
    for run in runs:
        for gpu in run.state.gpus.values():
            total = gpu.get("memory_total_gib")
            if isinstance(total, int | float) and total > 0:
                return int(total * 2**30), f":small[({words.escape(str(gpu.get('name') or 'this GPU'))})]"
    return None, ":small[(the preset's memory; no GPU was seen here yet)]"


def _free(draft: Draft) -> int | None:
    try:
        return shutil.disk_usage(draft.outputs if draft.outputs.is_dir() else draft.outputs.parent).free
    except OSError:
        return None


def _advise(draft: Draft, config: RunConfig, made: Plan, room: int) -> None:
    from fluxcore.planner.plan import advice

    changes, enough = advice(config, made, room)
    if not changes:
        st.caption("No setting would make it fit: it wants a larger GPU.")
        return
    told = ", ".join(f"{label_of(name)}: {str(value).lower()}" for name, value in changes.items())
    st.caption(f"{'It fits with' if enough else 'Even this may not do:'} {words.escape(told)}")
    st.button("Set that", key="estimate-advice", icon=":material/auto_fix_high:", on_click=_take, args=(draft, changes))


def _take(draft: Draft, changes: dict[str, Any]) -> None:
    from . import templates

    note = "The settings were changed so that it fits the GPU's memory."
    ask.tried(lambda: templates.take(draft, changes, note))
