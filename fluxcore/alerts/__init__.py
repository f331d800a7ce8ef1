"""Alerts: who is told of what (`targets`, `pending`), in which words (`message`), and how (`sending`, a short-lived
process: Apprise would cost the runner 45 MB).

The addresses are secrets. They lie in `outputs/.alerts.json`, which its owner alone can read, or in $FLUXGYM_ALERTS,
and go nowhere else: not into a config, an event, a log, a message or a command line.
"""

from fluxcore.runs.news import KINDS

from .child import check_url, send_test
from .pending import Pending, pending
from .targets import Target, add_target, is_shared, load_targets, remove_target

__all__ = [
    "KINDS",
    "Pending",
    "Target",
    "add_target",
    "check_url",
    "is_shared",
    "load_targets",
    "pending",
    "remove_target",
    "send_test",
]
