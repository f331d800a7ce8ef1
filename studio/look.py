"""How a state looks: a colour, an icon and a word, never the colour alone. And the few rules of style themes lack."""

from __future__ import annotations

import html

import streamlit as st

STATES = {
    "draft": ("gray", "edit_note"),
    "queued": ("gray", "schedule"),
    "starting": ("green", "hourglass_top"),
    "running": ("green", "play_circle"),
    "stopping": ("gray", "hourglass_bottom"),
    "stopped": ("gray", "stop_circle"),
    "stalled": ("orange", "warning"),
    "failed": ("red", "error"),
    "completed": ("blue", "check_circle"),
    "lost": ("red", "help"),
}
CHANGE = (
    "banner-stop-", "banner-resume-", "run-stop", "run-resume", "run-start", "run-restart", "run-menu", "run-sample",
    "run-save", "bulk-archive", "bulk-delete", "bulk-stop", "bulk-resume", "bulk-tag", "monitor-on", "monitor-off",
    "delete-", "from-", "start-runner", "lost-start-runner", "sql-keep", "sql-forget", "publish-stop",
    "publish-understood",
)  # fmt: skip
"""What the keys of the buttons begin with that change something, on the pages that viewers see."""


def badge(state: str) -> str:
    """A state as a badge in Streamlit's markdown."""
    color, icon = STATES.get(state, ("gray", "help"))
    return f":{color}-badge[:material/{icon}: {state}]"


