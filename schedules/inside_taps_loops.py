"""The loops that `inside_taps` writes: tasks, parts of the reduction, rows and tiles, and what a tile computes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.statements import Binder, Expr, Stmt, allocated, loop, sequence, unflat, vectorized, when
from convtune.schedules.tiling import LONG_ACTIVATIONS
from convtune.schedules.written import Buffers, Held, viewed

from convtune.expression import epilogue_at, widened

if TYPE_CHECKING:
    from convtune.schedules.axes import Axis
    from convtune.schedules.inside_taps_plan import Plan, Taps, Tiles

    from convtune.spec import ConvSpec


def kernel(spec: ConvSpec, plan: Plan, buffers: Buffers, y: Any) -> Stmt:
    """The kernel, over arguments in the shapes of the view: TVM is left no divisions of columns that are a plane."""
    x, weight, bias, residual = buffers
    sizes, outs = [axis.size for axis in plan.view.axes], [axis.out for axis in plan.view.axes]
    results = [y] if residual is None else [y, residual]

    def over(xs: list[Any], ys: list[Any]) -> Stmt:
        given = xs[0], weight, bias, None if residual is None else ys[1]
        return _Kernel(spec, plan, given, ys[0]).statement()

    def of_x(xs: list[Any]) -> Stmt:
        return viewed(results, (plan.view.batch, *outs, plan.channels), lambda ys: over(xs, ys))

    return viewed([x], (plan.view.batch, *sizes, plan.depth), of_x)


@dataclass(frozen=True)
class _Pass:
    """One part of the reduction, for a block of channels and its vectors. sums: those of the parts before, if any."""

    block: Expr
    vectors: int
    part: Expr
    sums: Any


@dataclass(frozen=True)
class _Place:
    """Where a tile is: image, depth and row, the row's number in its task, and its first column."""

    row: tuple[Expr, ...]
    local: Expr
    first: Expr
    columns: int


