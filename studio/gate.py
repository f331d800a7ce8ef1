"""The gate: nobody sees a page, a file or the websocket without a token, on any address that is not loopback.

The token comes in a link (`/?token=…`) or is typed into the page that asks for it, becomes a cookie and leaves the
address bar. The cookie holds an HMAC of the token, so reading a cookie jar does not give the link away. A server on
loopback asks nothing of `http://localhost`; asked under any other name (a tunnel, or a web page that points its own
name at 127.0.0.1) it wants the token too.

Two kinds of people come in: the owner, and viewers, who have a token of their own. The gate tells the pages who it is
by a header that nobody else can set (ROLE_HEADER); what viewers may not do is `studio.access`'s matter, but for
uploads, which end here. Where Streamlit's own log-in (OIDC) is set up, `sign_in` says who has come in by it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sys
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

from fluxcore.access import is_loopback

from .slowing import Slowing

if TYPE_CHECKING:
    from .sign_in import SignIn

COOKIE_DAYS = 30
WRONG_TOKEN_SECONDS = 0.5
MOST_BODY_BYTES = 4096
OPEN_PATHS = frozenset({"/_stcore/health"})
"""What container health checks ask for: it says "ok" and nothing else."""
ROLE_HEADER = b"x-fluxgym-role"
OWNER, VIEWER = "owner", "viewer"
_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})

Scope = dict[str, Any]
Receive = Callable[..., Any]
Send = Callable[..., Any]


class Gate:
    """Pure ASGI middleware. `token` opens it; `trust_loopback` lets requests for a loopback host name through."""

    def __init__(
        self,
        app: Callable[..., Any],
        token: str,
        trust_loopback: bool = False,
        announce: Callable[[], None] | None = None,
        viewer_token: Callable[[], str | None] = lambda: None,
        sign_in: SignIn | None = None,
    ) -> None:
        """`announce` is called once, at the first request that is turned away (see `studio.server`).

        `viewer_token` gives the viewers' token of the moment.
        """
        self.app = app
        self._token = token
        self._trust_loopback = trust_loopback
        self._announce = announce
        self._viewer_token = viewer_token
        self._sign_in = sign_in
        self._slowing = Slowing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        role = self._role(scope)
        wants_in = scope["type"] == "http" and self._given_token(scope) is not None
        if scope["path"] in OPEN_PATHS or (role is not None and not wants_in):
            await self._let_in(role, scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4401, "reason": "the token is missing"})
        elif self._sign_in and scope["path"] in self._sign_in.paths and not wants_in:
            await self.app(_with_role(scope, None), receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _let_in(self, role: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        if role != OWNER and scope["type"] == "http" and scope["method"] not in _LOOKING:
            await _respond(send, 403, _page("This link may look only", "It can't upload or change anything."))
            return
        await self.app(_with_role(scope, role), receive, send)

    def _role(self, scope: Scope) -> str | None:
        """`owner`, or `viewer` with the fingerprint of the token that let them in; None for everybody else."""
        if _has_cookie(scope, self._token):
            return OWNER
        if self._trust_loopback and is_loopback(_host(scope)):
            return OWNER
        signed = self._sign_in.role(scope) if self._sign_in else None
        if signed == OWNER:
            return OWNER
        viewers = self._viewer_token()
        if viewers and _has_cookie(scope, viewers):
            return f"{VIEWER} {fingerprint(viewers)}"
        return signed

    @staticmethod
    def _given_token(scope: Scope) -> str | None:
        return next((value for key, value in _query(scope) if key == "token"), None)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = self._given_token(scope)
        if given is None and scope["method"] == "POST":
            given = await _typed_token(scope, receive)
        if given is None:
            self._turned_away()
            await _respond(send, 401, self._ask("This FluxGym asks for its token."))
            return
        client = (scope.get("client") or ("", 0))[0]
        if wait := self._slowing.seconds_left(client):
            # Nobody's token is looked at meanwhile: else guesses that run beside each other would not be slowed.
            text = f"Wait {wait:.0f} seconds, then open the link again."
            await _respond(send, 429, _page("Too many attempts", text), [(b"retry-after", str(int(wait) + 1).encode())])
            return
        viewers = self._viewer_token()
        for token in (self._token, viewers):
            if token and hmac.compare_digest(given.encode(), token.encode()):
                self._slowing.succeeded(client)
                await self._welcome(token, scope, send)
                return
        self._turned_away()
        self._slowing.failed(client)
        await asyncio.sleep(WRONG_TOKEN_SECONDS)
        await _respond(send, 401, self._ask("That token is not the right one."))

    def _turned_away(self) -> None:
        if self._announce:
            self._announce()
            self._announce = None

    def _ask(self, what: str) -> str:
        link = f"<p><a href='{self._sign_in.link()}'>Log in with your account</a></p>" if self._sign_in else ""
        return _page(what, HOW, link + FORM)

    async def _welcome(self, token: str, scope: Scope, send: Send) -> None:
        rest = urlencode([(key, value) for key, value in _query(scope) if key != "token"])
        # Relative, so that it holds behind a proxy that strips a prefix, and can't lead to another host.
        target = "./" + quote(scope["path"].rpartition("/")[2]) + (f"?{rest}" if rest else "")
        secure = "; Secure" if _is_https(scope) else ""
        name, value = _cookie(token)
        cookie = f"{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={COOKIE_DAYS * 86_400}{secure}"
        await _respond(send, 303, "", [(b"location", target.encode()), (b"set-cookie", cookie.encode())])


def fingerprint(token: str) -> str:
    """Tells one token from another without giving it away."""
    return hashlib.sha256(f"name {token}".encode()).hexdigest()[:8]


def say(line: str) -> None:
    """One line for the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


