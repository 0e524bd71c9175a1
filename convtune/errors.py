"""Every error that convtune raises on purpose, as one small tree: catch ConvtuneError to catch them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# saved packages raise these where no convtune is installed, so they are defined there
from convtune.runtime.errors import ConvtuneError, KernelError

__all__ = [
    "BuildError",
    "ConvtuneError",
    "KernelError",
    "LogError",
    "MeasureError",
    "ScheduleError",
    "SpecError",
    "TargetError",
    "UnknownNameError",
    "VerifyError",
]


class SpecError(ConvtuneError, ValueError):
    """A convolution's specification is malformed or contradicts itself."""


class UnknownNameError(ConvtuneError, KeyError):
    """A variant, target, space, workload or knob of that name does not exist."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(kind, name, self.known)  # all of them, so that a worker can send it

    def __str__(self) -> str:
        near = difflib.get_close_matches(str(self.name), self.known, n=6, cutoff=0.5)
        if near:
            return f"unknown {self.kind} {self.name!r}; near it: {', '.join(near)}"
        shown = ", ".join(self.known[:20]) + (", …" if len(self.known) > 20 else "")
        return f"unknown {self.kind} {self.name!r}; known: {shown}"


class LogError(ConvtuneError):
    """A tuning log cannot be read or written."""


class ScheduleError(ConvtuneError):
    """A space cannot make a schedule from these knobs."""


class BuildError(ConvtuneError):
    """A schedule did not compile or link."""


class MeasureError(ConvtuneError):
    """A kernel crashed, hung or could not be timed."""


class VerifyError(ConvtuneError):
    """A kernel's result differs from the reference by more than its accuracy allows."""


class TargetError(ConvtuneError):
    """A target is unknown, incomplete or not the machine at hand."""
