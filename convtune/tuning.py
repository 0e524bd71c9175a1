"""What is known of one spec's tuning: while it runs, for those who watch, and when it has ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convtune.ranks import MEASURED, as_cost, as_time
from convtune.yardstick import Yardstick

if TYPE_CHECKING:
    from convtune.measure import Built, Outcome
    from convtune.record import Record
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target


@dataclass(frozen=True)
class Progress:
    """Where the tuning of one spec stands. Ranks as a record of the origin has them, None before there is one.

    done: of `trials`, those in the log included. tried: in this run. origin: of the ranks, as a record has it.
    waiting_for: what has been going on for some seconds, such as "building 8 candidates"; "" after a candidate.
    """

    spec: ConvSpec
    done: int
    trials: int
    tried: int
    best_rank: float | None
    default_rank: float | None
    failures: Counter[str]
    elapsed_s: float
    origin: str = MEASURED
    waiting_for: str = ""


@dataclass(frozen=True)
class TuneResult:
    """What tuning a spec came to.

    best: the record that `compile` will use; None where nothing worked. default_rank, best_rank: as records of the
    origin have them. trials: candidates tried now. stopped: trials, plateau, exhausted, budget. failures: by status.
    problem: what kept the finalists from being measured in turn, if anything did. from_log: nothing was tried now.
    """

    spec: ConvSpec
    target: Target
    best: Record | None
    default_rank: float | None
    trials: int
    stopped: str
    failures: Counter[str]
    elapsed_s: float
    problem: str = ""
    origin: str = MEASURED
    from_log: bool = False

    @property
    def best_rank(self) -> float | None:
        return None if self.best is None else self.best.rank

    @property
    def best_us(self) -> float | None:
        """The median time in microseconds; None where nothing worked, or kernels have a cost and no time."""
        return as_time(self.best_rank, self.origin)

    @property
    def default_us(self) -> float | None:
        """The same of the default schedule, measured in turn with the best."""
        return as_time(self.default_rank, self.origin)

    @property
    def best_cost(self) -> float | None:
        """In weighted instructions, where the kernels were emulated; None elsewhere."""
        return as_cost(self.best_rank, self.origin)

    @property
    def default_cost(self) -> float | None:
        """The same of the default schedule."""
        return as_cost(self.default_rank, self.origin)


@dataclass
class Run:
    """One spec being tuned: the counts for its progress, and what was built for it."""

    spec: ConvSpec
    trials: int
    limit: float
    done: int
    on_progress: Callable[[Progress], None] | None
    default: Candidate
    origin: str
    started: float = field(default_factory=time.monotonic)
    tried: int = 0
    best_rank: float | None = None
    default_rank: float | None = None
    failures: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    built: dict[str, Built] = field(default_factory=dict)  # by candidate key
    verified: dict[str, Outcome] = field(default_factory=dict)  # finalists that were verified again, in full
    from_log: bool = True
    doing: str = ""

    def __post_init__(self) -> None:
        self.yardstick = Yardstick(self.default)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def is_over(self, budget_s: float | None) -> bool:
        return budget_s is not None and self.elapsed_s >= budget_s

    def note(self, record: Record) -> None:
        """Counts a search record, of now or before."""
        self.yardstick.note(record)
        record = self.yardstick.alike(record)
        if record.status != "ok":
            self.failures[record.status] += 1
        elif record.error is not None and record.error <= self.limit:
            self.best_rank = min(record.rank, self.best_rank or record.rank)
            if record.candidate == self.default:
                self.default_rank = record.rank

    def report(self) -> None:
        """To be called after every candidate."""
        self._report("")

    def does(self, what: str) -> None:
        """To be called when something begins that may take long."""
        self.doing = what

    def wait(self) -> None:
        """To be called now and then while `doing` takes long."""
        self._report(self.doing)

    def _report(self, waiting_for: str) -> None:
        if self.on_progress is not None:
            now = (self.done, self.trials, self.tried, self.best_rank, self.default_rank, Counter(self.failures))
            self.on_progress(Progress(self.spec, *now, self.elapsed_s, self.origin, waiting_for))


def settled(records: Iterable[Record]) -> list[Record]:
    """The search's records, less those of candidates that failed just once.

    A full disk, a killed worker or a hung machine fail a candidate too, and the log outlives them: a failure that may
    not be the candidate's own is tried once more, in a later run.
    """
    search = [r for r in records if r.round == "search"]
    failed = Counter(r.candidate.key for r in search if r.status not in ("ok", "wrong"))
    return [r for r in search if r.status in ("ok", "wrong") or failed[r.candidate.key] > 1]
