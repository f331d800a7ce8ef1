"""The simulated runs: the same for a seed, fair while healthy, and what their names say."""

import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.stall_worlds import HANG_SCENARIOS, HEALTHY_SCENARIOS, Moment, healthy, hung
from benchmarks.worlds.fairness import MIB, violations
from fluxcore.log.catalog import TYPES

FIELDS = {event.name: {field.name: field for field in event.fields} for event in TYPES}
SAMPLE = set(FIELDS["gpu.sampled"])
NEEDED = {name for name, field in FIELDS["gpu.sampled"].items() if not field.optional}


def events(world, *types, until=float("inf")):
    return [
        m.data["data"]
        for m in world.moments
        if m.kind == "event" and m.at <= until and (not types or m.data["type"] in types)
    ]


def readings(world, begin=0.0, end=float("inf"), key="utilization_percent"):
    found = [m.data["samples"] for m in world.moments if m.kind == "gpu" and begin <= m.at <= end]
    return [sample[key] for samples in found for sample in samples]


def activity(world, begin=0.0, end=float("inf")):
    return [m.data for m in world.moments if m.kind == "activity" and begin <= m.at <= end]


def grown(world, key, begin, end=float("inf")):
    seen = activity(world, begin, end)
    return seen[-1][key] - seen[0][key]


def in_phase(world, *names):
    """From where to where it was in these phases."""
    starts = [(m.at, m.data["data"]["phase"]) for m in world.moments if m.data.get("type") == "phase.started"]
    return [(a, b) for (a, name), (b, _) in pairwise([*starts, (world.end_at, "")]) if name in names]


def cores(world, begin, end=float("inf")):
    seen = [m for m in world.moments if m.kind == "activity" and begin <= m.at <= end]
    return (seen[-1].data["cpu_seconds"] - seen[0].data["cpu_seconds"]) / (seen[-1].at - seen[0].at)


def check_form(world):
    assert all(a.at <= b.at for a, b in pairwise(world.moments))
    assert world.moments[0].at >= 0 and world.moments[-1].at <= world.end_at
    assert world.end_at - world.moments[-1].at < 5 * world.sample_gpu_seconds + 20  # covers the whole run
    assert {m.kind for m in world.moments} <= {"event", "gpu", "activity", "suspend"}
    steps = events(world, "train.step")
    assert len(steps) <= 3000
    assert all(b["step"] == a["step"] + 1 for a, b in pairwise(steps))
    for moment in world.moments:
        if moment.kind == "event":
            fields = FIELDS[moment.data["type"]]
            assert moment.data["data"].keys() <= fields.keys()
            needed = {name for name, field in fields.items() if not field.optional}
            assert needed <= moment.data["data"].keys()
        elif moment.kind == "gpu":
            assert all(sample.keys() >= NEEDED and sample.keys() <= SAMPLE for sample in moment.data["samples"])
    # Nothing is sampled while the machine stands still.
    asleep = [(m.at - m.data["seconds"], m.at) for m in world.moments if m.kind == "suspend"]
    assert not [m for a, b in asleep for m in world.moments if a + 1e-9 < m.at < b - 1e-9 and m.kind != "suspend"]
    # A reading and an activity at each period, awake.
    times = [m.at for m in world.moments if m.kind == "activity"]
    assert times == [m.at for m in world.moments if m.kind == "gpu"]
    late = [b - a for a, b in pairwise(times) if not any(a <= end <= b for _, end in asleep)]
    assert max(late) < world.sample_gpu_seconds + 21 and min(late) >= world.sample_gpu_seconds - 1e-6


@pytest.mark.parametrize("make", [healthy, hung])
def test_same_seed_same_world(make):
    assert make(7) == make(7)
    assert make(7) != replace(make(8), seed=7)


@pytest.mark.parametrize("seed", range(50))
def test_healthy_worlds_are_fair(seed):
    world = healthy(seed)
    check_form(world)
    assert world.hang_at is None and world.hang_kind is None
    assert violations(world) == []
    assert events(world, "checkpoint.saved")[-1]["path"] == "run.safetensors"


