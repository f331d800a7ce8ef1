"""Who is told of what, in which words: targets, news, messages, and one round of telling. No process, no network."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxcore.alerts import add_target, is_shared, load_targets, pending, remove_target, targets
from fluxcore.alerts.message import DeliveryError, Message, compose
from fluxcore.alerts.sending import tell
from fluxcore.alerts.targets import Target
from fluxcore.errors import UserError
from fluxcore.log import EventLog, format_ts, parse_ts
from fluxcore.runs import RunFolder
from fluxcore.runs.files import PROJECT_ROOT
from tests.fakes import World
from tests.test_events_page import undocumented

SECRET = "s3cr3t-t0ken"


class Post:
    """Doors that keep what was sent. `trouble`: target → what its door raises."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.trouble: dict[str, Exception] = {}

    def open(self, target: Target) -> Any:
        post = self

        class Door:
            def send(self, message: Message) -> None:
                if target.name in post.trouble:
                    raise post.trouble[target.name]
                post.sent.append((target.name, message))

        return Door()

    def titles(self, name: str) -> list[str]:
        return [message.title for to, message in self.sent if to == name]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("FLUXGYM_ALERTS", raising=False)
    return World(tmp_path)


def target(world: World, name: str, kinds: list[str] | None = None, added: str = "") -> None:
    """A target that was there before the world began, unless `added` says otherwise."""
    file = world.outputs / ".alerts.json"
    targets = json.loads(file.read_text())["targets"] if file.exists() else []
    made: dict[str, Any] = {"name": name, "url": f"json://host/{SECRET}", "added": added}
    file.write_text(json.dumps({"targets": [*targets, made | ({"events": kinds} if kinds else {})]}))
    file.chmod(0o600)


def telling(world: World, name: str, post: Post, later: float = 0) -> None:
    tell(RunFolder(world.outputs / name), post.open, lambda: world.clock.now() + timedelta(seconds=later))


def outcomes(world: World, name: str) -> list[tuple[str, str, str, str | None]]:
    found = [event for event in world.events(name) if event.type.startswith("alert.")]
    assert undocumented(world.outputs / name, "runner") == []
    return [(event.type, event.data["name"], event.data["kind"], event.data["error"]) for event in found]


def failed(world: World, name: str = "cat", **config: Any) -> None:
    world.start(name, auto_resume=0, **config)
    world.train(name, 1, 12)
    world.checkpoint(name, 12)
    world.trainer(name).exit(6)
    world.turns()


# -- targets ----------------------------------------------------------------------------------------------------------


def test_the_file_is_the_owners_alone_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: (modes.append(stat.S_IMODE(os.stat(a).st_mode)), replace(a, b)))
    before = os.umask(0)
    try:
        add_target(tmp_path, "phone", f"ntfys://ntfy.sh/{SECRET}")
        add_target(tmp_path, "mail", f"mailto://me:{SECRET}@example.com", ["failed"])
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600] and not is_shared(tmp_path)
    assert [(one.name, one.masked) for one in load_targets(tmp_path)] == [
        ("mail", "mailto://****"),
        ("phone", "ntfys://****"),
    ]
    assert SECRET not in repr(load_targets(tmp_path))
    remove_target(tmp_path, "phone")
    assert [(one.name, one.kinds) for one in load_targets(tmp_path)] == [("mail", {"failed"})]
    assert sorted(os.listdir(tmp_path)) == [".alerts.json", ".alerts.lock"]
    assert (tmp_path / ".alerts.lock").read_bytes() == b""
    (tmp_path / ".alerts.json").chmod(0o644)
    assert is_shared(tmp_path)


@pytest.mark.parametrize(
    "does",
    [
        lambda place: add_target(place, f"ntfys://ntfy.sh/{SECRET}", ""),
        lambda place: add_target(place, "phone", SECRET),
        lambda place: add_target(place, "phone", f"ntfys:/{SECRET}"),
        lambda place: add_target(place, "all", f"ntfys://ntfy.sh/{SECRET}"),
        lambda place: add_target(place, "there", f"ntfys://ntfy.sh/{SECRET}"),
        lambda place: add_target(place, "new", f"ntfys://ntfy.sh/{SECRET}", [SECRET]),
        lambda place: remove_target(place, f"ntfys://ntfy.sh/{SECRET}"),
    ],
)
def test_a_refusal_repeats_nothing_that_was_given_for_an_address(tmp_path: Path, does: Callable[[Path], Any]) -> None:
    add_target(tmp_path, "there", "json://host")
    with pytest.raises(UserError) as caught:
        does(tmp_path)
    assert SECRET not in str(caught.value)
    assert [one.url for one in load_targets(tmp_path)] == ["json://host"]


