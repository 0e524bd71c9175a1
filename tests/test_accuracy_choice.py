"""Which schedules an accuracy leaves: what is expected to fail it is neither a default nor tried."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from conformance_cases import runnable_targets
from filtering_kernels import error_of

from convtune import accuracy, resolution, space, targets
from convtune.log import Log, LogStack
from convtune.search import Search
from convtune.spec import ConvSpec

NATIVE = targets.resolve("x86-64-v4", threads=2)
SPEC = ConvSpec.parse("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC")
FILTERING = space.get("minimal_filtering")


def expected(candidate: space.Candidate) -> float:
    return space.get(candidate.space).expected_error(SPEC, NATIVE, candidate.knobs)


@pytest.mark.parametrize("name", accuracy.NAMES)
def test_the_default_is_expected_to_pass(name: str) -> None:
    limit = accuracy.limit(SPEC, name)
    assert expected(space.default_candidate(SPEC, NATIVE, limit)) <= limit


def test_what_would_fail_is_not_the_default() -> None:
    limits = [accuracy.limit(SPEC, name) for name in accuracy.NAMES]
    errors = [expected(space.default_candidate(SPEC, NATIVE, limit)) for limit in limits]
    assert errors == sorted(errors) and errors[0] < errors[-1], "a higher accuracy costs larger tiles"
    assert expected(space.default_candidate(SPEC, NATIVE, 0.0)) == 0.0


def test_what_would_fail_is_not_tried() -> None:
    limit = accuracy.limit(SPEC, "strict")
    spaces = space.accepting(SPEC, NATIVE, limit)
    assert {owner.name for owner in spaces} >= {"minimal_filtering", "dense_direct"}
    search = Search(SPEC, NATIVE, spaces, trials=64, max_error=limit)
    asked = search.ask(64)
    assert len(asked) == 64 and max(map(expected, asked)) <= limit
    every = [space.Candidate(FILTERING.name, knobs) for knobs in space.all_knobs(FILTERING, SPEC, NATIVE)]
    assert max(map(expected, every)) > limit


def test_no_space_is_left_over_that_has_no_candidate() -> None:
    names = [owner.name for owner in space.accepting(SPEC, NATIVE, 1e-9)]
    assert "dense_direct" in names and "minimal_filtering" not in names


def test_a_default_that_fails_gives_way_to_direct_sums(tmp_path: Path) -> None:
    found = list(resolution.choices(SPEC, NATIVE, LogStack([Log(tmp_path / "log")]), 2e-5))
    first, second = found
    assert first.candidate.space == "minimal_filtering" and expected(first.candidate) > 0
    assert (second.kind, expected(second.candidate)) == ("default", 0.0) and "sums are direct" in second.reason


def test_a_limited_space_is_the_space_otherwise() -> None:
    limited: Any = space.within(FILTERING, 5e-6)
    knobs = limited.default(SPEC, NATIVE)
    assert limited.name == FILTERING.name and limited.summary == FILTERING.summary
    assert limited.pack(SPEC, NATIVE, knobs) == FILTERING.pack(SPEC, NATIVE, knobs)
    assert limited.features(SPEC, NATIVE, knobs) == FILTERING.features(SPEC, NATIVE, knobs)
    direct = space.get("dense_direct")
    assert space.within(direct, 5e-6) is direct


@pytest.mark.parametrize(
    ("text", "summands"),
    [
        ("transposed,ic=128,oc=64,in=200,k=7,s=8,d=8", 896),  # all taps meet at every eighth output, none elsewhere
        ("transposed,ic=100,oc=32,in=50,k=5,s=6,d=4", 200),  # 2 of 5 taps, at every second output
        ("transposed,ic=16,oc=8,in=9x9,k=4x3,s=2", 64),
        ("conv,ic=64,oc=64,in=56x56,k=3x3,p=1", 576),
    ],
)
def test_strict_allows_what_the_longest_sum_gives(text: str, summands: int) -> None:
    spec = ConvSpec.parse(text)
    assert accuracy.limit(spec, "strict") == pytest.approx(max(1e-6, 4 * 2.0**-24 * summands**0.5))
    if spec.variant == "transposed":  # counted apart: how often each tap of x meets an output
        hits = [[0] * out for out in spec.out_size]
        for axis, out in enumerate(hits):
            for q in range(spec.in_size[axis]):
                for k in range(spec.kernel[axis]):
                    at = q * spec.stride[axis] + k * spec.dilation[axis] - spec.padding[axis][0]
                    out[at] += 1
        assert summands == spec.in_channels * math.prod(map(max, hits))


def test_bounded_outputs_magnify_errors_of_sums() -> None:
    found = {name: accuracy.magnification(dataclasses.replace(SPEC, activation=name)) for name in ("relu", "tanh")}
    assert accuracy.magnification(SPEC) == found["relu"] == 1.0
    assert found["tanh"] == pytest.approx(math.sqrt(2 * math.log(2 * 64 * 56 * 56)), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("standard", "conv,ic=65,oc=40,in=41x41,k=5x3,p=1:0x4:3,layout=NHWC,act=tanh,bias"),
        ("strict", "conv,ic=40,oc=20,in=33x33,k=3x3,p=1,act=tanh"),
        ("strict", "grouped,ic=4,oc=38,in=28x1,k=3x3,s=2,p=1:4x3:1,g=2,layout=NHWC,act=tanh"),
        ("strict", "conv,ic=40,oc=20,in=33x33,k=3x3,p=1,act=relu6,bias,residual"),
    ],
)
def test_the_default_of_bounded_outputs_passes(name: str, text: str, tmp_path: Path) -> None:
    spec, target = ConvSpec.parse(text), runnable_targets()[0]
    limit = accuracy.limit(spec, name)
    assert error_of(spec, target, space.default_candidate(spec, target, limit), tmp_path, limit) > 0
