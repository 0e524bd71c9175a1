"""Grouped 1 x 1 by vectors across groups: where a vector's sums come from, and kernels at the domain's corners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.grouped_pointwise import grouped_pointwise
from convtune.schedules.grouped_pointwise_plan import Plan
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec

SHUFFLED = ConvSpec.parse("shuffled_grouped,n=2,ic=15,oc=35,in=5x7,k=1x1,g=5,bias,act=gelu,layout=NHWC")
AT_ONCE = ConvSpec.parse("shuffled_grouped,n=2,ic=15,oc=21,in=5x7,k=1x1,g=3,act=relu,residual,layout=NHWC")
GROUPED = ConvSpec.parse("grouped,n=3,ic=14,oc=49,in=13,k=1,g=7,bias,act=relu,residual,layout=NWC")


def plan(channels: int, groups: int, vectors: int) -> Plan:
    return Plan(channels, groups, 3, 8, columns=2, tiles=2, parts=1, shuffled=True, vectors=vectors)


@pytest.mark.parametrize(("channels", "groups"), [(60, 3), (35, 5), (17, 1), (24, 12)])
def test_outputs_are_the_shuffled_channels(channels: int, groups: int) -> None:
    """The channel shuffle as frameworks write it: to (groups, run), transposed, flattened."""
    want = np.arange(channels).reshape(groups, -1).T.ravel()
    for first in range(channels - 7):
        assert plan(channels, groups, 1).source(first) == tuple(want[first : first + 8])


def test_all_channels_in_a_tile_are_stored_from_whole_vectors() -> None:
    found = plan(35, 5, 5)
    assert found.at_once and not plan(35, 5, 4).at_once and not replace(found, long=True).at_once
    for first in (0, 8, 27):
        starts = found.whole_vectors(found.source(first))
        assert {start % 8 for start in starts} == {0} and {place // 8 * 8 for place in found.source(first)} == {*starts}


@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_vectors_have_each_channel_once_and_know_their_groups(vectors: int) -> None:
    found = plan(35, 5, vectors)
    assert [vector for block in found.blocks for vector in block] == [0, 1, 2, 3, 4]
    assert [found.groups_of([vector]) for vector in range(5)] == [(0, 1), (1, 2), (2, 3), (3, 4), (4,)]
    assert [found.mixed([vector]) for vector in range(5)] == [{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4}]
    assert found.weight_shape == (len(found.blocks), 3, vectors, 8)


@pytest.mark.parametrize(("channels", "half"), [(35, 4), (36, 4), (37, 0), (32, 0)])
def test_two_positions_share_a_vector_that_is_half_empty(channels: int, half: int) -> None:
    """Each channel of each position has a lane of a sum of its own."""
    found = replace(plan(channels, 1, 3), columns=3)
    assert found.half == half
    for block in found.blocks:
        lanes = [(number, first + lane) for _, number, first, _, width in found.kept(block) for lane in range(width)]
        assert len({*lanes}) == len(lanes) and {number for number, _ in lanes} == set(range(found.sums(block)))
    kept = {(c, start + lane) for b in found.blocks for c, _, _, start, width in found.kept(b) for lane in range(width)}
    assert {(c, channel) for c in range(3) for channel in range(channels)} <= kept


@pytest.mark.parametrize("spec", [SHUFFLED, GROUPED], ids=str)
def test_blocks_fit_in_their_tasks(spec: ConvSpec) -> None:
    positions = spec.batch * int(np.prod(spec.out_size))
    for knobs in all_knobs(grouped_pointwise, spec, machine()):
        assert int(knobs["columns"]) * int(knobs["tiles"]) <= positions // int(knobs["parts"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (AT_ONCE, {"vectors": 3, "columns": 2}),
        (SHUFFLED, {"vectors": 2, "columns": 3}),
        (GROUPED, {"columns": 3, "vectors": 2}),
    ],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(grouped_pointwise, spec, target, corner(grouped_pointwise, spec, target, wanted))
