"""The programs that train, by the name that a config's `trainer` has. A new one is one module and one line here.

The runner starts `python -m MODULE --outputs … --run … --attempt … --request … [--resume-from …]`; what the module
makes of it, which events it writes and how it ends is in docs/supervision.md. A module may have a function
`check(config)` that raises UserError where it can't train that config on this machine: then a start is refused.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fluxcore.config import RunConfig

TRAINERS = {
    "fluxgym": "fluxcore.training",
    "sd-scripts": "fluxcore.sd_scripts",
}
DEFAULT_TRAINER = "fluxgym"
SAVE_NOTHING_ON_TERM = frozenset({"sd-scripts"})
"""A stop costs these what came after their last checkpoint."""
HEAR_NO_WISHES = frozenset({"sd-scripts"})
"""These can't be asked for samples or a checkpoint while they run."""


def check_trainer(config: RunConfig) -> None:
    """Raise UserError, saying what to do, where the config's trainer can't train it on this machine."""
    check = getattr(import_module(TRAINERS[config.trainer]), "check", None)
    if check is not None:
        check(config)
