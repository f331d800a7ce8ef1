"""What it means that sd-scripts ended with an error: FluxGym's exit code for it, and the line that says why."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fluxcore.training.failures import Exit

from .place import PYTHON_VARIABLE

# Looked for in the last lines, in this order: the first that is found decides.
_SAYINGS: tuple[tuple[Exit, tuple[str, ...]], ...] = (
    (Exit.OOM_GPU, ("cuda out of memory", "outofmemoryerror", "cuda error: out of memory")),
    (Exit.DISK_FULL, ("no space left on device", "disk quota exceeded")),
    (Exit.BAD_DATA, ("unidentifiedimageerror", "cannot identify image file", "image file is truncated")),
    (Exit.BAD_DATA, ("no data found",)),
    (Exit.DOWNLOAD, ("gatedrepoerror", "repositorynotfounderror", "localentrynotfounderror")),
    (Exit.DOWNLOAD, ("couldn't connect to", "can't load tokenizer")),
    (Exit.BAD_CONFIG, ("filenotfounderror", "modulenotfounderror", "safetensorerror")),
    (Exit.BAD_CONFIG, ("error(s) in loading state_dict",)),
)
_ERROR = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception)\b|.*\.py: error: ")


def exit_of(code: int, lines: Sequence[str]) -> Exit:
    """FluxGym's exit code for sd-scripts' own (above 0) and the last lines it printed."""
    text = "\n".join(lines).lower()
    if code == 2 and ".py: error: " in text:  # argparse: another version of sd-scripts lacks an option
        return Exit.BAD_CONFIG
    return next((found for found, sayings in _SAYINGS if any(saying in text for saying in sayings)), Exit.CRASH)


def explanation(code: int, lines: Sequence[str]) -> str:
    """The last line that names the error, as a sentence."""
    said = [line.strip() for line in lines if line.strip()]
    error = next((line for line in reversed(said) if _ERROR.match(line)), said[-1] if said else "")
    what = f"sd-scripts ended with exit code {code}" + (f": {error[:500]}" if error else "")
    if "ModuleNotFoundError" in error:
        what += f" (install sd-scripts' requirements.txt, or name the Python that has them with {PYTHON_VARIABLE})"
    return what
