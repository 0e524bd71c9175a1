"""Channels-first filtering of one outer dimension: what is accepted, how it is cut, and kernels at corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.filtered_planes import filtered_planes
from convtune.schedules.filtered_planes_plan import Plan, axis_of, plan_of
from synthetic_spaces import machine
from test_conformance import check

from convtune import space
from convtune.runtime.packing import apply
from convtune.space import all_knobs
from convtune.spec import ConvSpec

FRAMES = ConvSpec.parse("conv,n=2,ic=5,oc=13,in=11x3x9,k=3x1x1,p=1x0x0,bias,residual,act=relu,layout=NCDHW")
UNEVEN = ConvSpec.parse("conv,ic=3,oc=7,in=9x29,k=5x1,p=3:1x0,act=gelu,bias,residual,layout=NCHW")
MIDDLE = ConvSpec.parse("conv,n=3,ic=7,oc=5,in=2x13x17,k=1x3x1,layout=NCDHW")
SHORT = ConvSpec.parse("conv,ic=1,oc=3,in=3x19,k=3x1,p=1x0,layout=NCHW")
ALL = [FRAMES, UNEVEN, MIDDLE, SHORT]
ZEN4 = {"vector_bytes": 64, "vector_registers": 32, "mcpu": "znver4", "l2_bytes": 1 << 20}


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("in=5x7x9,k=3x1x1,layout=NCDHW", True),
        ("in=5x7x9,k=1x3x1,layout=NCDHW", True),
        ("in=5x7x9,k=3x1x1,layout=NDHWC", False),  # channels are lanes there
        ("in=5x7x9,k=1x1x3,layout=NCDHW", False),  # the innermost dimension
        ("in=5x7x9,k=3x3x1,layout=NCDHW", False),
        ("in=5x7x9,k=3x1x1,s=2x1x1,layout=NCDHW", False),
        ("in=5x7x9,k=3x1x1,s=1x1x2,layout=NCDHW", False),
        ("in=5x7x9,k=3x1x1,p=0x1x0,layout=NCDHW", False),  # positions would not be one run
        ("in=5x7x9,k=3x1x1,p=0x1:-1x0,layout=NCDHW", False),  # as many positions, but others
        ("in=9x7,k=3x1,layout=NCHW", False),  # no vector of positions
        ("in=9,k=3,layout=NCW", False),
    ],
)
def test_it_takes_kernels_of_one_outer_dimension(text: str, accepted: bool) -> None:
    assert filtered_planes.takes(ConvSpec.parse(f"conv,ic=4,oc=6,{text}"), machine()) == accepted


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_blocks_and_tiles_reach_all_positions_and_stay_inside(spec: ConvSpec) -> None:
    for knobs in all_knobs(filtered_planes, spec, machine()):
        plan = plan_of(spec, machine(), knobs)
        assert plan.vectors <= plan.block and plan.width <= plan.inner
        assert plan.width * plan.position_blocks >= plan.inner and plan.tiles * plan.vectors >= plan.block
        assert plan.held_shape[1] >= plan.depth * plan.width and plan.held_shape[1] >= plan.run * plan.width


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_tiles_that_are_no_edges_read_x_and_write_y_alone(spec: ConvSpec) -> None:
    for knobs in all_knobs(filtered_planes, spec, machine()):
        plan = plan_of(spec, machine(), knobs)
        for tile in range(plan.axis.tiles):
            read = [plan.axis.input(0, tile, 0) + j for j in range(plan.alpha)]
            outputs = [tile * plan.axis.m + i for i in range(plan.axis.m)]
            inside = all(0 <= d < plan.axis.size for d in read) and all(o < plan.axis.out for o in outputs)
            assert inside == (tile not in plan.edges)


def test_filters_are_packed_by_point_block_and_input_channel() -> None:
    target = machine()
    for knobs in all_knobs(filtered_planes, FRAMES, target):
        plan = plan_of(FRAMES, target, knobs)
        weight = np.random.default_rng(0).standard_normal((13, 5, 3, 1, 1))
        packed = apply(filtered_planes.pack(FRAMES, target, knobs)[0], weight.astype(np.float32))
        assert packed.shape == plan.u_shape
        g = np.array(plan.filter.g, float)
        for oc in range(13):
            block, channel = divmod(oc, plan.outputs)
            assert np.allclose(packed[:, block, :, channel], g @ weight[oc, :, :, 0, 0].T, atol=1e-5)


def test_v_and_m_share_memory() -> None:
    """M of a point takes the place of V of the one before: less than both have."""
    plan = Plan(axis_of(FRAMES, 3), 1, 45, 64, 1, 3136, 16, 8, 2, 14)
    assert plan.task_bytes < 0.75 * 4 * plan.alpha * (plan.depth + plan.run) * plan.width


def test_the_default_of_frames_is_filtered_where_positions_are_many() -> None:
    """What `minimal_filtering` transposes took 1.24 times as long on Zen 4."""
    spec = ConvSpec.parse("conv,ic=45,oc=64,in=16x56x56,k=3x1x1,p=1x0x0,layout=NCDHW")
    target = machine(**ZEN4)
    assert space.default_candidate(spec, target).space == filtered_planes.name
    assert plan_of(spec, target, filtered_planes.default(spec, target)).block > 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (FRAMES, {"m_tile": 4, "block": 3, "channels": 7}),
        (FRAMES, {"m_tile": 6, "block": 1, "channels": 13}),
        (UNEVEN, {"m_tile": 2, "block": 3}),
        (UNEVEN, {"m_tile": 3, "block": 2}),
        (MIDDLE, {"m_tile": 6}),
        (MIDDLE, {"m_tile": 2, "block": 2}),
        (SHORT, {}),
    ],
    ids=str,
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(filtered_planes, spec, target, corner(filtered_planes, spec, target, wanted))
