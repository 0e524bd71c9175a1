"""The loops of `pointwise_planes`: blocks of channels and positions, one tile, and what is fetched ahead of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.ranges import least, named, part, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, fetched, sequence, vector_sums, when
from convtune.schedules.tiling import LINE_BYTES, LONG_ACTIVATIONS, ceil_div, planes_collide
from convtune.schedules.written import Buffers, Held

from convtune import variants
from convtune.expression import epilogue_at, widened

if TYPE_CHECKING:
    from convtune.schedules.pointwise_planes_plan import Plan

    from convtune.spec import ConvSpec

CHANNELS_AHEAD = 8  # as many lines as surely share a set of the first cache


@dataclass(frozen=True)
class Place:
    """Where a tile is: image, group, block of channels, tile of its block of positions, first position, vectors."""

    n: Expr
    group: Expr
    block: Expr
    tile: Expr
    start: Expr
    vectors: int


class Kernel:
    """Writes the loops over tiles, and one tile."""

    def __init__(self, spec: ConvSpec, plan: Plan, ahead: bool, buffers: Buffers, y: Any) -> None:
        self.spec, self.plan, self.ahead, self.arguments, self.y = spec, plan, ahead, Held(spec, buffers), y

    def statement(self) -> Stmt:
        plan, spec = self.plan, self.spec

        def task(number: Expr) -> Stmt:
            positions, rest = number % plan.position_blocks, number // plan.position_blocks
            channels, rest = part(plan.blocks, plan.parts, rest % plan.parts), rest // plan.parts
            return self._task(rest // spec.groups, rest % spec.groups, channels, positions * plan.tile_block)

        tasks = spec.batch * spec.groups * plan.parts * plan.position_blocks
        return ranged(0, tasks, task, "PARALLEL", "task")

    def _task(self, n: Expr, group: Expr, channels: tuple[Expr, Expr], first_tile: Expr) -> Stmt:
        plan, (low, high) = self.plan, channels
        tiles = least(plan.tile_block, plan.tiles - first_tile) if plan.tiles % plan.tile_block else plan.tile_block

        def of_block(block: Expr, panel: Any, fills: bool) -> Stmt:
            return ranged(0, tiles, lambda i: self._placed(n, group, block, i, first_tile, panel, fills), name="tile")

        if not plan.copied:
            return ranged(low, high, lambda block: of_block(block, None, True), name="block")

        def through(panel: Any) -> Stmt:
            others = ranged(low + 1, high, lambda block: of_block(block, panel, False), name="block")
            return sequence([named(low, "first_block", lambda block: of_block(block, panel, True)), others])

        return allocated((plan.tile_block, plan.depth, plan.width), "panel", "global", through)

    def _placed(self, n: Expr, group: Expr, block: Expr, i: Expr, first_tile: Expr, panel: Any, fills: bool) -> Stmt:
        """A tile, or the last one, which may have fewer vectors."""
        plan = self.plan

        def tile(start: Expr, vectors: int) -> Stmt:
            place = Place(n, group, block, i, start, vectors)
            sums = plan.outputs * vectors
            return vector_sums(sums, plan.lanes, lambda acc: self._sums(acc, place, panel, fills))

        number, last = first_tile + i, plan.last_vectors
        start = number * plan.width
        if plan.positions % plan.width and not last:  # the last of the whole ones is to end with the positions
            start = least(start, plan.positions - plan.width)
        whole = named(start, "start", lambda start: tile(start, plan.vectors))
        if not last:
            return whole
        return when([number < plan.whole_tiles], whole, tile(plan.positions - last * plan.lanes, last))

    def _sums(self, acc: Sequence[Any], place: Place, panel: Any, fills: bool) -> Stmt:
        from tvm import tirx

        plan = self.plan

        def clear(lane: Expr) -> Stmt:
            return sequence([tirx.BufferStore(each, tirx.const(0.0, "float32"), [lane]) for each in acc])

        def step(ic: Expr) -> Stmt:
            def body(lane: Expr) -> Stmt:
                bind = Binder()
                inputs = []
                for v in range(place.vectors):
                    kept = [place.tile, ic, v * plan.lanes + lane]
                    value = self._input(place, ic, v, lane) if fills else tirx.BufferLoad(panel, kept)
                    inputs.append(bind(value))
                    if fills and panel is not None:
                        bind.store(panel, kept, inputs[-1])
                for i in range(plan.outputs):
                    index = [place.group, place.block, ic, i]
                    filters = widened(tirx.BufferLoad(self.arguments.weight, index))
                    for each, value in zip(acc[i * place.vectors :], inputs):
                        bind.add(each, [lane], value * filters)
                return sequence(bind.statements)

            vectors = ranged(0, plan.lanes, body, "VECTORIZED", "lane")
            far = fills and self.ahead and planes_collide(self.spec)
            return sequence([*self._fetches(place, ic + CHANNELS_AHEAD, place.start), vectors]) if far else vectors

        cleared = ranged(0, plan.lanes, clear, "VECTORIZED", "lane")
        return sequence(
            [*self._following(place), cleared, ranged(0, plan.depth, step, name="ic"), *self._stores(acc, place)]
        )

    def _input(self, place: Place, ic: Expr, vector: int, lane: Expr) -> Expr:
        channel = place.group * self.plan.depth + ic
        return widened(
            self.arguments.x(place.n, channel, *self._position(place.start + vector * self.plan.lanes + lane))
        )

    def _following(self, place: Place) -> list[Stmt]:
        """Fetches of the next block of positions: each block of channels has its share of the input channels."""
        plan = self.plan
        if not self.ahead or planes_collide(self.spec):
            return []
        blocks = ceil_div(plan.blocks, plan.parts)
        channels = part(plan.depth, blocks, place.block % blocks)
        start = place.start + plan.block_positions
        return [ranged(*channels, lambda ic: sequence(self._fetches(place, ic, start)), name="ic_ahead")]

    def _fetches(self, place: Place, ic: Expr, start: Expr) -> list[Stmt]:
        """Of a tile's lines; beyond x they do no harm."""
        line = max(1, LINE_BYTES // 4 // self.plan.lanes)
        at = Place(place.n, place.group, place.block, place.tile, start, place.vectors)
        return [fetched(self._line(at, ic, v)) for v in range(0, place.vectors, line)]

    def _line(self, place: Place, ic: Expr, vector: int) -> Expr:
        channel = place.group * self.plan.depth + ic
        return self.arguments.x(place.n, channel, *self._position(place.start + vector * self.plan.lanes))

    def _stores(self, acc: Sequence[Any], place: Place) -> list[Stmt]:
        from tvm import tirx

        plan = self.plan

        def stored(i: Expr, read: Callable[[int, Expr], Expr]) -> Stmt:
            within = place.block * plan.outputs + i
            channel = variants.primitive(self.spec).channel(self.spec, place.group, within)

            def element(lane: Expr, v: int) -> Stmt:
                where = [place.n, channel, *self._position(place.start + v * plan.lanes + lane)]
                return tirx.BufferStore(self.y, epilogue_at(self.arguments, read(v, lane), where), where)

            def vector(v: int) -> Stmt:
                return ranged(0, plan.lanes, lambda lane: element(lane, v), "VECTORIZED", "lane")

            exists = [within < plan.run] if plan.run % plan.outputs else []
            return when(exists, sequence([vector(v) for v in range(place.vectors)]))

        def held(i: int) -> Stmt:
            return stored(i, lambda v, lane: tirx.BufferLoad(acc[i * place.vectors + v], [lane]))

        if self.spec.activation not in LONG_ACTIVATIONS:
            return [held(i) for i in range(plan.outputs)]

        def through(tile: Any) -> Stmt:  # a long activation is once in the code, not for each channel
            def keep(lane: Expr) -> Stmt:
                places = itertools.product(range(plan.outputs), range(place.vectors))
                loads = [tirx.BufferLoad(each, [lane]) for each in acc]
                return sequence([tirx.BufferStore(tile, load, [*at, lane]) for at, load in zip(places, loads)])

            def channel(i: Expr) -> Stmt:
                return stored(i, lambda v, lane: tirx.BufferLoad(tile, [i, v, lane]))

            kept = ranged(0, plan.lanes, keep, "VECTORIZED", "lane")
            return sequence([kept, ranged(0, plan.outputs, channel, name="channel")])

        return [allocated((plan.outputs, place.vectors, plan.lanes), "tile", "global", through)]

    def _position(self, position: Expr) -> list[Expr]:
        """The index of a position: rows are as one, which they are in memory."""
        return [*(0 for _ in range(self.spec.rank - 1)), position]
