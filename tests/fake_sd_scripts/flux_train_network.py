"""sd-scripts' flux_train_network.py in miniature: its options, what it prints, its files, its way of resuming, bugs too.

Standard library only. Steered by a JSON object in `fake.json` in the run's folder (settings of one attempt under
"attempts"), or in `FAKE_SD_SCRIPTS`: step_seconds, oom_at, nan_at, hang_at, die_at (kills itself while it saves at or
after that step), say and exit_code (at once), no_tensorboard, ignore_term.

`optimizer.bin` holds how many optimizer steps the LoRA has really had, `scheduler.bin` how many the schedule: what a
resume is judged by.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import struct
import sys
import time
import tomllib
import zipfile
import zlib
from pathlib import Path

FLAGS = Path(__file__).resolve().parents[1] / "data" / "sd_scripts_flags.txt"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def int_or_float(text: str) -> float:
    return float(text) if float(text) < 1 else int(text)


TYPES = {"int": int, "float": float, "str": str, "Path": Path, "int_or_float": int_or_float}


def setup_parser() -> argparse.ArgumentParser:
    """A parser with the options of the real one; without its shortening of names."""
    parser = argparse.ArgumentParser(prog="flux_train_network.py", allow_abbrev=False)
    for line in FLAGS.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, kind = line.split(" ", 1)
        if kind == "store_true":
            parser.add_argument(name, action="store_true")
        elif kind.startswith("choice:"):
            parser.add_argument(name, choices=kind.removeprefix("choice:").split(","))
        else:
            parser.add_argument(name, type=TYPES[kind.removesuffix("*")], nargs="*" if kind.endswith("*") else None)
    return parser


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} INFO     {text}", file=sys.stderr, flush=True)


def bar(label: str, done: int, total: int, postfix: str = "") -> None:
    """As tqdm draws it into a file."""
    percent = 100 * done // max(1, total)
    filled = "█" * (percent // 10)
    rate = f"{'?it/s' if done == 0 else ' 1.50s/it'}{postfix}"
    sys.stderr.write(f"\r{label}{percent:3d}%|{filled:<10}| {done}/{total} [00:01<08:00, {rate}]")
    sys.stderr.flush()


def safetensors(path: Path, tensors: list[str], metadata: dict[str, str] | None = None) -> None:
    entries: dict[str, object] = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]} for at, name in enumerate(tensors)
    }
    if metadata:
        entries["__metadata__"] = metadata
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * len(tensors)))


def png(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\1\2\3")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


class Scalars:
    """TensorBoard's event file, as its reader finds it (without checksums)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.file = open(folder / f"events.out.tfevents.{int(time.time())}.host.1.0", "ab")  # noqa: SIM115
        self.record(b"\x1a\x0dbrain.Event:2")

    def record(self, event: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + event
        self.file.write(struct.pack("<QI", len(event), 0) + event + struct.pack("<I", 0))

    def log(self, step: int, **values: float) -> None:
        for name, value in values.items():
            tag = name.replace("_", "/").encode()
            entry = b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + struct.pack("<f", value)
            summary = b"\x0a" + bytes([len(entry)]) + entry
            self.record(b"\x10" + varint(step) + b"\x2a" + bytes([len(summary)]) + summary)
        self.file.flush()


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


class Training:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run = Path(args.output_dir).parents[3]
        self.orders = json.loads(os.environ.get("FAKE_SD_SCRIPTS", "{}"))
        if (self.run / "fake.json").exists():
            self.orders |= json.loads((self.run / "fake.json").read_text())
        self.orders |= self.orders.get("attempts", {}).get(os.environ.get("FLUXGYM_ATTEMPT", ""), {})
        self.current_step = self.current_epoch = self.updates = self.scheduled = 0
        self.folder = Path(args.output_dir)

    def main(self) -> None:
        args = self.args
        if self.orders.get("ignore_term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if "say" in self.orders:
            print(self.orders["say"], file=sys.stderr)
            sys.exit(self.orders.get("exit_code", 1))
        dataset = tomllib.loads(args.dataset_config.read_text(encoding="utf-8"))
        subset = dataset["datasets"][0]["subsets"][0]
        pictures = [path for path in Path(subset["image_dir"]).iterdir() if path.suffix in PICTURES]
        assert all(path.with_suffix(".txt").read_text(encoding="utf-8").splitlines() for path in pictures)
        if not pictures:
            say("No data found.")
            return
        for name in ("pretrained_model_name_or_path", "ae", "clip_l", "t5xxl"):
            open(getattr(args, name), "rb").close()
        batches = math.ceil(len(pictures) * subset["num_repeats"] / dataset["datasets"][0]["batch_size"])
        for what in ("latents", "Text Encoder outputs"):
            say(f"caching {what}...")
            for done in range(len(pictures) + 1):
                bar("", done, len(pictures))
            sys.stderr.write("\n")
        if args.max_train_epochs:
            args.max_train_steps = args.max_train_epochs * batches
        assert not (args.fp8_base and args.mixed_precision == "no")
        assert not (args.persistent_data_loader_workers and not args.max_data_loader_n_workers)
        if args.lr_warmup_steps and args.lr_scheduler == "constant":
            raise ValueError("constant does not require num_warmup_steps")
        print("import network module:", args.network_module, flush=True)
        self.train(batches)

    def train(self, batches: int) -> None:
        args, from_state = self.args, None
        if args.resume:
            state = Path(args.resume)
            say(f"resume training from local state: {state}")
            from_state = json.loads((state / "train_state.json").read_text())["current_step"]
            self.updates = json.loads((state / "optimizer.bin").read_text())
            self.scheduled = json.loads((state / "scheduler.bin").read_text())
        epochs = math.ceil(args.max_train_steps / batches)
        print(f"running training\n  num batches per epoch: {batches}\n  num epochs: {epochs}", flush=True)
        # Where it begins, with what is wrong with that: the count restarts at 0, or at the remainder of the epoch.
        initial = args.initial_step if args.initial_step is not None else from_state or 0
        assert initial == 0 or args.max_train_steps > initial
        first_epoch = initial // batches
        skipped = initial % batches if args.skip_until_initial_step else 0
        count = skipped
        scalars = None if self.orders.get("no_tensorboard") else Scalars(self.logs())
        self.samples(0)
        total = args.max_train_steps - skipped
        bar("steps: ", 0, total)
        losses: list[float] = []
        for epoch in range(first_epoch, epochs):
            print(f"\nepoch {epoch + 1}/{epochs}\n", flush=True)
            self.current_epoch = epoch + 1
            for _ in range(skipped, batches):
                self.current_step = count
                time.sleep(self.orders.get("step_seconds", 0.005))
                while count == self.orders.get("hang_at"):
                    time.sleep(0.05)
                if count == self.orders.get("oom_at"):
                    trace = 'Traceback (most recent call last):\n  File "flux_train_network.py", line 1, in <module>\n'
                    raise SystemExit(
                        f"\n{trace}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB."
                    )
                self.updates, self.scheduled, count = self.updates + 1, self.scheduled + 1, count + 1
                bar("steps: ", count - skipped, total)
                self.samples(count)
                if args.save_every_n_steps and count % args.save_every_n_steps == 0:
                    self.weights(f"-step{count:08d}", count)
                    self.state(f"-step{count:08d}")
                losses.append(math.nan if count >= self.orders.get("nan_at", math.inf) else 1 / self.updates)
                average = sum(losses) / len(losses)
                bar("steps: ", count - skipped, total, f", avr_loss={average:.3g}")
                rate = float(args.learning_rate) * self.schedule()  # of the next step
                if scalars:
                    scalars.log(count, loss_current=losses[-1], loss_average=average, lr_unet=rate)
                if count >= args.max_train_steps:
                    break
            skipped = 0
            every = args.save_every_n_epochs
            if every and (epoch + 1) % every == 0 and epoch + 1 < epochs:
                self.weights(f"-{epoch + 1:06d}", count)
                self.state(f"-{epoch + 1:06d}")
        self.state("")
        self.weights("", count)
        say("model saved.")

    def schedule(self) -> float:
        """The learning rate's factor, from what the scheduler's own state says."""
        args, at = self.args, self.scheduled
        name, steps, warm_up = args.lr_scheduler, args.max_train_steps, int(args.lr_warmup_steps or 0)
        if args.lr_scheduler_type:
            told = dict(item.split("=") for item in args.lr_scheduler_args)
            steps, warm_up = int(told["num_training_steps"]), int(told["num_warmup_steps"])
            name = args.lr_scheduler_type.removeprefix("transformers.optimization.get_").split("_schedule")[0]
        if at < warm_up:
            return at / warm_up
        share = (at - warm_up) / max(1, steps - warm_up)
        return {"linear": max(0.0, 1 - share), "cosine": max(0.0, 0.5 * (1 + math.cos(math.pi * share)))}.get(name, 1)

    def logs(self) -> Path:
        return Path(self.args.logging_dir) / time.strftime("%Y%m%d%H%M%S") / "network_train"

    def samples(self, count: int) -> None:
        args = self.args
        every = args.sample_every_n_steps
        if not (args.sample_at_first if count == 0 else every and count % every == 0):
            return
        say(f"generating sample images at step: {count}")
        lines = Path(args.sample_prompts).read_text(encoding="utf-8").splitlines()
        (self.folder / "sample").mkdir(parents=True, exist_ok=True)
        for index, line in enumerate(lines):
            seed = line.split(" --d ")[1].split()[0]
            when = time.strftime("%Y%m%d%H%M%S")
            png(self.folder / "sample" / f"{args.output_name}_{count:06d}_{index:02d}_{when}_{seed}.png")

    def weights(self, ending: str, count: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.args.output_name}{ending}.safetensors"
        print(f"\nsaving checkpoint: {path}", flush=True)
        metadata = {"ss_steps": str(count), "ss_epoch": str(self.current_epoch)}
        safetensors(path, ["lora_unet_single_blocks_0_linear1.lora_down.weight"], metadata)

    def state(self, ending: str) -> None:
        """Not at once and not aside: train_state.json first, the random states last."""
        if not self.args.save_state:
            return
        say(f"saving state at {ending}" if ending else "saving last state.")
        path = self.folder / f"{self.args.output_name}{ending}-state"
        path.mkdir(parents=True, exist_ok=True)
        state = {"current_epoch": self.current_epoch, "current_step": self.current_step + 1}
        (path / "train_state.json").write_text(json.dumps(state))
        safetensors(path / "model.safetensors", ["lora_unet_single_blocks_0_linear1.lora_down.weight"])
        (path / "optimizer.bin").write_text(json.dumps(self.updates))
        (path / "scheduler.bin").write_text(json.dumps(self.scheduled))
        if self.updates >= self.orders.get("die_at", math.inf):
            (path / "random_states_0.pkl").write_bytes(b"PK\x03\x04 half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        with zipfile.ZipFile(path / "random_states_0.pkl", "w") as archive:
            archive.writestr("data.pkl", b"random")


if __name__ == "__main__":
    Training(setup_parser().parse_args()).main()
