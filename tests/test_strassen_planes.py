"""Strassen's algorithm, channels first: tiles that cover planes, positions written once, kernels at the corners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.strassen_planes import strassen_planes
from convtune.schedules.strassen_planes_plan import plan_of
from repeating import differing_calls
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec, count
from convtune.targets import CpuTarget

LONG = ConvSpec.parse("pointwise,n=2,ic=70,oc=45,in=5x7,k=1x1,bias,act=gelu,residual")
ODD = ConvSpec.parse("conv,ic=65,oc=47,in=99,k=1,bias,act=relu")
FAR = ConvSpec.parse("pointwise,ic=66,oc=64,in=2x4x512,k=1x1x1,residual")  # planes that displace each other


@pytest.mark.parametrize("spec", [LONG, ODD, FAR], ids=str)
def test_tiles_reach_the_end_and_begin_inside(spec: ConvSpec) -> None:
    candidates = list(all_knobs(strassen_planes, spec, machine()))
    assert candidates
    for knobs in candidates:
        plan = plan_of(spec, machine(), knobs)
        covered = 2 * (plan.whole_tiles * plan.width + plan.last_vectors * plan.lanes)
        assert 0 <= covered - count(spec.out_size) == plan.overlap < 2 * plan.lanes
        assert 0 <= plan.last_vectors <= plan.vectors and plan.whole_tiles > 0
        assert (plan.last_vectors > 0 or plan.overlap == 0) and 2 * plan.width <= count(spec.out_size)
        assert plan.outputs * plan.vectors + plan.vectors < machine().vector_registers


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("pointwise,ic=64,oc=16,in=2x8,k=1x1", True),
        ("conv,ic=64,oc=16,in=16,k=1", True),
        ("pointwise,ic=63,oc=16,in=2x8,k=1x1", False),  # sums take longer than a product
        ("pointwise,ic=64,oc=15,in=2x8,k=1x1", False),
        ("pointwise,ic=64,oc=16,in=3x5,k=1x1", False),  # a half is less than a vector
        ("pointwise,ic=64,oc=16,in=2x8,k=1x1,layout=NHWC", False),
        ("conv,ic=64,oc=16,in=9x9,k=1x1,s=2", False),
        ("conv,ic=64,oc=16,in=9x9,k=1x1,p=1", False),
        ("grouped,ic=128,oc=64,in=9x9,k=1x1,g=2", False),
    ],
)
def test_takes_products_that_halve(text: str, taken: bool) -> None:
    assert machine().lanes == 8
    assert strassen_planes.takes(ConvSpec.parse(text), machine()) is taken


@pytest.mark.parametrize("spec", [LONG, ODD, FAR], ids=str)
def test_inputs_are_read_in_place_only_where_halves_are_alike_and_near(spec: ConvSpec) -> None:
    left = {knobs["left"] for knobs in all_knobs(strassen_planes, spec, machine())}
    assert left == ({"sums", "copies"} if spec == LONG else {"copies"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (LONG, {"vectors": 2, "parts": 1, "left": "sums"}),
        (LONG, {"vectors": 1, "parts": 2, "left": "copies"}),
        (ODD, {"vectors": 2, "tile_block": 2}),
        (ODD, {"vectors": 3, "tile_block": 1}),
        (FAR, {"parts": 2}),
    ],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(strassen_planes, spec, target, corner(strassen_planes, spec, target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets(), ids=lambda target: target.name)
def test_the_default_of_each_vector_width_is_right(target: CpuTarget) -> None:
    check(strassen_planes, LONG, target, strassen_planes.default(LONG, target))


@pytest.mark.slow
def test_fetching_ahead_changes_nothing() -> None:
    target = replace(runnable("x86-64-v3"), l2_bytes=8192)  # less than x, and less than U
    knobs = corner(strassen_planes, LONG, target, {"parts": 1, "tile_block": 1, "left": "sums"})
    check(strassen_planes, LONG, target, knobs)


@pytest.mark.slow
def test_positions_of_two_tiles_are_written_by_one() -> None:
    spec, target = ConvSpec.parse("pointwise,ic=256,oc=128,in=7x7,k=1x1"), runnable("x86-64-v3")
    knobs = corner(strassen_planes, spec, target, {"vectors": 2, "tile_block": 1, "parts": 1})  # both tiles at once
    assert differing_calls(strassen_planes, spec, target, knobs) == 0
