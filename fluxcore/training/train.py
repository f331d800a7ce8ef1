"""Training a FLUX LoRA, top to bottom.

    python -m fluxcore.training --outputs outputs --run my-cat --attempt 1 --request cli-4711-3f2a:2

The runner starts it so; by hand it does the same. It reads its config from the run's event log and appends phases,
steps, samples and checkpoints to it. It knows nothing of the runner or the app.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fluxcore.config import RunConfig
from fluxcore.dataset.layout import lay_out
from fluxcore.models.checkpointing import checkpoint_blocks
from fluxcore.models.family import PromptBatch, family_of
from fluxcore.models.frozen import hold_base, train_in_32_bit
from fluxcore.models.held import held
from fluxcore.models.locating import Base, is_remote, locate
from fluxcore.models.registry import BaseModel, find_model

from . import randomness
from .attempt import Attempt, Stopped
from .averages import Averages
from .cache import Cache
from .compiling import Compiling
from .data import Batch, TrainingData
from .failures import Exit, TrainingError, out_of_memory
from .memory import free_memory, if_it_fits
from .metadata import base_name
from .network import DTYPES, add_network, continue_from, effective_alpha, look_at_weights, network_settings
from .noise_levels import draw_sigmas
from .objective import sample_losses, sigma_weights
from .optimizers import effective_rate, make_optimizer, make_schedule
from .prompts import SamplePrompt, parse_prompts
from .state_form import StateForm
from .states import keep_states_small, load_state
from .validation import Validation


class Training(Attempt):
    """An attempt with its loop."""

    smaller = False
    """Whether the memory was short: batches are trained in halves since."""

    def run(self) -> Exit:
        """Train to the end, or until TERM. Returns the exit code; raises TrainingError, OSError and the like."""
        try:
            return self._run()
        except Stopped:  # before the first step: there is nothing to save
            print("stopped before the first step", flush=True)
            return Exit.STOPPED
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.report.current) from error

    def _run(self) -> Exit:
        config, folder, ranks, report = self.config, self.folder, self.ranks, self.report
        accelerator = ranks.accelerator()
        device, dtype = accelerator.device, DTYPES[config.mixed_precision]
        self.device = device
        self.model = find_model(config.base_model)
        self.family = family_of(self.model)
        self.prompts = _prompts(config, self.model)
        layout = self.layout = lay_out(config, folder.dataset)
        if config.network_weights and self.resume_from is None:
            look_at_weights(Path(config.network_weights))

        # The base model: found; its text side used and freed; its image side on the host, the VAE for as long as it is
        # used on the GPU.
        with ranks.in_turn("the base model", self.heed_stop):
            base = self._find_base(self.model)
        report.phase("load")
        tokens, family = self.model.tokens, self.family
        data = TrainingData(config, layout, Cache(folder.cache), base, tokens, dtype)
        wanted = [text for prompt in self.prompts for text in (prompt.text, prompt.negative)]
        reader = torch.device("cpu") if config.encode_on_cpu else device
        with ranks.in_turn("the captions", self.heed_stop):
            load = lambda where: family.load_text_side(base, tokens, dtype, where)
            encode = lambda where: data.encode_text(wanted, lambda: load(where), report.encoding)
            self._on_either("captions", reader, encode)
        self.embeddings = {text: data.prompt(text) for text in wanted}
        report.phase("load")
        pipeline = self.pipeline = family.load_image_side(base, dtype, torch.device("cpu"))
        with ranks.in_turn("the pictures", self.heed_stop):
            self._on_either("pictures", device, lambda where: self._encode_pictures(data, where))
            pipeline.vae.to("cpu")

        # The LoRA on the chosen layers, in 32 bit whatever the base is in; only then is the base held in less, and
        # brought to the GPU layer by layer.
        report.current = "load"  # not announced once more: it is short
        transformer = pipeline.transformer
        torch.manual_seed(randomness.seed_for(config.seed, "lora"))
        add_network(transformer, config, family)
        trained = train_in_32_bit(transformer, dtype, device)
        if config.network_weights and self.resume_from is None:
            report.continued(continue_from(transformer, Path(config.network_weights), config, family))
        hold_base(transformer, device, held(config), config.blocks_to_swap)
        if config.shard_base:
            ranks.share(transformer, trained)
        transformer.to(device)
        if config.gradient_checkpointing:
            checkpoint_blocks(transformer, config.gradient_checkpointing_interval)
        transformer.train()
        compiling = self.compiling = Compiling(transformer, config.compile, report.compiling)

        form = StateForm(family.key_names, effective_alpha(config))
        named = form.in_order({name: value for name, value in transformer.named_parameters() if value.requires_grad})
        parameters = list(named.values())
        optimizer = make_optimizer(config, parameters)
        scheduler = make_schedule(config, optimizer, layout.total_steps)
        averages = self.averages = Averages(named, optimizer, config.ema_decay)
        validation = self.validation = Validation(config.seed, data.held_out()) if layout.held_out else None
        optimizer, scheduler = ranks.prepare(accelerator, parameters, optimizer, scheduler)
        keep_states_small(accelerator, transformer, form)
        self.saver.base = base_name(config, self.model)
        self.saver.parts = [part.save for part in (data, averages, validation) if part is not None]
        step, total = 0, layout.total_steps
        if state := self.resume_from:
            found = load_state(
                transformer, form, optimizer, scheduler, state, self.saver.base, folder.name, network_settings(config)
            )
            report.adapted(found, state)
            step = found.step
            averages.load(state)
            before = data.batches_before(state)
            if data.changed_since(state) or before != config.batches_per_step:
                report.other_data(state, step, len(layout.pictures), config, before)
            if validation:
                validation.load(state)
        self.saved_step = step
        if step >= total:
            raise TrainingError(Exit.BAD_CONFIG, f"no steps are left: the checkpoint is at {step} of {total}")
        self.make_way()

        if step == 0 and config.sample_at_first and config.sample_every_n_steps:
            self.sample(step=0)
        report.phase("train", total=total, unit="steps")

        while step < total:
            if ranks.any(self.stopping()):
                return self._stop(accelerator, step)
            step_started = time.monotonic()
            step += 1
            epoch = self.epoch_of(step)

            # Which pictures, which noise, which noise level: functions of (seed, step, sample) alone.
            compiling.before_step(step, total - step + 1)
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
                    self._use_less_memory(step, batches)
                loss = self.backward(accelerator, pipeline, step, batches, samples)
            ranks.add_gradients()
            loss, too_large = ranks.totals(loss, float(short))
            if too_large and not self.smaller:  # another process's memory is no larger than ours
                self._use_less_memory(step, batches)
            grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf))
            rate = effective_rate(optimizer, scheduler.get_last_lr()[0])
            sound = math.isfinite(loss) and math.isfinite(grad_norm)
            if sound:  # else the LoRA would be spoilt, and the next checkpoint with it
                try:
                    optimizer.step()
                except torch.OutOfMemoryError as error:  # part of the weights may be new ones: not to be tried again
                    raise out_of_memory("update") from error
                scheduler.step()
                optimizer.zero_grad()
                averages.update(step)

            seconds = time.monotonic() - step_started
            compiling.after_step(seconds)
            self._report(step, loss, rate, grad_norm, seconds, samples)
            if not sound:
                what = f"the loss is {loss} and its gradient {grad_norm} at step {step}"
                raise TrainingError(Exit.NAN_LOSS, f"{what}: lower the learning rate, then resume")

            # Validation, checkpoints and samples at their times or when asked for; the last ones are below.
            if step == total:
                break
            asked = ranks.same(self.wishes())
            try:
                if config.validate_every_n_steps and step % config.validate_every_n_steps == 0:
                    self.validate(step)
                ended_epoch, states = step % layout.steps_per_epoch == 0, config.enable_checkpointing
                if ended_epoch and config.save_every_n_epochs and epoch % config.save_every_n_epochs == 0:
                    self.save(accelerator, folder.epoch_weights(epoch), folder.epoch_state(epoch), step, states)
                    report.phase("train", total=total, unit="steps")
                if "save" in asked or (config.save_every_n_steps and step % config.save_every_n_steps == 0):
                    states = states or "save" in asked
                    self.save(accelerator, folder.step_weights(step), folder.step_state(step), step, states)
                    report.phase("train", total=total, unit="steps")
                if "sample" in asked or (config.sample_every_n_steps and step % config.sample_every_n_steps == 0):
                    self.sample(step)
                    report.phase("train", total=total, unit="steps")
            except Stopped:
                return self._stop(accelerator, step)

        self.save(accelerator, folder.final_weights, folder.final_state, step, config.enable_checkpointing)
        if config.sample_every_n_steps:
            try:
                self.sample(step)
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
            if self.config.network_dropout:  # it draws from the global generator
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
        device = self.device  # to ask the transformer takes longer than the rest of this: diffusers looks at each layer
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

    def _use_less_memory(self, step: int, batches: list[Batch]) -> None:
        """From now on: batches in halves, and activations computed twice instead of kept."""
        self.smaller = True
        free_memory()
        checkpoint_blocks(self.pipeline.transformer)
        most = max((len(half) for batch in batches for half in batch.halves()), default=1)
        instead = f"going on with at most {most} at a time and gradient checkpointing"
        self.report.short_memory("train", step, instead, batch=most, gradient_checkpointing=True)

    def _encode_pictures(self, data: TrainingData, where: torch.device) -> None:
        self.pipeline.vae.to(where)
        data.encode_pictures(self.family, self.pipeline, self.report.encoding)

    def _on_either(self, what: str, device: torch.device, encode: Callable[[torch.device], Any]) -> None:
        """Encode on `device`, or on the CPU where that has no room; what is encoded by then is kept."""
        if if_it_fits(lambda: (encode(device), True)) is None:
            self.report.short_memory("cache", 0, f"the {what} are encoded on the CPU")
            encode(torch.device("cpu"))

    def _find_base(self, model: BaseModel) -> Base:
        if is_remote(model, self.config):
            self.report.phase("download", unit="bytes")
        return locate(model, self.report.progress("download"), self.config)


def _prompts(config: RunConfig, model: BaseModel) -> list[SamplePrompt]:
    try:
        return parse_prompts(config.sample_prompts, model.sample_steps)
    except ValueError as error:
        raise TrainingError(Exit.BAD_CONFIG, str(error)) from None
