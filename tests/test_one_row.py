"""Which convolutions read each output's own place only, and that equal specs give equal kernels of rows."""

from __future__ import annotations

import pytest
from convtune.schedules.one_row import reads_own_place
from synthetic_spaces import machine

from convtune import ConvSpec, space

PLANE = ConvSpec("pointwise", 5, 7, (3, 11), 1, batch=2, residual=True)


@pytest.mark.parametrize(
    "spec",
    [
        PLANE,
        PLANE.replace(layout="NHWC"),
        ConvSpec("grouped", 6, 4, (2, 3, 5), 1, groups=2),
        ConvSpec("dilated", 3, 4, (5, 7), 1, dilation=(1, 4)),
    ],
    ids=str,
)
def test_kernels_of_one_tap_that_do_not_move_read_their_own_place(spec: ConvSpec) -> None:
    assert reads_own_place(spec)


@pytest.mark.parametrize(
    "spec",
    [
        PLANE.replace(stride=(1, 2)),
        PLANE.replace(padding=(0, (0, 1))),
        PLANE.replace(padding=((0, -1), 0)),
        ConvSpec("conv", 5, 7, (3, 11), (1, 3)),
    ],
    ids=str,
)
def test_others_do_not(spec: ConvSpec) -> None:
    assert not reads_own_place(spec)


@pytest.mark.parametrize("spec", [PLANE, ConvSpec("depthwise", 20, 20, (9, 10), 3, bias=True)], ids=str)
def test_equal_specs_give_equal_kernels(spec: ConvSpec) -> None:
    """A copy of a spec is another object: what is remembered of one must hold for the other."""
    owner, target = space.get("row_lanes"), machine()
    knobs = owner.default(spec, target)
    first, second = (owner.schedule(ConvSpec.parse(str(spec)), target, knobs)["main"] for _ in range(2))
    shapes = [[tuple(map(int, parameter.shape)) for parameter in main.params] for main in (first, second)]
    assert shapes[0] == shapes[1]
    assert (shapes[0][0], shapes[0][-1]) == (spec.in_shape, spec.out_shape)