@pytest.mark.parametrize("seed", range(50))
def test_hung_worlds_are_fair_until_they_hang_and_silent_after(seed):
    world = hung(seed)
    check_form(world)
    assert violations(world) == []
    assert violations(replace(world, hang_at=None)) != []  # called healthy, it would be unfair: the kinds are disjoint
    assert world.hang_kind and not [m for m in world.moments if m.kind == "event" and m.at > world.hang_at]
    asleep = sum(m.data["seconds"] for m in world.moments if m.kind == "suspend" and m.at > world.hang_at)
    assert world.end_at - world.hang_at - asleep >= max(5 * 3600, 24 * world.stall_seconds) - 1e-3


def test_the_fairness_check_sees_what_is_unfair():
    world = HEALTHY_SCENARIOS["smooth"](1)
    steps = [m for m in world.moments if m.data.get("type") == "train.step"]
    missing = {id(m) for m in steps if steps[10].at < m.at < steps[10].at + world.stall_seconds}
    assert "without a step" in violations(replace(world, moments=[m for m in world.moments if id(m) not in missing]))[0]
    silent = HEALTHY_SCENARIOS["silent_load"](1)
    dead = [
        Moment(m.at, m.kind, activity(silent)[0]) if m.kind == "activity" else m
        for m in silent.moments
        if m.data.get("type") != "phase.progress"
    ]
    assert any("without life" in line for line in violations(replace(silent, moments=dead)))
    endless = replace(HANG_SCENARIOS["silent_start"](1), hang_at=None)
    assert any("without an event" in line for line in violations(endless))


def test_there_are_enough_scenarios_and_each_says_in_a_line_what_it_is():
    assert len(HEALTHY_SCENARIOS) >= 14 and len(HANG_SCENARIOS) >= 12
    for make in (*HEALTHY_SCENARIOS.values(), *HANG_SCENARIOS.values()):
        assert make.args[0].__doc__.count("\n") == 0
    assert {healthy(seed).name for seed in range(400)} == set(HEALTHY_SCENARIOS)


def _downloads(world, unit):
    (begin, end), *_ = in_phase(world, "download")
    return events(world, "phase.started")[0]["unit"] == unit and end - begin > 60


def _sampled_at(world, level):
    shown = [value for a, b in in_phase(world, "sample") if b < world.end_at for value in readings(world, a + 1, b)]
    return statistics.mean(shown) <= level


def _train(world):
    return in_phase(world, "train")


def _zeros_in_train(world):
    shown = [value for a, b in _train(world) for value in readings(world, a, b)]
    return sum(value == 0 for value in shown) / len(shown)


def _stall_share(world, types, most):
    """The longest wait for such an event since the one before, as a share of stall_seconds."""
    at = [m.at for m in world.moments if m.data.get("type") in types]
    return max(b - a for a, b in pairwise(at)) / world.stall_seconds >= most


def _longest(world, *phases):
    return max(b - a for a, b in in_phase(world, *phases))


def _step_seconds(world):
    return [step["step_seconds"] for step in events(world, "train.step")]


def _steps_at_once(world):
    at = [m.at for m in world.moments if m.data.get("type") == "train.step"]
    return len(at) - len(set(at))


def _suspends(world):
    return [m.data["seconds"] for m in world.moments if m.kind == "suspend"]


def _first_wait(world):
    """Seconds and mean reading from `train` to the first step."""
    begin = _train(world)[0][0]
    first = next(m.at for m in world.moments if m.data.get("type") == "train.step")
    return first - begin, readings(world, begin + 2, begin + (first - begin) * 0.7)


