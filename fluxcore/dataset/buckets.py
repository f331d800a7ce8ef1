"""Aspect-ratio buckets: the sizes that pictures are trained at. Names of the settings as in sd-scripts. No torch."""

from __future__ import annotations

import math
from functools import lru_cache

SMALL = 256
"""Below this resolution buckets go in steps of 16 pixels, FLUX's smallest, and may be half as long as wide."""
SMALL_STEP = 16

Size = tuple[int, int]
"""Width and height in pixels."""


@lru_cache
def bucket_sizes(resolution: int, smallest: int, largest: int, step: int) -> tuple[Size, ...]:
    """Every size of an area of at most `resolution`², each side a multiple of `step` within the limits.

    For each width the greatest height that fits. A resolution below SMALL has steps of 16 and a least side of half of
    it, whatever is asked for; a greatest side below the resolution is taken as the resolution.
    """
    if resolution < SMALL:
        step, smallest = SMALL_STEP, min(smallest, resolution // 2)
    largest = max(largest, resolution) // step * step
    smallest = -(-min(smallest, resolution) // step) * step
    sizes = {(resolution // step * step,) * 2} if resolution >= step else set()
    for width in range(smallest, largest + 1, step):
        height = min(largest, resolution * resolution // width // step * step)
        if height >= smallest:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def choose_bucket(
    picture: Size, resolution: int, *, smallest: int, largest: int, step: int, no_upscale: bool = True
) -> Size:
    """The size at which a picture of `picture` pixels is trained: the bucket of the nearest aspect ratio.

    With `no_upscale` a picture too small for it has a bucket of its own, its sides rounded down to the step (only one
    smaller than a step is enlarged). Of two buckets equally near, the larger one.
    """
    width, height = picture
    buckets = bucket_sizes(resolution, smallest, largest, step)
    ratio = math.log(width / height)
    best = min(buckets, key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1], size))
    if not no_upscale or (best[0] <= width and best[1] <= height):
        return best
    step = SMALL_STEP if resolution < SMALL else step
    scale = min(1.0, resolution / math.sqrt(width * height))
    longest = max(largest, resolution) // step * step
    return _down(width * scale, step, longest), _down(height * scale, step, longest)


def _down(side: float, step: int, longest: int) -> int:
    return min(longest, max(step, int(side) // step * step))
