"""The gate: without the token no page, no file and no websocket; with it a cookie that does not give the token away."""

from __future__ import annotations

import time

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fluxcore.access import is_loopback, load_token
from studio import gate as gate_module
from studio.gate import Gate

TOKEN = "a-token-of-the-test"


async def page(request):
    return PlainTextResponse(f"inside {request.url.query}")


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text("inside")
    await websocket.close()


def client(base_url: str = "http://gym.example:7860", *, trust: bool = False, announce=None) -> TestClient:
    routes = [Route("/{path:path}", page), WebSocketRoute("/_stcore/stream", socket)]
    gate = Gate(Starlette(routes=routes), TOKEN, trust_loopback=trust, announce=announce)
    return TestClient(gate, base_url=base_url, follow_redirects=False)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(gate_module, "WRONG_TOKEN_SECONDS", 0.01)


@pytest.mark.parametrize(
    "path", ["/", "/run?name=a", "/files/runs/a/a.safetensors", "/_stcore/host-config", "/media/x.png"]
)
def test_nothing_is_served_without_the_token(path):
    answer = client().get(path)
    assert answer.status_code == 401
    assert "inside" not in answer.text and "token" in answer.text


def test_the_websocket_is_refused_without_the_token():
    with pytest.raises(WebSocketDisconnect), client().websocket_connect("/_stcore/stream"):
        pass


@pytest.mark.parametrize("query", [f"token={TOKEN}", "token=wrong"])
def test_the_websocket_takes_no_token_from_its_address(query):
    with pytest.raises(WebSocketDisconnect), client().websocket_connect(f"/_stcore/stream?{query}"):
        pass


def test_a_link_with_the_token_lets_in_and_keeps_the_rest_of_the_address():
    visitor = client()
    answer = visitor.get(f"/run?name=my%20cat&token={TOKEN}&tab=log")
    assert answer.status_code == 303
    assert answer.headers["location"] == "./run?name=my+cat&tab=log"
    assert visitor.get("/run?name=a").text == "inside name=a"
    cookie = answer.headers["set-cookie"].partition(";")[0]
    with client().websocket_connect("/_stcore/stream", headers={"cookie": f"other=1; {cookie}"}) as connection:
        assert connection.receive_text() == "inside"


def test_the_cookie_is_closed_to_scripts_and_holds_no_token():
    cookie = client().get(f"/?token={TOKEN}").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/" in cookie
    assert "Secure" not in cookie
    assert TOKEN not in cookie


def test_over_https_the_cookie_is_secure():
    assert "Secure" in client("https://gym.example").get(f"/?token={TOKEN}").headers["set-cookie"]
    behind_proxy = client().get(f"/?token={TOKEN}", headers={"x-forwarded-proto": "https"})
    assert "Secure" in behind_proxy.headers["set-cookie"]


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ü"])
def test_a_wrong_token_is_refused_after_a_while(token, monkeypatch):
    monkeypatch.setattr(gate_module, "WRONG_TOKEN_SECONDS", 0.2)
    begun = time.monotonic()
    answer = client().get("/", params={"token": token})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert time.monotonic() - begun >= 0.2


def test_a_wrong_cookie_is_refused():
    visitor = client()
    name = visitor.get(f"/?token={TOKEN}").headers["set-cookie"].partition("=")[0]
    for value in ("", TOKEN, "0" * 64):
        assert client().get("/", headers={"cookie": f"{name}={value}"}).status_code == 401


def test_an_opened_link_loses_its_token_even_with_a_cookie():
    visitor = client()
    visitor.get(f"/?token={TOKEN}")
    assert visitor.get(f"/runs?token={TOKEN}").headers["location"] == "./runs"
    assert visitor.get("/runs?token=wrong").status_code == 401


def test_the_redirect_never_leads_to_another_host():
    for path in ("//evil.example", "//evil.example/", "/\\evil.example", "/https:evil.example"):
        location = client().get(f"{path}?token={TOKEN}").headers["location"]
        assert location.startswith("./") and "//" not in location


def test_only_the_health_check_is_open():
    assert client().get("/_stcore/health").status_code == 200
    assert client().get("/_stcore/health/x").status_code == 401


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860"])
def test_on_loopback_nothing_is_asked(host):
    assert client(trust=True).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["gym.trycloudflare.com", "evil.example:7860", "127.0.0.1.evil.example", "10.0.0.4", ""]
)
def test_on_loopback_another_name_needs_the_token(host):
    said = []
    visitor = client(trust=True, announce=lambda: said.append(1))
    assert visitor.get("/", headers={"host": host}).status_code == 401
    visitor.get("/", headers={"host": host})
    assert said == [1], "the link is printed once"
    with pytest.raises(WebSocketDisconnect), visitor.websocket_connect("/_stcore/stream", headers={"host": host}):
        pass


