"""Pointwise convolutions with all their positions in one row: fewer and longer loops, and less waste at their ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convtune.spec import count

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


def reads_own_place(spec: ConvSpec) -> bool:
    """Whether each output reads the input at its own place only: whatever the variant, a product across channels."""
    taps_and_strides = (*spec.kernel, *spec.stride)
    return all(each == 1 for each in taps_and_strides) and all(pads == (0, 0) for pads in spec.padding)


@functools.lru_cache(maxsize=64)
def in_one_row(spec: ConvSpec) -> ConvSpec:
    """The spec in one dimension where it `reads_own_place`; other specs as they are."""
    if spec.rank == 1 or not reads_own_place(spec):
        return spec
    layout = "NWC" if spec.channels_last else "NCW"
    row = {"in_size": (count(spec.in_size),), "kernel": 1, "stride": 1, "padding": 0, "dilation": max(spec.dilation)}
    return spec.replace(**row, layout=layout)


def position_in(spec: ConvSpec, index: Sequence[Any]) -> list[Any]:
    """Where in the spec's space a position of `in_one_row(spec)` is."""
    if in_one_row(spec) == spec:
        return list(index)
    return [index[0] // count(spec.in_size[axis + 1 :]) % size for axis, size in enumerate(spec.in_size)]


def restore_arguments(sch: Any, spec: ConvSpec, reader: str) -> None:
    """Gives x, which the block `reader` reads, and the residual the spec's shapes; channels-first layouts only.

    TVM takes the divisions apart again when it flattens the buffers: the code is the same.
    """
    if in_one_row(spec) == spec:
        return
    sch.transform_layout(reader, "x", lambda n, channel, *i: [n, channel, *position_in(spec, i)])
    if spec.residual:
        sch.transform_layout("y", "residual", lambda n, channel, *i: [n, channel, *position_in(spec, i)])