@pytest.mark.parametrize(
    "text",
    [
        '{"targets": [{"name": "phone", "url": null}]}',
        '{"targets": [{"name": null, "url": "json://host"}]}',
        SECRET,
        f'{{"targets": [{{"name": "a", "url": "{SECRET}"}}]}}',
        f'["{SECRET}"]',
        f'{{"targets": ["{SECRET}"]}}',
    ],
)
def test_a_broken_file_is_one_sentence_without_its_words(tmp_path: Path, text: str) -> None:
    (tmp_path / ".alerts.json").write_text(text)
    with pytest.raises(UserError, match="mend it") as caught:
        load_targets(tmp_path)
    assert SECRET not in str(caught.value)


def test_two_that_are_added_at_once_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_read = threading.Barrier(2)
    read = targets._from_file

    def read_together(file: Path) -> list[Target]:
        found = read(file)
        with contextlib.suppress(threading.BrokenBarrierError):  # the second one waits until the first has written
            both_read.wait(0.2)
        return found

    monkeypatch.setattr(targets, "_from_file", read_together)
    adding = [threading.Thread(target=add_target, args=(tmp_path, name, "json://host")) for name in ("mail", "phone")]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    monkeypatch.undo()
    assert [one.name for one in load_targets(tmp_path)] == ["mail", "phone"]
    with pytest.raises(UserError, match="mail, phone"):
        remove_target(tmp_path, "other")


def test_the_environment_has_targets_too_and_they_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_target(tmp_path, "phone", "json://old")
    add_target(tmp_path, "mail", "json://mail")
    monkeypatch.setenv("FLUXGYM_ALERTS", "phone=ntfys://ntfy.sh/topic?priority=high\n tgram://1:2/3")
    found = {one.name: (one.url, one.from_environment) for one in load_targets(tmp_path)}
    assert found == {
        "phone": ("ntfys://ntfy.sh/topic?priority=high", True),
        "env-2": ("tgram://1:2/3", True),
        "mail": ("json://mail", False),
    }
    monkeypatch.setenv("FLUXGYM_ALERTS", f"phone={SECRET}")
    with pytest.raises(UserError, match="entry 1 of") as caught:
        load_targets(tmp_path)
    assert SECRET not in str(caught.value)


# -- what is news, and for whom ---------------------------------------------------------------------------------------


def told(world: World, name: str, later: float = 0) -> list[tuple[str, str]]:
    now = world.clock.now() + timedelta(seconds=later)
    return [(one.news.kind, one.name) for one in pending(world.state(name), load_targets(world.outputs), now)]


def test_every_kind_of_news(world: World) -> None:
    target(world, "phone")
    world.start("cat", auto_resume=1, stall_seconds=30, stop_grace_seconds=10)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    assert told(world, "cat") == []
    world.executor.ignore_term = True
    world.trainer("cat").ignores_term = True
    world.turns(34, 1.0)
    assert world.state("cat").must_be_killed and told(world, "cat") == [], "what it leaves is not known yet"
    world.turns(14, 1.0)
    assert told(world, "cat") == [("stalled", "phone"), ("resumed", "phone")]
    runner = EventLog(world.outputs / "cat", "runner", now=lambda: format_ts(world.clock.now()))
    runner.append("disk.low", {"free_gib": 1.3, "needed_gib": 1.1}, attempt=2)
    world.complete("cat")
    assert [kind for kind, _ in told(world, "cat")] == ["stalled", "resumed", "disk", "completed"]
    failed(world, "dog")
    assert told(world, "dog") == [("failed", "phone")]


