"""What a run may be called."""

from __future__ import annotations

import re
import unicodedata

MAX_NAME_LENGTH = 64
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "a name is 1 to 64 letters, digits, dots, dashes or underscores, and starts with a letter or digit"


def is_valid_name(name: str) -> bool:
    """Whether `name` may be a run's folder."""
    return NAME_PATTERN.fullmatch(name) is not None


def slugify(text: str) -> str:
    """The nearest valid name to what a person typed: `"My Cat!"` → `"My-Cat"`; "" where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._]+", "-", plain)).strip("-._")[:MAX_NAME_LENGTH].rstrip("-._")
