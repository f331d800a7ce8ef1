"""A file to attach to a bug report: versions, the machine, the runs' states and the last lines of logs. No secrets.

Whatever looks like a token, a password or an address with one is blacked out, wherever it stands; pictures, captions
and prompts are not in it.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import sys
import zipfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fluxcore
from fluxcore.access import TOKEN_FILE, VIEWER_FILE
from fluxcore.alerts import load_targets
from fluxcore.errors import UserError
from fluxcore.runs import RunFolder
from fluxcore.runs.supervision import RUNNER_LOG, runner_alive
from fluxcore.tail import last_lines

from .live import LiveRun

PACKAGES = (
    "streamlit",
    "duckdb",
    "pyarrow",
    "pydantic",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "apprise",
    "nvidia-ml-py",
)
LINES = 200
MOST_RUNS = 20
HIDDEN = "(blacked out)"
_SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\b(?:sk|ghp|gho|glpat|xox[abp])[-_][A-Za-z0-9_-]{8,}|\bBearer\s+\S+"
    r"|(?i:\b[\w-]*(?:token|secret|password|passwd|api[_-]?key)\b[\"']?\s*[=:]\s*[\"']?)[^\s\"',&;]+"
    r"|\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/@:]+:[^\s/@]+@\S+"
)
_PRIVATE = ("sample_prompts", "concept_sentence")


@cache
def versions() -> dict[str, str]:
    """FluxGym's, Python's and the packages' versions, as the process found them; nothing is imported for that."""
    found = {"fluxgym": fluxcore.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def blacked_out(text: str, secrets: list[str]) -> str:
    """`text` without the given secrets and without what has the form of one."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _SECRET.sub(HIDDEN, text)


def make(outputs: Path, runs: list[LiveRun]) -> bytes:
    """The file: a zip of text."""
    secrets = _known_secrets(outputs)
    disk = shutil.disk_usage(outputs if outputs.is_dir() else Path("/"))
    runner = runner_alive(outputs)
    about: dict[str, Any] = {
        "versions": versions(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "executable": sys.executable,
        "outputs": str(outputs),
        "disk_free_gib": round(disk.free / 2**30, 2),
        "disk_total_gib": round(disk.total / 2**30, 2),
        "runner": None if runner is None else {"pid": runner.pid, "version": runner.version},
        "runs": len(runs),
        "environment": sorted(name for name in os.environ if name.startswith(("FLUXGYM_", "HF_", "CUDA_"))),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:

        def put(name: str, text: str) -> None:
            file.writestr(name, blacked_out(text, secrets))

        put("about.json", json.dumps(about, indent=1))
        put("runner.log", "\n".join(last_lines(outputs / RUNNER_LOG, LINES)))
        for run in runs[:MOST_RUNS]:
            put(f"runs/{run.name}/row.json", json.dumps(_row(run), indent=1, default=str))
            folder: RunFolder = run.folder
            for log in (folder.train_log, folder.monitor_log):
                put(f"runs/{run.name}/{log.name}", "\n".join(last_lines(log, LINES)))
    return buffer.getvalue()


def _row(run: LiveRun) -> dict[str, Any]:
    row = {name: value for name, value in run.row.items() if name not in ("title", "note", "tags", "trigger")}
    row["config"] = {name: value for name, value in (row.get("config") or {}).items() if name not in _PRIVATE}
    return row | {"hint": run.state.hint, "tail": run.state.tail, "unreadable_lines": run.state.bad_lines}


def _known_secrets(outputs: Path) -> list[str]:
    found = [value for name, value in os.environ.items() if re.search("TOKEN|SECRET|PASSWORD|API_KEY|ALERTS", name)]
    for file in (TOKEN_FILE, VIEWER_FILE):
        try:
            found.append((outputs / file).read_text().strip())
        except OSError:
            pass
    try:
        found += [target.url for target in load_targets(outputs)]
    except UserError:
        pass
    return sorted({secret for secret in found if len(secret) >= 6}, key=len, reverse=True)
