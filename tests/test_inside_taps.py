"""The direct register tile that leaves out taps on padding: right, and with nothing but inputs multiplied."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conformance_cases import corner, runnable_targets
from convtune.schedules.axes import Axis, view_of
from convtune.schedules.inside_taps_plan import input_rows, tiles_of
from test_conformance import check

import convtune
from convtune import ConvSpec, space, targets
from convtune.space import Candidate

INSIDE = space.get("inside_taps")
AXES = [
    Axis(size=7, out=7, taps=3, stride=1, dilation=1, before=1),
    Axis(size=13, out=13, taps=3, stride=1, dilation=7, before=7),
    Axis(size=2, out=9, taps=4, stride=1, dilation=1, before=5),
    Axis(size=5, out=4, taps=2, stride=3, dilation=2, before=4),
    Axis(size=31, out=31, taps=5, stride=1, dilation=1, before=2),
]
ODD = [
    "conv,ic=5,oc=19,in=7x11,k=3x3,n=2,p=1,layout=NHWC,bias,act=gelu,residual",
    "dilated,ic=60,oc=37,in=13x9,k=3x3,p=7,d=7,layout=NHWC",
    "conv,ic=56,oc=70,in=2x3,k=4x5,s=2x3,p=5x4,layout=NHWC,act=relu",
    "conv,ic=172,oc=7,in=3x5x4,k=3x1x1,n=3,s=2x1x1,p=1x0x0,layout=NDHWC,bias,residual",
    "conv,ic=40,oc=33,in=2x5x3,k=3x3x3,p=1,layout=NDHWC",
    "dilated,ic=172,oc=16,in=29,k=3,p=5:2,d=4,layout=NWC",
]


@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_tiles_hold_every_tap_of_every_column_once(axis: Axis, columns: int) -> None:
    found = [
        (group.first + tile * group.columns + column, taps.first + tap)
        for group in tiles_of(axis, columns)
        for tile in range(group.count)
        for taps in group.taps
        for tap in range(taps.count)
        for column in range(*taps.columns)
    ]
    reads = itertools.product(range(axis.out), range(axis.taps))
    inside = [(o, t) for o, t in reads if 0 <= o * axis.stride - axis.before + t * axis.dilation < axis.size]
    assert sorted(found) == inside


def test_tiles_that_use_the_same_taps_share_one_code() -> None:
    inner = [group for group in tiles_of(AXES[-1], 4) if group.count > 1]
    assert [(group.first, group.count) for group in inner] == [(4, 6)]


@pytest.mark.parametrize("row_block", [1, 2, 5, 99])
def test_input_rows_are_those_that_tasks_read(row_block: int) -> None:
    spec = ConvSpec("dilated", 1, 1, (4, 7, 3), (2, 3, 1), batch=2, stride=(1, 2, 1), padding=(1, 2, 0), dilation=2)
    depth, rows, _ = view_of(spec).axes
    outs = list(itertools.product(range(spec.batch), range(depth.out), range(rows.out)))
    total = 0
    for first in range(0, len(outs), row_block):
        total += len(
            {
                (n, d - 1 + 2 * kd, 2 * h - 2 + 2 * kh)
                for n, d, h in outs[first : first + row_block]
                for kd, kh in itertools.product(range(2), range(3))
                if 0 <= d - 1 + 2 * kd < 4 and 0 <= 2 * h - 2 + 2 * kh < 7
            }
        )
    assert input_rows(view_of(spec), row_block) == total


@pytest.mark.parametrize("turn", range(len(ODD)), ids=ODD)
def test_kernels_of_odd_sizes_are_right(turn: int) -> None:
    """With one part, and with parts whose sums lie in memory between them."""
    spec = ConvSpec.parse(ODD[turn])
    target = runnable_targets()[turn % len(runnable_targets())]
    target = replace(target, l2_bytes=1024 * target.vector_bytes)
    blocks = INSIDE.knobs(spec, target)["ic_block"]
    assert len(blocks) > 1 or spec.in_channels == 5
    for ic_block, sharing in zip((blocks[0], blocks[-1]), ("inputs", "weights")):
        rows = INSIDE.knobs(spec, target)["row_block"]
        wanted = {"ic_block": ic_block, "sharing": sharing, "row_block": rows[turn % len(rows)]}
        check(INSIDE, spec, target, corner(INSIDE, spec, target, wanted))


def test_nothing_is_multiplied_with_zeros_of_the_padding(tmp_path: Path) -> None:
    """An infinite weight would make them NaN."""
    spec = ConvSpec.parse("conv,ic=3,oc=5,in=5x6,k=3x3,p=1,layout=NHWC")
    target = targets.resolve("native", threads=1)
    knobs = INSIDE.default(spec, target)
    conv = convtune.compile(spec, target, candidate=Candidate(INSIDE.name, knobs))
    weight = np.ones((5, 3, 3, 3), np.float32)
    weight[:, :, 0, 0] = np.inf
    y = np.asarray(conv(np.ones(spec.in_shape, np.float32), weight))[0]
    finite = np.zeros((5, 6), bool)
    finite[0], finite[:, 0] = True, True
    assert not np.isnan(y).any()
    assert (np.isfinite(y).all(axis=-1) == finite).all()


def test_only_what_reads_padding_is_accepted() -> None:
    target = targets.resolve("x86-64-v3", threads=2)
    spec = ConvSpec("conv", 8, 8, (7, 7), 3, padding=1, layout="NHWC")
    assert INSIDE.accepts(spec, target)
    assert not INSIDE.accepts(spec.replace(padding=0), target)
    assert not INSIDE.accepts(spec.replace(layout="NCHW"), target)
    assert not INSIDE.accepts(spec.replace(variant="grouped", groups=2), target)


@pytest.mark.parametrize("name", ["x86-64-v4", "x86-64-v3"])
def test_a_layer_with_most_taps_on_padding_is_computed_without_them(name: str) -> None:
    target = replace(targets.resolve(name, threads=2), l2_bytes=1 << 20)
    spec = ConvSpec.parse("dilated,ic=512,oc=64,in=41x41,k=3x3,s=2,p=20,d=20,layout=NHWC")
    assert space.default_candidate(spec, target).space == INSIDE.name
