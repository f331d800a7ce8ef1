"""Whether torch's threads on the CPU spin or sleep while they wait for each other; said before torch loads them.

One training on a machine that does little else is twice as fast when they spin; two that spin on the same cores take
each other's time and both come to a tenth of their speed. So one training of a user's spins at a time, and one that
began beside another sleeps to its end. The results are the same, to the bit.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

POLICY = "OMP_WAIT_POLICY"
"""OpenMP's variable; what the user set it to holds."""


def choose_waiting(lock: Path | None = None) -> int | None:
    """Let this process's threads spin if no other training's do, else sleep.

    Returns the descriptor of the held `lock` (by default a file of the user's in the temporary folder); it is held
    until the process ends.
    """
    if POLICY in os.environ:
        return None
    lock = lock or Path(tempfile.gettempdir()) / f"fluxgym-{os.getuid()}-spins"
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError:
        os.environ[POLICY] = "PASSIVE"
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        os.environ[POLICY] = "PASSIVE"
        return None
    return descriptor
