"""flux-mini's transformer: flow matching on the emoji's latents, then guidance distilled into its embedding."""

from __future__ import annotations

import copy
import string
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from .stages import Stage
from .text import FILLER, T5_TOKENS, WIDTH, build_clip, build_t5, tokenize
from .vae import LATENT_CHANNELS, SEED

BATCH = 64
SHORT_TOKENS = 12  # nearly every caption fits; a step with these is three times faster than one with all 64
CAPTION_DROP = 0.1
FILLER_SHARE = 0.2
GUIDANCE_RANGE = (1.0, 5.0)


def build_transformer() -> FluxTransformer2DModel:
    """The untrained transformer, 5.3 M parameters: 2 double and 4 single blocks, 6 heads of 32."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=LATENT_CHANNELS * 4,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


@dataclass
class Corpus:
    """What the transformer learns from: packed latents (N, 16, 128), their captions and the tokenizers."""

    latents: torch.Tensor
    captions: list[str]
    clip_tokenizer: CLIPTokenizer
    t5_tokenizer: T5Tokenizer

    @classmethod
    def of(cls, latents: torch.Tensor, captions: list[str], clip: CLIPTokenizer, t5: T5Tokenizer) -> Corpus:
        """Pack normalised latents (N, 32, 8, 8) as FLUX packs them."""
        count, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, count, channels, height, width)
        return cls(packed, captions, clip, t5)


def build_modules(corpus: Corpus) -> nn.ModuleDict:
    """The transformer and both text encoders, which are trained together."""
    torch.manual_seed(SEED + 1)
    return nn.ModuleDict(
        {
            "transformer": build_transformer(),
            "clip": build_clip(corpus.clip_tokenizer),
            "t5": build_t5(corpus.t5_tokenizer),
        }
    )


def flow_stage(work: Path, steps: int, corpus: Corpus, begin: dict[str, nn.Module] | None = None) -> Stage:
    """The flow matching stage, resumed where its checkpoint stands; it starts as `begin`, or untrained."""
    modules = nn.ModuleDict(begin) if begin else build_modules(corpus)
    modules.train().requires_grad_(True)
    return Stage(work / "flow.pt", modules, steps, learning_rate=1e-3, weight_decay=0.01)


def distil_stage(work: Path, steps: int, teacher: nn.ModuleDict) -> Stage:
    """The distillation stage: starts as the teacher, resumed where its checkpoint stands."""
    return Stage(work / "distil.pt", copy.deepcopy(teacher), steps, learning_rate=4e-4, ema_decay=0.998)


def predict(
    modules: nn.ModuleDict,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    guidance: torch.Tensor,
    clip_ids: torch.Tensor,
    t5_ids: torch.Tensor,
) -> torch.Tensor:
    """The predicted velocity for `noisy` (B, 16, 128), conditioned as `FluxPipeline` conditions."""
    pooled = modules["clip"](clip_ids).pooler_output
    sequence = modules["t5"](t5_ids).last_hidden_state
    side = int(noisy.shape[1] ** 0.5)
    return modules["transformer"](
        hidden_states=noisy,
        timestep=sigma,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=sequence,
        txt_ids=torch.zeros(sequence.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, side, side, "cpu", torch.float32),
        return_dict=False,
    )[0]


@dataclass
class Batch:
    """One step's noisy latents, noise levels, target velocity and token ids (a share of the captions dropped)."""

    noisy: torch.Tensor
    sigma: torch.Tensor
    velocity: torch.Tensor
    clip_ids: torch.Tensor
    t5_ids: torch.Tensor


