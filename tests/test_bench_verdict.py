"""The verdict on pairs of times, with samples whose answer is known."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from convtune.comparison.verdict import FEWEST_PAIRS, INDIFFERENCE, compare, geometric_mean, interval_rank


def test_the_interval_of_nine_is_from_the_second_to_the_eighth() -> None:
    ratio = compare([9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0], [1.0] * 9)
    assert (ratio.median, ratio.lower, ratio.upper) == (5.0, 2.0, 8.0)
    assert (ratio.q1, ratio.q3) == (3.0, 7.0)
    assert ratio.pairs == (9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0)


@pytest.mark.parametrize("n", range(FEWEST_PAIRS, 60))
def test_the_interval_is_the_narrowest_that_is_sure_enough(n: int) -> None:
    rank = interval_rank(n)

    def missed(k: int) -> float:
        return float(2 * stats.binom.cdf(k - 1, n, 0.5))

    assert 1 <= rank <= n / 2
    assert missed(rank) <= 0.05 < missed(rank + 1)


def test_fewer_pairs_would_not_do() -> None:
    assert interval_rank(FEWEST_PAIRS - 1) == 0
    with pytest.raises(AssertionError):
        compare([1.0] * 5, [1.0] * 5)


def test_the_interval_encloses_the_median_as_often_as_it_says() -> None:
    draw = random.Random(7)
    trials = 4000
    enclosed = 0
    for _ in range(trials):
        ratio = compare([draw.lognormvariate(0.3, 0.2) for _ in range(9)], [1.0] * 9)
        enclosed += ratio.lower <= math.exp(0.3) <= ratio.upper
    assert 0.95 < enclosed / trials < 0.972  # 96.1 %


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [
        ([2.0] * 9, "win"),
        ([0.5] * 9, "loss"),
        ([1.0] * 9, "no_difference"),
        ([2.0] * 8 + [0.5], "win"),  # one pair of nine may be anything
        ([2.0] * 7 + [0.5] * 2, "no_difference"),
        ([0.5] * 8 + [9.0], "loss"),
        ([0.5] * 7 + [9.0] * 2, "no_difference"),
        ([1.019] * 9, "no_difference"),  # however sure, too little
        ([1.021] * 9, "win"),
        ([1 / 1.019] * 9, "no_difference"),
        ([1 / 1.021] * 9, "loss"),
        ([0.99, 0.99, *[1.5] * 7], "no_difference"),
    ],
)
def test_verdicts(theirs: list[float], verdict: str) -> None:
    assert compare(theirs, [1.0] * 9).verdict == verdict


def test_a_slow_minute_that_hits_both_changes_nothing() -> None:
    ours = [10.0, 10.0, 30.0, 30.0, 10.0, 10.0]
    ratio = compare([1.5 * us for us in ours], ours)
    assert ratio.lower == ratio.upper == pytest.approx(1.5)
    assert ratio.verdict == "win"


def test_the_other_way_round_is_the_other_verdict() -> None:
    draw = random.Random(3)
    for spread in (0.01, 0.05, 0.3):
        for shift in (-0.2, -0.03, 0.0, 0.03, 0.2):
            theirs, ours = ([draw.lognormvariate(mean, spread) for _ in range(9)] for mean in (shift, 0.0))
            there, back = compare(theirs, ours).verdict, compare(ours, theirs).verdict
            assert {there, back} in ({"win", "loss"}, {"no_difference"})


def test_geometric_means() -> None:
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([]) is None
    assert INDIFFERENCE == 0.02  # docs/bench.md says so
