"""The file routes: pictures, LoRA files and logs of runs and drafts, and nothing else of this machine."""

from __future__ import annotations

import io
import os
import zipfile

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from studio.drafts import Draft
from studio.files import ThumbnailCache, find_file, grid_url, routes, run_url, zip_url
from tests.fake_runs import FakeRun


@pytest.fixture
def outputs(tmp_path):
    outputs = tmp_path / "outputs"
    run = FakeRun(outputs, "cat")
    run.weights(kilobytes=1)
    run.folder.train_log.write_text("step 1\n")
    (run.folder.path / "cat-state").mkdir()
    (run.folder.path / "cat-state" / "optimizer.bin").write_bytes(b"x")
    (run.folder.path / ".superseded").mkdir()
    (run.folder.path / ".superseded" / "cat.safetensors").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (outputs / ".token").write_text("secret")
    return outputs


@pytest.fixture
def client(outputs):
    return TestClient(Starlette(routes=routes(outputs)))


def test_a_picture_is_served_and_may_be_kept(client, outputs):
    folder = FakeRun(outputs, "dog").folder
    answer = client.get("/" + run_url(folder, "dataset/picture1.png"))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"] and "private" in answer.headers["cache-control"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "immutable" not in client.get("/files/runs/dog/dataset/picture1.png").headers["cache-control"]


def test_a_small_copy_is_smaller(client, outputs):
    big = outputs / "cat" / "dataset" / "big.jpg"
    Image.effect_noise((2000, 1000), 90).convert("RGB").save(big)
    answer = client.get("/files/runs/cat/dataset/big.jpg?w=384")
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (384, 192)
    assert len(client.get("/files/runs/cat/dataset/big.jpg?w=383").content) == big.stat().st_size, "no other width"
    assert client.get("/files/runs/cat/dataset/picture1.png?w=384").headers["content-type"] == "image/png"


def test_a_lora_and_a_log_are_served(client):
    answer = client.get("/files/runs/cat/cat.safetensors")
    assert (
        answer.status_code == 200 and answer.headers["content-disposition"] == 'attachment; filename="cat.safetensors"'
    )
    assert client.get("/files/runs/cat/train.log").text == "step 1\n"


@pytest.mark.parametrize(
    "path",
    [
        "runs/cat/events.jsonl",
        "runs/cat/dataset/picture1.txt",
        "runs/cat/cat-state/optimizer.bin",
        "runs/cat/.superseded/cat.safetensors",
        "runs/cat/dataset",
        "runs/cat/",
        "runs/cat/dataset/missing.png",
        "runs/cat/../../secret.png",
        "runs/cat/dataset/../../../secret.png",
        "runs/cat/dataset/%2e%2e/%2e%2e/%2e%2e/secret.png",
        "runs/cat/dataset/..%2f..%2f..%2fsecret.png",
        "runs/cat//etc/passwd",
        "runs/cat/dataset/%00.png",
        "runs/..%2f/secret.png",
        "runs/.token/x.png",
        "runs/nobody/dataset/picture1.png",
        "drafts/../dataset/x.png",
        "drafts/cat/dataset/picture1.png",
        "other/cat/dataset/picture1.png",
    ],
)
def test_nothing_else_is(client, path):
    answer = client.get(f"/files/{path}")
    assert answer.status_code == 404 and "secret" not in answer.text


def test_links_lead_nowhere(outputs, tmp_path):
    dataset = outputs / "cat" / "dataset"
    os.symlink(tmp_path / "secret.png", dataset / "link.png")
    os.symlink(outputs / ".token", dataset / "token.png")
    os.symlink(outputs / "cat" / "events.jsonl", dataset / "events.png")
    os.symlink(outputs / "cat" / ".superseded" / "cat.safetensors", outputs / "cat" / "old.safetensors")
    for name in ("link.png", "token.png", "events.png"):
        assert find_file(outputs, "runs", "cat", f"dataset/{name}") is None
    assert find_file(outputs, "runs", "cat", "old.safetensors") is None
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "dataset").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(elsewhere / "dataset" / "a.png")
    os.symlink(elsewhere, outputs / "linked")
    assert find_file(outputs, "runs", "linked", "dataset/a.png") is None


def test_pipes_and_folders_are_no_files(outputs):
    os.mkfifo(outputs / "cat" / "dataset" / "pipe.png")
    (outputs / "cat" / "dataset" / "folder.png").mkdir()
    assert find_file(outputs, "runs", "cat", "dataset/pipe.png") is None
    assert find_file(outputs, "runs", "cat", "dataset/folder.png") is None


def test_a_drafts_pictures_are_served(outputs, client):
    draft = Draft(outputs)
    Image.new("RGB", (8, 8)).save(draft.dataset / "ä b.png")
    assert client.get("/" + run_url(draft.folder, "dataset/ä b.png", kind="drafts")).status_code == 200
    assert client.get(f"/files/drafts/{draft.id}/events.jsonl").status_code == 404


