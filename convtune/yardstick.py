"""Times of several machines of one kind, made comparable by the default schedule's time on each of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.space import Candidate


class Yardstick:
    """Machines of one RPC key are alike, and yet one may be hotter, or busier, than the other.

    Each measures the default first. Were its time the same everywhere, so would be all others, about: what a record is
    compared by is its time on its machine, times what the default takes on the first machine over what it takes on
    that one. That leads the search and picks the finalists; those are timed in turn on one machine.
    """

    def __init__(self, default: Candidate) -> None:
        self._default = default
        self._ranks: dict[str | None, float] = {}  # of the default, by machine, the first machine first

    def note(self, record: Record) -> None:
        """A record of the search."""
        if record.status == "ok" and record.candidate == self._default:
            self._ranks[record.device] = record.rank

    def alike(self, record: Record) -> Record:
        """The record as if the first machine had measured it; as it is where there is no telling."""
        if record.status != "ok" or record.device not in self._ranks:
            return record
        factor = next(iter(self._ranks.values())) / self._ranks[record.device]
        if factor == 1:
            return record
        return dataclasses.replace(record, times_us=tuple(time * factor for time in record.times_us))
