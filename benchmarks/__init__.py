"""The project's figures: `./fluxgym bench NAME` runs `benchmarks/NAME.py` (`-` for `_`)."""

import os
import time


def machine() -> str:
    """The machine and the day, as every published figure names them."""
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "unknown processor"
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {time.strftime('%d %B %Y', time.gmtime())}"


def memory_mib() -> tuple[int, int]:
    """MiB of memory that this process has now, and the most it had."""
    with open("/proc/self/status") as file:
        sizes = {line.split(":")[0]: line.split()[1] for line in file if line.startswith("Vm")}
    return int(sizes["VmRSS"]) // 1024, int(sizes["VmHWM"]) // 1024
