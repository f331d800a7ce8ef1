"""`./fluxgym bench fuzz-log`: mutated lines and files, read line by line and in bulk: no crash, no good line lost.

What a line means is said by `fluxcore.log.event.decode`; both readers must find exactly the lines that it takes, and
fold and store the same from them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxcore.history import connect, engine
from fluxcore.log import Event, LogReader
from fluxcore.log.event import encode
from fluxcore.runs import RunState, fold

LINES_PER_FILE = 500
MUTATIONS = 15


def good_lines(rng: random.Random, count: int) -> list[bytes]:
    """Lines of a plausible run, of every frequent type and some rare ones."""
    lines = []
    for n in range(1, count + 1):
        ts = f"2026-11-23T20:{n // 60000 % 60:02d}:{n // 1000 % 60:02d}.{n % 1000:03d}000Z"
        type, data = _event(rng, n)
        attempt = rng.choice([1, 1, 1, 2, None])
        lines.append(encode(Event(ts, "run", type, "trainer", f"trainer-{n % 3}-ab", n, data, attempt)))
    return lines


def _event(rng: random.Random, n: int) -> tuple[str, dict[str, Any]]:
    kind = rng.randrange(14)
    number: Callable[[], Any] = lambda: rng.choice([rng.random(), rng.random(), None, math.nan, 1e-7, -3, math.inf])
    if kind < 7:
        seconds = rng.choice([0.5, None, -1.0])
        data = {"step": n, "total_steps": 900, "epoch": 1 + n // 100, "loss": number(), "lr": 1e-4}
        return "train.step", data | {"grad_norm": number(), "step_seconds": seconds, "memory_gib": number()}
    if kind < 9:
        return "gpu.sampled", {"index": rng.randrange(2), "uuid": rng.choice(["a", "b", None]), "power_watts": number()}
    if kind == 9:
        return "host.sampled", {"cpu_percent": number(), "rss_gib": 1.5}
    if kind == 10:
        return "phase.started", {"phase": rng.choice(["train", "sample"]), "total": n}
    if kind == 11:
        return "run.started", {"request": "cli-1:1", "pid": n, "resume_step": rng.choice([None, n])}
    if kind == 12:
        return rng.choice(["run.stopped", "run.failed", "run.completed"]), {"reason": "nan é \U0001f600", "steps": n}
    return "config.saved", {"config": {"lora_name": "x", "sample_prompts": "a\nb", "n": [1, {"a": None}]}}


def mutate(rng: random.Random, line: bytes, kind: int) -> bytes:
    """`line` as a fault, a stranger or a bit flip might have left it; `kind` is below MUTATIONS."""
    body = line.rstrip(b"\n")
    at, end = sorted((rng.randrange(len(body)), rng.randrange(len(body))))
    changed = {
        0: body[:at],
        1: body[at:],
        2: body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :],
        3: body[:at] + body[end:],
        4: body[:at] + body[at:end] * 2 + body[end:],
        5: b"\0" * rng.randrange(1, 9) + body,
        6: b"",
        7: b" \t" + body + b" \r",
        8: body.replace(b":", rng.choice([b": ", b":\t"]), rng.randrange(1, 9)),
        9: body.replace(
            rng.choice([b"0", b"1", b"null", b'"trainer"', b"0.5"]),
            rng.choice(
                [b"NaN", b"-Infinity", b"1e999", b"true", b'"7"', b"1.0", b"1.5", b"[]", b"{}", b"1" * 25, b"-0"]
            ),
            1,
        ),
        10: body[:at] + b"\n" + body[at:],
        11: body + body,
        12: bytes(rng.randrange(256) for _ in range(rng.randrange(80))),
        14: re.sub(rb"([}\]])", rng.choice([rb",\1", rb", \1", rb",\t\1"]), body, count=rng.choice([0, 1])),
        13: body.replace(b'"', rng.choice([b"'", b'\\"', b'"\\u0000', b'"\\ud800', b'\xff"']), rng.randrange(1, 3)),
    }[kind]
    return changed + b"\n"


def harm(rng: random.Random, content: bytes) -> bytes:
    """A file as a disk's fault, a power cut or a stranger might have left it: a range of bytes is not what it was."""
    at, end = sorted(rng.randrange(len(content)) for _ in range(2))
    end = min(end, at + 8192)
    lost, before, after = content[at:end], content[:at], content[end:]
    return rng.choice(
        [
            before + bytes(len(lost)) + after,
            before + rng.randbytes(len(lost)) + after,
            before + after,
            before + lost,
            before + lost + lost + after,
            lost + before + after,
        ]
    )


def _lines(content: bytes) -> list[bytes]:
    *whole, torn = content.split(b"\n")
    return [line + b"\n" for line in whole] + [torn] * bool(torn)


