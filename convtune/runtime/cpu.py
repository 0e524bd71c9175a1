"""What this machine's CPU can execute, and whether that is enough for a kernel."""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection
from pathlib import Path

from .errors import KernelError

CPUINFO = Path("/proc/cpuinfo")
_FEATURE_LINES = {"x86_64": "flags", "aarch64": "Features"}


@functools.cache
def features() -> frozenset[str]:
    """The feature names that Linux gives this CPU, such as `avx2` or `asimddp`; raises KernelError without any."""
    machine = platform.machine()
    wanted = _FEATURE_LINES.get(machine)
    if wanted is None:
        raise KernelError(f"this machine is {machine}; kernels exist for {', '.join(_FEATURE_LINES)}")
    try:
        text = CPUINFO.read_text()
    except OSError as error:
        raise KernelError(f"cannot tell what this CPU supports: {error}") from error
    for line in text.splitlines():
        field, _, value = line.partition(":")
        if field.strip() == wanted:
            return frozenset(value.split())
    raise KernelError(f"cannot tell what this CPU supports: {CPUINFO} has no line {wanted!r}")


def check(machine: str, required: Collection[str]) -> None:
    """Raises KernelError unless this is a `machine` with all `required` features: running the kernel would crash."""
    here = platform.machine()
    if machine != here:
        raise KernelError(f"the kernel was compiled for {machine}; this machine is {here}")
    missing = sorted(set(required) - features()) if required else []
    if missing:
        raise KernelError(
            f"the kernel needs CPU features {', '.join(sorted(required))}; this CPU lacks {', '.join(missing)}"
        )