def test_without_trust_a_loopback_name_is_no_key():
    assert client().get("/", headers={"host": "localhost"}).status_code == 401


def test_loopback_names():
    assert is_loopback("127.0.0.53") and is_loopback("::1") and is_loopback("LOCALHOST")
    assert not is_loopback("0.0.0.0") and not is_loopback("") and not is_loopback("localhost.evil.example")


def test_the_token_is_kept_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("FLUXGYM_TOKEN", raising=False)
    token = load_token(tmp_path / "outputs")
    file = tmp_path / "outputs" / ".token"
    assert len(token) >= 24 and load_token(tmp_path / "outputs") == token
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("")  # torn by a full disk: never an empty token
    assert len(load_token(tmp_path / "outputs")) >= 24
    monkeypatch.setenv("FLUXGYM_TOKEN", "given")
    assert load_token(tmp_path / "outputs") == "given"


VIEWERS = "a-token-for-those-who-look"


def gated(viewers: str | None = VIEWERS, *, trust: bool = False) -> TestClient:
    async def who(request):
        return PlainTextResponse(f"{request.method} {request.headers.getlist('x-fluxgym-role')}")

    routes = [Route("/{path:path}", who, methods=["GET", "HEAD", "PUT", "DELETE", "POST"])]
    gate = Gate(Starlette(routes=routes), TOKEN, trust_loopback=trust, viewer_token=lambda: viewers)
    return TestClient(gate, base_url="http://gym.example:7860", follow_redirects=False)


def test_a_viewer_comes_in_as_one_and_uploads_nothing():
    inside = gated()
    assert inside.get(f"/run?name=a&token={VIEWERS}").status_code == 303
    answer = inside.get("/files/runs/a/a.safetensors", headers={"X-Fluxgym-Role": "owner"})
    assert answer.status_code == 200 and "viewer" in answer.text and "owner" not in answer.text, (
        "no header gives a role"
    )
    for method in ("PUT", "DELETE", "POST"):
        assert inside.request(method, "/_stcore/upload_file/x/y").status_code == 403
    owner = gated()
    owner.get(f"/?token={TOKEN}")
    assert "'owner'" in owner.get("/", headers={"X-Fluxgym-Role": "viewer"}).text
    assert owner.put("/_stcore/upload_file/x/y").status_code == 200


def test_a_viewers_link_that_was_taken_back_opens_nothing():
    inside = gated()
    inside.get(f"/?token={VIEWERS}")
    assert inside.get("/").status_code == 200
    gone = gated(None)
    gone.cookies = inside.cookies
    assert gone.get("/").status_code == 401


def test_the_token_may_be_typed():
    inside = gated()
    assert "<form" in inside.get("/run?name=a").text
    answer = inside.post("/run?name=a", data={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "./run?name=a"
    assert inside.get("/").status_code == 200
    assert gated().post("/", data={"token": "x" * 10_000}).status_code == 401
    assert gated().post("/", json={"token": TOKEN}).status_code == 401


def test_who_guesses_waits_and_the_right_token_waits_with_them():
    outside = gated()
    answers = [outside.get("/?token=wrong").status_code for _ in range(7)]
    assert answers[:5] == [401] * 5 and answers[-1] == 429
    assert outside.get(f"/?token={TOKEN}").status_code == 429, "else guesses beside each other would not be slowed"


def test_the_waiting_doubles_and_is_forgotten():
    from studio.slowing import FREE, MOST_PER_MINUTE, MOST_SECONDS, Slowing

    now = [0.0]
    slowing = Slowing(lambda: now[0])
    waits = []
    for _ in range(FREE + 12):
        slowing.failed("1.2.3.4")
        waits.append(slowing.seconds_left("1.2.3.4"))
        now[0] += waits[-1] + 2
    assert waits[: FREE - 1] == [0] * (FREE - 1) and waits[FREE - 1 : FREE + 3] == [1, 2, 4, 8]
    assert max(waits) == MOST_SECONDS and slowing.seconds_left("5.6.7.8") == 0
    slowing.succeeded("1.2.3.4")
    assert slowing.seconds_left("1.2.3.4") == 0
    for i in range(MOST_PER_MINUTE):
        slowing.failed(f"10.0.0.{i}")
    assert slowing.seconds_left("5.6.7.8") > 0, "many addresses together are slowed too"
    now[0] += 61
    assert slowing.seconds_left("5.6.7.8") == 0