HEALTHY_LOOKS = {
    "smooth": lambda w: max(_step_seconds(w)) < w.stall_seconds * 0.4,
    "colab": lambda w: readings(w, key="name")[0] == "Tesla T4" and events(w)[0]["phase"] == "download",
    "network_volume": lambda w: activity(w)[-1]["read_bytes"] < 50 * MIB and _longest(w, "load") > 100,
    "download_in_bytes": lambda w: _downloads(w, "bytes"),
    "download_in_files": lambda w: _downloads(w, "files") and _longest(w, "download") > 100,
    "flaky_download": lambda w: _longest(w, "download") > 300,
    "hashed_download": lambda w: grown(w, "read_bytes", *in_phase(w, "download")[0]) > 25e9,
    "silent_load": lambda w: _longest(w, "load") > 300,
    "quantises": lambda w: _longest(w, "load") > 60,
    "text_on_cpu": lambda w: _longest(w, "cache") > 50,
    "big_dataset": lambda w: _longest(w, "cache") > 150,
    "long_samples": lambda w: _longest(w, "sample") > 200,
    "samples_on_cpu": lambda w: _longest(w, "sample") > 150 and _sampled_at(w, 2),
    "offloaded_samples": lambda w: _longest(w, "sample") > 100 and _sampled_at(w, 6),
    "samples_reload_text": lambda w: _longest(w, "sample") > 60,
    "whole_states": lambda w: _longest(w, "save") > 120,
    "lumpy_saves": lambda w: _longest(w, "save") > w.stall_seconds * 0.2,
    "exports": lambda w: _longest(w, "export") > 60,
    "leaves_slowly": lambda w: w.end_at - [m.at for m in w.moments if m.kind == "event"][-1] >= 60,
    "block_swap": lambda w: 0.2 < _zeros_in_train(w) < 0.8,
    "giant_steps": lambda w: statistics.median(_step_seconds(w)) > 0.2 * w.stall_seconds,
    "swelling_steps": lambda w: _stall_share(w, {"train.step"}, 0.8),
    "compiles": lambda w: _first_wait(w)[0] > 0.2 * w.stall_seconds and max(_first_wait(w)[1]) == 0,
    "slow_first_step": lambda w: _step_seconds(w)[0] > 3 * statistics.median(_step_seconds(w)),
    "buckets": lambda w: max(_step_seconds(w)) > 3 * min(_step_seconds(w)),
    "evaluates": lambda w: _stall_share(w, {"train.step"}, 0.07),
    "loader_hiccups": lambda w: _stall_share(w, {"train.step"}, 0.05),
    "disk_hiccups": lambda w: _stall_share(w, {"train.step"}, 0.02),
    "collects": lambda w: _stall_share(w, {"train.step"}, 0.02),
    "swapping_host": lambda w: grown(w, "write_bytes", *_train(w)[0]) > 1e9,
    "suspended": lambda w: len(_suspends(w)) >= 1 and max(_suspends(w)) >= 30,
    "frozen_often": lambda w: len(_suspends(w)) >= 8,
    "throttles": lambda w: ["thermal"] in readings(w, key="throttle_reasons") or None in readings(w, key="power_watts"),
    "shares_gpu": lambda w: max(readings(w, 0, _train(w)[0][0])) >= 50,
    "short_kernels": lambda w: _zeros_in_train(w) > 0.85,
    "cpu_only": lambda w: readings(w) == [] and cores(w, *_train(w)[0]) > 1,
    "cpu_beside_gpu": lambda w: max(readings(w)) == 0 and cores(w, *_train(w)[0]) > 1,
    "mig": lambda w: set(readings(w)) == {None} and min(readings(w, key="memory_used_gib")) >= 0,
    "nvml_flaky": lambda w: None in readings(w) or any(m.data == {"samples": []} for m in w.moments),
    "driver_replaced": lambda w: readings(w)[-1] is None and readings(w)[0] is not None,
    "two_gpus": lambda w: len(set(readings(w, key="uuid"))) == 2,
    "buffered": lambda w: _steps_at_once(w) > 20,
    "resumed": lambda w: events(w, "train.step")[0]["step"] > 1 and _first_wait(w)[0] > 0.07 * w.stall_seconds,
    "new_workers": lambda w: any(b["cpu_seconds"] < a["cpu_seconds"] for a, b in pairwise(activity(w))),
    "tight_limit": lambda w: w.stall_seconds == 120 and statistics.median(_step_seconds(w)) >= 35,
    "everything": lambda w: _longest(w, "load", "download") > 30,
}


@pytest.mark.parametrize("name", HEALTHY_SCENARIOS)
@pytest.mark.parametrize("seed", [3, 1004])
def test_healthy_scenarios_are_what_their_names_say(name, seed):
    world = HEALTHY_SCENARIOS[name](seed)
    assert world.name == name and violations(world) == [] and HEALTHY_LOOKS[name](world)


