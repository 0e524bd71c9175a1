"""Left-over channels of several positions in one vector: which share one, and kernels at the domain's corners."""

from __future__ import annotations

from typing import Any

import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.pointwise_shared import Plan, pointwise_shared, share_of
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec, count
from convtune.targets import CpuTarget

HALF = ConvSpec.parse("pointwise,n=2,ic=7,oc=12,in=5x7,k=1x1,bias,act=gelu,residual,layout=NHWC")
LESS = ConvSpec.parse("pointwise,ic=13,oc=19,in=31,k=1,bias,layout=NWC")
SPACE = ConvSpec.parse("conv,n=3,ic=5,oc=36,in=2x3x4,k=1x1x1,act=relu,layout=NDHWC")


@pytest.mark.parametrize(("rest", "share"), [(1, 4), (2, 4), (3, 4), (4, 4), (5, 2), (8, 2), (9, 1)])
def test_positions_share_a_vector_as_long_as_they_fit(rest: int, share: int) -> None:
    assert share_of(rest, 16) == share
    assert rest * share <= 16 or share == 1


@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_blocks_have_each_vector_once_and_the_last_one_the_rest(vectors: int) -> None:
    plan = Plan(channels=44, depth=3, lanes=8, share=2, columns=4, vectors=vectors, parts=1)
    assert [vector for block in plan.blocks for vector in block] == [0, 1, 2, 3, 4]
    assert [plan.ends(block) for block in plan.blocks].index(True) == len(plan.blocks) - 1
    assert sum(plan.sums(block) for block in plan.blocks) == 4 * 5 + 2
    assert plan.left <= plan.width


@pytest.mark.parametrize(
    ("channels", "taken"), [(8, False), (12, True), (13, False), (16, False), (17, True), (19, True), (68, True)]
)
def test_only_where_a_vector_would_be_half_empty(channels: int, taken: bool) -> None:
    spec = ConvSpec.parse(f"pointwise,ic=32,oc={channels},in=9x9,k=1x1,layout=NHWC")
    assert machine().lanes == 8
    assert pointwise_shared.takes(spec, machine()) is taken


@pytest.mark.parametrize("spec", [HALF, LESS, SPACE], ids=str)
def test_tiles_fit_in_their_tasks_and_share_whole_vectors(spec: ConvSpec) -> None:
    candidates = list(all_knobs(pointwise_shared, spec, machine()))
    assert candidates
    for knobs in candidates:
        assert int(knobs["columns"]) <= spec.batch * count(spec.out_size) // int(knobs["parts"])
        assert int(knobs["columns"]) % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [(HALF, {"columns": 6}), (LESS, {"columns": 4}), (SPACE, {"vectors": 3}), (SPACE, {"vectors": 2})],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(pointwise_shared, spec, target, corner(pointwise_shared, spec, target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets(), ids=lambda target: target.name)
def test_the_default_of_each_vector_width_is_right(target: CpuTarget) -> None:
    """Of 3 channels beside whole vectors: of 4 positions in 16 lanes, of 2 in 8; 4 lanes are too few to share."""
    assert pointwise_shared.takes(LESS, target) is (target.lanes > 4)
    if target.lanes > 4:
        check(pointwise_shared, LESS, target, pointwise_shared.default(LESS, target))
