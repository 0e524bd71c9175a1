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
            entries = [entry for side in peers for entry in side.playing]
            for given in (True, False):
                drop_hopeless([entry for entry in entries if (entry.configuration.layout == spec.layout) is given])


def drop_hopeless(entries: Sequence[Entry]) -> None:
    """Leaves out those that are slower by HOPELESS in their fastest turn than the fastest in its slowest.

    They cannot become the best of these, and their turns may be long. Those in the spec's layout are compared with
    each other, and the rest too, as the best of both kinds are looked for.
    """
    if not entries:
        return
    bound = HOPELESS * min(max(entry.turns_us) for entry in entries)
    for entry in entries:
        entry.dropped = min(entry.turns_us) > bound
