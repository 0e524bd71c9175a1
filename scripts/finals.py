"""What the scripts take from a log: a spec's winner, and the default that was measured in turn with it."""

from __future__ import annotations

from collections.abc import Sequence

from convtune import accuracy
from convtune.record import Record, winner
from convtune.space import Candidate
from convtune.spec import ConvSpec


def finals(spec: ConvSpec, default: Candidate, records: Sequence[Record]) -> tuple[Record, Record] | None:
    """The winner and the default of the newest finals, which are one record where the default won.

    records: of this spec and one target. None where no finals have both.
    """
    best = winner(records, max_error=accuracy.limit(spec, "standard"))
    if best is None or best.round != "final":
        return None
    beside = [r for r in records if r.batch == best.batch and r.candidate == default]
    return (best, beside[0]) if beside else None
