"""What the runner sampled of GPU and host as curves: over stretches of time the mean, and the lowest and the highest.

A spike of a second is what tells why a run ran out of memory: the mean alone would hide it.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from .engine import History

GPU_CURVES = ("utilization_percent", "memory_used_gib", "power_watts", "temperature_c")
HOST_CURVES = ("cpu_percent", "rss_gib", "memory_available_gib", "disk_free_gib")


def gpu_curves(history: History, run: str, since: datetime | None = None, *, points: int = 300) -> pa.Table:
    """At most about `points` rows a GPU: `ts` (UTC), `gpu` (its index as text), and of each of GPU_CURVES the mean
    under its name and the extremes under that with `_low` and `_high`.

    `since`: a naive time in UTC; None is the run's start. A stretch in which a value was never known has null there.
    """
    return _curves(history, "gpu", run, GPU_CURVES, ", coalesce(\"index\"::VARCHAR, '?') AS gpu", since, points)


def host_curves(history: History, run: str, since: datetime | None = None, *, points: int = 300) -> pa.Table:
    """The same of the host, of HOST_CURVES."""
    return _curves(history, "host", run, HOST_CURVES, "", since, points)


def _curves(
    history: History, view: str, run: str, columns: tuple[str, ...], by: str, since: datetime | None, points: int
) -> pa.Table:
    values = ", ".join(
        f"avg({name}) AS {name}, min({name}) AS {name}_low, max({name}) AS {name}_high" for name in columns
    )
    start = since or datetime(1970, 1, 1)
    [span] = history.query(
        f"SELECT greatest(epoch(max(ts) - min(ts)), 1) AS seconds FROM {view} WHERE run = $run AND ts > $since",
        {"run": run, "since": start},
    )
    return history.table(
        f"""SELECT min(ts) AS ts{by and ", gpu"}, {values}
        FROM (SELECT *{by} FROM {view} WHERE run = $run AND ts > $since)
        GROUP BY floor(epoch(ts) / $width){by and ", gpu"} ORDER BY ts""",
        {"run": run, "since": start, "width": float(span["seconds"] or 1) / max(1, points)},
    )
