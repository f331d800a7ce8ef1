"""Training a FLUX LoRA, top to bottom.

    python -m fluxcore.training --outputs outputs --run my-cat --attempt 1 --request cli-4711-3f2a:2

The runner starts it so; by hand it does the same. It reads its config from the run's event log and appends phases,
steps, samples and checkpoints to it. It knows nothing of the runner or the app.
"""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from fluxcore.config import RunConfig
from fluxcore.dataset import Picture, list_pictures
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
from .cache import encode_dataset, encode_prompts
from .failures import Exit, TrainingError
from .lora_file import read_lora, save_lora
from .lora_keys import KEY_NAMES
from .lora_metadata import sd_scripts_metadata
from .metadata import training_info
from .noise_levels import draw_sigmas
from .prompts import SamplePrompt, parse_prompts
from .sampling import draw, save_png
from .states import keep_states_small, load_state, lora_state, save_state

DTYPES = {"no": torch.float32, "float": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOG_SECONDS = 2.0


class Stopped(Exception):
    """A TERM came while something long was going on."""


@dataclass
class Training:
    """One attempt: what to train, where to write, and whether a TERM came."""

    folder: RunFolder
    config: RunConfig
    log: PatientLog
    resume_from: Path | None = None
    stopping: Callable[[], bool] = lambda: False
    started: float = field(default_factory=time.time)

    # Filled by run(), in this order.
    pictures: list[Picture] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    embeddings: dict[str, PromptEmbedding] = field(default_factory=dict)
    latents: list[torch.Tensor] = field(default_factory=list)

    def run(self) -> Exit:
        """Train to the end, or until TERM. Returns the exit code; raises TrainingError, OSError and the like."""
        try:
            return self._run()
        except Stopped:  # before the first step: there is nothing to save
            print("stopped before the first step", flush=True)
            return Exit.STOPPED

    def _run(self) -> Exit:
        config, folder = self.config, self.folder
        accelerator = Accelerator(mixed_precision="no")  # precision is set below, on the base alone
        device, dtype = accelerator.device, DTYPES[config.mixed_precision]
        self.model = find_model(config.base_model)
        self.family = family_of(self.model)
        self.prompts = _prompts(config, self.model)
        self.pictures = list_pictures(folder.dataset)
        if not self.pictures:
            raise TrainingError(Exit.BAD_DATA, f"there are no pictures in {folder.dataset}")
        self.items = [index for index in range(len(self.pictures)) for _ in range(config.num_repeats)]
        self.steps_per_epoch = config.steps_per_epoch(len(self.pictures))
        self.total_steps = config.total_steps(len(self.pictures))
        self.last_epoch = math.ceil(self.total_steps / self.steps_per_epoch)

        # The base model: found; its text side used and freed; its image side on the host, the VAE for as long as it is
        # used on the GPU.
        base = self._find_base(self.model)
        self.phase("load")
        text = self.family.load_text_side(
            base, self.model.tokens, dtype, torch.device("cpu") if config.encode_on_cpu else device
        )
        captions = [picture.prompt(config.concept_sentence) for picture in self.pictures]
        wanted = ["", *captions, *(text for p in self.prompts for text in (p.text, p.negative))]
        self.phase("cache", total=len(set(wanted)), unit="captions")
        self.embeddings = encode_prompts(text, wanted, self.progress("cache"))
        del text
        self.phase("load")
        pipeline = self.family.load_image_side(base, dtype, torch.device("cpu"))
        pipeline.vae.to(device)
        self.phase("cache", total=len(self.pictures), unit="pictures")
        self.latents = encode_dataset(
            self.family, pipeline, self.pictures, config.resolution, config.workers, self.progress("cache")
        )
        pipeline.vae.to("cpu")
        caption_of = [self.embeddings[caption] for caption in captions]
        nothing = self.embeddings[""]

        # The LoRA on every linear layer of the blocks, in 32 bit whatever the base is in; only then is the base held in
        # less, and brought to the GPU layer by layer.
        transformer = pipeline.transformer
        torch.manual_seed(randomness.seed_for(config.seed, "lora"))
        transformer.add_adapter(
            LoraConfig(
                r=config.network_dim,
                lora_alpha=config.network_alpha,
                lora_dropout=config.network_dropout,
                target_modules=self.family.lora_targets,
            )
        )
        parameters = train_in_32_bit(transformer, dtype, device)
        if config.network_weights and self.resume_from is None:
            self._continue_from(transformer, Path(config.network_weights))
        hold_base(transformer, device, held(config), config.blocks_to_swap)
        transformer.to(device)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()

        optimizer = _optimizer(config, parameters)
        scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=self.total_steps,
        )
        transformer, optimizer, scheduler = accelerator.prepare(transformer, optimizer, scheduler)
        keep_states_small(accelerator)
        step = load_state(accelerator, transformer, self.resume_from) if self.resume_from else 0
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
            if self.stopping():
                return self._stop(accelerator, step)
            step_started = time.monotonic()
            step += 1
            epoch = (step - 1) // self.steps_per_epoch + 1

            # Which pictures, which noise, which noise level: functions of (seed, step, sample) alone.
            chosen = [
                self.items[i]
                for i in randomness.step_items(config.seed, step, len(self.items), config.train_batch_size)
            ]
            clean = torch.stack([self.latents[i] for i in chosen])
            noise = randomness.step_noise(config.seed, step, len(chosen), tuple(clean.shape[1:]))
            dropped = [u < config.caption_dropout_rate for u in randomness.step_uniform(config.seed, step, len(chosen))]
            prompts = PromptBatch.stack(
                [nothing if drop else caption_of[i] for i, drop in zip(chosen, dropped, strict=True)], device, dtype
            )
            height, width = self.family.grid(clean)
            sigma = draw_sigmas(
                randomness.step_normal(config.seed, step, len(chosen)),
                config.timestep_sampling,
                sigmoid_scale=config.sigmoid_scale,
                shift=config.discrete_flow_shift,
                mu=self.family.training_mu(height * width),
            ).to(device)
            torch.manual_seed(randomness.seed_for(config.seed, "dropout", step))

            # Flow matching: on the straight line from picture to noise, predict its direction.
            clean, noise = self.family.pack(clean).to(device), self.family.pack(noise).to(device)
            noisy = torch.lerp(clean, noise, sigma[:, None, None])
            velocity = self.family.predict(
                pipeline, noisy.to(dtype), sigma, prompts, config.guidance_scale, (height, width)
            )
            loss = (velocity.float() - (noise - clean)).square().mean()
            accelerator.backward(loss)
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
            rate = scheduler.get_last_lr()[0]
            sound = math.isfinite(loss.item()) and math.isfinite(grad_norm)
            if sound:  # else the LoRA would be spoilt, and the next checkpoint with it
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

            self._report(step, epoch, loss.item(), rate, float(grad_norm), time.monotonic() - step_started, len(chosen))
            if not sound:
                what = f"the loss is {loss.item()} and its gradient {float(grad_norm)} at step {step}"
                raise TrainingError(Exit.NAN_LOSS, f"{what}: lower the learning rate, then resume")

            # Checkpoints and samples at their times; the last ones are written below.
            if step < self.total_steps:
                ended_epoch = step % self.steps_per_epoch == 0
                if ended_epoch and config.save_every_n_epochs and epoch % config.save_every_n_epochs == 0:
                    self.save(accelerator, folder.epoch_weights(epoch), folder.epoch_state(epoch), epoch, step)
                if config.save_every_n_steps and step % config.save_every_n_steps == 0:
                    self.save(accelerator, folder.step_weights(step), folder.step_state(step), epoch, step)
                if config.sample_every_n_steps and step % config.sample_every_n_steps == 0:
                    try:
                        self.sample(pipeline, step)
                    except Stopped:
                        return self._stop(accelerator, step)
                    self.phase("train", total=self.total_steps, unit="steps")

        self.save(accelerator, folder.final_weights, folder.final_state, self.last_epoch, step, then=None)
        if config.sample_every_n_steps:
            try:
                self.sample(pipeline, step)
            except Stopped:
                print("stopped while drawing the last samples; the LoRA is whole", flush=True)
        print(f"done: {folder.final_weights}", flush=True)
        return Exit.DONE

    # What happens at the edges of the loop.

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

    def heed_stop(self) -> None:
        """Raise Stopped where a TERM came; called in all that lasts longer than a step."""
        if self.stopping():
            raise Stopped

    def sample(self, pipeline: Any, step: int) -> None:
        """Draw every sample prompt with the LoRA as it is now."""
        if not self.prompts:
            return
        self.phase("sample", total=len(self.prompts), unit="pictures")
        epoch = -(-step // self.steps_per_epoch)
        report = self.progress("sample")
        for index, prompt in enumerate(self.prompts):
            seed = self.config.seed + index if prompt.seed is None else prompt.seed
            path = self.folder.sample(index, seed, step=step)
            drawn = draw(self.family, pipeline, prompt, self.embeddings, self.config.resolution, seed, self.heed_stop)
            save_png(drawn, path, prompt.text)
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
        self, accelerator: Accelerator, weights: Path, state: Path, epoch: int, step: int, then: str | None = "train"
    ) -> None:
        """Write the LoRA, and the state where checkpointing is on; old states go as the config says."""
        self.phase("save")
        if self.config.enable_checkpointing:
            self._save_state(accelerator, state, epoch, step)
        transformer = accelerator.unwrap_model(accelerator._models[0])
        dtype = DTYPES[self.config.save_precision]
        lora = {name: value.to(dtype) for name, value in lora_state(transformer).items()}
        tensors = KEY_NAMES[self.family.key_names].to_file(lora, self.config.network_alpha)
        info = training_info(self.config, self.model, self.pictures, self.total_steps, self.started)
        save_lora(weights, tensors, sd_scripts_metadata(info, steps=step, epoch=epoch, finished_at=time.time()))
        self.log.append(
            "checkpoint.saved",
            {
                "step": step,
                "epoch": epoch,
                "path": self.folder.relative(weights),
                "kind": "weights",
                "bytes": weights.stat().st_size,
                "sha256": _sha256(weights),
            },
        )
        if then:
            self.phase(then, total=self.total_steps, unit="steps")

    def _save_state(self, accelerator: Accelerator, state: Path, epoch: int, step: int) -> None:
        size = save_state(accelerator, self.folder, state, epoch, step)
        self.saved_step = step
        self.log.append(
            "checkpoint.saved",
            {"step": step, "epoch": epoch, "path": self.folder.relative(state), "kind": "state", "bytes": size},
        )
        prune_states(self.folder, self.config.save_last_n_epochs_state, self.config.save_last_n_steps_state, step)

    def _stop(self, accelerator: Accelerator, step: int) -> Exit:
        if self.config.enable_checkpointing and step > self.saved_step:
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

    def _continue_from(self, transformer: torch.nn.Module, path: Path) -> None:
        """Put the LoRA at `path` into the adapter: same layers, same rank, and the strength that it had."""
        ours = get_peft_model_state_dict(transformer)
        try:
            theirs, alphas = KEY_NAMES[self.family.key_names].from_file(read_lora(path)[0])
        except (OSError, ValueError) as error:
            raise TrainingError(Exit.BAD_CONFIG, f"network_weights {path} can't be used: {error}") from None
        if {name: value.shape for name, value in theirs.items()} != {name: v.shape for name, v in ours.items()}:
            raise TrainingError(
                Exit.BAD_CONFIG,
                f"network_weights {path.name} is not a LoRA of rank {self.config.network_dim} on the same layers: "
                "set network_dim to its rank",
            )
        for name in theirs:
            module, is_up, _ = name.partition(".lora_B.")
            if is_up:  # their scale is alpha / rank of their own; the adapter's is the config's
                theirs[name] = theirs[name].float() * (alphas[module] / self.config.network_alpha)
        set_peft_model_state_dict(transformer, theirs)


def _prompts(config: RunConfig, model: BaseModel) -> list[SamplePrompt]:
    try:
        return parse_prompts(config.sample_prompts, model.sample_steps)
    except ValueError as error:
        raise TrainingError(Exit.BAD_CONFIG, str(error)) from None


def _optimizer(config: RunConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer_type == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=config.rate, relative_step=False, scale_parameter=False, warmup_init=False)
    return torch.optim.AdamW(parameters, lr=config.rate)


def _memory_gib() -> float:
    """Peak memory of the GPU, or of this process where there is none, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
