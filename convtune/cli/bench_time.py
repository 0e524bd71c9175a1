"""How long the rest of a comparison takes, by the layers that are done."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

NEIGHBOURS = 3
"""Layers to ask; a median of so many does not heed that the first one waited until the processes had started."""


class TimeLeft:
    """Takes each layer for as long as the measured ones did that are nearest to it in work."""

    def __init__(self, flops: Iterable[int]) -> None:
        """flops: of each layer that is to be measured."""
        self._waiting = list(flops)
        self._taken: list[tuple[int, float]] = []

    def measured(self, flops: int, seconds: float) -> None:
        """A layer is done, which need not be one of those."""
        if flops in self._waiting:
            self._waiting.remove(flops)
        self._taken.append((flops, seconds))

    @property
    def seconds(self) -> float | None:
        """Of all that wait; None where nothing does, and before there are enough to ask."""
        if not self._waiting or len(self._taken) < NEIGHBOURS:
            return None
        return sum(self._of(flops) for flops in self._waiting)

    def _of(self, flops: int) -> float:
        nearest = sorted(self._taken, key=lambda taken: abs(math.log(taken[0] / flops)))[:NEIGHBOURS]
        return statistics.median(seconds for _, seconds in nearest)
