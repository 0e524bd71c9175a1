"""TVM's own auto-scheduler, MetaSchedule, behind the calls of `Search`; it runs in a worker process."""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from convtune.errors import MeasureError
from convtune.measure.home import Home
from convtune.measure.worker import MEMORY_BYTES, Pool
from convtune.record import METASCHEDULE, traced
from convtune.search.metaschedule_worker import Propose, Proposer, Tried
from convtune.search.trial import trials_of

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target

PROPOSE_S = 300.0  # 8 candidates take 1 to 3 s, and 7 on a busy machine
ATTEMPTS = 3
LARGEST_SEED = 2**31 - 1  # that TVM takes


class MetaScheduleSearch:
    """MetaSchedule's search of one spec on one target: `ask` for traces, `tell` what became of them.

    What it proposes follows from its arguments and the answers so far, in every process; and a search made again with
    the records of an interrupted one goes on as that one would have. The worker starts with the first `ask` that needs
    it, and ends with `close`, with this object or with the process.

    Args:
        history: this spec's records on this target, in order. Those of MetaSchedule count as told, and towards
            `trials`; others are ignored.
        trials: candidates to try, history included.
        seed: of all random choices.
        max_error: an `ok` record with a larger error counts as failed; None lets any error pass.
        origin: of the ranks; records of another are ignored.
        on_wait: called every few seconds in which the worker does not answer.
    """

    def __init__(
        self,
        spec: ConvSpec,
        target: Target,
        *,
        history: Iterable[Record] = (),
        trials: int,
        seed: int = 0,
        max_error: float | None = None,
        origin: str = "measured",
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        self._spec, self._limit, self._seed = spec, trials, seed
        self._told: dict[Candidate, float | None] = {}  # to the rank
        self._waiting: dict[Candidate, None] = {}
        self._exhausted = False
        for trial in trials_of(history, [METASCHEDULE], origin=origin, max_error=max_error):
            self._told[trial.candidate] = trial.rank
        home = Home()
        self._pool = Pool(Proposer, (target,), 1, home.path)
        self._pool.on_wait = on_wait
        self._end = weakref.finalize(self, _end, self._pool, home)

    @property
    def finished(self) -> str | None:
        """Why `ask` gives nothing more: `trials` or `exhausted`; None while it may give more."""
        if len(self._told) + len(self._waiting) >= self._limit:
            return "trials"
        return "exhausted" if self._exhausted else None

    def ask(self, n: int = 1) -> list[Candidate]:
        """Up to n candidates to try next, none given twice and none that makes the same kernel as another.

        Raises:
            MeasureError: MetaSchedule cannot schedule the spec, or its process dies again and again.
        """
        if self.finished:
            return []
        n = min(n, self._limit - len(self._told) - len(self._waiting))
        picks = [candidate for candidate in map(traced, self._propose(n)) if candidate not in self._told]
        self._exhausted = not picks
        self._waiting |= dict.fromkeys(picks)
        return picks

    def tell(self, candidate: Candidate, rank: float | None, status: str = "ok") -> None:
        """A candidate's rank, as a record of this origin has it, or that it failed. Told again, the last counts.

        Raises:
            ValueError: the status is `ok` without a positive rank, or there is a rank and another status.
        """
        if (status == "ok") != (rank is not None and 0 < rank < math.inf):
            raise ValueError(f"rank={rank} with status {status!r}; ok needs a positive rank, a failure None")
        self._waiting.pop(candidate, None)
        self._told[candidate] = rank

    def _propose(self, n: int) -> list[Any]:
        tried = tuple(
            Tried(_text(candidate), None if rank is None else rank * 1e-6) for candidate, rank in self._told.items()
        )
        waiting = tuple(map(_text, self._waiting))
        for attempt in range(ATTEMPTS):
            # another seed each time: the same draw would end the process the same way
            seed = random.Random(f"{self._seed} {len(tried)} {len(waiting)} {attempt}").randint(1, LARGEST_SEED)
            request = Propose(self._spec, tried, waiting, n, seed)
            reply = self._pool.call(request, PROPOSE_S, MEMORY_BYTES)
            if reply.status == "ok":
                found: list[Any] = reply.value
                return found
            if reply.status == "error":
                break  # an exception: it would be raised again
        raise MeasureError(f"MetaSchedule found no candidates for {self._spec} ({reply.status}): {reply.message}")

    def close(self) -> None:
        """Ends the worker. May be called twice."""
        self._end()


def _text(candidate: Candidate) -> str:
    return str(candidate.knobs["trace"])


def _end(pool: Pool, home: Home) -> None:
    pool.stop()
    home.close()
