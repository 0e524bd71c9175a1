"""Rows of products that roll through a ring: what each tile, chunk and band computes, and that the default finds it."""

from __future__ import annotations

import pytest
from conformance_cases import runnable
from convtune.schedules.rolling_plan import group_of, plan_of
from convtune.schedules.rolling_rows import rolling_rows
from synthetic_spaces import machine
from test_conformance import check

from convtune import space
from convtune.space import all_knobs
from convtune.spec import ConvSpec

SPECS = [
    # a partial last vector; zeros above and below further than the filter reaches, and rows in no output's reach
    "flattened,n=2,ic=5,oc=19,in=7x9,k=2x3,s=3x1,p=4x1,sbias=1,sact=relu/none,bias,residual,layout=NHWC",
    # dilated, so that the ring has slots that an output does not read; activations that are long, at every stage
    "flattened,ic=7,oc=33,in=11x13,k=3x2,d=2x3,p=2x5,sbias=1,sact=gelu/silu,bias,act=tanh,layout=NHWC",
    # groups of several rows, the last of a band not whole, and a band that begins within what another reads
    "flattened,n=2,ic=6,oc=21,in=19x13,k=5x3,p=3x1,sbias=1,sact=relu,bias,layout=NHWC",
    # one column, one row, and zeros after the last input cut off
    "flattened,ic=3,oc=8,in=9x1,k=5x1,p=2x0,layout=NHWC",
    "flattened,ic=9,oc=16,in=1x17,k=1x4,s=1x2,p=0x3:-1,sact=sigmoid,layout=NHWC",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_tile_chunk_and_band(text: str, which: int) -> None:
    spec, target = ConvSpec.parse(text), runnable("x86-64-v3")
    candidates = list(all_knobs(rolling_rows, spec, target))
    check(rolling_rows, spec, target, candidates[(len(candidates) - 1) * which // 2])


def test_chunks_have_whole_blocks_and_cover_all_channels() -> None:
    spec, target = ConvSpec.parse("flattened,ic=16,oc=200,in=9x9,k=3x3,p=1,layout=NHWC"), machine()
    for knobs in all_knobs(rolling_rows, spec, target):
        plan = plan_of(spec, target, knobs)
        assert plan.chunks * plan.chunk_blocks == plan.blocks
        assert (plan.blocks - 1) * plan.block + sum(plan.last_widths) == spec.out_channels
        assert plan.tile * plan.vectors + plan.vectors < target.vector_registers


def test_tiles_cross_the_ends_of_short_rows() -> None:
    assert group_of(width=28, rows=28, tile=14) == (1, 1.0)
    assert group_of(width=28, rows=28, tile=6) == (3, 1.0)
    assert group_of(width=224, rows=224, tile=6)[0] == 1  # 1.8 % are computed twice
    assert group_of(width=13, rows=2, tile=9) == (2, 27 / 26)


def test_a_group_of_rows_never_wraps_around_the_ring() -> None:
    spec, target = ConvSpec.parse("flattened,ic=8,oc=64,in=40x28,k=4x3,d=3x1,p=1,layout=NHWC"), machine()
    plans = [plan_of(spec, target, knobs) for knobs in all_knobs(rolling_rows, spec, target)]
    assert any(plan.group > 1 for plan in plans)
    for plan in plans:
        assert plan.slots % plan.group == 0
        assert plan.slots >= plan.rows.span - 1 + plan.group  # what an output reads is there when its group is made


@pytest.mark.parametrize("sizes", ["ic=64,oc=64,in=224x224", "ic=128,oc=128,in=112x112", "ic=256,oc=512,in=28x28"])
def test_the_default_keeps_what_lies_between_stages_in_cache(sizes: str) -> None:
    spec = ConvSpec.parse(f"flattened,{sizes},k=3x3,p=1,layout=NHWC")
    assert space.default_candidate(spec, machine()).space == rolling_rows.name
