"""Memory and arithmetic of torch code while it runs, on any device: of fake tensors (meta device) or of real ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .allocator import least_reserve, reserve

_aten = torch.ops.aten
ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""torch counts a GPU's attention; a CPU's, and so that of fake tensors, is the same arithmetic under other names."""


class Live(TorchDispatchMode):
    """Counts bytes of the storages that live at a time, and floating point operations (2 for a multiply-add).

    `known` are tensors that were there before: weights, gradients, inputs. They do not count.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.flops = 0
        before = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in known}
        self._held = list(before.values())
        self._seen: dict[int, Any] = dict.fromkeys(before)
        self._changes: list[tuple[int, int]] = []

    def reserves(self) -> tuple[int, int]:
        """Bytes that a GPU's allocator takes beyond the peak and what was there before: at least, and where there is
        room (allocator.py)."""
        there = sum(self._held) + self.peak
        least, most = least_reserve(self._held, self._changes, there), reserve(self._held, self._changes)
        return least - there, most - there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = ATTENTION.get(func._overloadpacket, func._overloadpacket)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for item in tree_leaves(out):
            if isinstance(item, torch.Tensor):
                self._see(item)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and hasattr(tensor, "qdata"):
            return  # a quantised weight: its inner tensors were seen when they were made
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return

        number = len(self._changes)

        def gone(_: object) -> None:
            self.now -= size
            self._seen.pop(key, None)
            self._changes.append((number, -size))

        self._seen[key] = weakref.ref(storage, gone)
        self._changes.append((number, size))
        self.now += size
        self.peak = max(self.peak, self.now)
