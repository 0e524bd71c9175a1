"""The one-row view of pointwise convolutions: what it covers, where positions lie, and the shapes of kernels."""

from __future__ import annotations

import numpy as np
import pytest
from convtune.schedules.one_row import in_one_row, position_in
from synthetic_spaces import machine

from convtune import ConvSpec, space

PLANE = ConvSpec("pointwise", 5, 7, (3, 11), 1, batch=2, residual=True)


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        (PLANE, 33),
        (PLANE.replace(layout="NHWC"), 33),
        (ConvSpec("grouped", 6, 4, (2, 3, 5), 1, groups=2), 30),
        (ConvSpec("dilated", 3, 4, (5, 7), 1, dilation=(1, 4)), 35),
    ],
    ids=str,
)
def test_positions_that_read_their_own_place_are_a_row(spec: ConvSpec, row: int) -> None:
    one = in_one_row(spec)
    assert (one.in_size, one.out_size) == ((row,), (row,))
    assert one.channels_last == spec.channels_last
    assert (one.macs, one.bytes) == (spec.macs, spec.bytes)


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec("pointwise", 5, 7, 33, 1),
        PLANE.replace(stride=(1, 2)),
        PLANE.replace(padding=(0, (0, 1))),
        PLANE.replace(padding=((0, -1), 0)),
        ConvSpec("conv", 5, 7, (3, 11), (1, 3)),
    ],
    ids=str,
)
def test_others_stay_as_they_are(spec: ConvSpec) -> None:
    assert in_one_row(spec) == spec
    assert position_in(spec, [4, 2]) == [4, 2]


def test_positions_are_those_of_the_memory() -> None:
    spec = ConvSpec("pointwise", 1, 1, (3, 4, 5), 1)
    places = [position_in(spec, [index]) for index in range(60)]
    assert places == [list(map(int, np.unravel_index(index, spec.in_size))) for index in range(60)]


@pytest.mark.parametrize("spec", [PLANE, ConvSpec("depthwise", 20, 20, (9, 10), 3, bias=True)], ids=str)
def test_equal_specs_give_equal_kernels(spec: ConvSpec) -> None:
    """A copy of a spec is another object: what is remembered of one must hold for the other."""
    owner, target = space.get("row_lanes"), machine()
    knobs = owner.default(spec, target)
    first, second = (owner.schedule(ConvSpec.parse(str(spec)), target, knobs)["main"] for _ in range(2))
    shapes = [[tuple(map(int, parameter.shape)) for parameter in main.params] for main in (first, second)]
    assert shapes[0] == shapes[1]
    assert (shapes[0][0], shapes[0][-1]) == (spec.in_shape, spec.out_shape)
