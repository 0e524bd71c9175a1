"""Candidates without a device: ranked by a cost, apart from all times, in search, tuner, winner and resolution."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_process import SMALL, TINY, invoke
from hypothesis import given
from hypothesis import strategies as st
from record_samples import SPEC, failure, make, target

import convtune.measure
from convtune import ranks, resolution, space, targets
from convtune.log import Log, LogStack
from convtune.measure import Bench, Built, Outcome
from convtune.measure.builder import Library
from convtune.record import ORIGINS, Record, winner
from convtune.report.digest import digest
from convtune.report.versus import versus
from convtune.search.trial import trials_of
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.tuner import FINALISTS, Tuner

FOREIGN = "x86-64-v2" if platform.machine() == "aarch64" else "neoverse-n1"
ELSEWHERE = targets.resolve(FOREIGN)
COUNTS = {"vector_arithmetic": 900, "load": 300, "l1_bytes": 4096}


class CountingBench:
    """A bench whose kernels have costs: a function of the candidate. refuted: what `verify` finds wrong."""

    samples, machines, finals_device = True, 1, None
    outcomes = Bench.outcomes

    def __init__(self, cost: Callable[[Candidate], float]) -> None:
        self.cost = cost
        self.tried: list[Candidate] = []
        self.verified: list[Candidate] = []
        self.refuted: set[str] = set()
        self.best_times: list[float | None] = []

    def build(self, _: ConvSpec, candidates: Sequence[Candidate]) -> list[Built]:
        return [Built(c, "ok", library=Library(Path("none"), (), 0.1, 1)) for c in candidates]

    def measure(self, _: ConvSpec, built: Built, _limit: float, best_us: float | None = None) -> Outcome:
        self.tried.append(built.candidate)
        self.best_times.append(best_us)
        return Outcome("ok", error=1e-7, build_s=0.1, cost=self.cost(built.candidate), counts=COUNTS)

    def verify(self, _: ConvSpec, built: Built, _limit: float) -> Outcome:
        self.verified.append(built.candidate)
        if built.candidate.key in self.refuted:
            return Outcome("wrong", "wrote outside its output", 0.5)
        return Outcome("ok", error=2e-7, cost=self.cost(built.candidate), counts=COUNTS)

    def finals(self, _: ConvSpec, built: Sequence[Built]) -> list[tuple[float, ...]]:
        return [()] * len(built)

    def discard(self, _: Built) -> None: ...
    def while_waiting(self, _: Any) -> None: ...
    def close(self) -> None: ...


def _cost(candidate: Candidate) -> float:
    """Another one for each candidate, the same in every process."""
    return 1e6 + sum(ord(letter) * (n + 1) for n, letter in enumerate(candidate.key))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> CountingBench:
    made = CountingBench(_cost)
    monkeypatch.setattr(convtune.measure, "open_bench", lambda *_: made)
    return made


def test_costs_decide_and_every_finalist_was_verified(tmp_path: Path, bench: CountingBench) -> None:
    log = tmp_path / "log.jsonl"
    with Tuner(ELSEWHERE, log) as tuner:
        result = tuner.tune(ConvSpec.parse(SMALL), 12)
    records = Log(log).records()
    assert result.origin == "emulated" and {r.origin for r in records} == {"emulated"}
    assert all(r.times_us == () and r.cost == _cost(r.candidate) and r.counts == COUNTS for r in records)
    finals = [r for r in records if r.round == "final"]
    assert [r.candidate for r in finals] == bench.verified and len(finals) <= 1 + FINALISTS["emulated"]
    assert {r.error for r in finals} == {2e-7}, "of the whole verification"
    default = space.default_candidate(ConvSpec.parse(SMALL), ELSEWHERE)
    assert [r.candidate for r in records if r.default] == [default] * 2 and records[0].candidate == default
    assert all(r.default is not None for r in records)
    assert result.best is not None and result.best.candidate == min(bench.tried, key=_cost)
    assert (result.best_us, result.default_us) == (None, None), "there are no times"
    assert (result.best_cost, result.default_cost) == (_cost(result.best.candidate), _cost(default))
    assert set(bench.best_times) == {None}, "a cost is no time to give up by"


def test_a_finalist_that_is_wrong_after_all_makes_room_for_the_next(tmp_path: Path, bench: CountingBench) -> None:
    spec, log = ConvSpec.parse(SMALL), tmp_path / "log.jsonl"
    ordered = sorted(space.enumerate_candidates(space.get("dense_direct"), spec, ELSEWHERE), key=_cost)
    bench.refuted = {c.key for c in ordered} | {space.default_candidate(spec, ELSEWHERE).key}
    with Tuner(ELSEWHERE, log) as tuner:
        result = tuner.tune(spec, 12)
    refuted = [r for r in Log(log).records() if r.status == "wrong"]
    assert refuted and all(r.cost is None for r in refuted)
    assert result.best is None or result.best.candidate.key not in bench.refuted


def test_what_is_printed_calls_no_cost_a_time(tmp_path: Path, bench: CountingBench) -> None:
    arguments = ("tune", SMALL, TINY, "--target", FOREIGN, "--trials", "3", "--log", tmp_path / "log.jsonl")
    done = invoke(*arguments)
    assert done.exit_code == 0, done.stderr
    heads = [head.strip() for head in done.stdout.splitlines()[0].split("  ") if head]
    assert heads == ["layer", "count", "default M instr. emulated", "tuned M instr. emulated", "default/tuned", "error"]
    assert "no time is known" in done.stdout and "M instr. emulated (default" in done.stderr
    assert not any(word in done.stdout + done.stderr for word in ("µs", " ms", "GFLOP", "peak", "speed-up", "faster"))
    again = json.loads(invoke(*arguments, "--json").stdout)
    (small, tiny), total = again["layers"], again["total"]
    assert small["best_us"] is small["default_us"] is small["gflops"] is small["peak_share"] is None
    assert total["best_us"] is None and total["best_cost"] == small["best_cost"] + tiny["best_cost"]
    assert small["counts"] == COUNTS and small["from_log"] and again["origin"] == "emulated"
    assert "counts of 2 layers: from the log, emulated earlier" in invoke(*arguments).stdout


# Origins are never mixed

KNOBS = {width: Candidate("dense_direct", {"width": width, "order": "outer"}) for width in range(5)}
some = st.builds(
    lambda rank, origin, width: make(rank, origin=origin, candidate=KNOBS[width]),
    st.floats(0.5, 1e9),
    st.sampled_from(ORIGINS),
    st.sampled_from(sorted(KNOBS)),
)


@given(st.lists(some, max_size=12), st.lists(some, max_size=12))
def test_no_ranking_mixes_origins(mine: list[Record], others: list[Record]) -> None:
    for origin in ORIGINS:
        own = [r for r in mine if r.origin == origin]
        best = winner(mine, max_error=None, origin=origin)
        assert best == min(own, key=lambda r: r.cost if origin == "emulated" else r.time_us, default=None)
        assert [t.rank for t in trials_of(mine, ["dense_direct"], origin=origin, max_error=None)] == [
            r.rank for r in own
        ]
    sections = digest(mine)
    assert [s.origin for s in sections] == list(dict.fromkeys(r.origin for r in mine))
    for section in sections:
        assert {r.origin for r in section.records} == {section.origin}
        assert section.layers[0].best == winner(mine, max_error=2e-5, origin=section.origin)
        assert (section.layers[0].best_us is None) == (section.origin == "emulated")
    for group in versus("a", "b", mine, others, "loose").groups:
        sides = [side for pair in group.pairs for side in (pair.a, pair.b) if isinstance(side, Record)]
        assert {side.origin for side in sides} <= {group.origin}


@pytest.mark.parametrize(
    ("rank", "origin", "text"),
    [
        (0.5, "measured", "0.5 µs"),
        (1234.5, "estimated", "1.234 ms"),
        (999.0, "emulated", "999 weighted instructions"),
        (3_421_900.0, "emulated", "3.422 M weighted instructions"),
    ],
)
def test_a_rank_is_written_in_the_units_of_its_origin(rank: float, origin: str, text: str) -> None:
    assert ranks.digits(rank, origin) == text
    assert (ranks.as_time(rank, origin), ranks.as_cost(rank, origin)) == (
        (None, rank) if origin == "emulated" else (rank, None)
    )


# What compile takes


def _logged(spec: ConvSpec, candidate: Candidate, rank: float, origin: str, on: targets.Target = ELSEWHERE) -> Record:
    return make(rank, spec=str(spec), candidate=candidate, origin=origin, target=on.facts())


def _reasons(log: Path, spec: ConvSpec) -> list[tuple[str, Candidate, str]]:
    found = resolution.choices(spec, ELSEWHERE, LogStack([Log(log)]), 2e-5)
    return [(choice.kind, choice.candidate, choice.reason) for choice in found]


def test_an_emulated_winner_counts_where_nothing_was_measured(tmp_path: Path) -> None:
    spec, log = ConvSpec.parse(SPEC), tmp_path / "log.jsonl"
    first, second, third = list(space.enumerate_candidates(space.get("dense_direct"), spec, ELSEWHERE))[:3]
    emulated = [_logged(spec, first, 2e6, "emulated"), _logged(spec, second, 1e6, "emulated")]
    Log(log).append([*emulated, _logged(spec, third, 1.0, "estimated")])
    (kind, candidate, reason), *rest = _reasons(log, spec)
    assert (kind, candidate) == ("log", second) and third not in [c for _, c, _ in rest]
    assert reason.startswith(f"emulated 1 M weighted instructions for {ELSEWHERE.model}, in ")
    Log(log).append([_logged(spec, first, 5e6, "measured")])  # however slow
    order = [(kind, candidate) for kind, candidate, _ in _reasons(log, spec)]
    assert order[:2] == [("log", first), ("log", second)]


def test_knobs_of_an_emulated_winner_are_lent(tmp_path: Path) -> None:
    spec, log = ConvSpec.parse(SPEC), tmp_path / "log.jsonl"
    near = spec.replace(in_size=(28, 28))
    default = space.default_candidate(spec, ELSEWHERE)
    lent = next(
        c for c in space.enumerate_candidates(space.get("dense_direct"), near, ELSEWHERE) if c.knobs != default.knobs
    )
    Log(log).append([_logged(near, lent, 1e6, "emulated"), _logged(near, lent, 1.0, "estimated")])
    kind, _, reason = _reasons(log, spec)[0]
    assert kind == "transfer" and reason.startswith(f"the knobs that won, as emulated, on {near}")


def test_a_failure_of_an_emulated_candidate_refutes_no_measured_one() -> None:
    measured, emulated = make(3.0), make(9.0, origin="emulated")
    wrong = failure("wrong", origin="emulated", utc="2027-01-01T00:00:00.000000Z", target=target())
    assert winner([measured, emulated, wrong], max_error=None) is measured
    assert winner([measured, emulated, wrong], max_error=None, origin="emulated") is None
