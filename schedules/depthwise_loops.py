"""The loops of a depthwise convolution's register tiles as TIR: borders are peeled, no input is copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import place
from convtune.schedules.depthwise_plan import Plan
from convtune.schedules.past_caches import stored, tasks_past
from convtune.schedules.ranges import Range, least, most, named, part, pieces, ranged, valid_taps
from convtune.schedules.statements import Expr, Stmt, allocated, sequence, vector_sums
from convtune.schedules.tiling import LONG_ACTIVATIONS
from convtune.schedules.written import Held

from convtune.expression import epilogue_at

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Sums = dict[tuple[int, int, int], Any]  # the buffer of each row, column, vector of a tile


class Tiles:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y
        self.weight, self.x = arguments.weight, arguments.source

    def kernel(self) -> Stmt:
        plan = self.plan
        view = plan.view
        extents = (view.batch, plan.depth_blocks, plan.row_blocks, plan.column_blocks, plan.chunks if plan.split else 1)

        def task(number: Expr) -> Stmt:
            index: list[Expr] = []
            for extent in reversed(extents):
                index.append(number % extent if extent > 1 else 0)
                number = number // extent if extent > 1 else number
            chunk, column_block, row_block, depth_block, n = index
            planes = part(view.depth.out, plan.depth_blocks, depth_block)
            rows = part(view.rows.out, plan.row_blocks, row_block)
            tiles = part(plan.tiles, plan.column_blocks, column_block)
            if plan.split:
                return self._chunk(n, planes, rows, tiles, chunk)
            return ranged(0, plan.chunks, lambda c: self._chunk(n, planes, rows, tiles, c), name="chunk")

        return tasks_past(prod(extents), task, plan.lanes, plan.past, "task")

    def _chunk(self, n: Expr, planes: Range, rows: Range, tiles: Range, chunk: Expr) -> Stmt:
        plan = self.plan
        blocks = (chunk * plan.chunk, least(chunk * plan.chunk + plan.chunk, plan.blocks))
        if plan.blocks % plan.chunk == 0:
            blocks = (blocks[0], blocks[0] + plan.chunk)

        def depth(d: Expr) -> Stmt:
            return pieces(rows, plan.rows, lambda h: self._row_tile((n, d, h), tiles, blocks), "oh", "row_tile")

        return ranged(*planes, depth, name="od")

    def _row_tile(self, at: tuple[Expr, ...], tiles: Range, blocks: Range) -> Stmt:
        """The tiles of a row: those at the left border, those inside, those at the right one."""
        from tvm import tirx

        plan = self.plan
        inner, parts = plan.inner, []
        one = plan.column_blocks == 1

        def border(tile: int) -> Stmt:
            code = self._blocks(at, plan.start(tile), tile, blocks)
            return code if one else tirx.IfThenElse(tirx.all(tiles[0] <= tile, tile < tiles[1]), code, None)

        def inside(tile: Expr) -> Stmt:
            start = tile * plan.columns
            if plan.start(inner.stop - 1) % plan.columns:
                start = least(start, plan.view.columns.out - plan.columns)
            return named(start, "ow", lambda w: self._blocks(at, w, inner.start, blocks))

        parts += [border(tile) for tile in range(inner.start)]
        if inner:
            low, high = (inner.start, inner.stop) if one else (most(tiles[0], inner.start), least(tiles[1], inner.stop))
            parts.append(ranged(low, high, inside, name="tile"))
        parts += [border(tile) for tile in range(inner.stop, plan.tiles)]
        return sequence(parts)

    def _blocks(self, at: tuple[Expr, ...], w: Expr, tile: int, blocks: Range) -> Stmt:
        plan = self.plan

        def block(number: Expr) -> Stmt:
            first = number * plan.width
            if plan.channels % plan.width:
                first = least(first, plan.channels - plan.width)
            places = self._places()
            return named(
                first,
                "oc",
                lambda oc: vector_sums(
                    len(places), plan.lanes, lambda acc: self._tile(dict(zip(places, acc)), at, w, tile, oc)
                ),
            )

        return ranged(*blocks, block, name="block")

    def _tile(self, acc: Sums, at: tuple[Expr, ...], w: Expr, tile: int, oc: Expr) -> Stmt:
        from tvm import tirx

        plan = self.plan
        n, d, h = at
        reads = plan.reads(tile)
        first = [axis.first(out) for axis, out in zip(plan.view.axes, (d, h, w))]
        depth, rows = plan.view.depth, plan.view.rows
        zero = tirx.const(0.0, "float32")
        clear = self._lanes(lambda lane: [tirx.BufferStore(sums, zero, [lane]) for sums in acc.values()])
        statements = [clear]
        if reads:

            def plane(kd: Expr) -> Stmt:
                position = first[0] + kd * depth.dilation
                if plan.whole:
                    return sequence(self._rows(acc, n, position, first, reads, kd, oc))
                taps = valid_taps(rows, first[1])

                def row(kh: Expr) -> Stmt:
                    line = (position, first[1] + kh * rows.dilation, first[2])
                    return self._row(acc, n, line, reads, [(0, kh)], kd, oc)

                return ranged(*taps, row, name="kh")

            statements.append(ranged(*valid_taps(depth, first[0]), plane, name="kd"))
        return sequence([*statements, self._store(acc, n, (d, h, w), oc)])

    def _rows(
        self, acc: Sums, n: Expr, depth: Expr, first: Sequence[Expr], reads: dict[int, Any], kd: Expr, oc: Expr
    ) -> list[Stmt]:
        """Every input row of a tile, with a condition where it may lie outside."""
        from tvm import tirx

        rows, found = self.plan.view.rows, []
        last = rows.first(rows.out - self.plan.rows)
        for offset, pairs in self.plan.row_reads().items():
            position = first[1] + offset
            code = self._row(acc, n, (depth, position, first[2]), reads, pairs, kd, oc)
            conditions = [position >= 0] * (offset < rows.before) + [position < rows.size] * (
                last + offset >= rows.size
            )
            found.append(tirx.IfThenElse(tirx.all(*conditions), code, None) if conditions else code)
        return found

    def _row(
        self,
        acc: Sums,
        n: Expr,
        at: tuple[Expr, Expr, Expr],
        reads: dict[int, Any],
        pairs: Sequence[tuple[int, Expr]],
        kd: Expr,
        oc: Expr,
    ) -> Stmt:
        """acc += an input row times the rows of the kernel in `pairs` of (row of the tile, tap)."""
        from tvm import tirx

        plan = self.plan
        kernel = [axis.taps for axis in plan.view.axes]

        def body(lane: Expr) -> list[Stmt]:
            code: list[Stmt] = []

            def bind(value: Expr) -> Expr:
                variable = tirx.Var("value", "float32")
                code.append(tirx.Bind(variable, value))
                return variable

            for vector in range(plan.vectors):
                channel = oc + vector * plan.lanes + lane
                filters: dict[Any, Expr] = {}
                for offset, uses in reads.items():
                    value = bind(self._read(n, (at[0], at[1], at[2] + offset), oc, channel))
                    for (row, kh), (column, kw) in ((p, u) for u in uses for p in pairs):
                        key = (row if not plan.whole else kh, kw)
                        if key not in filters:
                            tap = (kd * kernel[1] + kh) * kernel[2] + kw
                            blocked = [oc // plan.width, tap, vector * plan.lanes + lane]
                            whole = plan.channels % plan.width == 0
                            filters[key] = bind(tirx.BufferLoad(self.weight, blocked if whole else [tap, channel]))
                        sums = acc[row, column, vector]
                        total = tirx.BufferLoad(sums, [lane]) + value * filters[key]
                        code.append(tirx.BufferStore(sums, total, [lane]))
            return code

        return self._lanes(body)

    def _read(self, n: Expr, position: Sequence[Expr], oc: Expr, channel: Expr) -> Expr:
        """x at a position of the view; oc: the first channel of the tile."""
        from tvm import tirx

        return tirx.BufferLoad(self.x, place(self.spec, n, position, channel, self.spec.in_size))

    def _store(self, acc: Sums, n: Expr, at: tuple[Expr, ...], oc: Expr) -> Stmt:
        """The epilogue of a tile; a long one loops over a copy of the sums, as it would be too much code unrolled."""
        from tvm import tirx

        plan = self.plan
        if self.spec.activation not in LONG_ACTIVATIONS:
            return self._finished({i: (acc[i], ()) for i in acc}, n, at, oc)

        def through(copy: Any) -> Stmt:
            keep = self._lanes(
                lambda lane: [tirx.BufferStore(copy, tirx.BufferLoad(acc[i], [lane]), [*i, lane]) for i in acc]
            )

            def store(row: Expr, column: Expr, vector: Expr) -> Stmt:
                index = (row, column, vector)
                return self._finished({index: (copy, index)}, n, at, oc)

            def column(row: Expr) -> Stmt:
                each = lambda c: ranged(0, plan.vectors, lambda v: store(row, c, v), name="vector")  # noqa: E731
                return ranged(0, plan.columns, each, name="column")

            return sequence([keep, ranged(0, plan.rows, column, name="row")])

        return allocated((plan.rows, plan.columns, plan.vectors, plan.lanes), "tile", "local", through)

    def _finished(self, sums: dict[Any, tuple[Any, Sequence[Expr]]], n: Expr, at: tuple[Expr, ...], oc: Expr) -> Stmt:
        """y of vectors of a tile: row, column and vector of each, and in which buffer its sums are, at what index."""
        from tvm import tirx

        def where(index: Sequence[Expr], lane: Expr) -> list[Expr]:
            (d, h, w), (row, column, vector) = at, index
            channel = oc + vector * self.plan.lanes + lane
            return place(self.spec, n, (d, h + row, w + column), channel, self.spec.out_size)

        def finish(lane: Expr) -> list[Stmt]:
            found = []
            for index, (buffer, first) in sums.items():
                to = where(index, lane)
                value = epilogue_at(self.arguments, tirx.BufferLoad(buffer, [*first, lane]), to)
                past = self.plan.past
                found.append(tirx.BufferStore(buffer if past else self.y, value, [*first, lane] if past else to))
            return found

        if not self.plan.past:
            return self._lanes(finish)
        vectors = [
            (where(i, 0), tirx.BufferLoad(b, [*f, tirx.Ramp(0, 1, self.plan.lanes)])) for i, (b, f) in sums.items()
        ]
        return sequence([self._lanes(finish), *(stored(self.y, to, value, self.plan.lanes) for to, value in vectors)])

    def _places(self) -> list[tuple[int, int, int]]:
        plan = self.plan
        return [(r, c, v) for r in range(plan.rows) for c in range(plan.columns) for v in range(plan.vectors)]

    def _lanes(self, body: Callable[[Expr], list[Stmt]]) -> Stmt:
        return ranged(0, self.plan.lanes, lambda lane: sequence(body(lane)), "VECTORIZED", "lane")
