"""The rounds: every configuration of every side takes a turn in each, while all others are at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convtune.comparison.side import Entry, Side

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

TRIED = 3
"""Rounds after which a configuration may be dropped."""
HOPELESS = 1.5


def play(ours: Side, peers: Sequence[Side], spec: ConvSpec, rounds: int, turn_s: float) -> None:
    """Takes the turns, ours first in each round; ends early where ours fails, as nothing can be compared then."""
    for number in range(rounds):
        for side in (ours, *peers):
            for entry in side.playing:
                if entry.status == "ok":  # another's turn may have taken the process along
                    side.turn(entry, turn_s, spec)
            if side is ours and not ours.playing:
                return
        if number + 1 == TRIED:
            drop_hopeless([entry for side in peers for entry in side.playing], spec.layout)


def drop_hopeless(entries: Sequence[Entry], layout: str) -> None:
    """Leaves out what cannot become the best any more: slower by HOPELESS in its fastest turn than another in its
    slowest.

    Its turns may be long. The best in the spec's layout is looked for, too: there is always one of that left.
    """
    given = [entry for entry in entries if entry.configuration.layout == layout]
    for entry in entries:
        rivals = given if entry in given else entries
        entry.dropped = min(entry.turns_us) > HOPELESS * min(max(rival.turns_us) for rival in rivals)
