"""Values of other trainers' configs as FluxGym's, for foreign.py and ai_toolkit.py."""

from __future__ import annotations

import math
from typing import Any

from fluxcore.errors import UserError
from fluxcore.trainers import DEFAULT_TRAINER

from .schema import RunConfig

Left = list[str]
OPTIMIZERS = {"pagedadamw": "adamw", "pagedadamw8bit": "paged_adamw8bit", "adamw8bit_paged": "paged_adamw8bit"}
NOTHING = ("", None, False, 0, "0", "none", "None")
"""A key that is switched off asks for nothing, so that leaving it out changes nothing."""


class ForeignError(UserError):
    """A file that is no config of a known kind."""


def optimizer(value: Any) -> dict[str, Any] | None:
    """The same optimizer, or its relative with moments in 32 bit."""
    kind = str(value).lower()
    kind = kind if allowed("optimizer_type", kind) else OPTIMIZERS.get(kind, kind)
    return {"optimizer_type": kind} if allowed("optimizer_type", kind) else None


def resolution(value: Any) -> dict[str, Any] | None:
    """One number, "512,512", or [512, 768, 1024]: a square of the same area, or the largest of several; None where
    that is none of this trainer's sizes."""
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        return None
    if not numbers:
        return None
    side = max(numbers) if isinstance(value, list) else math.isqrt(numbers[0] * numbers[-1])
    return {"resolution": max(16, side // 16 * 16)}


def allowed(name: str, value: Any) -> bool:
    """Whether a setting of a few values has this one."""
    annotation = RunConfig.model_fields[name].annotation
    return value in getattr(annotation, "__args__", ())


def fields_only(found: dict[str, Any], left: Left) -> tuple[dict[str, Any], list[str]]:
    """What is a setting; the rest joins the names left out."""
    known = {name: value for name, value in found.items() if name in RunConfig.model_fields}
    known.setdefault("trainer", DEFAULT_TRAINER)
    return known, sorted({*left, *(name for name in found if name not in known)})
