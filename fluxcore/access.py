"""Who may come in: which addresses are this machine's own, the token of all others, that of who only looks."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path

from fluxcore.atomic import write_atomic

TOKEN_FILE = ".token"
VIEWER_FILE = ".viewer-token"


def is_loopback(host: str) -> bool:
    """Whether a host name, with or without its port, is this machine's own: localhost, 127.0.0.0/8, ::1."""
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_token(outputs: Path) -> str:
    """`$FLUXGYM_TOKEN`, else the token kept in the outputs folder (made at first, readable by its owner alone).

    It is kept so that a phone that was let in stays in when the app restarts. Raises OSError where it can't be kept.
    """
    if given := os.environ.get("FLUXGYM_TOKEN"):
        return given
    file = outputs / TOKEN_FILE
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(24) + "\n")
    except FileExistsError:
        pass
    token = file.read_text(encoding="ascii").strip()
    if len(token) < 16:  # torn by a full disk: an empty token would open the gate to everyone
        file.unlink(missing_ok=True)
        return load_token(outputs)
    return token


def viewer_token(outputs: Path) -> str | None:
    """The token of the link that may look and change nothing; None where there is no such link."""
    try:
        token = (outputs / VIEWER_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return token if len(token) >= 16 else None


def make_viewer_token(outputs: Path) -> str:
    """Make (or make anew: the old link stops working) the viewers' token. Raises OSError."""
    token = secrets.token_urlsafe(24)
    write_atomic(outputs / VIEWER_FILE, (token + "\n").encode(), mode=0o600)
    return token


def remove_viewer_token(outputs: Path) -> None:
    """Lock viewers out. Raises OSError."""
    (outputs / VIEWER_FILE).unlink(missing_ok=True)
