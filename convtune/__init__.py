"""convtune: a compiler and autotuner for convolution variants. Importing it imports neither TVM nor NumPy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convtune import errors as _errors

if TYPE_CHECKING:
    from convtune.compiler import compile as compile
    from convtune.errors import ConvtuneError as ConvtuneError
    from convtune.reference import reference as reference
    from convtune.runtime import CompiledConv as CompiledConv
    from convtune.runtime import load as load
    from convtune.separable import Separated as Separated
    from convtune.separable import separate as separate
    from convtune.spec import ConvSpec as ConvSpec
    from convtune.tuner import tune as tune

__version__ = "0.1.0"

_HOME = {
    "ConvSpec": "spec",
    "reference": "reference",
    "separate": "separable",
    "Separated": "separable",
    "tune": "tuner",
    "compile": "compiler",
    "load": "runtime",
    "CompiledConv": "runtime",
} | dict.fromkeys(_errors.__all__, "errors")

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
