"""`./fluxgym bench app-upload`: 150 pictures of 4 MB dropped into the page Train, through a real browser.

Time from the drop until the page shows all of them; the server's memory at its peak meanwhile and once it is quiet
again; and that every file arrived whole.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image
from rich.console import Console

from benchmarks import machine
from fluxcore.dataset import list_pictures
from studio.drafts import newest_draft
from studio.shots import browser, server, settle

WANTED_SECONDS, WANTED_MB = 30.0, 500
QUIET_SECONDS = 5.0


def make_pictures(folder: Path, count: int, megabytes: float) -> list[Path]:
    """Photos of noise, each file another: what follows a JPEG's end is no part of the picture."""
    side = int((megabytes * 1e6 / 0.7) ** 0.5)
    first = folder / "0.jpg"
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(first, quality=82)
    data = first.read_bytes()
    files = [folder / f"{number:03d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(data + number.to_bytes(4, "big"))
    first.unlink()
    return files


def memory_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


def measure(count: int, megabytes: float) -> dict[str, float]:
    """Seconds, memory in MB (before, peak, after), the pictures' size in MB, how many arrived whole."""
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        folder, outputs = Path(place) / "pictures", Path(place) / "outputs"
        folder.mkdir()
        outputs.mkdir()
        files = make_pictures(folder, count, megabytes)
        with server(outputs, ends_runner=True) as served, browser() as running:
            page = running.new_page()
            page.set_default_timeout(300_000)
            page.goto(served.url)
            settle(page, 120)
            pid = served.process.pid
            seen = [memory_mb(pid)]
            ended = threading.Event()

            def watch() -> None:
                while not ended.wait(0.05):
                    seen.append(memory_mb(pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            begun = time.monotonic()
            page.locator('[data-testid="stFileUploader"] input[type="file"]').last.set_input_files(files)
            page.get_by_text(f"{count} pictures", exact=True).wait_for()
            seconds = time.monotonic() - begun
            time.sleep(QUIET_SECONDS)
            after = memory_mb(pid)
            ended.set()
            watcher.join()
        draft = newest_draft(outputs)
        arrived = list_pictures(draft.folder.dataset) if draft else []
        whole = {_hash(file) for file in files} & {_hash(picture.path) for picture in arrived}
        size = files[0].stat().st_size / 1e6
    return {
        "seconds": seconds, "before": seen[0], "peak": max(seen), "after": after, "size": size, "whole": len(whole),
    }  # fmt: skip


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_short(found: dict[str, float], count: int) -> bool:
    """Whether a target is missed."""
    return found["seconds"] > WANTED_SECONDS or found["after"] > WANTED_MB or found["whole"] < count


def row(found: dict[str, float], count: int) -> str:
    """The figures in a line."""
    short = is_short(found, count)
    return (
        f"{count} pictures of {found['size']:.1f} MB: {found['seconds']:.1f} s (at most {WANTED_SECONDS:.0f}), "
        f"{found['whole']:.0f} arrived whole; the server's memory {found['before']:.0f} MB before, {found['peak']:.0f} "
        f"at its peak, {found['after']:.0f} after (at most {WANTED_MB})" + (" – short of the wanted" if short else "")
    )


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--megabytes", type=float, default=4.0)
    arguments = parser.parse_args()
    found = measure(arguments.pictures, arguments.megabytes)
    Console(width=110).print(f"{row(found, arguments.pictures)} ({machine()}).")
    return int(is_short(found, arguments.pictures))


if __name__ == "__main__":
    sys.exit(main())
