"""Makes a saved package callable: after `from kernels import g32`, `g32(x, weight)` runs the convolution."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .compiled import CompiledConv

_FORWARDED = (
    *("pack", "run", "time", "save", "kernel"),
    *("spec", "error", "verified", "weight_error", "resolution", "manifest"),
)


class CallableModule(ModuleType):
    """A module that stands for one compiled convolution, `conv`."""

    conv: CompiledConv

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As CompiledConv.__call__."""
        return self.conv(*args, **kwargs)


def publish(module_name: str, directory: Path) -> None:
    """Loads the package in `directory` and makes its module callable. Raises KernelError as CompiledConv does."""
    conv = CompiledConv(directory)
    module = sys.modules[module_name]
    module.__class__ = CallableModule
    call = f"{module_name}(x)" if conv.manifest.constants else f"{module_name}(x, weight)"
    module.__doc__ = f"{conv.spec}, compiled by convtune for {conv.manifest.target.name}: {call}"
    vars(module).update({name: getattr(conv, name) for name in _FORWARDED}, conv=conv)
