"""flux-mini's text side: tokenizers made from the captions, a tiny CLIP (pooled) and a tiny T5 (sequence)."""

from __future__ import annotations

import json
import math
import string
from collections import Counter

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 128
CLIP_TOKENS = 32
T5_TOKENS = 64
START, END = "<|startoftext|>", "<|endoftext|>"

# Words that prompts have and Unicode names lack; in pretraining they come and go and mean nothing.
FILLER = "a an the picture image drawing print photo of in on at to style with and for my one very some is this".split()
CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def words_of(captions: list[str]) -> Counter[str]:
    """How often each word (split at blanks and hyphens) stands in `captions`; every filler word counts once more."""
    counts = Counter(word for caption in captions for word in caption.replace("-", " ").split())
    counts.update(FILLER)
    return counts


def build_t5_tokenizer(captions: list[str]) -> T5Tokenizer:
    """A Unigram tokenizer: one piece for each known word, single characters for all else."""
    counts = words_of(captions)
    total = sum(counts.values())
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -12.0)]
    pieces += [(f"▁{word}", math.log(count / total)) for word, count in sorted(counts.items()) if len(word) > 1]
    pieces += [(f"▁{character}", -13.0) for character in CHARACTERS]
    pieces += [(character, -14.0) for character in CHARACTERS]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)
    return tokenizer


def build_clip_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form, its merges learned on the captions."""
    counts = words_of(captions)
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2800,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [word for word, count in sorted(counts.items()) for _ in range(count)]
    lines += [f"{one} {one}{one}" for one in string.ascii_lowercase + string.digits]
    trained.train_from_iterator(lines, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    vocab: dict[str, int] = model["vocab"]
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):  # any byte may end a word
        vocab.setdefault(f"{symbol}</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained CLIP text model, two layers of width 128; its pooled output conditions the transformer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """The untrained T5 encoder, two layers of width 128; its sequence is the transformer's text."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def tokenize(
    captions: list[str], clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as `FluxPipeline` makes them: (N, 32) for CLIP, (N, 64) for T5, both padded to their full length."""
    clip = clip_tokenizer(
        captions, padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    t5 = t5_tokenizer(
        captions, padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return clip, t5
