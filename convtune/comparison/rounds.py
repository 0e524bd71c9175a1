"""The rounds: every configuration of every side takes a turn in each, while all others are at rest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from convtune.comparison.side import Entry, Side

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

TRIED = 3
"""Rounds after which a configuration may be dropped."""
HOPELESS = 1.5
DISTURBED = 0.1
"""Share of the CPUs' time in a round's turns that others may have; two threads on what one CPU leaves take twice as
long, and it is not the same turn that is hit each time."""


def play(ours: Side, peers: Sequence[Side], spec: ConvSpec, rounds: int, turn_s: float) -> int:
    """Takes the turns, ours first in each round; ends early where ours fails, as nothing can be compared then.

    A round in which other processes had over DISTURBED of the CPUs' time is taken again, at most `rounds` times in all.
    Whether it is depends on them alone, not on what was measured. Returns how many were taken again.
    """
    kept = repeated = 0
    while kept < rounds:
        taken = _round((ours, *peers), spec, turn_s)
        if not ours.playing:
            break
        if repeated < rounds and statistics.fmean(entry.others[-1] for entry in taken) > DISTURBED:
            repeated += 1
            for entry in taken:
                entry.take_back()
            continue
        kept += 1
        if kept == TRIED:
            drop_hopeless([entry for side in peers for entry in side.playing], spec.layout)
    return repeated


def _round(sides: Sequence[Side], spec: ConvSpec, turn_s: float) -> list[Entry]:
    """The entries that took their turn; ends with the first side where that fails."""
    taken = []
    for side in sides:
        for entry in side.playing:
            if entry.status == "ok":  # another's turn may have taken the process along
                side.turn(entry, turn_s, spec)
            taken += [entry] if entry.status == "ok" else []
        if side is sides[0] and not side.playing:
            break
    return taken


def drop_hopeless(entries: Sequence[Entry], layout: str) -> None:
    """Leaves out what cannot become the best any more: slower by HOPELESS in its fastest turn than another in its
    slowest.

    Its turns may be long. The best in the spec's layout is looked for, too: there is always one of that left.
    """
    given = [entry for entry in entries if entry.configuration.layout == layout]
    for entry in entries:
        rivals = given if entry in given else entries
        entry.dropped = min(entry.turns_us) > HOPELESS * min(max(rival.turns_us) for rival in rivals)
