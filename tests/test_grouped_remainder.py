"""Grouped 1 x 1 whose left-over channels share a vector by input channels: what is added up, and corners' kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.grouped_remainder import Plan, _parts, grouped_remainder
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec

SHUFFLED = ConvSpec.parse("shuffled_grouped,n=2,ic=12,oc=36,in=5x7,k=1x1,g=3,bias,act=gelu,residual,layout=NHWC")
GROUPED = ConvSpec.parse("grouped,n=3,ic=28,oc=70,in=13,k=1,g=7,bias,act=relu,residual,layout=NWC")


def plan(channels: int, groups: int, lanes: int = 8, shuffled: bool = True) -> Plan:
    return Plan(channels, groups, 8, lanes, 4, 2, 1, shuffled)


@pytest.mark.parametrize("inputs", [2, 4, 8, 16])
def test_lanes_are_added_up_to_the_sums_of_positions_side_by_side(inputs: int) -> None:
    """Vectors of the sums of as many positions become one, whose blocks have each position's total in its order."""
    sums = np.random.default_rng(0).integers(0, 100, (inputs, 16))
    vectors, half = list(sums), inputs // 2
    while half:
        even, odd = (_parts(16, inputs, half, number) for number in (0, 1))
        joined = [np.concatenate(pair) for pair in zip(vectors[::2], vectors[1::2])]
        vectors, half = [pair[even] + pair[odd] for pair in joined], half // 2
    assert len(vectors) == 1
    assert np.array_equal(vectors[0].reshape(-1, inputs), sums.reshape(inputs, -1, inputs).sum(2).T)


@pytest.mark.parametrize(("channels", "groups"), [(36, 3), (60, 5), (70, 7), (12, 1)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_outputs_are_in_the_order_of_y(channels: int, groups: int, shuffled: bool) -> None:
    found = plan(channels, groups, shuffled=shuffled)
    place = np.array([found.sums_of(group, channel) for group in range(groups) for channel in range(found.run)])
    assert sorted(place) == list(range(channels))
    want = place.reshape(groups, -1).T.ravel() if shuffled else place
    assert all(source == tuple(want[first : first + 8]) for first, source in found.outputs)


@pytest.mark.parametrize(("channels", "lanes"), [(36, 8), (60, 16), (30, 8)])
def test_each_weight_has_one_place(channels: int, lanes: int) -> None:
    order = np.array(plan(channels, 3, lanes).order)
    assert (order.sum(0) == 1).all() and (order.sum(1) == 1).all()


@pytest.mark.parametrize(
    ("text", "accepted"),
    [("ic=12,oc=36,g=3", True), ("ic=12,oc=33,g=3", False), ("ic=9,oc=36,g=3", False), ("ic=12,oc=24,g=3", False)],
)
def test_it_takes_what_shares_a_vector_evenly(text: str, accepted: bool) -> None:
    """Of vectors of 8: a rest of four channels and inputs by twos, not of three, nor an odd number of inputs."""
    spec = ConvSpec.parse(f"grouped,in=5x7,k=1x1,layout=NHWC,{text}")
    assert grouped_remainder.accepts(spec, machine()) == accepted


@pytest.mark.parametrize("spec", [SHUFFLED, GROUPED], ids=str)
def test_blocks_fit_in_their_tasks(spec: ConvSpec) -> None:
    positions = spec.batch * int(np.prod(spec.out_size))
    found = list(all_knobs(grouped_remainder, spec, machine()))
    assert found
    for knobs in found:
        assert int(knobs["columns"]) * int(knobs["tiles"]) <= positions // int(knobs["parts"])


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "wanted"), [(SHUFFLED, {"columns": 4, "tiles": 2}), (GROUPED, {"columns": 4})])
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(grouped_remainder, spec, target, corner(grouped_remainder, spec, target, wanted))