def compare(lines: list[bytes], place: Path, sure: frozenset[bytes] = frozenset()) -> int:
    """Read a file of those lines both ways and assert that they agree; how many events there are.

    `sure`: lines that nobody mutated, each of which must be among the events.
    """
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    reader = LogReader(folder / "events.jsonl")
    events = reader.read_new()
    missing = sure - {encode(event) for event in events} if sure else sure
    assert not missing, f"good lines that were not found: {sorted(missing)[:3]}"
    expected = fold("run", events)
    expected.bad_lines = reader.bad_lines
    before = engine.BULK_BYTES
    found = []
    try:
        for bulk_bytes in (0, 1 << 60):
            engine.BULK_BYTES = bulk_bytes
            with connect(place) as history:
                state = history.state("run") or RunState("run")
                rows = history.query("SELECT ts, type, source, writer, n, attempt, data FROM events")
                steps = history.query("SELECT * FROM store.step_rows")
                found.append((state, _rows(rows), _rows(steps), history.bad_lines("run")))
    finally:
        engine.BULK_BYTES = before
    bulk, plain = found
    assert len(events) == len(plain[1]) == len(bulk[1]), (len(events), len(plain[1]), len(bulk[1]))
    for ours, theirs in zip(bulk[1:], plain[1:], strict=True):
        assert ours == theirs, _difference(ours, theirs)
    assert bulk[3] == reader.bad_lines
    for state in (bulk[0], plain[0]):
        assert not (difference := differing(state, expected)), difference
    return len(events)


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(repr([_plain(key, value) for key, value in row.items()]) for row in rows)


def _plain(key: str, value: Any) -> Any:
    if key != "data":
        return value
    # Line by line, a number of more than 64 bits becomes a float; in bulk its text stays as it was.
    return json.dumps(
        json.loads(value, parse_int=lambda text: int(text) if len(text) < 20 else float(text)), sort_keys=True
    )


def _difference(ours: Any, theirs: Any) -> str:
    if not isinstance(ours, list):
        return f"{ours} is not {theirs}"
    return (
        f"only in bulk: {sorted(set(ours) - set(theirs))[:3]}, only line by line: {sorted(set(theirs) - set(ours))[:3]}"
    )


def differing(one: RunState, other: RunState) -> list[tuple[str, Any, Any]]:
    """The fields in which two states differ: name, the one's and the other's value."""
    pairs = [(name, value, vars(other)[name]) for name, value in vars(one).items()]
    return [pair for pair in pairs if not _same(pair[1], pair[2])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):  # the order of GPUs is that of their first or last sample
        one, other = sorted(one.items(), key=repr), sorted(other.items(), key=repr)
    return repr(one) == repr(other) or _moments(repr(one)) == _moments(repr(other))  # in text nan is nan


def _moments(text: str) -> str:
    """`text` without its times: in bulk a moment that was written oddly (mutated) is known, but not how."""
    return re.sub(r"'\d{4}[0-9T:.Z+-]+'", "'a time'", text)


def _says_twice(lines: bytes) -> bool:
    """Whether a JSON object in there has a key twice: then either value is right, and nothing can be compared."""
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice = twice or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    for line in lines.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(line.lstrip(b"\0"), object_pairs_hook=look)
    return twice


def run(count: int, seed: int) -> tuple[int, int]:
    """Read `count` lines, half of them mutated, in files of LINES_PER_FILE; lines and the events found in them."""
    found = 0
    with tempfile.TemporaryDirectory(prefix="fluxgym-fuzz-") as place:
        for file in range(math.ceil(count / LINES_PER_FILE)):
            rng = random.Random(f"{seed}-{file}")
            # Few kinds at a time: a blank line alone sends the whole file to the slower reader.
            kinds = rng.sample(range(MUTATIONS), rng.choice([1, 1, 2, MUTATIONS]))
            good = good_lines(rng, LINES_PER_FILE)
            lines = [mutate(rng, line, rng.choice(kinds)) if rng.random() < 0.5 else line for line in good]
            if rng.random() < 0.2:
                lines = _lines(harm(rng, b"".join(lines)))
            lines = [line for line in lines if not _says_twice(line)]
            try:
                found += compare(lines, Path(place), frozenset(good) & frozenset(lines))
            except AssertionError:
                print(f"seed {seed}, file {file}", file=sys.stderr)
                raise
    return math.ceil(count / LINES_PER_FILE) * LINES_PER_FILE, found


def main() -> int:
    """The command. Returns 0; what the readers disagree on ends it with an AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200_000, help="half of them are mutated")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    lines, found = run(arguments.lines, arguments.seed)
    print(
        f"{lines:,} lines in {lines // LINES_PER_FILE} files, about {lines // 2:,} of them mutated: 0 crashes, "
        f"{found:,} good lines found by both readers, state and rows equal; {time.perf_counter() - started:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