def style() -> None:
    """Tabular figures, pictures in grids, and calm redraws: live parts must not fade while they are updated."""
    # A style alone would go where toasts go, and the first toast of a fragment's run would take its place: the element
    # beside it keeps it on the page.
    st.container(key="look").html(
        """<style>
        /* With what wraps it: else there would be a gap. */
        [data-testid="stLayoutWrapper"]:has(> :is(.st-key-look, .st-key-pulse, .st-key-typing-saver)),
        .st-key-look, .st-key-pulse, .st-key-typing-saver, [class*="st-key-sample-clicks"],
        [class*="st-key-theme-kept"] { position: absolute; }
        .stApp { font-variant-numeric: tabular-nums; --fg-page: light-dark(#fff, #14141b); }
        [data-stale="true"] { opacity: 1 !important; transition: none !important; }
        .stMainBlockContainer { max-width: 1500px; }
        /* What is typed there is kept without it; it would lie over a long text. */
        :is([class*="st-key-form-"], [class*="st-key-caption-"], [class*="st-key-about-"])
        [data-testid="InputInstructions"] { display: none; }
        /* Above, they would lie on the banner's buttons for as long as the mouse is near. */
        [data-testid="stToastContainer"] { top: auto !important; bottom: 1rem !important; }
        .fg-away { position: fixed; bottom: 1rem; left: 50%; transform: translateX(-50%); z-index: 100; max-width: 90vw;
                   padding: .6rem 1rem; border-radius: 8px; background: light-dark(#fff3d6, #4a3608);
                   color: light-dark(#5f3a00, #ffe2a8); }
        .fg-grid { display: grid; gap: .5rem;
                   grid-template-columns: repeat(auto-fill, minmax(min(var(--fg, 150px), 46%), 1fr)); }
        .fg-pic { margin: 0; }
        .fg-alone img { aspect-ratio: 4 / 3; }
        .fg-pic img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 8px; display: block;
                      background: color-mix(in srgb, currentColor 6%, transparent); }
        .fg-cut img { object-fit: cover; }
        .fg-pic figcaption { font-size: .78rem; opacity: .75; overflow-wrap: anywhere; margin-top: .2rem;
                             line-height: 1.3; }
        .fg-pic a:focus-visible img { outline: 2px solid currentColor; outline-offset: 2px; }
        .fg-facts { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .88rem; line-height: 1.5; }
        .fg-facts i { font-style: normal; opacity: .68; margin-right: .3rem; }
        .fg-bar { height: .5rem; border-radius: 8px; overflow: hidden; margin: .1rem 0 .35rem;
                  background: color-mix(in srgb, currentColor 12%, transparent); }
        .fg-bar > div { height: 100%; border-radius: 8px; background: light-dark(#5b4bd6, #a99fff);
                        transition: width .3s; }
        .fg-facts i:empty { display: none; }
        .fg-steps { font-size: 1.9rem; font-weight: 650; line-height: 1.2; }
        /* On the page of one run the links to the others are no "current page". */
        [class*="st-key-open-"] a, [class*="st-key-card-open-"] a { background: transparent; }
        .st-key-run-compare a { padding-left: 0; font-weight: 400; }
        [class*="st-key-open-"] a p, [class*="st-key-card-open-"] a p { font-weight: 400; }
        .fg-pairs { display: grid; gap: .9rem;
                    grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
        .fg-pairs > div > p, .fg-matrix th { font-size: .85rem; line-height: 1.35; margin: 0 0 .35rem; }
        .fg-pair { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .4rem; }
        .fg-scroll { overflow-x: auto; }
        .fg-matrix { border-collapse: separate; border-spacing: .3rem; }
        .fg-matrix th { font-weight: 400; text-align: left; vertical-align: middle; border: 0; padding: 0 .4rem 0 0; }
        .fg-matrix thead th { opacity: .75; text-align: center; }
        .fg-matrix tbody th { position: sticky; left: 0; width: 11rem; min-width: 7rem; z-index: 1; }
        .fg-matrix td { border: 0; padding: 0; width: 112px; min-width: 84px; }
        .fg-large img { aspect-ratio: auto; max-height: 62vh; }
        .fg-wide td { width: 210px; min-width: 130px; }
        .fg-legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .88rem; }
        .fg-legend i { display: inline-block; width: .9rem; height: .25rem; border-radius: 2px; margin-right: .4rem;
                       vertical-align: middle; }
        .fg-settings { width: 100%; table-layout: fixed; border-collapse: collapse; font-size: .88rem; }
        .fg-settings th, .fg-settings td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
            border: 0; border-top: 1px solid color-mix(in srgb, currentColor 14%, transparent); font-weight: 400;
            overflow-wrap: anywhere; white-space: pre-line; }
        .fg-settings thead th { border: 0; font-weight: 600; }
        .fg-settings code { display: block; font-size: .75rem; opacity: .68; background: none; padding: 0;
                            color: inherit; }
        .fg-settings .fg-same { opacity: .68; }
        :has(> .st-key-bulk) { position: sticky; bottom: .6rem; z-index: 90; }
        .st-key-bulk { background: var(--fg-page); box-shadow: 0 2px 14px rgb(0 0 0 / .16); }
        .st-key-form-vram button { padding-inline: .2rem; min-width: 0; }
        .fg-thumb { width: 64px; height: 64px; border-radius: 8px; object-fit: cover; display: block;
                    background: color-mix(in srgb, currentColor 6%, transparent); }
        .fg-spark { width: 120px; height: 34px; display: block; }
        .st-key-sql textarea { font-family: "Source Code Pro", ui-monospace, monospace; font-size: .85rem; }
        .fg-log { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; line-height: 1.5;
                  background: none; border: 0; padding: 0; }
        .fg-log .fg-bad { color: light-dark(#a9242d, #ff9299); font-weight: 600; }
        .fg-log .fg-warn { color: light-dark(#8f4208, #f2b968); }
        .fg-log .fg-quiet { opacity: .6; }
        [data-testid="stCaptionContainer"] { opacity: .78; }
        button kbd { color: inherit !important; opacity: 1 !important; }
        /* On the dark theme's accent, which is light, white could not be read. */
        [data-testid$="utton-primary"]:not(:disabled), [data-testid$="utton-primary"]:not(:disabled) p,
        .stMultiSelect [data-tag] * {
            color: light-dark(#fff, #14141b) !important; }
        [class*="st-key-banner-more-phone"] { display: none; }
        [class*="st-key-checkpoint-"] { padding: .55rem .9rem; }
        /* The buttons stay beside a long sentence. */
        @media (min-width: 641px) { .stHorizontalBlock[class*="st-key-recent-"] { flex-wrap: nowrap; } }
        @media (max-width: 640px) {
            .stMainBlockContainer { padding-left: .8rem; padding-right: .8rem; padding-top: 4.4rem; }
            [class*="st-key-live-"], [class*="st-key-recent-"] { flex-direction: column; align-items: stretch;
                                                                 gap: .35rem; }
            [class*="st-key-live-"] > *, [class*="st-key-recent-"] > * { width: 100%; flex: none; }
            .st-key-banner { padding: .6rem .7rem; }
            .st-key-banner .fg-facts { font-size: .8rem; gap: 0 .8rem; line-height: 1.4; }
            /* The newest that lives and the newest that ended; the others are one tap away. */
            .st-key-banner > :has(> [class*="st-key-live-"]) ~ :has(> [class*="st-key-live-"]),
            .st-key-banner > :has(> [class*="st-key-recent-"]) ~ :has(> [class*="st-key-recent-"]),
            [class*="st-key-banner-more-wide"] { display: none; }
            [class*="st-key-banner-more-phone"] { display: block; }
            [class*="st-key-recent-"] p { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
                                          overflow: hidden; }
            .st-key-banner-refresh { display: none; }
            button kbd { display: none !important; }
            /* Start is always in reach, and the pictures are a strip to be pushed aside. */
            .st-key-start { position: fixed; left: 0; right: 0; bottom: 0; z-index: 99; padding: .6rem .8rem;
                            width: 100% !important; background: var(--fg-page); border-top: 1px solid
                            color-mix(in srgb, currentColor 18%, transparent); }
            .stApp:has(.st-key-start) .stMainBlockContainer { padding-bottom: 6rem; }
            .st-key-pictures { display: flex !important; flex-wrap: nowrap; overflow-x: auto;
                               scroll-snap-type: x proximity; }
            .st-key-pictures > * { flex: 0 0 62%; scroll-snap-align: start; }
            .stHorizontalBlock[class*="st-key-card-"] { display: grid; gap: .5rem .7rem;
                                                        grid-template-columns: auto auto 1fr auto; }
            .stHorizontalBlock[class*="st-key-card-"] > :nth-child(3) { grid-column: 1 / -1; grid-row: 2; }
            .stHorizontalBlock[class*="st-key-card-"] > :nth-child(4) { justify-self: end; }
            .st-key-run-menu { flex: none; }
            /* First the answer, then the columns that there are. */
            [data-testid="stLayoutWrapper"]:has(> .stHorizontalBlock > .stColumn .st-key-sql-views),
            .stHorizontalBlock:has(> .stColumn .st-key-sql-views) { display: contents; }
            .stColumn:has(.st-key-sql), .stColumn:has(.st-key-sql-views) { width: 100%; }
            .stColumn:has(.st-key-sql-views) { order: 1; }
            .st-key-sql-chart-tools { display: grid; grid-template-columns: 1fr 1fr; }
            .st-key-sql-chart-tools > * { width: auto; }
            .st-key-sql-chart-tools > :last-child { grid-column: 1 / -1; }
            .st-key-bulk { gap: .4rem; padding: .6rem .7rem; }
            .st-key-bulk button { padding: .2rem .5rem; }
            /* All of a run's tabs are seen, the open one too. */
            [class*="st-key-run-tabs"] > * > [role="tablist"] { flex-wrap: wrap; gap: 0 .6rem; }
            /* A prompt stands above its pictures: beside them there is no room for a second one. */
            .fg-wide, .fg-wide thead, .fg-wide tbody { display: block; }
            .fg-wide tr { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .6rem; }
            .fg-wide tbody th { position: static; flex: 1 0 100%; width: auto; }
            .fg-wide thead th { flex: 1 1 0; min-width: 0; overflow-wrap: anywhere; }
            .fg-wide thead th:first-child { display: none; }
            .fg-wide td { flex: 1 1 0; width: auto; min-width: 0; }
            .st-key-samples-tools > :first-child { flex: 1 0 100%; }
            .st-key-large-steps, .st-key-large-prompts { flex-wrap: wrap; }
            .st-key-large-steps > :nth-child(2), .st-key-large-prompts > :first-child { order: -1; flex: 1 0 100%; }
            .st-key-loss-tools { gap: .3rem 1rem; }
            [class*="st-key-checkpoint-"] { flex-wrap: wrap; }
            [class*="st-key-checkpoint-"] > :first-child { flex: 1 0 100%; }
        }
        </style><span hidden></span>"""
    )