def test_what_a_person_did_is_no_news(world: World) -> None:
    target(world, "phone")
    world.start("cat")
    world.stop("cat")
    world.turns()
    assert world.state("cat").state == "stopped" and told(world, "cat") == []
    runner = EventLog(world.outputs / "cat", "runner", now=lambda: format_ts(world.clock.now()))
    runner.append("run.stopped", {"reason": "disk_low", "step": 0, "resume_checkpoint": None, "resume_step": None})
    assert told(world, "cat") == [("stopped", "phone")]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("all", ["mail", "phone"]),
        ("off", []),
        ("phone", ["phone"]),
        ("phone, mail", ["phone", "mail"]),
        ("gone", ["gone"]),
    ],
)
def test_a_run_names_whom_it_tells(world: World, setting: str, names: list[str]) -> None:
    target(world, "phone")
    target(world, "mail")
    target(world, "quiet", kinds=["completed", "stalled"])
    failed(world, alerts=setting)
    assert [name for _, name in told(world, "cat")] == names


def test_the_attempts_own_config_counts(world: World) -> None:
    target(world, "phone")
    world.start("cat", auto_resume=0, alerts="off")
    world.person("cat").append("config.saved", {"config": {**world.state("cat").config, "alerts": "all"}})
    world.trainer("cat").exit(6)
    world.turns()
    assert told(world, "cat") == []


def test_old_news_and_news_from_before_a_target_came_are_not_told(world: World) -> None:
    target(world, "phone")
    failed(world)
    at = parse_ts(world.last("cat", "run.failed").ts)
    target(world, "later", added=format_ts(at + timedelta(seconds=1)))
    assert told(world, "cat") == [("failed", "phone")]
    assert told(world, "cat", later=3590) == [("failed", "phone")]
    assert told(world, "cat", later=3600) == []


def test_what_is_settled_is_settled_also_in_a_log_that_was_copied_onto_itself(world: World) -> None:
    target(world, "phone")
    target(world, "mail")
    failed(world)
    data = {"name": "phone", "target": "json://****", "event": world.last("cat", "run.failed").id}
    world.person("cat").append("alert.sent", {**data, "kind": "failed", "error": None})
    log = world.outputs / "cat" / "events.jsonl"
    log.write_bytes(log.read_bytes() * 2)
    assert told(world, "cat") == [("failed", "mail")]
    world.person("cat").append("alert.failed", {**data, "name": "mail", "kind": "failed", "error": "no"})
    world.person("cat").append("alert.failed", {"error": "of another make"})
    assert told(world, "cat") == []


# -- words ------------------------------------------------------------------------------------------------------------


def words(world: World, name: str) -> Message:
    state = world.state(name)
    return compose(state, state.news[-1], RunFolder(world.outputs / name), "pod-17")


def test_the_words_of_a_failure_say_what_to_do_and_how_to_go_on(world: World) -> None:
    failed(world)
    message = words(world, "cat")
    assert message.title == "cat failed at step 12 of 1000 (oom_gpu)" and message.look == "failure"
    assert message.body.splitlines() == [
        world.last("cat", "run.failed").data["hint"],
        "It is not resumed by itself: another try would only fail in the same way (oom_gpu).",
        "Checkpoint to go on from: cat-step00000012-state (step 12)",
        f"To resume: ./fluxgym resume cat --outputs {world.outputs}",
        "Machine: pod-17",
    ]


def test_the_words_of_a_failure_without_a_checkpoint(world: World) -> None:
    world.start("cat", auto_resume=0)
    world.trainer("cat").exit(2)
    world.turns()
    lines = words(world, "cat").body.splitlines()
    assert lines[1:3] == [
        "There is no checkpoint to go on from.",
        f"To begin again: ./fluxgym start cat --restart --outputs {world.outputs}",
    ]


def test_the_words_of_a_stall_that_is_resumed_and_of_the_resume(world: World) -> None:
    world.start("cat", auto_resume=1, stall_seconds=30)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.turns(44, 1.0)
    state, folder = world.state("cat"), RunFolder(world.outputs / "cat")
    stalled, resumed = (compose(state, news, folder, "pod-17") for news in state.news)
    assert stalled.title == "cat was stuck at step 4 of 1000"
    assert stalled.body.splitlines()[:2] == [
        "No progress for 30 s in the phase 'train', so it was ended (no_progress).",
        "It resumes by itself from cat-step00000004-state (step 4).",
    ]
    assert resumed.title == "cat goes on by itself from step 4"
    assert "Attempt 2 began from cat-step00000004-state." in resumed.body


