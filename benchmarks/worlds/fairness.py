"""How long a world goes without progress and without life while it is healthy: the bounds that keep it fair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.worlds.story import World

MIB = 1 << 20
TRAIN_SHARE = 0.8
SILENCE_SHARE = 0.8
ELSEWHERE_SECONDS = 7200.0
WINDOW_SECONDS = 10.0  # over which life is measured


@dataclass(slots=True)
class Gaps:
    """The longest of each, times in which the machine was suspended not counted; of a hung world until it hangs."""

    train: float = 0.0  # seconds in phase train without a step
    train_share: float = 0.0  # the same as a share of stall_seconds
    elsewhere: float = 0.0  # seconds without an event before phase train and in the other phases
    silence_share: float = 0.0  # without any sign of life there, as a share of stall_seconds


def gaps(world: World) -> Gaps:
    """The world's longest gaps."""
    return _measured(world)[0]


def violations(world: World) -> list[str]:
    """In which way the world breaks the bounds that `benchmarks/stall_worlds.py` states; empty for a fair one."""
    found, broken = _measured(world)
    if found.elsewhere > ELSEWHERE_SECONDS:
        broken.append(f"{found.elsewhere:.0f} s without an event outside phase train")
    if found.silence_share > SILENCE_SHARE:
        broken.append(f"{found.silence_share:.2f} × stall_seconds without life outside phase train")
    return broken


def _measured(world: World) -> tuple[Gaps, list[str]]:
    until = world.end_at if world.hang_at is None else world.hang_at
    stall = world.stall_seconds
    found, broken = Gaps(), []
    asleep = mark = life = seen_work = longest_dark = longest_step = 0.0
    training = False
    base: tuple[float, dict[str, Any]] | None = None

    def close(now: float) -> None:
        gap = now - mark
        if not training:
            found.elsewhere = max(found.elsewhere, gap)
            return
        found.train, found.train_share = max(found.train, gap), max(found.train_share, gap / stall)
        promised = max(stall, min(5 * longest_step, 3 * stall))
        shows_work = max(longest_dark, now - seen_work) <= stall / 2
        if gap > TRAIN_SHARE * (promised if shows_work else stall) + 1e-6:
            broken.append(f"{gap:.0f} s without a step at {now:.0f} s, stall_seconds {stall:.0f}")

    for moment in world.moments:
        if moment.at > until:
            break
        data = moment.data
        if moment.kind == "suspend":
            asleep += data["seconds"]
            base = None
            continue
        now = moment.at - asleep
        if moment.kind == "event":
            close(now)
            if data["type"] == "phase.started":
                training = data["data"]["phase"] == "train"
            elif data["type"] == "train.step":
                longest_step = max(longest_step, data["data"]["step_seconds"])
            if not training:
                found.silence_share = max(found.silence_share, (now - life) / stall)
            mark = life = seen_work = now
            longest_dark = 0.0
        elif moment.kind == "gpu":
            if any(sample["utilization_percent"] for sample in data["samples"]):
                longest_dark, seen_work = max(longest_dark, now - seen_work), now
        elif base is None:
            base = now, data
        elif now - base[0] >= WINDOW_SECONDS:
            if training or _lives(base[1], data, now - base[0]):
                life = now
            found.silence_share = max(found.silence_share, (now - life) / stall)
            base = now, data
    close(until - asleep)
    return found, broken


def _lives(before: dict[str, Any], after: dict[str, Any], seconds: float) -> bool:
    bytes_moved = sum(after[key] - before[key] for key in ("read_bytes", "write_bytes"))
    cpu = after["cpu_seconds"] - before["cpu_seconds"]
    resident = after["rss_bytes"] - before["rss_bytes"]
    return bool(cpu >= 0.01 * seconds - 0.01 or bytes_moved >= MIB or resident >= MIB)
