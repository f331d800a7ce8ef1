"""Healthy runs whose training, or whose machine under it, is slow, uneven or hard to see."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from benchmarks.worlds.healthy_around import Setup, flaky_download, network_volume
from benchmarks.worlds.rigs import COMPUTE, CORES, DENOISE, LOADER, PYTHON, QUIET, SMALL, UNINTERRUPTIBLE
from benchmarks.worlds.run import Pause, Run
from benchmarks.worlds.story import MIG, Load, Neighbour
from benchmarks.worlds.usual import usual


def block_swap(rng: random.Random) -> Run:
    """12 or 16 GB, fp8, blocks swapped with RAM: steps of 8 to 70 s, half the readings 0, little power."""
    run = usual(rng, rng.choice(SMALL))
    load = Load(gpu=55, spread=25, zeros=rng.uniform(0.3, 0.7), power=0.35, cpu=1.8)
    _pace(run, min(rng.uniform(8, 70), 0.4 * run.story.stall_seconds), sway=0.1, load=load)
    return run


def giant_steps(rng: random.Random) -> Run:
    """Large batches on a slow card: each step takes a quarter to three quarters of stall_seconds."""
    run = usual(rng)
    _pace(run, rng.uniform(0.25, 0.7) * run.story.stall_seconds, sway=0.08)
    return run


def swelling_steps(rng: random.Random) -> Run:
    """Steps of a quarter of stall_seconds, some of several times that, the GPU at work: all that the promise allows."""
    run = usual(rng)
    base = rng.uniform(0.2, 0.5) * run.story.stall_seconds
    _pace(run, base, load=replace(COMPUTE, zeros=0.3))
    run.steps, run.beyond = min(run.steps, 90), True
    run.step_seconds = lambda _: base * (rng.uniform(2, 6) if rng.random() < 0.1 else rng.uniform(0.9, 1.2))
    return run


def compiles(rng: random.Random) -> Run:
    """torch.compile: a first step of minutes on the processor with the GPU at 0%, again at each new shape."""
    run = usual(rng)
    load = Load(cpu=rng.uniform(1.0, 8.0))
    run.skip = (rng.uniform(0.3, 0.9) * run.story.stall_seconds, load)
    again = {2, 3, rng.randint(4, 40), rng.randint(41, 150)}
    run.pause = lambda step: (run.story.stall_seconds * rng.uniform(0.1, 0.6), load) if step in again else (0.0, QUIET)
    return run


def slow_first_step(rng: random.Random) -> Run:
    """Autotuning, allocation, the page cache: the first steps take 5 to 100 times the later ones."""
    run = usual(rng)
    usually, factor = run.step_seconds, rng.uniform(5, 100)
    run.step_seconds = lambda step: usually(step) * max(1.0, factor * 0.25 ** (step - run.first_step))
    return run


def buckets(rng: random.Random) -> Run:
    """Pictures of many shapes and sizes: the step time varies tenfold."""
    run = usual(rng)
    usually, sizes = run.step_seconds, (0.4, 0.6, 1.0, 1.0, 1.5, 2.5, 4.0)
    run.step_seconds = lambda step: usually(step) * rng.choice(sizes)
    return run


def evaluates(rng: random.Random) -> Run:
    """Validation inside phase train, unannounced: minutes of GPU work without a step."""
    run = usual(rng)
    every, seconds = rng.choice((25, 50, 100)), rng.uniform(0.1, 0.75) * run.story.stall_seconds
    run.pause = lambda step: (seconds * rng.uniform(0.8, 1.2), DENOISE) if step % every == 0 else (0.0, QUIET)
    return run


def loader_hiccups(rng: random.Random) -> Run:
    """Workers that decode huge pictures: waits of seconds to minutes, GPU at 0%, CPU busy."""
    run = usual(rng)
    run.pause = _hiccups(run, rng.uniform(0.01, 0.1), LOADER)
    return run


def disk_hiccups(rng: random.Random) -> Run:
    """The page cache is written back, or the network disk away: everything waits, not even CPU."""
    run = usual(rng)
    run.pause = _hiccups(run, rng.uniform(0.005, 0.04), UNINTERRUPTIBLE)
    return run


def collects(rng: random.Random) -> Run:
    """Long garbage collections and old states removed between steps: one core, GPU at 0%."""
    run = usual(rng)
    run.pause = _hiccups(run, 0.02, PYTHON)
    return run


def swapping_host(rng: random.Random) -> Run:
    """32 GB of RAM for 34 GB of weights: steps that take 1 to 30 times, the supervisor itself late by up to 20 s."""
    run = usual(rng, rng.choice(SMALL))
    usually = run.step_seconds
    thrash = Load(gpu=50, spread=30, zeros=0.7, power=0.3, cpu=0.4, read=60e6, write=30e6, late=20)
    run.step_seconds = lambda step: usually(step) * max(1.0, rng.lognormvariate(0.3, 0.9))
    run.train_load = lambda _: thrash
    run.disk_rate = rng.uniform(40, 120)
    return run


def suspended(rng: random.Random) -> Run:
    """A laptop or a machine that sleeps: one to five suspends, of a minute to ten hours, in any phase."""
    run = usual(rng)
    for latest in (600, *(9000 for _ in range(rng.randint(0, 4)))):
        run.story.plan_suspend(rng.uniform(5, latest), rng.choice((60, 400, 3600, 36000)) * rng.uniform(0.5, 1.0))
    return run


def frozen_often(rng: random.Random) -> Run:
    """A container that is frozen and thawed, a machine that migrates: many standstills of 5 s to some minutes."""
    run = usual(rng)
    for latest in (900,) * 8 + (9000,) * rng.randint(0, 50):
        run.story.plan_suspend(rng.uniform(5, latest), rng.choice((5, 20, 90, 400)) * rng.uniform(0.5, 1.5))
    return run


def throttles(rng: random.Random) -> Run:
    """Hot: from some step on the clock falls, steps take up to six times, power falls, utilisation stays."""
    run = usual(rng)
    usually, usual_load, begin, factor = run.step_seconds, run.train_load, rng.randint(20, 150), rng.uniform(2, 6)
    hot = replace(run.train_load(1), power=0.35, throttle=("thermal",))
    run.step_seconds = lambda step: usually(step) * min(factor, 1 + max(0, step - begin) / 40)
    run.train_load = lambda step: usual_load(step) if step < begin else hot
    return run


def shares_gpu(rng: random.Random) -> Run:
    """Another run computes on the same GPU, on and off: the reading is busy whatever ours does, our steps swing."""
    run = usual(rng)
    period = rng.uniform(300, 7200)
    other = Neighbour(
        rng.uniform(60, 95), rng.uniform(2, 10), period, period * rng.uniform(0.2, 1.0), rng.random() * 999
    )
    run.story.devices[0].neighbour = other
    usually = run.step_seconds
    run.step_seconds = lambda step: usually(step) * (rng.uniform(1.5, 5) if other.busy(run.story.now) else 1.0)
    return run


def short_kernels(rng: random.Random) -> Run:
    """A small model on a large GPU: kernels so short that nearly every reading is 0, or every one."""
    run = _mini(usual(rng, "NVIDIA H100 80GB HBM3"))
    load = Load(gpu=4, spread=2, zeros=rng.choice((0.9, 0.97, 1.0)), power=0.18, cpu=1.0)
    _pace(run, rng.uniform(0.3, 2.5), load=load)
    return run


def cpu_only(rng: random.Random) -> Run:
    """flux-mini on the processor of a machine without a GPU: no readings, a fraction of a second to seconds a step."""
    run = _mini(usual(rng))
    run.story.readings.empty = True
    _pace(run, rng.uniform(0.25, 6), sway=0.2, load=Load(cpu=rng.uniform(1.5, 8)))
    _on_processor(run)
    return run


def cpu_beside_gpu(rng: random.Random) -> Run:
    """Computes on the processor though a GPU is given to it, which reads 0% from the first to the last moment."""
    run = _mini(usual(rng))
    _pace(run, rng.uniform(0.25, 20), sway=0.2, load=Load(cpu=rng.uniform(1.5, 8)))
    _on_processor(run)
    return run


def mig(rng: random.Random) -> Run:
    """A slice of an A100 or H100: utilisation and power are not known."""
    run = usual(rng, rng.choice(("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3")))
    run.story.readings.unknown = MIG
    return run


def nvml_flaky(rng: random.Random) -> Run:
    """Readings that fail for seconds to an hour at a time, as none at all or as unknown."""
    run = usual(rng)
    told = run.story.readings
    told.period, told.hole_of_nulls = rng.uniform(60, 7200), rng.random() < 0.5
    told.hole = told.period * rng.uniform(0.05, 0.7)
    return run


def driver_replaced(rng: random.Random) -> Run:
    """NVML stops in mid-run (the driver's files were updated); the training goes on."""
    run = usual(rng)
    run.story.readings.lost_at = rng.uniform(60, 900)
    return run


def two_gpus(rng: random.Random) -> Run:
    """Data-parallel on two GPUs of which the second waits for the first."""
    run = usual(rng, rng.choice(("NVIDIA GeForce RTX 4090", "NVIDIA A40")), gpus=2)
    slow = replace(COMPUTE, lag=rng.choice((1.0, 0.6, 0.0)), cpu=2.1)
    run.train_load = lambda _: slow
    run.sample_load = replace(DENOISE, lag=rng.choice((0.0, 1.0)))  # rank 0 draws; the other spins, or sleeps
    return run


def buffered(rng: random.Random) -> Run:
    """Steps are seen in batches: a pipe's buffer, a network disk that shows appended lines late."""
    run = usual(rng)
    run.story.buffer_seconds = rng.uniform(0.05, 0.5) * run.story.stall_seconds
    return run


def resumed(rng: random.Random) -> Run:
    """Goes on from a state: the batches already seen are read and skipped, minutes in phase train before a step."""
    run = usual(rng)
    run.first_step = rng.randint(2, 2000)
    run.skip = (rng.uniform(0.1, 0.95) * run.story.stall_seconds, LOADER)
    return run


def new_workers(rng: random.Random) -> Run:
    """Loader workers end and start at each epoch: the sums over the process tree fall, the next batch takes long."""
    run = usual(rng)
    run.at_epoch = lambda: run.story.lose_counters(rng.uniform(0.2, 0.7))
    wait = rng.uniform(0.02, 0.4) * run.story.stall_seconds
    run.pause = lambda step: (wait, LOADER) if step % run.epoch_steps == 1 else (0.0, QUIET)
    return run


def tight_limit(rng: random.Random) -> Run:
    """A user set stall_seconds to 120 although a step takes 40 to 85 s."""
    run = usual(rng, stall=120.0)
    _pace(run, rng.uniform(40, 85), sway=0.05)
    return run


def everything(rng: random.Random) -> Run:
    """A night on a bad machine: network volume or flaky line, hiccups, heat, holes in the readings, standstills."""
    run = rng.choice((network_volume, flaky_download))(rng)
    run.pause = _hiccups(run, 0.02, rng.choice((LOADER, UNINTERRUPTIBLE, PYTHON)))
    told = run.story.readings
    told.period, told.hole = rng.uniform(600, 7200), rng.uniform(5, 500)
    usually, slower = run.step_seconds, rng.uniform(1, 4)
    run.step_seconds = lambda step: usually(step) * min(slower, 1 + step / 200)
    for _ in range(rng.randint(0, 6)):
        run.story.plan_suspend(rng.uniform(5, 12000), rng.choice((10, 90, 900, 9000)))
    return run


def _pace(run: Run, seconds: float, sway: float = 0.04, load: Load | None = None) -> None:
    """Steps of about `seconds`, as many as take some hours at most; 80 at least."""
    rng = run.rng
    run.step_seconds = lambda _: seconds * rng.lognormvariate(0, sway)
    if load is not None:
        run.train_load = lambda _: load
    run.steps = max(80, min(2000, int(rng.uniform(0.5, 3) * 3600 / seconds)))


def _hiccups(run: Run, often: float, load: Load) -> Callable[[int], Pause]:
    """A pause before that share of the steps: mostly seconds, now and then as long as the bound allows."""
    rng = run.rng
    return lambda _: (2 * rng.paretovariate(0.7), load) if rng.random() < often else (0.0, QUIET)


def _on_processor(run: Run) -> None:
    """The GPU does nothing, and holds nothing."""
    run.on_gpu, run.sample_load, run.cache_load, run.decode = False, CORES, CORES, (0.5, CORES)


def _mini(run: Run) -> Run:
    """flux-mini, of 25 MB."""
    rng = run.rng
    run.text_gb, run.image_gb, run.state_gb, run.weights_gb = 0.005, 0.02, 0.01, 0.002
    run.import_seconds, run.caption_seconds, run.picture_seconds = rng.uniform(3, 15), 0.01, 0.02
    run.picture_draw, run.download = rng.uniform(0.5, 6), ""
    return run


SETUPS: tuple[Setup, ...] = (
    block_swap,
    giant_steps,
    swelling_steps,
    compiles,
    slow_first_step,
    buckets,
    evaluates,
    loader_hiccups,
    disk_hiccups,
    collects,
    swapping_host,
    suspended,
    frozen_often,
    throttles,
    shares_gpu,
    short_kernels,
    cpu_only,
    cpu_beside_gpu,
    mig,
    nvml_flaky,
    driver_replaced,
    two_gpus,
    buffered,
    resumed,
    new_workers,
    tight_limit,
    everything,
)