HOW = (
    "Open the link with <code>?token=…</code> that the terminal printed when FluxGym started, or type the token. "
    "Where none was printed, it stands in the file <code>.token</code> of the outputs folder. "
    "This browser is then let in for 30 days."
)
FORM = (
    "<form method=post><label>Token <input name=token type=password required autocomplete=current-password autofocus "
    "style='font:inherit;padding:.35rem .6rem;width:16rem;max-width:100%'></label> "
    "<button style='font:inherit;padding:.35rem 1rem'>Open</button></form>"
)


def _cookie(token: str) -> tuple[str, str]:
    """Name and value. The name carries the token's fingerprint: two servers on one host keep cookies of their own."""
    return f"fluxgym-{fingerprint(token)}", hmac.new(token.encode(), b"fluxgym cookie 1", hashlib.sha256).hexdigest()


def _has_cookie(scope: Scope, token: str) -> bool:
    name, value = _cookie(token)
    for header in _headers(scope, b"cookie"):
        try:
            morsel = SimpleCookie(header).get(name)
        except CookieError:
            continue
        if morsel and hmac.compare_digest(morsel.value.encode(), value.encode()):
            return True
    return False


def _with_role(scope: Scope, role: str | None) -> Scope:
    """The scope with our header, whatever the client sent under its name."""
    headers = [(key, value) for key, value in scope["headers"] if key.lower() != ROLE_HEADER]
    return {**scope, "headers": [*headers, (ROLE_HEADER, (role or "nobody").encode())]}


async def _typed_token(scope: Scope, receive: Receive) -> str | None:
    """What was typed into FORM; None where the body is something else."""
    kind = next(iter(_headers(scope, b"content-type")), "")
    if not kind.startswith("application/x-www-form-urlencoded"):
        return None
    body = b""
    while len(body) <= MOST_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    if len(body) > MOST_BODY_BYTES:
        return None
    return next(iter(parse_qs(body.decode("latin-1")).get("token", [])), None)


def _page(title: str, text: str, more: str = "") -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta name=color-scheme content='light dark'><title>FluxGym</title>"
        "<body><main style='font:16px/1.6 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1.2rem'>"
        f"<h1 style='font-size:1.3rem'>{title}</h1><p>{text}</p>{more}</main></body></html>"
    )


async def _respond(send: Send, status: int, body: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
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
