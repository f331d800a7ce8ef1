"""Libraries that diffusers and peft would import although a training seldom needs them: each takes about a second.

They look for them once, when they are imported, and then do without. What a setting needs is shown first.
"""

from __future__ import annotations

import sys

SELDOM = ("torchao", "bitsandbytes")
"""torchao holds a quantised base (frozen.py), bitsandbytes has optimizers of 8 bit (training/optimizers.py)."""


def hide_seldom_needed() -> None:
    """Let `import` not find them, where nobody has imported who counts on them (a notebook)."""
    if not {"diffusers", "peft", "transformers"} & sys.modules.keys():
        for name in SELDOM:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def show(name: str) -> None:
    """Let `import` find it again."""
    if sys.modules.get(name, "") is None:
        del sys.modules[name]
