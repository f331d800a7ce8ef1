"""The exact arithmetic between one LoRA of a fused linear layer and one LoRA a projection.

FLUX.1 as Black Forest Labs wrote it has q, k and v in one linear layer (`attn_qkv`), and in its single blocks q, k, v
and the MLP (`linear1`); diffusers has a linear layer for each of them. Nothing is rounded on the way:

- One LoRA a projection -> fused: the downs are stacked, the ups stand block-diagonally, the rank is the sum of the
  ranks and alpha the sum of the alphas, so alpha / rank stays. A projection that was not trained has no block.
- Fused and block-diagonal -> the blocks are taken apart again, bit for bit as they were.
- Fused and dense, as sd-scripts trains it -> every projection gets the whole down and its own rows of the up. Where
  all projections of a fused layer share one down they become that dense LoRA again: bit for bit there and back too.

Known limits. A column of zeros in an up belongs to no projection: where ranks differ or projections are missing, one at
the border of two blocks may change sides (what the LoRA adds to the weights stays the same). Zeros off the blocks come
back as positive ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

MLP_RATIO = 4  # FLUX.1's, at every width


class LoraFormatError(ValueError):
    """The tensors or the file are no LoRA that can be read or converted; the message says what to do."""


def alpha_tensor(alpha: float, dtypes: Sequence[torch.dtype]) -> Tensor:
    """A 0-d tensor of the first dtype that holds `alpha` exactly; the last one is float64 and holds every float."""
    return next(t for t in (torch.tensor(alpha, dtype=dtype) for dtype in dtypes) if t.item() == alpha)


def times(up: Tensor, scale: Fraction, dtype: torch.dtype | None = None) -> Tensor:
    """`scale * up`, rounded into `dtype` (None = its own); times its inverse gives the up back where that holds it."""
    return (up.double() * float(scale)).to(dtype or up.dtype)


@dataclass(frozen=True)
class LoraModule:
    """One low-rank pair: it adds `alpha / rank * up @ down` to a linear layer's weight.

    `down` is (rank, in_features), `up` is (out_features, rank); alpha and rank have no unit.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The rows of `down`."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> Fraction:
        """alpha / rank, exactly."""
        return Fraction(self.alpha) / self.rank


def split_fused(name: str, module: LoraModule, count: int) -> list[LoraModule | None]:
    """A fused layer's LoRA -> one per projection, None for a projection that it leaves alone.

    `count` is 3 (q, k, v) or 4 (q, k, v, MLP); `name` is for the error. The results share no memory with `module`.
    Raises LoraFormatError where the shapes give no width.
    """
    rows = module.up.split(_row_counts(name, count, module.down.shape[1], module.up.shape[0]))
    ranks = _block_ranks(torch.stack([(part != 0).any(dim=0) for part in rows]))
    alphas = [alpha for alpha in (_exact(module.scale * rank) for rank in ranks) if alpha is not None]
    if not ranks or len(alphas) < len(ranks):
        # Dense; or an alpha that is no float, such as 1/3 (sd-scripts' own `split_qkv` saves alpha 1 over rank 3r):
        # only the dense way is exact then.
        return [LoraModule(module.down.clone(), part.clone(), module.alpha) for part in rows]
    parts: list[LoraModule | None] = []
    start = 0
    for part, rank, alpha in zip(rows, ranks, alphas, strict=True):
        block = slice(start, start + rank)
        start += rank
        parts.append(LoraModule(module.down[block].clone(), part[:, block].clone(), alpha) if rank else None)
    return parts


