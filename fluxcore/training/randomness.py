"""Randomness without generators to restore: every draw is a function of (seed, what for, step, sample).

So a resumed training, one with another number of GPUs, and one that drew samples in between see the same order,
noise, noise levels and dropout, to the bit.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch


def seed_for(*key: int | str) -> int:
    """A 63-bit seed from `key`, the same everywhere."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*key)`."""
    return torch.Generator().manual_seed(seed_for(*key))


def epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order in which `count` items are seen in `epoch` (from 1)."""
    return torch.randperm(count, generator=generator_for(seed, "order", epoch)).tolist()


@lru_cache(maxsize=2)
def epoch_batches(
    seed: int, epoch: int, groups: tuple[int, ...], batch_sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], ...]:
    """The epoch's order cut into batches of one group each; `groups` has each item's, `batch_sizes` each group's.

    A group's last batch may be smaller. Where there are several groups, the batches are in random order.
    """
    waiting: list[list[int]] = [[] for _ in batch_sizes]
    batches = []
    for item in epoch_order(seed, epoch, len(groups)):
        batch = waiting[groups[item]]
        batch.append(item)
        if len(batch) == batch_sizes[groups[item]]:
            batches.append(tuple(batch))
            batch.clear()
    batches += [tuple(batch) for batch in waiting if batch]
    if len(batch_sizes) > 1:
        order = torch.randperm(len(batches), generator=generator_for(seed, "batches", epoch)).tolist()
        batches = [batches[i] for i in order]
    return tuple(batches)


def step_items(
    seed: int, step: int, groups: tuple[int, ...], batch_sizes: tuple[int, ...], accumulated: int = 1
) -> tuple[tuple[int, ...], ...]:
    """The items of optimizer step `step` (from 1), by batch: `accumulated` batches, at an epoch's end maybe fewer."""
    per_epoch = -(-len(epoch_batches(seed, 1, groups, batch_sizes)) // accumulated)
    epoch, number = divmod(step - 1, per_epoch)
    batches = epoch_batches(seed, epoch + 1, groups, batch_sizes)
    return batches[number * accumulated : (number + 1) * accumulated]


def step_noise(seed: int, step: int, samples: int, shape: tuple[int, ...], first: int = 0) -> torch.Tensor:
    """Normal noise (samples, *shape) of a step from its sample `first` on, one generator a sample."""
    numbers = range(first, first + samples)
    return torch.stack([torch.randn(shape, generator=generator_for(seed, "noise", step, i)) for i in numbers])


def step_normal(seed: int, step: int, samples: int, first: int = 0) -> torch.Tensor:
    """One normal number a sample (samples,), from which its noise level is made."""
    numbers = range(first, first + samples)
    return torch.stack([torch.randn((), generator=generator_for(seed, "sigma", step, i)) for i in numbers])


def step_uniform(seed: int, step: int, what: str, sample: int) -> float:
    """A uniform number in 0..1 by which `what` is decided for a sample, such as whether its caption is dropped."""
    return float(torch.rand((), generator=generator_for(seed, what, step, sample)))
