"""What viewers may do: see everything, change nothing. Enforced where things change, whatever a page draws.

A page could forget to leave a button out, and a browser can press buttons that are not drawn. So the rule stands at the
only place that every change goes through: the interpreter's own audit events. In a thread that runs a viewer's page
nothing is opened for writing, renamed, removed or made, no process is started and none is signalled, except below
FREE; what is tried raises a PermissionError, which pages show as the sentence that it is.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner_utils.script_run_context import get_script_run_ctx

from fluxcore.access import viewer_token
from fluxcore.runs import default_outputs

from .gate import OWNER, ROLE_HEADER, VIEWER, fingerprint

SENTENCE = "this link may look, and change nothing: ask the owner for the other link"
FREE = (".history", ".plans")
"""Folders of the outputs folder with what is only derived: whoever looks first may make it."""
MOST_SESSIONS = 10_000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "open": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1,
}  # fmt: skip
"""Audit events that change a file, and how many of their first arguments are paths."""
_PROCESSES = frozenset(
    {"subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty", "os.system", "os.kill", "os.killpg"}
)


_roles: OrderedDict[str, str] = OrderedDict()
_is_guarded = False


def role() -> str:
    """Who looks at this page, as the gate says: `owner`, `viewer …`; "" where there is no gate (a test's page).

    Of a session whose browser is gone, what it was while it was there: an action does not outlive the right to it.
    """
    context = get_script_run_ctx(suppress_warning=True)
    if context is None:
        return ""
    if said := st.context.headers.get(ROLE_HEADER.decode()):
        _roles[context.session_id] = said
        while len(_roles) > MOST_SESSIONS:
            _roles.popitem(last=False)
        return said
    return _roles.get(context.session_id, "nobody" if _is_guarded else "")


def is_viewer() -> bool:
    """Whether this page is seen by somebody who may change nothing. Who is not known counts as one."""
    return role() not in ("", OWNER)


def is_shut_out() -> bool:
    """Whether a viewer's link was taken back while its page was open."""
    kind, _, print_of = role().partition(" ")
    if kind != VIEWER or not print_of:  # a viewer without a token's fingerprint has logged in with an account
        return kind not in ("", OWNER, VIEWER)
    token = viewer_token(default_outputs())
    return token is None or fingerprint(token) != print_of


def guard() -> None:
    """From now on, in this process, only who came through the gate as an owner changes anything."""
    global _is_guarded
    _is_guarded = True
    hook_once()


@cache
def hook_once() -> None:
    """Set the audit hook. It can't be taken away again."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        """Refuse what would change something while a viewer's page is drawn. Raises PermissionError."""
        count = _PATHS.get(event)
        if count is None and event not in _PROCESSES:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITING):
            return
        if event in ("os.kill", "os.killpg") and args[1] in (0, signal.SIG_DFL):
            return  # asks whether a process lives
        if get_script_run_ctx(suppress_warning=True) is None or not is_viewer():
            return
        for given in args[: count or 0]:
            if isinstance(given, int):  # a descriptor: what it is open for was asked when it was opened
                continue
            if not _is_free(os.path.abspath(os.fsdecode(given))):
                raise PermissionError(errno.EACCES, SENTENCE)
        if count is None:
            raise PermissionError(errno.EACCES, SENTENCE)

    sys.addaudithook(hook)


def _is_free(path: str) -> bool:
    """Whether whoever looks may write there."""
    inside, outputs = _below(path, os.path.abspath(default_outputs()))
    if inside:
        return outputs.partition(os.sep)[0] in FREE
    return any(_below(path, folder)[0] for folder in (tempfile.gettempdir(), "/dev", "/proc")) or "__pycache__" in path


def _below(path: str, folder: str) -> tuple[bool, str]:
    """Whether `path` lies in `folder`, and what of it is below that."""
    return path == folder or path.startswith(folder + os.sep), path[len(folder) + 1 :]


def link(token: str, url: str) -> str:
    """The address that lets viewers in, made from a page's own."""
    site = url.partition("?")[0].rstrip("/")
    root = site if Path(site).name.count(".") or site.count("/") <= 2 else site.rpartition("/")[0]
    return f"{root}/?token={token}"
