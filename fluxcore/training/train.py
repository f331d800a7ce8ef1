"""Training a FLUX LoRA, top to bottom.

    python -m fluxcore.training --outputs outputs --run my-cat --attempt 1 --request cli-4711-3f2a:2

The runner starts it so; by hand it does the same. It reads its config from the run's event log and appends phases,
steps, samples and checkpoints to it. It knows nothing of the runner or the app.
"""

from __future__ import annotations

import gc
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from fluxcore.config import RunConfig
from fluxcore.dataset.layout import Layout, lay_out
from fluxcore.log import PatientLog
from fluxcore.models.family import PromptBatch, family_of
from fluxcore.models.frozen import hold_base, train_in_32_bit
from fluxcore.models.held import held
from fluxcore.models.loading import PromptEmbedding
from fluxcore.models.locating import Base, is_remote, locate
from fluxcore.models.registry import BaseModel, find_model
from fluxcore.runs.files import RunFolder
from fluxcore.runs.retention import prune_states

from . import randomness
from .averages import Averages
from .cache import Cache, file_hash
from .compiling import Compiling
from .data import Batch, TrainingData
from .failures import Exit, TrainingError
from .lora_file import save_network
from .lora_metadata import sd_scripts_metadata
from .metadata import thumbnail_of, training_info
from .network import add_network, continue_from, effective_alpha, network_tensors
from .noise_levels import draw_sigmas
from .objective import sample_losses, sigma_weights
from .optimizers import effective_rate, make_optimizer
from .prompts import SamplePrompt, parse_prompts
from .ranks import Ranks
from .sampling import draw, save_png
from .state_form import StateForm
from .states import Resumed, keep_states_small, load_state, lora_state, save_state
from .validation import Validation

