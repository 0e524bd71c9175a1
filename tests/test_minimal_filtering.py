"""Minimal filtering: what it accepts, how tiles cover the output, what its kernels lose, and kernels of odd sizes."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from conformance_cases import runnable_targets
from convtune.schedules.filtering_plan import Axis, axes_of, plan_of

from convtune import accuracy, space, targets
from convtune.measure.builder import Builder, BuildRequest
from convtune.measure.check import Checker
from convtune.paths import cache_dir
from convtune.space import Candidate, KnobValue
from convtune.spec import ConvSpec

FILTERING = space.get("minimal_filtering")
TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "filtered"),
    [
        ("conv,ic=64,oc=64,in=56x56,k=3x3,p=1", {"h_tile", "w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=1x7,p=0x3", {"w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,s=2x1,p=1", {"w_tile"}),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,s=2,p=1", None),
        ("conv,ic=64,oc=64,in=56x56,k=1x1", None),
        ("conv,ic=64,oc=64,in=300,k=8,p=4", None),  # F(2, 8) would have nine points
        ("conv,ic=64,oc=64,in=300,k=7,p=3,layout=NWC", {"w_tile"}),
        ("dilated,ic=64,oc=64,in=65x65,k=3x3,p=2,d=2", {"h_tile", "w_tile"}),
        ("conv,ic=64,oc=64,in=8x14x14,k=3x3x3,p=1", {"d_tile", "h_tile", "w_tile"}),
        ("grouped,ic=64,oc=64,in=14x14,k=3x3,p=1,g=2", {"h_tile", "w_tile"}),
        ("grouped,ic=64,oc=64,in=14x14,k=3x3,p=1,g=8", None),  # half a vector a group
        ("transposed,ic=64,oc=64,in=14x14,k=3x3,p=1", None),
    ],
)
def test_what_it_filters(text: str, filtered: set[str] | None) -> None:
    spec = ConvSpec.parse(text)
    assert FILTERING.takes(spec, TARGET) == (filtered is not None)
    if filtered is not None:
        knobs = FILTERING.knobs(spec, TARGET)
        assert {name for name in knobs if name.endswith("_tile") and max(map(int, knobs[name])) > 1} == filtered


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("out", "dilation"), [(1, 1), (7, 1), (13, 2), (5, 9), (12, 3)])
def test_tiles_cover_every_output_once_with_its_inputs(m: int, out: int, dilation: int) -> None:
    """Against the definition: output o reads the inputs o + tap * dilation - before."""
    taps, before = 3, 2
    axis = Axis(m, taps, 1, dilation, before, 20, out)
    found: Counter[int] = Counter()
    for residue, tile in itertools.product(range(axis.residues), range(axis.tiles)):
        for i in range(axis.m):
            output = axis.output(residue, tile) + i * axis.step
            if output >= out:
                continue
            found[output] += 1
            for tap in range(taps):
                first = axis.input(residue, tile, 0 if m > 1 else tap)
                read = first + (i + tap) * axis.step if m > 1 else first
                assert read == output + tap * dilation - before
                assert axis.reach[0] <= read <= axis.reach[1]
    assert found == Counter(range(out))
    assert axis.ragged == (axis.residues * axis.tiles * axis.m > out)


def test_a_dimension_of_stride_2_is_direct_beside_a_filtered_one() -> None:
    spec = ConvSpec.parse("conv,ic=8,oc=16,in=9x9,k=3x3,s=2x1,p=1,layout=NHWC")
    _, rows, columns = axes_of(spec, (1, 1, 4))
    assert (rows.direct, rows.tiles, rows.alpha) == (3, 5, 1)
    assert (columns.direct, columns.tiles, columns.alpha) == (1, 3, 6)
    plan = plan_of(spec, TARGET, FILTERING.default(spec, TARGET))
    assert plan.taps == 3 and plan.depth == 8


ODD: tuple[tuple[str, dict[str, KnobValue]], ...] = (
    # blocks that span images, a last block that is not full
    ("conv,n=3,ic=5,oc=19,in=7x11,k=3x3,p=1,bias,layout=NHWC", {"h_tile": 2, "w_tile": 4, "order": "channels"}),
    # tiles and padding beyond the input on all sides
    ("conv,n=2,ic=3,oc=33,in=2x3,k=3x2,p=4,act=relu,residual", {"h_tile": 4, "w_tile": 2, "order": "tiles"}),
    # more residues than outputs in one dimension
    ("dilated,ic=17,oc=16,in=13x5,k=3x3,p=7x1,d=7x2,layout=NHWC", {"h_tile": 2, "w_tile": 2, "order": "tiles"}),
    ("conv,ic=6,oc=20,in=5x6x7,k=3x2x3,p=1,act=gelu,bias", {"h_tile": 2, "w_tile": 4, "order": "channels"}),
    ("grouped,n=2,ic=20,oc=84,in=9x9,k=5x3,p=2,g=2,bias,layout=NHWC", {"h_tile": 3, "w_tile": 4, "order": "tiles"}),
    ("conv,n=2,ic=16,oc=40,in=53,k=7,p=3:0,residual,layout=NWC", {"w_tile": 2, "order": "channels"}),
)  # fmt: skip


@pytest.mark.parametrize(("turn", "case"), list(enumerate(ODD)), ids=[text for text, _ in ODD])
def test_kernels_of_odd_sizes(tmp_path: Path, turn: int, case: tuple[str, dict[str, KnobValue]]) -> None:
    text, wanted = case
    target = runnable_targets()[turn % len(runnable_targets())]
    spec = ConvSpec.parse(text)
    candidates = (
        knobs
        for knobs in space.all_knobs(FILTERING, spec, target)
        if all(knobs[name] == value for name, value in wanted.items())
    )
    knobs = next(candidates)
    library = Builder(target, cache_dir())(BuildRequest(spec, Candidate(FILTERING.name, knobs), tmp_path))
    checker = Checker(threads=2)
    try:
        outcome = checker.check(spec, library.path, library.pack, accuracy.limit(spec, "standard"))
    finally:
        checker.close()
    assert outcome.status == "ok", f"{dict(knobs)}: {outcome.message}"
    assert outcome.error is not None
    assert outcome.error <= FILTERING.expected_error(spec, target, knobs), "expected errors are rather above"


def test_larger_tiles_are_expected_to_lose_more() -> None:
    spec = ConvSpec.parse("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC")
    errors = [
        FILTERING.expected_error(spec, TARGET, {**FILTERING.default(spec, TARGET), "h_tile": m, "w_tile": m})
        for m in (2, 4, 6)
    ]
    assert errors == sorted(errors)
    assert errors[0] < accuracy.limit(spec, "strict") and errors[2] < accuracy.limit(spec, "standard")


def test_many_channels_are_filtered_and_few_are_not() -> None:
    many = ConvSpec.parse("conv,ic=256,oc=256,in=28x28,k=3x3,p=1,layout=NHWC")
    few = ConvSpec.parse("conv,ic=1,oc=4,in=28x28,k=3x3,p=1,layout=NHWC")
    assert space.default_candidate(many, TARGET).space == FILTERING.name
    assert space.default_candidate(few, TARGET).space != FILTERING.name
