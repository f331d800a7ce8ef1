"""Randomness without generators to restore: every draw is a function of (seed, what for, step, sample).

So a resumed training, one with another number of GPUs, and one that drew samples in between see the same order,
noise, noise levels and dropout, to the bit.
"""

from __future__ import annotations

import hashlib

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


def step_items(seed: int, step: int, count: int, batch_size: int) -> list[int]:
    """The items of optimizer step `step` (from 1): the epoch's order cut into batches, the last one maybe smaller."""
    per_epoch = -(-count // batch_size)
    epoch, batch = divmod(step - 1, per_epoch)
    return epoch_order(seed, epoch + 1, count)[batch * batch_size : (batch + 1) * batch_size]


def step_noise(seed: int, step: int, samples: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal noise (samples, *shape) of a step, one generator a sample."""
    return torch.stack([torch.randn(shape, generator=generator_for(seed, "noise", step, i)) for i in range(samples)])


def step_normal(seed: int, step: int, samples: int) -> torch.Tensor:
    """One normal number a sample (samples,), from which its noise level is made."""
    return torch.stack([torch.randn((), generator=generator_for(seed, "sigma", step, i)) for i in range(samples)])


def step_uniform(seed: int, step: int, samples: int) -> list[float]:
    """One uniform number in 0..1 a sample, by which its caption is dropped."""
    return [float(torch.rand((), generator=generator_for(seed, "drop", step, i))) for i in range(samples)]
