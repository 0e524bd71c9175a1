"""The loops of `strassen_planes`: sums of planes of the input, and seven products whose sums become planes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_ahead import AHEAD_BYTES
from convtune.schedules.pointwise_planes_loops import CHANNELS_AHEAD
from convtune.schedules.ranges import least, named, part, ranged
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    fetched,
    loop,
    sequence,
    vector_sums,
    vectorized,
    when,
)
from convtune.schedules.strassen_plan import PRODUCTS, STAGED, STEPS, X_BLOCKS
from convtune.schedules.strassen_tile import Tile, factors, tasks
from convtune.schedules.tiling import LINE, LONG_ACTIVATIONS, ceil_div, planes_collide

from convtune.expression import epilogue, widened

if TYPE_CHECKING:
    from convtune.schedules.strassen_planes_plan import Plan
    from convtune.schedules.written import Held

    from convtune.spec import ConvSpec


@dataclass(frozen=True)
class _Place:
    """Where a tile is: image, tile of its task, first position; vectors of a half; and first positions that the tile
    before it has written.

    They are not written again: what is rounded depends on which half a position is in, and with which other one.
    """

    n: Expr
    tile: Expr
    start: Expr
    vectors: int
    overlap: int = 0


class Kernel:
    """Writes the statements of a plan: `statement` is all of them. ahead: whether x is fetched ahead."""

    def __init__(self, spec: ConvSpec, plan: Plan, ahead: bool, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.ahead, self.arguments, self.y = spec, plan, ahead, arguments, y
        self.far = planes_collide(spec)

    def statement(self) -> Stmt:
        return tasks(self.plan, self.spec.batch * self.plan.parts * self.plan.tile_blocks, self._task)

    def _task(self, number: Expr, v: Any, m: Any) -> Stmt:
        plan = self.plan
        first, rest = number % plan.tile_blocks * plan.tile_block, number // plan.tile_blocks
        blocks, n = part(plan.blocks, plan.parts, rest % plan.parts), rest // plan.parts
        self.first_block = blocks[0]
        tiles = least(plan.tile_block, plan.tiles - first) if plan.tiles % plan.tile_block else plan.tile_block

        def each(body: Callable[[_Place], Stmt]) -> Stmt:
            return ranged(0, tiles, lambda i: self._tile(n, first, i, body), name="tile")

        def plane(k: Expr, second: bool = True) -> Stmt:
            return each(lambda place: self._sums(v, place, k, second))

        def block(index: Expr) -> Stmt:
            return each(lambda place: self._products(v, m, index, place))

        whole = plan.depth // 2
        made = [loop(whole, plane, name="k")]
        if plan.half > whole:
            made.append(plane(whole, second=False))
        return sequence([*made, ranged(*blocks, block, name="block")])

    def _tile(self, n: Expr, first: Expr, i: Expr, body: Callable[[_Place], Stmt]) -> Stmt:
        """body(place) of a tile, or of the last one, which may have fewer vectors; it ends with the positions."""
        plan = self.plan
        number, last = first + i, plan.last_vectors
        whole = named(number * 2 * plan.width, "start", lambda start: body(_Place(n, i, start, plan.vectors)))
        if not last:
            return whole
        end = body(_Place(n, i, plan.positions - 2 * last * plan.lanes, last, plan.overlap))
        return when([number < plan.whole_tiles], whole, end)

    def _sums(self, v: Any, place: _Place, k: Expr, second: bool) -> Stmt:
        """V of a tile and an input channel of each half."""
        plan = self.plan
        halves = range(1 + second)

        def body(bind: Binder, lane: Expr) -> None:
            for cv in range(place.vectors):
                blocks = [
                    bind(self._input(place, rows, channels, k, cv, lane)) if channels in halves else None
                    for rows in (0, 1)
                    for channels in (0, 1)
                ]
                for number, total in enumerate(factors(plan, blocks)):
                    bind.store(v, [place.tile, number, self._kept(k, cv, lane)], total)

        soon = k + CHANNELS_AHEAD
        lines = itertools.product(halves, range(self._lines(place.vectors)))
        fetches = [fetched(self._line(place.n, half, soon, place.start, i)) for half, i in lines]
        return sequence([*fetches, vectorized(plan.lanes, body)])

    def _kept(self, k: Expr, cv: int, lane: Expr) -> Expr:
        """Where a factor in V has a channel and a position."""
        return k * self.plan.width + cv * self.plan.lanes + lane

    def _input(self, place: _Place, rows: int, channels: int, k: Expr, cv: int, lane: Expr) -> Expr:
        """x of a half of the positions and of the channels."""
        position = place.start + (rows * place.vectors + cv) * self.plan.lanes + lane
        return widened(self.arguments.x(place.n, k + channels * self.plan.half, *self._position(position)))

    def _products(self, v: Any, m: Any, block: Expr, place: _Place) -> Stmt:
        """All steps of a block of channels and a tile."""
        plan = self.plan
        places = list(itertools.product(range(plan.outputs), range(place.vectors)))

        def steps(acc: list[Any]) -> Stmt:
            tile = Tile(plan, m, list(zip(places, acc)), block, place.vectors)
            return tile.steps(partial(self._multiplied, v, tile, place), partial(self._stored, tile, place))

        return vector_sums(len(places), plan.lanes, steps)

    def _multiplied(self, v: Any, tile: Tile, place: _Place, number: int) -> Stmt:
        """Adds a step's product to the sums."""
        from tvm import tirx

        plan, u = self.plan, self.arguments.weight

        def step(k: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                factor = partial(self._factor, v, STEPS[number].left, place, k)
                inputs = [bind(factor(cv, lane)) for cv in range(place.vectors)]
                for (channel, cv), total in tile.sums:
                    weight = widened(tirx.BufferLoad(u, [tile.block, number, k, channel]))
                    bind.store(total, [lane], tirx.BufferLoad(total, [lane]) + inputs[cv] * weight)

            fetches = [*self._fetches(tile.block, number, k, place), *self._weights_ahead(tile.block, number, k)]
            return sequence([*fetches, vectorized(plan.lanes, body)])

        return sequence([*self._outputs_ahead(tile, place, number), loop(plan.half, step, name="k")])

    def _outputs_ahead(self, tile: Tile, place: _Place, number: int) -> list[Stmt]:
        """Fetches of what will be written after a step's product: else stores to so many planes wait for it."""
        from tvm import tirx

        y, plan = STEPS[number].written, self.plan
        if not y:
            return []
        rows, half = (int(each) - 1 for each in y)
        first = half * plan.channels[0] + tile.block * plan.outputs
        start = place.start + rows * place.vectors * plan.lanes
        lines = range(0, place.vectors * plan.lanes, max(LINE, plan.lanes))

        def plane(i: Expr) -> Stmt:
            at = [[place.n, first + i, *self._position(start + line)] for line in lines]
            return sequence([fetched(tirx.BufferLoad(self.y, each), to_write=True) for each in at])

        return [loop(plan.outputs, plane, name="ahead")]

    def _factor(self, v: Any, left: str, place: _Place, k: Expr, cv: int, lane: Expr) -> Expr:
        """An element of the left factor: of V, or of x where V has no copy."""
        from tvm import tirx

        if left in self.plan.stored:
            return tirx.BufferLoad(v, [place.tile, self.plan.stored.index(left), self._kept(k, cv, lane)])
        return self._input(place, *divmod(X_BLOCKS.index(left), 2), k, cv, lane)

    def _fetches(self, block: Expr, number: int, k: Expr, place: _Place) -> list[Stmt]:
        """Of inputs of the tile that has the same number in the next task, some lines by each of this one's products.

        Not where planes displace each other in the caches.
        """
        plan = self.plan
        if self.far or not self.ahead:
            return []
        lines, start = 2 * self._lines(plan.vectors), place.start + 2 * plan.tile_block * plan.width
        turns = PRODUCTS * ceil_div(plan.blocks, plan.parts)
        turn = (block - self.first_block) * PRODUCTS + number
        fetches = []
        for i in range(ceil_div(lines, turns)):
            which = least(turn * lines // turns + i, lines - 1)
            line = self._line(place.n, which // (lines // 2), k, start, which % (lines // 2))
            fetches.append(fetched(line, first_cache=False))
        return fetches

    def _lines(self, vectors: int) -> int:
        """Of a tile of so many vectors and one channel."""
        return ceil_div(2 * vectors * self.plan.lanes, LINE)

    def _line(self, n: Expr, half: Expr, k: Expr, start: Expr, line: Expr) -> Expr:
        """x where a line is that follows a position, of a channel of a half; maybe beyond x, which does no harm."""
        return self.arguments.x(n, half * self.plan.half + k, *self._position(start + line * LINE))

    def _weights_ahead(self, block: Expr, number: int, k: Expr) -> list[Stmt]:
        """Fetches of U so far ahead as prefetchers, which see it read as slowly as it is multiplied by, do not run."""
        from tvm import tirx

        plan, u = self.plan, self.arguments.weight
        if not plan.weights_ahead:
            return []
        ahead = k + AHEAD_BYTES // (4 * plan.outputs)
        return [fetched(tirx.BufferLoad(u, [block, number, ahead, 0]), first_cache=False)]

    def _stored(self, tile: Tile, place: _Place, y: str, with_kept: str) -> Stmt:
        """The sums, with a kept value, as that block of the output."""
        from tvm import tirx

        plan = self.plan
        rows, half = (int(each) - 1 for each in y)
        channels = plan.channels[half]

        def stored(i: Expr, values: Sequence[Callable[[Expr], Expr]]) -> Stmt:
            within = tile.block * plan.outputs + i
            channel = within + half * plan.channels[0]

            def vector(offset: int, value: Callable[[Expr], Expr]) -> list[Stmt]:
                skipped = min(plan.lanes, max(0, place.overlap - offset))

                def body(bind: Binder, lane: Expr) -> None:
                    at = self._position(place.start + offset + skipped + lane)
                    total = epilogue(self.arguments, value(skipped + lane), place.n, channel, at)
                    bind.store(self.y, [place.n, channel, *at], total)

                return [vectorized(plan.lanes - skipped, body)] if skipped < plan.lanes else []

            offsets = [(rows * place.vectors + cv) * plan.lanes for cv in range(place.vectors)]
            statements = [each for offset, value in zip(offsets, values) for each in vector(offset, value)]
            exists = [within < channels] if channels % plan.outputs else []
            return when(exists, sequence(statements)) if statements else tirx.Evaluate(0)

        vectors = range(place.vectors)
        if self.spec.activation not in LONG_ACTIVATIONS:
            sums = [
                [partial(tile.sum, i * place.vectors + cv, with_kept) for cv in vectors] for i in range(plan.outputs)
            ]
            return sequence([stored(i, values) for i, values in enumerate(sums)])

        def channel(i: Expr) -> Stmt:  # a long activation is once in the code, not for each channel
            return stored(i, [partial(tile.kept, STAGED, (i, cv)) for cv in vectors])

        return sequence(
            [
                tile.keep(STAGED, lambda i, lane: tile.sum(i, with_kept, lane)),
                loop(plan.outputs, channel, name="channel"),
            ]
        )

    def _position(self, position: Expr) -> list[Expr]:
        """The index of a position: rows are as one, which they are in memory."""
        return [*(0 for _ in range(self.spec.rank - 1)), position]
