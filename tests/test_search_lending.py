"""Tests what a spec that was never tuned is lent: by estimates, corrected by near specs' records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from synthetic_spaces import SyntheticSpace, machine, record

from convtune.record import Record
from convtune.search import guess
from convtune.space import Candidate, Estimating, Knobs, KnobValue
from convtune.spec import ConvSpec
from convtune.targets import Target

TARGET, OTHER = machine(), machine(model="Other")


class Guessing(SyntheticSpace, Estimating[Any]):
    """Estimates `cycles` times the tile, whatever the spec, so its default is the least tile."""

    def __init__(self, name: str, cycles: float) -> None:
        self.name, self.cycles = name, cycles

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        return {"ow_tile": (1, 2, 4, 8), "pad_at": ("none", "once")}

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        return {"ow_tile": 1, "pad_at": "none"}

    def estimate(self, spec: ConvSpec, target: Target, knobs: Knobs) -> float:
        return self.cycles * (1 + math.log2(int(knobs["ow_tile"])) / 10)

    def features(self, spec: ConvSpec, target: Target, knobs: Knobs) -> Mapping[str, float]:
        return {}


FAST, SLOW = Guessing("fast", 1000.0), Guessing("slow", 1500.0)


def conv(ic: int = 64, size: int = 56) -> ConvSpec:
    return ConvSpec("conv", ic, 64, (size, size), (3, 3), padding=1)


SPEC = conv()


def timed(spec: ConvSpec, space: str, ow_tile: int, time_us: float, target: Any = TARGET, **fields: Any) -> Record:
    return record(spec, target, Candidate(space, {"ow_tile": ow_tile, "pad_at": "none"}), time_us, **fields)


def lent(*records: Record, **more: Any) -> tuple[str, int] | None:
    found = guess(SPEC, TARGET, records, [FAST, SLOW], **more)
    return None if found is None else (found.candidate.space, int(found.candidate.knobs["ow_tile"]))


def test_estimates_that_hold_are_followed() -> None:
    assert lent(timed(conv(128), "fast", 1, 10.0), timed(conv(128), "slow", 1, 15.0)) == ("fast", 1)


def test_the_default_of_a_space_that_is_faster_than_its_estimate_is_taken() -> None:
    records = [timed(conv(128), "fast", 1, 20.0), timed(conv(128), "slow", 1, 10.0)]
    assert lent(*records) == ("slow", 1)
    assert lent(*records, timed(conv(96), "fast", 1, 5.0), timed(conv(96), "slow", 1, 10.0)) == ("fast", 1)


def test_knobs_that_won_are_lent_with_their_lender() -> None:
    records = [timed(conv(128), "fast", 1, 20.0), timed(conv(128), "fast", 4, 10.0)]
    found = guess(SPEC, TARGET, records, [FAST, SLOW])
    assert found is not None and found.lender is records[1]
    assert found.candidate == Candidate("fast", {"ow_tile": 4, "pad_at": "none"})


def test_knobs_that_won_by_less_than_their_estimate_is_worse_elsewhere_are_not() -> None:
    near = [timed(conv(128), "fast", 1, 10.0), timed(conv(128), "fast", 8, 9.99)]
    against = [timed(conv(96), "fast", 1, 5.0), timed(conv(96), "fast", 8, 15.0)]
    assert lent(*near, *against) == ("fast", 1)


def test_another_machines_speed_says_nothing_of_its_spaces() -> None:
    here = [timed(conv(128), "fast", 1, 10.0), timed(conv(128), "slow", 1, 15.0)]
    there = [timed(conv(96), "fast", 1, 100.0, OTHER), timed(conv(96), "fast", 2, 110.0, OTHER)]
    assert lent(*here, *there) == ("fast", 1)


@pytest.mark.parametrize(
    "useless",
    [
        [timed(conv(128), "slow", 1, 1.0)],
        [timed(conv(4096, 7), "fast", 1, 20.0), timed(conv(4096, 7), "slow", 1, 1.0)],
        [timed(SPEC, "fast", 1, 20.0), timed(SPEC, "slow", 1, 1.0)],
        [timed(conv(128), "fast", 1, 20.0), timed(conv(128), "slow", 1, 1.0, error=1e-3)],
        [timed(conv(128), "fast", 1, 20.0), timed(conv(128), "slow", 3, 1.0)],
        [timed(conv(128), "fast", 1, 20.0), timed(conv(128), "gone", 1, 1.0)],
    ],
    ids=["nothing to compare", "far", "own", "inaccurate", "knobs that are gone", "a space that is gone"],
)
def test_what_does_not_count(useless: list[Record]) -> None:
    assert lent(*useless, max_error=2e-5) is None


def test_finals_count_before_the_search() -> None:
    final = {"round": "final", "batch": "2026-01-02T00:00:00.000000Z"}
    records = [timed(conv(128), "fast", 1, 10.0, **final), timed(conv(128), "slow", 1, 15.0, **final)]
    assert lent(*records, timed(conv(128), "slow", 1, 1.0)) == ("fast", 1)
