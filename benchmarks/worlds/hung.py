"""Runs that hang: where, and what is left to be seen of them afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.worlds import healthy_around, healthy_training
from benchmarks.worlds.healthy_around import Setup
from benchmarks.worlds.rigs import COMPUTE
from benchmarks.worlds.run import Fate, Run
from benchmarks.worlds.story import Load, Neighbour
from benchmarks.worlds.usual import usual

WATCHED_SECONDS = 5 * 3600.0  # how long a hung world goes on at least, suspends not counted
WATCHED_LIMITS = 24  # … and at least so many times its stall_seconds

# What a hung process tree still does. Of these only the GPU's readings and trifles of CPU and bytes ever move.
ASLEEP = Load(cpu=0.003)  # threads in futex and poll, with their time-outs
STOPPED = Load(cpu=0.0)
SPIN = Load(cpu=1.0)
NCCL = Load(gpu=100, power=0.3, cpu=2.0)
POLLING = Load(cpu=0.02)
KERNEL = Load(gpu=100, power=0.55, cpu=1.0)
TRICKLE = Load(cpu=0.002, read=60.0)  # keep-alives
THRASH = Load(gpu=0, cpu=0.3, read=80e6, write=40e6, late=15.0)

# Hangs draw their run from these as often as from the usual one.
OTHERS: tuple[Setup, ...] = (
    healthy_around.network_volume,
    healthy_around.flaky_download,
    healthy_around.silent_load,
    healthy_around.lumpy_saves,
    healthy_around.samples_reload_text,
    healthy_training.block_swap,
    healthy_training.giant_steps,
    healthy_training.swelling_steps,
    healthy_training.compiles,
    healthy_training.slow_first_step,
    healthy_training.buckets,
    healthy_training.evaluates,
    healthy_training.loader_hiccups,
    healthy_training.swapping_host,
    healthy_training.suspended,
    healthy_training.throttles,
    healthy_training.buffered,
    healthy_training.resumed,
    healthy_training.new_workers,
    healthy_training.tight_limit,
)


@dataclass(slots=True)
class Hang:
    """A run with its fate: the kind of hang, what it looks like after, and for a moment before (`glow`)."""

    run: Run
    kind: str
    after: Load
    glow: Load | None = None  # a started step's kernels run to their end
    asleep: float = 0.0  # the machine was suspended at once after the last progress, and the run hangs as it wakes
    naps: tuple[tuple[float, float], ...] = ()  # suspends while it hangs: (seconds after, for so long)


HangSetup = Callable[[random.Random], Hang]


def gpu_idle(rng: random.Random) -> Hang:
    """The seed's case: in mid-training the GPU falls to 0% and stays there."""
    return Hang(_doomed(_any(rng), "step"), "gpu_idle", ASLEEP, COMPUTE)


def nccl_spin(rng: random.Random) -> Hang:
    """Two GPUs wait for each other for ever: 100% on both, at a third of their power, two cores busy."""
    run = _doomed(healthy_training.two_gpus(rng), "step")
    return Hang(run, "spin_100", replace(NCCL, lag=rng.choice((1.0, 1.0, 0.0))))


def endless_kernel(rng: random.Random) -> Hang:
    """A kernel that never ends: 100%, and power that might be a training's."""
    after = replace(KERNEL, power=rng.uniform(0.3, 0.9))
    return Hang(_doomed(_any(rng), rng.choice(("step", "step", "sample"))), "spin_100", after)


def busy_loop(rng: random.Random) -> Hang:
    """Python in an endless loop: one core at 100%, GPU at 0%."""
    place = rng.choice(("step", "step", "before_first_step", "cache", "load", "sample", "save"))
    return Hang(_doomed(_any(rng), place), "busy_loop", SPIN)


def stopped(rng: random.Random) -> Hang:
    """SIGSTOP in any phase: no CPU at all."""
    place = rng.choice(("step", "step", "step", "import", "load", "cache", "before_first_step", "sample", "save"))
    return Hang(_doomed(_any(rng), place), "stopped", STOPPED)


def dead_loader(rng: random.Random) -> Hang:
    """A loader worker was killed; the main thread polls its queue."""
    return Hang(_doomed(_any(rng), "step"), "dead_loader", POLLING, COMPUTE)


def stuck_download(rng: random.Random) -> Hang:
    """The connection is half-open: no bytes, no error, no time-out."""
    return Hang(_doomed(_downloading(rng), "download"), "stuck_download", ASLEEP)


def trickling_download(rng: random.Random) -> Hang:
    """The server sends keep-alives and nothing else."""
    return Hang(_doomed(_downloading(rng), "download"), "stuck_download", TRICKLE)


def asks_for_input(rng: random.Random) -> Hang:
    """A gated model or a licence: it waits for someone to type, before or while it downloads or loads."""
    run = _downloading(rng)
    run.fate = Fate(rng.choice(("import", "download", "load")), 1, rng.uniform(0.01, 0.1))
    return Hang(run, "asks_for_input", STOPPED)


