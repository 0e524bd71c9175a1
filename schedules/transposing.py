"""Copies between channels-first tensors and channels-last ones, by squares of vectors that are transposed in registers.

parallel for n, block of `lanes` positions:
    for block of `lanes` channels:
        vectors = lanes x lanes loads side by side
        log2(lanes) stages of shuffles
        lanes x lanes stores side by side
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convtune.schedules.statements import Binder, Expr, Stmt, allocated, loop, sequence

Move = Callable[[Expr, Expr, Expr, Expr], Stmt]  # of (n, channel, position, value): the statement that stores it


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
    """Moves every element of (n, channel, position), in parallel over images and positions.

    source: a buffer (n, channel, position) where by_channel, else (n, position, channel). move: stores an element;
    elements side by side in the other order are one loop of vectors.
    """
    batch, channels, positions = shape
    (blocks, beyond), (squares, rest) = divmod(positions, lanes), divmod(channels, lanes)

    def read(n: Expr, channel: Expr, position: Expr) -> Expr:
        from tvm import tirx

        return tirx.BufferLoad(source, [n, channel, position] if by_channel else [n, position, channel])

    def single(n: Expr, channel: Expr, position: Expr) -> Stmt:
        return move(n, channel, position, read(n, channel, position))

    def task(index: Expr) -> Stmt:
        n, start = index // blocks, index % blocks * lanes
        inside = (
            loop(squares, lambda c: _square(n, c * lanes, start, lanes, read, by_channel, move)) if squares else None
        )
        tail = loop(lanes, lambda p: loop(rest, lambda c: single(n, squares * lanes + c, start + p))) if rest else None
        return sequence([part for part in (inside, tail) if part is not None])

    def last(index: Expr) -> Stmt:
        n, position = index // beyond, blocks * lanes + index % beyond
        return loop(channels, lambda c: single(n, c, position))

    # two loops, for of a condition TVM 0.27 makes a size of the buffer that has the loop's variable in it
    parts = [loop(batch * blocks, task, "PARALLEL", "block")] if blocks else []
    return sequence([*parts, loop(batch * beyond, last, "PARALLEL", "position")] if beyond else parts)


def _square(
    n: Expr, channel: Expr, position: Expr, lanes: int, read: Callable[..., Expr], by_channel: bool, move: Move
) -> Stmt:
    from tvm import tirx

    bind = Binder(f"float32x{lanes}")
    vectors = []
    for i in range(lanes):
        place = (
            (channel + i, tirx.Ramp(position, 1, lanes)) if by_channel else (tirx.Ramp(channel, 1, lanes), position + i)
        )
        vectors.append(bind(read(n, *place)))
    columns = transposed(vectors, bind)

    def stored(square: Any) -> Stmt:
        for i, column in enumerate(columns):
            bind.store(square, [i, tirx.Ramp(0, 1, lanes)], column)

        def moved(i: int) -> Stmt:
            def element(lane: Expr) -> Stmt:
                value = tirx.BufferLoad(square, [i, lane])
                c, p = (channel + lane, position + i) if by_channel else (channel + i, position + lane)
                return move(n, c, p, value)

            return loop(lanes, element, "VECTORIZED", "lane")

        return sequence([*bind.statements, *(moved(i) for i in range(lanes))])

    return allocated((lanes, lanes), "square", "local", stored)
