"""Grouped channels-first convolution with stride 2 by lines of residues: what lines hold, and kernels at corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.shifted_residues import shifted_residues
from convtune.schedules.shifted_residues_plan import plan_of
from synthetic_spaces import machine
from test_conformance import check

from convtune import space
from convtune.space import all_knobs
from convtune.spec import ConvSpec

SQUARE = ConvSpec.parse("grouped,n=2,ic=12,oc=16,in=11x13,k=3,s=2,p=1,g=4,bias,residual,act=relu,layout=NCHW")
UNEVEN = ConvSpec.parse("grouped,ic=15,oc=9,in=9x29,k=4x2,s=3x2,p=3:1x0:-1,g=3,act=gelu,bias,layout=NCHW")
DILATED = ConvSpec.parse("grouped,ic=10,oc=14,in=17x37,k=2x3,s=1x2,d=1x3,p=1:0x2:5,g=2,residual,layout=NCHW")
WIDE = ConvSpec.parse("grouped,n=3,ic=4,oc=8,in=5x12,k=1x5,s=2,p=0x3,g=2,act=silu,layout=NCHW")
ALL = [SQUARE, UNEVEN, DILATED, WIDE]


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("in=9x11,k=3,s=2,p=1,layout=NCHW", True),
        ("in=9x11,k=3,s=3x2,layout=NCHW", True),
        ("in=9x11,k=3,s=2,layout=NHWC", False),  # channels are lanes there
        ("in=9x11,k=3,layout=NCHW", False),  # nothing to take apart
        ("in=9x13,k=3,s=3,layout=NCHW", False),
        ("in=9x11,k=1,s=2,layout=NCHW", False),
        ("in=9x5,k=3,s=2,p=1,layout=NCHW", False),  # no vector of columns
        ("in=19,k=3,s=2,layout=NCW", False),
    ],
)
def test_it_takes_channels_first_images_of_stride_2(text: str, accepted: bool) -> None:
    assert shifted_residues.takes(ConvSpec.parse(f"grouped,ic=12,oc=18,g=3,{text}"), machine()) == accepted


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_each_tap_of_an_output_is_a_line_so_many_positions_further(spec: ConvSpec) -> None:
    for knobs in all_knobs(shifted_residues, spec, machine()):
        plan = plan_of(spec, machine(), knobs)
        rows, columns = plan.rows, plan.columns
        lines = np.full((len(plan.residues), plan.line, 2), 1 << 20)
        for number, (down, along) in enumerate(plan.residues):
            for i in range(plan.reached):
                for j in range(plan.pitch):
                    place = i * rows.stride + down - rows.before, j * columns.stride + along - columns.before
                    lines[number, i * plan.pitch + j] = place
                    assert (0 <= place[1] < columns.size) == (j in plan.inside(along))
        for number, (kh, kw) in enumerate(np.ndindex(rows.taps, columns.taps)):
            line, shift = plan.taps[number]
            for row in range(plan.block):
                for column in range(columns.out):
                    wanted = rows.first(row) + kh * rows.dilation, columns.first(column) + kw * columns.dilation
                    assert tuple(lines[line, row * plan.pitch + column + shift]) == wanted
            assert plan.positions + shift <= plan.line
        assert plan.vectors * plan.lanes <= plan.positions <= plan.pieces * plan.vectors * plan.lanes
        assert plan.block <= rows.out <= plan.block * plan.blocks


def test_the_default_of_large_strided_images_takes_inputs_apart_once() -> None:
    """Direct sums that permute for each block of channels took 0.85 to 1.6 times as long on Zen 4, by process."""
    spec = ConvSpec.parse("grouped,ic=256,oc=256,in=56x56,k=3,s=2,p=1,g=32,layout=NCHW")
    zen4 = machine(vector_bytes=64, vector_registers=32, mcpu="znver4", l2_bytes=1 << 20)
    assert space.default_candidate(spec, zen4).space == shifted_residues.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (SQUARE, {"row_blocks": 1}),
        (SQUARE, {"row_blocks": 2}),
        (UNEVEN, {"row_blocks": 1}),
        (UNEVEN, {}),
        (DILATED, {"row_blocks": 1}),
        (DILATED, {"channels": 7}),
        (WIDE, {}),
    ],
    ids=str,
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(shifted_residues, spec, target, corner(shifted_residues, spec, target, wanted))
