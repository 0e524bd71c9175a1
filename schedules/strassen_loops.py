"""The loops of Strassen's algorithm: sums of inputs, and seven matrix products whose sums become outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_ahead import AHEAD_BYTES
from convtune.schedules.past_caches import passed
from convtune.schedules.ranges import named, part, ranged
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    as_row,
    fetched,
    loop,
    sequence,
    unflat,
    vector_sums,
    vectorized,
    when,
)
from convtune.schedules.strassen_plan import PRODUCTS, STAGED, STEPS, X_BLOCKS, Plan, as_it_lies
from convtune.schedules.strassen_tile import Tile, factors, tasks
from convtune.schedules.tiling import LINE, LONG_ACTIVATIONS, ceil_div
from convtune.schedules.written import Held

from convtune.expression import epilogue, widened

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Kernel:
    """Writes the statements of a plan: `statement` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    def statement(self) -> Stmt:
        return tasks(self.plan, self.plan.tile_blocks * self.plan.parts, self._task)

    def _task(self, task: Expr, v: Any, m: Any) -> Stmt:
        plan = self.plan
        number = task // plan.parts

        def block(index: Expr, vectors: int, last: bool) -> Stmt:
            return self._tiles(number, lambda i, first: self._products((v, m), index, vectors, last, (i, first)))

        def any_block(index: Expr) -> Stmt:
            if plan.even:
                return block(index, plan.vectors, False)
            last = block(plan.blocks - 1, plan.last_vectors, True)
            if plan.blocks == 1:
                return last
            return when([index < plan.blocks - 1], block(index, plan.vectors, False), last)

        mine = part(plan.blocks, plan.parts, task % plan.parts)
        return sequence([self._tiles(number, partial(self._sums, v)), ranged(*mine, any_block, name="block")])

    def _tiles(self, task: Expr, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(number in the task, first position) for the tiles of a task; the last of all begins so early that it
        ends with the positions."""
        from tvm import tirx

        plan = self.plan

        def tile(i: Expr) -> Stmt:
            number = task * plan.tile_block + i
            start = number * plan.tile
            if plan.positions % plan.tile:
                start = tirx.min(start, plan.positions - plan.tile)
            inside = [number < plan.tiles] if plan.tiles % plan.tile_block else []
            return when(inside, named(start, "first", lambda first: body(i, first)))

        return loop(plan.tile_block, tile, name="tile")

    def _sums(self, v: Any, i: Expr, first: Expr) -> Stmt:
        """V of a tile."""
        plan = self.plan

        def column(c: Expr) -> Stmt:
            return loop(plan.taps, lambda tap: self._row(v, i * plan.columns + c, (first + c, tap)), name="tap")

        return loop(plan.columns, column, name="column")

    def _row(self, v: Any, row: Expr, place: tuple[Expr, Expr]) -> Stmt:
        """Of a position of each half, at a tap."""
        plan, (position, tap) = self.plan, place
        whole, both = plan.whole, plan.lanes

        def vector(start: Expr, lanes: int, complete: bool = True) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                ic = start + lane
                found = [
                    self._block(block, (position, tap, ic), complete) for block in itertools.product(range(2), range(2))
                ]
                blocks = [each if each is None else bind(each) for each in found]
                for number, total in enumerate(factors(plan, blocks)):
                    bind.store(v, [number, row, tap * plan.half + ic], total)

            return vectorized(lanes, body)

        parts = [loop(whole // both, lambda k: vector(k * both, both), name="ic")] if whole >= both else []
        if whole % both:
            parts.append(vector(whole - whole % both, whole % both))
        if plan.half > whole:
            parts.append(vector(whole, plan.half - whole, complete=False))
        return sequence(parts)

    def _block(self, block: tuple[int, int], at: tuple[Expr, Expr, Expr], complete: bool) -> Expr | None:
        """An element of a block of X: at a position of the first half, a tap and a channel. complete: whether all
        blocks have that channel."""
        plan, (position, tap, ic) = self.plan, at
        rows, channels = block
        if channels and not complete:
            return None
        return self._input(position + rows * plan.columns, tap, ic + channels * plan.half)

    def _input(self, position: Expr, tap: Expr, ic: Expr) -> Expr:
        """x of a channel, as an output's tap reads it."""
        spec = self.spec
        if as_it_lies(spec):
            return widened(self.arguments.x(*as_row(spec.rank, position, ic)))
        n, *at = unflat(position, (spec.batch, *spec.out_size))
        taps = unflat(tap, spec.kernel)
        return widened(self.arguments.x(n, *(o * s + t for o, s, t in zip(at, spec.stride, taps)), ic))

    def _products(self, buffers: tuple[Any, Any], block: Expr, vectors: int, last: bool, at: tuple[Expr, Expr]) -> Stmt:
        """All steps of a block of channels and a tile. at: its number in the task, and its first position."""
        plan, (v, m) = self.plan, buffers
        places = list(itertools.product(range(plan.columns), range(vectors)))

        def steps(acc: list[Any]) -> Stmt:
            tile = Tile(plan, m, list(zip(places, acc)), block, vectors, last)
            return tile.steps(
                lambda number: self._multiplied(v, tile, number, at),
                lambda y, with_kept: self._stored(tile, y, at, with_kept),
            )

        return vector_sums(len(places), plan.lanes, steps)

    def _multiplied(self, v: Any, tile: Tile, number: int, at: tuple[Expr, Expr]) -> Stmt:
        """Adds a step's product to the sums."""
        from tvm import tirx

        plan = self.plan

        def step(k: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                filters = [
                    bind(widened(self._filter(tile, number, k, cv * plan.lanes + lane))) for cv in range(tile.vectors)
                ]
                for (column, cv), total in tile.sums:
                    value = self._factor(v, STEPS[number].left, column, k, at)
                    bind.store(total, [lane], tirx.BufferLoad(total, [lane]) + value * filters[cv])

            fetches = [*self._fetches(tile.block, number, k, at[1]), *self._weights_ahead(tile, number, k)]
            return sequence([*fetches, vectorized(plan.lanes, body)])

        return sequence([*self._outputs_ahead(tile, number, at[1]), loop(plan.steps, step, name="k")])

    def _outputs_ahead(self, tile: Tile, number: int, first: Expr) -> list[Stmt]:
        """Fetches of what will be written after a step's product: else stores to so many rows wait for it."""
        from tvm import tirx

        y, plan = STEPS[number].written, self.plan
        if not y or plan.past:
            return []
        rows, channels = self._place(y)
        channel = tile.block * plan.block + channels

        def row(column: Expr) -> Stmt:
            position = first + rows + column
            lines = range(0, tile.vectors * plan.lanes, max(LINE, plan.lanes))
            written = [tirx.BufferLoad(self.y, self._output(position, channel + at, 0)) for at in lines]
            return sequence([fetched(each, to_write=True) for each in written])

        return [loop(plan.columns, row, name="ahead")]

    def _filter(self, tile: Tile, number: int, k: Expr, channel: Expr) -> Expr:
        """An element of the right factor of a step."""
        from tvm import tirx

        return tirx.BufferLoad(self.arguments.weight, [self._panel(tile.block), number, k, channel])

    def _panel(self, block: Expr) -> Expr:
        """The number in U of a block of channels."""
        return block

    def _factor(self, v: Any, left: str, column: int, k: Expr, at: tuple[Expr, Expr]) -> Expr:
        """An element of the left factor: of V, or of x where V has no copy."""
        from tvm import tirx

        plan, (i, first) = self.plan, at
        if left in plan.stored:
            return tirx.BufferLoad(v, [plan.stored.index(left), i * plan.columns + column, k])
        row, channel = divmod(X_BLOCKS.index(left), 2)
        return self._input(first + column + row * plan.columns, 0, k + channel * plan.half)

    def _fetches(self, block: Expr, number: int, k: Expr, first: Expr) -> list[Stmt]:
        """Of inputs of the tile that has the same number in the next task, a few rows by each of this one's products:
        else the sums wait for them, with nothing to multiply."""
        from tvm import tirx

        plan = self.plan
        if plan.taps > 1:
            return []
        turns = plan.products * plan.blocks
        row = first + plan.tile_block * plan.tile + self._turn(block, number) * plan.tile // turns
        fetches = []
        for i in range(ceil_div(plan.tile, turns)):
            position, channel = tirx.min(row + i, plan.positions - 1), tirx.min(plan.split * k, plan.depth - 1)
            fetches.append(fetched(self._input(position, 0, channel), first_cache=False))
        return fetches

    def _turn(self, block: Expr, number: int) -> Expr:
        """Of a product, among all of a tile. Each of its parts' tasks, which follow one another, has some of them."""
        return block * PRODUCTS + number

    def _weights_ahead(self, tile: Tile, number: int, k: Expr) -> list[Stmt]:
        """Fetches of U so far ahead as prefetchers, which see it read as slowly as it is multiplied by, do not run."""
        plan = self.plan
        if not plan.weights_ahead:
            return []
        ahead = k + AHEAD_BYTES // (4 * plan.block)
        vectors = [cv * plan.lanes for cv in range(tile.vectors)]
        return [fetched(self._filter(tile, number, ahead, at), first_cache=False) for at in vectors]

    def _place(self, y: str) -> tuple[Expr, Expr]:
        """The first row and channel of a block of outputs, in a tile."""
        rows, channels = (int(half) - 1 for half in y)
        return rows * self.plan.columns, channels * self.plan.channels

    def _stored(self, tile: Tile, y: str, at: tuple[Expr, Expr], with_kept: str = "") -> Stmt:
        """The sums, with a kept value, as that block of the output."""
        return self._written(tile, y, at, lambda i, lane: tile.sum(i, with_kept, lane))

    def _written(self, tile: Tile, y: str, at: tuple[Expr, Expr], value: Callable[[int, Expr], Expr]) -> Stmt:
        """value(number of a vector, lane) as a block of the output of a tile: its number, its first position."""
        plan, (_, first) = self.plan, at
        rows, channels = self._place(y)

        def stored(place: tuple[Expr, int], value: Callable[[Expr], Expr]) -> Stmt:
            column, cv = place
            channel = tile.block * plan.block + channels + cv * plan.lanes

            def element(lane: Expr) -> tuple[list[Expr], Expr]:
                index = self._output(first + column + rows, channel, lane)
                return index, epilogue(self.arguments, value(lane), index[0], index[-1], index[1:-1])

            new = self._not_written(first, column + rows)
            if plan.past:
                return when(new, passed(self.y, element, plan.lanes))
            ends = tile.last and y[1] == "2" and cv == tile.vectors - 1
            lanes = plan.lanes - (plan.missing if ends else 0)
            return when(new, vectorized(lanes, lambda bind, lane: bind.store(self.y, *element(lane))))

        if self.spec.activation not in LONG_ACTIVATIONS:
            return sequence([stored(place, partial(value, i)) for i, (place, _) in enumerate(tile.sums)])

        def column(c: Expr) -> Stmt:  # a long activation is once in the code, not for each vector
            vectors = ((c, cv) for cv in range(tile.vectors))
            return sequence([stored(place, partial(tile.kept, STAGED, place)) for place in vectors])

        return sequence([tile.keep(STAGED, value), loop(plan.columns, column, name="column")])

    def _not_written(self, first: Expr, row: Expr) -> list[Expr]:
        """Conditions that the tile before has not written a row of a tile: the last one begins where that does not end.

        What is rounded depends on which half a row is in, and with which other one, and tasks write in any order.
        """
        from tvm import tirx

        plan = self.plan
        overlap = plan.tiles * plan.tile - plan.positions
        if overlap == 0 or (isinstance(row, int) and row >= overlap):
            return []
        before_last = first < plan.positions - plan.tile
        return [before_last if isinstance(row, int) else tirx.any(before_last, row >= overlap)]

    def _output(self, position: Expr, channel: Expr, lane: Expr) -> list[Expr]:
        """Where in y a column of the product is, for a position: of a transposed convolution in a phase's channels."""
        spec = self.spec
        if spec.variant != "transposed":
            return as_row(spec.rank, position, channel + lane)
        n, *at = unflat(position, (spec.batch, *spec.in_size))
        *phases, oc = unflat(channel, (*spec.kernel, spec.out_channels))
        return [n, *(i * s + phase for i, s, phase in zip(at, spec.stride, phases)), oc + lane]
