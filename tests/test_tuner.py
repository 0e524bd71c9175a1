"""The tuner with a bench that answers from a formula: what is tried, logged, resumed and chosen, with no clock."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import record_samples

from convtune import resolution, space, targets
from convtune.engines import ENGINES
from convtune.errors import ConvtuneError, LogError, MeasureError, SpecError, TargetError, UnknownNameError
from convtune.log import Log, LogStack, ShippedLog
from convtune.measure import Bench, Built, Outcome
from convtune.measure.builder import Library
from convtune.record import METASCHEDULE
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.tuner import Tuner, tune
from convtune.tuning import Progress

SPEC = ConvSpec.parse("conv,ic=16,oc=32,in=28x28,k=3x3,s=2,p=1,layout=NHWC")
NATIVE = targets.resolve("native")


class FormulaBench:
    """Times that depend on the knobs alone; finals that can be made to disagree with the search."""

    outcomes = Bench.outcomes
    finals_device = None

    def __init__(self, cost: Callable[[Candidate], Outcome], final_factor: Callable[[Candidate], float]) -> None:
        self.cost, self.final_factor = cost, final_factor
        self.measured: list[str] = []
        self.final_rounds = 0
        self.finals_fail = False
        self.samples = False

    def build(self, _spec: ConvSpec, candidates: Sequence[Candidate]) -> list[Built]:
        return [Built(c, "ok", library=Library(Path("none"), (), 0.1, 1)) for c in candidates]

    def measure(self, _spec: ConvSpec, built: Built, _limit: float, _best: float | None = None) -> Outcome:
        self.measured.append(built.candidate.key)
        return self.cost(built.candidate)

    def verify(self, _spec: ConvSpec, built: Built, _limit: float) -> Outcome:
        return self.cost(built.candidate)

    def finals(self, _spec: ConvSpec, built: Sequence[Built]) -> list[tuple[float, ...]]:
        if self.finals_fail:
            raise MeasureError("finals failed (crash): it was said so")
        self.final_rounds += 1
        return [(self.cost(b.candidate).times_us[0] * self.final_factor(b.candidate),) * 3 for b in built]

    def discard(self, _built: Built) -> None: ...
    def close(self) -> None: ...


def _cost(candidate: Candidate) -> Outcome:
    knobs = candidate.knobs
    distance = abs(int(knobs.get("ow_tile", 1)) - 7) + 3 * abs(int(knobs["oc_vectors"]) - 2)
    return Outcome("ok", "", 1e-7, (100.0 + 10 * distance + (knobs.get("pad_at") == "root"),), 0.1)


def _tuner(log: Path, bench: FormulaBench, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Tuner:
    tuner = Tuner(NATIVE, log, **options)
    monkeypatch.setattr(tuner, "_workers", lambda: bench)
    return tuner


def _bench(final_factor: Callable[[Candidate], float] = lambda _: 1.0) -> FormulaBench:
    return FormulaBench(_cost, final_factor)


def test_every_candidate_is_logged_once_and_the_default_is_among_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, seen = _bench(), []
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 20, on_progress=seen.append)
    records = Log(tmp_path / "log").records(SPEC)
    searched = [r for r in records if r.round == "search"]
    assert [r.candidate.key for r in searched] == bench.measured
    assert len(set(bench.measured)) == len(bench.measured) == result.trials <= 20
    assert space.default_candidate(SPEC, NATIVE) in [r.candidate for r in searched[:2]]
    assert [p.done for p in seen] == list(range(result.trials + 1))
    assert result.best is not None and result.best_us == min(r.time_us for r in records)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("text", ["conv,ic=64,oc=64,in=28x28,k=3,p=1", "depthwise,ic=64,oc=64,in=28x28,k=3,p=1"])
def test_of_several_spaces_what_compile_takes_is_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, layout: str
) -> None:
    """Of layers that the shipped log lacks: a near one's winner, or the default, which is the second then."""
    spec, bench = ConvSpec.parse(f"{text},layout={layout}"), FormulaBench(lambda _: _COSTLESS, lambda _: 1.0)
    taken = next(resolution.choices(spec, NATIVE, LogStack([ShippedLog()]), 2e-5)).candidate
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(spec, 2)
    default = space.default_candidate(spec, NATIVE)
    assert bench.measured[0] == taken.key and default.key in bench.measured and result.default_us is not None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("trials", [1, 2])
