"""Lanes along input channels: what a tile reads and sums up, and kernels at the domain's corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.input_lanes import Plan, _plan, input_lanes
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

HEAD = ConvSpec.parse("pointwise,n=2,ic=24,oc=3,in=7x11,k=1x1,bias,act=gelu,residual,layout=NHWC")
BORDERED = ConvSpec.parse("conv,n=2,ic=8,oc=5,in=6x13,k=3x5,s=2x1,p=4x3,bias,act=relu,layout=NHWC")
ONE = ConvSpec.parse("conv,ic=40,oc=1,in=4x4,k=4x4,bias,layout=NHWC")
LINE = ConvSpec.parse("dilated,n=3,ic=16,oc=1,in=29,k=3,p=5,d=4,layout=NWC")
SPACE = ConvSpec.parse("conv,n=2,ic=8,oc=2,in=5x4x9,k=3x2x3,s=1x3x2,p=1x2x1,bias,residual,layout=NDHWC")


def plan(text: str, columns: int) -> Plan:
    return _plan(ConvSpec.parse(text), machine(), {"columns": columns, "parts": 1})


@pytest.mark.parametrize(("channels", "columns"), [(2, 4), (3, 8), (5, 3), (1, 1)])
def test_vectors_have_the_outputs_as_they_lie_in_memory(channels: int, columns: int) -> None:
    found = plan(f"pointwise,ic=16,oc={channels},in=9x9,k=1x1,layout=NHWC", columns)
    outputs = [output for vector in found.outputs for output in vector]
    assert outputs == list(np.ndindex(columns, channels))
    assert all(len(vector) == found.lanes for vector in found.outputs[:-1])


def test_an_input_is_read_once_for_all_its_taps() -> None:
    """A kernel of 3 with stride 2 and dilation 3: outputs at 0, 2, 4 read 0 3 6, 2 5 8 and 4 7 10."""
    found = plan("dilated,ic=8,oc=1,in=40,k=3,s=2,d=3,layout=NWC", 3)
    want = {0: [(0, 0)], 2: [(1, 0)], 3: [(0, 1)], 4: [(2, 0)], 5: [(1, 1)], 6: [(0, 2)]}
    assert found.reads(found.outputs[0]) == want | {7: [(2, 1)], 8: [(1, 2)], 10: [(2, 2)]}


@pytest.mark.parametrize("spec", [HEAD, BORDERED, ONE, LINE, SPACE], ids=str)
def test_tiles_fit_in_rows_and_steps_in_the_channels(spec: ConvSpec) -> None:
    candidates = list(all_knobs(input_lanes, spec, machine()))
    assert candidates
    for knobs in candidates:
        found = _plan(spec, machine(), knobs)
        assert found.columns <= found.view.columns.out
        assert found.depth % found.unrolled == 0
        assert found.copies <= found.unrolled * found.view.columns.taps  # none without products


@pytest.mark.parametrize(("channels", "taken"), [(1, True), (7, True), (8, False)])
def test_only_outputs_that_leave_lanes_of_a_vector_empty(channels: int, taken: bool) -> None:
    spec = ConvSpec.parse(f"pointwise,ic=32,oc={channels},in=9x9,k=1x1,layout=NHWC")
    assert machine().lanes == 8
    assert input_lanes.takes(spec, machine()) is taken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (HEAD, {"columns": 8}),
        (HEAD, {"columns": 2}),
        (BORDERED, {"columns": 8}),
        (BORDERED, {"columns": 1}),
        (ONE, {}),
        (LINE, {"columns": 8}),
        (SPACE, {"columns": 4}),
    ],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(input_lanes, spec, target, corner(input_lanes, spec, target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets(), ids=lambda target: target.name)
def test_the_default_of_each_vector_width_is_right(target: CpuTarget) -> None:
    check(input_lanes, HEAD, target, input_lanes.default(HEAD, target))