DTYPES = {"no": torch.float32, "float": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOG_SECONDS = 2.0


class Stopped(Exception):
    """A TERM came while something long was going on."""


@dataclass
class Training:
    """One attempt: what to train, where to write, whether a TERM came, and what a person asked for meanwhile."""

    folder: RunFolder
    config: RunConfig
    log: PatientLog
    resume_from: Path | None = None
    stopping: Callable[[], bool] = lambda: False
    wishes: Callable[[], set[str]] = set
    ranks: Ranks = field(default_factory=Ranks)
    started: float = field(default_factory=time.time)

    # Filled by run(), in this order.
    layout: Layout = field(init=False)
    data: TrainingData = field(init=False)
    pipeline: Any = field(init=False)
    compiling: Compiling = field(init=False)
    embeddings: dict[str, PromptEmbedding] = field(default_factory=dict)
    averages: Averages | None = None
    validation: Validation | None = None
    measured: dict[int, float] = field(default_factory=dict)
    thumbnail: str | None = None
    """The newest sample of the first prompt with the LoRA in it, for the file's metadata."""
    smaller: bool = False
    """Whether the memory was short: batches are trained in halves since."""

    def run(self) -> Exit:
        """Train to the end, or until TERM. Returns the exit code; raises TrainingError, OSError and the like."""
        try:
            return self._run()
        except Stopped:  # before the first step: there is nothing to save
            print("stopped before the first step", flush=True)
            return Exit.STOPPED

    def _run(self) -> Exit:
        config, folder = self.config, self.folder
        ranks = self.ranks
        accelerator = ranks.accelerator()
        device, dtype = accelerator.device, DTYPES[config.mixed_precision]
        self.model = find_model(config.base_model)
        self.family = family_of(self.model)
        self.prompts = _prompts(config, self.model)
        layout = self.layout = lay_out(config, folder.dataset)
        self.steps_per_epoch, self.total_steps = layout.steps_per_epoch, layout.total_steps

        # The base model: found; its text side used and freed; its image side on the host, the VAE for as long as it is
        # used on the GPU.
        with ranks.in_turn("the base model", self.heed_stop):
            base = self._find_base(self.model)
        self.phase("load")
        tokens, family = self.model.tokens, self.family
        data = self.data = TrainingData(config, layout, Cache(folder.cache), base, tokens, dtype)
        wanted = [text for prompt in self.prompts for text in (prompt.text, prompt.negative)]
        reader = torch.device("cpu") if config.encode_on_cpu else device
        with ranks.in_turn("the captions", self.heed_stop):
            data.encode_text(wanted, lambda: family.load_text_side(base, tokens, dtype, reader), self.encoding)
        self.embeddings = {text: data.prompt(text) for text in wanted}
        self.phase("load")
        pipeline = self.pipeline = family.load_image_side(base, dtype, torch.device("cpu"))
        with ranks.in_turn("the pictures", self.heed_stop):
            pipeline.vae.to(device)
            data.encode_pictures(family, pipeline, self.encoding)
            pipeline.vae.to("cpu")

        # The LoRA on the chosen layers, in 32 bit whatever the base is in; only then is the base held in less, and
        # brought to the GPU layer by layer.
        transformer = pipeline.transformer
        torch.manual_seed(randomness.seed_for(config.seed, "lora"))
        add_network(transformer, config, family)
        trained = train_in_32_bit(transformer, dtype, device)
        if config.network_weights and self.resume_from is None:
            continue_from(transformer, Path(config.network_weights), config, family)
        hold_base(transformer, device, held(config), config.blocks_to_swap)
        if config.shard_base:
            ranks.share(transformer, trained)
        transformer.to(device)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()
        compiling = self.compiling = Compiling(transformer, config.compile, self._tell_of_compiling)

        form = StateForm(family.key_names, effective_alpha(config))
        named = form.in_order({name: value for name, value in transformer.named_parameters() if value.requires_grad})
        parameters = list(named.values())
        optimizer = make_optimizer(config, parameters)
        scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.total_steps,
            num_cycles=config.lr_scheduler_num_cycles,
            power=config.lr_scheduler_power,
        )
        averages = self.averages = Averages(named, optimizer, config.ema_decay)
        validation = self.validation = Validation(config.seed, data.held_out()) if layout.held_out else None
        optimizer, scheduler = ranks.prepare(accelerator, parameters, optimizer, scheduler)
        keep_states_small(accelerator, transformer, form)
        step = 0
        if self.resume_from:
            step = self._resume(load_state(transformer, form, optimizer, scheduler, self.resume_from), self.resume_from)
            averages.load(self.resume_from)
            before = data.batches_before(self.resume_from)
            if data.changed_since(self.resume_from) or before != config.batches_per_step:
                self._tell_of_other_data(self.resume_from, step, before)
            if validation:
                validation.load(self.resume_from)
        self.saved_step = step
        if step >= self.total_steps:
            raise TrainingError(
                Exit.BAD_CONFIG, f"no steps are left: the checkpoint is at {step} of {self.total_steps}"
            )

        if step == 0 and config.sample_at_first and config.sample_every_n_steps:
            self.sample(pipeline, step=0)
        self.phase("train", total=self.total_steps, unit="steps")
        self.last_line = 0.0

        while step < self.total_steps:
            if ranks.any(self.stopping()):
                return self._stop(accelerator, step)
            step_started = time.monotonic()
            step += 1
            epoch = (step - 1) // self.steps_per_epoch + 1

            # Which pictures, which noise, which noise level: functions of (seed, step, sample) alone.
            compiling.before_step(step, self.total_steps - step + 1)
            batches, samples = data.step(step, ranks.rank, ranks.count, even=ranks.sharded), data.samples(step)
            loss, short = None, False
            try:
                loss = self.backward(accelerator, pipeline, step, batches, samples)
            except torch.OutOfMemoryError:
                if self.smaller or ranks.sharded:  # all have to do as many passes
                    raise
                short = True
            except Exception as error:
                if not compiling.gave_up(error, step):
                    raise
            if loss is None:  # not within `except`, which would keep the failed step's memory
                optimizer.zero_grad()
                if short:
                    self._use_less_memory(pipeline, step, batches)
                loss = self.backward(accelerator, pipeline, step, batches, samples)
            ranks.add_gradients()
            loss, too_large = ranks.totals(loss, float(short))
            if too_large and not self.smaller:  # another process's memory is no larger than ours
                self._use_less_memory(pipeline, step, batches)
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
            rate = effective_rate(optimizer, scheduler.get_last_lr()[0])
            sound = math.isfinite(loss) and math.isfinite(grad_norm)
            if sound:  # else the LoRA would be spoilt, and the next checkpoint with it
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                averages.update(step)

            seconds = time.monotonic() - step_started
            compiling.after_step(seconds)
            self._report(step, epoch, loss, rate, float(grad_norm), seconds, samples)
            if not sound:
                what = f"the loss is {loss} and its gradient {float(grad_norm)} at step {step}"
                raise TrainingError(Exit.NAN_LOSS, f"{what}: lower the learning rate, then resume")

            # Validation, checkpoints and samples at their times or when asked for; the last ones are below.
            if step == self.total_steps:
                break
            asked = ranks.same(self.wishes())
            try:
                if config.validate_every_n_steps and step % config.validate_every_n_steps == 0:
                    self.validate(step)
                ended_epoch, states = step % self.steps_per_epoch == 0, config.enable_checkpointing
                if ended_epoch and config.save_every_n_epochs and epoch % config.save_every_n_epochs == 0:
                    self.save(accelerator, folder.epoch_weights(epoch), folder.epoch_state(epoch), epoch, step, states)
                if "save" in asked or (config.save_every_n_steps and step % config.save_every_n_steps == 0):
                    states = states or "save" in asked
                    self.save(accelerator, folder.step_weights(step), folder.step_state(step), epoch, step, states)
                if "sample" in asked or (config.sample_every_n_steps and step % config.sample_every_n_steps == 0):
                    self.sample(pipeline, step)
                    self.phase("train", total=self.total_steps, unit="steps")
            except Stopped:
                return self._stop(accelerator, step)

        states, epoch = config.enable_checkpointing, layout.last_epoch
        self.save(accelerator, folder.final_weights, folder.final_state, epoch, step, states, then=None)
        if config.sample_every_n_steps:
            try:
                self.sample(pipeline, step)
            except Stopped:
                print("stopped while drawing the last samples; the LoRA is whole", flush=True)
        print(f"done: {folder.final_weights}", flush=True)
        return Exit.DONE

    def backward(self, accelerator: Accelerator, pipeline: Any, step: int, batches: list[Batch], samples: int) -> float:
        """Add the gradients of this process's batches of a step; their part of its loss, the mean over all `samples`.

        The gradients are as many times larger as there are processes: what is made of them is their mean.
        """
        loss = 0.0
        for batch in [half for whole in batches for half in (whole.halves() if self.smaller else [whole])]:
            # Dropout inside the network draws from the global generator.
            key = (step, batch.first) if batch.first else (step,)
            torch.manual_seed(randomness.seed_for(self.config.seed, "dropout", *key))
            losses = self.losses(pipeline, batch)
            mean = (losses * batch.weights.to(losses.device)).sum() / samples
            accelerator.backward(mean * self.ranks.count)
            loss += mean.item()
        return loss

    def losses(self, pipeline: Any, batch: Batch) -> torch.Tensor:
        """The loss of each sample (B,): on the straight line from picture to noise, predict its direction."""
        config, family, dtype = self.config, self.family, DTYPES[self.config.mixed_precision]
        device = pipeline.transformer.device
        rows, columns = family.grid(batch.clean)
        sigma = draw_sigmas(
            batch.normal,
            config.timestep_sampling,
            sigmoid_scale=config.sigmoid_scale,
            shift=config.discrete_flow_shift,
            mu=family.training_mu(rows * columns),
            logit_mean=config.logit_mean,
            logit_std=config.logit_std,
            mode_scale=config.mode_scale,
        ).to(device)
        clean, noise = family.pack(batch.clean).to(device), family.pack(batch.noise).to(device)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        prompts = PromptBatch.stack(batch.prompts, device, dtype)
        velocity = family.predict(pipeline, noisy.to(dtype), sigma, prompts, config.guidance_scale, (rows, columns))
        losses = sample_losses(velocity, noise - clean, config.loss_type, config.huber_c)
        return losses * sigma_weights(sigma, config.weighting_scheme)

    # What happens at the edges of the loop.

    def shown(self) -> AbstractContextManager[None]:
        """Within it the network has the weights to be saved, drawn and measured."""
        return self.averages.shown() if self.averages else nullcontext()

    def phase(self, name: str, total: float | None = None, unit: str | None = None) -> None:
        """Announce a phase; it lasts until the next one."""
        self.log.append("phase.started", {"phase": name, "total": total, "unit": unit})
        print(f"phase: {name}", flush=True)

    def progress(self, phase: str) -> Callable[[float, float], None]:
        """A callback that reports counted progress of `phase`, at most twice a second and at its end."""
        last = 0.0

        def report(done: float, total: float) -> None:
            nonlocal last
            self.heed_stop()
            if done >= total or time.monotonic() - last > 0.5:
                last = time.monotonic()
                self.log.append("phase.progress", {"phase": phase, "done": done, "total": total})

        return report

    def encoding(self, total: int, unit: str) -> Callable[[float, float], None]:
        """Announce that so many captions or pictures are encoded now; returns what each of them is reported to."""
        self.phase("cache", total=total, unit=unit)
        return self.progress("cache")

    def heed_stop(self) -> None:
        """Raise Stopped where a TERM came; called in all that lasts longer than a step, by all processes alike."""
        if self.ranks.any(self.stopping()):
            raise Stopped

    def _resume(self, found: Resumed, state: Path) -> int:
        """Say where a checkpoint is not taken over as it was; returns its step."""
        if found.theirs or found.notices:
            source, optimizer = "sd-scripts" if found.theirs else "fluxgym", "fresh" if found.fresh else "kept"
            self.log.append(
                "resume.adapted",
                {
                    "step": found.step,
                    "checkpoint": state.name,
                    "source": source,
                    "optimizer": optimizer,
                    "notices": list(found.notices),
                },
            )
            told = "; ".join((f"resumed from {source}' state" if found.theirs else "resumed", *found.notices))
            print(f"{state.name}: {told}", flush=True)
        return found.step

    def _tell_of_other_data(self, state: Path, step: int, batches_before: int) -> None:
        """Pictures, captions, their settings or a step's batches aren't those that the checkpoint was trained with."""
        config = self.config
        self.log.append(
            "dataset.changed", {"step": step, "checkpoint": state.name, "pictures": len(self.layout.pictures)}
        )
        if batches_before != config.batches_per_step:
            change = f"a step had {batches_before} batches at {state.name}, now it has {config.batches_per_step}"
            accumulated, over = divmod(batches_before, config.processes)
            mend = f"gradient_accumulation_steps={accumulated}" if not over else f"{batches_before} processes"
        else:
            change, mend = f"the pictures, captions or dataset settings are not those of {state.name}", "the old ones"
        print(
            f"{change}: the training goes on so, but not as if it had never stopped (for that, resume from there with "
            f"{mend})",
            flush=True,
        )

    def _tell_of_compiling(self, type: str, data: dict[str, Any]) -> None:
        self.log.append(type, data)
        what = f"can't be compiled, they run as written ({data['reason']})" if "reason" in data else "are compiled now"
        print(f"the transformer's blocks {what}", flush=True)

    def _use_less_memory(self, pipeline: Any, step: int, batches: list[Batch]) -> None:
        """From now on: batches in halves, and activations computed twice instead of kept."""
        self.smaller = True
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not pipeline.transformer.is_gradient_checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        batch = max((len(half) for batch in batches for half in batch.halves()), default=1)
        self.log.append("memory.short", {"step": step, "batch": batch, "gradient_checkpointing": True})
        print(
            f"the GPU's memory was full at step {step}; going on with {batch} at a time and gradient checkpointing "
            "(set train_batch_size and gradient_checkpointing so)",
            flush=True,
        )

    def validate(self, step: int) -> float | None:
        """Measure the loss on the held-out pictures, of the weights that a save would write; None without any."""
        if self.validation is None:
            return None
        if step in self.measured:  # at a save right after
            return self.measured[step]
        pipeline = self.pipeline
        pipeline.transformer.eval()
        try:
            with self.shown(), self.compiling.as_written():
                loss = self.validation.measure(lambda batch: self.losses(pipeline, batch), self.heed_stop)
        finally:
            pipeline.transformer.train()
        best = self.validation.note(loss, step)
        self.measured = {step: loss}
        self.log.append(
            "validation.measured",
            {
                "step": step,
                "epoch": -(-step // self.steps_per_epoch),
                "loss": loss,
                "pictures": self.validation.pictures,
                "best": best,
                "best_loss": self.validation.best_loss,
                "best_step": self.validation.best_step,
            },
        )
        print(f"validation at step {step}: {loss:.4f}{' (the lowest so far)' if best else ''}", flush=True)
        return loss

    def sample(self, pipeline: Any, step: int) -> None:
        """Draw every sample prompt with the LoRA as it is now."""
        if self.prompts:
            with self.shown(), self.compiling.as_written():
                self._draw_all(pipeline, step)

    def _draw_all(self, pipeline: Any, step: int) -> None:
        self.phase("sample", total=len(self.prompts), unit="pictures")
        epoch = -(-step // self.steps_per_epoch)
        report = self.progress("sample")
        for index, prompt in enumerate(self.prompts):
            seed = self.config.seed + index if prompt.seed is None else prompt.seed
            path = self.folder.sample(index, seed, step=step)
            drawn = draw(self.family, pipeline, prompt, self.embeddings, self.config.resolution, seed, self.heed_stop)
            if self.ranks.first:
                save_png(drawn, path, prompt.text)
            if step and index == 0:
                self.thumbnail = thumbnail_of(drawn)
            self.log.append(
                "sample.saved",
                {
                    "step": step,
                    "epoch": epoch,
                    "index": index,
                    "prompt": prompt.text,
                    "seed": seed,
                    "path": self.folder.relative(path),
                },
            )
            report(index + 1, len(self.prompts))

    def save(
        self,
        accelerator: Accelerator,
        weights: Path,
        state: Path,
        epoch: int,
        step: int,
        with_state: bool,
        then: str | None = "train",
    ) -> None:
        """Write the LoRA, and the state with it where that is wanted; old states go as the config says."""
        try:
            loss = self.validate(step)
        except Stopped:  # a TERM saves a state anyway; here it only cuts the measuring short
            loss = None
        if not self.ranks.first:
            self.saved_step = step
            return
        self.phase("save")
        if with_state:
            self._save_state(accelerator, state, epoch, step)
        with self.shown():
            found = lora_state(self.pipeline.transformer)
            lora = {name: value.clone() for name, value in found.items()}  # what is shown is taken back
        tensors = network_tensors(lora, self.config, self.family, DTYPES[self.config.save_precision])
        info = training_info(self.config, self.model, self.layout, self.started, self.thumbnail)
        save_network(weights, tensors, sd_scripts_metadata(info, steps=step, epoch=epoch, finished_at=time.time()))
        self.log.append(
            "checkpoint.saved",
            {
                "step": step,
                "epoch": epoch,
                "path": self.folder.relative(weights),
                "kind": "weights",
                "bytes": weights.stat().st_size,
                "sha256": file_hash(weights),
                **({} if loss is None else {"validation_loss": loss}),
            },
        )
        if then:
            self.phase(then, total=self.total_steps, unit="steps")

    def _save_state(self, accelerator: Accelerator, state: Path, epoch: int, step: int) -> None:
        parts = (getattr(self, "data", None), self.averages, self.validation)
        more = [part.save for part in parts if part is not None]
        size = save_state(accelerator, self.folder, state, epoch, step, self.log.attempt, more)
        self.saved_step = step
        self.log.append(
            "checkpoint.saved",
            {"step": step, "epoch": epoch, "path": self.folder.relative(state), "kind": "state", "bytes": size},
        )
        prune_states(self.folder, self.config.save_last_n_epochs_state, self.config.save_last_n_steps_state, step)

    def _stop(self, accelerator: Accelerator, step: int) -> Exit:
        if self.ranks.first and self.config.enable_checkpointing and step > self.saved_step:
            self.phase("save")
            epoch = (step - 1) // self.steps_per_epoch + 1
            self._save_state(accelerator, self.folder.step_state(step), epoch, step)
        print(f"stopped at step {step}", flush=True)
        return Exit.STOPPED

    def _report(
        self, step: int, epoch: int, loss: float, rate: float, grad_norm: float, seconds: float, images: int
    ) -> None:
        self.log.append(
            "train.step",
            {
                "step": step,
                "total_steps": self.total_steps,
                "epoch": epoch,
                "loss": loss,
                "lr": rate,
                "grad_norm": grad_norm,
                "step_seconds": seconds,
                "images_per_second": images / seconds if seconds > 0 else None,
                "memory_gib": _memory_gib(),
            },
        )
        if time.monotonic() - self.last_line > LOG_SECONDS or step == self.total_steps:
            self.last_line = time.monotonic()
            pace = f"lr {rate:.2e}  {1 / seconds:.2f} it/s"
            print(f"step {step}/{self.total_steps}  epoch {epoch}  loss {loss:.4f}  {pace}", flush=True)

    def _find_base(self, model: BaseModel) -> Base:
        if is_remote(model, self.config):
            self.phase("download", unit="bytes")
        return locate(model, self.progress("download"), self.config)


def _prompts(config: RunConfig, model: BaseModel) -> list[SamplePrompt]:
    try:
        return parse_prompts(config.sample_prompts, model.sample_steps)
    except ValueError as error:
        raise TrainingError(Exit.BAD_CONFIG, str(error)) from None


def _memory_gib() -> float:
    """Peak memory of the GPU, or of this process where there is none, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