def save_deadlock(rng: random.Random) -> Hang:
    """Deadlocked in mid-save: the temporary file stops growing."""
    run = _doomed(_any(rng), "save")
    return Hang(run, "save_deadlock", rng.choice((ASLEEP, STOPPED, POLLING)))


def before_first_step(rng: random.Random) -> Hang:
    """`train` is announced and no step ever comes."""
    return Hang(_doomed(_any(rng), "before_first_step"), "before_first_step", rng.choice((ASLEEP, POLLING, STOPPED)))


def compile_deadlock(rng: random.Random) -> Hang:
    """torch.compile's workers are dead, the main process waits or spins, before the first step or at a new shape."""
    run = _doomed(healthy_training.compiles(rng), rng.choice(("before_first_step", "step")))
    return Hang(run, "compile_deadlock", rng.choice((ASLEEP, SPIN)))


def sample_hang(rng: random.Random) -> Hang:
    """In the middle of a sample picture, idle or spinning."""
    return Hang(_doomed(_any(rng), "sample"), "sample_hang", rng.choice((ASLEEP, NCCL, POLLING)))


def heartbeat(rng: random.Random) -> Hang:
    """Hung, but a thread still burns a little CPU and writes a line to a log every few seconds."""
    place = rng.choice(("step", "step", "load", "cache", "sample", "save", "before_first_step"))
    after = Load(cpu=rng.uniform(0.005, 0.06), write=rng.uniform(20, 4000))
    return Hang(_doomed(_any(rng), place), "heartbeat", after)


def uploader(rng: random.Random) -> Hang:
    """Hung, but a metrics service's child process retries its upload: CPU, reads and writes that never cease."""
    place = rng.choice(("step", "step", "load", "sample", "save"))
    after = Load(cpu=rng.uniform(0.02, 0.15), read=rng.uniform(5e3, 5e4), write=rng.uniform(1e4, 8e4))
    return Hang(_doomed(_any(rng), place), "uploader", after)


def log_flood(rng: random.Random) -> Hang:
    """A loop that prints the same error for ever: a core and megabytes of log, no step."""
    place = rng.choice(("step", "step", "before_first_step", "load"))
    return Hang(_doomed(_any(rng), place), "log_flood", Load(cpu=1.0, write=rng.uniform(2e5, 3e6)))


def busy_neighbour(rng: random.Random) -> Hang:
    """Hung on a GPU, or on one of two, that another run keeps at 90%."""
    run = _doomed(usual(rng, "NVIDIA A40", gpus=rng.choice((1, 2, 2))), rng.choice(("step", "step", "step", "sample")))
    run.story.devices[-1].neighbour = Neighbour(90.0, rng.uniform(4, 16))
    return Hang(run, "gpu_idle", rng.choice((ASLEEP, POLLING)), COMPUTE)


def desktop_flicker(rng: random.Random) -> Hang:
    """Hung on a card that also draws a desktop: readings of 1 to 6% among the zeros."""
    run = _doomed(usual(rng, "NVIDIA GeForce RTX 3090"), "step")
    return Hang(run, "gpu_idle", replace(ASLEEP, gpu=3, spread=2, zeros=rng.uniform(0.3, 0.97)))


def after_resume(rng: random.Random) -> Hang:
    """Hangs right after a resume: while loading, skipping batches, or one step later."""
    run = healthy_training.resumed(rng)
    run.fate = Fate(rng.choice(("load", "before_first_step", "step")), 1, 0.001 if rng.random() < 0.5 else 0.02)
    return Hang(run, "after_resume", rng.choice((ASLEEP, POLLING, SPIN)))


def after_suspend(rng: random.Random) -> Hang:
    """The machine wakes, the run does not: connections or the GPU are gone."""
    run = _downloading(rng) if rng.random() < 0.3 else _any(rng)
    run = _doomed(run, "download" if run.download else rng.choice(("step", "step", "load", "sample")))
    return Hang(run, "after_suspend", rng.choice((ASLEEP, STOPPED, SPIN)), asleep=rng.choice((90, 900, 9000, 40000)))


def suspended_while_hung(rng: random.Random) -> Hang:
    """Hangs, and the machine is suspended again and again before anyone can tell."""
    naps = tuple((rng.uniform(1, 4000), rng.choice((30, 300, 3000, 20000)) * 1.0) for _ in range(rng.randint(1, 8)))
    return Hang(_doomed(_any(rng), rng.choice(("step", "step", "save"))), "gpu_idle", ASLEEP, COMPUTE, naps=naps)


def dead_disk(rng: random.Random) -> Hang:
    """The network disk is gone: uninterruptible, no CPU, no bytes, in whatever touches it."""
    run = _doomed(healthy_around.network_volume(rng), rng.choice(("import", "load", "save", "save", "step")))
    return Hang(run, "dead_disk", STOPPED)


