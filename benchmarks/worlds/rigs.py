"""The machines and habits that runs are drawn from: rented and own GPUs, what they take for a step, their disks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from benchmarks.worlds.story import Device, Load


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU model; `step`: seconds of a step at 512 pixels and batch 1, with what its memory demands (fp8, swap)."""

    name: str
    memory_gib: float
    watts: float
    step: float
    idle: float


CARDS = {
    card.name: card
    for card in (
        Card("NVIDIA GeForce RTX 3060", 12.0, 170, 9.0, 0.15),
        Card("NVIDIA GeForce RTX 4060 Ti", 16.0, 165, 6.5, 0.12),
        Card("Tesla T4", 15.0, 70, 24.0, 0.38),
        Card("NVIDIA GeForce RTX 3090", 24.0, 350, 3.1, 0.10),
        Card("NVIDIA GeForce RTX 4090", 24.0, 450, 1.6, 0.08),
        Card("NVIDIA RTX A5000", 24.0, 230, 3.4, 0.11),
        Card("NVIDIA L4", 23.0, 72, 6.0, 0.40),
        Card("NVIDIA GeForce RTX 5090", 32.0, 575, 1.1, 0.07),
        Card("NVIDIA A40", 45.0, 300, 2.9, 0.25),
        Card("NVIDIA L40S", 45.0, 350, 1.5, 0.24),
        Card("NVIDIA A100-SXM4-80GB", 80.0, 400, 1.2, 0.17),
        Card("NVIDIA H100 80GB HBM3", 80.0, 700, 0.8, 0.17),
    )
}
SMALL = ("NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 4060 Ti", "Tesla T4")

# Loads of usual work. Means; what runs draw around them is in Story.
COMPUTE = Load(gpu=97, spread=3, zeros=0.01, power=0.88, cpu=1.05)
SWAP = Load(gpu=70, spread=22, zeros=0.18, power=0.5, cpu=1.7)  # blocks travel between RAM and GPU
DENOISE = Load(gpu=98, spread=2, zeros=0.01, power=0.92, cpu=1.0)
ENCODE = Load(gpu=60, spread=30, zeros=0.3, power=0.5, cpu=1.3)
LOADER = Load(cpu=2.0, read=2e6)  # waits for pictures that workers decode
PYTHON = Load(cpu=1.0)  # one thread computes: a cast, a hash, a collection
CORES = Load(cpu=6.0)  # torch on all cores
QUIET = Load(cpu=0.002)  # waits: for a server, a lock, a retry
UNINTERRUPTIBLE = Load(cpu=0.0)  # in the kernel, for a disk: not even timers run


def devices(rng: random.Random, card: Card, count: int = 1) -> list[Device]:
    """So many GPUs of one model, as the run's."""
    first = rng.choice((0, 0, 0, 1, 5))
    return [
        Device(
            first + i, f"GPU-{rng.getrandbits(64):016x}", card.name, card.memory_gib, float(card.watts), idle=card.idle
        )
        for i in range(count)
    ]