def fuse(name: str, parts: Sequence[LoraModule | None]) -> LoraModule:
    """One LoRA per projection (None: not trained) -> the fused layer's, the inverse of split_fused.

    `parts` are q, k, v, or q, k, v, MLP, at least one of them not None. Projections whose scale is another's times a
    power of two have it put into their down, as that is exact. Raises LoraFormatError where scales differ otherwise
    (a fused layer has but one), or where the shapes give no width.
    """
    present = [part for part in parts if part is not None]
    width = int(present[0].down.shape[1])
    sizes = _row_counts(name, len(parts), width)
    for part, size in zip(parts, sizes, strict=True):
        if part is not None and (part.down.shape[1], part.up.shape[0]) != (width, size):
            raise LoraFormatError(
                f"{name}: the model's width can't be derived. A projection maps {part.down.shape[1]} features to "
                f"{part.up.shape[0]}; from {width} to {size} was expected. Is this a LoRA of FLUX.1?"
            )
    one = present[0]
    if len(present) == len(parts) and all(p.alpha == one.alpha and _same(p.down, one.down) for p in present):
        return LoraModule(one.down, torch.cat([part.up for part in present]), one.alpha)

    scale = min(part.scale for part in present)
    rank = sum(part.rank for part in present)
    alpha = _exact(scale * rank)
    downs = [down for part in present if (down := _rescaled(part.down, part.scale, scale)) is not None]
    if alpha is None or len(downs) < len(present):
        raise LoraFormatError(
            f"{name}: its projections have the scales (alpha / rank) {', '.join(str(p.scale) for p in present)}, and "
            "sd-scripts' form has one for all of them, so it can't hold them exactly. Train them with one "
            "alpha / rank, or keep the file in diffusers' form."
        )
    dtype = functools.reduce(torch.promote_types, (part.up.dtype for part in present))
    up = torch.zeros(sum(sizes), rank, dtype=dtype, device=one.up.device)
    row = column = 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            up[row : row + size, column : column + part.rank] = part.up
            column += part.rank
        row += size
    return LoraModule(torch.cat(downs), up, alpha)


def fuse_blocks(downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Downs stacked and ups block-diagonal, whatever stands in them; one pair stays as it is."""
    return (downs[0], ups[0]) if len(downs) == 1 else (torch.cat(list(downs)), torch.block_diag(*ups))


def split_blocks(
    name: str, down: Tensor, up: Tensor, sizes: Sequence[int], *, dense: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """The inverse of fuse_blocks for projections of equal rank: downs and ups, which share no memory with the input.

    `sizes`: each projection's output features. `dense`: all of them share the down. Raises LoraFormatError where the
    up has other rows, or anything off its blocks.
    """
    if sum(sizes) != up.shape[0]:
        raise LoraFormatError(f"{name} writes {up.shape[0]} features, not {sum(sizes)}: it is another model's.")
    rows = up.split(list(sizes))
    if dense:
        return [down.clone() for _ in sizes], [part.clone() for part in rows]
    rank = down.shape[0] // len(sizes)
    ups = [part[:, i * rank : (i + 1) * rank].clone() for i, part in enumerate(rows)]
    if sum(int(part.count_nonzero()) for part in ups) != int(up.count_nonzero()):
        raise LoraFormatError(f"{name} has one LoRA of rank {down.shape[0]} for all of its projections.")
    return [part.clone() for part in down.chunk(len(sizes))], ups


def _row_counts(name: str, count: int, width: int, rows: int | None = None) -> list[int]:
    """The output features of a fused layer's projections; the width is what the layer reads, so the down tells it."""
    sizes = [width] * 3 + [MLP_RATIO * width] * (count - 3)
    if rows is not None and sum(sizes) != rows:
        raise LoraFormatError(
            f"{name}: the model's width can't be derived. It reads {width} features, so it should write "
            f"{sum(sizes)}; it writes {rows}. Is this a LoRA of FLUX.1?"
        )
    return sizes


def _block_ranks(used: Tensor) -> list[int]:
    """The rank of each projection's block (0: it has none), or [] where the up is not block-diagonal.

    `used` is bool (projections, rank): whether a projection's rows have anything but zeros in that column of the up.
    """
    count, rank = used.shape
    if rank % count == 0:
        # Equal blocks come first, as in diffusers' reader: a LoRA whose ups are still zero keeps its blocks that way.
        block = torch.arange(rank, device=used.device) // (rank // count)
        if not (used & (block != torch.arange(count, device=used.device)[:, None])).any():
            return [rank // count] * count
    if not used.any() or used.sum(dim=0).max() > 1:
        return []
    owners = [column.index(True) if any(column) else -1 for column in used.T.tolist()]
    first = next(owner for owner in owners if owner >= 0)
    for i, owner in enumerate(owners):
        if owner < 0:  # a column of zeros goes with the one before it
            owners[i] = owners[i - 1] if i else first
    return [owners.count(projection) for projection in range(count)] if owners == sorted(owners) else []


def _rescaled(down: Tensor, scale: Fraction, common: Fraction) -> Tensor | None:
    """`down` times scale / common, or None where that factor is no power of two or its product not exact."""
    if scale == common:
        return down
    factor = _exact(scale / common) if common > 0 else None
    if factor is None or math.frexp(factor)[0] != 0.5:
        return None
    result = down * factor
    return result if torch.equal(result / factor, down) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _exact(value: Fraction) -> float | None:
    number = float(value)
    return number if Fraction(number) == value else None
