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


def transposed(vectors: Sequence[Expr], bind: Callable[[Expr], Expr]) -> list[Expr]:
    """The columns of a square of vectors, whose number is a power of two, as vectors."""
    from tvm import tirx

    rows, lanes, half = list(vectors), len(vectors), 1
    while half < lanes:
        low = [k if not k & half else lanes + k - half for k in range(lanes)]
        high = [k + half if not k & half else lanes + k for k in range(lanes)]
        for i in (i for i in range(lanes) if not i & half):
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
        of_position = lambda c: named(position, "position", lambda p: square(n, c, p, width, read, by_channel, move))  # noqa: E731
        return named(channel, "channel", of_position)

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


def square(
    n: Expr, channel: Expr, position: Expr, lanes: int, read: Callable[..., Expr], by_channel: bool, move: Move
) -> Stmt:
    """Moves a square of so many channels and positions; by_channel: elements of a channel lie side by side.

    read(n, channel, position), where either may be a vector; move: as of `transpose`.
    """
    from tvm import tirx

    if lanes == 1:
        return move(n, channel, position, read(n, channel, position))
    bind = Binder(f"float32x{lanes}")
    vectors = []
    for i in range(lanes):
        place = (
            (channel + i, tirx.Ramp(position, 1, lanes)) if by_channel else (tirx.Ramp(channel, 1, lanes), position + i)
        )
        value = read(n, *place)
        vectors.append(bind(value if str(value.ty) == bind.dtype else tirx.Cast(bind.dtype, value)))
    columns = transposed(vectors, bind)

    def stored(square: Any) -> Stmt:
        for i, column in enumerate(columns):
            bind.store(square, [i, tirx.Ramp(0, 1, lanes)], column)

        def moved(i: int) -> Stmt:
            def element(lane: Expr) -> Stmt:
                value = tirx.BufferLoad(square, [i, lane])
                c, p = (channel + lane, position + i) if by_channel else (channel + i, position + lane)
                return move(n, c, p, value)

            return loop(0, lanes, element, "VECTORIZED", "lane")

        return sequence([*bind.statements, *(moved(i) for i in range(lanes))])

    return allocated((lanes, lanes), "square", "local", stored)
