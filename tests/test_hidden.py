"""What a training seldom needs is not imported with diffusers, and is there when a setting wants it."""

import subprocess
import sys

from fluxcore.runs.files import PROJECT_ROOT

SAID = """
import sys
import fluxcore.models.loading, peft
from fluxcore.models.hidden import SELDOM, show
assert not any(sys.modules.get(name) for name in SELDOM), "they take a second each"
for name in SELDOM:
    show(name)
    __import__(name)
show("torch")  # what was never hidden stays
print(*(sys.modules[name].__name__ for name in (*SELDOM, "torch")))
"""


def test_it_is_found_when_it_is_shown() -> None:
    done = subprocess.run([sys.executable, "-c", SAID], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["torchao", "bitsandbytes", "torch"], done.stderr


def test_who_imported_diffusers_before_keeps_what_it_found() -> None:
    said = "from diffusers import FluxPipeline; import fluxcore.models.loading, sys; print(sys.modules['bitsandbytes'])"
    done = subprocess.run([sys.executable, "-c", said], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("<module 'bitsandbytes'"), done.stderr
