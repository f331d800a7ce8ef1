"""One training run, phase by phase, as the contract's trainers tell it; scenarios change its habits, hangs end it.

The bounds that keep a healthy run fair are kept here, in `Run.patience`, `Run.calm` and `Run.transfer`, whatever the
scenario asks for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.worlds.rigs import COMPUTE, DENOISE, ENCODE, PYTHON, QUIET, UNINTERRUPTIBLE, Card
from benchmarks.worlds.story import Load, Story

TRAIN_BOUND = 0.8  # of the promised limit: the longest that a healthy run's phase train goes without a step
SILENCE_BOUND = 0.75  # of stall_seconds: the longest that it shows no life at all in any other phase
UNCOUNTED_BOUND = 6000.0  # seconds: the longest planned stretch without counted progress in any other phase
MB = 1e6


class Hung(Exception):
    """The run has come to where it hangs."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Where a run hangs: at the `visit`-th time in `place`, when `share` of it is done."""

    place: str  # import download load cache before_first_step step sample save exit
    visit: int = 1
    share: float = 0.5


Pause = tuple[float, Load]


@dataclass(slots=True)
class Run:
    """A run's machine and habits; `play` tells its story. Rates in MB/s, sizes in GB (1e9 bytes), times in seconds."""

    rng: random.Random
    story: Story
    card: Card

    import_seconds: float = 12.0
    download: str = ""  # "bytes", "files": what is counted; "": all is there
    download_gb: tuple[float, ...] = (0.001, 0.3, 0.25, 4.99, 4.53, 9.98, 9.95, 3.87)
    download_rate: float = 60.0
    verify: bool = False  # read the whole file again, uncounted
    outages_an_hour: float = 0.0
    outage_seconds: float = 60.0

    text_gb: float = 9.8
    image_gb: float = 23.8
    disk_rate: float = 900.0
    accounted: bool = True  # whether reads and writes of that disk show in the process' own counters
    quantise: Pause = (0.0, PYTHON)
    captions: int = 20
    caption_seconds: float = 0.15
    pictures: int = 18
    picture_seconds: float = 0.4
    cache_load: Load = ENCODE
    text_first: bool = True

    on_gpu: bool = True
    first_step: int = 1
    steps: int = 600  # to do from first_step on
    skip: Pause = (0.0, QUIET)  # in phase train, before the first step: batches skipped, compiling
    step_seconds: Callable[[int], float] = lambda _: 2.0
    pause: Callable[[int], Pause] = lambda _: (0.0, QUIET)  # before that step, in phase train
    train_load: Callable[[int], Load] = lambda _: COMPUTE
    batch: int = 1
    beyond: bool = False  # uses the promise up to 3 × stall_seconds, with the GPU seen at work

    sample_every: int = 200
    sample_at_first: bool = False
    prompts: int = 3
    picture_draw: float = 25.0
    sample_load: Load = DENOISE
    text_again: bool = False  # the text encoder is read from the disk for each round of samples
    decode: Pause = (1.0, DENOISE)

    save_every: int = 250
    state_gb: float = 0.25
    weights_gb: float = 0.04
    save_rate: float = 400.0
    lumps: float = 0.0  # seconds of fsync after each file, in which nothing is accounted to the process
    export: Pause = (0.0, PYTHON)
    leave: Pause = (5.0, Load(cpu=0.3))  # from the last event to the end of the process

    epoch_steps: int = 200
    at_epoch: Callable[[], None] = lambda: None

    fate: Fate | None = None
    _visits: Counter[str] = field(default_factory=Counter)
    _mark: float = 0.0
    _longest: float = 0.0

    # The bounds

    @property
    def working(self) -> float:
        """Seconds that the machine was awake since the start."""
        return self.story.now - self.story.suspended

    def patience(self) -> float:
        """How long this healthy run may still go on in phase train before its next step is seen."""
        stall = self.story.stall_seconds
        limit = max(stall, min(5 * self._longest, 3 * stall)) if self.beyond else stall
        return TRAIN_BOUND * limit - self.story.buffer_seconds - (self.working - self._mark)

    def calm(self, seconds: float) -> float:
        """`seconds` of no visible life, as long as is fair."""
        return min(seconds, SILENCE_BOUND * self.story.stall_seconds)

    # The phases

    def play(self) -> None:
        """Tell the whole run. Hung: it came to its fate; then the story's `hang_at` is set."""
        self.stretch("import", self.import_seconds, self.reading(Load(cpu=0.6, read=15 * MB)), rss=0.9)
        if self.download:
            self.fetch()
        sides = ["text", "image"] if self.text_first else ["image", "text"]
        for side in sides:
            self.load(side)
        if self.sample_at_first and self.first_step == 1 and self.sample_every:
            self.draw(0)
        self.train()
        self.save(self.first_step + self.steps - 1, final=True)
        if self.sample_every:
            self.draw(self.first_step + self.steps - 1)
        if self.export[0]:
            self.phase("export")
            self.stretch("export", *self.export)
        self.stretch("exit", *self.leave)

    def fetch(self) -> None:
        """Download the base model, counted by bytes or by files."""
        share = self.doomed("download")
        whole = sum(self.download_gb)
        counts_bytes = self.download == "bytes"
        self.phase("download", int(whole * 1e9) if counts_bytes else len(self.download_gb), self.download)
        left = whole * share if share is not None else whole
        done = 0.0
        for i, gb in enumerate(self.download_gb):
            wanted = min(gb, left)
            tell = lambda part, before=done: self.progress("download", int((before + part) * 1e9), int(whole * 1e9))
            self.transfer(wanted, self.download_rate, Load(cpu=0.02), writes=True, tell=tell if counts_bytes else None)
            left -= wanted
            if left <= 0 and share is not None:
                self.end()
            done += gb
            if not counts_bytes:
                self.progress("download", i + 1, len(self.download_gb))
        if self.verify:
            self.transfer(whole, min(self.disk_rate, 1200.0), Load(cpu=0.7))

    def load(self, side: str) -> None:
        """Read one side of the model, uncounted, then fill its cache, counted."""
        story = self.story
        self.phase("load")
        gb = self.text_gb if side == "text" else self.image_gb
        share = self.doomed("load")
        self.transfer(gb * (share or 1.0), self.disk_rate, Load(cpu=0.25), rss=min(gb * (share or 1.0), 40.0) + 1.0)
        if share is not None:
            self.end()
        if side == "image" and self.quantise[0]:
            self.stretch("quantise", *self.quantise)
        memory = min(self.card.memory_gib * 0.8, gb * 0.55 + 0.5) if self.on_gpu else 0.0
        moving = Load(cpu=1.0, gpu=8, zeros=0.6, power=0.2) if self.on_gpu else PYTHON
        story.work(gb * 0.15 + 0.1, moving, rss=3.0, gpu_memory=memory)
        items, each, unit = self.captions, self.caption_seconds, "captions"
        if side == "image":
            items, each, unit = self.pictures, self.picture_seconds, "pictures"
        share = self.doomed("cache")
        self.phase("cache", items, unit)
        told = story.now
        for i in range(items):
            if share is not None and i >= int(share * items):
                self.end()
            story.work(each * self.rng.uniform(0.7, 1.5), self.cache_load)
            if story.now - told >= 0.5 or i + 1 == items:
                told = story.now
                self.progress("cache", i + 1, items)

    def train(self) -> None:
        """Every step, with the saves and samples between them."""
        last = self.first_step + self.steps - 1
        doomed = self.doomed("before_first_step"), self.doomed("step")
        self.phase("train", last, "steps")
        if doomed[0] is not None:
            self.end()
        hang_after = self.first_step + int((doomed[1] or 0) * (self.steps - 1))
        self.story.work(min(self.skip[0], self.patience() * 0.8), self.skip[1])
        memory = self.card.memory_gib * self.rng.uniform(0.6, 0.93) if self.on_gpu else 0.0
        for step in range(self.first_step, last + 1):
            self.step(step, last, memory)
            if doomed[1] is not None and step >= hang_after:
                self.end()
            if step % self.epoch_steps == 0:
                self.at_epoch()
            if step == last:
                break
            if self.save_every and step % self.save_every == 0:
                self.save(step)
                self.phase("train", last, "steps")
            if self.sample_every and step % self.sample_every == 0:
                self.draw(step)
                self.phase("train", last, "steps")

    def step(self, step: int, last: int, memory: float) -> None:
        """One optimizer step and its event, within the bound."""
        pause, load = self.pause(step)
        self.story.work(min(pause, self.patience() * 0.85), load)
        begun = self.working
        self.story.work(min(self.step_seconds(step), self.patience()), self.train_load(step), gpu_memory=memory)
        seconds = self.working - begun
        self._longest = max(self._longest, seconds)
        self.story.tell(
            "train.step",
            step=step,
            total_steps=last,
            epoch=(step - 1) // self.epoch_steps + 1,
            loss=round(0.35 + self.rng.uniform(-0.1, 0.1), 4),
            lr=8e-4,
            grad_norm=round(self.rng.uniform(0.05, 0.6), 4),
            step_seconds=seconds,
            images_per_second=self.batch / max(seconds, 1e-6),
            memory_gib=round(memory, 2) or None,
        )
        self._mark = self.working

    def draw(self, step: int) -> None:
        """A round of samples: a picture a prompt, each uncounted until it is there."""
        self.phase("sample", self.prompts, "pictures")
        if self.text_again:
            self.transfer(self.text_gb, self.disk_rate, Load(cpu=0.3), rss=self.text_gb + 3)
            self.story.work(self.text_gb * 0.2, PYTHON, rss=4.0)
        for i in range(self.prompts):
            seconds = min(self.picture_draw * self.rng.uniform(0.85, 1.25), UNCOUNTED_BOUND)
            self.stretch("sample", seconds, self.sample_load)
            self.story.work(*self.decode)
            path = f"sample/run_{step:06d}_{i:02d}_20261123200115_{42 + i}.png"
            epoch = -(-step // self.epoch_steps)
            self.story.tell("sample.saved", step=step, epoch=epoch, index=i, prompt="my c4t", seed=42 + i, path=path)
            self.progress("sample", i + 1, self.prompts)

    def save(self, step: int, final: bool = False) -> None:
        """The state, then the weights."""
        self.phase("save")
        name = "run" if final else f"run-step{step:08d}"
        files = {"state": (self.state_gb, f"{name}-state"), "weights": (self.weights_gb, f"{name}.safetensors")}
        for kind, (gb, path) in files.items():
            share = self.doomed("save")
            self.transfer(gb * (share or 1.0), self.save_rate, Load(cpu=0.3), writes=True)
            if share is not None:
                self.end()
            if self.lumps:
                self.story.work(self.calm(self.lumps * self.rng.uniform(0.2, 1.0)), UNINTERRUPTIBLE)
            self.story.work(gb * 0.5 + 0.02, PYTHON)
            self.story.tell(
                "checkpoint.saved",
                step=step,
                epoch=-(-step // self.epoch_steps),
                path=path,
                kind=kind,
                bytes=int(gb * 1e9),
            )

    # What phases are made of

    def phase(self, name: str, total: float | None = None, unit: str | None = None) -> None:
        """Announce a phase."""
        self.story.tell("phase.started", phase=name, total=total, unit=unit)
        self._mark = self.working

    def progress(self, phase: str, done: float, total: float) -> None:
        """Counted progress."""
        self.story.tell("phase.progress", phase=phase, done=done, total=total)

    def reading(self, load: Load) -> Load:
        """The load as the process' own counters show it: a FUSE mount's reads and writes are nobody's."""
        return load if self.accounted else replace(load, read=0.0, write=0.0)

    def transfer(
        self,
        gb: float,
        rate: float,
        load: Load,
        writes: bool = False,
        rss: float | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> None:
        """Move so many GB at a rate that wavers, with outages where the run has them; `tell(GB so far)` counts."""
        rng, story = self.rng, self.story
        rate = max(rate, gb * 1000 / (UNCOUNTED_BOUND * 0.8))
        begun, done, told = story.rss, 0.0, 0.0
        while done < gb:
            if self.outages_an_hour and rng.random() < self.outages_an_hour * 12 / 3600:
                story.work(self.calm(self.outage_seconds * rng.uniform(0.1, 1.0)), QUIET)
            now_rate = rate * rng.lognormvariate(0, 0.35)
            seconds = min(rng.uniform(0.6, 2.5) if tell else rng.uniform(4, 20), (gb - done) * 1000 / now_rate)
            done = min(gb, done + now_rate * seconds / 1000)
            if done > gb * (1 - 1e-9):
                done = gb
            moved = now_rate * MB
            part = replace(
                load, cpu=load.cpu + now_rate * 0.003, read=0.0 if writes else moved, write=moved if writes else 0.0
            )
            to = begun + (rss - begun) * done / gb if rss is not None else None
            story.work(max(seconds, 1e-3), self.reading(part), rss=to)
            if tell and (story.now - told >= 0.5 or done == gb):
                told = story.now
                tell(done)

    def stretch(self, place: str, seconds: float, load: Load, rss: float | None = None) -> None:
        """Uncounted work of one kind."""
        share = self.doomed(place)
        self.story.work(seconds * (share if share is not None else 1.0), load, rss=rss)
        if share is not None:
            self.end()

    def doomed(self, place: str) -> float | None:
        """The share after which this visit to `place` hangs; None where it doesn't."""
        self._visits[place] += 1
        fate = self.fate
        hangs = fate is not None and fate.place == place and fate.visit == self._visits[place]
        return fate.share if fate is not None and hangs else None

    def end(self) -> None:
        """Hang here."""
        self.story.hang()
        raise Hung