def test_no_log_makes_compile_slower_than_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: int, engine: str
) -> None:
    """The shipped winner takes part, however few the trials are and however many spaces there are."""
    spec = ConvSpec.parse("conv,ic=64,oc=64,in=28x28,k=3,p=1,layout=NHWC")
    names = [each.name for each in space.accepting(spec, NATIVE, 2e-5)]
    default = space.default_candidate(spec, NATIVE, 2e-5)
    owner = space.get(next(name for name in reversed(names) if name != default.space))
    _, shipped = itertools.islice(space.enumerate_candidates(owner, spec, NATIVE), 2)
    record = record_samples.make(3.0, spec=str(spec), target=NATIVE.facts(), candidate=shipped)
    Log(tmp_path / "shipped" / "native" / "conv.jsonl").append([record])
    monkeypatch.setattr("convtune.tuner.ShippedLog", lambda: ShippedLog(tmp_path / "shipped"))
    us = {shipped.key: 1.0, default.key: 2.0}
    bench = FormulaBench(lambda c: Outcome("ok", "", 1e-7, (us.get(c.key, 5.0),), 0.1), lambda _: 1.0)
    tuner = _tuner(tmp_path / "log", bench, monkeypatch, engine=engine)
    if engine == METASCHEDULE:
        monkeypatch.setattr(tuner, "_engine", lambda *_: ScriptedEngine([Candidate(engine, {"trace": "[0]"})]))
    result = tuner.tune(spec, trials)
    assert bench.measured[:2] == [shipped.key, default.key][: 2 if engine == METASCHEDULE else trials]
    assert result.best is not None and result.best.candidate == shipped
    stack = LogStack([Log(tmp_path / "log"), ShippedLog(tmp_path / "shipped")])
    (first, *_) = resolution.choices(spec, NATIVE, stack, 2e-5)
    assert first.candidate == shipped and str(tmp_path / "log") in first.reason


_COSTLESS = Outcome("ok", "", 1e-7, (1.0,), 0.1)


def test_finals_decide_and_not_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _tuner(tmp_path / "first", _bench(), monkeypatch).tune(SPEC, 24).best
    assert found is not None
    bench = _bench(lambda c: 5.0 if c == found.candidate else 1.0)
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 24)
    ranks = {r.candidate: r.rank for r in Log(tmp_path / "log").records(SPEC) if r.round == "search"}
    assert ranks[found.candidate] == min(ranks.values()), "the test needs the same search twice"
    assert result.best is not None and result.best.round == "final" and result.best.candidate != found.candidate


class SamplingBench(FormulaBench):
    """A bench that verifies in the search less than it does at the end; then `refuted` are wrong."""

    refuted: Candidate | None = None

    def verify(self, _spec: ConvSpec, built: Built, _limit: float) -> Outcome:
        if built.candidate == self.refuted:
            return Outcome("wrong", "gives another result in another order of its threads")
        return dataclasses.replace(self.cost(built.candidate), error=5e-7)


def test_what_was_sampled_is_verified_in_full_before_it_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SamplingBench(_cost, lambda _: 1.0)
    first.samples = True
    best = _tuner(tmp_path / "first", first, monkeypatch).tune(SPEC, 24).best
    assert best is not None and (best.round, best.error) == ("final", 5e-7)

    bench = SamplingBench(_cost, lambda _: 1.0)
    bench.samples, bench.refuted = True, best.candidate
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 24)
    assert result.best is not None and result.best.candidate != best.candidate
    assert result.failures["wrong"] == 1
    records = Log(tmp_path / "log").records(SPEC)
    assert [r.status for r in records if r.candidate == best.candidate] == ["ok", "wrong"]
    again = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 24)
    assert again.best == result.best and again.trials == 0


