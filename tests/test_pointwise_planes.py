"""Pointwise tiles of positions: that they cover a plane, stay in registers, and kernels at the domain's corners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.pointwise_planes import pointwise_planes
from convtune.schedules.pointwise_planes_plan import plan_of
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec, count
from convtune.targets import CpuTarget

ENDS = ConvSpec.parse("pointwise,n=2,ic=7,oc=13,in=5x7,k=1x1,bias,act=gelu,residual")
SHUFFLED = ConvSpec.parse("shuffled_grouped,n=3,ic=15,oc=33,in=3x11,k=1x1,g=3,bias,act=relu,residual")
FAR = ConvSpec.parse("conv,ic=19,oc=20,in=2x4x512,k=1x1x1,bias")  # planes that displace each other


@pytest.mark.parametrize("spec", [ENDS, SHUFFLED, FAR], ids=str)
def test_tiles_reach_the_end_and_begin_inside(spec: ConvSpec) -> None:
    candidates = list(all_knobs(pointwise_planes, spec, machine()))
    assert candidates
    for knobs in candidates:
        plan = plan_of(spec, machine(), knobs)
        covered = plan.whole_tiles * plan.width + plan.last_vectors * plan.lanes
        assert 0 <= covered - count(spec.out_size) < plan.lanes
        assert max(plan.width, plan.last_vectors * plan.lanes) <= count(spec.out_size)
        assert plan.outputs * plan.vectors + plan.vectors < machine().vector_registers


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("pointwise,ic=3,oc=5,in=2x4,k=1x1", True),
        ("pointwise,ic=3,oc=5,in=7x1,k=1x1", False),  # less than a vector
        ("pointwise,ic=3,oc=5,in=2x4,k=1x1,layout=NHWC", False),
        ("pointwise,ic=3,oc=5,in=8x8,k=1x1,s=2", False),
        ("grouped,ic=4,oc=6,in=9x9,k=1x1,g=2,p=1", False),
    ],
)
def test_only_planes_that_stay_where_they_are(text: str, taken: bool) -> None:
    assert machine().lanes == 8
    assert pointwise_planes.takes(ConvSpec.parse(text), machine()) is taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (ENDS, {"vectors": 1, "parts": 1, "panel": "copied"}),
        (SHUFFLED, {"vectors": 2, "parts": 2, "panel": "none"}),
        (FAR, {"panel": "copied", "parts": 1}),
    ],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(pointwise_planes, spec, target, corner(pointwise_planes, spec, target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets(), ids=lambda target: target.name)
def test_the_default_of_each_vector_width_is_right(target: CpuTarget) -> None:
    check(pointwise_planes, SHUFFLED, target, pointwise_planes.default(SHUFFLED, target))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SHUFFLED, FAR], ids=str)
def test_fetching_ahead_changes_nothing(spec: ConvSpec) -> None:
    target = replace(runnable("x86-64-v3"), l2_bytes=1024)  # less than x
    check(pointwise_planes, spec, target, pointwise_planes.default(spec, target))
