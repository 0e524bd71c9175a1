"""Comparing two sides: verdicts beyond the spread, nothing mixed, what differs, what is a regression."""

from __future__ import annotations

import random
import statistics

import pytest
from record_samples import OTHER_SPEC, SPEC, failure, final, gpu, make, target

from convtune.record import Record
from convtune.report.versus import Versus, bounds, interval, versus
from convtune.space import Candidate


def timed(*times_us: float, **changes: object) -> Record:
    return make(1.0, times_us=times_us, **changes)


def around(middle: float, seed: int, n: int = 15, spread: float = 0.05) -> tuple[float, ...]:
    draw = random.Random(seed)
    return tuple(middle * (1 + draw.uniform(-spread, spread)) for _ in range(n))


def verdicts(found: Versus) -> list[str]:
    return [pair.verdict for group in found.groups for pair in group.pairs]


def compared(a: list[Record], b: list[Record]) -> Versus:
    return versus("a", "b", a, b, "standard")


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (around(10, 1), around(8, 2), "win"),
        (around(8, 1), around(10, 2), "loss"),
        (around(10, 1, spread=0.5), around(9, 2, spread=0.5), "no_difference"),
        (around(10, 1, spread=0.001), around(9.9, 2, spread=0.001), "no_difference"),  # sure, but less than 2 %
        ((10.0, 10.1, 9.9), (5.0, 5.1, 4.9), "win"),
        ((10.0, 10.1), (5.0, 5.1), "no_difference"),  # two repeats tell no spread
        ((10.0,), (5.0,), "no_difference"),
    ],
)
def test_a_difference_counts_when_it_is_beyond_the_spread(
    a: tuple[float, ...], b: tuple[float, ...], verdict: str
) -> None:
    assert verdicts(compared([timed(*a)], [timed(*b)])) == [verdict]
    mirrored = {"win": "loss", "loss": "win"}.get(verdict, verdict)
    assert verdicts(compared([timed(*b)], [timed(*a)])) == [mirrored]


def test_an_estimate_has_no_spread() -> None:
    estimated = {"target": gpu(), "origin": "estimated"}
    assert verdicts(compared([timed(10.0, **estimated)], [timed(5.0, **estimated)])) == ["win"]


@pytest.mark.parametrize("n", [3, 6, 9, 25])
def test_the_interval_holds_the_median_as_often_as_it_says(n: int) -> None:
    """Of skewed times, drawn a thousand times; with three the range holds it three times in four."""
    draw = random.Random(n)
    held = 0
    for _ in range(1000):
        low, high = interval([draw.expovariate(1.0) for _ in range(n)])
        held += low <= 0.6931471805599453 <= high
    assert held > (730 if n < 6 else 940)


def test_finalists_of_one_batch_compare_pair_by_pair() -> None:
    drift = [1.0, 2.0, 5.0, 1.0, 3.0, 8.0, 2.0]
    a = make(1.0, times_us=tuple(12 * d for d in drift), round="final", batch=final(1.0, 3).batch)
    b = make(1.0, times_us=tuple(10 * d for d in drift), round="final", batch=a.batch)
    found = bounds(a, b)
    assert (found.in_turn, found.verdict) == (True, "win")
    assert [found.lower, found.ratio, found.upper] == pytest.approx([1.2, 1.2, 1.2])
    apart = bounds(a, make(1.0, times_us=b.times_us, round="final", batch=final(1.0, 4).batch))
    assert (apart.in_turn, apart.verdict) == (False, "no_difference")
    assert apart.ratio == pytest.approx(statistics.median(a.times_us) / statistics.median(b.times_us))


def test_machines_and_origins_are_never_paired() -> None:
    here, there = timed(9.0, 9.1, 9.2), timed(1.0, 1.1, 1.2, target=target("other", "f9"))
    estimated = timed(0.5, target=target(), origin="estimated")
    found = compared([here], [there, estimated])
    assert found.compared == 0
    assert sorted(verdicts(found)) == ["a missing", "a missing", "b missing"]


def test_what_is_missing_is_no_regression_and_what_fails_is() -> None:
    a = [timed(1.0, 1.1, 1.2), timed(1.0, 1.1, 1.2, spec=OTHER_SPEC)]
    found = compared(a, [failure(spec=OTHER_SPEC)])
    assert verdicts(found) == ["b missing", "b failed"]
    assert [str(pair.spec) for pair in found.regressions(0.05)] == [OTHER_SPEC]
    assert compared([failure()], [failure()]).regressions(0.05) == []
    assert verdicts(compared([failure()], [timed(1.0)])) == ["a failed"]


def test_a_regression_is_more_than_is_tolerated() -> None:
    a, b = [timed(*around(10, 1, spread=0.001))], [timed(*around(11, 2, spread=0.001))]
    assert len(compared(a, b).regressions(0.05)) == 1
    assert compared(a, b).regressions(0.12) == []
    assert compared(b, a).regressions(0.0) == []


def test_accuracy_decides_which_records_take_part() -> None:
    a = [timed(10.0, 10.0, 10.0), timed(1.0, 1.0, 1.0, width=8, error=5e-4)]
    b = [timed(10.0, 10.0, 10.0)]
    assert verdicts(compared(a, b)) == ["no_difference"]
    assert verdicts(versus("a", "b", a, b, "loose")) == ["loss"]


def test_what_differs_is_named_with_both_values() -> None:
    a = Candidate("dense_direct", {"tile": 7, "order": "outer", "old": 1})
    b = Candidate("dense_direct", {"tile": 14, "order": "outer", "new": 2})
    pair = compared([timed(1.0, candidate=a)], [timed(1.0, candidate=b)]).groups[0].pairs[0]
    assert dict(pair.differing) == {"tile": (7, 14), "old": (1, None), "new": (None, 2)}
    other = Candidate("row_lanes", {"tile": 7})
    pair = compared([timed(1.0, candidate=a)], [timed(1.0, candidate=other)]).groups[0].pairs[0]
    assert pair.differing["space"] == ("dense_direct", "row_lanes")


def test_the_geometric_mean_is_of_layers_with_both_times() -> None:
    a = [timed(8.0), timed(9.0, spec=OTHER_SPEC), timed(100.0, spec=SPEC.replace("56x56", "7x7"))]
    b = [timed(2.0), timed(1.0, spec=OTHER_SPEC)]
    assert compared(a, b).groups[0].geometric_mean == pytest.approx(6.0)
