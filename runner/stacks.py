"""Where a stuck trainer stands: py-spy's dump of its threads, where py-spy is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from fluxcore.runs import RunFolder

DUMP_SECONDS = 5.0


def dump_stacks(folder: RunFolder, attempt: int, pid: int) -> str | None:
    """Write the stacks of process `pid` beside the attempt's records; the path in the run's folder, or None."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = str(beside) if beside.is_file() else shutil.which("py-spy")
    if tool is None or not Path(f"/proc/{pid}").exists():
        return None
    path = folder.attempt(attempt) / "stacks.txt"
    try:
        dump = subprocess.run(
            [tool, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, timeout=DUMP_SECONDS, check=True
        )
        path.write_bytes(dump.stdout)
    except (OSError, subprocess.SubprocessError):
        return None
    return folder.relative(path)
