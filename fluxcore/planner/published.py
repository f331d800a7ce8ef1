"""What others have published of the memory that a FLUX.1 LoRA takes, and the planner's figure of the same settings.

The planner knows only this project's trainer: another one may hold more (a VAE, text encoders, gradients in other
types) or less. Where settings are not stated they are guessed, and named as guesses. Nothing is fitted to any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fluxcore.config import resolve_config
from fluxcore.units import gib

from .plan import make_plan, measure_kept
from .request import request_of

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0)"
"""diffusers' scripts by default."""

QLORA = "https://huggingface.co/blog/flux-qlora"
SIMPLE_TUNER = "https://github.com/bghira/SimpleTuner/blob/main/documentation/quickstart/FLUX.md"
SD_SCRIPTS = "https://github.com/kohya-ss/sd-scripts/blob/main/docs/flux_train_network.md"
HASUI = "https://huggingface.co/kohya-ss/misc-models"
DIFFUSERS = "https://github.com/huggingface/diffusers/blob/main/examples/dreambooth/README_flux.md"


@dataclass(frozen=True)
class Published:
    """A figure in GiB: `about` it, `over` it, or settings that are said to fit `within` it. `guessed`: not stated."""

    what: str
    kind: Literal["about", "over", "within"]
    figure: float
    source: str
    settings: dict[str, Any]
    asked: dict[str, Any] = field(default_factory=dict)
    guessed: str = ""


def _flux(**settings: Any) -> dict[str, Any]:
    common = {"base_model": "flux-dev", "vram": "80G", "fp8_base": False, "gradient_checkpointing": True}
    return {**common, "train_batch_size": 1, **settings}


_QLORA = {"size": [768, 512], "tokens": 77, "targets": ATTENTION}
PUBLISHED = (
    Published("diffusers, NF4, 512 × 768, rank 4", "about", 9, QLORA, _flux(quantize_base="nf4"), _QLORA),
    Published("diffusers, bf16, 512 × 768, rank 4", "about", 26, QLORA, _flux(), _QLORA),
    Published(
        "diffusers, unquantised, rank 16, all layers", "over", 40, DIFFUSERS,
        _flux(network_dim=16, resolution=1024, gradient_checkpointing=False),
        guessed="1024 pixels, no gradient checkpointing",
    ),
    Published("sd-scripts, bf16, 1024 pixels, rank 4", "over", 26, HASUI, _flux(resolution=1024)),
    Published(
        "SimpleTuner, bf16, rank 16, all layers", "over", 30, SIMPLE_TUNER, _flux(network_dim=16, resolution=1024),
        guessed="1024 pixels",
    ),
    Published(
        "SimpleTuner, int8, rank 16, all layers", "over", 18, SIMPLE_TUNER,
        _flux(network_dim=16, resolution=1024, quantize_base="int8"), guessed="1024 pixels",
    ),
    Published(
        "SimpleTuner, NF4, rank 16, all layers", "over", 9, SIMPLE_TUNER,
        _flux(network_dim=16, resolution=1024, quantize_base="nf4"), guessed="1024 pixels",
    ),
    Published(
        "sd-scripts, fp8, batch 2", "within", 24, SD_SCRIPTS,
        _flux(fp8_base=True, resolution=1024, network_dim=16, train_batch_size=2), guessed="1024 pixels, rank 16",
    ),
    *(
        Published(
            f"sd-scripts, fp8, {swap} blocks swapped", "within", size, SD_SCRIPTS,
            _flux(fp8_base=True, resolution=1024, network_dim=16, blocks_to_swap=swap, optimizer_type="adafactor"),
            guessed="1024 pixels, rank 16" + (", how many blocks" if size == 16 else ""),
        )
        for size, swap in ((16, 9), (12, 16), (10, 22), (8, 28))
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A published figure and the planner's, both in GiB, of the training itself."""

    entry: Published
    planned: float

    @property
    def holds(self) -> bool | None:
        """Whether the published bound holds for the plan; None where the figure is no bound."""
        if self.entry.kind == "about":
            return None
        return self.planned > self.entry.figure if self.entry.kind == "over" else self.planned <= self.entry.figure

    @property
    def difference(self) -> float:
        """The plan's difference to the published figure, as a share of it."""
        return self.planned / self.entry.figure - 1

    def cells(self) -> list[Any]:
        """For a table: what, published, planned, holds, difference."""
        entry = self.entry
        what = entry.what + (f" (guessed: {entry.guessed})" if entry.guessed else "")
        holds = "" if self.holds is None else "yes" if self.holds else "no"
        return [what, f"{entry.kind} {entry.figure:g}", f"{self.planned:.1f}", holds, f"{self.difference:+.0%}"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        entry = self.entry
        return {
            "what": entry.what, "kind": entry.kind, "published_gib": entry.figure, "planned_gib": self.planned,
            "holds": self.holds, "difference": self.difference, "guessed": entry.guessed, "source": entry.source,
        }  # fmt: skip


def compare(outputs: Path, told: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Every published figure beside the planner's; `told` hears what is measured meanwhile."""
    rows = []
    for entry in PUBLISHED:
        config = resolve_config(entry.settings)
        told(f"{entry.what} …")
        found = measure_kept({**request_of(config), **entry.asked}, outputs)
        made = make_plan(config, 0, found)
        training = next(phase for phase in made.phases if phase.name == "train")
        told(f"{entry.what}: {gib(training.total)}")
        rows.append(Row(entry, training.total / 2**30))
    return rows
