"""Every type of event that FluxGym writes, with its fields: the source of `docs/events.md` and of DURABLE_TYPES.

python -m fluxcore.log.page > docs/events.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """One key of an event's `data`: what it holds, in which unit, and an example of it.

    `maybe`: its value may be null. `optional`: the key itself may be missing.
    """

    name: str
    meaning: str
    example: Any
    unit: str = ""
    maybe: bool = False
    optional: bool = False


@dataclass(frozen=True)
class EventType:
    """One type of event. `durable`: on the disk (fdatasync) before the append returns."""

    name: str
    by: str
    meaning: str
    fields: tuple[Field, ...]
    durable: bool = False

    @property
    def example(self) -> dict[str, Any]:
        """The data of one such event."""
        return {field.name: field.example for field in self.fields}


_PEOPLE = "app, cli, api"
_STATE = "my-cat-000004-state"
_RESUME = (
    Field(
        "resume_checkpoint", "the state folder that a resume would take, validated at that moment", _STATE, maybe=True
    ),
    Field("resume_step", "that state's step", 480, "optimizer steps", maybe=True),
)
_REASON = Field("reason", "why, in a word", "user")
_EVIDENCE = {
    "phase": "train",
    "steps": 480,
    "seconds_without_progress": 301.2,
    "limit_seconds": 300.0,
    "stall_seconds": 300,
    "longest_step_seconds": 2.41,
    "gpu_idle_seconds": 300.4,
}
_VERDICT = (
    Field("verdict", "`gpu_idle`, `no_progress` or `silent`", "gpu_idle"),
    Field("evidence", "every input of the decision; times in seconds", _EVIDENCE),
)
_DISK = (
    Field("free_gib", "where the outputs folder lies", 1.3, "GiB"),
    Field("needed_gib", "for the next checkpoint of every run that trains, and for the logs", 1.1, "GiB"),
)
_IDENTITY = (
    Field("create_time", "when that process started", 1795464075.12, "epoch seconds", optional=True),
    Field(
        "boot_id", "the machine's boot, so that a pid of before a restart is told apart", "5f0c6a1e-…", optional=True
    ),
    Field(
        "start_ticks", "its start as the kernel counts, which no clock change alters", 123456, "ticks", optional=True
    ),
)
_ALERT = (
    Field("name", "the target's name", "phone"),
    Field("target", 'its address, all but the scheme masked; "" where there is none of that name', "ntfys://****"),
    Field("event", "the event that it is about, as `writer:n`", "runner-5120-9c1e:31"),
    Field("kind", "`completed` `failed` `stalled` `resumed` `stopped` `disk`", "completed"),
)

TYPES: tuple[EventType, ...] = (
    EventType(
        "config.saved",
        _PEOPLE,
        "a config, whole; the newest one counts for the next request",
        (
            Field("config", "every setting, see the schema in `fluxcore/config`", {"lora_name": "my-cat"}),
            Field("schema", "the form that it is written in; an older one is migrated on reading", 1, optional=True),
            Field("touched", "in a draft: the settings that a person changed", ["lora_name"], optional=True),
        ),
        durable=True,
    ),
    EventType(
        "run.requested",
        f"{_PEOPLE}, runner",
        "a start or a resume; the runner asks for its automatic ones itself",
        (
            Field("config", "the `config.saved` that it means, as `writer:n`", "app-4711-3f2a:1"),
            Field("resume_from", 'null (fresh), `"latest"`, or a state folder', "latest", maybe=True),
            _REASON,
        ),
        durable=True,
    ),
    EventType(
        "request.refused",
        "runner",
        "a request that came too late or can't be served",
        (
            Field("request", "the request, as `writer:n`", "app-4711-3f2a:2"),
            Field("reason", "why, in a sentence", "my-cat is already running"),
        ),
        durable=True,
    ),
    EventType(
        "stop.requested",
        f"{_PEOPLE}, runner",
        "a person wants the run to end; a state is saved first. The runner asks itself with the reasons `disk_low` and "
        "`shutdown`",
        (_REASON,),
        durable=True,
    ),
    EventType("sample.requested", _PEOPLE, "a person wants the samples drawn now", (_REASON,), True),
    EventType("save.requested", _PEOPLE, "a person wants a checkpoint saved now", (_REASON,), True),
    EventType(
        "monitoring.changed",
        _PEOPLE,
        "verdicts and kills switched off or on; sampling goes on either way",
        (Field("enabled", "whether stalls are judged", False),),
        durable=True,
    ),
    EventType(
        "run.queued",
        "runner",
        "the run's place among those that wait",
        (
            Field("request", "the request that waits", "app-4711-3f2a:2"),
            Field("position", "from 1", 1, "places"),
            Field("waiting_for", "what has to become free, or why nothing starts", "a free GPU"),
        ),
        durable=True,
    ),
    EventType(
        "run.spawning",
        "runner",
        "the intent, written before anything is started: a kill here neither loses nor doubles a trainer",
        (
            Field("request", "the request to serve", "app-4711-3f2a:2"),
            Field("attempt", "the attempt that it will be", 1),
            Field("config", "the `config.saved` that it uses", "app-4711-3f2a:1"),
            Field("resume_from", "the state folder to begin from", None, maybe=True),
            Field("resume_step", "that state's step", None, "optimizer steps", maybe=True),
            Field("gpus", "uuids of the GPUs given to it", ["GPU-2f9c"]),
            Field("env", "environment variables for the trainer", {"CUDA_VISIBLE_DEVICES": "GPU-2f9c"}),
        ),
        durable=True,
    ),
    EventType(
        "run.started",
        "runner",
        "an attempt's trainer lives",
        (
            Field("request", "the request that it serves; each is served at most once", "app-4711-3f2a:2"),
            Field("config", "the `config.saved` that it uses", "app-4711-3f2a:1"),
            Field("pid", "the trainer", 4801),
            *_IDENTITY,
            Field("shim_pid", "its parent, which writes its exit down", 4800, maybe=True),
            Field("argv", "its command line", ["python", "-m", "fluxcore.training", "--run", "my-cat"]),
            Field("gpus", "uuids of the GPUs given to it", ["GPU-2f9c"]),
            Field("host", "the machine's name", "pod-17"),
            Field("resume_from", "the state folder that it begins from", None, maybe=True),
            Field("resume_step", "that state's step", None, "optimizer steps", maybe=True),
        ),
        durable=True,
    ),
    EventType(
        "run.adopted",
        "runner",
        "a new runner found the trainer alive and takes over",
        (Field("pid", "the trainer", 4801), Field("runner_pid", "the runner", 5120)),
        durable=True,
    ),
    EventType(
        "phase.started",
        "trainer",
        "what it does from here on; after a sample or a save `train` is announced again",
        (
            Field("phase", "`download` `load` `cache` `train` `sample` `save` `export`", "cache"),
            Field("total", "how much there is to do", 22, "`unit`", maybe=True),
            Field("unit", "what is counted", "pictures", maybe=True),
        ),
    ),
    EventType(
        "phase.progress",
        "trainer",
        "counted progress, at most twice a second",
        (
            Field("phase", "the phase that moves", "cache"),
            Field("done", "how much is done", 11, "`unit` of the phase"),
            Field("total", "of how much", 22, "`unit` of the phase", maybe=True),
        ),
    ),
    EventType(
        "train.step",
        "trainer",
        "one optimizer step; none is left out",
        (
            Field("step", "finished steps over all attempts, from 1", 480, "optimizer steps"),
            Field("total_steps", "planned", 960, "optimizer steps"),
            Field("epoch", "from 1", 8, "epochs"),
            Field("loss", 'of this step; "nan", "inf", "-inf" where it is not finite', 0.1234),
            Field("lr", "learning rate; null where the trainer doesn't tell it", 0.0008, maybe=True),
            Field("grad_norm", "norm of the gradient before clipping; likewise", 0.42, maybe=True),
            Field("step_seconds", "on a monotonic clock; likewise", 1.12, "seconds", maybe=True),
            Field("images_per_second", "pictures by `step_seconds`", 0.89, "1/s", maybe=True),
            Field(
                "memory_gib",
                "most memory of the GPU allocated so far; of the process on a CPU",
                10.4,
                "GiB",
                maybe=True,
            ),
        ),
    ),
    EventType(
        "validation.measured",
        "trainer",
        "the loss on held-out pictures with noise that never changes, of the weights that a save would write",
        (
            Field("step", "finished steps", 240, "optimizer steps"),
            Field("epoch", "from 1; 0 before the first step", 2),
            Field("loss", 'mean over pictures and noise levels; "nan", "inf" where it is no number', 0.4127),
            Field("pictures", "how many are held out", 4),
            Field("best", "whether it is the lowest so far", True),
            Field("best_loss", "the lowest so far", 0.4127, maybe=True),
            Field("best_step", "its step, that of the best checkpoint", 240, "optimizer steps", maybe=True),
        ),
    ),
    EventType(
        "dataset.changed",
        "trainer",
        "pictures, captions, dataset settings or the batches of a step are not those of the checkpoint that is resumed",
        (
            Field("step", "the checkpoint's step", 120, "optimizer steps"),
            Field("checkpoint", "the state folder", _STATE),
            Field("pictures", "how many are trained now", 12),
            Field(
                "notice",
                "what is not as it was, in a sentence",
                "The pictures, captions or … have changed since …",
                optional=True,
            ),
            Field("hint", "what to do, in a sentence", "To go on as if it had never stopped, resume …", optional=True),
        ),
    ),
    EventType(
        "compile.started",
        "trainer",
        "the transformer's blocks are compiled from this step on; the compiling itself makes that step a long one",
        (
            Field("step", "the first compiled step", 10, "optimizer steps"),
            Field(
                "step_seconds",
                "how long a step took before; null where it was not measured",
                1.2,
                "seconds",
                maybe=True,
            ),
            Field("steps_left", "how many steps it is for", 990, "optimizer steps"),
        ),
    ),
    EventType(
        "compile.failed",
        "trainer",
        "the blocks can't be compiled on this machine; the training goes on without",
        (
            Field("step", "the step in which it was tried", 10, "optimizer steps"),
            Field("reason", "the first line of the compiler's complaint", "Failed to find C compiler"),
        ),
    ),
    EventType(
        "resume.adapted",
        "trainer",
        "a checkpoint was taken over, but not all of it as it was: sd-scripts' or of another optimizer",
        (
            Field("step", "where the training goes on", 120, "optimizer steps"),
            Field("checkpoint", "the state folder", _STATE),
            Field("source", "whose state it is: fluxgym or sd-scripts", "sd-scripts"),
            Field("optimizer", "kept: with its moments; fresh: without memory of the steps before", "fresh"),
            Field("notices", "a sentence for each thing that is not as it was", ["the optimizer begins without …"]),
        ),
    ),
    EventType(
        "weights.adapted",
        "trainer",
        "the LoRA of `network_weights` is gone on from, though it says that it is another base model's",
        (Field("notice", "which, in a sentence", "a.safetensors says that it was trained on …"),),
    ),
    EventType(
        "memory.short",
        "trainer",
        "the GPU's memory was full, and the training goes on: a step in smaller parts, as all later ones; captions and "
        "pictures are encoded on the CPU; a sample or a validation that doesn't fit is left out",
        (
            Field("phase", "in which: train, cache, sample or validation", "train"),
            Field("step", "the step that did not fit, or the last one before", 12, "optimizer steps"),
            Field("instead", "what is done, in words", "going on with at most 2 at a time and gradient checkpointing"),
            Field("batch", "of a step: pictures at a time from now on", 2),
            Field("gradient_checkpointing", "of a step: whether it is on from now on", True),
            Field("notice", "the same in a sentence", "The GPU's memory was full at step 12 (train): …", optional=True),
        ),
    ),
    EventType(
        "sample.saved",
        "trainer",
        "a sample picture is whole on the disk",
        (
            Field("step", "when it was drawn", 480, "optimizer steps"),
            Field("epoch", "when it was drawn", 8, "epochs"),
            Field("index", "which prompt, from 0", 0),
            Field("prompt", "its text, flags included", "my c4t on a chair --s 20"),
            Field("seed", "of its noise", 42),
            Field("path", "the picture", "sample/my-cat_000480_00_20261123200115_42.png"),
        ),
    ),
    EventType(
        "checkpoint.saved",
        "trainer",
        "a checkpoint is whole on the disk",
        (
            Field("step", "of the checkpoint", 480, "optimizer steps"),
            Field("epoch", "of the checkpoint", 4, "epochs"),
            Field("path", "the file, or the state folder", "my-cat-000004.safetensors"),
            Field("kind", "`state` (to resume from) or `weights` (the LoRA)", "weights"),
            Field("bytes", "its size", 19_300_000, "bytes"),
            Field("sha256", "of weights", "9f86d081…", optional=True),
            Field(
                "validation_loss",
                "of weights, where pictures are held out: the best has the lowest",
                0.41,
                optional=True,
            ),
        ),
        durable=True,
    ),
    EventType(
        "gpu.sampled",
        "runner",
        "one GPU of the run; null is not known, never 0",
        (
            Field("index", "NVML's", 0),
            Field("uuid", "NVML's", "GPU-2f9c", maybe=True),
            Field("name", "the model", "NVIDIA RTX A5000", maybe=True),
            Field("utilization_percent", "as NVML has it", 97, "%", maybe=True),
            Field("memory_used_gib", "by all its processes", 10.9, "GiB", maybe=True),
            Field("memory_total_gib", "of the GPU", 24.0, "GiB", maybe=True),
            Field("power_watts", "drawn now", 214.3, "W", maybe=True),
            Field("power_limit_watts", "enforced", 230.0, "W", maybe=True),
            Field("temperature_c", "of the chip", 71, "°C", maybe=True),
            Field("throttle_reasons", "why its clock is held down", ["power_cap"], maybe=True),
            Field("sm_clock_mhz", "of its processors", 1695, "MHz", maybe=True, optional=True),
            Field("memory_clock_mhz", "of its memory", 7600, "MHz", maybe=True, optional=True),
            Field(
                "ecc_uncorrected",
                "memory errors that could not be corrected, since the driver started",
                0,
                maybe=True,
                optional=True,
            ),
            Field(
                "xid_errors",
                "NVIDIA's numbers of errors that the driver reported since the attempt's last sample",
                [],
                maybe=True,
                optional=True,
            ),
            Field(
                "problem",
                "`lost` (the driver can't reach it any more) or `no_answer` (the driver itself hangs or is gone)",
                None,
                maybe=True,
                optional=True,
            ),
        ),
    ),
    EventType(
        "host.sampled",
        "runner",
        "the attempt's process tree, and the machine around it",
        (
            Field("cpu_percent", "of one core, since the last sample", 104.0, "%", maybe=True),
            Field("rss_gib", "resident memory of the tree", 6.2, "GiB", maybe=True),
            Field("read_bytes", "from disks so far", 24_000_000_000, "bytes", maybe=True),
            Field("write_bytes", "to disks so far", 120_000_000, "bytes", maybe=True),
            Field("disk_free_gib", "where the run lies", 41.7, "GiB", maybe=True),
            Field("memory_available_gib", "of the machine or its container", 18.3, "GiB", maybe=True),
            Field(
                "oom_kills",
                "processes of the control group that the kernel has killed for want of memory so far",
                0,
                maybe=True,
                optional=True,
            ),
        ),
    ),
    EventType(
        "disk.low",
        "runner",
        "little more than the next checkpoint fits onto the disk; at less the run is stopped",
        _DISK,
        durable=True,
    ),
    EventType("disk.cleared", "runner", "there is room again", _DISK, durable=True),
    EventType("stall.suspected", "runner", "half of a limit has passed without progress", _VERDICT),
    EventType("stall.cleared", "runner", "it moves again", _VERDICT),
    EventType(
        "run.stalled",
        "runner",
        "the attempt made no progress for too long and is being ended; `run.killed` follows",
        (
            *_VERDICT,
            *_RESUME,
            Field("stacks", "where its threads stood, in a side file", ".attempts/0001/stacks.txt", maybe=True),
            Field("hint", "what to do, where a GPU is the cause", "Restart the machine, then resume.", optional=True),
        ),
        durable=True,
    ),
    EventType(
        "run.killed",
        "runner",
        "its process tree is gone",
        (
            Field("pids", "whom a signal was sent to", [4801, 4822]),
            Field("signals", "in order", ["SIGTERM", "SIGKILL"]),
            Field("seconds", "how long it took", 60.2, "seconds"),
            Field("survivors", "empty", []),
            *_RESUME,
        ),
        durable=True,
    ),
    EventType(
        "run.completed",
        "runner",
        "exit 0 and the LoRA is whole",
        (
            Field("weights", "the LoRA", "my-cat.safetensors"),
            Field("steps", "finished", 960, "optimizer steps"),
            Field("seconds", "of this attempt", 1102.4, "seconds"),
            Field("final_loss", "of the last step", 0.1187, maybe=True),
        ),
        durable=True,
    ),
    EventType(
        "run.failed",
        "runner",
        "the attempt broke off",
        (
            Field("exit_code", "null where nobody saw it", 6, maybe=True),
            Field("signal", "that ended it", None, maybe=True),
            Field(
                "reason",
                "`oom_gpu` `oom_host` `disk_full` `bad_config` `bad_data` `download` `nan_loss` `killed`"
                " `crash` `lost`",
                "oom_gpu",
            ),
            Field("hint", "what to do, in a sentence", "Choose a smaller memory preset, then resume."),
            Field("tail", "the last lines of `train.log`", "CUDA out of memory …"),
            *_RESUME,
        ),
        durable=True,
    ),
    EventType(
        "run.stopped",
        "runner",
        "the attempt, or the waiting request, was stopped as asked",
        (
            Field("reason", "`user`, `disk_low` or `shutdown`", "user"),
            Field("step", "how far it came", 512, "optimizer steps"),
            Field(
                "lost_steps",
                "steps since `resume_step`, which a resume does again; where there are any",
                32,
                "steps",
                optional=True,
            ),
            Field("hint", "what to do, in a sentence", "Make room on the disk, then resume.", optional=True),
            *_RESUME,
        ),
        durable=True,
    ),
    EventType(
        "alert.sent",
        "runner",
        "a person was told of an event; no other process tells that target of it again",
        (*_ALERT, Field("error", "null", None, maybe=True)),
        durable=True,
    ),
    EventType(
        "alert.failed",
        "runner",
        "a person could not be told, and it is not tried again",
        (*_ALERT, Field("error", "why, without anything secret", "it answered 401 (it does not accept the password)")),
        durable=True,
    ),
    EventType("run.noted", _PEOPLE, "a note on the run", (Field("note", "its text", "the good one"),), True),
    EventType("run.titled", _PEOPLE, "a title to show for the name", (Field("title", "its text", "Cat, v2"),), True),
    EventType("run.tagged", _PEOPLE, "the run's tags, all of them", (Field("tags", "texts", ["cat", "keep"]),), True),
    EventType(
        "run.published",
        _PEOPLE,
        "a LoRA file of the run is on the Hugging Face Hub",
        (
            Field("repo", "the repository", "me/my-cat-lora"),
            Field("url", "its address", "https://huggingface.co/me/my-cat-lora"),
            Field("file", "the LoRA file", "my-cat.safetensors"),
            Field("private", "whether only its owner sees it", True),
            Field("revision", "the commit", "5f0c6a1e9d0b4b7a8f1c2d3e4f5061728394a5b6"),
        ),
        durable=True,
    ),
    EventType(
        "run.archived",
        _PEOPLE,
        "out of sight, or back",
        (Field("archived", "whether it is", True, optional=True),),
        True,
    ),
    EventType(
        "queue.paused",
        _PEOPLE,
        "in `outputs/.events.jsonl`: no waiting run is started; running ones go on",
        (_REASON,),
        durable=True,
    ),
    EventType("queue.resumed", _PEOPLE, "in `outputs/.events.jsonl`: waiting runs start again", (_REASON,), True),
    EventType(
        "defaults.saved",
        _PEOPLE,
        "in `outputs/.events.jsonl`: what a new draft begins with; runs that are there keep what they have",
        (Field("defaults", "settings by name, see the schema in `fluxcore/config`", {"stall_seconds": 600}),),
        durable=True,
    ),
    EventType(
        "shutdown.requested",
        "runner",
        "in `outputs/.events.jsonl`: `--stop-all` asks this runner to stop every run and to end",
        (Field("pid", "the runner", 5120), *_IDENTITY),
        durable=True,
    ),
    EventType(
        "runner.started",
        "runner",
        "in `outputs/.events.jsonl`: a runner serves this folder",
        (Field("pid", "the runner", 5120), Field("version", "FluxGym's", "0.1.0"), *_IDENTITY),
    ),
    EventType(
        "runner.ended",
        "runner",
        "in `outputs/.events.jsonl`: it left in good order, or with an error",
        (Field("pid", "the runner", 5120), Field("error", "what it broke off with", None, maybe=True)),
    ),
)