def test_a_base_path_stands_before(outputs):
    client = TestClient(Starlette(routes=routes(outputs, "gym/")))
    assert client.get("/gym/files/runs/cat/dataset/picture1.png").status_code == 200
    assert client.get("/files/runs/cat/dataset/picture1.png").status_code == 404


def test_a_broken_picture_makes_no_small_copy(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert ThumbnailCache(1000).get(tmp_path / "broken.png", 192) is None


def test_small_copies_keep_to_their_memory(tmp_path):
    cache = ThumbnailCache(4000)
    for i in range(8):
        path = tmp_path / f"{i}.png"
        Image.effect_noise((300, 300), 90).save(path)
        assert cache.get(path, 192)
    assert cache._size <= 4000 and cache._size == sum(map(len, cache._made.values()))


def test_a_state_and_the_samples_come_as_one_whole_file(client, outputs):
    run = FakeRun(outputs, "dog")
    state = run.folder.path / "dog-000004-state"
    (state / "deep").mkdir(parents=True)
    (state / "optimizer.bin").write_bytes(os.urandom(3_000_000))
    (state / "deep" / "a.json").write_text("{}")
    (state / ".aside.tmp").write_bytes(b"x")
    (state / "link.bin").symlink_to(outputs / ".token")
    (state / "up").symlink_to(outputs.parent)
    (state / "again.bin").symlink_to("optimizer.bin")
    answer = client.get("/" + zip_url(run.folder, state.name))
    assert answer.headers["content-disposition"] == 'attachment; filename="dog-000004-state.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
        assert file.testzip() is None
        assert file.namelist() == ["dog-000004-state/deep/a.json", "dog-000004-state/optimizer.bin"]
        assert file.read("dog-000004-state/optimizer.bin") == (state / "optimizer.bin").read_bytes()
    run.sample()
    answer = client.get("/" + zip_url(run.folder, "sample"))
    assert 'filename="dog-sample.zip"' in answer.headers["content-disposition"]
    assert len(zipfile.ZipFile(io.BytesIO(answer.content)).namelist()) == 4
    head = client.head("/" + zip_url(run.folder, "sample"))
    assert head.status_code == 200 and not head.content


@pytest.mark.parametrize(
    "path",
    ["runs/cat/dataset", "runs/cat/.superseded", "runs/cat/", "runs/cat/cat-1-state", "runs/cat/cat-3-state"]
    + ["runs/cat/%00", "runs/cat/cat-state%2f..", "runs/cat/cat-state/../dataset", "runs/cat/cat.safetensors"]
    + ["drafts/cat/sample", "runs/..%2f/sample", "runs/nobody/sample"],
)
def test_no_other_folder_comes_as_a_file(client, outputs, path):
    (outputs / "cat" / "cat-1-state").symlink_to(outputs)
    (outputs / "cat" / "cat-3-state").symlink_to("dataset")
    assert client.get(f"/files/{path}?zip").status_code == 404


def test_the_samples_come_as_one_picture(client, outputs, tmp_path):
    run = FakeRun(outputs, "dog")
    assert client.get("/" + grid_url(run.folder)).status_code == 404, "no samples yet"
    run.sample()
    answer = client.get("/" + grid_url(run.folder))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == 'attachment; filename="dog-samples.png"'
    assert answer.headers["cache-control"] == "no-store" and answer.headers["x-content-type-options"] == "nosniff"
    whole = Image.open(io.BytesIO(answer.content))
    # What would not be served by itself is not in it either: links, and files that a log names elsewhere in the run.
    sample = next(iter(run.folder.samples.iterdir()))
    sample.unlink()
    sample.symlink_to(tmp_path / "secret.png")
    hidden = run.folder.superseded / "old.png"
    hidden.parent.mkdir()
    Image.new("RGB", (64, 64)).save(hidden)
    data = {"step": 9, "epoch": 1, "index": 0, "prompt": "x", "seed": 1, "path": run.folder.relative(hidden)}
    run.append("trainer", "sample.saved", data)
    fewer = Image.open(io.BytesIO(client.get("/" + grid_url(run.folder)).content))
    assert fewer.width == whole.width and fewer.height < whole.height


@pytest.mark.parametrize(
    "path",
    ["runs/cat/dataset", "runs/cat/", "runs/cat/sample", "runs/cat/cat-state", "runs/cat/dataset/picture1.png"]
    + ["drafts/cat/sample", "runs/..%2f/sample", "runs/nobody/sample", "runs/linked/sample"],
)
def test_nothing_else_comes_as_one_picture(client, outputs, tmp_path, path):
    run = FakeRun(tmp_path / "elsewhere", "linked")
    run.sample()
    (outputs / "linked").symlink_to(run.folder.path)
    assert client.get(f"/files/{path}?grid").status_code == 404
