"""Transposes runs of planes in strips: as many planes as a vector has lanes, or fewer where these displace each other.

    for strip of planes:
        for `lanes` positions of the run:
            vectors of positions <-> vectors of channels, by squares of pieces: see `transposing`

Planes a power of two apart share sets of the first two caches, and the first one has fewer ways than a strip of 16 has
planes: lines were displaced while they were stored, as were those that prefetchers had brought. Half as many
planes need no more shuffles of an element.
"""

from __future__ import annotations

from collections.abc import Callable

from convtune.schedules.ranges import named, ranged
from convtune.schedules.statements import Expr, Stmt, sequence
from convtune.schedules.tiling import WAY_BYTES, WAYS
from convtune.schedules.transposing import Move, rectangle, square_width


def strip_shape(lanes: int, channels: int, positions: int) -> tuple[int, int]:
    """Channels and positions that are moved at once, of planes of so many positions."""
    width = square_width(lanes, channels, positions)
    # 49 pages apart, which are sets of the first cache alone, squares were no slower
    collide = 4 * positions % (4 * WAY_BYTES) == 0 and width > WAYS
    return (WAYS if collide else width), width


def strips(
    n: Expr,
    channels: tuple[Expr, int],
    count: Expr,
    place: Callable[[Expr], Expr],
    shape: tuple[int, int],
    read: Callable[[Expr, Expr, Expr], Expr],
    by_channel: bool,
    move: Move,
) -> Stmt:
    """Moves some channels of a run, the positions from `place(k)` on for each k below `count`.

    channels: the first one, and how many; shape: as of `strip_shape`. read(n, channel, position): either may be
    a vector; by_channel, move: as of `transposing.transpose`.
    """
    (first, width), planes = channels, shape[0]

    def along(c: int) -> Stmt:
        def one(k: Expr) -> Stmt:
            return named(place(k), "position", lambda p: rectangle(n, first + c, p, shape, read, by_channel, move))

        return ranged(0, count, one, name="strip")

    return sequence([along(c) for c in dict.fromkeys(min(c, width - planes) for c in range(0, width, planes))])
