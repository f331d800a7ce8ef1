"""`demo`: the whole path on the embedded base model, ending in a picture."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from fluxcore.errors import UserError
from fluxcore.runs import RunError, RunFolder, free_run_name
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.units import duration, size

from .follow import wait_for_end
from .options import Outputs, build_config, outputs_folder
from .out import note, say
from .runs import SOURCE, start_runner

EXAMPLE = PROJECT_ROOT / "examples" / "riso"
TRIES = 5


def demo(outputs: Outputs = None) -> int:
    """Train a LoRA of flux-mini on examples/riso, in a minute or two, and draw with it before and after."""
    from fluxcore.runs import check_outputs, request_start

    root = outputs_folder(outputs)
    check_outputs(root)
    started = time.monotonic()
    folder = _make(root)
    note(f"training {folder.name}: a LoRA of flux-mini in the style of the {EXAMPLE.name} example")
    request = request_start(root, folder.name, SOURCE, reason="demo")
    start_runner(root)
    code = wait_for_end(folder, request, quiet=True)
    if code:
        return code
    note(f"trained in {duration(time.monotonic() - started)}; drawing with it, before and after")
    sheet = draw_sheet(root, folder.name)
    weights = folder.final_weights
    for title, path in {"LoRA": weights, "samples": sheet, "event log": folder.events}.items():
        more = f"  ({size(path.stat().st_size)})" if path == weights else ""
        say(f"{title:<10} {path}{more}")
    return 0


def _make(outputs: Path) -> RunFolder:
    from fluxcore.dataset import copy_dataset
    from fluxcore.runs import create_run

    for _ in range(TRIES):
        name = free_run_name(outputs, "demo")
        config = build_config(name, EXAMPLE / "config.json", [], {})
        try:
            return create_run(outputs, config, SOURCE, lambda dataset: copy_dataset(EXAMPLE, dataset))
        except RunError:
            if name == free_run_name(outputs, "demo"):
                raise  # not taken by a second demo meanwhile: a real problem
    raise UserError("other demos take every name; try again")


def draw_sheet(outputs: Path, name: str) -> Path:
    """The before / after picture of a finished run, drawn in a process of its own. Raises UserError."""
    command = [sys.executable, "-m", "fluxcore.training.sheet", "--outputs", str(outputs), "--run", name]
    command += ["--prompts", str(EXAMPLE / "held-out.prompts")]
    drawn = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    lines = drawn.stdout.strip().splitlines()
    if drawn.returncode or not lines:
        last = (drawn.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"the LoRA is there, but the picture could not be drawn: {last}")
    return Path(lines[-1])
