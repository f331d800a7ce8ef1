"""What others have published of the memory that a FLUX.1 LoRA takes, and the planner's figure of the same settings.

The planner knows only this project's trainer: another one may hold more (a VAE, text encoders, gradients in other
types) or less. Where a publication leaves settings open they are guessed and named as guesses; where it leaves open
what decides, it is planned twice, for the least and for the most (`heaviest`) that it may mean, and a bound that one
keeps and the other doesn't is not judged. Nothing is fitted to any of it.

`about` and `over` count what a process took of a GPU, as nvidia-smi shows it, and so does the plan: with the CUDA
context and all that the allocator takes where there is room. `within` names cards that are enough: there the plan
counts what is needed. GB are read as GiB, as nvidia-smi and the cards' names mean them, except where that can't be:
26 GB on an RTX 4090, which has 24 GiB or 25.8 × 10⁹ bytes.
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


GIB, GB = 1.0, 1e9 / 2**30
STATED_SHARE = 0.15
"""How far the plan may be from a figure whose settings are all stated."""


@dataclass(frozen=True)
class Published:
    """A figure: `about` it, `over` it, or settings that are said to fit `within` it.

    `guessed`: what is not stated. `heaviest`: settings that are open and take the most that may be meant. `unit`: of
    the figure, in GiB.
    """

    what: str
    kind: Literal["about", "over", "within"]
    figure: float
    source: str
    settings: dict[str, Any]
    asked: dict[str, Any] = field(default_factory=dict)
    guessed: str = ""
    heaviest: dict[str, Any] = field(default_factory=dict)
    unit: float = GIB


def _flux(**settings: Any) -> dict[str, Any]:
    common = {"base_model": "flux-dev", "vram": "80G", "fp8_base": False, "gradient_checkpointing": True}
    return {**common, "train_batch_size": 1, "optimizer_type": "adamw8bit", **settings}


def _simple_tuner(held: str, pixels: int = 1024, **settings: Any) -> dict[str, Any]:
    return _flux(network_dim=16, resolution=pixels, quantize_base=held, optimizer_type="adamw", **settings)


_QLORA = {"size": [768, 512], "tokens": 77, "targets": ATTENTION}
_KEPT = {"gradient_checkpointing": False}
_LARGE = {"resolution": 1024}
_OPEN = "1024 pixels, AdamW; gradient checkpointing from every block to none"
"""SimpleTuner's page advises checkpointing, and offers it for every nth block; of these figures it doesn't say."""
PUBLISHED = (
    Published("diffusers, NF4, 512 × 768, rank 4", "about", 9, QLORA, _flux(quantize_base="nf4"), _QLORA, unit=GB),
    Published("diffusers, bf16, 512 × 768, rank 4", "about", 26, QLORA, _flux(), _QLORA, unit=GB),
    Published(
        "diffusers, unquantised, rank 16, all layers", "over", 40, DIFFUSERS,
        _flux(network_dim=16, optimizer_type="prodigy"),
        guessed="Prodigy; from 512 pixels with gradient checkpointing to 1024 without",
        heaviest=_KEPT | _LARGE,
    ),
    Published("sd-scripts, bf16, 1024 pixels, rank 4", "over", 26, HASUI, _flux(resolution=1024)),
    Published(
        "SimpleTuner, bf16, rank 16, all layers", "over", 30, SIMPLE_TUNER, _simple_tuner("none"), guessed=_OPEN,
        heaviest=_KEPT,
    ),
    Published(
        "SimpleTuner, int8, rank 16, all layers", "over", 18, SIMPLE_TUNER, _simple_tuner("int8"), guessed=_OPEN,
        heaviest=_KEPT,
    ),
    Published(
        "SimpleTuner, int4, rank 16, all layers", "over", 13, SIMPLE_TUNER, _simple_tuner("nf4"),
        guessed=f"NF4 for int4; {_OPEN}", heaviest=_KEPT,
    ),
    Published(
        "SimpleTuner, NF4, rank 16, all layers", "over", 9, SIMPLE_TUNER, _simple_tuner("nf4", 512),
        guessed="512 pixels, as with its 9090M; AdamW; gradient checkpointing from every block to none", heaviest=_KEPT,
    ),
    Published(
        "SimpleTuner, NF4, 1024 pixels", "within", 12, SIMPLE_TUNER,
        _simple_tuner("nf4") | {"optimizer_type": "paged_adamw8bit"},
        guessed="rank 16; 8-bit AdamW for its 8-bit Lion",
    ),
    Published(
        "sd-scripts, fp8, batch 2", "within", 24, SD_SCRIPTS,
        _flux(fp8_base=True, network_dim=16, train_batch_size=2), guessed="512 to 1024 pixels", heaviest=_LARGE,
    ),
    *(
        Published(
            f"sd-scripts, fp8, {swap} blocks swapped", "within", size, SD_SCRIPTS,
            _flux(fp8_base=True, network_dim=16, blocks_to_swap=swap),
            guessed="512 to 1024 pixels" + (", how many blocks" if size == 16 else ""), heaviest=_LARGE,
        )
        for size, swap in ((16, 9), (12, 16), (10, 22), (8, 28))
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A published figure and the planner's, in GiB, of the training itself: `planned`, and up to `most` where what
    decides is not stated."""

    entry: Published
    planned: float
    most: float

    @property
    def figure(self) -> float:
        """The published one in GiB."""
        return self.entry.figure * self.entry.unit

    @property
    def holds(self) -> bool | None:
        """Whether the plan keeps the bound, or is near a figure whose settings are stated.

        None where that depends on what is not stated: some of what it may mean keeps the bound, some doesn't.
        """
        kept = {self._keeps(planned) for planned in (self.planned, self.most)}
        return None if len(kept) > 1 else kept.pop()

    def _keeps(self, planned: float) -> bool:
        if self.entry.kind == "about":
            return abs(planned / self.figure - 1) <= STATED_SHARE
        return planned > self.figure if self.entry.kind == "over" else planned <= self.figure

    @property
    def differences(self) -> tuple[float, float]:
        """Of the plan's two ends to the published figure, as shares of it."""
        return self.planned / self.figure - 1, self.most / self.figure - 1

    def cells(self) -> list[Any]:
        """For a table: what, published, planned, holds, difference."""
        entry = self.entry
        what = entry.what + (f" (not stated: {entry.guessed})" if entry.guessed else "")
        published = f"{entry.kind} {self.figure:.3g}"
        ends = 2 if entry.heaviest else 1
        planned = " to ".join(f"{gib:.1f}" for gib in (self.planned, self.most)[:ends])
        difference = " to ".join(f"{share:+.0%}" for share in self.differences[:ends])
        holds = "open" if self.holds is None else "yes" if self.holds else "no"
        return [what, published, planned, holds, difference]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        entry = self.entry
        return {
            "what": entry.what, "kind": entry.kind, "published_gib": self.figure, "planned_gib": self.planned,
            "planned_most_gib": self.most, "holds": self.holds, "differences": self.differences,
            "guessed": entry.guessed, "source": entry.source,
        }  # fmt: skip


def compare(outputs: Path, told: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Every published figure beside the planner's; `told` hears what is measured meanwhile."""
    return [_row(entry, outputs, told) for entry in PUBLISHED]


def _row(entry: Published, outputs: Path, told: Callable[[str], None]) -> Row:
    planned = []
    for settings in [entry.settings, *([entry.settings | entry.heaviest] if entry.heaviest else [])]:
        config = resolve_config(settings)
        told(f"{entry.what} …")
        found = measure_kept({**request_of(config), **entry.asked}, outputs)
        training = next(phase for phase in make_plan(config, 0, found).phases if phase.name == "train")
        taken = training.total if entry.kind == "within" else training.shown
        told(f"{entry.what}: {gib(taken)}")
        planned.append(taken / 2**30)
    return Row(entry, min(planned), max(planned))
