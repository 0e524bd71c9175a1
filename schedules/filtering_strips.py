"""Transposes runs of planes in strips: as many planes as a vector has lanes, or fewer where these displace each other.

    for strip of planes:
        for `lanes` positions of the run:
            vectors of positions <-> vectors of channels: log2(planes) stages of shuffles, and parts side by side

Planes a power of two apart share sets of the first two caches, and the first one has fewer ways than a strip of 16 has
planes: lines were displaced while they were stored, as were those that prefetchers had brought. Half as many
planes need no more shuffles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convtune.schedules.depthwise_loops import loop, named
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence
from convtune.schedules.tiling import WAY_BYTES, WAYS
from convtune.schedules.transposing import Move, square_width


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
            return named(place(k), "position", lambda p: _strip(n, first + c, p, shape, read, by_channel, move))

        return loop(0, count, one, name="strip")

    return sequence([along(c) for c in dict.fromkeys(min(c, width - planes) for c in range(0, width, planes))])


def _strip(
    n: Expr,
    channel: Expr,
    position: Expr,
    shape: tuple[int, int],
    read: Callable[[Expr, Expr, Expr], Expr],
    by_channel: bool,
    move: Move,
) -> Stmt:
    """Moves a rectangle of planes x lanes."""
    from tvm import tirx

    planes, lanes = shape
    if lanes == 1:
        return move(n, channel, position, read(n, channel, position))
    bind = Binder(f"float32x{lanes}")

    def widened(value: Expr, width: int) -> Expr:
        dtype = f"float32x{width}"
        return value if str(value.ty) == dtype else tirx.Cast(dtype, value)

    if by_channel:
        ramp = tirx.Ramp(position, 1, lanes)
        rows = [bind(widened(read(n, channel + i, ramp), lanes)) for i in range(planes)]
    else:
        ramp = tirx.Ramp(channel, 1, planes)
        pieces = [widened(read(n, ramp, position + i), planes) for i in range(lanes)]
        rows = [bind(_side_by_side(pieces[i::planes], planes)) for i in range(planes)]
    rows = _exchanged(rows, lanes, bind)

    def stored(strip: Any) -> Stmt:
        for i, row in enumerate(rows):
            bind.store(strip, [i, tirx.Ramp(0, 1, lanes)], row)

        def moved(row: int, begin: int, width: int) -> Stmt:
            def element(lane: Expr) -> Stmt:
                c, p = (channel + lane, position + begin + row) if by_channel else (channel + row, position + lane)
                return move(n, c, p, tirx.BufferLoad(strip, [row, begin + lane]))

            return loop(0, width, element, "VECTORIZED", "lane")

        width = planes if by_channel else lanes
        moves = [moved(row, begin, width) for begin in range(0, lanes, width) for row in range(planes)]
        return sequence([*bind.statements, *moves])

    return allocated((planes, lanes), "strip", "local", stored)


def _side_by_side(pieces: list[Expr], width: int) -> Expr:
    """Vectors of so many lanes as one."""
    from tvm import tirx

    return tirx.Shuffle(pieces, list(range(width * len(pieces)))) if len(pieces) > 1 else pieces[0]


def _exchanged(rows: list[Expr], lanes: int, bind: Callable[[Expr], Expr]) -> list[Expr]:
    """Of each square of lanes, as many as there are rows, the transposed one."""
    from tvm import tirx

    rows, half = list(rows), 1
    while half < len(rows):
        low = [k if not k & half else lanes + k - half for k in range(lanes)]
        high = [k + half if not k & half else lanes + k for k in range(lanes)]
        for i in (i for i in range(len(rows)) if not i & half):
            pair = [rows[i], rows[i + half]]
            rows[i], rows[i + half] = (bind(tirx.Shuffle(pair, order)) for order in (low, high))
        half *= 2
    return rows
