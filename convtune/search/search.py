"""Search: decides which candidates of a spec to try next, from what is known so far; no clock, no input or output."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.search.domain import Domain
from convtune.search.propose import Proposer
from convtune.search.transfer import nearest, own_winner
from convtune.search.trial import Trial, trials_of

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.space import Candidate, Space
    from convtune.spec import ConvSpec
    from convtune.targets import Target

IMPROVEMENT = 0.01  # a smaller gain is timing noise
PATIENCE = 16  # trials without an improvement before a plateau is called; in long searches a third of the trials


class Search:
    """The search of one spec on one target: `ask` for candidates, `tell` what became of them, until `ask` is empty.

    The same arguments and the same answers give the same candidates, in every process. A search made again, with the
    records of an interrupted one as its history, goes on as that one would have.

    Args:
        spaces: at least one, each accepting the spec on the target. Records of other spaces are ignored.
        history: this spec's records on this target, in order. They count as told, and towards `trials`.
        knowledge: records of other specs or machines; they train the model and offer a winner to start from.
        trials: candidates to try, history included.
        seed: of all random choices.
        max_error: an `ok` record not known to be within it counts as failed; None lets any error pass.
        origin: of the ranks; records of another are ignored.
        first: to be tried before all others; what is no candidate of the spaces is ignored.
    """

    def __init__(
        self,
        spec: ConvSpec,
        target: Target,
        spaces: Sequence[Space[Any]],
        *,
        history: Iterable[Record] = (),
        knowledge: Iterable[Record] = (),
        trials: int,
        seed: int = 0,
        max_error: float | None = None,
        origin: str = "measured",
        first: Sequence[Candidate] = (),
    ) -> None:
        self._spec, self._target, self._limit = spec, target, trials
        self._max_error, self._origin, self._knowledge = max_error, origin, list(knowledge)
        self._domains = {space.name: Domain(space, spec, target) for space in spaces}
        self._before_all = [c for c in first if c.space in self._domains and c in self._domains[c.space]]
        others = trials_of(self._knowledge, self._domains, origin=origin, max_error=max_error)
        self._proposer = Proposer(spec, target, self._domains, others, seed)
        self._told: dict[str, Trial] = {}
        self._waiting: dict[str, Candidate] = {}
        self._reference, self._since_improvement, self._exhausted = math.inf, 0, False
        for trial in trials_of(history, self._domains, origin=origin, max_error=max_error):
            # what the space no longer has cannot be built again
            if trial.candidate in self._domains[trial.candidate.space]:
                self._note(trial)

    @property
    def best(self) -> Trial | None:
        """The best candidate told so far, the earlier of equals; None before the first that worked."""
        best = min(self._told.values(), key=_rank, default=None)
        return best if best is not None and best.rank is not None else None

    @property
    def finished(self) -> str | None:
        """Why `ask` gives nothing more: `trials`, `plateau` or `exhausted`; None while it may give more.

        A plateau is no gain above IMPROVEMENT in PATIENCE trials, or in a third of the trials where that is more.
        Where there are no more candidates than `trials`, all are tried, plateau or not.
        """
        if len(self._told) + len(self._waiting) >= self._limit:
            return "trials"
        patience = max(PATIENCE, self._limit // 3)
        if self._since_improvement >= patience and self.best and not self._proposer.pool.within(self._limit):
            return "plateau"
        return "exhausted" if self._exhausted else None

    def ask(self, n: int = 1) -> list[Candidate]:
        """Up to n candidates to try next, none given twice: `first`, then each space's default, then what another log
        says won on this spec, and on the nearest one, then what the proposer picks. Empty when finished; while some are
        still to be told, more may follow."""
        if self.finished:
            return []
        n = min(n, self._limit - len(self._told) - len(self._waiting))
        picks = [c for c in self._first if c.key not in self._told and c.key not in self._waiting][:n]
        if len(picks) < n:
            waiting = [*self._waiting.values(), *picks]
            picks += self._proposer.propose(n - len(picks), list(self._told.values()), waiting)
        self._exhausted = len(picks) < n
        self._waiting |= {candidate.key: candidate for candidate in picks}
        return picks

    def tell(self, candidate: Candidate, rank: float | None, status: str = "ok") -> None:
        """A candidate's rank, as a record of this origin has it, or that it failed. Told again, the last rank counts.

        Raises:
            ValueError: the status is `ok` without a positive rank, or there is a rank and another status.
        """
        if (status == "ok") != (rank is not None and 0 < rank < math.inf):
            raise ValueError(f"rank={rank} with status {status!r}; ok needs a positive rank, a failure None")
        self._note(Trial(self._spec, self._target.facts(), candidate, rank))

    def _note(self, trial: Trial) -> None:
        key = trial.candidate.key
        self._waiting.pop(key, None)
        if key not in self._told:
            self._since_improvement += 1
        self._told[key] = trial
        if _rank(trial) < self._reference * (1 - IMPROVEMENT):
            self._reference, self._since_improvement = _rank(trial), 0

    @functools.cached_property
    def _first(self) -> list[Candidate]:
        defaults = [domain.default for domain in self._domains.values()]
        found = list(dict.fromkeys([*self._before_all, *defaults]))
        for known in (own_winner, nearest):
            for domain in self._domains.values():
                about = (self._spec, self._target, self._knowledge, domain.space)
                winner = known(*about, max_error=self._max_error, origin=self._origin)
                found += [winner] if winner and winner not in found else []
        return found


def _rank(trial: Trial) -> float:
    return math.inf if trial.rank is None else trial.rank
