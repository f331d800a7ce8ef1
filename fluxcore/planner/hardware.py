"""GPUs by their memory, and what is stated of their speed. Sources beside each number; nothing is fitted."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT_BYTES = 781 << 20
"""What a process takes of the GPU before its first tensor: the CUDA context and PyTorch's kernels. 781 MB are what
nvidia-smi shows in https://github.com/pytorch/pytorch/issues/34323; drivers that load kernels late take less."""

UTILISATION = 0.4
"""Share of a GPU's stated speed that a training reaches: an assumption, not a measurement of ours. PaLM reports 46%
(model FLOPs utilisation, https://arxiv.org/abs/2204.02311, table 3) and Megatron-LM about 50% on A100s
(https://arxiv.org/abs/2104.04473) at far larger batches than a LoRA's."""

BUS_BYTES = 25e9
"""Bytes a second from pinned host memory to a GPU: PCIe 4.0 × 16 carries 31.5 GB/s, about four fifths of it in
practice. Blocks that are swapped cross it."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in GiB as nvidia-smi shows it, and its maker's TFLOP/s of dense bf16 (fp16 for T4) with 32-bit
    accumulation."""

    name: str
    gib: float
    tflops: float


GPUS = (
    Gpu("T4 (Colab)", 15.0, 65.0),
    Gpu("RTX 3060", 12.0, 25.5),
    Gpu("RTX 4060 Ti", 16.0, 44.1),
    Gpu("RTX 3090", 24.0, 71.2),
    Gpu("RTX 4090", 24.0, 165.2),
    Gpu("L4", 22.5, 121.0),
    Gpu("A10G", 22.5, 70.0),
    Gpu("RTX A6000", 48.0, 154.8),
    Gpu("L40S", 45.0, 362.0),
    Gpu("A100 40 GB", 40.0, 312.0),
    Gpu("A100 80 GB", 80.0, 312.0),
    Gpu("H100 80 GB", 79.6, 989.4),
)
"""From NVIDIA's data sheets and architecture white papers (GA102, Ada, A100, H100); a card with error correction or a
display on it shows less memory than its name says."""


def size_of(vram: str) -> int:
    """Bytes of a GPU of the preset `vram`, such as 24G."""
    return int(vram.rstrip("Gg")) << 30
