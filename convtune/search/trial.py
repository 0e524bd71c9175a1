"""What the search takes from a record: which candidate, on which spec and machine, its rank or that it failed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.space import Candidate
from convtune.spec import ConvSpec

if TYPE_CHECKING:
    from convtune.record import Record


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried. facts: `Target.facts`. rank: as a record has it; None where it failed."""

    spec: ConvSpec
    facts: Mapping[str, Any]
    candidate: Candidate
    rank: float | None


def trials_of(records: Iterable[Record], spaces: Iterable[str], *, origin: str, max_error: float | None) -> list[Trial]:
    """The trials of these spaces and this origin that the records keep, in order.

    Ranks of different origins have no common unit, so only one origin's count. A result that is not known to be within
    `max_error` (None: any will do) counts as failed. A `wrong` one that would be within it, as less was allowed when it
    was tried, is left out: it has no rank, and may be tried again.
    """
    wanted, found = set(spaces), []
    for record in records:
        if record.candidate.space not in wanted or record.origin != origin:
            continue
        accurate = max_error is None or (record.error is not None and record.error <= max_error)
        if record.status == "wrong" and record.error is not None and accurate:
            continue
        rank = record.rank if record.status == "ok" and accurate else None
        found.append(Trial(parse(record.spec), record.target, record.candidate, rank))
    return found


@functools.lru_cache(maxsize=16384)
def parse(text: str) -> ConvSpec:
    """`ConvSpec.parse`, remembered: a log repeats its specs many times."""
    return ConvSpec.parse(text)
