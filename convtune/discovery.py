"""Finds what a package's modules offer, so that adding a variant, a target or a space is adding one file."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol, TypeVar

from convtune.errors import ConvtuneError


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@functools.cache
def discover(package: str, kind: type[T]) -> Mapping[str, T]:
    """Module-level instances of `kind` in the modules of `package`, by name, in order of module names.

    Raises:
        ConvtuneError: two modules offer the same name; both files are named.
    """
    found: dict[str, T] = {}
    origin: dict[str, str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if not isinstance(value, kind):
                continue
            other = found.setdefault(value.name, value)
            if other is not value:
                raise ConvtuneError(
                    f"{kind.__name__} {value.name!r} is defined in {origin[value.name]} and {module.__file__}"
                )
            origin.setdefault(value.name, str(module.__file__))
    return found
