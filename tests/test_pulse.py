"""What moves on open pages: the pieces that the browser fetches, and how it learns that more has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import streamlit as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fluxcore.log import read_events
from studio import live, notice, pulse
from studio.live import live_runs
from studio.run import header  # noqa: F401  it draws a piece
from tests.fake_runs import FakeRun


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def run(outputs) -> FakeRun:
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.steps(96)
    return run


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=[pulse.route(notice.title)]))


def beat(*pieces: str, zone: str = "UTC"):
    live_runs().expire()
    return pulse.beat(list(pieces), zone)


def test_a_piece_follows_the_log_and_the_shape_stays(run):
    before = beat("banner:cat", "head:cat")
    assert set(before["pieces"]) == {"banner:cat", "head:cat"} and before["seconds"] < 1
    assert all("step 96 / 960" in piece and "aria-valuenow=10.0" in piece for piece in before["pieces"].values())
    run.steps(1)
    after = beat("banner:cat")
    assert "step 97 / 960" in after["pieces"]["banner:cat"] and after["shape"] == before["shape"]


def test_what_is_more_than_a_number_changes_the_shape(run, outputs, monkeypatch):
    shapes = [beat()["shape"]]
    for source, type, data in (
        ("runner", "stall.suspected", {"phase": "train", "seconds_without_progress": 9.0, "limit_seconds": 15.0}),
        ("app", "sample.requested", {}),
        ("app", "stop.requested", {"reason": "user"}),
        ("runner", "run.stopped", {"reason": "user", "resume_checkpoint": None, "resume_step": None}),
    ):
        run.append(source, type, data)
        shapes.append(beat()["shape"])
    FakeRun(outputs, "dog")
    shapes.append(beat()["shape"])
    monkeypatch.setattr(live, "runner_alive", lambda outputs: object())
    shapes.append(beat()["shape"])
    assert len(set(shapes)) == 7, shapes
    assert beat()["shape"] == shapes[-1] and beat()["seconds"] > 1, "nothing lives any more"


def test_what_a_page_says_of_a_run_is_in_its_shape(outputs):
    run = FakeRun(outputs, "cat")
    run.append("app", "run.requested", {"config": "", "resume_from": None, "reason": "start"})
    shapes = set()
    for source, type, data in (
        ("runner", "run.queued", {"position": 2, "waiting_for": "a GPU"}),
        ("runner", "run.queued", {"position": [], "waiting_for": {}}),  # nonsense in a log stops nothing
        ("runner", "request.refused", {"request": f"{run_writer(outputs)}:1", "reason": "the disk is full"}),
        ("app", "run.tagged", {"tags": ["best"]}),
        ("app", "run.noted", {"note": "for Ann"}),
        ("app", "run.titled", {"title": "My cat"}),
        ("trainer", "dataset.changed", {"notice": "Other pictures."}),
    ):
        run.append(source, type, data)
        live_runs().expire()
        shapes.add(live_runs().get("cat").shape)
    assert len(shapes) == 7


def run_writer(outputs: Path) -> str:
    """Who asked for the run."""
    return next(event.writer for event in read_events(outputs / "cat") if event.type == "run.requested")


def test_a_piece_that_cannot_be_drawn_takes_no_other_along(run, outputs, monkeypatch):
    def broken(_run):
        raise ValueError("odd")

    monkeypatch.setitem(pulse._drawers, "head", broken)
    assert set(beat("head:cat", "banner:cat")["pieces"]) == {"banner:cat"}


def test_the_page_of_a_run_that_changed_runs_anew(run, outputs, monkeypatch):
    live_runs().expire()
    shown = live_runs().get("cat")
    ran: list[str] = []
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(st, "query_params", {"name": "cat"})
    monkeypatch.setattr(st, "rerun", lambda: ran.append("rerun"))
    monkeypatch.setattr(pulse, "_script", lambda **given: ran.append(given["data"]["name"]))
    pulse.begin()
    pulse.follow("run", 1)
    pulse.drawn(shown)
    pulse.follow("run", 1)
    assert ran == ["cat", "cat"], "nothing has changed"
    shown.trouble = "the log can't be read"
    pulse.follow("run", 1)
    shown.trouble = ""
    pulse.follow("run", 1)
    run.append("app", "stop.requested", {"reason": "user"})
    live_runs().expire()
    pulse.follow("run", 1)
    assert ran == ["cat", "cat", "rerun", "cat", "cat", "rerun", "cat"]


def test_a_persons_words_are_shown_and_not_run(outputs):
    run = FakeRun(outputs, "cat", concept_sentence="<img src=x onerror=alert(1)>", base_model="flux-mini")
    run.start(pid=1, create_time=1)
    piece = beat("head:cat")["pieces"]["head:cat"]
    assert "&lt;img" in piece and "<img" not in piece


def test_times_are_on_the_readers_clock(run):
    assert " CET" in beat("banner:cat", zone="Europe/Oslo")["pieces"]["banner:cat"].replace("CEST", "CET")
    assert " UTC" in beat("banner:cat", zone="no/where")["pieces"]["banner:cat"]


def test_only_pieces_that_there_are_are_given_and_not_too_many(run):
    assert beat("nothing:cat", "banner:dog", "banner:../cat", "cat", "")["pieces"] == {}
    assert len(pulse.beat(["banner:cat"], "")["pieces"]) == 1


def test_the_route_answers_a_page(run, client):
    live_runs().expire()
    many = "&".join(["piece=banner:cat"] + [f"piece=head:x{i}" for i in range(pulse.MOST_PIECES)] + ["piece=head:cat"])
    answer = client.get(f"/pulse?page=run&name=cat&zone=UTC&{many}")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    said = answer.json()
    assert said["title"] == "10 % cat · FluxGym" and list(said["pieces"]) == ["banner:cat"]
    assert "title" not in client.get("/pulse?page=nonsense").json()
    assert client.post("/pulse").status_code == 405
    below = TestClient(Starlette(routes=[pulse.route(notice.title, "/gym/")]))
    assert below.get("/gym/pulse").status_code == 200 and below.get("/pulse").status_code == 404


def test_a_folder_that_cannot_be_read_is_an_answer_too(client, outputs, monkeypatch):
    from fluxcore.runs import RunError

    def refused(_self):
        raise RunError("the outputs folder can't be read; mend its permissions")

    monkeypatch.setattr(live.LiveRuns, "all", refused)
    answer = client.get("/pulse")
    assert answer.status_code == 503 and "mend its permissions" in answer.text
