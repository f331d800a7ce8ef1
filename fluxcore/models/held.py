"""How the frozen base is held in memory: names and counts, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

Held = Literal["none", "fp8", "int8", "nf4"]
"""How weights are held: as they were loaded, in 8-bit floats or integers with a scale for each row, or in NF4 (4 bits,
64 values a block, their scales in 8 bits)."""


def swapped_blocks(blocks_to_swap: int, doubles: int, singles: int) -> tuple[int, int]:
    """How many double and single blocks of so many stay in the host's memory: half of `blocks_to_swap` are double
    blocks, each of the others is two single ones, as in sd-scripts."""
    return min(doubles, blocks_to_swap // 2), min(singles, 2 * (blocks_to_swap - blocks_to_swap // 2))


def held(config: RunConfig) -> Held:
    """How a config asks for its base to be held; `quantize_base`, where it is set, goes before `fp8_base`."""
    if config.quantize_base != "none":
        return cast(Held, config.quantize_base)
    return "fp8" if config.fp8_base else "none"
