"""`plan`: what a training will need, before it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fluxcore.errors import UserError
from fluxcore.units import duration, gib

from .options import Outputs, build_config, outputs_folder
from .out import note, say, table, to_json


def plan(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A run.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="A config instead of a run.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    pictures: Annotated[int | None, typer.Option(metavar="N", help="How many pictures there will be.")] = None,
    gpu_gib: Annotated[
        float | None, typer.Option("--gpu-gib", metavar="GIB", help="The GPU's memory (default: the config's vram).")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Instead: plans beside what others have published.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON array of objects.")] = False,
    outputs: Outputs = None,
) -> int:
    """What a training needs of GPU memory, disk and time, and what to change where it does not fit (then exit 1)."""
    from fluxcore.planner.hardware import GPUS, UTILISATION, size_of
    from fluxcore.planner.plan import plan as make
    from fluxcore.planner.plan import proven_advice, verdict

    root = outputs_folder(outputs)
    if published:
        return _published(root, json)
    run, seconds = _config(root, name, config, settings or [])
    count = pictures if pictures is not None else _pictures(root, name)
    made = make(run, count, root)
    assert made is not None
    room = int(gpu_gib * 2**30) if gpu_gib else size_of(run.vram)
    advised = None if made.fits(room) else proven_advice(run, made, room, count, root)
    says = verdict(run, made, room, advised)
    if run.trainer != "fluxgym":
        note(f"this is what FluxGym's own trainer would need; {run.trainer} manages its memory by itself")
    if json:
        say(to_json([{"phase": phase.name, "bytes": phase.total, "parts": phase.parts} for phase in made.phases]))
        return 0 if made.fits(room) else 1
    rows: list[list[Any]] = []
    for phase in made.phases:
        rows.append([phase.name, "", gib(phase.total)])
        rows += [["", part, gib(count)] for part, count in phase.parts.items()]
    table(["phase", "part", "GPU memory"], rows, right={"GPU memory"})
    say(f"base model: {made.parameters / 1e9:.3g} billion values; LoRA: {made.lora_parameters / 1e6:.3g} million")
    say(f"host memory while it loads: {gib(made.host_bytes)}")
    say(f"a step: {made.step_flops / 1e12:.3g} TFLOP" + (f"; {made.steps:,} steps" if made.steps else ""))
    if made.disk.total is not None:
        say(f"disk: {gib(made.disk.total)}")
    if seconds:
        say(f"time: {duration(seconds * made.steps)} by this run's own {seconds:.3g} s a step")
    else:
        say(f"time at an assumed {UTILISATION:.0%} of each GPU's stated speed, samples and saves left out:")
        fitting = [gpu for gpu in GPUS if made.peak.total <= gpu.gib * 2**30]
        for gpu in fitting:
            each = made.step_seconds(gpu)
            say(f"  {gpu.name}: {each:.2g} s a step" + (f", {duration(each * made.steps)}" if made.steps else ""))
    say(says)
    note("how near these figures come to published ones: ./fluxgym plan --published")
    return 0 if made.fits(room) else 1


def _config(root: Path, name: str | None, file: Path | None, settings: list[str]) -> tuple[Any, float | None]:
    """The run's config and its measured seconds a step, or the config of a file and settings."""
    from fluxcore.config import parse_saved
    from fluxcore.runs import load_run

    if (name is None) == (file is None and not settings):
        raise UserError("plan what? Give a run's name, or --config FILE, or --set base_model=flux-dev")
    if name is None:
        return build_config("plan", file, settings, {}), None
    _, state = load_run(root, name)
    return parse_saved(state.config), state.seconds_per_step


def _pictures(root: Path, name: str | None) -> int:
    from fluxcore.dataset import list_pictures
    from fluxcore.runs import RunFolder

    return len(list_pictures(RunFolder.of(root, name).dataset)) if name else 0


def _published(root: Path, json: bool) -> int:
    """The planner's figures beside published ones; 1 where one is missed whatever its settings may have been."""
    from fluxcore.planner.published import compare

    rows = compare(root, note)
    if json:
        say(to_json([row.as_dict() for row in rows]))
    else:
        table(["what", "published", "planned", "holds", "difference"], [row.cells() for row in rows])
    return 0 if all(row.holds is not False for row in rows) else 1
