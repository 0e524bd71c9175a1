"""TVM's MetaSchedule as the service of a worker process: from the trials of a spec so far to the traces to try next."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.errors import ScheduleError
from convtune.expression import plain
from convtune.measure.replay import replay
from convtune.search.metaschedule_rules import rules_of

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

GENERATIONS = 4
WARM_UP = 16  # trials before the cost model ranks; MetaSchedule waits for 100, more than most searches here have


@dataclass(frozen=True)
class Tried:
    """A trace, as JSON text, and its rank as MetaSchedule wants it, in seconds; None where it failed."""

    trace: str
    time_s: float | None


@dataclass(frozen=True)
class Propose:
    """Asks for up to `count` traces, none of which makes a kernel that those of `tried` and `waiting` make.

    tried: in order. waiting: traces, as JSON text, whose outcome is not known yet.
    """

    spec: ConvSpec
    tried: tuple[Tried, ...]
    waiting: tuple[str, ...]
    count: int
    seed: int


class Proposer:
    """Answers `Propose` with traces as JSON data, best first; an empty list where nothing new was found.

    Each answer follows from its request alone, so a worker that died, or a run that was interrupted, loses nothing.
    """

    def __init__(self, target: Target) -> None:
        """Raises TargetError where TVM does not know the target."""
        self._rules = rules_of(target)
        self._target = self._rules.target(target)
        self._schedules: dict[tuple[ConvSpec, str], Any] = {}  # replaying anew each time would dominate long searches
        self._log = logging.getLogger("convtune.metaschedule")
        self._log.setLevel(logging.ERROR)  # the worker's output must end with why it died, not with a progress report

    def __call__(self, request: Propose) -> list[Any]:
        """Raises what the rules raise for a function that they cannot schedule."""
        from tvm_ffi import structural_hash

        schedules = [self._replayed(request.spec, tried.trace) for tried in request.tried]
        known = [(tried, schedule) for tried, schedule in zip(request.tried, schedules) if schedule is not None]
        schedules += [self._replayed(request.spec, trace) for trace in request.waiting]
        seen = {structural_hash(schedule.mod) for schedule in schedules if schedule is not None}
        found: list[Any] = []
        for candidate in self._picks(request, known, request.count + len(seen)):
            kernel = structural_hash(candidate.sch.mod)
            if kernel not in seen and len(found) < request.count:
                seen.add(kernel)
                found.append(_data(candidate.sch.trace))
        return found

    def _replayed(self, spec: ConvSpec, trace: str) -> Any:
        """The schedule, or None where a log's trace is of an expression that this version no longer has."""
        if (spec, trace) not in self._schedules:
            try:
                self._schedules[spec, trace] = replay(spec, json.loads(trace))
            except ScheduleError:
                self._schedules[spec, trace] = None
        return self._schedules[spec, trace]

    def _picks(self, request: Propose, known: Sequence[tuple[Tried, Any]], count: int) -> Sequence[Any]:
        """MeasureCandidates of one round of the evolutionary search, which knows nothing of earlier rounds."""
        import numpy as np
        from tvm.s_tir import Schedule
        from tvm.s_tir.meta_schedule import arg_info, cost_model, database, runner, search_strategy

        np.random.seed(request.seed)  # the cost model's scores before it is trained
        module = Schedule(plain(request.spec)).mod
        generations = GENERATIONS if len(known) >= WARM_UP else 0
        context = self._context(module, generations, request.seed)
        arguments = arg_info.ArgInfo.from_entry_func(module)
        memory = database.MemoryDatabase()
        workload = memory.commit_workload(module)
        for tried, schedule in known:
            if tried.time_s is not None:
                memory.commit_tuning_record(
                    database.TuningRecord(schedule.trace, workload, [tried.time_s], self._target, arguments)
                )
        model = cost_model.XGBModel(num_warmup_samples=WARM_UP, num_tuning_cores=1)
        if len(known) >= WARM_UP:
            candidates = [search_strategy.MeasureCandidate(schedule, arguments) for _, schedule in known]
            times = [tried.time_s for tried, _ in known]
            results = [runner.RunnerResult([t], None) if t else runner.RunnerResult(None, "failed") for t in times]
            model.update(context, candidates, results)
        context.pre_tuning(count, count, context.generate_design_space(), memory, model)
        return context.generate_measure_candidates() or ()

    def _context(self, module: Any, generations: int, seed: int) -> Any:
        from tvm.s_tir.meta_schedule import _ffi_api, space_generator
        from tvm.s_tir.meta_schedule.logging import get_logging_func
        from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch

        rules = self._rules
        space = space_generator.PostOrderApply(
            sch_rules=rules.schedule_rules(), postprocs=rules.postprocessors(), mutator_probs=rules.mutators()
        )
        # the sample need not be large: small convolutions do not have 50 different schedules
        strategy = EvolutionarySearch(
            population_size=rules.population, init_min_unmeasured=1, genetic_num_iters=generations
        )
        # not by its Python class, which imports the tensor intrinsics: 15 to 25 s, and float32 needs none.
        # One thread: with more, which of them draws which random number is up to the scheduler.
        log = get_logging_func(self._log)
        context = _ffi_api.TuneContext(module, self._target, space, strategy, "main", 1, seed, log)
        _ffi_api.TuneContextInitialize(context)
        return context


def _data(trace: Any) -> Any:
    """The trace as plain JSON data; TVM's own has its constants among Python's."""
    return json.loads(json.dumps(trace.as_json(), default=lambda constant: constant.value))
