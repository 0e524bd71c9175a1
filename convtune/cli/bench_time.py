"""How long the rest of a comparison takes, by the layers that are done."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

NEIGHBOURS = 3
"""Layers to ask; a median of so many does not heed that the first one waited until the processes had started."""


class TimeLeft:
    """Takes each layer for as long as the measured ones did that are nearest to it in work.

    Whether a layer of the file would be another measurement now is known only once it is compiled. So of those that
    wait, the share is counted that was measured again of those that do not; all where there are none yet.
    """

    def __init__(self, flops: Iterable[int], in_file: Iterable[int] = ()) -> None:
        """flops: of each layer that is to be measured. in_file: of each that the file has, with whatever kernel."""
        self._waiting, self._in_file = list(flops), list(in_file)
        self._taken: list[tuple[int, float]] = []
        self._again = self._kept = 0

    def measured(self, flops: int, seconds: float, in_file: bool = False) -> None:
        """A layer is done, which need not be one of those."""
        _remove(flops, self._in_file if in_file else self._waiting)
        self._again += in_file
        self._taken.append((flops, seconds))

    def kept(self, flops: int) -> None:
        """A layer of the file is as it would be now."""
        _remove(flops, self._in_file)
        self._kept += 1

    @property
    def seconds(self) -> float | None:
        """Of all that wait; None where nothing is expected to, and before there are enough to ask."""
        if len(self._taken) < NEIGHBOURS:
            return None
        seen = self._again + self._kept
        share = self._again / seen if seen else 1.0
        expected = sum(map(self._of, self._waiting)) + share * sum(map(self._of, self._in_file))
        return expected or None

    def _of(self, flops: int) -> float:
        nearest = sorted(self._taken, key=lambda taken: abs(math.log(taken[0] / flops)))[:NEIGHBOURS]
        return statistics.median(seconds for _, seconds in nearest)


def _remove(flops: int, waiting: list[int]) -> None:
    if flops in waiting:
        waiting.remove(flops)
