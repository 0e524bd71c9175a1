"""A search with nothing timed yet starts with what the spaces estimate to be fast."""

from __future__ import annotations

import statistics

from convtune import space, targets
from convtune.search import Search
from convtune.spec import ConvSpec

SPEC = ConvSpec.parse("conv,ic=64,oc=64,in=56x56,k=3x3,p=1,layout=NHWC")
TARGET = targets.resolve("x86-64-v4")


def test_the_first_picks_are_estimated_to_be_faster_than_most() -> None:
    dense = space.get("dense_direct")
    assert isinstance(dense, space.Estimating)
    every = [dense.estimate(SPEC, TARGET, knobs) for knobs in space.all_knobs(dense, SPEC, TARGET)]
    ranks = []
    for seed in range(4):
        first, *picks = Search(SPEC, TARGET, [dense], trials=100, seed=seed).ask(9)
        assert first.knobs == dense.default(SPEC, TARGET)
        ranks += [sum(e < dense.estimate(SPEC, TARGET, pick.knobs) for e in every) / len(every) for pick in picks]
    # half of them explore; of 32 blind picks a median rank below a third is one chance in thousands
    assert statistics.median(ranks) < 1 / 3


def test_seeds_still_differ() -> None:
    dense = space.get("dense_direct")
    picks = [[c.key for c in Search(SPEC, TARGET, [dense], trials=100, seed=s).ask(9)] for s in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
