"""The loops of `shifted_residues`: lines of a task's inputs, its sums, and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtered_planes_loops import register_tile
from convtune.schedules.grouped_shifts_loops import Columns, along_row
from convtune.schedules.grouped_shifts_plan import row_vectors
from convtune.schedules.ranges import least, named, pieces, ranged
from convtune.schedules.shifted_residues_plan import Plan
from convtune.schedules.statements import Expr, Stmt, allocated, sequence, unflat, when
from convtune.schedules.written import Held

from convtune.expression import epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

At = tuple[Expr, Expr, Expr]  # image, group, first row of outputs of a task


class Kernel:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    def kernel(self) -> Stmt:
        return ranged(0, self.plan.tasks, self._task, "PARALLEL", "task")

    def _task(self, number: Expr) -> Stmt:
        plan = self.plan
        n, group, block = unflat(number, (plan.batch, plan.groups, plan.blocks))
        start = least(block * plan.block, plan.rows.out - plan.block)

        def through(at: At, lines: Any, sums: Any) -> Stmt:
            def of_pass(number: Expr) -> Stmt:
                return sequence([self._sums(at, lines, sums, number), self._stored(at, sums, number)])

            return sequence([self._lines(at, lines), ranged(0, plan.passes, of_pass, name="pass")])

        def with_lines(at: At, lines: Any) -> Stmt:
            shape = plan.outputs, plan.out_line
            return allocated(shape, "sums", "global", lambda sums: through(at, lines, sums))

        shape = plan.depth, len(plan.residues), plan.line
        held = lambda first: allocated(  # noqa: E731
            shape, "lines", "global", lambda lines: with_lines((n, group, first), lines)
        )
        return named(start, "first", held)

    def _lines(self, at: At, lines: Any) -> Stmt:
        """The inputs of a task, zeros around."""
        plan = self.plan

        def of_line(ic: Expr, number: int) -> Stmt:
            return ranged(0, plan.reached, lambda i: self._row(at, lines, (ic, number), i), name="row")

        def of_channel(ic: Expr) -> Stmt:
            return sequence([of_line(ic, number) for number in range(len(plan.residues))])

        return ranged(0, plan.depth, of_channel, name="ic")

    def _row(self, at: At, lines: Any, place: tuple[Expr, int], i: Expr) -> Stmt:
        """A row of a line."""
        from tvm import tirx

        plan, rows = self.plan, self.plan.rows
        down, along = plan.residues[place[1]]
        row, inside = (at[2] + i) * rows.stride + down - rows.before, plan.inside(along)

        def zeros(start: int, stop: int) -> list[Stmt]:
            zero = tirx.const(0.0, "float32")
            one = lambda j: tirx.BufferStore(lines, zero, [*place, i * plan.pitch + j])  # noqa: E731
            return [ranged(start, stop, one, name="column")] if stop > start else []

        def vector(columns: Columns) -> Stmt:
            position = inside.start + columns[0]
            value = self._apart(
                at, place[0], row, position * plan.columns.stride + along - plan.columns.before, columns[1]
            )
            return tirx.BufferStore(lines, value, [*place, tirx.Ramp(i * plan.pitch + position, 1, columns[1])])

        read = along_row(row_vectors(len(inside), plan.lanes), vector)
        whole = sequence([*zeros(0, inside.start), read, *zeros(inside.stop, plan.pitch)])
        last = (rows.out - 1) * rows.stride + (plan.reached - plan.block) * rows.stride + down - rows.before
        conditions = [row >= 0] * (down < rows.before) + [row < rows.size] * (last >= rows.size)
        return when(conditions, whole, sequence(zeros(0, plan.pitch)) if conditions else None)

    def _apart(self, at: At, ic: Expr, row: Expr, column: Expr, width: int) -> Expr:
        """Every second one of a row's inputs, so many, of two loads that end with the last of them."""
        from tvm import tirx

        channel = at[1] * self.plan.depth + ic
        starts = column, column + width - 1
        loads = [
            tirx.BufferLoad(self.arguments.source, [at[0], channel, row, tirx.Ramp(start, 1, width)])
            for start in starts
        ]
        return tirx.Shuffle(loads, [2 * k if 2 * k < width else 2 * k + 1 for k in range(width)])

    def _sums(self, at: At, lines: Any, sums: Any, number: Expr) -> Stmt:
        plan = self.plan
        tile = lambda first: self._tile(at[1], (lines, sums), number, first)  # noqa: E731
        return pieces((0, plan.positions), plan.vectors * plan.lanes, tile, "position", "piece")

    def _tile(self, group: Expr, buffers: tuple[Any, Any], number: Expr, start: Expr) -> Stmt:
        """A register tile: channels x vectors of positions, from `start` on."""
        from tvm import tirx

        plan, (lines, sums), weights = self.plan, buffers, self.arguments.weight
        taps = plan.taps

        def source(ic: Expr, tap: int, j: int) -> Expr:
            line, shift = taps[tap]
            return tirx.BufferLoad(lines, [ic, line, tirx.Ramp(start + shift + j * plan.lanes, 1, plan.lanes)])

        def keep(i: int, j: int, total: Expr) -> Stmt:
            return tirx.BufferStore(sums, total, [i, tirx.Ramp(start + j * plan.lanes, 1, plan.lanes)])

        weight = lambda ic, tap, i: tirx.BufferLoad(weights, [group, number, ic, tap, i])  # noqa: E731
        return register_tile(plan, len(taps), source, weight, keep)

    def _stored(self, at: At, sums: Any, number: Expr) -> Stmt:
        """The outputs of a block of channels."""
        plan, vectors = self.plan, row_vectors(self.plan.columns.out, self.plan.lanes)

        def of_row(i: Expr, row: Expr) -> Stmt:
            return along_row(vectors, lambda columns: self._outputs(at, sums, (number, i, row), columns))

        of_channel = lambda i: ranged(0, plan.block, lambda row: of_row(i, row), name="row")  # noqa: E731
        return ranged(0, plan.outputs, of_channel, name="channel")

    def _outputs(self, at: At, sums: Any, place: Sequence[Expr], columns: Columns) -> Stmt:
        from tvm import tirx

        plan, (number, i, row), (column, width) = self.plan, place, columns
        channel = (at[1] * plan.passes + number) * plan.outputs + i

        def output(lane: Expr) -> Stmt:
            where = [at[2] + row, column + lane]
            value = tirx.BufferLoad(sums, [i, row * plan.pitch + column + lane])
            stored = epilogue(self.arguments, value, at[0], channel, where)
            return tirx.BufferStore(self.y, stored, [at[0], channel, *where])

        return ranged(0, width, output, "VECTORIZED", "lane")
