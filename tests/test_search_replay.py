"""Replays recorded tuning runs, as KernelTuner's simulation does: what a search finds on real times, with nothing run.

The recording has some hundred random candidates of each spec; `scripts/make_recording.py` makes another from a log.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_spaces import SyntheticSpace, machine

from convtune.log import Log
from convtune.record import Record
from convtune.search import Search
from convtune.space import Candidate, Knobs, KnobValue
from convtune.spec import ConvSpec
from convtune.targets.base import Target

RECORDING = Path(__file__).parent / "data" / "search.jsonl"


class ReplayBench:
    """Answers from a recording. A time is the fastest of its repeats: the recording machine was shared with others."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records: dict[str, dict[str, Record]] = {}
        for record in records:
            self.records.setdefault(record.spec, {})[record.candidate.key] = record

    def measure(self, spec: ConvSpec, candidate: Candidate) -> tuple[float | None, str]:
        """The time in microseconds, None where it failed; and the status."""
        record = self.records[str(spec)][candidate.key]
        return (min(record.times_us) if record.status == "ok" else None), record.status


class RecordedSpace(SyntheticSpace):
    """The recorded candidates of one space: the first is the default, knobs are those seen."""

    def __init__(self, name: str, bench: ReplayBench) -> None:
        self.name, self.bench = name, bench

    def _recorded(self, spec: ConvSpec) -> list[Candidate]:
        records = self.bench.records.get(str(spec), {}).values()
        return [record.candidate for record in records if record.candidate.space == self.name]

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return bool(self._recorded(spec))

    def knobs(self, spec: ConvSpec, target: Target) -> Mapping[str, tuple[KnobValue, ...]]:
        candidates = self._recorded(spec)
        seen = {knob: {c.knobs[knob] for c in candidates} for knob in candidates[0].knobs}
        return {knob: tuple(sorted(values, key=lambda v: (isinstance(v, str), v))) for knob, values in seen.items()}

    def allows(self, spec: ConvSpec, target: Target, knobs: Knobs) -> bool:
        return Candidate(self.name, knobs).key in self.bench.records[str(spec)]

    def default(self, spec: ConvSpec, target: Target) -> Knobs:
        return self._recorded(spec)[0].knobs


@pytest.fixture(scope="module")
def bench() -> ReplayBench:
    return ReplayBench(Log(RECORDING, must_exist=True).records())


def recorded_machine(bench: ReplayBench) -> Target:
    """The machine of the recording, as far as its records say."""
    facts = next(iter(next(iter(bench.records.values())).values())).target
    known = {name: facts[name] for name in ("name", "family", "model", "mcpu", "vector_bytes", "threads")}
    return machine(**known, features=tuple(facts["features"]))


def replay(bench: ReplayBench, text: str, batch: int = 4, **search_arguments: Any) -> list[float]:
    """The fastest time so far, after each trial."""
    spec, target = ConvSpec.parse(text), recorded_machine(bench)
    names = sorted({record.candidate.space for record in bench.records[text].values()})
    search = Search(spec, target, [RecordedSpace(name, bench) for name in names], **search_arguments)
    best, course = math.inf, []
    while candidates := search.ask(batch):
        for candidate in candidates:
            time_us, status = bench.measure(spec, candidate)
            search.tell(candidate, time_us, status)
            best = min(best, time_us or math.inf)
            course.append(best)
    return course


def fastest_us(bench: ReplayBench, text: str) -> float:
    return min(min(record.times_us) for record in bench.records[text].values() if record.status == "ok")


def random_us(bench: ReplayBench, text: str, trials: int, seed: int) -> float:
    times = [min(record.times_us) for record in bench.records[text].values()]
    return float(np.random.default_rng(seed).permutation(times)[:trials].min())


def test_a_replayed_search_beats_random_trials_and_knowledge_helps(bench: ReplayBench) -> None:
    trials, shares = 16, {"search": list[float](), "informed": list[float](), "random": list[float]()}
    for text, own in bench.records.items():
        others = [r for other, records in bench.records.items() if other != text for r in list(records.values())[:48]]
        assert own
        fastest = fastest_us(bench, text)
        for seed in range(3):
            shares["search"].append(fastest / replay(bench, text, trials=trials, seed=seed)[-1])
            shares["informed"].append(fastest / replay(bench, text, trials=trials, seed=seed, knowledge=others)[-1])
            shares["random"] += [fastest / random_us(bench, text, trials, 100 * seed + i) for i in range(20)]
    mean = {name: statistics.mean(values) for name, values in shares.items()}
    # seen: 0.934, 0.939 and 0.900
    assert mean["search"] > mean["random"], mean
    assert mean["informed"] > mean["random"], mean
    assert min(mean["search"], mean["informed"]) > 0.85, mean


def test_a_replayed_search_that_may_try_all_finds_the_fastest(bench: ReplayBench) -> None:
    text, records = next(iter(bench.records.items()))
    course = replay(bench, text, batch=16, trials=len(records))
    assert len(course) == len(records)
    assert course[-1] == fastest_us(bench, text)