def test_a_resume_that_is_refused_is_told(world: World) -> None:
    """Before it people were told that the run goes on by itself."""
    target(world, "phone")
    world.start("cat", auto_resume=1)
    world.train("cat", 1, 12)
    world.checkpoint("cat", 12)
    world.trainer("cat").exit(1)
    world.turns(2)
    assert "It resumes by itself" in words(world, "cat").body
    world.host.free_gib = 0.01
    world.turns(10, 1.0)
    assert world.types("cat")[-1] == "request.refused"
    said = words(world, "cat")
    assert said.title == "cat does not go on by itself at step 12 of 1000"
    assert "can't: cat needs about" in said.body and "To resume: ./fluxgym resume cat" in said.body
    assert told(world, "cat") == [("failed", "phone")] * 2
    world.ask("cat", "latest", "resume")
    world.turns(2)
    assert world.types("cat").count("request.refused") == 2
    assert told(world, "cat") == [("failed", "phone")] * 2, "a person sees what is refused to him"


def test_the_words_of_an_end_with_its_title_and_of_low_disk(world: World) -> None:
    world.start("cat")
    world.train("cat", 1, 5)
    world.person("cat").append("run.titled", {"title": "Cat, v2"})
    runner = EventLog(world.outputs / "cat", "runner", now=lambda: format_ts(world.clock.now()))
    runner.append("disk.low", {"free_gib": 1.34, "needed_gib": 1.1}, attempt=1)
    assert words(world, "cat").title == "Cat, v2 (cat) may run out of disk at step 5 of 1000"
    assert words(world, "cat").body.startswith("1.3 GiB are left")
    world.complete("cat")
    message = words(world, "cat")
    assert message.title == "Cat, v2 (cat) is finished" and message.look == "success"
    assert message.body.splitlines()[:2] == [
        "5 steps in 12 s, final loss 0.5.",
        f"The LoRA: {world.outputs}/cat/cat.safetensors",
    ]
    data = {"reason": "disk_low", "step": 5, "resume_checkpoint": None, "resume_step": None}
    runner.append("run.stopped", data)
    assert words(world, "cat").title == "Cat, v2 (cat) was stopped at step 5 of 1000: the disk is almost full"
    assert words(world, "cat").look == "warning" and "prune" in words(world, "cat").body


def test_the_command_is_short_where_the_outputs_are_the_projects_own(world: World) -> None:
    failed(world)
    state = world.state("cat")
    message = compose(state, state.news[-1], RunFolder(PROJECT_ROOT / "outputs" / "cat"), "pod-17")
    assert "To resume: ./fluxgym resume cat\n" in message.body


# -- one round of telling ---------------------------------------------------------------------------------------------


def test_one_round_tells_everybody_once_and_the_next_nobody(world: World) -> None:
    target(world, "phone")
    target(world, "mail")
    failed(world)
    post = Post()
    for _ in range(3):
        telling(world, "cat", post)
    assert sorted(name for name, _ in post.sent) == ["mail", "phone"]
    assert sorted(outcomes(world, "cat")) == [("alert.sent", name, "failed", None) for name in ("mail", "phone")]
    event = [event for event in world.events("cat") if event.type == "alert.sent"][0]
    assert event.data["event"] == world.last("cat", "run.failed").id and event.attempt is None
    assert event.data["target"] == "json://****" and event.source == "runner"


def test_an_outcome_between_start_and_end_carries_the_attempt(world: World) -> None:
    target(world, "phone")
    world.start("cat", auto_resume=1)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(1)
    world.turns(10, 1.0)
    telling(world, "cat", Post())
    assert outcomes(world, "cat") == [("alert.sent", "phone", kind, None) for kind in ("failed", "resumed")]
    assert {event.attempt for event in world.events("cat") if event.type == "alert.sent"} == {2}