def _phase(world):
    started = events(world, "phase.started")
    return started[-1]["phase"] if started else None


def _last(world):
    found = [m for m in world.moments if m.kind == "event"]
    return found[-1].data if found else {"type": None}


def _after(world, key="utilization_percent"):
    return readings(world, world.hang_at + 25, key=key)


def _moved(world):
    return grown(world, "read_bytes", world.hang_at + 1) + grown(world, "write_bytes", world.hang_at + 1)


def _cores(world):
    return cores(world, world.hang_at + 30)


def _trained(world):
    return _phase(world) == "train" and len(events(world, "train.step")) > 0


HANG_LOOKS = {
    "gpu_idle": lambda w: _phase(w) == "train" and max(_after(w)) == 0 and _cores(w) < 0.01,
    "nccl_spin": lambda w: max(_after(w)) == 100 and _cores(w) > 1.5 and set(_after(w)) <= {0, 100},
    "endless_kernel": lambda w: min(_after(w)) == 100,
    "busy_loop": lambda w: max(_after(w)) == 0 and 0.7 < _cores(w) < 1.3,
    "stopped": lambda w: max(_after(w)) == 0 and grown(w, "cpu_seconds", w.hang_at + 0.1) == 0,
    "dead_loader": lambda w: _phase(w) == "train" and max(_after(w)) == 0 and 0.01 < _cores(w) < 0.03,
    "stuck_download": lambda w: _phase(w) == "download" and _moved(w) == 0,
    "trickling_download": lambda w: _phase(w) == "download" and 0 < _moved(w) < 4 * MIB,
    "asks_for_input": lambda w: _phase(w) in (None, "download", "load") and _cores(w) == 0,
    "save_deadlock": lambda w: _phase(w) == "save" and _moved(w) == 0,
    "before_first_step": lambda w: _last(w)["data"]["phase"] == "train" and not events(w, "train.step"),
    "compile_deadlock": lambda w: _phase(w) == "train" and max(_after(w)) == 0,
    "sample_hang": lambda w: _phase(w) == "sample",
    "heartbeat": lambda w: 0.002 < _cores(w) < 0.08 and _moved(w) > 0,
    "uploader": lambda w: _cores(w) < 0.2 and _moved(w) > 100 * MIB,
    "log_flood": lambda w: _cores(w) > 0.7 and _moved(w) > 1000 * MIB,
    "busy_neighbour": lambda w: statistics.mean(readings(w, w.hang_at + 25)) > 40 and _cores(w) < 0.03,
    "desktop_flicker": lambda w: _phase(w) == "train" and 0 < max(_after(w)) < 15,
    "after_resume": lambda w: _phase(w) in ("load", "train") and len(events(w, "train.step")) < 60,
    "after_suspend": lambda w: any(m.kind == "suspend" and 0 <= w.hang_at - m.at < 1 for m in w.moments),
    "suspended_while_hung": lambda w: any(m.kind == "suspend" and m.at > w.hang_at for m in w.moments),
    "dead_disk": lambda w: _cores(w) == 0 and _moved(w) == 0,
    "load_deadlock": lambda w: _last(w)["data"].get("phase") == "load",
    "cache_deadlock": lambda w: _phase(w) == "cache",
    "silent_start": lambda w: events(w) == [] and w.hang_at < 300,
    "without_readings": lambda w: (None in _after(w)) or len(_after(w)) < len(activity(w, w.hang_at + 25)),
    "beside_idle_gpu": lambda w: _trained(w) and max(_after(w)) == 0 and _zeros_in_train(w) > 0.85,
    "gpu_lost": lambda w: _phase(w) == "train" and set(_after(w)) == {None},
    "never_exits": lambda w: events(w, "checkpoint.saved")[-1]["path"] == "run.safetensors",
    "thrashing": lambda w: _trained(w) and _moved(w) > 1e11,
}


@pytest.mark.parametrize("name", HANG_SCENARIOS)
@pytest.mark.parametrize("seed", [3, 1004, 2005])
def test_hang_scenarios_are_what_their_names_say(name, seed):
    world = HANG_SCENARIOS[name](seed)
    assert world.name == name and violations(world) == [] and HANG_LOOKS[name](world)
