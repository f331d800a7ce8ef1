"""Healthy runs that are slow, silent or odd in what surrounds the training: download, load, cache, sample, save."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from benchmarks.worlds.rigs import CORES, SMALL
from benchmarks.worlds.run import Run
from benchmarks.worlds.story import Load
from benchmarks.worlds.usual import usual

Setup = Callable[[random.Random], Run]


def smooth(rng: random.Random) -> Run:
    """A local disk, a model that is there, nothing in the way."""
    return usual(rng)


def colab(rng: random.Random) -> Run:
    """A T4 on Colab: a download first, steps of up to a minute, Drive as the disk, saves that arrive in lumps."""
    run = usual(rng, "Tesla T4")
    run.download, run.download_rate, run.outages_an_hour = "bytes", rng.uniform(30, 150), 2.0
    run.save_rate, run.lumps, run.accounted = rng.uniform(8, 40), rng.uniform(20, 200), False
    run.disk_rate = rng.uniform(80, 200)
    return run


def network_volume(rng: random.Random) -> Run:
    """RunPod's network volume: Python's packages and 34 GB of weights through FUSE, which accounts nothing to us."""
    run = usual(rng)
    run.import_seconds = rng.uniform(60, 240)
    run.disk_rate, run.accounted = rng.uniform(20, 90), False
    run.save_rate, run.lumps = rng.uniform(20, 120), rng.uniform(0, 60)
    return run


def download_in_bytes(rng: random.Random) -> Run:
    """34 GB at 4 to 40 MB/s, counted in bytes, the line broken now and then."""
    run = usual(rng)
    run.download, run.download_rate, run.outages_an_hour = "bytes", rng.uniform(4, 40), 4.0
    return run


def download_in_files(rng: random.Random) -> Run:
    """Counted in files: the one of 23.8 GB takes from two minutes to over an hour in which nothing is counted."""
    run = usual(rng)
    run.download, run.download_rate = "files", rng.choice((5, 8, 15, 40, 100, 200)) * rng.uniform(0.8, 1.2)
    run.download_gb = (0.0001, 0.3, 23.8, 0.25, 9.8)
    run.accounted = rng.random() < 0.7
    return run


def flaky_download(rng: random.Random) -> Run:
    """A line or a server (429, back-off) that is away for minutes, time and again."""
    run = usual(rng)
    run.download, run.download_rate = rng.choice(("bytes", "files")), rng.uniform(15, 80)
    run.outages_an_hour, run.outage_seconds = rng.uniform(10, 40), run.calm(1e9)
    return run


def hashed_download(rng: random.Random) -> Run:
    """A quick download whose 34 GB are then read again from a network disk for their hash."""
    run = usual(rng)
    run.download, run.download_rate, run.verify = rng.choice(("bytes", "files")), rng.uniform(100, 400), True
    run.disk_rate = rng.uniform(40, 120)
    return run


def silent_load(rng: random.Random) -> Run:
    """10 and 24 GB from a disk of 25 to 70 MB/s, nothing counted: up to a quarter of an hour each."""
    run = usual(rng)
    run.image_gb, run.disk_rate = 23.8, rng.uniform(25, 70)
    run.outages_an_hour, run.outage_seconds = rng.uniform(0, 20), 60.0
    return run


def quantises(rng: random.Random) -> Run:
    """To fp8 or NF4 on the processor after loading: minutes of one to four cores, GPU at 0%."""
    run = usual(rng, rng.choice(SMALL))
    run.quantise = (rng.uniform(60, 900), Load(cpu=rng.choice((1.0, 1.0, 4.0))))
    return run


def text_on_cpu(rng: random.Random) -> Run:
    """T5 on the processor: 5 to 60 seconds a caption, GPU at 0%."""
    run = usual(rng, rng.choice(SMALL))
    run.captions, run.caption_seconds, run.cache_load = rng.randint(10, 60), rng.uniform(5, 60), CORES
    return run


def big_dataset(rng: random.Random) -> Run:
    """Thousands of pictures to cache, read from the disk one by one."""
    run = usual(rng)
    run.pictures, run.picture_seconds = rng.randint(1500, 5000), rng.uniform(0.1, 0.5)
    run.cache_load = Load(gpu=30, spread=20, zeros=0.6, power=0.3, cpu=1.5, read=2e6)
    return run


def long_samples(rng: random.Random) -> Run:
    """Many prompts at 50 steps: one to seven minutes a picture."""
    run = usual(rng)
    run.sample_every, run.prompts, run.picture_draw = 250, rng.randint(4, 10), rng.uniform(60, 400)
    run.sample_at_first = True
    return run


def samples_on_cpu(rng: random.Random) -> Run:
    """The GPU is too small for the sampler: up to 25 minutes a picture on the processor, GPU at 0%."""
    run = usual(rng, rng.choice(SMALL))
    run.sample_every, run.prompts, run.picture_draw = 250, rng.randint(1, 3), rng.uniform(200, 1500)
    run.sample_load = Load(cpu=rng.uniform(1.0, 8.0))
    return run


def offloaded_samples(rng: random.Random) -> Run:
    """Layers travel to the GPU one by one: readings mostly 0, little power, minutes a picture."""
    run = usual(rng, rng.choice(SMALL))
    run.sample_every, run.prompts, run.picture_draw = 200, rng.randint(1, 4), rng.uniform(100, 600)
    run.sample_load = Load(gpu=12, spread=8, zeros=0.85, power=0.22, cpu=0.5)
    run.decode = (rng.uniform(5, 90), Load(cpu=3.0))  # tiled VAE on the processor
    return run


def samples_reload_text(rng: random.Random) -> Run:
    """For each round of samples T5 is read from a slow disk again, before the first picture."""
    run = usual(rng)
    run.sample_every, run.text_again, run.disk_rate = 200, True, rng.uniform(25, 150)
    run.accounted = rng.random() < 0.6
    return run


def whole_states(rng: random.Random) -> Run:
    """States that hold the whole base model, 24 GB, onto a disk of 30 to 150 MB/s."""
    run = usual(rng)
    run.state_gb, run.save_rate, run.save_every = 23.9, rng.uniform(30, 150), 400
    return run


def lumpy_saves(rng: random.Random) -> Run:
    """Saved into the page cache at once, then minutes in fsync: no CPU, no bytes of the process, no GPU."""
    run = usual(rng)
    run.state_gb, run.save_rate, run.lumps = rng.uniform(0.5, 4), 1500.0, run.calm(1e9)
    run.accounted = rng.random() < 0.5
    return run


def exports(rng: random.Random) -> Run:
    """Merges the LoRA into the base and writes 24 GB at the end."""
    run = usual(rng)
    run.export = (rng.uniform(60, 900), replace(run.reading(Load(cpu=0.9)), write=40e6))
    return run


def leaves_slowly(rng: random.Random) -> Run:
    """All is saved and told; the process still uploads, joins its workers and frees its memory for minutes."""
    run = usual(rng)
    run.leave = (run.calm(rng.uniform(60, 600)), Load(cpu=rng.choice((0.002, 0.05, 1.0)), read=rng.choice((0.0, 3e6))))
    return run


SETUPS: tuple[Setup, ...] = (
    smooth,
    colab,
    network_volume,
    download_in_bytes,
    download_in_files,
    flaky_download,
    hashed_download,
    silent_load,
    quantises,
    text_on_cpu,
    big_dataset,
    long_samples,
    samples_on_cpu,
    offloaded_samples,
    samples_reload_text,
    whole_states,
    lumpy_saves,
    exports,
    leaves_slowly,
)
