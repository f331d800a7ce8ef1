"""What trainers, PyTorch and the Hub's client say when they break off: line → reason of the contract and what to do.

Read from the last line backwards; the first line that fits a sign decides, and of its signs the first in this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fluxcore.runs.exits import CHECKPOINT_DAMAGED, END_RUNNER

MOST_QUOTED = 160


@dataclass(frozen=True)
class Sign:
    """`hint` may name the pattern's groups, and {again}: "resume" or "start again"; "" is the reason's usual one."""

    reason: str
    pattern: re.Pattern[str]
    hint: str = ""


def _sign(reason: str, pattern: str, hint: str = "") -> Sign:
    return Sign(reason, re.compile(pattern), hint)


_HUB = r"https?://(?:huggingface\.co|hf\.co)/(?:api/models/)?(?P<repo>[\w-]+(?:\.[\w-]+)*/[\w-]+(?:\.[\w-]+)*)"
_NAME = r"\S+"
_LAUNCHER = re.compile(r"CalledProcessError|ChildFailedError")
_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b(?::|$)")

SIGNS: tuple[Sign, ...] = (
    # The GPU's memory, the machine's, the disk.
    _sign(
        "oom_gpu",
        r"(?i)(?:CUDA|HIP) out of memory|torch\.(?:cuda\.)?OutOfMemoryError|CUDA error: out of memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
    ),
    _sign(
        "oom_host",
        r"killed by signal: Bus error|out of shared memory|insufficient shared memory|unable to write to file </torch_",
        "Shared memory (/dev/shm) is too small: set workers to 0, or start the container with --shm-size=8g, then "
        "{again}.",
    ),
    _sign(
        "oom_host",
        r"DefaultCPUAllocator: can't allocate memory|not enough memory: you tried to allocate|^MemoryError\b"
        r"|\[Errno 12\]|Cannot allocate memory|std::bad_alloc|killed by signal: Killed",
    ),
    _sign(
        "disk_full",
        r"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]|PytorchStreamWriter failed"
        r"|inline_container\.cc.*unexpected pos",
    ),
    # The base model's download.
    _sign(
        "download",
        r"Access to model (?P<repo>\S+) is restricted and you are not in the authorized list",
        "The account of your HF_TOKEN has not accepted the licence of {repo}: accept it at "
        "https://huggingface.co/{repo}, then {again}.",
    ),
    _sign(
        "download",
        r"Access to model (?P<repo>\S+) is restricted",
        "{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN to a token of that "
        f"account, {END_RUNNER}, and {{again}}.",
    ),
    _sign(
        "download",
        rf"Cannot access gated repo for url {_HUB}|Make sure to have access to it at {_HUB.replace('repo', 'named')}",
        "{repo} is gated: accept its licence at https://huggingface.co/{repo}, then set HF_TOKEN to a token of that "
        f"account, {END_RUNNER}, and {{again}}.",
    ),
    _sign(
        "download",
        r"GatedRepoError|trying to access a gated repo",
        "The base model is gated: accept the licence on its page at huggingface.co, then set HF_TOKEN to a token of "
        f"that account, {END_RUNNER}, and {{again}}.",
    ),
    _sign(
        "download",
        r"Invalid credentials in Authorization header|Invalid user token|401 Client Error: Unauthorized"
        r"|User Access Token .* is expired",
        "The Hub does not accept HF_TOKEN (401): make a new one at https://huggingface.co/settings/tokens, set "
        f"HF_TOKEN to it, {END_RUNNER}, and {{again}}.",
    ),
    _sign(
        "download",
        rf"(?:Repository Not Found for url: |RepositoryNotFoundError.*?){_HUB}",
        "There is no model {repo} on the Hub, or HF_TOKEN may not see it: set base_model right, then {again}.",
    ),
    _sign(
        "download",
        r"OfflineModeIsEnabled|HF_HUB_OFFLINE",
        "The base model is not on this machine and HF_HUB_OFFLINE forbids to fetch it: unset it, then {again}.",
    ),
    _sign(
        "download",
        r"\b(?P<code>429|50[0234]) (?:Client|Server) Error",
        "The Hub was busy (it answered {code}): wait some minutes, then {again}.",
    ),
    _sign(
        "download",
        r"Consistency check failed: .*\((?P<file>[^()]+)\)",
        "The download of {file} came out at a wrong size: {again}, and it is fetched anew.",
    ),
    _sign(
        "download",
        r"(?i)(?P<file>/\S+\.safetensors) is (?:cut short|torn|damaged)"
        r"|Unable to load weights from (?:checkpoint|safetensors|pytorch checkpoint) file for '(?P<named>[^']+)'",
        "{file} is damaged: delete it, then {again}, and it is fetched anew.",
    ),
    _sign(
        "download",
        r"SafetensorError: Error while deserializ|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeaderDeserialization"
        r"|file not fully covered",
        "A file of the base model is damaged: delete the model's folder in ~/.cache/huggingface/hub, then {again}.",
    ),
    _sign(
        "download",
        r"LocalEntryNotFoundError|Temporary failure in name resolution|Name or service not known|NameResolutionError"
        r"|Network is unreachable|We couldn't connect to|Max retries exceeded with url",
        "The Hub can't be reached: check the machine's connection to the internet (and its proxy), then {again}.",
    ),
    _sign(
        "download",
        r"ReadTimeout|Read timed out|ConnectTimeout|IncompleteRead|ChunkedEncodingError|peer closed connection"
        r"|RemoteProtocolError",
        "The download broke off: {again}, and it goes on where it stopped.",
    ),
    # Pictures and settings.
    _sign(
        "bad_data",
        r"cannot identify image file '?(?P<file>[^'>]+)'?|NaN detected in latents: (?P<named>.+)",
        "{file} can't be used as a picture: save it anew or remove it, then {again}.",
    ),
    _sign("bad_data", r"image file is truncated|DecompressionBombError|No data found\. Please verify"),
    _sign("bad_config", r"error: (?:unrecognized arguments|argument \S+|the following arguments are required)"),
    _sign(
        "crash",
        rf"the (?P<what>{CHECKPOINT_DAMAGED.format(name=_NAME)} \([^()]+\) and left out from now on)",
        "The {what}.",
    ),
    # The GPU, its driver, PyTorch's build.
    _sign(
        "crash",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient",
        "The GPU's driver is too old for this PyTorch: update the NVIDIA driver, or install a PyTorch for an older "
        "CUDA, then {again}.",
    ),
    _sign(
        "crash",
        r"no kernel image is available|CUDA error: invalid device function|not compatible with the current PyTorch",
        "This PyTorch was built without this kind of GPU: install a build that has it (see pytorch.org), then {again}.",
    ),
    _sign(
        "crash",
        r"No CUDA GPUs are available|no CUDA-capable device|Found no NVIDIA driver|CUDA unknown error"
        r"|Driver/library version mismatch|GPU is lost|Unable to determine the device handle|fallen off the bus",
        "The trainer found no GPU that works: see what nvidia-smi says, restart the machine or rent another, then "
        "{again}.",
    ),
    _sign(
        "crash",
        r"uncorrectable ECC error",
        "The GPU had a memory error that can't be corrected: restart the machine, and rent another GPU where that "
        "comes again, then {again}.",
    ),
    _sign(
        "crash",
        r"CUDA-capable device\(s\) is/are busy or unavailable",
        "Another program keeps the GPU to itself: end it (nvidia-smi shows it), then {again}.",
    ),
    _sign(
        "crash",
        r"CUDA error: (?P<what>.{1,80})|CUBLAS_STATUS_\w+|CUDNN_STATUS_\w+",
        "The GPU broke off its work; where that comes again, update the NVIDIA driver or rent another GPU.",
    ),
    # Python, the system.
    _sign(
        "crash",
        r"ModuleNotFoundError: No module named '(?P<name>[^']+)'",
        "The Python package {name} is missing: install what requirements.lock lists (./fluxgym does that by itself), "
        "then {again}.",
    ),
    _sign(
        "crash",
        r"ImportError: (?P<name>\S+\.so\S*): cannot open shared object file",
        "The system's library {name} is missing: install the package that has it, then {again}.",
    ),
    _sign(
        "crash",
        r"ImportError: |version `GLIBC\S*' not found",
        "The installed packages don't fit together: install what requirements.lock lists (delete .venv, and ./fluxgym "
        "does it), then {again}.",
    ),
    _sign(
        "crash",
        r"Address already in use|EADDRINUSE",
        "Another program holds the port that the trainer needs: end it (an old trainer?), then {again}.",
    ),
    _sign(
        "crash",
        r"(?:Permission denied|Read-only file system): '(?P<path>[^']+)'",
        "FluxGym may not write {path}: give its user the right to, then {again}.",
    ),
    _sign(
        "crash",
        r"Too many open files",
        "The trainer may not open more files: raise the limit (ulimit -n 65536) before FluxGym starts, then {again}.",
    ),
    _sign(
        "crash",
        r"\[Errno (?:5|107|116)\]|Input/output error|Stale file handle|Transport endpoint is not connected",
        "The disk gave an error: see that it (or the network disk) is there and sound, then {again}.",
    ),
    _sign(
        "crash",
        r"the trainer can't be started: (?P<what>.{1,160})",
        "The trainer can't be started ({what}): mend that, then {again}.",
    ),
)


def find_sign(text: str, reason: str | None = None) -> tuple[Sign, dict[str, str], str] | None:
    """The sign that the last telling line of `text` bears, the groups of its pattern, and that line.

    `reason`: only signs of that reason.
    """
    signs = [sign for sign in SIGNS if reason in (None, sign.reason)]
    for line in reversed(text.splitlines()):
        for sign in signs:
            if match := sign.pattern.search(line):
                groups = {name: value for name, value in match.groupdict().items() if value}
                if "named" in groups:  # a pattern of two forms may name a group but once
                    groups["repo" if "repo" in sign.pattern.groupindex else "file"] = groups.pop("named")
                return sign, groups, line
    return None


def last_error(text: str) -> str:
    """The last line of `text` that names an error, else its last line; at most 160 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    # A launcher says only that what it launched has failed.
    telling = [line for line in errors if not _LAUNCHER.search(line)]
    found = (telling or errors or lines or [""])[-1]
    return found if len(found) <= MOST_QUOTED else found[: MOST_QUOTED - 1] + "…"
