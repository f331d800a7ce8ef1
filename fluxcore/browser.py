"""Which Chromium the tests and the pictures of the app use, and whether they must have one."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def is_ci() -> bool:
    """Whether this is a CI run (`CI` is set to anything but 0 or false): nothing may be skipped then."""
    return os.environ.get("CI", "").strip().lower() not in ("", "0", "false", "no")


def find_chromium() -> str | None:
    """The path of a Chromium: `$CHROMIUM`, else the first of the usual names on the PATH; None where there is none."""
    given = os.environ.get("CHROMIUM")
    return shutil.which(given) if given else next(filter(None, map(shutil.which, NAMES)), None)