class _Kernel:
    def __init__(self, spec: ConvSpec, plan: Plan, buffers: Buffers, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, Held(spec, buffers), y

    def statement(self) -> Stmt:
        blocks, rows = self.plan.blocks, self.plan.row_tasks
        if self.plan.sharing == "weights":
            return loop(blocks * rows, lambda task: self._task(task // rows, task % rows), "PARALLEL")
        return loop(blocks * rows, lambda task: self._task(task % blocks, task // blocks), "PARALLEL")

    def _task(self, block: Expr, rows: Expr) -> Stmt:
        plan = self.plan
        if plan.blocks * plan.block == plan.channels:
            return self._parts(block, plan.vectors, rows)
        last = self._parts(plan.blocks - 1, plan.last_vectors, rows)
        if plan.blocks == 1:
            return last
        return when([block < plan.blocks - 1], self._parts(block, plan.vectors, rows), last)

    def _parts(self, block: Expr, vectors: int, rows: Expr) -> Stmt:
        plan = self.plan

        def by_parts(sums: Any) -> Stmt:
            return loop(plan.parts, lambda part: self._rows(_Pass(block, vectors, part, sums), rows))

        if plan.parts == 1:
            return by_parts(None)
        return allocated((plan.row_block, plan.view.columns.out, vectors, plan.lanes), "sums", "global", by_parts)

    def _rows(self, turn: _Pass, rows: Expr) -> Stmt:
        plan = self.plan

        def row(local: Expr) -> Stmt:
            number = rows * plan.row_block + local
            place = unflat(number, plan.row_shape)
            tiles = [self._tiles(turn, place, local, group) for group in plan.tiles]
            return when([number < plan.rows] if plan.rows % plan.row_block else [], sequence(tiles))

        return loop(plan.row_block, row)

    def _tiles(self, turn: _Pass, row: tuple[Expr, ...], local: Expr, group: Tiles) -> Stmt:
        def tile(i: Expr) -> Stmt:
            place = _Place(row, local, group.first + i * group.columns, group.columns)
            shape = (group.columns, turn.vectors, self.plan.lanes)
            return allocated(shape, "acc", "local", lambda acc: self._tile(acc, turn, place, group.taps))

        return loop(group.count, tile)

    def _tile(self, acc: Any, turn: _Pass, place: _Place, taps: tuple[Taps, ...]) -> Stmt:
        from tvm import tirx

        parts = self.plan.parts

        def sums(column: Expr, cv: Expr, lane: Expr) -> list[Expr]:
            return [place.local, place.first + column, cv, lane]

        def clear(bind: Binder, *index: Expr) -> None:
            bind.store(acc, index, tirx.const(0.0, "float32"))

        def load(bind: Binder, *index: Expr) -> None:
            bind.store(acc, index, tirx.BufferLoad(turn.sums, sums(*index)))

        def keep(bind: Binder, *index: Expr) -> None:
            bind.store(turn.sums, sums(*index), tirx.BufferLoad(acc, list(index)))

        begin, end = self._each(turn, place, clear), self._stores(acc, turn, place)
        if parts > 1:
            begin = tirx.IfThenElse(turn.part == 0, begin, self._each(turn, place, load))
            end = tirx.IfThenElse(turn.part == parts - 1, end, self._each(turn, place, keep))
        return sequence([begin, self._products(acc, turn, place, taps), end] if taps else [begin, end])

    def _each(self, turn: _Pass, place: _Place, body: Callable[..., None]) -> Stmt:
        """body(bind, column, vector, lane) for all sums of a tile."""
        places = list(itertools.product(range(place.columns), range(turn.vectors)))

        def of(bind: Binder, lane: Expr) -> None:
            for column, cv in places:
                body(bind, column, cv, lane)

        return vectorized(self.plan.lanes, of)

    def _products(self, acc: Any, turn: _Pass, place: _Place, taps: tuple[Taps, ...]) -> Stmt:
        """Those of a part, for the taps that read inputs."""
        depth, rows, columns = self.plan.view.axes
        n, *at = place.row

        def one(kd: Expr, kh: Expr) -> Stmt:
            position = [axis.first(o) + k * axis.dilation for axis, o, k in zip((depth, rows), at, (kd, kh))]
            conditions = [*_inside(depth, position[0]), *_inside(rows, position[1])]

            def tap(run: Taps, i: Expr) -> Stmt:
                kw = run.first + i
                first = columns.first(place.first) + kw * columns.dilation
                read = lambda column, ic: [n, *position, first + column * columns.stride, ic]  # noqa: E731
                return self._steps(acc, turn, run, (kd, kh, kw), read)

            runs = [loop(run.count, functools.partial(tap, run)) for run in taps]
            return when(conditions, sequence(runs))

        return loop(depth.taps, lambda kd: loop(rows.taps, lambda kh: one(kd, kh)))

    def _steps(
        self, acc: Any, turn: _Pass, run: Taps, tap: tuple[Expr, ...], read: Callable[[int, Expr], list[Expr]]
    ) -> Stmt:
        """acc += inputs times weights of a tap, for the input channels of a part."""
        from tvm import tirx

        plan = self.plan

        def step(ic: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                at = [turn.block, turn.part, *tap, ic]
                filters = [
                    bind(widened(tirx.BufferLoad(self.arguments.weight, [*at, cv * plan.lanes + lane])))
                    for cv in range(turn.vectors)
                ]
                for column in range(*run.columns):
                    value = widened(self.arguments.x(*read(column, turn.part * plan.ic_block + ic)))
                    for cv in range(turn.vectors):
                        bind.add(acc, [column, cv, lane], value * filters[cv])

            return vectorized(plan.lanes, body)

        return loop(plan.ic_block, step)

    def _stores(self, acc: Any, turn: _Pass, place: _Place) -> Stmt:
        """The epilogue of a tile."""
        from tvm import tirx

        plan = self.plan
        rest = plan.channels % plan.lanes
        ends = isinstance(turn.block, int) and rest > 0  # only the last block is written by itself
        n, *row = place.row

        def stored(source: Any, column: Expr, cv: Expr, width: int) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                where = [n, *row, place.first + column, turn.block * plan.block + cv * plan.lanes + lane]
                value = tirx.BufferLoad(source, [column, cv, lane])
                bind.store(self.y, where, epilogue_at(self.arguments, value, where))

            return vectorized(width, body)

        def of(source: Any, column: Expr) -> list[Stmt]:
            widths = [plan.lanes] * (turn.vectors - ends) + [rest] * ends
            return [stored(source, column, cv, width) for cv, width in enumerate(widths)]

        if self.spec.activation not in LONG_ACTIVATIONS:
            return sequence([statement for column in range(place.columns) for statement in of(acc, column)])

        def through(tile: Any) -> Stmt:  # a long activation is once in the code, not for each vector
            def keep(bind: Binder, *index: Expr) -> None:
                bind.store(tile, index, tirx.BufferLoad(acc, list(index)))

            return sequence(
                [self._each(turn, place, keep), loop(place.columns, lambda column: sequence(of(tile, column)))]
            )

        return allocated((place.columns, turn.vectors, plan.lanes), "tile", "global", through)


def _inside(axis: Axis, position: Expr) -> list[Expr]:
    """The conditions that can fail of a position of that axis being one of the input."""
    reach = [axis.first(out) + tap * axis.dilation for out in (0, axis.out - 1) for tap in (0, axis.taps - 1)]
    lower = [position >= 0] if min(reach) < 0 else []
    return lower + ([position < axis.size] if max(reach) >= axis.size else [])
