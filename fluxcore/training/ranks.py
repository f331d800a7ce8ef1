"""The processes that train one run together, one a GPU: who they are, and what they agree upon.

Each has the whole LoRA and trains batches of its own of the same step; the gradients are summed by DDP at the step's
end, in one go, so that ranks may have more or fewer batches than others, or be short of memory alone. From then on all
of them do the same at the same time: validation, samples and stops included. Only the first writes files and events.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import check_cuda_p2p_ib_support
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fluxcore.log import PatientLog

from .failures import Exit, TrainingError
from .launch import RENDEZVOUS

T = TypeVar("T")
CACHE_HOURS = 12
"""How long the others wait for the first process to fetch the model and to encode pictures and captions."""

SILENT_HOURS = 3
"""How long a process waits for another one within a step. Longer than the runner's own patience, which knows more."""

LOOK_SECONDS = 0.2


class Silence(PatientLog):
    """The event log of all processes but the first."""

    def __init__(self) -> None:
        pass

    @property
    def attempt(self) -> int | None:
        return None

    def append(self, *args: Any, **kwargs: Any) -> None:
        pass

    def drain(self, seconds: float) -> bool:
        return True


class Ranks:
    """One process that trains alone; `join` makes it one of several. `rank` is its number, from 0."""

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None) -> None:
        self.rank, self.count = rank, count
        self.sharded = False
        self._store = store
        self._together = False
        self._gradients: nn.Module | None = None
        self._device = torch.device("cpu")

    @classmethod
    def join(cls) -> Ranks:
        """Meet the others that the environment tells of. Raises TrainingError where there are too few GPUs."""
        rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        cuda = torch.cuda.is_available()
        if cuda:
            if local >= (there := torch.cuda.device_count()):
                raise TrainingError(
                    Exit.BAD_CONFIG,
                    f"{count} processes need as many GPUs, but the run has {there}: name each GPU once in gpu_ids, and "
                    "set num_processes to 0",
                )
            torch.cuda.set_device(local)
            if not check_cuda_p2p_ib_support():  # GeForce 40: NCCL hangs on what these lack
                os.environ.update({"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"})
        patience = timedelta(hours=SILENT_HOURS)
        url = os.environ.get(RENDEZVOUS, "env://")
        store, _, _ = next(dist.rendezvous(url, rank, count, timeout=patience))
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=count, timeout=patience,
            device_id=torch.device("cuda", local) if cuda else None,
        )  # fmt: skip
        return cls(rank, count, store)

    @property
    def first(self) -> bool:
        """Whether this one writes events and files."""
        return self.rank == 0

    def accelerator(self) -> Accelerator:
        """Accelerate's, which must see all of us: it has been known to train alone without a word."""
        made = Accelerator(
            cpu=self.count > 1 and not torch.cuda.is_available(),
            mixed_precision="no",  # precision is train.py's matter, on the base alone
            step_scheduler_with_optimizer=False,  # else it steps once for each process
        )
        if made.num_processes != self.count or made.process_index != self.rank:
            raise TrainingError(
                Exit.CRASH, f"accelerate sees {made.num_processes} processes where {self.count} were started"
            )
        self._device = made.device
        return made

    def prepare(self, accelerator: Accelerator, parameters: list[nn.Parameter], *others: Any) -> tuple[Any, ...]:
        """Let accelerate have the trained parameters (DDP gives all processes the first one's values) and `others`,
        the optimizer and its schedule, which come back. From now on all processes act together."""
        self._gradients, *prepared = accelerator.prepare(_Gradients(parameters), *others)
        if self.count > 1 and not isinstance(self._gradients, DistributedDataParallel):
            raise TrainingError(Exit.CRASH, "accelerate did not tie the processes to each other (no DDP)")
        self._together = True
        return tuple(prepared)

    def add_gradients(self) -> None:
        """Make each gradient the mean of all processes' gradients; those that have none count as zero."""
        if self.count > 1:
            assert self._gradients is not None
            self._gradients().backward()

    def totals(self, *numbers: float) -> list[float]:
        """The sum over all processes of each number. Before `prepare` each process speaks for itself."""
        if self.count == 1 or not self._together:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.totals(float(flag))[0] > 0

    def same(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, device=self._device)
        return holder[0]

    @contextmanager
    def in_turn(self, what: str, heed_stop: Callable[[], None]) -> Iterator[None]:
        """The first process does what is within, then the others, who find it done. `what` is said once in a training.

        Raises what `heed_stop` raises while it waits, and TrainingError after `CACHE_HOURS`.
        """
        if self.count > 1 and not self.first:
            deadline = time.monotonic() + CACHE_HOURS * 3600
            while not self._store.check([what]):
                heed_stop()
                if time.monotonic() > deadline:
                    raise TrainingError(
                        Exit.CRASH, f"the first process did not get done with {what} in {CACHE_HOURS} h"
                    )
                time.sleep(LOOK_SECONDS)
        yield
        if self.count > 1 and self.first:
            self._store.set(what, b"1")

    def leave(self) -> None:
        """Part from the others in good order, once all is done."""
        if self.count > 1:
            dist.destroy_process_group()

    def fails_first(self) -> bool:
        """Whether no other process has failed before this one: then it is this one's to say why."""
        try:
            return self.count == 1 or self._store.add("failed", 1) == 1
        except (RuntimeError, OSError):
            return True

    def share(self, transformer: nn.Module, trained: list[nn.Parameter]) -> None:
        """Split the frozen base, block by block, over all processes (FSDP2); the LoRA stays whole in each.

        A block is put together for its forward and for its backward pass, so all processes must do as many of them.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self._device.type, (self.count,))
        whole = set(trained)
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            fully_shard(block, mesh=mesh, ignored_params=whole)
        fully_shard(transformer, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
        self.sharded = True


class _Gradients(nn.Module):
    """The trained parameters, as the module that DDP wraps; its output is a zero that depends on all of them.

    Batches go through the transformer itself, which DDP does not know of, and add to the gradients of this process;
    the backward pass of that zero adds nothing, but has DDP sum what is there.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)

    def forward(self) -> torch.Tensor:
        return _Zero.apply(*self.trained)


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.shapes = [parameter.shape for parameter in parameters]
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zero = torch.zeros_like(gradient)
        return tuple(zero.expand(shape) for shape in ctx.shapes)


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone, as NCCL and gloo say it."""
    if isinstance(error, dist.DistError):
        return True
    words = ("connection closed by peer", "connection reset by peer", "connection refused", "gloo/transport")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
