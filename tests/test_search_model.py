"""Tests the domain of a search, the numbers that describe a candidate, and that what is learnt carries over."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from synthetic_spaces import RegisterTile, Small, machine

from convtune.search import model
from convtune.search.domain import Domain, differing
from convtune.search.features import Encoder, extents
from convtune.space import Candidate, Knobs
from convtune.spec import ConvSpec
from convtune.targets.base import Target

TARGET = machine()
TILE, SMALL = RegisterTile(), Small()
SPEC = ConvSpec.parse("conv,ic=64,oc=60,in=57x57,k=3x3,p=1")


class Informed(Small):
    """A space with a number of its own."""

    name = "informed"

    def features(self, spec: ConvSpec, target: Target, knobs: Knobs) -> dict[str, float]:
        return {"square": float(knobs["ow_tile"]) ** 2}


def described(spec: ConvSpec, target: Target, candidate: Candidate, space: Small | RegisterTile) -> dict[str, float]:
    """The columns of one row, of a search for SPEC on TARGET, by name."""
    encoder = Encoder(SPEC, TARGET, {space.name: Domain(space, SPEC, TARGET)})
    return dict(zip(encoder.columns, encoder.rows(spec, target.facts(), [candidate])[0].tolist()))


def test_neighbours_differ_in_one_step_of_one_knob() -> None:
    domain = Domain(TILE, SPEC, TARGET)
    candidate = domain.snap({"ow_tile": 8, "oc_tile": 1, "ic_block": 4, "oh_block": 28, "pad_at": "none", "unroll": 2})
    expected = {
        ("ow_tile", 7),
        ("ow_tile", 10),
        ("oc_tile", 2),
        ("ic_block", 8),
        ("oh_block", 14),
        ("pad_at", "task"),
        ("pad_at", "once"),
        ("order", "oc_oh"),
        ("unroll", 1),
        ("unroll", 4),
    }
    neighbours = domain.neighbours(candidate)
    assert {(k, v) for n in neighbours for k, v in n.knobs.items() if candidate.knobs[k] != v} == expected
    assert all(n in domain and differing(n, candidate) == 1 for n in neighbours)
    assert all(candidate in domain.neighbours(n) for n in neighbours)


def test_samples_are_distinct_allowed_and_spread() -> None:
    domain = Domain(TILE, SPEC, TARGET)
    sample = domain.sample(np.random.default_rng(0), 500)
    assert len({c.key for c in sample}) == 500
    assert all(c in domain for c in sample)
    for knob, values in domain.values.items():
        assert {c.knobs[knob] for c in sample} == set(values)


def test_listing_gives_up_where_there_are_too_many() -> None:
    assert len(Domain(SMALL, SPEC, TARGET).listed(12) or []) == 12
    assert Domain(SMALL, SPEC, TARGET).listed(11) is None
    assert Domain(TILE, SPEC, TARGET).listed(5000) is None


def test_differing_counts_knobs() -> None:
    a, b = Candidate("s", {"x": 1, "y": "a"}), Candidate("s", {"x": 2, "y": "a"})
    assert (differing(a, a), differing(a, b), differing(a, Candidate("t", a.knobs))) == (0, 1, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv,ic=8,oc=24,in=9x5,k=3x1", {"ic": 8, "oc": 24, "oh": 7, "ow": 5, "kh": 3, "kw": 1, "g": 1}),
        ("grouped,ic=12,oc=24,in=9x5,k=1x1,g=4", {"ic": 3, "oc": 6, "g": 4, "od": 1}),
        ("depthwise,ic=12,oc=12,in=7,k=3", {"ic": 12, "oc": 12, "g": 12, "oh": 1, "ow": 5, "kw": 3}),
    ],
)
def test_extents_are_a_groups_sizes(text: str, expected: dict[str, int]) -> None:
    found = extents(ConvSpec.parse(text))
    assert {name: found[name] for name in expected} == expected


def test_a_row_describes_tiles_by_what_they_waste() -> None:
    knobs = {**TILE.default(SPEC, TARGET), "ow_tile": 10, "oc_tile": 2, "pad_at": "once"}
    row = described(SPEC, TARGET, Candidate(TILE.name, knobs), TILE)
    assert row["ow_tile"] == 10
    assert row["ow_tile: tiles"] == 6  # of 10 columns for 57
    assert row["ow_tile: waste"] == pytest.approx(60 / 57)
    assert row["oc_tile vectors: tiles"] == 4  # of 2 vectors of 8 lanes for 60 channels
    assert row["oc_tile vectors: waste"] == pytest.approx(64 / 60)
    assert row["tile volume"] == 20
    assert (row["pad_at=once"], row["pad_at=task"], row["pad_at=none"]) == (1, 0, 0)
    assert row["spec:oc"] == pytest.approx(math.log2(60))
    assert row["target:threads"] == 2


def test_what_needs_facts_that_records_lack_is_left_out_for_other_machines() -> None:
    space = Informed()
    candidate = Candidate("informed", {"ow_tile": 2, "pad_at": "once"})
    here, there = (described(SPEC, t, candidate, space) for t in (TARGET, machine(model="Other")))  # type: ignore[arg-type]
    assert here["space's square"] == 4
    assert math.isnan(there["space's square"])
    assert {k: v for k, v in here.items() if not math.isnan(there[k])} == {
        k: v for k, v in there.items() if not math.isnan(v)
    }


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    domains = {space.name: Domain(space, SPEC, TARGET) for space in (TILE, SMALL)}
    encoder = Encoder(SPEC, TARGET, domains)
    candidates = [c for d in domains.values() for c in (*d.neighbours(d.default), d.default)]
    together = encoder.rows(SPEC, TARGET.facts(), candidates)
    alone = np.concatenate([encoder.rows(SPEC, TARGET.facts(), [c]) for c in candidates])
    np.testing.assert_array_equal(together, alone)
    assert len({row.tobytes() for row in together}) == len(candidates)


def test_failures_are_slower_than_everything() -> None:
    slow = model.slowness(np.array([4.0, np.nan, 1.0, 16.0]))
    assert np.argsort(slow).tolist() == [2, 0, 3, 1]
    np.testing.assert_allclose(slow[[0, 2, 3]], [0, -2, 2])
    assert np.ptp(model.slowness(np.full(3, np.nan))) == 0


def test_times_of_a_faster_machine_mean_the_same() -> None:
    times = np.array([3.0, 5.0, np.nan, 40.0])
    np.testing.assert_allclose(model.slowness(times), model.slowness(times / 7))


def test_what_other_specs_teach_orders_candidates_of_a_new_one() -> None:
    sizes = itertools.product((32, 64, 128), (14, 28, 56))
    specs = [ConvSpec.parse(f"conv,ic={c},oc={c},in={s}x{s},k=3x3,p=1") for c, s in sizes]
    encoder = Encoder(SPEC, TARGET, {TILE.name: Domain(TILE, SPEC, TARGET)})

    def examples(spec: ConvSpec, seed: int) -> model.Examples:
        candidates = Domain(TILE, spec, TARGET).sample(np.random.default_rng(seed), 64)
        times = np.array([TILE.time_us(spec, TARGET, c.knobs) for c in candidates], float)
        return model.Examples(encoder.rows(spec, TARGET.facts(), candidates), times)

    nothing = model.Examples(encoder.rows(SPEC, TARGET.facts(), []), np.array([]))
    booster = model.fit(nothing, [examples(spec, seed) for seed, spec in enumerate(specs)], seed=0)
    new = examples(SPEC, 99)
    worked = ~np.isnan(new.ranks)
    # seen: 0.96
    assert spearmanr(model.predict(booster, new.rows)[worked], new.ranks[worked]).statistic > 0.7
