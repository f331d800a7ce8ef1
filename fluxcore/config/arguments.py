"""Settings that hold several values in one line. No torch, no pydantic."""

from __future__ import annotations

import ast
from typing import Any

OPTIMIZER_RULE = "must be name=value pairs with spaces between them, such as weight_decay=0.1 betas=0.9,0.99"
BLOCKS_RULE = "must be all, none, or block numbers such as 0,3-7"


def parse_optimizer_args(text: str) -> dict[str, Any]:
    """sd-scripts' `optimizer_args`: values are Python's numbers, booleans, None, strings and tuples of them.

    Raises ValueError with the rule.
    """
    found: dict[str, Any] = {}
    for pair in text.split():
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or name in ("lr", "params"):
            raise ValueError(OPTIMIZER_RULE)
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(OPTIMIZER_RULE) from None
    return found


def parse_blocks(text: str) -> frozenset[int] | None:
    """Block numbers of `all` (None: every one), `none`, or `0,3-7`. Raises ValueError with the rule."""
    words = text.replace(" ", "").lower()
    if words in ("", "all"):
        return None
    found: set[int] = set()
    for part in words.split(",") if words != "none" else []:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or max(len(first), len(last)) > 4:
            raise ValueError(BLOCKS_RULE)
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