def looking_only() -> None:
    """What a viewer sees of buttons that would be refused anyway: nothing. And the word that it is so."""
    hidden = ", ".join(f'[class*="st-key-{name}"]' for name in CHANGE)
    st.container(key="looking").html(f"<style>{hidden} {{ display: none !important; }}</style><span hidden></span>")
    st.caption(":material/visibility: You look on: this link can change nothing.")


def bar(share: float) -> str:
    """How far something is, 0 to 1."""
    percent = f"{max(0.0, min(1.0, share)):.1%}"
    return (
        f"<div class=fg-bar role=progressbar aria-label='Progress' aria-valuemin=0 aria-valuemax=100 "
        f"aria-valuenow={percent[:-1]}><div style='width: {percent}'></div></div>"
    )


def facts(pairs: list[tuple[str, str]]) -> str:
    """Names and values in one row that wraps on a phone."""
    rows = "".join(f"<span><i>{html.escape(name)}</i>{html.escape(value)}</span>" for name, value in pairs if value)
    return f"<div class=fg-facts>{rows}</div>"


def pictures(items: list[tuple[str, str, str, str]], least: int = 150) -> str:
    """A grid of linked pictures: (small address, full address, description, line under it)."""
    return f"<div class=fg-grid style='--fg:{least}px'>{''.join(_figure(*item) for item in items)}</div>"


