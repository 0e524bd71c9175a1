"""Copies between channels-first tensors and channels-last ones, by squares of vectors that are transposed in registers.

parallel for n, part of the positions:
    for block of `lanes` channels:
        for square of `lanes` positions:
            vectors = loads of four elements side by side, four rows apart
            two stages of shuffles
            lanes x lanes stores side by side

What whole squares leave is covered by squares that begin earlier, and is moved twice. Within a part one block of
channels follows the other, so that as many planes as a vector has lanes are read or written along; and parts are of
positions, for what a thread moves is then about what it computes with before or afterwards, in its own caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from convtune.schedules.ranges import least, named, part, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, sequence, vector_sums
from convtune.schedules.tiling import FEWEST_LANES, FEWEST_TASKS, ceil_div, power_of_two

Move = Callable[[Expr, Expr, Expr, Expr], Stmt]  # of (n, channel, position, value): the statement that stores it

SQUARES = 8  # of a part, where there are enough: half a KiB of each plane is read on end
PIECE = 4  # lanes that are interleaved by one cheap instruction: of NEON a vector, of x86 128 bits


def transposed(
    shape: tuple[int, int], read: Callable[[int, int, int], Expr], bind: Callable[[Expr], Expr]
) -> Iterator[Expr]:
    """The columns of some rows in memory, as vectors, in their order; rows and columns are powers of two.

    shape: rows and columns; read(row, column, width): so many elements of a row, from that column on.

    Rows are loaded in pieces straight to where their columns need them, so that nothing but squares within pieces is
    left for shuffles: of 16x16 elements 32 unpackings of Zen 4 in place of 64 permutes of two vectors, each of which
    needs a register of indices too. In C a square took 0.18 to 0.21 cycles an element in place of 0.73.
    """
    rows, columns = shape
    piece = min(PIECE, rows, columns)
    for column in range(0, columns, piece):
        parts = [[read(row, column, piece) for row in range(i, rows, piece)] for i in range(piece)]
        yield from _within_pieces([bind(_widened(_side_by_side(some, piece), rows)) for some in parts], rows, bind)


def _within_pieces(vectors: list[Expr], lanes: int, bind: Callable[[Expr], Expr]) -> list[Expr]:
    """The columns of squares that lie side by side in as many vectors as a square has rows: interleavings."""
    from tvm import tirx

    piece, run = len(vectors), 1
    while run < piece:
        low, high = (
            [
                side * lanes + start + half + i + k
                for start in range(0, lanes, piece)
                for i in range(0, piece // 2, run)
                for side in range(2)
                for k in range(run)
            ]
            for half in (0, piece // 2)
        )
        pairs = [[vectors[i], vectors[i + run]] for i in range(piece) if not i & run]
        vectors = [bind(tirx.Shuffle(pair, order)) for pair in pairs for order in (low, high)]
        run *= 2
    return vectors


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
            return ranged(
                *places, lambda p: ranged(*channels, lambda c: moved(n, c, p), name="channel"), name="position"
            )
        return ranged(*channels, lambda c: ranged(*places, lambda p: moved(n, c, p), name="square"), name="block")

    return ranged(0, batch * along * across, task, "PARALLEL", "task")


def square_width(lanes: int, channels: int, positions: int) -> int:
    """Of the largest squares that fit."""
    width = min(lanes, power_of_two(min(channels, positions)))
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
    rows, columns = (planes, lanes) if by_channel else (lanes, planes)

    def piece(row: int, column: int, width: int) -> Expr:
        if by_channel:
            return read(n, channel + row, tirx.Ramp(position + column, 1, width))
        return read(n, tirx.Ramp(channel + column, 1, width), position + row)

    def moved(column: int, vector: Expr) -> Stmt:
        def with_copy(copy: Any) -> Stmt:
            def element(lane: Expr) -> Stmt:
                c, p = (channel + lane, position + column) if by_channel else (channel + column, position + lane)
                return move(n, c, p, tirx.BufferLoad(copy, [lane]))

            kept = tirx.BufferStore(copy, vector, [tirx.Ramp(0, 1, rows)])
            return sequence([kept, ranged(0, rows, element, "VECTORIZED", "lane")])

        return vector_sums(1, rows, lambda copies: with_copy(copies[0]))

    bind, statements = Binder(f"float32x{rows}"), list[Stmt]()
    for column, vector in enumerate(transposed((rows, columns), piece, bind)):
        statements += [*bind.statements, moved(column, vector)]
        bind.statements.clear()
    return sequence(statements)


def _widened(value: Expr, width: int) -> Expr:
    """A vector as one of float32."""
    from tvm import tirx

    dtype = f"float32x{width}"
    return value if str(value.ty) == dtype else tirx.Cast(dtype, value)


def _side_by_side(pieces: list[Expr], width: int) -> Expr:
    """Vectors of so many lanes as one."""
    from tvm import tirx

    return tirx.Shuffle(pieces, list(range(width * len(pieces)))) if len(pieces) > 1 else pieces[0]
