"""The loop: requests → children → samples → verdicts → actions, one verb a method.

Every turn looks at what the logs, the attempts' records and the process table say and does the next step towards what
they ask for. Nothing that matters lives in memory alone, so that a runner killed at any point is continued by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from fluxcore.log import number
from fluxcore.runs import RunError, RunFolder, is_valid_name, list_run_folders
from fluxcore.runs.auto_resume import auto_resume_follows
from fluxcore.runs.installation import Installation

from . import attempts, orphans, spawning
from .alerts import Alerts
from .clock import Clock
from .disk import DiskGuard
from .executor import Executor
from .gpus import Gpus
from .host import Host
from .kill import TreeKill
from .queue import Queue
from .run import Run
from .samples import take_last_look, take_sample
from .stacks import Dumper
from .stalls import judge

POLL_SECONDS = 2.0
"""How often every run's log is looked at without a hint; `SLOW_POLL_SECONDS` where changes are seen as they happen."""
SLOW_POLL_SECONDS = 5.0
BUSY_SECONDS = 0.02
LIVE_SECONDS = 1.0
TROUBLE_SECONDS = 2.0
"""How long a run is left alone after a step failed in a way that nobody foresaw."""
SHUTDOWN_GRACE_SECONDS = 20.0
"""The most that a trainer gets to save when the host shuts down: it will not wait for longer."""

log = logging.getLogger(__name__)


