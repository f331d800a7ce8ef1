"""The gate: nobody sees a page, a file or the websocket without the token, on any address that is not loopback.

The token comes in a link (`/?token=…`), becomes a cookie and leaves the address bar. The cookie holds an HMAC of the
token, so reading a cookie jar does not give the link away. A server on loopback asks nothing of `http://localhost`;
asked under any other name (a tunnel, or a web page that points its own name at 127.0.0.1) it wants the token too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sys
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from fluxcore.access import is_loopback

COOKIE_DAYS = 30
WRONG_TOKEN_SECONDS = 0.5
MOST_WAITING = 20
OPEN_PATHS = frozenset({"/_stcore/health"})
"""What container health checks ask for: it says "ok" and nothing else."""

Scope = dict[str, Any]


class Gate:
    """Pure ASGI middleware. `token` opens it; `trust_loopback` lets requests for a loopback host name through."""

    def __init__(
        self,
        app: Callable[..., Any],
        token: str,
        trust_loopback: bool = False,
        announce: Callable[[], None] | None = None,
    ) -> None:
        """`announce` is called once, at the first request that is turned away (see `studio.server`)."""
        self.app = app
        self._token = token
        self._trust_loopback = trust_loopback
        self._announce = announce
        # The name carries the token's fingerprint: two servers on one host keep cookies of their own.
        self._cookie = "fluxgym-" + hashlib.sha256(f"name {token}".encode()).hexdigest()[:8]
        self._value = hmac.new(token.encode(), b"fluxgym cookie 1", hashlib.sha256).hexdigest()
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4401, "reason": "the token is missing"})
        else:
            await self._answer(scope, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS or self._has_cookie(scope):
            # A link that is opened again still loses its token from the address bar.
            return scope["type"] == "websocket" or self._given_token(scope) is None
        return self._trust_loopback and is_loopback(_host(scope)) and self._given_token(scope) is None

    def _has_cookie(self, scope: Scope) -> bool:
        for header in _headers(scope, b"cookie"):
            try:
                morsel = SimpleCookie(header).get(self._cookie)
            except CookieError:
                continue
            if morsel and hmac.compare_digest(morsel.value.encode(), self._value.encode()):
                return True
        return False

    @staticmethod
    def _given_token(scope: Scope) -> str | None:
        return next((value for key, value in _query(scope) if key == "token"), None)

    async def _answer(self, scope: Scope, send: Callable[..., Any]) -> None:
        given = self._given_token(scope)
        if given is not None and hmac.compare_digest(given.encode(), self._token.encode()):
            await self._welcome(scope, send)
            return
        if self._announce:
            self._announce()
            self._announce = None
        if given is not None:
            if self._waiting >= MOST_WAITING:
                await _respond(send, 429, _page("Too many attempts", "Wait a moment, then open the link again."))
                return
            self._waiting += 1
            try:
                await asyncio.sleep(WRONG_TOKEN_SECONDS)
            finally:
                self._waiting -= 1
        what = "That token is not the right one." if given is not None else "This FluxGym asks for its token."
        await _respond(send, 401, _page(what, HOW))

    async def _welcome(self, scope: Scope, send: Callable[..., Any]) -> None:
        rest = urlencode([(key, value) for key, value in _query(scope) if key != "token"])
        # Relative, so that it holds behind a proxy that strips a prefix, and can't lead to another host.
        target = "./" + quote(scope["path"].rpartition("/")[2]) + (f"?{rest}" if rest else "")
        secure = "; Secure" if _is_https(scope) else ""
        cookie = f"{self._cookie}={self._value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={COOKIE_DAYS * 86_400}{secure}"
        await _respond(send, 303, "", [(b"location", target.encode()), (b"set-cookie", cookie.encode())])


def say(line: str) -> None:
    """One line for the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


HOW = (
    "Open the link with <code>?token=…</code> that the terminal printed when FluxGym started. "
    "Where it printed none, the token stands in the file <code>.token</code> of the outputs folder: "
    "add <code>?token=</code> and it to this address. This browser is then let in for 30 days."
)


def _page(title: str, text: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta name=color-scheme content='light dark'><title>FluxGym</title>"
        "<body style='font:16px/1.6 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1.2rem'>"
        f"<h1 style='font-size:1.3rem'>{title}</h1><p>{text}</p></body></html>"
    )


async def _respond(
    send: Callable[..., Any], status: int, body: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    data = body.encode()
    always = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": always + (headers or [])})
    await send({"type": "http.response.body", "body": data})


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _host(scope: Scope) -> str:
    return next(iter(_headers(scope, b"host")), "")


def _is_https(scope: Scope) -> bool:
    return scope.get("scheme") in ("https", "wss") or "https" in _headers(scope, b"x-forwarded-proto")[:1]
