"""The variants: what each convolution means. One file each, discovered; nothing here knows of schedules."""

from __future__ import annotations

from collections.abc import Mapping

from convtune.discovery import discover
from convtune.errors import UnknownNameError
from convtune.variants.base import Operands, Term, Variant

__all__ = ["Operands", "Term", "Variant", "get", "known"]


def known() -> Mapping[str, Variant]:
    """All variants by name."""
    return discover(__name__, Variant)


def get(name: str) -> Variant:
    """The variant of that name; raises UnknownNameError with the near ones."""
    try:
        return known()[name]
    except (KeyError, TypeError):
        raise UnknownNameError("variant", str(name), known()) from None
