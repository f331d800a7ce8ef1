"""Charts of a run over its steps or over time: losses, their marks, and the other curves. Fixed Vega specs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from fluxcore.log import parse_ts
from fluxcore.runs import RunState, best_weights
from fluxcore.runs.records import Checkpoint

from . import words
from .charts import LINE, smooth
from .live import LiveRun

HELD = "#D9822B"
"""The loss on held-out pictures."""
SMOOTHING = 0.9
OUTLIERS = 99.0
"""Percent of the losses that are drawn where they are; those above are drawn at that height."""
AXES = {"Step": "step", "Time": "time"}
LOSS, HELD_LOSS = "loss", "held-out loss"
_MARKS = {"attempt": "#8A8DA0", "stalled": "#D9822B", "failed": "#DB4C56"}
_MOST_MARKS = 24
_MOST_EPOCHS = 6
"""So many ends of epochs are marked at the most: their words have room on a phone."""
_LANES = 3
"""Heights for the words at the marks, so that neighbours do not lie over each other."""
_STAR = "M0,-1L.29,-.4L.95,-.31L.48,.15L.59,.81L0,.5L-.59,.81L-.48,.15L-.95,-.31L-.29,-.4Z"
_X: dict[str, dict[str, Any]] = {
    "step": {
        "field": "step",
        "type": "quantitative",
        "title": "step",
        "axis": {"tickMinStep": 1, "format": "~s", "grid": False},
        "scale": {"zero": False, "nice": False},
    },
    "time": {
        "field": "time",
        "type": "temporal",
        "title": None,
        "axis": {"grid": False, "labelOverlap": True},
        "scale": {"nice": False},
    },
}
CURVES = {
    "lr": ("Learning rate", ".3~g"),
    "grad_norm": ("Gradient norm", ".4~g"),
    "step_seconds": ("Seconds a step", ".3~f"),
    "memory_gib": ("Memory of the training (GiB)", ".2~f"),
}


@dataclass(frozen=True)
class Mark:
    """What happened on the way: at which step, when (epoch seconds), of which kind, and in words."""

    step: int
    time: float
    kind: str
    text: str


def marks(state: RunState) -> list[Mark]:
    """Each attempt after the first, and each stall and failure; the newest ones."""
    found = []
    for attempt in state.attempts:
        if attempt.number > 1:
            begun = parse_ts(attempt.started).timestamp()
            found.append(Mark(attempt.resume_step or 0, begun, "attempt", f"attempt {attempt.number}"))
        if attempt.outcome in ("run.stalled", "run.failed") and attempt.ended:
            kind = attempt.outcome.removeprefix("run.")
            last = attempt.last_step or attempt.resume_step or 0
            found.append(Mark(last, parse_ts(attempt.ended).timestamp(), kind, kind))
    return found[-_MOST_MARKS:]


def epoch_marks(state: RunState, last: float) -> dict[int, int]:
    """Ends of epochs up to step `last`, evenly thinned: each epoch's number with its last step. None where the run is
    one of so many steps, whose epochs nobody asked for."""
    epochs, total = state.config.get("max_train_epochs"), state.total_steps
    if state.config.get("max_train_steps") or not isinstance(epochs, int) or epochs < 1 or not total or total % epochs:
        return {}
    each = total // epochs
    every = max(1, math.ceil(last / each / _MOST_EPOCHS))
    return {epoch: epoch * each for epoch in range(every, int(last // each) + 1, every)}


def times_of(run: LiveRun, steps: np.ndarray) -> np.ndarray:
    """When those steps were finished, in epoch seconds: exact for a short run, a straight line between the ends of
    a thousandth of a long one."""
    known = run.curve("time")
    if not len(known):
        return np.full(len(steps), math.nan)
    return np.interp(steps, known["step"].to_numpy(), known["value"].to_numpy())


@lru_cache
def _spec(
    title: str, height: int, axis: str, *, log: bool = False, smoothed: bool = True, held: bool = False, form: str
) -> dict[str, Any]:
    """Lines, what was measured on held-out pictures, and marks. A row has one of `value`, `held` and `mark`."""
    scale = {"type": "log"} if log else {"zero": False}
    y = {"type": "quantitative", "title": None, "scale": scale, "axis": {"format": "~g", "minExtent": 42}}
    told = [{"field": "step", "type": "quantitative", "format": ","}]
    if axis == "time":
        told.append({"field": "time", "type": "temporal", "format": "%d %b %H:%M:%S"})
    shown = [("value", title), *([("smoothed", "smoothed")] if smoothed else [])]
    tips = [*told, *({"field": name, "type": "quantitative", "format": form, "title": text} for name, text in shown)]
    hover = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    points = [{"filter": "isValid(datum.value)"}]
    raw = {"type": "line", "strokeWidth": 1, "opacity": 0.35 if smoothed else 1, "color": LINE}
    layers: list[dict[str, Any]] = [{"transform": points, "mark": raw, "encoding": {"y": {"field": "value", **y}}}]
    if smoothed:
        line = {"type": "line", "strokeWidth": 2.5, "color": LINE, "interpolate": "monotone"}
        layers.append({"transform": points, "mark": line, "encoding": {"y": {"field": "smoothed", **y}}})
    if held:
        layers[-1]["encoding"]["color"] = _series(LOSS)
        layers += _held_layers(y, told, form)
    layers += _mark_layers() + _epoch_layers()
    layers.append(
        {
            "transform": points,
            "mark": {"type": "rule"},
            "params": [{"name": "hover", "select": hover}],
            "encoding": {
                "opacity": {"condition": {"param": "hover", "empty": False, "value": 0.35}, "value": 0},
                "tooltip": tips,
            },
        }
    )
    if axis == "time":  # no line goes through the time between two attempts
        for layer in layers:
            if layer["mark"]["type"] == "line":
                layer["encoding"]["detail"] = {"field": "piece", "type": "nominal"}
    return {"height": height, "encoding": {"x": _X[axis]}, "layer": layers}


def _series(name: str) -> dict[str, Any]:
    scale = {"domain": [LOSS, HELD_LOSS], "range": [LINE, HELD]}
    return {"datum": name, "type": "nominal", "title": None, "scale": scale, "legend": {"orient": "top"}}


def _held_layers(y: dict[str, Any], told: list[dict[str, Any]], form: str) -> list[dict[str, Any]]:
    at = {"y": {"field": "held", **y}}
    tip = [*told, {"field": "held", "type": "quantitative", "format": form, "title": HELD_LOSS}]
    best = [{"filter": "datum.kind == 'best'"}]
    measured = [{"filter": "isValid(datum.held) && datum.kind != 'best'"}]
    star = {"type": "point", "shape": _STAR, "size": 420, "filled": True, "color": HELD, "opacity": 1}
    word = {"type": "text", "align": "center", "baseline": "bottom", "dy": -14, "fontSize": 12, "fontWeight": "bold"}
    return [
        {
            "transform": measured,
            "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 34, "filled": True}},
            "encoding": {**at, "color": _series(HELD_LOSS), "tooltip": tip},
        },
        {"transform": best, "mark": star | {"stroke": "white", "strokeWidth": 1.5}, "encoding": {**at, "tooltip": tip}},
        {"transform": best, "mark": {**word, "color": HELD}, "encoding": {**at, "text": {"field": "mark"}}},
    ]


def _mark_layers() -> list[dict[str, Any]]:
    # No scale of colours: that of the lines, whose legend is shown, would be shared.
    tests = [{"test": f"datum.kind == '{kind}'", "value": color} for kind, color in _MARKS.items()]
    color = {"condition": tests, "value": _MARKS["attempt"]}
    happened = "isValid(datum.mark) && datum.kind != 'best' && datum.kind != 'epoch'"
    rule = {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.2}
    layers = [{"transform": [{"filter": happened}], "mark": rule, "encoding": {"color": color}}]
    for lane in range(_LANES):
        layers.append(
            {
                "transform": [{"filter": f"{happened} && datum.lane == {lane}"}],
                "mark": {"type": "text", "align": "left", "baseline": "top", "dx": 4, "fontSize": 11},
                "encoding": {"y": {"value": 2 + 14 * lane}, "text": {"field": "mark"}, "color": color},
            }
        )
    return layers


def _epoch_layers() -> list[dict[str, Any]]:
    """Short strokes on the axis, where an epoch ended."""
    ends = [{"filter": "datum.kind == 'epoch'"}]
    color = {"value": _MARKS["attempt"]}
    rule = {"y": {"value": {"expr": "height - 7"}}, "y2": {"value": {"expr": "height"}}, "color": color}
    word = {"type": "text", "align": "right", "baseline": "bottom", "dx": -3, "fontSize": 10}
    return [
        {"transform": ends, "mark": {"type": "rule", "strokeWidth": 1.2}, "encoding": rule},
        {
            "transform": ends,
            "mark": word,
            "encoding": {"y": {"value": {"expr": "height - 2"}}, "text": {"field": "mark"}, "color": color},
        },
    ]


def _rows(
    run: LiveRun, points: pa.Table, axis: str, smoothing: float | None, best: Checkpoint | None = None
) -> tuple[pa.Table, bool]:
    """The data of a chart: the curve's points, then what was measured, then the marks within what is drawn; and
    whether anything was measured. `smoothing` is None for a curve that is none of the loss."""
    steps, values = points["step"].to_numpy().astype(float), points["value"].to_numpy()
    mean = smooth(steps, points["mean"].to_numpy(), smoothing) if smoothing is not None else None
    held = run.state.measured if smoothing is not None else []
    held = [one for one in held if math.isfinite(one.loss)]
    happened = [mark for mark in marks(run.state) if _is_drawn(run, mark, axis, steps)]
    stars = [best] if best and held else []
    epochs = epoch_marks(run.state, steps[-1]) if smoothing is not None else {}
    at = [*[one.step for one in held], *[one.step for one in stars], *[mark.step for mark in happened]]
    at += epochs.values()
    losses = [*[one.loss for one in held], *[one.validation_loss for one in stars]]
    blank, tail, plain = len(happened) + len(epochs), len(at), len(steps) + len(held)
    words_at = [*[f"best {words.loss(one.validation_loss)}" for one in stars], *[mark.text for mark in happened]]
    words_at += [f"epoch {epoch}" for epoch in epochs]
    kinds = ["best"] * len(stars) + [mark.kind for mark in happened] + ["epoch"] * len(epochs)
    columns = {
        "step": pa.array(np.concatenate([steps, at])),
        "value": _padded(values, 0, tail),
        "kind": _after(plain, kinds, pa.string()),
        "mark": _after(plain, words_at, pa.string()),
        "lane": _after(plain + len(stars), [i % _LANES for i in range(blank)], pa.int32()),
    }
    if mean is not None:
        columns["smoothed"] = _padded(mean, 0, tail)
    if held:
        columns["held"] = _padded(np.array(losses, float), len(steps), blank)
    if axis == "time":
        when = [*[parse_ts(one.ts).timestamp() for one in [*held, *stars]], *[mark.time for mark in happened]]
        times = np.concatenate([times_of(run, steps), when, times_of(run, np.array(list(epochs.values()), float))])
        begun = sorted(parse_ts(attempt.started).timestamp() for attempt in run.state.attempts)
        columns["time"], columns["piece"] = pa.array(times * 1000), pa.array(np.searchsorted(begun, times))
    return pa.table(columns), bool(held)


def _padded(values: np.ndarray, before: int, after: int) -> pa.Array:
    whole = np.concatenate([np.full(before, math.nan), values, np.full(after, math.nan)])
    return pa.array(whole, pa.float64(), from_pandas=True)


def _after(nulls: int, values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.concat_arrays([pa.nulls(nulls, kind), pa.array(values, kind)])


def _is_drawn(run: LiveRun, mark: Mark, axis: str, steps: np.ndarray) -> bool:
    if axis == "step":
        return bool(steps[0] <= mark.step <= steps[-1])
    return bool(mark.time >= times_of(run, steps[:1])[0])


def loss(
    run: LiveRun,
    key: str,
    *,
    smoothing: float = SMOOTHING,
    log: bool = False,
    clip: bool = False,
    small: bool = False,
    axis: str = "step",
) -> None:
    """The loss, smoothed over raw, with that on held-out pictures where there is one. `axis`: step or time."""
    points = run.curve("loss")
    if len(points) < 2:
        st.caption("The loss is drawn from the second step on.")
        return
    above = 0
    values = points["value"].to_numpy()
    if clip:
        limit = float(np.percentile(values, OUTLIERS))
        above = int((values > limit).sum())
        points = points.set_column(1, "value", pa.array(np.minimum(values, limit)))
        points = points.set_column(2, "mean", pa.array(np.minimum(points["mean"].to_numpy(), limit)))
    if log:
        points = points.filter(pa.array(points["value"].to_numpy() > 0))
    rows, held = _rows(run, points, axis, smoothing, best_weights(run.folder, run.state))
    last = rows["smoothed"][len(points) - 1].as_py()
    st.vega_lite_chart(
        rows,
        _spec(LOSS, 300 if small else 360, axis, log=log, held=held, form=".4~f"),
        key=key,
        width="stretch",
        alt=f"Loss over {len(points)} points to step {points['step'][-1].as_py():,.0f}"
        + (f", smoothed now {last:.3g}" if last is not None else ""),
    )
    if above:
        st.caption(f"{above} of the {len(points)} drawn points are higher; they are drawn at {limit:.3g}.")


def curve(run: LiveRun, column: str, key: str, axis: str = "step") -> None:
    """Another of a run's curves; nothing where it was never told."""
    points = run.curve(column)
    title, form = CURVES[column]
    if len(points) < 2:
        st.caption(f"{title}: the trainer has not told it.")
        return
    st.vega_lite_chart(
        _rows(run, points, axis, None)[0],
        _spec(title, 150, axis, smoothed=False, form=form),
        key=key,
        width="stretch",
        alt=f"{title} over {len(points)} points",
    )