def load_deadlock(rng: random.Random) -> Hang:
    """Hangs while it reads or places the model."""
    return Hang(_doomed(_any(rng), "load"), "load_deadlock", rng.choice((ASLEEP, POLLING, STOPPED)))


def cache_deadlock(rng: random.Random) -> Hang:
    """Hangs at a picture or a caption of the cache."""
    return Hang(_doomed(_any(rng), "cache"), "cache_deadlock", rng.choice((ASLEEP, POLLING, SPIN)))


def silent_start(rng: random.Random) -> Hang:
    """Hangs in its imports: not one event."""
    return Hang(_doomed(_any(rng), "import"), "silent_start", rng.choice((ASLEEP, STOPPED, SPIN)))


def without_readings(rng: random.Random) -> Hang:
    """Hangs where the GPU can't be read: no GPU, a slice of one, or NVML fails on and off."""
    setup = rng.choice((healthy_training.cpu_only, healthy_training.mig, healthy_training.nvml_flaky))
    place = rng.choice(("step", "step", "sample"))
    return Hang(_doomed(setup(rng), place), "without_readings", rng.choice((ASLEEP, POLLING, SPIN, STOPPED)))


def beside_idle_gpu(rng: random.Random) -> Hang:
    """Hangs in a run that computes on the processor, or in kernels too short to see: 0% before as after."""
    setup = rng.choice((healthy_training.cpu_beside_gpu, healthy_training.short_kernels))
    return Hang(_doomed(setup(rng), "step"), "gpu_idle", rng.choice((ASLEEP, POLLING, SPIN)))


def gpu_lost(rng: random.Random) -> Hang:
    """The GPU falls off the bus: the trainer waits for it, its readings are unknown from then on."""
    return Hang(_doomed(_any(rng), "step"), "gpu_lost", rng.choice((ASLEEP, SPIN, STOPPED)))


def never_exits(rng: random.Random) -> Hang:
    """All is saved and told, but the process never ends: a thread that is joined, a group of GPUs that won't part."""
    run = _any(rng)
    run.steps, run.fate = min(run.steps, 300), Fate("exit", 1, 0.01)
    return Hang(run, "never_exits", rng.choice((ASLEEP, ASLEEP, POLLING, NCCL)))


def thrashing(rng: random.Random) -> Hang:
    """Out of memory but not dead: it swaps for ever, tens of MB/s, the supervisor late, no step."""
    return Hang(_doomed(healthy_training.swapping_host(rng), "step"), "thrashing", THRASH)


SETUPS: tuple[HangSetup, ...] = (
    gpu_idle,
    nccl_spin,
    endless_kernel,
    busy_loop,
    stopped,
    dead_loader,
    stuck_download,
    trickling_download,
    asks_for_input,
    save_deadlock,
    before_first_step,
    compile_deadlock,
    sample_hang,
    heartbeat,
    uploader,
    log_flood,
    busy_neighbour,
    desktop_flicker,
    after_resume,
    after_suspend,
    suspended_while_hung,
    dead_disk,
    load_deadlock,
    cache_deadlock,
    silent_start,
    without_readings,
    beside_idle_gpu,
    gpu_lost,
    never_exits,
    thrashing,
)


def aftermath(hang: Hang) -> None:
    """Tell what is seen of the run once it has come to its fate, to the end of the watch."""
    run, story = hang.run, hang.run.story
    if hang.asleep:
        story.suspend(hang.asleep)
        story.hang()
    if hang.kind == "gpu_lost":
        story.readings.lost_at = story.now
    for after, seconds in hang.naps:
        story.plan_suspend(story.now + after, seconds)
    if hang.glow is not None and run.on_gpu:
        story.work(run.rng.uniform(0.1, 0.9) * min(run.step_seconds(2), 20.0), hang.glow)
    story.work(max(WATCHED_SECONDS, WATCHED_LIMITS * story.stall_seconds), hang.after)


def _any(rng: random.Random) -> Run:
    return usual(rng) if rng.random() < 0.5 else rng.choice(OTHERS)(rng)


def _downloading(rng: random.Random) -> Run:
    setups = healthy_around.download_in_bytes, healthy_around.download_in_files, healthy_around.flaky_download
    return rng.choice((*setups, healthy_around.colab))(rng)


def _doomed(run: Run, place: str) -> Run:
    """The run hangs at a random time in `place`; what it needs to come there is switched on."""
    rng = run.rng
    visits = {"load": 2, "cache": 2, "sample": 4, "save": 4}.get(place, 1)
    run.fate = Fate(place, rng.randint(1, visits), rng.uniform(0.02, 0.95))
    if place == "step":
        run.fate = Fate(place, 1, rng.choice((0.0, rng.uniform(0.0, 0.1), rng.uniform(0.0, 0.7))))
    if place == "sample":
        run.sample_every, run.prompts = min(run.sample_every or 200, run.steps // 2), max(2, run.prompts)
        run.steps = 2 * run.sample_every
    if place == "save":
        run.save_every = min(run.save_every, run.steps // 2)
    return run
