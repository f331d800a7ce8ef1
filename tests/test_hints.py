"""What a person is told after a failure: from the log as PyTorch, the Hub's client and sd-scripts really write it."""

from __future__ import annotations

import string
from typing import Any

import pytest

from fluxcore.config import defaults
from fluxcore.runs.auto_resume import RESUMABLE_REASONS
from fluxcore.runs.exits import FAILED, REASONS
from runner.attempts import again
from runner.endings import HINTS, explain
from runner.executor import Exit
from runner.hints import XIDS, Facts, lower_rate
from runner.signs import SIGNS, last_error
from runner.watch import GpuTrouble

CONFIG = {**defaults(), "base_model": "flux-dev", "resolution": 512, "optimizer_type": "adafactor"}

STACK = """\
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
  File "/opt/fluxgym/fluxcore/training/__main__.py", line 42, in main
    return int(training.run())
           ^^^^^^^^^^^^^^
  File "/opt/fluxgym/fluxcore/training/train.py", line 90, in _run
    base = self._find_base(self.model)
"""

LAUNCHER = """\
Traceback (most recent call last):
  File "/opt/venv/bin/accelerate", line 8, in <module>
    sys.exit(main())
  File "/opt/venv/lib/python3.11/site-packages/accelerate/commands/launch.py", line 1106, in simple_launcher
    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)
subprocess.CalledProcessError: Command '['/opt/venv/bin/python', 'sd-scripts/flux_train_network.py']' returned non-zero exit status 1.
"""

OOM = STACK + (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.13 GiB. GPU 0 has a total capacity of 15.70 GiB of "
    "which 612.31 MiB is free. Including non-PyTorch memory, this process has 15.08 GiB memory in use. Of the allocated "
    "memory 14.31 GiB is allocated by PyTorch, and 412.20 MiB is reserved by PyTorch but unallocated. If reserved but "
    "unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.\n"
)

OOM_BESIDE_ANOTHER = OOM.replace(
    "Including non-PyTorch", "Process 2731 has 11.20 GiB memory in use. Process 99 has 0.31 GiB memory in use. "
    "Including non-PyTorch",
)  # fmt: skip

OOM_IN_A_CONTAINER = OOM.replace(
    "Including non-PyTorch memory, this process has 15.08 GiB memory in use.",
    "Process 2151893 has 15.08 GiB memory in use.",
)
"""NVML gives the host's pids there, so PyTorch takes itself for another process."""

GATED_WITHOUT_TOKEN = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/huggingface_hub/utils/_http.py", line 741, in hf_raise_for_status
    response.raise_for_status()
httpx.HTTPStatusError: Client error '401 Unauthorized' for url 'https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/model_index.json'
For more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/401

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/opt/sd-scripts/flux_train_network.py", line 550, in <module>
    trainer.train(args)
huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-67f3a1b2-5d0c2f;f2c9)

Cannot access gated repo for url https://huggingface.co/black-forest-labs/FLUX.1-dev/resolve/main/model_index.json.
Access to model black-forest-labs/FLUX.1-dev is restricted. You must have access to it and be authenticated to access it. Please log in.
"""

LICENCE_NOT_ACCEPTED = GATED_WITHOUT_TOKEN.replace("401", "403").replace(
    "is restricted. You must have access to it and be authenticated to access it. Please log in.",
    "is restricted and you are not in the authorized list. Visit https://huggingface.co/black-forest-labs/FLUX.1-dev to ask for access.",
)

GATED_BY_TRANSFORMERS = STACK + (
    "OSError: You are trying to access a gated repo.\nMake sure to have access to it at "
    "https://huggingface.co/black-forest-labs/FLUX.1-dev.\n"
)

WRONG_TOKEN = STACK + (
    "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: "
    "https://huggingface.co/api/models/black-forest-labs/FLUX.1-dev/revision/main (Request ID: Root=1-6a)\n\n"
    "Invalid credentials in Authorization header\n"
)

NO_SUCH_REPO = STACK + (
    "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-6a;12)\n\n"
    "Repository Not Found for url: https://huggingface.co/api/models/black-forest/FLUX.1-dev/revision/main.\n"
    "Please make sure you specified the correct `repo_id` and `repo_type`.\n"
    "If you are trying to access a private or gated repo, make sure you are authenticated. For more details, see "
    "https://huggingface.co/docs/huggingface_hub/authentication\nInvalid username or password.\n"
)

NO_CONNECTION = STACK + (
    "httpx.ConnectError: [Errno -3] Temporary failure in name resolution\n\n"
    "The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
    '  File "/opt/venv/lib/python3.11/site-packages/huggingface_hub/_snapshot_download.py", line 332\n'
    "huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the files on the Hub and "
    "we cannot find the appropriate snapshot folder for the specified revision on the local disk. Please check your "
    "internet connection and try again.\n"
)

SHORT_DOWNLOAD = STACK + (
    "OSError: Consistency check failed: file should be of size 4967837512 but has size 2113929216 "
    "(model-00001-of-00002.safetensors).\nThis is usually due to network issues while downloading the file. Please "
    "retry with `force_download=True`.\n"
)

DAMAGED = """\
Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/diffusers/models/model_loading_utils.py", line 183, in load_state_dict
    return safetensors.torch.load_file(checkpoint_file, device="cpu")
safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/diffusers/models/modeling_utils.py", line 1320
OSError: Unable to load weights from checkpoint file for '/root/.cache/huggingface/hub/models--x/snapshots/1/ae.safetensors' at '/root/.cache/huggingface/hub/models--x/snapshots/1/ae.safetensors'.
"""

DEAD_WORKER = STACK + (
    "RuntimeError: DataLoader worker (pid 2231) is killed by signal: Killed. \n\nThe above exception was the direct cause "
    "of the following exception:\n\nTraceback (most recent call last):\n  File \"/x/train.py\", line 3\nRuntimeError: "
    "DataLoader worker (pid(s) 2231) exited unexpectedly\n"
)  # fmt: skip

SMALL_SHM = STACK + (
    "RuntimeError: DataLoader worker (pid 41) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory. Please try to raise your shared memory limit.\n"
)

DISK_FULL = STACK + (
    'RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 448 vs 342\n'
    "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)\n"
)  # fmt: skip

OLD_DRIVER = STACK + (
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx\n"
)

NO_KERNEL = STACK + (
    "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device\nSearch for "
    "`cudaErrorNoKernelImageForDevice' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)

ILLEGAL = NO_KERNEL.replace("no kernel image is available for execution on the device", "an illegal memory access was encountered")  # fmt: skip
BAD_LATENTS = STACK + "RuntimeError: NaN detected in latents: /data/photos/cat 07.png\n" + LAUNCHER
NO_PICTURE = STACK + "PIL.UnidentifiedImageError: cannot identify image file '/data/photos/cat.png'\n"
ARGUMENT = (
    "usage: flux_train_network.py [-h]\nflux_train_network.py: error: unrecognized arguments: --blocks_to_swop=18\n"
)
PORT = (
    STACK
    + "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use\n"
)
RIGHTS = STACK + "PermissionError: [Errno 13] Permission denied: '/data/outputs/cat/sample'\n"


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        (OOM, "oom_gpu", ["GPU's memory"]),
        (OOM + LAUNCHER, "oom_gpu", ["GPU's memory"]),
        (OOM_BESIDE_ANOTHER, "oom_gpu", ["pid 2731", "11.20 GiB", "end it"]),
        (OOM_IN_A_CONTAINER, "oom_gpu", ["memory was too small: take a GPU with more memory"]),
        (DEAD_WORKER, "oom_host", ["workers"]),
        (SMALL_SHM, "oom_host", ["/dev/shm", "--shm-size"]),
        (DISK_FULL, "disk_full", ["prune"]),
        (GATED_WITHOUT_TOKEN, "download", ["https://huggingface.co/black-forest-labs/FLUX.1-dev,", "set HF_TOKEN", "end the runner"]),
        (LICENCE_NOT_ACCEPTED, "download", ["has not accepted", "https://huggingface.co/black-forest-labs/FLUX.1-dev,"]),
        (GATED_BY_TRANSFORMERS, "download", ["licence at https://huggingface.co/black-forest-labs/FLUX.1-dev,"]),
        (WRONG_TOKEN, "download", ["does not accept HF_TOKEN (401)", "settings/tokens", "end the runner"]),
        (NO_SUCH_REPO, "download", ["no model black-forest/FLUX.1-dev"]),
        (NO_CONNECTION, "download", ["connection"]),
        (SHORT_DOWNLOAD, "download", ["model-00001-of-00002.safetensors", "fetched anew"]),
        (DAMAGED, "download", ["/root/.cache/huggingface/hub/models--x/snapshots/1/ae.safetensors", "delete it"]),
        (NO_PICTURE, "bad_data", ["/data/photos/cat.png"]),
        (BAD_LATENTS, "bad_data", ["/data/photos/cat 07.png"]),
        (ARGUMENT, "bad_config", ["setting"]),
        (OLD_DRIVER, "crash", ["update the NVIDIA driver"]),
        (NO_KERNEL, "crash", ["pytorch.org"]),
        (ILLEGAL, "crash", ["broke off its work"]),
        (STACK + "RuntimeError: No CUDA GPUs are available\n", "crash", ["nvidia-smi"]),
        (
            "training failed: the checkpoint cat-000004-state is damaged (optimizer.bin is missing) and left out from now on\n",
            "crash",
            ["The checkpoint cat-000004-state is damaged (optimizer.bin is missing) and left out from now on."],
        ),
        (STACK + "RuntimeError: CUDA error: uncorrectable ECC error encountered\n", "crash", ["memory error", "rent another"]),
        (STACK + "ModuleNotFoundError: No module named 'bitsandbytes'\n", "crash", ["package bitsandbytes", "requirements.lock"]),
        (STACK + "ImportError: libGL.so.1: cannot open shared object file: No such file or directory\n", "crash", ["libGL.so.1"]),
        (STACK + "ImportError: cannot import name 'A' from 'diffusers'\n", "crash", ["don't fit together"]),
        (PORT, "crash", ["port"]),
        (RIGHTS, "crash", ["/data/outputs/cat/sample"]),
        (STACK + "OSError: [Errno 5] Input/output error\n", "crash", ["disk"]),
        ("the trainer can't be started: /x/python: [Errno 2] No such file or directory\n", "crash", ["/x/python"]),
        (STACK + "KeyError: 'nothing known'\n" + LAUNCHER, "crash", ["doesn't know", "“KeyError: 'nothing known'”"]),
        (STACK + "ValueError: the moon is full\n\nnoise\n", "crash", ["doesn't know", "“ValueError: the moon is full”"]),
        ("", "crash", ["doesn't know; where that comes again"]),
    ],
)  # fmt: skip
def test_the_log_tells(text: str, reason: str, says: list[str]) -> None:
    ending = explain(Exit(1), False, text, False, Facts(config=CONFIG))
    assert ending.reason == reason
    assert all(part in ending.hint for part in says), ending.hint
    assert ending.hint.endswith(".") and "{" not in ending.hint
    follows = ending.reason in RESUMABLE_REASONS  # then what follows the hint says who resumes
    assert "start again" in ending.hint or (follows and "resume" not in ending.hint), ending.hint


def test_an_older_trouble_does_not_hide_the_last_one() -> None:
    text = OOM + "retrying with a smaller batch\n" + WRONG_TOKEN
    assert explain(Exit(1), False, text, False).reason == "download"


def test_every_hint_can_be_filled_in() -> None:
    assert set(HINTS) > set(REASONS.values())
    for sign in SIGNS:
        wanted = {name for _, name, _, _ in string.Formatter().parse(sign.hint) if name} - {"again"}
        assert wanted <= {*sign.pattern.groupindex, "file"} and len(wanted) <= 1, sign


# -- what our own trainer says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "sentence", "hint"),
    [
        (2, "no steps are left: the checkpoint is at 960 of 960",
         "A setting can't be used: no steps are left: the checkpoint is at 960 of 960. Once that is set right, resume."),
        (3, "cat.png is not a picture (PNG, JPEG, WebP and BMP are)",
         "The pictures can't be used: cat.png is not a picture (PNG, JPEG, WebP and BMP are). Once that is mended, resume."),
        (4, "there is no model x/y on the Hub, or HF_TOKEN may not see it",
         "The base model can't be used: there is no model x/y on the Hub, or HF_TOKEN may not see it. Once that is mended, resume."),
        (2, "the checkpoint a-state doesn't fit: its rank is 8: resume with `--set network_dim=8`, or start afresh",
         "A setting can't be used: the checkpoint a-state doesn't fit: its rank is 8: resume with `--set network_dim=8`, "
         "or start afresh."),
        (3, "a.png can't be read; save it anew",
         "The pictures can't be used: a.png can't be read; save it anew. Once that is mended, resume."),
    ],
)  # fmt: skip
def test_the_trainers_own_sentence_is_the_hint_whatever_noise_follows(code: int, sentence: str, hint: str) -> None:
    text = f"phase: load\n{FAILED}{sentence}\n/opt/x/resource_tracker.py: UserWarning: leaked semaphore\n"
    ending = explain(Exit(code), False, text, False, Facts(again="resume"))
    assert (ending.reason, ending.hint) == (REASONS[code], hint)  # type: ignore[index]


def test_without_a_sentence_the_reasons_own_hint_stands() -> None:
    assert explain(Exit(3), False, "noise", False).hint == HINTS["bad_data"].format(again="start again")


def test_a_gpu_that_is_full_outside_a_step_is_explained_by_the_trainer() -> None:
    full = Exit(6)
    said = "training failed: the GPU's memory is too short for the base model: set fp8_base=true"
    hint = explain(full, False, said, False).hint
    assert hint == "The GPU's memory is too short for the base model: set fp8_base=true, then start again."
    beside = explain(full, False, f"{OOM_BESIDE_ANOTHER}\n{said}", False).hint
    assert beside.startswith("Another program (pid 2731")
    step = "training failed: the GPU's memory is full: lower train_batch_size"
    config = Facts(config={"train_batch_size": 4})
    assert "lower train_batch_size from 4 to 2" in explain(full, False, step, False, config).hint


# -- by the run's own config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "gib", "ideas"),
    [
        ({"train_batch_size": 4, "resolution": 1024}, 24, "(24 GiB) was too small: lower train_batch_size from 4 to 2, or lower "
         "resolution from 1024 to 768, then resume"),
        ({"gradient_checkpointing": False, "optimizer_type": "adamw"}, None,
         "was too small: switch gradient_checkpointing on, or set optimizer_type to adafactor, then resume"),
        ({"gradient_checkpointing_interval": 2}, None,
         "was too small: lower gradient_checkpointing_interval from 2 to 1, then resume"),
        ({"vram": "24G"}, 15.7, "(16 GiB) was too small: choose the preset 16G (it is 24G), then resume"),
        ({"network_dim": 128, "vram": "12G"}, 12, "take a GPU with more memory, then resume"),
        ({"vram": "12G"}, 12, "take a GPU with more memory, then resume"),
    ],
)  # fmt: skip
def test_a_full_gpu_names_what_this_run_can_lower(changed: dict[str, Any], gib: float | None, ideas: str) -> None:
    facts = Facts(config={**CONFIG, **changed}, gpu_memory_gib=gib, again="resume")
    for code, text in [(6, f"{FAILED}the GPU's memory is full\n"), (1, OOM)]:
        assert ideas in explain(Exit(code), False, text, False, facts).hint
    assert set(changed) <= set(defaults()), "only settings that there are"


def test_a_lower_rank_is_only_for_a_run_that_begins_anew() -> None:
    facts = Facts(config={**CONFIG, "network_dim": 128, "vram": "12G"}, gpu_memory_gib=12, again="start again")
    assert "lower network_dim from 128 to 32, then start again" in explain(Exit(1), False, OOM, False, facts).hint


def test_a_diverged_loss_names_the_rate_and_an_earlier_checkpoint() -> None:
    facts = Facts(
        config={"learning_rate": "8e-4", "mixed_precision": "fp16"}, again="resume", earlier="cat-000004-state"
    )
    assert explain(Exit(5), False, "", False, facts).hint == (
        "The loss is no longer a number: lower learning_rate from 8e-4 to 2e-4 (and set mixed_precision to bf16), then "
        "resume from a checkpoint before the last, such as cat-000004-state."
    )
    assert explain(Exit(5), False, "", False, Facts()).hint.endswith("to a quarter, then start again.")


# -- the machine -----------------------------------------------------------------------------------------------------


def test_killed_or_out_of_memory_by_what_was_counted_since_the_last_samples() -> None:
    killed = Exit(137, "SIGKILL", oom_kills=3)  # of other processes, hours ago
    assert explain(killed, False, "", False, Facts(oom_kills=0)).reason == "killed"
    assert explain(killed, False, "", False, Facts(oom_kills=1)).reason == "oom_host"
    assert explain(killed, False, "", False, Facts(oom_kills=None)).reason == "oom_host"
    assert explain(Exit(1), False, "RuntimeError: worker 3 died", False, Facts(oom_kills=1)).reason == "oom_host"


def test_a_kill_that_nobody_counted_names_the_memory_where_that_was_short() -> None:
    short = explain(Exit(137, "SIGKILL"), False, "", False, Facts(memory_available_gib=0.21))
    assert short.reason == "killed" and "(SIGKILL) (it had 0.2 GiB of memory left" in short.hint
    assert "memory left" not in explain(Exit(137, "SIGKILL"), False, "", False, Facts(memory_available_gib=9)).hint


def test_a_library_that_breaks_down_is_named_by_its_signal() -> None:
    assert "SIGSEGV" in explain(Exit(139, "SIGSEGV"), False, "step 3\n", False).hint


@pytest.mark.parametrize("code", XIDS)
def test_an_xid_of_the_hardware_explains_a_crash(code: int) -> None:
    gpus = {"GPU-a": GpuTrouble(1, "NVIDIA RTX A5000", None, [31, code])}
    hint = explain(Exit(1), False, ILLEGAL, False, Facts(gpus=gpus, again="resume")).hint
    assert hint.startswith("GPU 1 (NVIDIA RTX A5000) ") and f"(XID {code})" in hint and hint.endswith("then resume.")
    assert explain(Exit(1), False, OOM, False, Facts(config=CONFIG, gpus=gpus)).reason == "oom_gpu"


def test_errors_of_its_memory_explain_a_crash_and_a_silent_driver_does_not() -> None:
    gpus = {"GPU-a": GpuTrouble(0, "", "no_answer", [], 2)}
    assert "2 memory errors" in explain(Exit(1), False, ILLEGAL, False, Facts(gpus={"a": GpuTrouble(0, ecc=2)})).hint
    gpus["GPU-a"].ecc = 0
    assert "driver gave no answer" not in explain(Exit(1), False, "", False, Facts(gpus=gpus)).hint


def test_the_last_error_is_short() -> None:
    assert len(last_error("ValueError: " + "x" * 500)) == 160
    assert last_error("a\nnumpy.linalg.LinAlgError: singular\nb\n") == "numpy.linalg.LinAlgError: singular"


@pytest.mark.parametrize(("rate", "lower"), [(9, "2"), ("8e-4", "2e-4"), (90, "20"), (1.2, "0.3")])
def test_a_lower_rate_is_written_as_people_write_it(rate, lower):
    assert f"from {rate} to {lower}, then" in lower_rate(Facts({"learning_rate": rate}))


@pytest.mark.parametrize("reason", sorted(RESUMABLE_REASONS))
def test_a_hint_that_it_resumes_by_itself_may_follow_does_not_tell_to_resume(reason: str) -> None:
    assert "{again}" not in HINTS[reason] and "resume" not in HINTS[reason]


def test_where_nothing_was_saved_the_word_that_a_start_takes_is_told() -> None:
    assert again({"resume_checkpoint": None}) == "start again with --restart", "a start without it is refused"
    assert again({"resume_checkpoint": "cat-000004-state"}) == "resume"
