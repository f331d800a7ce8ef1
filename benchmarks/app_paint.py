"""`./fluxgym bench app-paint`: how soon a page is there in a browser that never saw it, with 1,000 runs in the folder.

Each visit is a new browser context, so nothing is cached, over a server that is up: from the navigation's start to the
browser's first contentful paint, to the page's own heading, and to all of it (the script has ended, nothing is a
skeleton). The times are the browser's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.app_rerun import make
from benchmarks.campaigns.report import percentile
from studio.shots import browser, server, settle

WANTED_SECONDS = 1.5
PAGES = {
    "Train": "/",
    "Runs": "/runs",
    "Run, a small live one": "/run?name=run-0000",
    "Run of a million events": "/run?name=long",
    "Run of a million events, loss": "/run?name=long&tab=loss",
    "Compare, three runs": "/compare?runs=long,run-0000,run-0001",
    "History": "/history",
    "Settings": "/settings",
}
WATCH = """(() => {
    window.there = {};
    const note = (what, is) => { if (is && !(what in window.there)) window.there[what] = performance.now() / 1000; };
    const look = () => {
        const main = document.querySelector('[data-testid="stMain"]');
        note("heading", main?.querySelector("h1, h2, h3"));
        const app = document.querySelector('[data-testid="stApp"]');
        note("all", window.there.heading && app?.dataset.testScriptState === "notRunning"
            && !document.querySelector('[data-testid="stSkeleton"], [data-testid="stAppSkeleton"]'));
    };
    new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true});
})()"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def visits(url: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds to `paint`, `heading` and `all` of each page, in rounds over all of them."""
    found: dict[str, list[dict[str, float]]] = {label: [] for label in PAGES}
    with browser() as running:
        for number in range(rounds + 1):
            for label, path in PAGES.items():
                context: Any = running.new_context(viewport={"width": 1440, "height": 900})
                page = context.new_page()
                page.add_init_script(WATCH)
                page.goto(url + path)
                page.wait_for_function("window.there.all", timeout=60_000)
                if number == 0:  # the server has read the logs and has imported what its pages need
                    settle(page, 60)
                else:
                    found[label].append(page.evaluate(f"({{...window.there, paint: {PAINT}}})"))
                context.close()
    return found


def main() -> int:
    """The command. Returns 1 where a page's heading is late."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        outputs = Path(place) / "outputs"
        make(outputs, arguments.runs, 1000, arguments.events)
        with server(outputs, ends_runner=True) as served:
            found = visits(served.url, arguments.rounds)
    title = f"A page in a browser that never saw it, {arguments.runs:,} runs, {arguments.rounds} visits ({machine()})"
    table = Table(title=title)
    for column in ("page", "first paint, p50", "p95", "heading, p50", "p95", "all of it, p50", "p95"):
        table.add_column(column, justify="left" if column == "page" else "right")
    late = False
    for label, rows in found.items():
        cells = []
        for what in ("paint", "heading", "all"):
            for share in (0.5, 0.95):
                seconds = percentile([row[what] for row in rows], share)
                late |= what == "heading" and share == 0.95 and seconds > WANTED_SECONDS
                cells.append(f"{seconds:.2f} s")
        table.add_row(label, *cells)
    table.add_row("at most", "", f"{WANTED_SECONDS} s", "", f"{WANTED_SECONDS} s", "", "")
    Console(width=130).print(table)
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
