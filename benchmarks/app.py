"""`./fluxgym bench app`: every figure of the app, one after the other. Each is a benchmark of its own too."""

from __future__ import annotations

import subprocess
import sys

PARTS = ("app_rerun", "app_paint", "app_live", "app_upload")


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    missed = [part for part in PARTS if subprocess.run([sys.executable, "-m", f"benchmarks.{part}"]).returncode]
    if missed:
        print(f"missed in {', '.join(part.replace('_', '-') for part in missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