def test_the_same_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = _bench(), _bench(), _bench()
    _tuner(tmp_path / "log", first, monkeypatch).tune(SPEC, 10)
    _tuner(tmp_path / "log", second, monkeypatch).tune(SPEC, 15)
    assert len(first.measured) == 10 and len(second.measured) == 5
    assert not set(first.measured) & set(second.measured)
    result = _tuner(tmp_path / "log", third, monkeypatch).tune(SPEC, 15)
    assert third.measured == [] and third.final_rounds == 0 and result.trials == 0
    assert result.best is not None and result.stopped == "trials"


def test_an_interrupt_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(progress: Progress) -> None:
        if progress.tried == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _tuner(tmp_path / "log", _bench(), monkeypatch).tune(SPEC, 20, on_progress=stop)
    assert len(Log(tmp_path / "log").records(SPEC)) == 3


def test_seeds_repeat_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    for number, seed in enumerate((0, 0, 1)):
        bench = _bench()
        _tuner(tmp_path / str(number), bench, monkeypatch, seed=seed).tune(SPEC, 24)
        tried.append(bench.measured)
    assert tried[0] == tried[1] != tried[2]


def test_failures_are_records_and_never_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Candidate] = []

    def cost(candidate: Candidate) -> Outcome:
        if candidate not in tried:
            tried.append(candidate)
        number = tried.index(candidate)
        if number % 3 == 1:
            return Outcome("crash", "while running: killed by SIGSEGV", build_s=0.1)
        if number % 3 == 2:
            return Outcome("wrong", "error 0.5, allowed 2e-05", 0.5, build_s=0.1)
        return _cost(candidate)

    bench = FormulaBench(cost, lambda _: 1.0)
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 30)
    statuses = {r.status for r in Log(tmp_path / "log").records(SPEC)}
    assert {"ok", "crash", "wrong"} <= statuses and sum(result.failures.values()) > 0
    assert result.best is not None and result.best.status == "ok"


def test_a_failure_is_tried_once_more_in_a_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may have been full, or a worker killed from outside: that says nothing of the candidate."""
    full = FormulaBench(lambda _: Outcome("build_error", "ld: No space left on device"), lambda _: 1.0)
    _tuner(tmp_path / "log", full, monkeypatch).tune(SPEC, 4)
    healthy = _bench()
    result = _tuner(tmp_path / "log", healthy, monkeypatch).tune(SPEC, 4)
    assert healthy.measured[0] == full.measured[0] and result.best is not None and result.default_us is not None

    other = tmp_path / "other"
    for _ in range(2):
        _tuner(other, full, monkeypatch).tune(SPEC, 4)
    tried = len(full.measured)
    _tuner(other, full, monkeypatch).tune(SPEC, 4)
    assert len(full.measured) == tried, "what failed twice is not tried a third time"


def test_nothing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FormulaBench(lambda _: Outcome("timeout", "while building: no answer in 20 s"), lambda _: 1.0)
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 6)
    assert result.best is None and result.best_us is None and result.failures == {"timeout": 6}
    assert bench.final_rounds == 0


def test_finals_that_fail_leave_the_search_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _bench()
    bench.finals_fail = True
    result = _tuner(tmp_path / "log", bench, monkeypatch).tune(SPEC, 6)
    assert result.best is not None and result.best.round == "search" and "finals failed" in result.problem


def test_a_time_budget_stops_but_never_before_one_candidate_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _tuner(tmp_path / "log", _bench(), monkeypatch).tune(SPEC, 50, budget_s=0.0)
    assert result.stopped == "budget" and result.trials == 1 and result.best is not None


class ScriptedEngine:
    """An engine of some candidates, in place of MetaSchedule."""

    finished = None

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.left = list(candidates)

    def ask(self, n: int = 1) -> list[Candidate]:
        asked, self.left = self.left[:n], self.left[n:]
        return asked

    def tell(self, candidate: Candidate, time_us: float | None, status: str = "ok") -> None: ...


def test_a_time_budget_lets_one_of_the_engines_candidates_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, with which MetaSchedule is compared, and what `compile` takes without the log are none of them."""
    traces = [Candidate(METASCHEDULE, {"trace": f"[{n}]"}) for n in range(3)]
    bench = FormulaBench(lambda _: _COSTLESS, lambda _: 1.0)
    tuner = _tuner(tmp_path / "log", bench, monkeypatch, engine=METASCHEDULE)
    monkeypatch.setattr(tuner, "_engine", lambda *_: ScriptedEngine(traces))
    result = tuner.tune(SPEC, 3, budget_s=0.0)
    taken = next(resolution.choices(SPEC, NATIVE, LogStack([ShippedLog()]), 2e-5)).candidate
    assert bench.measured == [*dict.fromkeys([taken.key, space.default_candidate(SPEC, NATIVE).key]), traces[0].key]
    assert (result.trials, result.stopped, result.from_log) == (1, "budget", False)


