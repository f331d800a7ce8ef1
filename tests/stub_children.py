"""What a trainer may leave behind, in every way to get away: `start_children`, or

    python stub_children.py KIND [SECONDS_TO_LIVE [SECONDS_OF_A_COMET]]

child: deaf to TERM. setsid: likewise, in a session of its own. double: forked twice, so its parent is gone.
wiped: a daemon with an empty environment, known by its descent alone. stopped: SIGSTOPs itself. breeder: forks a child
every 20 ms, up to 40. comet: lives for 50 ms, then another one goes on in its place. stranger: none of these, it ends
at the first signal; it plays somebody else's process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

KINDS = ("child", "setsid", "double", "wiped", "stopped", "breeder", "comet")
SCRIPT = os.path.abspath(__file__)
LIFE_SECONDS = 600.0
MOST_BRED = 40
COMET_SECONDS = 0.05


def start_children(kinds: list[str]) -> None:
    """Start one process (or family) of each kind."""
    for kind in kinds:
        command = [sys.executable, "-I", "-S", SCRIPT, kind]
        if kind == "double":
            code = f"import subprocess; subprocess.Popen({command!r}, start_new_session=True)"
            subprocess.Popen([sys.executable, "-I", "-S", "-c", code], start_new_session=True).wait()
        elif kind == "wiped":
            code = f"import subprocess; subprocess.Popen({command!r}, env={{}}, start_new_session=True)"
            subprocess.Popen([sys.executable, "-I", "-S", "-c", code], start_new_session=True).wait()
        else:
            subprocess.Popen(command, start_new_session=kind == "setsid")


def main(kind: str, life: float = LIFE_SECONDS, comet: float = COMET_SECONDS) -> None:
    """Be such a child, for `life` seconds."""
    if kind != "stranger":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + life
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "breeder":
        for _ in range(MOST_BRED):
            if os.fork() == 0:
                break
            time.sleep(0.02)
    elif kind == "comet":
        while time.monotonic() < end:
            time.sleep(comet)
            if os.fork() > 0:
                os._exit(0)
    time.sleep(max(0.0, end - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