class Runner:
    """Supervises all runs of one outputs folder. Machine, GPUs and time are given, so that tests need none of them."""

    def __init__(
        self,
        outputs: Path,
        *,
        executor: Executor,
        gpus: Gpus,
        host: Host,
        clock: Clock,
        cpu_slots: int = 1,
        alerts: Alerts | None = None,
        dumper: Dumper | None = None,
    ) -> None:
        self.outputs = outputs
        self.executor = executor
        self.gpus = gpus
        self.host = host
        self.clock = clock
        self.cpu_slots = cpu_slots
        self.alerts = alerts
        self.dumper = dumper
        self.poll_seconds = POLL_SECONDS
        self.runs: dict[str, Run] = {}
        self.orphans: list[orphans.Orphan] = []
        """Trainers whose run is gone, being ended."""
        self.installation = Installation(outputs)
        self.shutting_down = False
        """Nothing starts any more, and every live run is stopped."""
        self._shutdown_why = ""
        self._disk = DiskGuard()
        self._polled_at = float("-inf")
        self.listed = False
        """Whether the last poll saw which runs there are."""
        self._queue = Queue(clock)
        self._installation_trouble = ""

    def may_wait(self, hints: set[str]) -> bool:
        """Whether these hints are of live runs alone: a trainer's steps need no turn each, requests do."""
        return all(name in self.runs and self.runs[name].state.live_attempt is not None for name in hints)

    def turn(self, hints: Iterable[str] = ()) -> float:
        """One turn; returns in how many seconds the next one is due. `hints`: runs whose log changed."""
        self.read_logs(hints)
        live = [run for run in self.runs.values() if run.is_active or not run.settled]
        for run in live:
            run.settled = True  # until something comes into its log, from this turn too
        self._each(live, self.answer)
        if not self.shutting_down and self.installation.known:  # before that the queue may be paused
            self.start_waiting(live)
        self._each(live, self.watch_children)
        if self.shutting_down:
            self._each(live, self.stop_for_shutdown)
        self._each(live, self.sample)
        self.guard_disk(live)
        self._each(live, self.judge)
        # A log that can't be read must not keep a trainer from its TERM when all end.
        self._each(live, self.act, paused_too=self.shutting_down)
        self._see_to_orphans(orphans.turn)
        self._each(live, Run.show)
        if self.alerts is not None:
            self.alerts.turn(live, self.runs)
        self.executor.reap()
        return self._due(live)

    @property
    def is_idle(self) -> bool:
        """Whether no process of any run lives, or is about to, for all that is known: what can't be read may."""
        idle = not any(run.holds_machine or not run.is_read for run in self.runs.values())
        return self.listed and idle and not self.orphans

    def shut_down(self, why: str = "the host shuts down") -> None:
        """From now on start nothing and stop every live run, reason `shutdown`; `is_idle` says when that is done.

        `why`: for the runs' monitor.log.
        """
        if not self.shutting_down:
            log.info("stopping every run")
        self._shutdown_why = self._shutdown_why or why
        self.shutting_down = True
        now = self.clock.monotonic()
        for kill in [*(run.kill for run in self.runs.values()), *(orphan.kill for orphan in self.orphans)]:
            if kill is not None:  # a stop under way gets no longer than the others
                kill.hurry(now, SHUTDOWN_GRACE_SECONDS)

    def leave(self) -> None:
        """Let go of everything; trainers go on."""
        for run in self.runs.values():
            run.close(leaving=True)

    # -- requests ---------------------------------------------------------------------------------------------------

    def read_logs(self, hints: Iterable[str]) -> None:
        """Fold in what came: of hinted and live runs always, of all runs at each poll."""
        now = self.clock.monotonic()
        missing: list[str] = []
        for run in self.runs.values():
            if run.watch is not None:
                run.watch.look(now)
        if now - self._polled_at >= self.poll_seconds:
            self._polled_at = now
            try:
                names = {folder.name for folder in list_run_folders(self.outputs)}
                missing, self.listed = [name for name in self.runs if name not in names], True
            except (RunError, OSError) as error:  # a network disk may come back
                log.warning("%s", error)
                names, self.listed = set(self.runs), False
            self._read_installation(thorough=True)
        else:
            self._read_installation(thorough=False)
            names = {name for name in hints if name in self.runs or self._is_run(name)}
            # A live run is read now and then without a hint too: hints may fail, stops should not wait for a poll.
            names |= {run.name for run in self.runs.values() if run.is_active and run.is_due(now)}
        for name in names - set(self.runs):
            self.runs[name] = Run(RunFolder(self.outputs / name), self.clock)
        self._each([self.runs[name] for name in sorted(names)], self._read)
        self._see_to_orphans(orphans.look, missing)

    def _read_installation(self, *, thorough: bool) -> None:
        try:
            self.installation.read(thorough=thorough)
            self._installation_trouble = ""
        except OSError as error:  # what was said last holds
            trouble = f"{self.outputs / '.events.jsonl'} can't be read: {error}"
            trouble += "" if self.installation.known else "; no run is started before it can"
            if trouble != self._installation_trouble:
                log.warning("%s", trouble)
            self._installation_trouble = trouble

    def _read(self, run: Run) -> None:
        run.refresh()
        if not run.known:
            run.known = True
            run.remove_monitor_pid()
            if not run.is_active:
                run.seen()

    def answer(self, run: Run) -> None:
        """Refuse requests that came too late, end queued runs that are to stop, ask for an automatic resume."""
        state = run.state
        keep = state.spawning["request"] if state.spawning else None
        if keep is None and state.state == "queued" and state.requests:
            keep = state.requests[0].id
        for request in list(state.requests):
            if request.id != keep:
                what = "is already waiting to start" if state.state == "queued" else f"is already {state.state}"
                run.append("request.refused", {"request": request.id, "reason": f"{run.name} {what}"})
                run.note(f"request {request.id} refused: {run.name} {what}", "WARNING")
        if state.state == "queued" and state.stop_requested and not state.spawning:
            choice = attempts.resume_point(run)
            if run.append("run.stopped", {"reason": state.stop_reason, "step": state.step, **choice}):
                run.note("stopped while it waited")
        if not self.shutting_down and not run.holds_machine and auto_resume_follows(state, self.clock.now()):
            attempt = state.attempt
            assert attempt is not None
            data = {"config": attempt.config, "resume_from": state.resume_checkpoint, "reason": "auto_resume"}
            if run.append("run.requested", data):
                run.note(f"resuming by itself from {state.resume_checkpoint}")

    def start_waiting(self, live: list[Run]) -> None:
        """Give free GPUs or slots to queued runs, oldest request first; tell the others their place."""
        if any(run.state.state == "queued" for run in live):
            for turn in self._queue.turns(self):
                self._each([turn.run], lambda _, turn=turn: self._queue.give(self, turn))  # type: ignore[misc]

    def stop_for_shutdown(self, run: Run) -> None:
        """Ask a live run to stop because the host goes down; the intent comes into the log first, where it can."""
        attempt = run.state.live_attempt
        if attempt is None or run.state.stop_requested:
            return
        if run.append("stop.requested", {"reason": "shutdown"}, attempt=attempt.number):
            run.note(f"{self._shutdown_why}: stopping", "WARNING")

    # -- children ---------------------------------------------------------------------------------------------------

    def watch_children(self, run: Run) -> None:
        """See intents through to a started trainer, adopt live ones, notice those that ended."""
        if run.state.spawning is not None and run.state.live_attempt is None:
            spawning.see_through(self, run)
        attempt = run.state.live_attempt
        if attempt is None:
            return
        record = attempts.record(self.executor, run)
        gone = attempts.is_gone(self.executor, record)
        if run.known_attempt != attempt.number:
            run.known_attempt = attempt.number
            if run.watch is not None:
                run.watch.forgive()
            if not gone:
                attempts.adopt(run, attempt)
        if gone and run.kill is None and take_last_look(self, run):
            run.kill = TreeKill("leftovers", 0.0, self.clock.monotonic())

    # -- samples ----------------------------------------------------------------------------------------------------

    def sample(self, run: Run) -> None:
        """Read GPUs and processes of a live attempt, each period."""
        if run.state.live_attempt is not None and (run.kill is None or run.kill.why != "leftovers"):
            take_sample(self, run)

    def guard_disk(self, live: list[Run]) -> None:
        """See that the next checkpoints fit onto the disk; its trouble must not reach the runs."""
        try:
            self._disk.look(self, [run for run in live if run.state.live_attempt is not None])
        except Exception as error:
            log.error("the disk guard failed: %r", error, exc_info=True)

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def judge(self, run: Run) -> None:
        """Say what looks stuck, take it back when it moves, and end it when its limit is reached."""
        state, watch, attempt = run.state, run.watch, run.state.live_attempt
        if watch is None or attempt is None or run.kill is not None or state.stop_requested or not state.monitoring:
            run.drop_dump()
            return
        found = judge(watch.window(float(run.option("stall_seconds")), float(run.option("sample_gpu_seconds"))))
        data = {"verdict": found.verdict, "evidence": found.evidence}
        if run.dump is not None and not found.certain:  # it moved in the last moment
            run.drop_dump()
        if found.certain:
            if self.dumper is not None and run.dump is None:
                run.dump = self.dumper(run.folder, attempt.number, attempt.pid, self.clock.monotonic())
            if run.dump is not None and not run.dump.done(self.clock.monotonic()):
                return
            if attempts.declare_stalled(run, attempt, data):
                run.drop_dump()
                run.kill = TreeKill("stall", float(run.option("stop_grace_seconds")), self.clock.monotonic())
        elif found.verdict is not None and state.suspected is None:
            if run.append("stall.suspected", data, attempt=attempt.number):
                seconds = found.evidence["seconds_without_progress"]
                run.note(
                    f"{found.verdict} suspected: {seconds} s without progress (limit {found.limit:g} s)", "WARNING"
                )
        elif found.verdict is None and state.suspected is not None:
            cleared = {"verdict": state.suspected.get("verdict"), "evidence": state.suspected.get("evidence") or {}}
            if run.append("stall.cleared", cleared, attempt=attempt.number):
                run.note("moving again")

    # -- actions ----------------------------------------------------------------------------------------------------

    def act(self, run: Run) -> None:
        """Carry out what was asked for or judged: end the tree, then write down how the attempt ended."""
        now = self.clock.monotonic()
        grace = float(run.option("stop_grace_seconds")) if run.state.attempt else 0.0
        if self.shutting_down or run.state.stop_reason == "shutdown":
            grace = min(grace, SHUTDOWN_GRACE_SECONDS)
        if run.kill is None and run.state.must_be_killed:
            run.kill = TreeKill("stall", grace, now)
        if run.kill is None and run.state.live_attempt and (run.state.stop_requested or self.shutting_down):
            # A shutdown waits for no disk that is full: what comes behind it ends trainers without asking.
            run.kill = TreeKill("stop", grace, now, reason=run.state.stop_reason or "shutdown")
            run.note("stopping: TERM to the trainer")
        if run.kill is None or run.state.attempt is None:
            return
        record = attempts.record(self.executor, run)
        if run.kill.turn(now, run.folder, record, self.executor):
            run.refresh()  # the trainer's last words
            if attempts.finish(run, attempts.record(self.executor, run), run.kill, now):
                run.kill = None

    # -- turning ----------------------------------------------------------------------------------------------------

    def _each(self, runs: list[Run], verb: Callable[[Run], object], *, paused_too: bool = False) -> None:
        """One run's trouble must not reach the others; it pauses the run, `paused_too` or not."""
        now = self.clock.monotonic()
        for run in runs:
            if now < run.paused_until and not paused_too:
                continue
            try:
                verb(run)
            except Exception as error:
                run.paused_until, run.settled = now + TROUBLE_SECONDS, False
                trouble = f"{getattr(verb, '__name__', 'a step')} failed: {error!r}"
                if trouble != run.trouble:
                    log.error("%s: %s", run.name, trouble, exc_info=not isinstance(error, OSError))
                run.trouble = trouble

    def _see_to_orphans(self, step: Callable[..., None], *what: object) -> None:
        """Trouble with what is gone must not reach the runs."""
        try:
            step(self, *what)
        except Exception as error:
            log.error("ending what is left of a deleted run failed: %r", error, exc_info=True)

    def _due(self, live: list[Run]) -> float:
        due, now = BUSY_SECONDS if self.orphans else self.poll_seconds, self.clock.monotonic()
        if self.alerts is not None:
            due = min(due, self.alerts.due())
        for run in live:
            if run.paused_until > now or run.retry_at > now:
                due = min(due, LIVE_SECONDS)
            elif run.kill is not None or run.state.spawning is not None or run.dump is not None:
                return BUSY_SECONDS
            elif run.state.live_attempt is not None:
                period = number(run.option("sample_gpu_seconds"))
                due = min(due, LIVE_SECONDS, max(BUSY_SECONDS, period if period is not None else LIVE_SECONDS))
            elif not run.settled:
                return BUSY_SECONDS
            elif run.state.requests:
                due = min(due, LIVE_SECONDS)
        return due

    def _is_run(self, name: str) -> bool:
        return is_valid_name(name) and any((self.outputs / name).glob("events*.jsonl"))
