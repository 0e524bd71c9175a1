"""Finds the variant of a plain convolution, for formats that do not name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convtune.spec import ConvSpec


def classify(groups: int, dilation: Sequence[int], kernel: Sequence[int], in_channels: int) -> str:
    """The most special plain variant: depthwise, grouped, dilated, pointwise or conv, tried in this order."""
    if groups == in_channels > 1:
        return "depthwise"
    if groups > 1:
        return "grouped"
    if any(k > 1 and d > 1 for k, d in zip(kernel, dilation)):
        return "dilated"
    return "pointwise" if all(k == 1 for k in kernel) else "conv"


def plain_spec(
    *, groups: int, dilation: Sequence[int], kernel: Sequence[int], in_channels: int, **fields: Any
) -> ConvSpec:
    """The spec of a plain convolution; `fields` are the other ones of ConvSpec. Raises SpecError as ConvSpec does."""
    # a single tap is never dilated, whatever the file says: equal convolutions are to have equal specs
    dilation = tuple(1 if k == 1 else d for k, d in zip(kernel, dilation))
    variant = classify(groups, dilation, kernel, in_channels)
    return ConvSpec(variant, in_channels, kernel=tuple(kernel), groups=groups, dilation=dilation, **fields)