def test_trouble_keeps_the_order_is_tried_again_and_given_up_after_an_hour(world: World) -> None:
    target(world, "phone")
    target(world, "mail")
    world.start("cat", auto_resume=1)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(1)
    world.turns(10, 1.0)
    post = Post()
    post.trouble["phone"] = DeliveryError("it can't be reached, or did not answer")
    telling(world, "cat", post)
    assert post.titles("phone") == [] and len(post.titles("mail")) == 2
    assert [(type, name) for type, name, _, _ in outcomes(world, "cat")] == [("alert.sent", "mail")] * 2
    del post.trouble["phone"]
    telling(world, "cat", post, later=1800)
    assert post.titles("phone") == post.titles("mail"), "the failure first, then the resume"
    world.complete("cat")
    failed(world, "dog")
    post.trouble["phone"] = DeliveryError("no answer within 30 s")
    telling(world, "dog", post, later=3200)
    assert ("alert.failed", "phone", "failed", "no answer within 30 s") not in outcomes(world, "dog")
    telling(world, "dog", post, later=3400)
    assert ("alert.failed", "phone", "failed", "no answer within 30 s") in outcomes(world, "dog")
    assert ("failed", "phone") not in told(world, "dog")


def test_trouble_for_good_is_said_at_once_and_so_is_a_name_without_a_target(world: World) -> None:
    target(world, "phone")
    failed(world, alerts="phone, gone")
    post = Post()
    post.trouble["phone"] = DeliveryError("it answered 401 (it does not accept the password or token)", final=True)
    telling(world, "cat", post)
    assert sorted(outcomes(world, "cat")) == [
        ("alert.failed", "gone", "failed", "there is no target of that name; add it with ./fluxgym alerts add NAME"),
        ("alert.failed", "phone", "failed", "it answered 401 (it does not accept the password or token)"),
    ]


def test_two_never_tell_of_a_run_at_once(world: World) -> None:
    target(world, "phone")
    failed(world)
    post = Post()
    with open(world.outputs / "cat" / ".alerts.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        telling(world, "cat", post)
        assert post.sent == []
    telling(world, "cat", post)
    assert post.titles("phone") == ["cat failed at step 12 of 1000 (oom_gpu)"]


def test_what_was_sent_is_written_down_however_long_the_disk_is_full(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    target(world, "phone")
    failed(world)
    tries = iter([OSError(28, "No space left on device")] * 3)
    append = EventLog.append

    def full(self: EventLog, type: str, *args: Any, **options: Any) -> Any:
        if type.startswith("alert.") and (error := next(tries, None)):
            raise error
        return append(self, type, *args, **options)

    monkeypatch.setattr(EventLog, "append", full)
    alarms: list[float] = []
    monkeypatch.setattr(
        "fluxcore.alerts.sending.time.sleep", lambda _: alarms.append(signal.getitimer(signal.ITIMER_REAL)[0])
    )
    post = Post()
    signal.alarm(1000)  # as `main` sets it against a try that hangs
    try:
        telling(world, "cat", post)
    finally:
        signal.alarm(0)
    assert alarms and set(alarms) == {0.0}, "nothing ends it while it waits for the disk"
    assert len(post.sent) == 1 and outcomes(world, "cat") == [("alert.sent", "phone", "failed", None)]


def test_an_outcome_that_is_written_late_has_the_attempt_of_its_own_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    target(world, "mail")
    target(world, "phone")
    world.start("cat", auto_resume=1)
    world.train("cat", 1, 4)
    world.checkpoint("cat", 4)
    world.trainer("cat").exit(1)
    world.turns(10, 1.0)
    full = OSError(28, "No space left on device")
    append = EventLog.append
    kept: list[str] = []

    def late(self: EventLog, type: str, data: Any = None, **options: Any) -> Any:
        if type.startswith("alert.") and len(kept) < 1:
            kept.append(type)
            world.complete("cat")  # the attempt ends while the first outcome waits
            raise full
        return append(self, type, data, **options)

    monkeypatch.setattr(EventLog, "append", late)
    monkeypatch.setattr("fluxcore.alerts.sending.time.sleep", lambda seconds: None)
    telling(world, "cat", Post())
    attempts = [event.attempt for event in world.events("cat") if event.type == "alert.sent"]
    assert attempts == [2, None, None, None]