def test_only_what_was_measured_before_is_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned(trials: int) -> bool:
        tuner = _tuner(tmp_path / "log", _bench(), monkeypatch, engine=METASCHEDULE)
        monkeypatch.setattr(tuner, "_engine", lambda *_: ScriptedEngine([]))
        result = tuner.tune(SPEC, trials)
        assert result.best is not None and result.trials == 0
        return result.from_log

    assert not tuned(3), "the default was, besides the trials"
    assert tuned(3)


def test_what_is_waited_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, seen = _bench(), []
    bench.samples = True
    tuner = _tuner(tmp_path / "log", bench, monkeypatch)
    monkeypatch.setattr(bench, "verify", lambda _spec, built, _limit: (tuner._wait(), _cost(built.candidate))[1])
    tuner.tune(SPEC, 2, on_progress=seen.append)
    assert [p.waiting_for for p in seen] == ["", "", "", *["verifying the fastest, whole"] * 2]


@pytest.mark.parametrize(("field", "value"), [("accuracy", "exact"), ("engine", "ansor")])
def test_unknown_names_are_refused_at_once(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown {field} '{value}'"):
        Tuner(NATIVE, tmp_path / "log", **{field: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spec": str(SPEC)}, SpecError, "it must be a ConvSpec; make one of a canonical string with ConvSpec.parse"),
        ({"spec": None}, SpecError, "spec is None, a NoneType; it must be a ConvSpec"),
        ({"target": None}, TargetError, "target is None; it must be a name as for --target, or a Target"),
        ({"target": 3}, TargetError, "target is 3; it must be a name as for --target, or a Target"),
        *(
            ({"trials": trials}, ConvtuneError, f"trials is {trials!r}; it must be an integer of at least 1")
            for trials in (0, -1, 1.5, "8", None, True)
        ),
        *(
            ({"budget_s": seconds}, ConvtuneError, f"budget_s is {seconds!r}; it must be None or at least 0 seconds")
            for seconds in (-1.0, float("nan"), "5m")
        ),
        *(
            ({"seed": seed}, ConvtuneError, f"seed is {seed!r}; it must be an integer of at least 0")
            for seed in (None, 0.5, "0", True, -1)
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_built(
    tmp_path: Path, arguments: dict[str, Any], error: type[ConvtuneError], message: str
) -> None:
    with pytest.raises(error) as caught:
        tune(**{"spec": SPEC, "target": NATIVE, "log": tmp_path / "log", **arguments})
    assert str(caught.value).endswith(message) and "\n" not in str(caught.value)
    assert not (tmp_path / "log").exists()


def test_a_log_that_cannot_be_read_is_found_out_before_tuning(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="directory"):
        Tuner(NATIVE, tmp_path)
    (tmp_path / "log").write_text(json.dumps({"schema": 999}) + "\n")
    with pytest.raises(LogError, match="newer convtune, schema 999"):
        Tuner(NATIVE, tmp_path / "log")


def test_a_target_that_cannot_run_here_cannot_be_tuned_here(tmp_path: Path) -> None:
    document = {"mcpu": "x86-64-v3", "name": "board", "required_features": ["no_such_feature"]}
    with pytest.raises(TargetError, match="cannot be timed here"):
        Tuner(targets.resolve(json.dumps(document)), tmp_path / "log")