def picture(small: str, full: str, description: str, *, large: bool = False) -> str:
    """One linked picture that fills its place; `large`: as much of it as the window has room for."""
    return _figure(small, full, description, "", "fg-large" if large else "fg-alone")


def cut_picture(small: str, full: str, description: str, width: int, height: int) -> str:
    """A linked picture cut about its middle to width : height, as it is for training."""
    return _figure(small, full, description, "", "fg-cut", f"aspect-ratio: {width} / {height}")


def pairs(rows: list[tuple[str, list[tuple[str, tuple[str, str, str, str]]]]]) -> str:
    """For each prompt one or two pictures beside each other: (prompt, [(line under it, picture)])."""
    blocks = []
    for prompt, items in rows:
        figures = "".join(_figure(small, full, alt, line) for line, (small, full, alt, _) in items)
        blocks.append(f"<div><p>{html.escape(prompt)}</p><div class=fg-pair>{figures}</div></div>")
    return f"<div class=fg-pairs>{''.join(blocks)}</div>"


def thumbnail(found: tuple[str, str] | None) -> str:
    """A small square picture (address, description), or its empty place."""
    if found is None:
        return "<div class=fg-thumb></div>"
    return f"<img class=fg-thumb src='{html.escape(found[0])}' alt='{html.escape(found[1])}' loading=lazy>"


def spark(address: str, description: str) -> str:
    """A small curve, or its empty place."""
    if not address:
        return "<div class=fg-spark></div>"
    return f"<img class=fg-spark src='{html.escape(address)}' alt='{html.escape(description)}'>"


def matrix(
    heads: list[str], lines: list[tuple[str, list[tuple[str, str, str, str] | None]]], *, wide: bool = False
) -> str:
    """A table of pictures that scrolls sideways: a line for each prompt, a column for each step (or run: `wide`)."""
    head = "".join(f"<th scope=col>{html.escape(text)}</th>" for text in heads)
    body = []
    for prompt, cells in lines:
        drawn = "".join(f"<td>{_figure(*cell) if cell else ''}</td>" for cell in cells)
        body.append(f"<tr><th scope=row>{html.escape(prompt)}</th>{drawn}</tr>")
    kind = "fg-matrix fg-wide" if wide else "fg-matrix"
    return (
        f"<div class=fg-scroll><table class='{kind}'><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def legend(items: list[tuple[str, str]]) -> str:
    """What colour of a chart is whose: (name, colour). It wraps, which Vega's own does not."""
    parts = [f"<span><i style='background:{color}'></i>{html.escape(name)}</span>" for name, color in items]
    return f"<div class=fg-legend>{''.join(parts)}</div>"


def settings(heads: list[str], rows: list[tuple[str, str, list[str]]]) -> str:
    """A table of settings, (label, name, values): a column for each of `heads`, which wraps where it is narrow."""
    head = "".join(f"<th scope=col>{html.escape(text)}</th>" for text in heads)
    body = []
    for label, name, values in rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        same = " class=fg-same" if len(set(values)) == 1 else ""
        named = f"{html.escape(label)}<code>{html.escape(name).replace('_', '_<wbr>')}</code>"
        body.append(f"<tr{same}><th scope=row>{named}</th>{cells}</tr>")
    return f"<table class=fg-settings><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _figure(small: str, full: str, description: str, line: str, kind: str = "", style: str = "") -> str:
    caption = f"<figcaption>{html.escape(line)}</figcaption>" if line else ""
    styled = f" style='{html.escape(style)}'" if style else ""
    return (
        f"<figure class='fg-pic {kind}'><a href='{html.escape(full)}' target=_blank rel=noopener>"
        f"<img src='{html.escape(small)}' alt='{html.escape(description)}' loading=lazy{styled}></a>{caption}</figure>"
    )
