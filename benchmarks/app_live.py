"""`./fluxgym bench app-live`: what an open page costs, and how soon it shows what happens.

Ten live runs at a step a second, by a real runner with stub trainers; ten raw websocket clients with a Run page each,
which rerun their fragments as browsers do; then one real browser, whose page is read for when each step appears.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Any

from benchmarks.campaigns.report import Figure, at_most, show
from benchmarks.campaigns.stage import Stage, stage
from benchmarks.campaigns.viewer import Viewer
from benchmarks.runner import Use
from fluxcore.log import parse_ts
from fluxcore.runs import request_start
from studio.shots import Served, browser, server, settle

PAGES = 10
CPU_PERCENT, RSS_MB, SEEN_SECONDS = 15.0, 400.0, 1.0
WATCH = """() => {
    window.seen = [];
    const look = () => {
        const found = document.querySelector("[data-fg-piece='head:live-0']")?.textContent.match(/step ([\\d,]+) \\//);
        const step = found ? Number(found[1].replaceAll(',', '')) : 0;
        if (step && step !== window.seen.at(-1)?.[1]) window.seen.push([Date.now() / 1000, step]);
    };
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
    look();
}"""
"""Notes when the page shows which step."""


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each part is watched")
    parser.add_argument("--tab", default="overview", help="the open tab of the Run pages")
    asked = parser.parse_args(arguments)
    with stage(slots=PAGES) as place:
        place.serve()
        for number in range(PAGES):
            place.make(f"live-{number}", {"sample_gpu_seconds": 5}, steps=10**6, step_seconds=1.0, save_every=100)
            request_start(place.outputs, f"live-{number}", "cli")
        for number in range(PAGES):
            place.until(f"live-{number}", lambda state: state.step >= 2, 60)
        with server(place.outputs) as served:
            figures = asyncio.run(viewers(served, asked.seconds, asked.tab))
            figures += seen(place, served, asked.seconds, asked.tab)
    return show("the app beside ten live runs", figures)


async def viewers(served: Served, seconds: float, tab: str) -> list[Figure]:
    """The server's processor and memory with PAGES open Run pages."""
    pages = [Viewer(served.url, "run", f"name=live-{number}&tab={tab}") for number in range(PAGES)]
    for page in pages:
        await page.__aenter__()
    try:
        await asyncio.sleep(10)  # the first draw is over
        before, most = Use.of(served.process.pid), 0.0
        finished = sum(page.finished for page in pages)
        sent, beats = sum(page.bytes for page in pages), sum(page.beats for page in pages)
        while (now := Use.of(served.process.pid)).at - before.at < seconds:
            most = max(most, now.rss_mb)
            await asyncio.sleep(0.5)
        runs = (sum(page.finished for page in pages) - finished) / (now.at - before.at)
        sent = sum(page.bytes for page in pages) - sent
        beats = sum(page.beats for page in pages) - beats
        cpu = 100 * (now.cpu_seconds - before.cpu_seconds) / (now.at - before.at)
    finally:
        for page in pages:
            await page.__aexit__(None, None, None)
    assert not any(page.failed for page in pages), "a page showed an error"
    what = f"{PAGES} open Run pages ({tab}) of live runs"
    return [
        Figure(f"{what}: CPU of one core", f"{cpu:.1f}%", f"{CPU_PERCENT:g}%", cpu < CPU_PERCENT),
        Figure(f"{what}: memory", f"{most:.0f} MB at the most", f"{RSS_MB:g} MB", most < RSS_MB),
        Figure(f"{what}: fragments drawn / answers to what moves, a second", f"{runs:.1f} / {beats / seconds:.1f}"),
        Figure(f"{what}: sent a second", f"{sent / seconds / 1000:.1f} KB"),
    ]


def seen(place: Stage, served: Served, seconds: float, tab: str) -> list[Figure]:
    """From a step's event to its number on a page in a real browser."""
    with browser() as running:
        page: Any = running.new_page()
        page.goto(f"{served.url}/run?name=live-0&tab={tab}")
        settle(page, 60)
        page.evaluate(WATCH)
        began = time.time()
        page.wait_for_timeout(seconds * 1000)
        shown = page.evaluate("window.seen")
    waited = []
    for event in place.events("live-0"):
        at = parse_ts(event.ts).timestamp()
        if event.type == "train.step" and began + 2 < at < began + seconds - 3:
            waited.append(next((when - at for when, step in shown if step >= event.data["step"]), float("inf")))
    return [at_most("a step's event → seen in the browser", waited, share, SEEN_SECONDS) for share in (0.5, 0.95)]


if __name__ == "__main__":
    sys.exit(main())
