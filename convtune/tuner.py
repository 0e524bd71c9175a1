"""The tuner: search picks, build, verify, time, record, log. Nothing else knows all of these."""

from __future__ import annotations

import dataclasses
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from convtune import accuracy as accuracies
from convtune import resolution, space, targets
from convtune.engines import ENGINES, Aim, Engine, metaschedule, own_search
from convtune.errors import ConvtuneError, MeasureError, TargetError, UnknownNameError
from convtune.log import Log, LogStack, ShippedLog
from convtune.paths import log_path
from convtune.ranks import MEASURED, as_time
from convtune.record import METASCHEDULE, Record, utc_now, winner
from convtune.remote import Remote, remote_of
from convtune.spec import checked
from convtune.targets import CpuTarget
from convtune.tuning import Progress, Run, TuneResult, settled

if TYPE_CHECKING:
    from convtune.measure import Bench, Built, Outcome
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target

FINALISTS = {"measured": 3, "emulated": 1, "estimated": 1}
"""By origin, besides the default: what is measured again may come out otherwise."""
BATCH = 8  # candidates built at once: enough to keep the build workers busy, few enough to learn from soon


def tune(
    spec: ConvSpec,
    target: str | Target = "native",
    trials: int = 64,
    log: str | Path | None = None,
    *,
    budget_s: float | None = None,
    accuracy: str = "standard",
    seed: int = 0,
    engine: str = "convtune",
    rpc: str | None = None,
    rpc_key: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TuneResult:
    """Searches for the fastest verified schedule of a spec; every candidate becomes a record of the log.

    Args:
        target: a name as for --target, or a Target. Its kernels are timed here where it is this machine, or with rpc
            where the servers are. Otherwise a GPU's are estimated, and those of another kind of CPU emulated.
        trials: candidates to try, at least 1, those that the log already has included.
        log: the file to append to; None: the user's own.
        budget_s: seconds after which no further candidates are tried; the fastest are still checked and compared.
        accuracy: "strict", "standard" or "loose": the largest error allowed.
        seed: of the search.
        engine: "convtune", or "metaschedule" for TVM's own auto-scheduler.
        rpc, rpc_key: HOST:PORT of TVM's RPC tracker, and the key of the servers on whose machines kernels run.
        on_progress: called after every candidate, and every few seconds while one takes long.

    Raises:
        SpecError: spec is no ConvSpec.
        ConvtuneError: trials, budget_s or seed is not as above.
        UnknownNameError, TargetError: no such target, accuracy or engine, or its kernels cannot be tried here.
        LogError: the log cannot be read or written.
        MeasureError: the workers do not start.
    """
    remote = remote_of(rpc, rpc_key)
    machine = targets.resolve(target, elsewhere=remote is not None) if isinstance(target, str) else target
    with Tuner(machine, log, accuracy=accuracy, seed=seed, engine=engine, remote=remote) as tuner:
        return tuner.tune(spec, trials, budget_s, on_progress)


def _is_integer(value: object) -> bool:
    # bool is an int to Python; numpy integers are not, yet mean one
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_limits(trials: int, budget_s: float | None) -> None:
    if not _is_integer(trials) or trials < 1:
        raise ConvtuneError(f"trials is {trials!r}; it must be an integer of at least 1")
    number = isinstance(budget_s, Real) and not isinstance(budget_s, bool)
    if budget_s is not None and not (number and budget_s >= 0):  # NaN is not >= 0
        raise ConvtuneError(f"budget_s is {budget_s!r}; it must be None or at least 0 seconds")


def origin_here(target: Target) -> str | None:
    """The origin of a target's records where no other machine helps; None where its kernels cannot be tried here."""
    if target.is_host:
        return MEASURED
    if isinstance(target, CpuTarget):
        return "emulated" if target.machine != platform.machine() else None
    return "estimated" if "estimated" in target.origins else None


def _origin(target: Target, remote: Remote | None) -> str:
    """By what a target's kernels are compared: times, where it is this machine or there are remote ones.

    Raises TargetError where there is nothing to compare them by, or their times would pass for this machine's.
    """
    if remote is not None and target.is_host:
        raise TargetError(f"target {target.name!r} is this machine, and kernels are to run on another; describe that")
    origin = MEASURED if remote is not None else origin_here(target)
    if origin is not None:
        return origin
    raise TargetError(
        f"target {target.name!r} cannot be timed here: {target.why_not_here()}; compile for it instead, or tune on "
        "such a machine, or over RPC (--rpc)"
    )


class Tuner:
    """Tunes several specs on one target with one set of workers, which start when there is something to build."""

    def __init__(
        self,
        target: Target,
        log: str | Path | None,
        *,
        accuracy: str = "standard",
        seed: int = 0,
        engine: str = "convtune",
        remote: Remote | None = None,
    ) -> None:
        """Raises as `tune` does; a log that cannot be read is found out here."""
        for kind, name, names in (("accuracy", accuracy, accuracies.NAMES), ("engine", engine, ENGINES)):
            if name not in names:
                raise UnknownNameError(kind, name, names)
        if not isinstance(target, targets.Target):
            raise TargetError(f"target is {target!r}; it must be a name as for --target, or a Target")
        if not _is_integer(seed) or seed < 0:
            raise ConvtuneError(f"seed is {seed!r}; it must be an integer of at least 0")
        self.target, self.accuracy, self.seed, self.engine = target, accuracy, seed, engine
        self.origin, self.remote = _origin(target, remote), remote
        self.log = Log(log if log is not None else log_path())
        self.log.check()
        self._shipped = LogStack([ShippedLog()])
        self._bench: Bench | None = None
        self._run: Run | None = None

    def tune(
        self,
        spec: ConvSpec,
        trials: int,
        budget_s: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> TuneResult:
        """As the function `tune`. What the log already has of this engine counts as tried."""
        checked(spec)
        _check_limits(trials, budget_s)
        history = settled(self._records(spec))
        limit = accuracies.limit(spec, self.accuracy)
        default = space.default_candidate(spec, self.target, limit)
        tried = {
            r.candidate.key for r in history if (r.candidate.space == METASCHEDULE) == (self.engine == METASCHEDULE)
        }
        run = Run(spec, trials, limit, len(tried), on_progress, default, self.origin)
        self._run = run
        for record in history:
            run.note(record)
        run.report()
        aim = self._aim(run)
        engine = self._engine(aim, run, [run.yardstick.alike(record) for record in history])
        if self.engine == METASCHEDULE:  # what the engine is compared with, besides its trials
            known = [record.candidate for record in history]
            self._try(run, None, [c for c in dict.fromkeys([aim.taken, default]) if c not in known], None)
        stopped = None
        while stopped is None:
            run.doing = "choosing candidates"
            candidates = engine.ask(1 if run.is_over(budget_s) else self._batch())
            self._try(run, engine, candidates, budget_s)
            stopped = "budget" if run.is_over(budget_s) else engine.finished or (None if candidates else "exhausted")
        self._finals(run)
        for built in run.built.values():
            self._workers().discard(built)
        return self._result(run, stopped)

    def _aim(self, run: Run) -> Aim:
        # without the log that is written, so that a run that goes on picks what the interrupted one would have
        choices = resolution.choices(run.spec, self.target, self._shipped, run.limit)
        taken = next(choices).candidate if run.done < run.trials else run.default
        return Aim(run.spec, self.target, run.default, taken, run.trials, self.seed, run.limit, self.origin)

    def _engine(self, aim: Aim, run: Run, history: Sequence[Record]) -> Engine:
        if self.engine == METASCHEDULE:
            return metaschedule(aim, history, run.wait)
        return own_search(aim, history, self._knowledge(run.spec))

    def _records(self, spec: ConvSpec) -> list[Record]:
        """What the log has of the spec on this target, of the origin that there is here."""
        return [r for r in self.log.records(spec, self.target.fingerprint) if r.origin == self.origin]

    def _knowledge(self, spec: ConvSpec) -> list[Record]:
        """Every record that is not this spec's history."""
        own = (str(spec), self.target.fingerprint)
        return [r for r in self.log.records() if (r.spec, r.fingerprint) != own] + self._shipped.records()

    def _try(self, run: Run, engine: Engine | None, candidates: Sequence[Candidate], budget_s: float | None) -> None:
        """Builds, measures and logs a batch; the rest is given up when the time is over, save the engine's first."""
        asked = {candidate.key for candidate in candidates}
        for built, outcome in self._outcomes(run, candidates, budget_s):
            record = self._record(run, built.candidate, outcome)
            self._keep(run, [record])
            run.built[built.candidate.key] = built
            run.note(record)
            if engine is not None and built.candidate.key in asked:  # the default is measured on every machine
                asked.remove(built.candidate.key)
                run.done, run.tried = run.done + 1, run.tried + 1
                rank = run.yardstick.alike(record).rank if record.status == "ok" else None
                engine.tell(built.candidate, rank, record.status)
            run.report()

    def _outcomes(
        self, run: Run, candidates: Sequence[Candidate], budget_s: float | None
    ) -> Iterator[tuple[Built, Outcome]]:
        def is_enough() -> bool:
            return not candidates or (run.is_over(budget_s) and run.best_rank is not None and run.done > 0)

        def best_us() -> float | None:
            return as_time(run.best_rank, self.origin)

        if is_enough():
            return
        from convtune.measure import Wanted

        wanted = Wanted(run.spec, candidates, run.limit, run.default, best_us, run.does)
        for each in self._workers().outcomes(wanted):
            yield each
            if is_enough():
                return

    def _batch(self) -> int:
        return BATCH if self._bench is None else max(BATCH, 4 * self._bench.machines)

    def _build(self, run: Run, candidates: Sequence[Candidate]) -> list[Built]:
        run.doing = f"building {len(candidates)} candidate{'s' if len(candidates) > 1 else ''}"
        return self._workers().build(run.spec, candidates)

    def _keep(self, run: Run, records: Sequence[Record]) -> None:
        self.log.append(records)
        run.from_log = False

    def _finals(self, run: Run) -> None:
        """Measures the default and the fastest again, in turn, unless that was done since the last new candidate."""
        records = self._records(run.spec)
        if not records or records[-1].round == "final":
            return
        kernels = self._finalists(run)
        if not kernels:
            return
        batch, finals = utc_now(), []
        run.doing = "comparing the fastest"
        try:
            times = self._workers().finals(run.spec, kernels)
        except MeasureError as error:  # the times of the search stand
            run.problem = str(error)
            return
        for built, times_us in zip(kernels, times):
            known = next(r for r in reversed(records) if r.candidate == built.candidate and r.status == "ok")
            final = dataclasses.replace(known, times_us=times_us, round="final", batch=batch, utc=utc_now())
            verified = run.verified.get(built.candidate.key)
            if verified:
                final = dataclasses.replace(final, error=verified.error)
            if verified and verified.cost is not None:
                final = dataclasses.replace(final, cost=verified.cost, counts=verified.counts)
            device = self._workers().finals_device
            finals.append(dataclasses.replace(final, default=built.candidate == run.default, device=device))
        self._keep(run, finals)  # at once: a part of a batch would decide the winner

    def _finalists(self, run: Run) -> list[Built]:
        """The default, where it is right, and the fastest of the search, as libraries that are known to be right."""
        proven: dict[str, Built] = {}
        while missing := [c for c in self._ranked(run) if c.key not in proven]:
            new = [c for c in missing if c.key not in run.built]
            run.built |= {built.candidate.key: built for built in (self._build(run, new) if new else [])}
            for candidate in missing:
                built = run.built[candidate.key]
                if candidate in new or self._workers().samples:
                    run.doing = "verifying the fastest, whole"
                    outcome = self._workers().verify(run.spec, built, run.limit)
                    if outcome.status != "ok":
                        self._withdraw(run, candidate, outcome)
                        continue
                    run.verified[candidate.key] = outcome
                proven[candidate.key] = built
        return [proven[c.key] for c in self._ranked(run)]

    def _withdraw(self, run: Run, candidate: Candidate, outcome: Outcome) -> None:
        """Keeps in the log that a candidate of the search is not right after all."""
        record = self._record(run, candidate, outcome)
        self._keep(run, [record])
        run.note(record)
        del run.built[candidate.key]

    def _ranked(self, run: Run) -> list[Candidate]:
        """The default, where it is right, and the fastest of the search, of those that no later record withdraws."""
        ranks: dict[str, tuple[float, Candidate]] = {}
        for r in map(run.yardstick.alike, self._records(run.spec)):
            if r.round == "search":
                ranks.pop(r.candidate.key, None)
                if r.status == "ok" and r.error is not None and r.error <= run.limit:
                    ranks[r.candidate.key] = (r.rank, r.candidate)
        ranked = [c for _, c in sorted(ranks.values(), key=lambda pair: pair[0])]
        default = [run.default] if run.default.key in ranks else []
        return default + [c for c in ranked[: FINALISTS[self.origin]] if c != run.default]

    def _record(self, run: Run, candidate: Candidate, outcome: Outcome) -> Record:
        return Record(
            spec=str(run.spec),
            target=self.target.facts(),
            candidate=candidate,
            origin=self.origin,
            status=outcome.status,
            message=outcome.message,
            error=outcome.error,
            times_us=outcome.times_us,
            build_s=outcome.build_s,
            resources=outcome.resources,
            cost=outcome.cost,
            counts=outcome.counts,
            default=candidate == run.default,
            device=outcome.device,
            seed=self.seed,
        )

    def _result(self, run: Run, stopped: str) -> TuneResult:
        records = self._records(run.spec)
        best = winner(records, max_error=run.limit, origin=self.origin)
        beside = [
            r for r in records if best and r.candidate == run.default and r.batch == best.batch and r.status == "ok"
        ]
        default_rank = beside[-1].rank if beside else run.default_rank
        return TuneResult(
            run.spec,
            self.target,
            best,
            default_rank,
            run.tried,
            stopped,
            Counter(run.failures),
            run.elapsed_s,
            run.problem,
            self.origin,
            run.from_log,
        )

    def _workers(self) -> Bench:
        if self._bench is None:
            from convtune.measure import open_bench

            self._bench = open_bench(self.target, self.remote)
            self._bench.while_waiting(self._wait)
        return self._bench

    def _wait(self) -> None:
        if self._run is not None:
            self._run.wait()

    def close(self) -> None:
        """Ends the workers, where any were started."""
        if self._bench is not None:
            self._bench.close()
            self._bench = None

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
