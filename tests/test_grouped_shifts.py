"""Grouped channels-first filtering with shifts as taps: lines, blocks and vectors of rows, and kernels at corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.grouped_shifts import grouped_shifts
from convtune.schedules.grouped_shifts_plan import Plan, plan_of
from synthetic_spaces import machine
from test_conformance import check

from convtune import space
from convtune.runtime.packing import apply
from convtune.space import all_knobs
from convtune.spec import ConvSpec

SQUARE = ConvSpec.parse("grouped,n=2,ic=12,oc=16,in=11x13,k=3,p=1,g=4,bias,residual,act=relu,layout=NCHW")
UNEVEN = ConvSpec.parse("grouped,ic=15,oc=9,in=9x29,k=5x2,p=3:1x0:-1,g=3,act=gelu,bias,residual,layout=NCHW")
DILATED = ConvSpec.parse("grouped,ic=10,oc=14,in=7x17,k=2x3,d=1x3,p=1:0x2:5,g=2,layout=NCHW")
NARROW = ConvSpec.parse("grouped,n=3,ic=4,oc=8,in=13x5,k=3x1,p=1x0,g=2,act=silu,layout=NCHW")
ALL = [SQUARE, UNEVEN, DILATED, NARROW]
ZEN4 = {"vector_bytes": 64, "vector_registers": 32, "mcpu": "znver4", "l2_bytes": 1 << 20}


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("in=9x11,k=3,p=1,layout=NCHW", True),
        ("in=9x11,k=3x1,layout=NCHW", True),
        ("in=9x11,k=3,d=1x2,layout=NCHW", True),
        ("in=9x11,k=3,layout=NHWC", False),  # channels are lanes there
        ("in=9x11,k=1x3,layout=NCHW", False),  # nothing to filter
        ("in=9x11,k=3,s=2x1,layout=NCHW", False),
        ("in=9x11,k=3,s=1x2,layout=NCHW", False),  # neighbouring outputs read no neighbours
        ("in=9x11,k=3,d=2x1,layout=NCHW", False),
        ("in=9x3,k=3,p=1,layout=NCHW", False),  # no vector of columns
        ("in=9,k=3,layout=NCW", False),
        ("in=9x11x9,k=3x1x1,layout=NCDHW", False),
    ],
)
def test_it_takes_channels_first_images_of_stride_1(text: str, accepted: bool) -> None:
    assert grouped_shifts.takes(ConvSpec.parse(f"grouped,ic=12,oc=18,g=3,{text}"), machine()) == accepted


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_each_tap_of_an_output_is_the_line_so_many_positions_further(spec: ConvSpec) -> None:
    """And what lies outside of a row is a zero, of the padding or of that between tiles."""
    for knobs in all_knobs(grouped_shifts, spec, machine()):
        plan = plan_of(spec, machine(), knobs)
        columns, line = plan.columns, np.full(plan.line, np.nan)
        zeros = [*plan.gaps]
        zeros += [(plan.lead + t * plan.pitch + columns.size, plan.pitch - columns.size) for t in range(plan.block - 1)]
        for start, size in zeros:
            line[start : start + size] = 0
        for t in range(plan.block):
            start = plan.lead + t * plan.pitch
            line[start : start + columns.size] = 100 * t + np.arange(1, columns.size + 1)
        for t in range(plan.block):
            for out in range(columns.out):
                for tap in range(columns.taps):
                    column = columns.first(out) + tap * columns.dilation
                    wanted = 100 * t + column + 1 if 0 <= column < columns.size else 0
                    position = t * plan.pitch + out + tap * columns.dilation
                    assert line[plan.lead - plan.before + position] == wanted
        last = plan.positions - 1 + (columns.taps - 1) * columns.dilation
        assert plan.lead - plan.before + last < plan.line


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_blocks_and_pieces_reach_all_and_stay_inside(spec: ConvSpec) -> None:
    for knobs in all_knobs(grouped_shifts, spec, machine()):
        plan = plan_of(spec, machine(), knobs)
        assert plan.block <= plan.rows.tiles <= plan.block * plan.blocks
        assert plan.span * plan.spans == plan.groups and plan.passes * plan.outputs == plan.run
        assert plan.vectors * plan.lanes <= plan.positions <= plan.pieces * plan.vectors * plan.lanes


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("columns", [4, 5, 7, 14, 17, 28, 29, 56])
def test_vectors_of_a_row_reach_all_columns_with_few_lanes(lanes: int, columns: int) -> None:
    plan = plan_of(SQUARE, machine(vector_bytes=4 * lanes), {**next(all_knobs(grouped_shifts, SQUARE, machine()))})
    vectors = plan.vectors_of(columns)
    assert {column for start, width in vectors for column in range(start, start + width)} == set(range(columns))
    assert all(width <= lanes and width & (width - 1) == 0 for _, width in vectors)
    assert sum(width for _, width in vectors) < 2 * max(columns, 4)
    assert lanes < 16 or columns != 56 or vectors[-1] == (48, 8)


def test_filters_are_packed_by_group_point_block_and_input_channel() -> None:
    target = machine()
    for knobs in all_knobs(grouped_shifts, SQUARE, target):
        plan = plan_of(SQUARE, target, knobs)
        weight = np.random.default_rng(0).standard_normal((16, 3, 3, 3))
        packed = apply(grouped_shifts.pack(SQUARE, target, knobs)[0], weight.astype(np.float32))
        assert packed.shape == plan.u_shape
        g = np.array(plan.filter.g, float)
        for oc in range(16):
            block, channel = divmod(oc % 4, plan.outputs)
            filters = np.einsum("pr,irc->pic", g, weight[oc])
            assert np.allclose(packed[oc // 4, :, block, :, :, channel], filters, atol=1e-5)


def test_the_default_of_large_images_with_small_groups_shifts() -> None:
    """Direct sums took 1.25 times as long on Zen 4."""
    spec = ConvSpec.parse("grouped,ic=128,oc=128,in=56x56,k=3,p=1,g=32,layout=NCHW")
    target = machine(**ZEN4)
    assert space.default_candidate(spec, target).space == grouped_shifts.name
    plan: Plan = plan_of(spec, target, grouped_shifts.default(spec, target))
    assert plan.pieces * plan.vectors * plan.lanes < 1.03 * plan.positions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (SQUARE, {"m_tile": 4, "row_blocks": 1, "units": 1}),
        (SQUARE, {"m_tile": 2, "row_blocks": 3, "units": 2}),
        (SQUARE, {"m_tile": 6, "units": 4}),
        (UNEVEN, {"m_tile": 2, "row_blocks": 2}),
        (UNEVEN, {"m_tile": 3, "row_blocks": 1}),
        (DILATED, {"m_tile": 4}),
        (DILATED, {"row_blocks": 2, "units": 2}),
        (NARROW, {"m_tile": 4}),
    ],
    ids=str,
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(grouped_shifts, spec, target, corner(grouped_shifts, spec, target, wanted))
