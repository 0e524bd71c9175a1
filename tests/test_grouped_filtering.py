"""Grouped convolution filtered along its rows: how columns and channels are cut, and kernels at corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.grouped_filtering import grouped_filtering
from convtune.schedules.grouped_filtering_plan import Columns, Plan, axes_of, plan_of
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec

NARROW = ConvSpec.parse("grouped,n=2,ic=16,oc=16,in=5x11,k=3x3,p=1,g=8,bias,act=gelu,layout=NHWC")
UNEVEN = ConvSpec.parse("grouped,ic=12,oc=16,in=7x23,k=3x3,p=4,g=4,act=relu,residual,layout=NHWC")
STRIDED = ConvSpec.parse("grouped,ic=14,oc=16,in=9x13,k=2x3,s=2,p=1,g=2,layout=NHWC")
PLANES = ConvSpec.parse("grouped,n=2,ic=12,oc=16,in=7x23,k=3x2,s=1x2,p=4,g=4,act=gelu,residual,bias,layout=NCHW")
SMALL = ConvSpec.parse("grouped,n=2,ic=14,oc=16,in=7x7,k=5x3,p=2x1,g=2,act=relu,layout=NCHW")
STRIDED_PLANES = ConvSpec.parse("grouped,ic=18,oc=48,in=13x9,k=3,s=2,p=1,g=6,residual,layout=NCHW")
LONG = ConvSpec.parse("grouped,n=3,ic=10,oc=16,in=37,k=5,s=3,p=2,g=2,bias,layout=NWC")


def columns(m: int, taps: int, stride: int, before: int = 0, size: int = 29, out: int = 9) -> Columns:
    return Columns(m, taps, stride, 1, before, size, out)


@pytest.mark.parametrize(("m", "taps", "stride"), [(1, 3, 1), (2, 3, 1), (7, 3, 1), (4, 3, 2), (3, 5, 3), (1, 5, 3)])
def test_tiles_and_parts_make_the_outputs(m: int, taps: int, stride: int) -> None:
    """Each output is the sum of its parts, of the inputs and taps that they say they have."""
    cut = columns(m, taps, stride, before=2)
    rng = np.random.default_rng(m)
    x, weight = rng.integers(-9, 9, cut.size).astype(float), rng.integers(-9, 9, taps).astype(float)
    padded = np.pad(x, (2, 64))
    kernel = np.pad(weight, (0, cut.parts * cut.r - taps)).reshape(cut.r, cut.parts)
    for tile in range(cut.tiles):
        sums = np.zeros(cut.m)
        for k in range(cut.parts):
            group = tile if m > 1 else tile * cut.step + cut.offset(k)
            first = cut.input(group, k if m > 1 else 0)
            read = padded[first + 2 :: stride][: cut.inputs(k)]
            taps_met = kernel[: len(read) - m + 1, k]
            sums += [read[i : i + len(taps_met)] @ taps_met for i in range(cut.m)]
        wanted = [padded[o * stride : o * stride + taps] @ weight for o in range(tile * m, tile * m + m)]
        assert np.array_equal(sums, wanted)


@pytest.mark.parametrize(("m", "taps", "stride"), [(7, 3, 1), (4, 3, 2), (3, 5, 3), (2, 4, 3), (2, 5, 2), (3, 6, 3)])
def test_products_of_places_make_the_outputs(m: int, taps: int, stride: int) -> None:
    """With the filters that are packed, each product once."""
    cut = columns(m, taps, stride)
    assert cut.filter is not None
    rng = np.random.default_rng(taps)
    x, weight = rng.standard_normal(64), rng.standard_normal(taps)
    filters = (np.array(cut.weights) @ weight).reshape(cut.filters, cut.side_by_side)
    sums, number = np.zeros(cut.places), 0
    for places, parts in cut.products_of:
        for place in places:
            for k in parts:
                read = x[cut.input(0, k) :: stride][: cut.inputs(k)]
                plain = place >= cut.alpha
                value = read[place - cut.alpha] if plain else np.array(cut.filter.bt, float)[place] @ read
                sums[place] += value * filters[cut.alpha if plain else place, cut.within(k)]
                number += 1
    made = np.array(cut.filter.at, float) @ sums[: cut.alpha] + (sums[cut.alpha :] if cut.plain else 0)
    assert np.allclose(made, [x[o * stride :][:taps] @ weight for o in range(m)])
    assert number * cut.tiles == cut.products


@pytest.mark.parametrize(("m", "taps", "stride", "before"), [(7, 3, 1, 1), (2, 3, 1, 5), (4, 3, 2, 1), (1, 3, 1, 0)])
def test_inner_groups_read_x_alone(m: int, taps: int, stride: int, before: int) -> None:
    cut = columns(m, taps, stride, before)
    for group in range(cut.groups):
        read = [cut.input(group, j) + i * stride for j in range(cut.group) for i in range(cut.inputs(j))]
        assert (group in cut.inner) == all(0 <= column < cut.size for column in read)


@pytest.mark.parametrize(
    ("taps", "stride", "m", "products"), [(3, 1, 7, 18), (3, 1, 4, 18), (3, 2, 4, 27), (3, 1, 1, 27)]
)
def test_products_are_counted(taps: int, stride: int, m: int, products: int) -> None:
    """Of 9 outputs: a tile of F(7, 3) has 9, of F(4, 3) 6; with stride 2 of even inputs 5, of odd ones 4."""
    assert columns(m, taps, stride).products == products


@pytest.mark.parametrize(("groups", "depth", "run"), [(8, 2, 2), (4, 3, 4), (2, 7, 8)])
def test_lanes_hold_the_same_channel_of_each_group(groups: int, depth: int, run: int) -> None:
    rows, cut = axes_of(NARROW, 1)
    plan = Plan(rows, cut, 1, groups, depth, run, 16, 2, 2, 1, 1, 1)
    x = np.array([(group, ic) for group in range(plan.shared) for ic in range(depth)])
    assert [tuple(x[i]) for i in plan.together] == [(g, ic) for ic in range(depth) for g in range(plan.shared)]
    sums = np.array([(group, oc) for oc in range(run) for group in range(plan.shared)])
    assert [tuple(sums[i]) for i in plan.apart] == [(g, oc) for g in range(plan.shared) for oc in range(run)]


@pytest.mark.parametrize("spec", [NARROW, UNEVEN, STRIDED, LONG, PLANES, STRIDED_PLANES], ids=str)
def test_tiles_fit_in_their_tasks(spec: ConvSpec) -> None:
    target = machine()
    for knobs in all_knobs(grouped_filtering, spec, target):
        plan = plan_of(spec, target, knobs)
        assert plan.high <= plan.rows.out // plan.blocks and plan.wide <= plan.columns.tiles


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (NARROW, {"w_tile": 1, "row_blocks": 2}),
        (NARROW, {"w_tile": 4, "rows": 2}),
        (UNEVEN, {"w_tile": 6, "rows": 3}),
        (STRIDED, {"w_tile": 4, "rows": 3}),
        (STRIDED, {"w_tile": 2, "rows": 5, "row_blocks": 1, "units": 2}),
        (LONG, {"w_tile": 2}),
        (PLANES, {"w_tile": 3, "rows": 5}),
        (SMALL, {"w_tile": 3, "rows": 7}),
        (SMALL, {"w_tile": 1, "rows": 3}),
        (STRIDED_PLANES, {"w_tile": 7, "rows": 5}),
    ],
    ids=str,
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(grouped_filtering, spec, target, corner(grouped_filtering, spec, target, wanted))


def test_the_best_task_leaves_others_a_part_of_the_second_cache() -> None:
    """V, M, inputs and outputs of a task: of 850 kB of a cache of 1 MB all was slow where others ran too."""
    spec = ConvSpec.parse("grouped,ic=128,oc=128,in=56x56,k=3x3,p=1,g=32,layout=NHWC")
    target = machine(vector_bytes=64, vector_registers=32, mcpu="znver4", l2_bytes=1 << 20)
    best = min(
        all_knobs(grouped_filtering, spec, target), key=lambda knobs: grouped_filtering.estimate(spec, target, knobs)
    )
    plan = plan_of(spec, target, best)
    moved = plan.rows.reached(plan.block) * 56 * plan.inputs + plan.block * 56 * plan.outputs
    held = 4 * plan.span * (plan.columns.places * (plan.v_point + plan.m_point) + moved)
    assert held <= target.l2_bytes / 2
