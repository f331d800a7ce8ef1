"""A process that fetches one base model into the Hub's cache: `python -m fluxcore.models.fetch --job FILE NAME`.

What a run would fetch at its start, ahead of it; a run that begins meanwhile waits for the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fluxcore.config.names import slugify
from fluxcore.jobs import Job, read_job, start_job, working

from .locating import locate
from .registry import find_model, use_outputs


def job_name(model: str) -> str:
    """The job that fetches `model`."""
    return f"fetch-{slugify(model)}"


def fetch_model(outputs: Path, model: str) -> None:
    """Begin the download, unless it runs. Raises UserError."""
    find_model(model)
    start_job(outputs, job_name(model), "fluxcore.models.fetch", ["--outputs", str(outputs.absolute()), model])


def fetching(outputs: Path, model: str) -> Job | None:
    """How the download stands; None where none was asked for."""
    return read_job(outputs, job_name(model))


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("model")
    arguments = parser.parse_args()
    use_outputs(arguments.outputs)
    with working(arguments.job) as say:
        say.unit = "bytes"
        locate(find_model(arguments.model), say)


if __name__ == "__main__":
    main()
