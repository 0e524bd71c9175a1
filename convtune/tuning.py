"""What is known of one spec's tuning: while it runs, for those who watch, and when it has ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convtune.measure import Built
    from convtune.record import Record
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target


@dataclass(frozen=True)
class Progress:
    """Where the tuning of one spec stands. Times in microseconds, None before there is one.

    done: of `trials`, those in the log included. tried: in this run. origin: of the times, as a record has it.
    waiting_for: what has been going on for some seconds, such as "building 8 candidates"; "" after a candidate.
    """

    spec: ConvSpec
    done: int
    trials: int
    tried: int
    best_us: float | None
    default_us: float | None
    failures: Counter[str]
    elapsed_s: float
    origin: str = "measured"
    waiting_for: str = ""


@dataclass(frozen=True)
class TuneResult:
    """What tuning a spec came to.

    best: the record that `compile` will use; None where nothing worked. default_us, best_us: medians, measured in turn
    with each other. trials: candidates tried now. stopped: trials, plateau, exhausted, budget. failures: by status.
    problem: what kept the finalists from being measured in turn, if anything did. origin: of the times. from_log:
    nothing was measured now.
    """

    spec: ConvSpec
    target: Target
    best: Record | None
    default_us: float | None
    trials: int
    stopped: str
    failures: Counter[str]
    elapsed_s: float
    problem: str = ""
    origin: str = "measured"
    from_log: bool = False

    @property
    def best_us(self) -> float | None:
        return None if self.best is None else self.best.time_us


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
    best_us: float | None = None
    default_us: float | None = None
    failures: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    built: dict[str, Built] = field(default_factory=dict)  # by candidate key
    errors: dict[str, float | None] = field(default_factory=dict)  # of finalists that were verified again, in full
    from_log: bool = True
    doing: str = ""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def is_over(self, budget_s: float | None) -> bool:
        return budget_s is not None and self.elapsed_s >= budget_s

    def note(self, record: Record) -> None:
        """Counts a search record, of now or before."""
        if record.status != "ok":
            self.failures[record.status] += 1
        elif record.error is not None and record.error <= self.limit:
            self.best_us = min(record.time_us, self.best_us or record.time_us)
            if record.candidate == self.default:
                self.default_us = record.time_us

    def report(self) -> None:
        """To be called after every candidate."""
        self._report("")

    def wait(self) -> None:
        """To be called now and then while `doing` takes long."""
        self._report(self.doing)

    def _report(self, waiting_for: str) -> None:
        if self.on_progress is not None:
            now = (self.done, self.trials, self.tried, self.best_us, self.default_us, Counter(self.failures))
            self.on_progress(Progress(self.spec, *now, self.elapsed_s, self.origin, waiting_for))
