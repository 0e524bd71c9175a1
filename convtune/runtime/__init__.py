"""Runs compiled convolutions with nothing but NumPy: these files are also copied into every saved package."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiled import CompiledConv as CompiledConv
    from .compiled import Packed as Packed
    from .compiled import load as load

_HOME = {"CompiledConv": "compiled", "Packed": "compiled", "load": "compiled"}


def __getattr__(name: str) -> Any:
    # late, so that importing .errors alone does not import NumPy
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
