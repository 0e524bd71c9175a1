"""The variants: what each convolution means. One file each, discovered; nothing here knows of schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from convtune.discovery import discover
from convtune.errors import UnknownNameError
from convtune.variants.base import Composite, Operands, Primitive, Term, Variant

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

__all__ = ["Composite", "Operands", "Primitive", "Term", "Variant", "get", "known", "primitive"]


def known() -> Mapping[str, Variant]:
    """All variants by name."""
    return discover(__name__, Variant)


def get(name: str) -> Variant:
    """The variant of that name; raises UnknownNameError with the near ones."""
    try:
        return known()[name]
    except (KeyError, TypeError):
        raise UnknownNameError("variant", str(name), known()) from None


def primitive(spec: ConvSpec) -> Primitive:
    """The variant of a spec that is one stage: of each of `ConvSpec.stages`."""
    variant = get(spec.variant)
    assert isinstance(variant, Primitive), f"{spec} has several stages"
    return variant
