"""The token for gated models of the Hugging Face Hub, kept where the Hub's own tools keep theirs: they all read it.

It goes in and never out again: nothing here returns it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError

ENVIRONMENT = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_FORM = re.compile(r"hf_[A-Za-z0-9]{16,}")


def token_file() -> Path:
    """Where it is kept: `$HF_TOKEN_PATH`, else `token` in `$HF_HOME`, by default `~/.cache/huggingface`."""
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH)


def token_source() -> str:
    """`environment`, `file`, or "" where there is none. The environment's counts."""
    if any(os.environ.get(name, "").strip() for name in ENVIRONMENT):
        return "environment"
    try:
        return "file" if token_file().read_text().strip() else ""
    except OSError:
        return ""


def keep_token(text: str) -> None:
    """Keep it, readable by its owner alone. Raises UserError, without a word of what was given."""
    text = text.strip()
    if not _FORM.fullmatch(text):
        raise UserError("that is no token of the Hub: one begins with hf_ (huggingface.co/settings/tokens makes one)")
    file = token_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text.encode(), mode=0o600)
    except OSError as error:
        raise UserError(f"the token can't be kept in {file} ({error.strerror}); set HF_TOKEN instead") from None


def forget_token() -> None:
    """Remove the kept one. Raises UserError."""
    try:
        token_file().unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{token_file()} can't be removed ({error.strerror})") from None
