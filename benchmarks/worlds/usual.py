"""A run as most are, drawn at random: what every scenario begins with."""

from __future__ import annotations

import random
from dataclasses import replace

from benchmarks.worlds.rigs import CARDS, COMPUTE, SWAP, devices
from benchmarks.worlds.run import Run
from benchmarks.worlds.story import Readings, Story


def usual(rng: random.Random, card: str | None = None, gpus: int = 1, stall: float | None = None) -> Run:
    """A run as most are: a card, a resolution, a length, a disk drawn at random."""
    it = CARDS[card] if card else rng.choice(list(CARDS.values()))
    stall = stall or rng.choice((300.0,) * 8 + (120.0, 180.0, 240.0, 600.0, 900.0))
    period = rng.choice((5.0,) * 8 + (2.0, 10.0, 15.0))
    readings = Readings()
    if "GeForce" in it.name and rng.random() < 0.15:  # WSL and old drivers: no power, no reasons
        readings.unknown = frozenset({"power_watts", "power_limit_watts", "throttle_reasons"})
    story = Story(rng, devices(rng, it, gpus), readings, stall, period)
    batch = rng.choice((1, 1, 1, 2, 4)) if it.memory_gib > 20 else 1
    base = it.step * rng.choice((1.0, 1.0, 1.9, 3.4)) * (0.35 + 0.65 * batch) * rng.uniform(0.85, 1.3)
    base = min(base, 0.25 * stall)
    swaps = it.memory_gib < 20 and rng.random() < 0.7
    load = SWAP if swaps else COMPUTE
    hours = rng.uniform(0.3, 2.5)
    steps = max(200, min(1500, int(hours * 3600 / base)))
    run = Run(rng, story, it, steps=steps, batch=batch)
    run.step_seconds = lambda _: base * rng.lognormvariate(0, 0.04)
    run.train_load = lambda _: load
    run.import_seconds = rng.uniform(5, 40)
    run.captions = run.pictures = rng.randint(5, 80)
    run.caption_seconds, run.picture_seconds = rng.uniform(0.05, 0.6), rng.uniform(0.1, 1.0)
    run.text_first = rng.random() < 0.6
    run.image_gb = rng.choice((23.8, 23.8, 11.9))
    run.disk_rate = rng.uniform(250, 2500)
    run.save_rate = rng.uniform(100, 1200)
    run.state_gb = rng.choice((0.06, 0.25, 0.7))
    run.weights_gb = run.state_gb / 4
    run.epoch_steps = rng.choice((50, 100, 160, 200))
    run.sample_every = rng.choice((0, 100, 200, 250))
    run.sample_at_first = rng.random() < 0.3
    run.prompts = rng.randint(1, 5)
    run.picture_draw = base * rng.uniform(0.35, 0.6) * rng.choice((20, 20, 28, 50))
    run.sample_load = replace(load, gpu=load.gpu, cpu=1.0)
    run.leave = (rng.uniform(1, 20), run.leave[1])
    run.save_every = rng.choice((100, 200, 250, 400))
    return run
