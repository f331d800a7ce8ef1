"""The snippets of docs/operation.md are files that their programs can read, and spare the trainers."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "operation.md").read_text()
UNIT, PROGRAM = re.findall(r"```ini\n(.+?)```", TEXT, re.S)


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(comment_prefixes="#")
    parser.read_string(text)
    return parser


def test_a_stop_of_the_service_reaches_the_runner_alone() -> None:
    service = parsed(UNIT)["Service"]
    assert (service["KillMode"], service["OOMPolicy"], service["Restart"]) == ("process", "continue", "on-failure")
    program = parsed(PROGRAM)["program:fluxgym-runner"]
    assert program["autorestart"] == "unexpected", "what --stop-all ended is not started again two seconds later"
    assert not program.getboolean("stopasgroup") and not program.getboolean("killasgroup")
    assert service["ExecStart"] == program["command"] == "/opt/fluxgym/fluxgym runner"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "fluxgym-runner.service"
    here = UNIT.replace("/opt/fluxgym/fluxgym", "/bin/true").replace("/opt/fluxgym", "/").replace("User=fluxgym\n", "")
    unit.write_text(here)
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert checked.returncode == 0 and str(unit) not in checked.stderr, checked.stderr
