"""Where a base model's files and tokenizers are: what a config and the list say, and what is said where they are not."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from fluxcore.config import parse_config
from fluxcore.models import locating, tokenizers
from fluxcore.models.errors import ModelError
from fluxcore.models.files import PARTS, SingleFiles
from fluxcore.models.registry import BaseModel, ModelNotFound, base_files, find_model
from fluxcore.models.tokenizers import CLIP_REPO, T5_REPO, find_tokenizers
from fluxcore.training import check

MINI = find_model("flux-mini").path or Path()


@pytest.fixture
def four(tmp_path: Path) -> dict[str, str]:
    paths = {part: str(tmp_path / f"{part}.safetensors") for part in PARTS}
    for path in paths.values():
        Path(path).write_bytes(b"x")
    return paths


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_configs_files_win_over_the_models(four: dict[str, str]) -> None:
    model = BaseModel(name="m", title="m", files={"ae": "a/b:ae.sft", "t5xxl": four["t5xxl"]})
    given = {**four, "ae": "", "t5xxl": four["clip_l"]}
    assert base_files(model, given) == {**four, "ae": "a/b:ae.sft", "t5xxl": four["clip_l"]}
    assert base_files(find_model("flux-dev"), {}) == {}


def test_what_is_missing_or_does_not_fit_is_said_before_a_start(four: dict[str, str]) -> None:
    def refusal(**changes: str) -> str:
        with pytest.raises(ModelNotFound) as error:
            check(parse_config({"base_model": "flux-dev", **four, **changes}))
        return str(error.value)

    check(parse_config({"base_model": "flux-dev", **four}))
    assert "set ae, t5xxl to their paths (all four files are needed)" in refusal(ae="", t5xxl="")
    assert "there is no file /nowhere; give the absolute path" in refusal(clip_l="/nowhere")
    assert "can't be combined with flux-mini" in refusal(base_model="flux-mini")
    Path(four["clip_l"]).rename(Path(four["clip_l"]).with_name("clip_l_2.safetensors"))
    folder = str(Path(four["ae"]).parent)
    assert "clip_l: there is no file" in refusal(base_model=folder)


def test_files_of_a_folder_and_of_the_hub(four: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str]] = []

    def fetch(wanted: Iterable[tuple[str, str]], on_progress: object = None) -> list[Path]:
        wanted = list(wanted)
        fetched.extend(wanted)
        return [Path(file) for _, file in wanted]

    monkeypatch.setattr(locating, "fetch_files", fetch)
    config = parse_config({**four, "base_model": "flux-dev", "tokenizer_cache_dir": str(MINI)})
    base = locating.locate(find_model("flux-dev"), config=config)
    assert base == SingleFiles({part: Path(path) for part, path in four.items()}, str(MINI))
    assert not locating.is_remote(find_model("flux-dev"), config) and locating.is_remote(find_model("flux-dev"))
    with pytest.raises(ModelError, match="no tokenizer of CLIP-L and T5 on this machine"):
        locating.locate(find_model("flux-dev"), config=parse_config({**four, "base_model": "flux-dev"}))
    assert not fetched, "a person's own files are used without a network"

    locating.locate(find_model("flux-dev2pro"))
    assert fetched[:2] == [
        ("bdsqlsz/flux1-dev2pro-single", "flux1-dev2pro.safetensors"), ("cocktailpeanut/xulf-dev", "ae.sft"),
    ]  # fmt: skip
    assert (T5_REPO, "spiece.model") in fetched and (CLIP_REPO, "merges.txt") in fetched


def test_whether_a_model_is_here_is_told_without_a_network(four: dict[str, str], empty_cache: Path) -> None:
    assert locating.is_here(find_model("flux-mini")) and not locating.is_here(find_model("flux-dev"))
    assert locating.is_here(BaseModel(name="m", title="m", files=four))
    assert not locating.is_here(BaseModel(name="m", title="m", files={**four, "ae": "a/b:ae.sft"}))
    for repo, file in (("a/b", "ae.sft"), ("black-forest-labs/FLUX.1-dev", "model_index.json")):
        folder = empty_cache / f"models--{repo.replace('/', '--')}"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc" / file).touch()
    assert locating.is_here(BaseModel(name="m", title="m", files={**four, "ae": "a/b:ae.sft"}))
    assert locating.is_here(find_model("flux-dev"))
    Path(four["clip_l"]).unlink()
    assert not locating.is_here(BaseModel(name="m", title="m", files=four))


def test_the_files_behind_a_part_are_told_of_either_layout(four: dict[str, str]) -> None:
    assert locating.files_behind(MINI, ["vae"]) == [
        MINI / "vae" / "config.json", MINI / "vae" / "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    base = SingleFiles({part: Path(path) for part, path in four.items()}, str(MINI))
    assert locating.files_behind(base, ["vae", "text_encoder_2"]) == sorted([Path(four["ae"]), Path(four["t5xxl"])])
    assert MINI / "tokenizer_2" / "tokenizer.json" in locating.files_behind(base, ["tokenizer_2"])


def test_a_model_without_any_place_says_what_to_set() -> None:
    with pytest.raises(ModelError, match="set pretrained_model_name_or_path, ae, clip_l, t5xxl to its files"):
        locating.locate(BaseModel(name="m", title="m"))


def put_tokenizers(clip: Path, t5: Path) -> tuple[Path, Path]:
    shutil.copytree(MINI / "tokenizer", clip)
    shutil.copytree(MINI / "tokenizer_2", t5)
    return clip, t5


def test_tokenizers_are_found_where_people_have_them(tmp_path: Path, empty_cache: Path) -> None:
    weights = tmp_path / "models" / "unet" / "flux1-dev.sft"
    snapshot = "models--openai--clip-vit-large-patch14", "models--google--t5-v1_1-xxl"
    clip, t5 = (empty_cache / name / "snapshots" / "abc" for name in snapshot)
    put_tokenizers(clip, t5)
    (t5 / "spiece.model").write_bytes(b"x")
    for name in snapshot:
        (empty_cache / name / "refs").mkdir()
        (empty_cache / name / "refs" / "main").write_text("abc")
    assert find_tokenizers("", weights) == (clip, t5)

    dev = empty_cache / "models--black-forest-labs--FLUX.1-dev"
    pair = put_tokenizers(dev / "snapshots" / "def" / "tokenizer", dev / "snapshots" / "def" / "tokenizer_2")
    (dev / "refs").mkdir()
    (dev / "refs" / "main").write_text("def")
    assert find_tokenizers("", weights) == pair

    beside = put_tokenizers(weights.parent / "tokenizer", weights.parent / "tokenizer_2")
    assert find_tokenizers("", weights) == beside

    given = tmp_path / "given"
    theirs = put_tokenizers(given / "openai_clip-vit-large-patch14", given / "google_t5-v1_1-xxl")
    assert find_tokenizers(str(given), weights) == theirs
    shutil.rmtree(theirs[1])
    with pytest.raises(ModelError, match="no tokenizer of T5 in .*given: set tokenizer_cache_dir"):
        find_tokenizers(str(given), weights)


def encoder(words: int) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(vocab_size=words))


def test_t5s_own_sentencepiece_file_gives_its_ids(tmp_path: Path) -> None:
    import sentencepiece
    from transformers import T5Tokenizer

    from fluxcore.models.loading import _tokenizer

    text, out = ["a red apple on a table", "the quick brown fox", "an apple a day"] * 20, io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=out, vocab_size=26, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(out.getvalue())
    ours = _tokenizer(T5Tokenizer, tmp_path, 512, encoder(128))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    assert ours("a brown apple").input_ids == [*theirs.encode("a brown apple"), 1]
    assert ours("a", padding="max_length", max_length=5).input_ids[-1] == 0
    with pytest.raises(ModelError, match="can't be read"):
        _tokenizer(T5Tokenizer, tmp_path / "none", 512, encoder(128))
    with pytest.raises(ModelError, match=r"is another model's: it has \d+ words, the text encoder 20"):
        _tokenizer(T5Tokenizer, tmp_path, 512, encoder(20))


def test_the_files_that_are_fetched_make_tokenizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for repo, names in tokenizers.DOWNLOADS.items():
        folder = tmp_path / repo.replace("/", "_")
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    assert find_tokenizers(str(tmp_path), SimpleNamespace()) == (  # type: ignore[arg-type]
        tmp_path / "openai_clip-vit-large-patch14", tmp_path / "google_t5-v1_1-xxl",
    )  # fmt: skip
