"""Logging in with an organisation's account (OIDC) through Streamlit, where `.streamlit/secrets.toml` sets it up.

Streamlit does the talking with the provider and keeps a signed cookie of who it was. Here that cookie opens the gate,
for those whom the same file names: an account of the provider alone lets nobody in.

    [auth]               # Streamlit's: redirect_uri, cookie_secret, client_id, client_secret, server_metadata_url
    [fluxgym]
    owners = ["me@example.org"]
    viewers = ["team@example.org", "@example.org"]     # an address, or all of a domain
"""

from __future__ import annotations

import json
import logging
from http.cookies import CookieError, SimpleCookie
from typing import Any

import streamlit as st
from streamlit.auth_util import encode_provider_token, get_cookie_with_chunks, get_origin_from_redirect_uri
from streamlit.runtime.secrets import secrets_singleton
from streamlit.web.server.server_util import get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

from .base import prefix
from .gate import OWNER, VIEWER

log = logging.getLogger("fluxgym")


class SignIn:
    """Who logged in, by the cookie that came with a request. `paths` are those by which one logs in: they are open."""

    def __init__(self, owners: list[str], viewers: list[str], base: str = "") -> None:
        self._owners, self._viewers = _lower(owners), _lower(viewers)
        self._prefix = prefix(base)
        self.paths = frozenset(f"{self._prefix}/{path}" for path in ("auth/login", "auth/logout", "oauth2callback"))

    def role(self, scope: dict[str, Any]) -> str | None:
        """The role of who logged in; None where nobody did, or nobody who is named."""
        email = _email(scope)
        if email is None:
            return None
        return OWNER if _is_among(email, self._owners) else VIEWER if _is_among(email, self._viewers) else None

    def link(self) -> str:
        """Where to log in; made anew for each page, since it holds for a few minutes only."""
        return f"{self._prefix}/auth/login?provider={encode_provider_token('default')}"


def configured() -> SignIn | None:
    """The log-in that the secrets file sets up; None where it sets up none."""
    if not secrets_singleton.load_if_toml_exists() or not secrets_singleton.get("auth"):
        return None
    named = secrets_singleton.get("fluxgym") or {}
    owners, viewers = (list(named.get(kind) or []) for kind in ("owners", "viewers"))
    if not owners and not viewers:
        log.warning("secrets.toml sets up a log-in but names nobody: give [fluxgym] owners or viewers; it stays off")
        return None
    return SignIn(owners, viewers, st.get_option("server.baseUrlPath") or "")


def _email(scope: dict[str, Any]) -> str | None:
    cookies: dict[str, str] = {}
    for key, value in scope["headers"]:
        if key.lower() == b"cookie":
            try:
                cookies |= {name: morsel.value for name, morsel in SimpleCookie(value.decode("latin-1")).items()}
            except CookieError:
                continue
    if USER_COOKIE_NAME not in cookies:
        return None
    secret = get_cookie_secret()

    def signed(name: str) -> bytes | None:
        return decode_signed_value(secret, name, cookies[name].encode("latin-1")) if name in cookies else None

    try:
        who = json.loads(get_cookie_with_chunks(signed, USER_COOKIE_NAME) or b"null")
    except ValueError:
        return None
    if not isinstance(who, dict) or not who.get("is_logged_in") or who.get("origin") != get_origin_from_redirect_uri():
        return None
    if who.get("email_verified") is False:  # anybody can claim an address that nobody has looked into
        return None
    return str(who.get("email") or "").lower() or None


def _lower(names: list[str]) -> frozenset[str]:
    return frozenset(str(name).strip().lower() for name in names if str(name).strip())


def _is_among(email: str, names: frozenset[str]) -> bool:
    return email in names or f"@{email.rpartition('@')[2]}" in names
