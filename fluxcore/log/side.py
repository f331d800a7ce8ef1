"""What does not fit into a line of the log: it goes to a file of its own, which the event names.

    outputs/NAME/events-side/WRITER-N.json     the event's whole data

The event keeps its short fields as they are and the beginning of its long texts; `side_file` is the path relative to
the run's folder, `side_fields` names what is whole only there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from fluxcore.atomic import write_atomic

from .event import MAX_LINE_BYTES, Event, keep_non_finite

FOLDER = "events-side"
KEEP_BYTES = 4096
"""A field whose JSON is longer leaves the line; of a text so much stays."""
_NAME = re.compile(rf"{FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]*\.json")


@contextmanager
def put_aside(folder: Path, event: Event) -> Iterator[Event]:
    """Write the event's data into its side file and give the event that names it; no event, no file.

    Raises OSError where the file can't be written.
    """
    name = f"{FOLDER}/{event.writer}-{event.n}.json"
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, orjson.dumps(keep_non_finite(event.data)))
    short, long = dict[str, Any](), []
    for key, value in event.data.items():
        if len(orjson.dumps(keep_non_finite(value))) <= KEEP_BYTES:
            short[key] = value
        else:
            long.append(key)
            if isinstance(value, str):
                short[key] = value[:KEEP_BYTES]
    if len(orjson.dumps(short)) > MAX_LINE_BYTES // 2:  # many short ones
        short, long = {}, list(event.data)
    try:
        yield event._replace(data={**short, "side_file": name, "side_fields": long})
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def side_data(folder: Path, name: object) -> dict[str, Any]:
    """An event's whole data, from the side file `name` (its `side_file`) of the run in `folder`.

    Empty where there is none, where it is gone or damaged, and where its name leads elsewhere.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return {}
    try:
        found = orjson.loads((folder / name).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