def draw_batch(corpus: Corpus, step: int, long_share: float) -> Batch:
    """The batch of `step`, a function of the step alone; `long_share` of the steps use all 64 T5 tokens."""
    generator = torch.Generator().manual_seed(SEED * 7 + step)
    chosen = torch.randint(0, len(corpus.captions), (BATCH,), generator=generator)
    captions = [_vary(corpus.captions[index], generator) for index in chosen.tolist()]
    clip_ids, t5_ids = tokenize(captions, corpus.clip_tokenizer, corpus.t5_tokenizer)
    length = T5_TOKENS if torch.rand((), generator=generator) < long_share else SHORT_TOKENS
    clip_length = int((clip_ids == corpus.clip_tokenizer.eos_token_id).int().argmax(1).max()) + 1
    latents = corpus.latents[chosen]
    noise = torch.randn(latents.shape, generator=generator)
    sigma = torch.sigmoid(torch.randn(BATCH, generator=generator))
    flat = torch.rand(BATCH, generator=generator)
    sigma = torch.where(torch.rand(BATCH, generator=generator) < 0.15, flat, sigma)
    noisy = torch.lerp(latents, noise, sigma[:, None, None])
    return Batch(noisy, sigma, noise - latents, clip_ids[:, :clip_length], t5_ids[:, :length])


def _vary(caption: str, generator: torch.Generator) -> str:
    draw = torch.rand(4, generator=generator).tolist()
    if draw[0] < CAPTION_DROP:
        return ""
    if draw[1] < FILLER_SHARE:  # words that mean nothing, so that a prompt may have some
        count = 1 + int(draw[2] * 3)
        extra = [_filler(generator) for _ in range(count)]
        cut = int(draw[3] * (count + 1))
        caption = " ".join([*extra[:cut], caption, *extra[cut:]])
    return caption + ("," if draw[3] < 0.05 else "")


def _filler(generator: torch.Generator) -> str:
    pick = int(torch.randint(0, 2 * len(FILLER), (1,), generator=generator))
    if pick < len(FILLER):
        return FILLER[pick]
    letters = string.ascii_lowercase + string.digits
    size = int(torch.randint(2, 6, (1,), generator=generator))
    return "".join(letters[i] for i in torch.randint(0, len(letters), (size,), generator=generator).tolist())


def train_flow(stage: Stage, corpus: Corpus) -> None:
    """Flow matching: predict noise - latents. The guidance embedding sees 1, which means: as the data is."""

    def loss_of(step: int) -> torch.Tensor:
        batch = draw_batch(corpus, step, long_share=0.05)
        ones = torch.ones(BATCH)
        predicted = predict(stage.modules, batch.noisy, batch.sigma, ones, batch.clip_ids, batch.t5_ids)
        return (predicted - batch.velocity).square().mean()

    stage.run(loss_of, lambda step, loss: _report("flow", stage, step, loss))


def train_distil(stage: Stage, corpus: Corpus, teacher: nn.ModuleDict) -> None:
    """Match the teacher's classifier-free guidance in one pass: v_empty + g (v_caption - v_empty) at guidance g."""
    teacher.requires_grad_(False).eval()

    def loss_of(step: int) -> torch.Tensor:
        batch = draw_batch(corpus, step + 10_000_000, long_share=0.2)
        generator = torch.Generator().manual_seed(SEED * 11 + step)
        low, high = GUIDANCE_RANGE
        guidance = low + (high - low) * torch.rand(BATCH, generator=generator)
        ones = torch.ones(BATCH)
        empty_clip, empty_t5 = tokenize([""], corpus.clip_tokenizer, corpus.t5_tokenizer)
        empty_clip = empty_clip[:, :2].expand(BATCH, -1)
        empty_t5 = empty_t5[:, : batch.t5_ids.shape[1]].expand(BATCH, -1)
        with torch.no_grad():
            without = predict(teacher, batch.noisy, batch.sigma, ones, empty_clip, empty_t5)
            with_caption = predict(teacher, batch.noisy, batch.sigma, ones, batch.clip_ids, batch.t5_ids)
            target = without + guidance[:, None, None] * (with_caption - without)
        predicted = predict(stage.modules, batch.noisy, batch.sigma, guidance, batch.clip_ids, batch.t5_ids)
        return (predicted - target).square().mean()

    stage.run(loss_of, lambda step, loss: _report("distil", stage, step, loss))


def _report(name: str, stage: Stage, step: int, loss: float) -> None:
    print(f"{name} {step}/{stage.steps}  loss {loss:.4f}  {stage.seconds:.0f} s", flush=True)
