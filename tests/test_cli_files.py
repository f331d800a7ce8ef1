"""`export`, `import`, `convert`, `samples`, `delete`, `prune`."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from cli_tools import call, pictures
from PIL import Image

from fluxcore.log import EventLog, format_ts
from tests.fake_runs import FakeRun


@pytest.fixture
def outputs(capsys, tmp_path):
    folder = tmp_path / "outputs"
    made = call(
        capsys, "new", "cat", "--images", pictures(tmp_path / "p"), "--set", "network_dim=9", "--trigger", "ohwx",
        "--outputs", folder,
    )  # fmt: skip
    assert made.code == 0
    return folder


def test_export_then_import_gives_the_same_settings(capsys, tmp_path, outputs):
    file = tmp_path / "cat.json"
    assert call(capsys, "export", "cat", file, "--outputs", outputs).code == 0
    exported = json.loads(file.read_text())
    assert exported == {
        **json.loads(call(capsys, "export", "cat", "--outputs", outputs).out),
        "timestamp": exported["timestamp"],
    }
    assert (exported["network_dim"], exported["concept_sentence"], exported["status"]) == (9, "ohwx", "draft")
    answer = call(capsys, "import", file, "--name", "dog", "--outputs", outputs)
    assert answer.code == 0 and "dataset" in answer.line
    again = json.loads(call(capsys, "export", "dog", "--outputs", outputs).out)
    different = {key for key in exported if exported[key] != again[key]}
    assert different <= {"lora_name", "timestamp"}


def test_import_names_what_it_does_not_know_and_slugifies_aloud(capsys, tmp_path, outputs):
    file = tmp_path / "seed.json"
    file.write_text(
        json.dumps({"lora_name": "My Cat!", "learning_rate": "8e-4", "something_new": 1, "status": "running"})
    )
    answer = call(capsys, "import", file, "--outputs", outputs)
    assert answer.code == 0
    assert "something_new" in answer.err and "'My-Cat'" in answer.err and "status" not in answer.err
    assert call(capsys, "status", "My-Cat", "--json", "--outputs", outputs).json()[0]["state"] == "draft"
    assert call(capsys, "import", file, "--outputs", outputs).code == 64, "taken"


def test_import_without_any_name_is_64(capsys, tmp_path, outputs):
    file = tmp_path / "x.json"
    file.write_text("{}")
    assert call(capsys, "import", file, "--outputs", outputs).code == 64
    assert os.listdir(outputs) == ["cat"]


def test_export_to_where_nothing_can_be_written(capsys, tmp_path, outputs):
    answer = call(capsys, "export", "cat", tmp_path / "no" / "such" / "x.json", "--outputs", outputs)
    assert answer.code == 64 and "No such file" in answer.line


def test_convert_says_what_is_wrong(capsys, tmp_path):
    bad, out = tmp_path / "bad.safetensors", tmp_path / "out.safetensors"
    bad.write_bytes(b"not a lora")
    for source, to in ((bad, "diffusers"), (tmp_path / "gone", "diffusers"), (bad, "comfy"), (tmp_path, "diffusers")):
        answer = call(capsys, "convert", source, out, "--to", to)
        assert answer.code == 64 and answer.line
    assert not out.exists()
    for target, why in ((tmp_path, "it is a folder"), (tmp_path / "no" / "out.safetensors", "its folder is not there")):
        answer = call(capsys, "convert", bad, target, "--to", "diffusers")
        assert answer.code == 64 and f"can't be written: {why}; name another file" in answer.line


def test_convert_there_and_back(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    name = "lora_unet_single_blocks_0_linear2"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, 8),
        f"{name}.lora_up.weight": torch.randn(4, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }
    first, second, third = (tmp_path / f"{i}.safetensors" for i in "123")
    save_file(tensors, first)
    assert call(capsys, "convert", first, second, "--to", "diffusers").code == 0
    assert any("lora_A" in key for key in load_file(second))
    assert call(capsys, "convert", second, third, "--to", "sd-scripts").code == 0
    back = load_file(third)
    delta = {f: back[f"{name}.lora_up.weight"] @ back[f"{name}.lora_down.weight"] for f in "x"}["x"]
    assert torch.equal(delta, tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"])


def test_samples_as_one_picture(capsys, tmp_path, outputs):
    file = tmp_path / "cat.png"
    answer = call(capsys, "samples", "cat", file, "--outputs", outputs)
    assert answer.code == 64 and answer.line.endswith("cat has no samples")
    FakeRun(outputs, "dog").sample()
    answer = call(capsys, "samples", "dog", file, "--outputs", outputs)
    assert answer.code == 0 and answer.out.strip() == str(file)
    assert Image.open(file).format == "PNG"
    for wrong in (tmp_path / "dog.jpg", tmp_path / "no" / "such" / "dog.png"):
        answer = call(capsys, "samples", "dog", wrong, "--outputs", outputs)
        assert answer.code == 64 and answer.line and not wrong.exists()


def test_delete_asks_and_nobody_is_there(capsys, outputs):
    answer = call(capsys, "delete", "cat", "--outputs", outputs)
    assert answer.code == 64 and "--yes" in answer.line
    assert (outputs / "cat" / "events.jsonl").exists()
    assert call(capsys, "delete", "cat", "--yes", "--outputs", outputs).code == 0
    assert os.listdir(outputs) == []


def test_delete_never_takes_a_live_run(capsys, outputs):
    with EventLog(outputs / "cat", "cli") as log:
        log.append("run.requested", {"config": "", "resume_from": None})
    answer = call(capsys, "delete", "cat", "--yes", "--outputs", outputs)
    assert answer.code == 64 and "stop it first" in answer.line
    assert (outputs / "cat" / "events.jsonl").exists()


def test_prune_takes_only_what_ended_long_ago(capsys, outputs):
    def ended(name: str, days: int, type: str = "run.completed") -> None:
        (outputs / name).mkdir()
        moment = format_ts(datetime.now(UTC) - timedelta(days=days))
        with EventLog(outputs / name, "runner", now=lambda: moment) as log:
            request = log.append("run.requested", {"config": "", "resume_from": None})
            log.append("run.started", {"request": request.id}, attempt=1)
            if type:
                log.append(type, {"steps": 1}, attempt=1)

    ended("old", 40)
    ended("new", 2)
    ended("old-but-live", 40, type="")
    for wrong in ("30", "d", "-1d", "3 months"):
        assert call(capsys, "prune", f"--older-than={wrong}", "--yes", "--outputs", outputs).code == 64
    assert call(capsys, "prune", "--older-than", "30d", "--outputs", outputs).code == 64, "nobody is there to ask"
    answer = call(capsys, "prune", "--older-than", "30d", "--yes", "--outputs", outputs)
    assert answer.code == 0 and answer.out.strip() == str(outputs / "old")
    assert sorted(os.listdir(outputs)) == ["cat", "new", "old-but-live"]
