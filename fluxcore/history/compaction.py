"""Finished runs in one merged Parquet, so that a thousand of them are listed and queried without reading their logs.

    .history/compacted.json         which runs, what their logs looked like then, and each one's row of the `runs` view
    .history/compacted-ID/          events.parquet and steps.parquet, each sorted by run

All of it is derived: the logs stay, and a run whose log has changed since is read from its log again. A new generation
is written aside; the index is renamed over the old one last, so a reader sees the one or the other. Old generations
stay for an hour: somebody may still be reading them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fluxcore.atomic import sync_tree, write_atomic
from fluxcore.errors import UserError
from fluxcore.log import number
from fluxcore.log.event import keep_non_finite

from .logs import Files
from .rows import fitting
from .views import RUN_COLUMNS

if TYPE_CHECKING:
    from .engine import History

KEEP_OLD_SECONDS = 3600.0
_TIMES = [name for name, kind in RUN_COLUMNS.items() if kind == "TIMESTAMP"]
_NUMBERS = [name for name, kind in RUN_COLUMNS.items() if kind == "DOUBLE"]


@dataclass(frozen=True)
class CompactedRun:
    """One finished run: what its log files looked like (size, time in ns), and its row of the `runs` view."""

    files: dict[str, tuple[int, int]]
    row: dict[str, Any]

    def is_of(self, now: Files) -> bool:
        """Whether the logs are still those that were compacted."""
        return self.files == {name: (size, mtime) for name, (_, size, mtime) in now.items()}


@dataclass(frozen=True)
class Index:
    """What `.history/compacted.json` says."""

    folder: Path
    runs: dict[str, CompactedRun]


def index_path(outputs: Path) -> Path:
    """The index of an outputs folder's compacted runs."""
    return outputs / ".history" / "compacted.json"


def read_index(outputs: Path) -> Index | None:
    """The compacted runs; None where there are none, or where another version of FluxGym wrote them."""
    try:
        content = orjson.loads(index_path(outputs).read_bytes())
        folder = index_path(outputs).parent / Path(content["folder"]).name
        if content["made_by"] != _fingerprint() or _sizes(folder) != content["bytes"]:
            return None
        return Index(folder, {name: _run(entry) for name, entry in content["runs"].items()})
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _run(entry: dict[str, Any]) -> CompactedRun:
    row = dict(entry["row"])
    for name in _TIMES:
        row[name] = datetime.fromisoformat(row[name]) if row[name] else None
    for name in _NUMBERS:
        row[name] = number(row[name])  # one that is not finite is a word in JSON
    return CompactedRun({name: (int(size), int(mtime)) for name, (size, mtime) in entry["files"].items()}, row)


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the index keeps it: what JSON has no number for is a word, what no column has room for is left out."""
    words = keep_non_finite({name: row[name] for name in _NUMBERS})
    return row | words | {name: fitting(row[name], kind) for name, kind in RUN_COLUMNS.items() if kind == "BIGINT"}


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of a generation's files: one that a power cut or a copy has left torn is not what the index tells."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.parquet"))}


def compact(outputs: Path) -> tuple[int, int]:
    """Compact every finished run; how many runs lie there now, and how many of them are new.

    Safe while others read, write or compact. Raises UserError where the folder can't be written.
    """
    from .engine import History

    folder = index_path(outputs).parent
    try:
        folder.mkdir(exist_ok=True)
        with _alone(folder), History(outputs) as history:
            history.refresh()
            before = set(history.compacted)
            ready = sorted(name for name in history.rows if name in before or history.is_finished(name))
            known = read_index(outputs)
            if set(ready) != before or known is None or set(known.runs) != before:
                _write(history, folder, ready)
            _remove_old(outputs)
            return len(ready), len(set(ready) - before)
    except OSError as error:
        raise UserError(f"the history can't be compacted in {folder} ({error.strerror or error})") from None


def _write(history: History, folder: Path, names: list[str]) -> None:
    import duckdb

    aside = folder / f"compacted-{secrets.token_hex(6)}"
    aside.mkdir()
    try:
        history.save_parquet(aside, names)
        runs = {
            name: {
                "files": {file: stat[1:] for file, stat in history.files(name).items()},
                "row": _kept(history.rows[name]),
            }
            for name in names
        }
        sync_tree(aside)
        index = {"made_by": _fingerprint(), "folder": aside.name, "bytes": _sizes(aside), "runs": runs}
        write_atomic(index_path(folder.parent), orjson.dumps(index, default=str))
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, duckdb.IOException):
            raise OSError(None, str(error).splitlines()[0]) from None
        raise


def _remove_old(outputs: Path) -> None:
    index = read_index(outputs)
    for folder in index_path(outputs).parent.glob("compacted-*"):
        with contextlib.suppress(OSError):
            if (index is None or folder != index.folder) and time.time() - folder.stat().st_mtime > KEEP_OLD_SECONDS:
                shutil.rmtree(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One compaction at a time; a second one waits, and then finds nothing left to do."""
    with open(folder / ".compact.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fingerprint() -> str:
    """Changes with everything that decides what a row or a table holds."""
    from fluxcore import runs

    files = [Path(__file__).with_name(name) for name in ("views.py", "run_row.py", "bulk.py", "rows.py")]
    files += [Path(os.path.dirname(runs.__file__)) / name for name in ("fold.py", "transitions.py", "bulk.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
