"""Pointwise convolutions whose positions are all as one row: fewer and longer loops, and less waste at their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


def reads_own_place(spec: ConvSpec) -> bool:
    """Whether each output reads the input at its own place only: whatever the variant, a product across channels."""
    taps_and_strides = (*spec.kernel, *spec.stride)
    return all(each == 1 for each in taps_and_strides) and all(pads == (0, 0) for pads in spec.padding)
