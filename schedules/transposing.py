"""Copies between channels-first tensors and channels-last ones, by squares of vectors that are transposed in registers.

parallel for n, part of the positions:
    for block of `lanes` channels:
        for square of `lanes` positions:
            vectors = lanes x lanes loads side by side
            log2(lanes) stages of shuffles
            lanes x lanes stores side by side

What whole squares leave is covered by squares that begin earlier, and is moved twice. Within a part one block of
channels follows the other, so that as many planes as a vector has lanes are read or written along; and parts are of
positions, for what a thread moves is then about what it computes with before or afterwards, in its own caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convtune.schedules.depthwise_loops import least, loop, named, part
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence
from convtune.schedules.tiling import FEWEST_LANES, ceil_div

Move = Callable[[Expr, Expr, Expr, Expr], Stmt]  # of (n, channel, position, value): the statement that stores it

SQUARES = 8  # of a part, where there are enough: half a KiB of each plane is read on end
FEWEST_TASKS = 8


def transposed(vectors: Sequence[Expr], bind: Callable[[Expr], Expr], lanes: int | None = None) -> list[Expr]:
    """The columns of a square of vectors, whose number is a power of two, as vectors.

    lanes: of a vector, where they are more than there are vectors; of each square side by side, the transposed one.
    """
    from tvm import tirx

    rows, half = list(vectors), 1
    lanes = len(rows) if lanes is None else lanes
    while half < len(rows):
        low = [k if not k & half else lanes + k - half for k in range(lanes)]
        high = [k + half if not k & half else lanes + k for k in range(lanes)]
        for i in (i for i in range(len(rows)) if not i & half):
            pair = [rows[i], rows[i + half]]
            rows[i], rows[i + half] = (bind(tirx.Shuffle(pair, order)) for order in (low, high))
        half *= 2
    return rows


def transpose(shape: tuple[int, int, int], lanes: int, source: Any, by_channel: bool, move: Move) -> Stmt:
    """Moves every element of (n, channel, position), in parallel over images and positions; some elements twice.

    source: a buffer (n, channel, position) where by_channel, else (n, position, channel). move: stores an element;
    elements side by side in the other order are one loop of vectors.
    """
    batch, channels, positions = shape
    width = square_width(lanes, channels, positions)
    blocks, squares = ceil_div(channels, width), ceil_div(positions, width)
    along = max(min(squares, FEWEST_TASKS), squares // SQUARES)
    across = min(blocks, ceil_div(FEWEST_TASKS, batch * along))

    def read(n: Expr, channel: Expr, position: Expr) -> Expr:
        from tvm import tirx

        return tirx.BufferLoad(source, [n, channel, position] if by_channel else [n, position, channel])

    def moved(n: Expr, block: Expr, place: Expr) -> Stmt:
        if width == 1:
            return move(n, block, place, read(n, block, place))
        channel, position = _start(block, width, channels), _start(place, width, positions)

        def square(c: Expr) -> Stmt:
            moving = (width, width), read, by_channel, move
            return named(position, "position", lambda p: rectangle(n, c, p, *moving))

        return named(channel, "channel", square)

    def task(number: Expr) -> Stmt:
        n, number = number // (along * across), number % (along * across)
        places, channels = part(squares, along, number // across), part(blocks, across, number % across)
        if width == 1:  # a few elements side by side
            return loop(*places, lambda p: loop(*channels, lambda c: moved(n, c, p), name="channel"), name="position")
        return loop(*channels, lambda c: loop(*places, lambda p: moved(n, c, p), name="square"), name="block")

    return loop(0, batch * along * across, task, "PARALLEL", "task")


def square_width(lanes: int, channels: int, positions: int) -> int:
    """Of the largest squares that fit."""
    width = min(lanes, 1 << (min(channels, positions).bit_length() - 1))
    return width if width >= FEWEST_LANES else 1


def _start(number: Expr, width: int, size: int) -> Expr:
    """Where a square begins, the last one so early that it ends with the size."""
    return number * width if size % width == 0 else least(number * width, size - width)


def rectangle(
    n: Expr,
    channel: Expr,
    position: Expr,
    shape: tuple[int, int],
    read: Callable[[Expr, Expr, Expr], Expr],
    by_channel: bool,
    move: Move,
) -> Stmt:
    """Moves so many channels of so many positions, which are powers of two, the channels not more than the positions.

    shape: channels and positions. read(n, channel, position), where either may be a vector; by_channel: elements of a
    channel lie side by side; move: as of `transpose`.
    """
    from tvm import tirx

    planes, lanes = shape
    if lanes == 1:
        return move(n, channel, position, read(n, channel, position))
    bind = Binder(f"float32x{lanes}")

    if by_channel:
        ramp = tirx.Ramp(position, 1, lanes)
        rows = [bind(_widened(read(n, channel + i, ramp), lanes)) for i in range(planes)]
    else:
        ramp = tirx.Ramp(channel, 1, planes)
        pieces = [_widened(read(n, ramp, position + i), planes) for i in range(lanes)]
        rows = [bind(_side_by_side(pieces[i::planes], planes)) for i in range(planes)]
    rows = transposed(rows, bind, lanes)

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


def _widened(value: Expr, width: int) -> Expr:
    """A vector as one of float32."""
    from tvm import tirx

    dtype = f"float32x{width}"
    return value if str(value.ty) == dtype else tirx.Cast(dtype, value)


def _side_by_side(pieces: list[Expr], width: int) -> Expr:
    """Vectors of so many lanes as one."""
    from tvm import tirx

    return tirx.Shuffle(pieces, list(range(width * len(pieces)))) if len(pieces) > 1 else pieces[0]
