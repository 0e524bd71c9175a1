"""Judges pairs of times: the median of their ratios, a confidence interval of it, and win, loss or no difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
FEWEST_PAIRS = 6
"""With fewer, not even the interval from the least to the greatest ratio has that confidence."""
INDIFFERENCE = 0.02
"""Medians nearer to 1 than by this fraction are no difference, however sure: a choice, not a measurement."""

WIN, LOSS, NO_DIFFERENCE = "win", "loss", "no_difference"
VERDICTS = (WIN, LOSS, NO_DIFFERENCE)


@dataclass(frozen=True)
class Ratio:
    """Of a peer's time over ours, pair by pair; above 1 ours is the faster.

    lower, upper: between them the ratio's median lies, with 95 % confidence. q1, q3: the middle half of the pairs.
    """

    pairs: tuple[float, ...]
    median: float
    lower: float
    upper: float
    q1: float
    q3: float

    @property
    def verdict(self) -> str:
        if self.lower > 1 and self.median >= 1 + INDIFFERENCE:
            return WIN
        if self.upper < 1 and self.median <= 1 / (1 + INDIFFERENCE):
            return LOSS
        return NO_DIFFERENCE

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "pairs": list(self.pairs)}


def compare(theirs_us: Sequence[float], ours_us: Sequence[float]) -> Ratio:
    """The ratio of times taken in turn, one of each per round. There must be as many, at least FEWEST_PAIRS."""
    assert len(theirs_us) == len(ours_us) >= FEWEST_PAIRS, (len(theirs_us), len(ours_us))
    pairs = tuple(theirs / ours for theirs, ours in zip(theirs_us, ours_us))
    ordered = sorted(pairs)
    rank = interval_rank(len(pairs))
    q1, _, q3 = statistics.quantiles(pairs, n=4, method="inclusive")
    return Ratio(pairs, statistics.median(pairs), ordered[rank - 1], ordered[-rank], q1, q3)


def interval_rank(n: int) -> int:
    """The greatest k for which the k-th least and the k-th greatest of n values enclose the median with CONFIDENCE.

    Each value is above the median with probability 1/2, whatever the distribution: the interval misses it with twice
    the probability of less than k heads in n tosses (the sign test's interval). 2 of 9, with 96.1 %.
    """
    rank, missed = 0, 0.0
    while True:
        missed += 2 * math.comb(n, rank) / 2**n
        if missed > 1 - CONFIDENCE:
            return rank
        rank += 1


def geometric_mean(ratios: Iterable[float]) -> float | None:
    """None of no ratios."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(statistics.fmean(logs)) if logs else None
