"""`docs/events.md` from the catalog of events, and what is wrong with an event by it.

python -m fluxcore.log.page > docs/events.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .catalog import TYPES

HEAD = """# Events

Every type of event, with every field of its `data`. One JSON object a line:

    {"v":1,"ts":"2026-11-23T20:01:15.123456Z","run":"my-cat","type":"train.step","source":"trainer",
     "writer":"trainer-4711-3f2a","n":17,"attempt":1,"data":{…}}

`ts` is UTC, `n` counts from 1 for each writer and run, `attempt` stands on every event from `run.started` to the
attempt's end. A number that is not finite is the string "nan", "inf" or "-inf". Readers ignore what they don't know.
**Durable** events are on the disk before anyone is told of them; the others are handed to the kernel, which keeps them
through any death of a process.

A line is at most 256 KiB. What would make an event longer (evidence, last lines of a log) goes into a file of the
run's folder: the event then names it in `side_file`, and in `side_fields` the fields that are whole only there; of a
long text its beginning stays. A config is never split: it is refused.

This page is written by `python -m fluxcore.log.page`; tests compare it, and what is written, with the code.
"""

BY_NAME = {type.name: type for type in TYPES}


def problems(type: str, data: Mapping[str, Any]) -> list[str]:
    """How an event's `data` differs from what is documented of its type; empty where it doesn't."""
    known = BY_NAME.get(type)
    if known is None:
        return [f"{type} is not documented"]
    if "side_file" in data:  # the rest of it lies there
        return []
    fields = {field.name: field for field in known.fields}
    found = [f"{type}.{name} is not documented" for name in data if name not in fields]
    found += [
        f"{type}.{field.name} is missing" for field in known.fields if field.name not in data and not field.optional
    ]
    found += [
        f"{type}.{name} is null"
        for name, value in data.items()
        if value is None and name in fields and not fields[name].maybe
    ]
    return found


def markdown() -> str:
    """`docs/events.md`."""
    lines = [HEAD.rstrip()]
    for type in TYPES:
        lines += ["", f"## {type.name}", "", f"{type.meaning[0].upper()}{type.meaning[1:]}."]
        lines += [f"By {type.by}.{' Durable.' if type.durable else ''}", ""]
        lines += ["| field | what | unit |", "| --- | --- | --- |"]
        for field in type.fields:
            notes = "; ".join(["may be null"] * field.maybe + ["may be missing"] * field.optional)
            lines.append(f"| `{field.name}` | {field.meaning}{f' ({notes})' if notes else ''} | {field.unit} |")
        lines += ["", f"    {json.dumps(type.example, ensure_ascii=False)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
