"""Runs the command line: as a process, as a user would, or in this process, which is faster."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from convtune.cli.application import application

PROGRAM = [sys.executable, "-m", "convtune.cli"]
TINY = "depthwise,ic=16,oc=16,in=9x9,k=3x3,p=1,layout=NHWC"
SMALL = "conv,ic=16,oc=32,in=12x12,k=3x3,p=1,layout=NHWC"
MCPU = "x86-64-v3" if platform.machine() == "x86_64" else "cortex-a53"
"""A processor whose kernels run here, as on nearly all machines of the kind."""


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with these variables besides the test's."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=240,
        check=False,
    )


def invoke(*arguments: str | Path) -> Result:
    """The program in this process. An exception that it lets through is raised here."""
    result = CliRunner().invoke(application, [*map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def printed_json(*arguments: str | Path) -> Any:
    """What the program, which must succeed, prints with --json."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
