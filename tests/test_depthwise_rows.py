"""Depthwise register tiles read in place: what they cover, what they read, and kernels at the corners of the domain."""

from __future__ import annotations

from typing import Any

import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.axes import axes_of, place, view_of
from convtune.schedules.depthwise_plan import Plan, plan_of
from convtune.schedules.depthwise_rows import depthwise_rows
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec

SPECS = [
    ConvSpec.parse(text)
    for text in (
        "depthwise,ic=37,oc=37,in=7x23,k=3x3,p=1,bias,act=relu,residual,layout=NHWC",
        "depthwise,n=2,ic=64,oc=64,in=11x13,k=3x3,s=2,p=1:0x0:1,act=gelu,layout=NHWC",
        "depthwise,ic=20,oc=20,in=5x9,k=13x11,p=6x5,residual,layout=NHWC",
        "depthwise,ic=48,oc=48,in=5x7x9,k=3x3x3,s=2x1x2,p=1,act=silu,layout=NDHWC",
        "depthwise,n=2,ic=24,oc=24,in=7x5x6,k=5x1x1,p=2x0x0,bias,layout=NDHWC",
        "depthwise,n=2,ic=19,oc=19,in=3x6x7,k=1x3x3,p=0x1x1,layout=NDHWC",
        "depthwise,ic=33,oc=33,in=211,k=4,p=3:0,d=2,layout=NWC",
        "depthwise,ic=3,oc=3,in=3x2,k=2x2,p=4x3,layout=NHWC",
    )
]  # fmt: skip


def plans(spec: ConvSpec) -> list[Plan]:
    target = machine()
    return [plan_of(spec, target, knobs) for knobs in all_knobs(depthwise_rows, spec, target)]


def taps_in_input(spec: ConvSpec, axis: int, out: int) -> int:
    """Counted in the padded input, element by element."""
    before, _ = spec.padding[axis]
    inside = range(before, before + spec.in_size[axis])
    return sum(out * spec.stride[axis] + tap * spec.dilation[axis] in inside for tap in range(spec.kernel[axis]))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tiles_compute_every_column_with_all_its_taps(spec: ConvSpec) -> None:
    for plan in plans(spec):
        found: dict[int, int] = {}
        for tile in range(plan.tiles):
            pairs = [pair for served in plan.reads(tile).values() for pair in served]
            assert len(set(pairs)) == len(pairs)
            for column in range(plan.columns):
                found[plan.start(tile) + column] = sum(served == column for served, _ in pairs)
        if len(found) == spec.out_size[-1]:  # else a plane's rows and columns are one row, where each has one tap
            expected = {out: taps_in_input(spec, spec.rank - 1, out) for out in range(spec.out_size[-1])}
        else:
            expected = dict.fromkeys(range(spec.out_size[-2] * spec.out_size[-1]), 1)
        assert found == expected


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tiles_that_share_a_code_read_alike_and_inside(spec: ConvSpec) -> None:
    for plan in plans(spec):
        axis = plan.view.columns
        for tile in plan.inner:
            reads = plan.reads(tile)
            assert reads == plan.reads(plan.inner.start)
            assert all(0 <= axis.first(plan.start(tile)) + offset < axis.size for offset in reads)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_candidates_fit(spec: ConvSpec) -> None:
    target = machine()
    for plan in plans(spec):
        assert plan.rows * plan.columns * plan.vectors < target.vector_registers
        assert plan.width <= plan.channels
        assert plan.rows <= plan.view.rows.out // plan.row_blocks
        assert not plan.split or plan.channels % plan.width == 0


def test_a_kernel_in_depth_alone_sees_planes_as_rows() -> None:
    view = view_of(SPECS[4])
    assert (view.batch, view.depth.out, view.rows.out, view.rows.taps, view.columns.out) == (2, 1, 7, 5, 30)
    assert place(SPECS[4], 1, (0, 3, 17), 2, SPECS[4].in_size) == [1, 3, 2, 5, 2]


def test_depth_that_no_tap_spans_is_images() -> None:
    view = view_of(SPECS[5])
    assert (view.batch, view.depth.out, view.rows.out, view.columns.out) == (6, 1, 6, 7)
    assert place(SPECS[5], 5, (0, 4, 6), 2, SPECS[5].in_size) == [1, 2, 4, 6, 2]
    assert [axis.size for axis in axes_of(SPECS[5])] == [3, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0, {"rows": 2, "row_blocks": 2}),
        (1, {"oc_order": "parallel", "chunk": 2}),
        (2, {"vectors": 2, "row_blocks": 2}),
        (3, {"row_blocks": 2, "chunk": 1}),
        (4, {"rows": 2, "columns": 4}),
        (5, {"row_blocks": 4}),
        (6, {"column_blocks": 1, "chunk": 2}),
    ],
)
def test_corners_are_right(number: int, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(depthwise_rows, SPECS[number], target, corner(depthwise_rows, SPECS[number], target, wanted))


@pytest.mark.slow
def test_blocks_of_the_depth_begin_where_the_last_ended() -> None:
    """TVM 0.27 makes wrong code of a loop that does not count from 0, inside a parallel one."""
    spec, target = SPECS[3], runnable_targets()[0]
    blocks = depthwise_rows.knobs(spec, target)["depth_blocks"][-1]
    assert blocks != 1
    check(depthwise_rows, spec, target, corner(depthwise_rows, spec, target, {"depth_blocks": blocks}))


@pytest.mark.slow
def test_planes_of_padding_are_not_read_with_one_tap_in_depth() -> None:
    spec, target = ConvSpec.parse("depthwise,ic=16,oc=16,in=5x5x5,k=1x3x3,p=1,layout=NDHWC"), runnable_targets()[0]
    check(depthwise_rows, spec, target, depthwise_rows.default(spec, target))
