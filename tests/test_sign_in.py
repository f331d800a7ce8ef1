"""Logging in with an account: Streamlit's signed cookie opens the gate for those who are named, as what they are."""

from __future__ import annotations

import json

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio import sign_in
from studio.gate import Gate

SECRETS = """
[auth]
redirect_uri = "https://gym.example/oauth2callback"
cookie_secret = "a-cookie-secret-that-is-long-enough-for-signing"
client_id = "gym"
client_secret = "never shown"
server_metadata_url = "https://login.example/.well-known/openid-configuration"
[fluxgym]
owners = ["Me@Example.org"]
viewers = ["@team.example"]
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    from streamlit import config
    from streamlit.runtime.secrets import Secrets

    file = tmp_path / "secrets.toml"
    file.write_text(SECRETS)
    before = config.get_option("secrets.files")
    config.set_option("secrets.files", [str(file)])
    fresh = Secrets()
    for place in ("streamlit.auth_util", "streamlit.web.server.server_util", "studio.sign_in"):
        monkeypatch.setattr(f"{place}.secrets_singleton", fresh, raising=False)

    async def who(request):
        return PlainTextResponse(f"in as {request.headers['x-fluxgym-role']}")

    gate = Gate(Starlette(routes=[Route("/{path:path}", who)]), "the-token", sign_in=sign_in.configured())
    yield TestClient(gate, base_url="https://gym.example", follow_redirects=False)
    config.set_option("secrets.files", before)


def cookie(**about) -> str:
    from streamlit.web.server.server_util import get_cookie_secret
    from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

    who = {"origin": "https://gym.example", "is_logged_in": True, **about}
    return create_signed_value(get_cookie_secret(), "_streamlit_user", json.dumps(who)).decode()


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"email": "me@example.org"}, "in as owner"),
        ({"email": "ann@team.example", "email_verified": True}, "in as viewer"),
        ({"email": "ann@team.example", "email_verified": False}, None),
        ({"email": "somebody@else.example"}, None),
        ({"email": "me@example.org.evil.example"}, None),
        ({"email": "me@example.org", "origin": "https://other.example"}, None),
        ({"email": "me@example.org", "is_logged_in": False}, None),
        ({}, None),
    ],
)
def test_only_who_is_named_comes_in(outside, about, says):
    outside.cookies.set("_streamlit_user", cookie(**about))
    answer = outside.get("/run?name=a")
    assert (answer.status_code, answer.text) == (200, says) if says else answer.status_code == 401


def test_a_forged_cookie_opens_nothing(outside):
    good = cookie(email="me@example.org")
    for forged in (good[:-3] + "abc", "x", json.dumps({"email": "me@example.org", "is_logged_in": True})):
        outside.cookies.clear()
        outside.cookies.set("_streamlit_user", forged)
        assert outside.get("/").status_code == 401


def test_the_way_to_log_in_is_open_and_nothing_beside_it(outside):
    page = outside.get("/")
    assert page.status_code == 401 and "/auth/login?provider=" in page.text and "never shown" not in page.text
    assert outside.get("/oauth2callback?code=1").text == "in as nobody"
    for path in ("/files/auth/login", "/x/oauth2callback", "/auth/login/../../run"):
        assert outside.get(path).status_code == 401
