"""The loops of `grouped_shifts`: V of a task, its products, and the outputs of its tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtered_planes_loops import by_kind, register_tile, rolled, unrolled
from convtune.schedules.grouped_shifts_plan import Plan
from convtune.schedules.ranges import least, named, pieces, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence, unflat, vector_sums, zeros
from convtune.schedules.tiling import LONG_ACTIVATIONS
from convtune.schedules.written import Held

from convtune.expression import epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

At = tuple[Expr, Expr, Expr]  # image, group, first tile of a task
Columns = tuple[Expr, int]  # the first one, and how many


class Kernel:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    def kernel(self) -> Stmt:
        return ranged(0, self.plan.tasks, self._task, "PARALLEL", "task")

    def _task(self, number: Expr) -> Stmt:
        plan = self.plan
        n, span, block = unflat(number, (plan.batch, plan.spans, plan.blocks))
        start = least(block * plan.block, plan.rows.tiles - plan.block)

        def of_group(group: Expr, first: Expr, v: Any, m: Any) -> Stmt:
            at = n, span * plan.span + group, first
            return sequence([self._made(at, v), self._products(at, v, m), self._stored(at, m)])

        def through(first: Expr, v: Any, m: Any) -> Stmt:
            groups = ranged(0, plan.span, lambda group: of_group(group, first, v, m), name="group")
            return sequence([*self._zeros(v), groups])

        def with_buffers(first: Expr) -> Stmt:
            with_v = lambda v: allocated(plan.m_shape, "m", "global", lambda m: through(first, v, m))  # noqa: E731
            return allocated(plan.v_shape, "v", "global", with_v)

        return named(start, "first", with_buffers)

    def _zeros(self, v: Any) -> list[Stmt]:
        """What of V lies around the tiles, and is read with them; for all groups of a task, which leave it alone."""
        from tvm import tirx

        plan, zero = self.plan, tirx.const(0.0, "float32")
        between = plan.pitch - plan.columns.size

        def along(ic: Expr, point: Expr, start: Expr, size: int) -> Stmt:
            return ranged(0, size, lambda i: tirx.BufferStore(v, zero, [point, ic * plan.line + start + i]), name="i")

        def of_point(ic: Expr, point: Expr) -> Stmt:
            parts = [along(ic, point, *gap) for gap in plan.gaps]
            if between and plan.block > 1:
                first = plan.lead + plan.columns.size
                gap = lambda t: along(ic, point, first + t * plan.pitch, between)  # noqa: E731
                parts.append(ranged(0, plan.block - 1, gap, name="tile"))
            return sequence(parts)

        if not plan.gaps and (not between or plan.block == 1):
            return []
        of_channel = lambda ic: ranged(0, plan.alpha, lambda point: of_point(ic, point), name="point")  # noqa: E731
        return [ranged(0, plan.depth, of_channel, name="ic")]

    def _made(self, at: At, v: Any) -> Stmt:
        """V of all input channels of the group."""
        plan, (n, group, first) = self.plan, at

        def vector(tile: Expr, whole: bool, ic: Expr, t: Expr, columns: Columns) -> Stmt:
            from tvm import tirx

            column, width = columns
            bind, values, start = Binder(f"float32x{width}"), list[Expr](), plan.rows.input(0, tile, 0)
            along = tirx.Ramp(column, 1, width)
            for j in range(plan.alpha):
                if whole or 0 <= start + j < plan.rows.size:
                    place = [n, group * plan.depth + ic, start + j, along]
                    values.append(bind(tirx.BufferLoad(self.arguments.source, place)))
                else:
                    values.append(zeros(width))
            base = ic * plan.line + plan.lead + t * plan.pitch + column
            for point, value in enumerate(plan.filter.transform_input(values, bind)):
                bind.store(v, [point, tirx.Ramp(base, 1, width)], value)
            return sequence(bind.statements)

        def of_tile(ic: Expr, t: Expr) -> Stmt:
            def kind(tile: Expr, whole: bool) -> Stmt:
                return along_row(
                    plan.vectors_of(plan.columns.size), lambda columns: vector(tile, whole, ic, t, columns)
                )

            return named(first + t, "tile", lambda tile: by_kind(tile, plan.edges, plan.rows.tiles, kind))

        of_channel = lambda ic: ranged(0, plan.block, lambda t: of_tile(ic, t), name="t")  # noqa: E731
        return ranged(0, plan.depth, of_channel, name="ic")

    def _products(self, at: At, v: Any, m: Any) -> Stmt:
        """M of all points, channels and positions."""
        plan = self.plan

        def of_pass(point: Expr, number: Expr) -> Stmt:
            tile = lambda first: self._tile(at[1], (v, m), (point, number), first)  # noqa: E731
            return pieces((0, plan.positions), plan.vectors * plan.lanes, tile, "position", "piece")

        def of_point(point: Expr) -> Stmt:
            return ranged(0, plan.passes, lambda number: of_pass(point, number), name="pass")

        return ranged(0, plan.alpha, of_point, name="point")

    def _tile(self, group: Expr, buffers: tuple[Any, Any], index: tuple[Expr, Expr], start: Expr) -> Stmt:
        """A register tile of a point: channels x vectors of positions, from `start` on."""
        from tvm import tirx

        plan, (v, m), (point, number) = self.plan, buffers, index
        weights, apart = self.arguments.weight, plan.columns.dilation

        def source(ic: Expr, kw: int, j: int) -> Expr:
            base = ic * plan.line + plan.lead - plan.before + start + kw * apart
            return tirx.BufferLoad(v, [point, tirx.Ramp(base + j * plan.lanes, 1, plan.lanes)])

        def keep(i: int, j: int, total: Expr) -> Stmt:
            base = (number * plan.outputs + i) * plan.out_line + start + j * plan.lanes
            return tirx.BufferStore(m, total, [point, tirx.Ramp(base, 1, plan.lanes)])

        weight = lambda ic, kw, i: tirx.BufferLoad(weights, [group, point, number, ic, kw, i])  # noqa: E731
        return register_tile(plan, plan.columns.taps, source, weight, keep)

    def _stored(self, at: At, m: Any) -> Stmt:
        """The outputs of all tiles."""
        plan, rows = self.plan, self.plan.rows

        def of_tile(oc: Expr, t: Expr) -> Stmt:
            def kind(tile: Expr, whole: bool) -> Stmt:
                count = rows.m if whole else min(rows.m, rows.out - tile * rows.m)
                made = lambda columns: self._outputs(at, m, (oc, t), columns, tile, count)  # noqa: E731
                return along_row(plan.vectors_of(plan.columns.out), made)

            return named(at[2] + t, "tile", lambda tile: by_kind(tile, plan.edges, plan.rows.tiles, kind))

        of_channel = lambda oc: ranged(0, plan.block, lambda t: of_tile(oc, t), name="t")  # noqa: E731
        return ranged(0, plan.run, of_channel, name="oc")

    def _outputs(self, at: At, m: Any, place: tuple[Expr, Expr], columns: Columns, tile: Expr, count: int) -> Stmt:
        """The first outputs of a tile, of a channel and a vector of columns."""
        from tvm import tirx

        plan, (n, group, _), (oc, t), (column, width) = self.plan, at, place, columns
        bind = Binder(f"float32x{width}")
        base = tirx.Ramp(oc * plan.out_line + t * plan.pitch + column, 1, width)
        values = [bind(tirx.BufferLoad(m, [point, base])) for point in range(plan.alpha)]
        made = plan.filter.transform_output(values, bind)[:count]
        channel = group * plan.run + oc

        def output(value: Expr, i: Expr, lane: Expr) -> Stmt:
            where = [tile * plan.rows.m + i, column + lane]
            return tirx.BufferStore(self.y, epilogue(self.arguments, value, n, channel, where), [n, channel, *where])

        if self.spec.activation in LONG_ACTIVATIONS:  # once in the code
            return allocated((count, width), "row", "local", lambda row: rolled(bind, row, made, output))
        return vector_sums(count, width, lambda sums: unrolled(bind, sums, made, output))


def along_row(vectors: Sequence[tuple[int, int]], body: Callable[[Columns], Stmt]) -> Stmt:
    """body(columns) for the vectors of a row: those of most lanes in a loop."""
    width = vectors[0][1]
    even = sum((i * width, width) == vector for i, vector in enumerate(vectors))
    loop = ranged(0, even, lambda i: body((i * width, width)), name="vector")
    return sequence([loop, *(body(vector) for vector in vectors[even:])])
