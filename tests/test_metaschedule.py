"""MetaSchedule as an engine: what it proposes is right, new and repeatable, and neither it nor a log can do harm."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_samples as samples

import convtune
from convtune import accuracy, targets
from convtune.errors import MeasureError, ScheduleError
from convtune.log import Log
from convtune.measure import CpuBench
from convtune.measure.replay import replay
from convtune.measure.worker import Reply
from convtune.record import METASCHEDULE, Record, trace, traced, winner
from convtune.search import metaschedule, metaschedule_worker
from convtune.search.metaschedule import MetaScheduleSearch
from convtune.search.metaschedule_rules import Rules
from convtune.search.metaschedule_worker import Propose, Proposer
from convtune.space import Candidate, default_candidate
from convtune.spec import ConvSpec

NATIVE = targets.resolve("native")
SPEC = ConvSpec.parse("conv,ic=5,oc=16,in=9x7,k=3x3,p=1,layout=NHWC,act=relu")
TINY = ConvSpec.parse("pointwise,ic=1,oc=1,in=1,k=1")
ODD_SPECS = [
    "conv,ic=5,oc=7,in=11x6,k=3x2,s=2x1,p=1:2x0:1,n=2,layout=NHWC,act=silu,bias,residual",
    "grouped,ic=6,oc=9,in=13,k=3,p=2:-1,g=3",
    "depthwise,ic=4,oc=8,in=5x6x7,k=3x3x3,g=4,p=1,layout=NDHWC",
    "dilated,ic=3,oc=4,in=15x9,k=3x3,d=2,p=2,bias",
    "pointwise,ic=256,oc=1,in=2x2,k=1x1,layout=NHWC,act=hardswish",  # little to do in parallel: rfactor
    "depthwise_separable,ic=8,oc=16,in=14x14,k=3x3,p=1,sact=relu",  # the stages between: a cache of what is written
]


@functools.cache
def proposer() -> Proposer:
    return Proposer(NATIVE)


class HerePool:
    """Answers in this process."""

    def __init__(self, *_: object) -> None: ...

    def call(self, request: Propose, _timeout_s: float, _memory_bytes: int) -> Reply:
        return Reply("ok", proposer()(request))

    def stop(self) -> None: ...


class ScriptedPool(HerePool):
    """Answers with what the script says, and keeps the requests."""

    def __init__(self, script: Sequence[Reply]) -> None:
        self.replies, self.requests = list(script), list[Propose]()

    def call(self, request: Propose, _timeout_s: float, _memory_bytes: int) -> Reply:
        self.requests.append(request)
        return self.replies.pop(0)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaschedule, "Pool", HerePool)


def scripted(monkeypatch: pytest.MonkeyPatch, *script: Reply) -> ScriptedPool:
    pool = ScriptedPool(script)
    monkeypatch.setattr(metaschedule, "Pool", lambda *_: pool)
    return pool


def names(*letters: str) -> Reply:
    """A reply of made-up traces."""
    return Reply("ok", [[[letter], []] for letter in letters])


def named(letter: str) -> Candidate:
    return traced([[letter], []])


def tried(request: Propose) -> list[tuple[Candidate, float | None]]:
    return [(Candidate(METASCHEDULE, {"trace": t.trace}), t.time_s) for t in request.tried]


def record(candidate: Candidate, time_us: float | None = 5.0, **changes: Any) -> Record:
    make = samples.failure if time_us is None else functools.partial(samples.make, time_us)
    return make(**{"spec": str(SPEC), "candidate": candidate, **changes})


def fake_time_us(candidate: Candidate) -> float:
    return 1 + int(candidate.key, 16) % 1000 / 10


@pytest.fixture(scope="module")
def bench() -> Iterator[CpuBench]:
    with CpuBench(NATIVE) as bench:
        yield bench


@pytest.mark.parametrize("text", ODD_SPECS)
def test_what_it_proposes_builds_and_agrees_with_the_reference(bench: CpuBench, text: str) -> None:
    spec = ConvSpec.parse(text)
    candidates = [traced(data) for data in proposer()(Propose(spec, (), (), 4, seed=3))]
    assert len(set(candidates)) == 4
    limit = accuracy.limit(spec, "standard")
    for built in bench.build(spec, candidates):
        outcome = bench.measure(spec, built, limit, best_us=1e-9)
        assert (outcome.status, outcome.message) == ("ok", "")


def test_a_worker_proposes_what_this_process_does_and_ends_with_close(monkeypatch: pytest.MonkeyPatch) -> None:
    search = MetaScheduleSearch(SPEC, NATIVE, trials=4, seed=7)
    found = search.ask(4)
    (worker,) = search._pool._workers
    assert worker.running
    search.close()
    search.close()
    assert not worker.running
    monkeypatch.setattr(metaschedule, "Pool", HerePool)
    assert MetaScheduleSearch(SPEC, NATIVE, trials=4, seed=7).ask(4) == found
    assert MetaScheduleSearch(SPEC, NATIVE, trials=4, seed=8).ask(4) != found


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metaschedule_worker, "WARM_UP", 4)  # the cost model takes part
    monkeypatch.setattr(Rules, "population", 16)
    whole = MetaScheduleSearch(SPEC, NATIVE, trials=14, seed=1)
    asked: list[Candidate] = []
    while not whole.finished:
        batch = whole.ask(4)
        asked += batch
        for candidate in batch:
            whole.tell(candidate, fake_time_us(candidate))
    assert whole.finished == "trials"
    assert len(asked) == len(set(asked)) == 14
    history = [record(c, fake_time_us(c)) for c in asked[:8]]
    again = MetaScheduleSearch(SPEC, NATIVE, history=history, trials=14, seed=1)
    assert again.ask(4) == asked[8:12]


@pytest.mark.usefixtures("here")
def test_a_small_space_is_exhausted_and_no_kernel_comes_twice() -> None:
    from tvm_ffi import structural_hash

    search = MetaScheduleSearch(TINY, NATIVE, trials=200)
    asked: list[Candidate] = []
    while not search.finished:
        asked += search.ask(64)  # and tells nothing: those that wait must not come again either
    assert search.finished == "exhausted"
    assert search.ask() == []
    assert 1 < len({structural_hash(replay(TINY, trace(c)).mod) for c in asked}) == len(asked) < 200


def test_history_counts_and_other_spaces_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = scripted(monkeypatch, names("c", "d"))
    other = samples.make(1.0, spec=str(SPEC))
    inaccurate = record(named("e"), 2.0, error=1e-3)
    history = [record(named("a"), 5.0), other, record(named("b"), None), inaccurate]
    search = MetaScheduleSearch(SPEC, NATIVE, history=history, trials=5, max_error=2e-5)
    assert search.ask(8) == [named("c"), named("d")]
    assert search.finished == "trials"
    assert search.ask(8) == []
    (request,) = pool.requests
    assert request.count == 2
    assert tried(request) == [(named("a"), pytest.approx(5e-6)), (named("b"), None), (named("e"), None)]


def test_outcomes_and_what_waits_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = scripted(monkeypatch, names("a", "b", "c"), names("d"))
    search = MetaScheduleSearch(SPEC, NATIVE, trials=9)
    a, b, c = search.ask(3)
    search.tell(b, 2.0)
    search.tell(a, None, "crash")
    search.ask(3)
    assert tried(pool.requests[1]) == [(b, pytest.approx(2e-6)), (a, None)]
    assert pool.requests[1].waiting == (c.knobs["trace"],)


def test_a_crash_of_the_worker_is_tried_again_with_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = scripted(monkeypatch, Reply("crash", message="SIGSEGV"), Reply("timeout"), names("a"))
    assert MetaScheduleSearch(SPEC, NATIVE, trials=9).ask(3) == [named("a")]
    assert len({request.seed for request in pool.requests}) == 3


@pytest.mark.parametrize(
    ("script", "requests"),
    [([Reply("crash", message="SIGSEGV")] * 5, 3), ([Reply("error", message="TypeError: no rule")] * 5, 1)],
)
def test_a_search_that_cannot_be_is_an_error(
    monkeypatch: pytest.MonkeyPatch, script: list[Reply], requests: int
) -> None:
    pool = scripted(monkeypatch, *script)
    with pytest.raises(MeasureError, match=rf"{SPEC}.*{script[0].status}.*{script[0].message}"):
        MetaScheduleSearch(SPEC, NATIVE, trials=9).ask(3)
    assert len(pool.requests) == requests


@pytest.mark.parametrize(("rank", "status"), [(None, "ok"), (0.0, "ok"), (float("inf"), "ok"), (1.0, "wrong")])
def test_contradictory_outcomes_are_refused(monkeypatch: pytest.MonkeyPatch, rank: float | None, status: str) -> None:
    scripted(monkeypatch)
    with pytest.raises(ValueError, match="ok needs a positive rank"):
        MetaScheduleSearch(SPEC, NATIVE, trials=9).tell(named("a"), rank, status)


def test_a_trace_of_an_older_expression_neither_guides_nor_ends_the_search() -> None:
    old = traced([[["GetSBlock", [], ["a_block_of_old", "main"], ["b0"]]], []])
    request = Propose(SPEC, (metaschedule.Tried(str(old.knobs["trace"]), 1e-6),), (), 2, seed=1)
    assert len(proposer()(request)) == 2


GET = ["GetSBlock", [], ["acc", "main"], ["b0"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "must be"),
        ([], "must be"),
        ([[], [], []], "must be"),
        ([[GET[:3]], []], "must be"),
        ([[["Tensorize", ["b0"], ["intrinsic", True], []]], []], "'Tensorize' in a trace is none of"),
        ([[["UnsafeSetDType", ["b0"], [0, "int8"], []]], []], "'UnsafeSetDType' in a trace"),
        ([[[["Fuse"], [], [], []]], []], "in a trace is none of"),
        ([[GET, ["Annotate", ["b0", "source"], ["pragma_import_llvm"], []]], []], "pragma_import_llvm"),
        ([[GET, ["Annotate", ["b0", 1], [], []]], []], "annotation"),
        ([[GET, ["Annotate", ["b0", 1], [["x"]], []]], []], "annotation"),
        ([[GET, ["Annotate", ["b0", 1], 3, []]], []], "must be"),
        ([[["GetSBlock", [], ["nowhere", "main"], ["b0"]]], []], f"does not fit {SPEC}: .*specified name"),
        ([[["GetLoops", ["b9"], [], ["l0"]]], []], "not defined: b9"),
    ],
)
def test_a_trace_that_we_would_not_make_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        replay(SPEC, data)


def test_a_refused_trace_is_a_build_error(bench: CpuBench) -> None:
    (built,) = bench.build(SPEC, [traced([[["Tensorize", [], [], []]], []])])
    assert (built.status, built.library) == ("build_error", None)
    assert "'Tensorize' in a trace" in built.message


@pytest.mark.slow
def test_tune_logs_traces_and_compile_replays_the_winner(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    other = record(Candidate("fallback", {}), 1e6, target=NATIVE.facts())
    Log(log).append([other])
    done: list[int] = []
    result = convtune.tune(SPEC, trials=6, log=log, engine="metaschedule", on_progress=lambda p: done.append(p.done))
    # the default is measured too, beside the trials: it is what the engine is compared with
    assert (result.trials, result.stopped) == (6, "trials")
    assert sorted(set(done)) == list(range(7)), "it is called while waiting, too, and so more often"
    assert done == sorted(done)
    assert result.best is not None and result.best.round == "final" and result.default_us is not None
    records = Log(log).records(SPEC)[1:]
    assert records[0].candidate == default_candidate(SPEC, NATIVE)
    traces = [r for r in records if r.candidate != records[0].candidate]
    assert {r.candidate.space for r in traces} == {METASCHEDULE}
    assert all(r.status == "ok" and isinstance(trace(r.candidate), list) for r in traces)
    assert convtune.tune(SPEC, trials=6, log=log, engine="metaschedule").trials == 0

    best = winner(traces, max_error=2e-5)
    assert best is not None
    Log(tmp_path / "traces.jsonl").append(traces)
    conv = convtune.compile(SPEC, log=tmp_path / "traces.jsonl")
    assert conv.manifest.resolution.kind == "log"
    assert conv.manifest.candidate == {"space": METASCHEDULE, "knobs": dict(best.candidate.knobs)}
    rng = np.random.default_rng(5)
    x = rng.standard_normal(SPEC.in_shape, dtype=np.float32)
    weight = rng.standard_normal(SPEC.weight_shapes[0], dtype=np.float32)
    np.testing.assert_allclose(conv(x, weight), convtune.reference(SPEC, x, weight), rtol=1e-4, atol=1e-4)
