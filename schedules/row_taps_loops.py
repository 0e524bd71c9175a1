"""The loops that `row_taps` writes: tasks, rows and tiles, and what a tile computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convtune.schedules.pointwise_shared import blended
from convtune.schedules.ranges import ranged, valid_taps
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    cleared,
    loop,
    sequence,
    spread_over,
    unflat,
    vector_sums,
    when,
    zeros,
)
from convtune.schedules.tiling import LONG_ACTIVATIONS, ceil_div
from convtune.schedules.written import Buffers, Held, viewed

from convtune.expression import epilogue_at

if TYPE_CHECKING:
    from convtune.schedules.inside_taps_plan import Taps, Tiles
    from convtune.schedules.row_taps_plan import Plan

    from convtune.spec import ConvSpec


def kernel(spec: ConvSpec, plan: Plan, buffers: Buffers, y: Any) -> Stmt:
    """The kernel, over arguments in the shapes of the view, x with the columns and channels of a row as one."""
    x, weight, bias, residual = buffers
    axes = plan.view.axes
    results = [y] if residual is None else [y, residual]

    def over(xs: list[Any], ys: list[Any]) -> Stmt:
        given = xs[0], weight, bias, None if residual is None else ys[1]
        return _Kernel(spec, plan, given, ys[0]).statement()

    def of_x(xs: list[Any]) -> Stmt:
        outs = [axis.out for axis in axes]
        return viewed(results, (plan.view.batch, *outs, plan.channels), lambda ys: over(xs, ys))

    depth, rows, columns = (axis.size for axis in axes)
    return viewed([x], (plan.view.batch, depth, rows, columns * plan.depth), of_x)


class _Kernel:
    def __init__(self, spec: ConvSpec, plan: Plan, buffers: Buffers, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, Held(spec, buffers), y

    def statement(self) -> Stmt:
        plan = self.plan

        def row(number: Expr) -> Stmt:
            place = unflat(number, plan.row_shape)
            parts = [self._tiles(place, group, block) for block in plan.blocks for group in plan.tiles]
            return when([number < plan.rows] if plan.rows % plan.row_block else [], sequence(parts))

        def task(index: Expr) -> Stmt:
            return loop(plan.row_block, lambda local: row(index * plan.row_block + local), name="row")

        return loop(plan.row_tasks, task, "PARALLEL", "task")

    def _tiles(self, row: tuple[Expr, ...], group: Tiles, block: range) -> Stmt:
        """Tiles side by side, of a row and a block of channels. row: image, depth and row."""

        def tile(i: Expr) -> Stmt:
            first = group.first + i * group.columns
            body = lambda acc: self._tile(acc, row, first, group, block)  # noqa: E731
            return vector_sums(self.plan.sums(block, group.columns), self.plan.lanes, body)

        return loop(group.count, tile, name="tile")

    def _tile(self, acc: list[Any], row: tuple[Expr, ...], first: Expr, group: Tiles, block: range) -> Stmt:
        """The outputs of a register tile from a column on. acc: a vector each, the shared ones last."""

        plan = self.plan
        products = self._products(acc, row, first, group, block) if group.taps else []
        return sequence([*cleared(acc, plan.lanes), *products, self._stores(acc, (*row, first), group.columns, block)])

    def _stores(self, acc: list[Any], place: tuple[Expr, ...], columns: int, block: range) -> Stmt:
        """The epilogue of a tile. place: of its first column."""
        from tvm import tirx

        plan, size = self.plan, len(block)

        def of(column: Expr, sums: Callable[[Expr], tuple[Any, Expr]]) -> list[Stmt]:
            """sums: the buffer of a vector of sums, and where it begins there."""
            at = (*place[:-1], place[-1] + column)
            stored = [
                self._store(*sums(column * size + i), at, vector * plan.lanes, plan.lanes)
                for i, vector in enumerate(block)
            ]
            if plan.ends(block):
                buffer, start = sums(columns * size + column // plan.share)
                lane = start + column % plan.share * plan.width
                stored.append(self._store(buffer, lane, at, plan.whole * plan.lanes, plan.left))
            return stored

        if self.spec.activation not in LONG_ACTIVATIONS:
            return sequence([each for column in range(columns) for each in of(column, lambda i: (acc[i], 0))])

        def through(tile: Any) -> Stmt:  # a long activation is once in the code, not for each vector
            lanes = [tirx.Ramp(i * plan.lanes, 1, plan.lanes) for i in range(len(acc))]
            whole = tirx.Ramp(0, 1, plan.lanes)
            keep = [tirx.BufferStore(tile, tirx.BufferLoad(each, [whole]), [at]) for each, at in zip(acc, lanes)]
            stored = loop(columns, lambda column: sequence(of(column, lambda i: (tile, i * plan.lanes))))
            return sequence([*keep, stored])

        return allocated((len(acc) * plan.lanes,), "tile", "global", through)

    def _products(self, acc: list[Any], row: tuple[Expr, ...], first: Expr, group: Tiles, block: range) -> list[Stmt]:
        """All of a tile, for the taps that read inputs."""
        plan = self.plan
        depth, rows, columns = plan.view.axes
        n, *at = row

        firsts = [axis.first(o) for axis, o in zip((depth, rows), at)]

        def one(kd: Expr, kh: Expr) -> Stmt:
            position = [f + k * axis.dilation for axis, f, k in zip((depth, rows), firsts, (kd, kh))]
            place = [n, *position, columns.first(first) * plan.depth]
            return sequence([self._run(acc, (kd, kh), run, place, group, block) for run in group.taps])

        def of_depth(kd: Expr) -> Stmt:
            return ranged(*valid_taps(rows, firsts[1]), lambda kh: one(kd, kh), name="kh")

        # bounds, for LLVM 22 makes a copy of the loops for each tap that has a condition, and spills sums in some
        return [ranged(*valid_taps(depth, firsts[0]), of_depth, name="kd")]

    def _run(
        self, acc: list[Any], taps: tuple[Expr, Expr], run: Taps, place: list[Expr], group: Tiles, block: range
    ) -> Stmt:
        """Of taps side by side that the same columns use. Neighbours in memory are one loop, with their channels.

        place: of the first column's first tap and channel, with which the row is one.
        """
        depth, apart = self.plan.depth, self.plan.view.columns.dilation
        together = run.count if apart == 1 else 1

        def steps(number: Expr) -> Stmt:
            kw = run.first + number * together

            def step(k: Expr) -> Stmt:
                source = [*place[:-1], place[-1] + kw * apart * depth + k]
                return self._step(acc, [*taps, kw * depth + k], source, run, group.columns, block)

            return loop(together * depth, step, name="k")

        return loop(run.count // together, steps, name="kw")

    def _step(
        self, acc: list[Any], tap: list[Expr], source: list[Expr], run: Taps, tile_columns: int, block: range
    ) -> Stmt:
        """One tap and channel, for those columns of a tile that use the tap. source: of the tile's first column."""
        from tvm import tirx

        plan, size, ends = self.plan, len(block), self.plan.ends(block)
        whole, bind = tirx.Ramp(0, 1, plan.lanes), Binder(f"float32x{plan.lanes}")
        distance = plan.view.columns.stride * plan.depth

        def lanes_of(vector: int, lanes: int) -> Expr:
            return tirx.BufferLoad(self.arguments.weight, [*tap, tirx.Ramp(vector * plan.lanes, 1, lanes)])

        weights = [bind(lanes_of(vector, plan.lanes)) for vector in block]
        if ends:
            repeated = tirx.Shuffle([lanes_of(plan.whole, plan.width)] * plan.share, list(range(plan.lanes)))
            shared = bind(repeated if plan.share > 1 else lanes_of(plan.whole, plan.lanes))
        for number in range(ceil_div(tile_columns, plan.share)):
            columns = range(number * plan.share, min((number + 1) * plan.share, tile_columns))
            used = [c for c in columns if run.columns[0] <= c < run.columns[1]]
            values = {}
            for c in used:
                value = self.arguments.x(*source[:-1], source[-1] + c * distance)
                values[c] = bind(spread_over(plan.lanes, value, blended=ends and plan.share > 1))
                for i, weight in enumerate(weights):
                    bind.add(acc[c * size + i], [whole], values[c] * weight)
            if ends and used:
                together = [values.get(c, zeros(plan.lanes)) for c in columns]
                value = blended(together, plan.lanes, plan.width, bind)
                bind.add(acc[tile_columns * size + number], [whole], value * shared)
        return sequence(bind.statements)

    def _store(self, acc: Any, lane: Expr, place: tuple[Expr, ...], channel: int, size: int) -> Stmt:
        """So many channels of the output at a place, of the sums from that lane on."""
        from tvm import tirx

        def output(i: Expr) -> Stmt:
            where = [*place, channel + i]
            return tirx.BufferStore(self.y, epilogue_at(self.arguments, tirx.BufferLoad(acc, [lane + i]), where), where)

        return loop(size, output, "VECTORIZED", "lane")
