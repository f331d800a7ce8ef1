"""Where the server serves: at the root of its address, or below a path (`server.baseUrlPath`)."""

from __future__ import annotations


def prefix(base: str) -> str:
    """What stands before every path of ours: "" or `/gym`, however `base` is written."""
    return f"/{base.strip('/')}" if base.strip("/") else ""
