"""What picks the candidates of a tuning: convtune's own search, or TVM's auto-scheduler behind the same calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from convtune import space
from convtune.record import METASCHEDULE, Record

if TYPE_CHECKING:
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target

ENGINES = ("convtune", METASCHEDULE)


class Engine(Protocol):
    """Asked for candidates, and told what became of them."""

    @property
    def finished(self) -> str | None: ...
    def ask(self, n: int = 1) -> list[Candidate]: ...
    def tell(self, candidate: Candidate, rank: float | None, status: str = "ok") -> None: ...


@dataclass(frozen=True)
class Aim:
    """What to search for. default: the schedule without tuning. taken: what `compile` would take without the log that
    is written. limit: the largest error. origin: of the ranks."""

    spec: ConvSpec
    target: Target
    default: Candidate
    taken: Candidate
    trials: int
    seed: int
    limit: float
    origin: str


def own_search(aim: Aim, history: Sequence[Record], knowledge: Sequence[Record]) -> Engine:
    """Over all spaces that accept the spec. history: of this spec. knowledge: records of others."""
    from convtune.search import Search

    spaces = space.accepting(aim.spec, aim.target, aim.limit)
    spaces.sort(key=lambda each: each.name != aim.default.space)  # the default is tried before those of other spaces
    return Search(
        aim.spec,
        aim.target,
        spaces,
        history=history,
        knowledge=knowledge,
        trials=aim.trials,
        seed=aim.seed,
        max_error=aim.limit,
        origin=aim.origin,
        first=[aim.taken],  # a log with less than that would make `compile` take something slower than without it
    )


def metaschedule(aim: Aim, history: Sequence[Record], on_wait: Callable[[], None]) -> Engine:
    """TVM's auto-scheduler. on_wait: called now and then while it thinks."""
    from convtune.search.metaschedule import MetaScheduleSearch

    return MetaScheduleSearch(
        aim.spec,
        aim.target,
        history=history,
        trials=aim.trials,
        seed=aim.seed,
        max_error=aim.limit,
        origin=aim.origin,
        on_wait=on_wait,
    )
